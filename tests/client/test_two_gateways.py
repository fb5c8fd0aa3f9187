"""Two gateways, of which a client is told: one is killed under load, and no call fails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from pathlib import Path

from conftest import clean_environment, second_gateway, wait_until

from client.mesh import LocalMesh, frame_of, servers_known
from openmanager.client import Client
from openmanager.errors import OpenManagerError

# More than half of what was on its way at once is lost with the gateway, and made again.
CALLERS = 32
ENOUGH = 100


async def test_a_gateway_that_is_killed_under_load_fails_no_call_while_there_is_another(
    local: LocalMesh, tmp_path: Path
):
    peers = {f"OPENMANAGER_MESH_{name.upper()}": at for name, at in local.addresses.items() if name != "gateway"}
    variables = {**clean_environment(), **peers, "OPENMANAGER_ALLOW_INSECURE": "1"}
    with second_gateway(variables, tmp_path) as (address, killed):
        async with Client(local.gateway) as alone:
            await alone.write_frame(frame_of(3, 5))
            await servers_known(alone, 3)
        async with Client(address) as alone:
            await wait_until(lambda: answers(alone), 30)
        done, failures, ended = Counter[str](), [], asyncio.Event()
        async with Client(f"ipv4:{address},{local.gateway}") as client:

            async def call(caller: int) -> None:
                while not ended.is_set():
                    name = "write" if done.total() % 2 else "read"
                    try:
                        await (write(client, caller) if name == "write" else client.get_server("web-00"))
                    except OpenManagerError as err:
                        failures.append(err)
                    done[name] += 1

            callers = [asyncio.create_task(call(caller)) for caller in range(CALLERS)]
            await wait_until(lambda: reached(done, ENOUGH), 30)
            killed.kill()
            await wait_until(lambda: reached(done, 3 * ENOUGH), 30)
            ended.set()
            await asyncio.gather(*callers)
        assert [str(each) for each in failures] == []
        assert min(done.values()) > ENOUGH


async def write(client: Client, caller: int) -> None:
    await client.write(times=[time.time_ns()], servers=[f"two-{caller}"], metrics=["cpu_usage"], values=[[[1.0]]])


async def answers(client: Client) -> bool:
    with contextlib.suppress(OpenManagerError):
        return (await client.fleet_summary(seconds=0.5)).total > 0
    return False


async def reached(done: Counter[str], count: int) -> bool:
    return done.total() >= count
