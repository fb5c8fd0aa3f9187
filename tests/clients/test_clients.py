"""Clients in other languages, made from the published protos, see what the Python client sees."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import pytest_asyncio
from clients.encrypted import EncryptedMesh, encrypted_mesh, unsteady
from clients.program import HERE, PATH, PROGRAMS, PROTOS, build, run
from conftest import wait_until
from transcript import assert_alike, blocks, steps

from openmanager.errors import NotFoundError, UnavailableError
from openmanager.frame import FrameReader, ServerInfo, encode

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
VECTORS = HERE / "frames.json"
GIVEN = json.loads(VECTORS.read_text(encoding="utf-8"))
PAGE = (HERE.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
# Which folder has what a fence shows.
FENCES = {"go": "go", "yaml": "go", "js": "node", "java": "java", "rust": "rust"}
# Compilers take minutes where nothing was built before: `make clients` asks for them.
QUICK = {"node"}
METRICS = ("cpu_usage", "memory_usage", "net{dir=in}")


def bits(value: float) -> str:
    return struct.pack(">d", value).hex()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def encrypted() -> AsyncIterator[EncryptedMesh]:
    """A mesh that knows three servers, which do not change while it is asked."""
    async with encrypted_mesh() as mesh:
        servers = tuple(f"vector-{number}" for number in (1, 2, 3))
        values = np.array([[0.1, 1 / 3, 5e-324], [2.0, np.nan, 1e300], [3.0, 4.0, -0.0]])
        async with mesh.client() as client:
            await client.write(
                times=[int(datetime.now(UTC).timestamp()) * 10**9],
                servers=servers,
                metrics=METRICS,
                values=values[np.newaxis],
                server_infos=[ServerInfo(id=each, role="vector") for each in servers],
            )

            async def seen() -> bool:
                try:
                    return all([(await client.get_server(each)).role == "vector" for each in servers])
                except (NotFoundError, UnavailableError):
                    return False

            await wait_until(seen, 30)
        yield mesh


@pytest.mark.parametrize("vector", GIVEN, ids=lambda vector: vector["name"])
async def test_a_vector_is_what_python_reads_and_writes(vector):
    frame, _ = FrameReader().read(bytes.fromhex(vector["wire"]))
    assert [str(time) for time in frame.times] == vector["times"]
    assert list(frame.servers) == vector["servers"]
    assert list(frame.metrics) == vector["metrics"]
    assert [bits(value) for value in frame.values.flat] == vector["values"]
    assert encode(frame).hex() == vector["encoded"]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("language", PROGRAMS)
async def test_a_client_sees_what_the_python_client_sees(encrypted: EncryptedMesh, language: str):
    if language not in QUICK and not os.environ.get("TEST_CLIENTS"):
        pytest.skip(f"compiling {language} takes long: `make clients`")
    await asyncio.to_thread(build, language)
    async with unsteady(encrypted) as door:
        arguments = (str(VECTORS), door, *([str(PROTOS)] if language == "node" else []))
        told = json.loads(await asyncio.to_thread(run, language, *arguments, variables=encrypted.environment()))
    assert told.pop("vectors") == [{name: each[name] for name in each if name != "wire"} for each in GIVEN]
    async with encrypted.client() as client:
        board = await client.storage_status()
        assert told.pop("services") == {each.service: f"STORAGE_STATE_{each.state.name}" for each in board.services}
        hot = await client.get_server("vector-1")
        assert told.pop("hot") == {name: bits(value) for name, value in zip(hot.metrics, hot.values, strict=True)}
        server = f"client-{language}"
        now = datetime.now(UTC)
        ranged = await client.query_range(start=now - timedelta(minutes=2), end=now, servers=server)
    written = told.pop("written")
    assert (
        told.pop("range")
        == {
            name.metric: {"times": [str(time) for time in each.times], "values": [bits(value) for value in each.values]}
            for name, each in zip(ranged.series, ranged.raw, strict=True)
        }
        == {"cpu_usage": {"times": written["times"], "values": [bits(0.1), bits(1 / 3)]}}
    )
    assert written == {
        "server": server,
        "times": written["times"],
        "accepted": 2,
        "rejections": [[server, "memory_usage", "VALUE_NOT_FINITE", "1"]],
    }
    del told["watch"]["kinds"][2:]  # what had arrived before a stream was cancelled may be seen too
    assert told == {
        "health": "SERVING",
        "servers": ["vector-1", "vector-2", "vector-3"],
        "watch": {
            "kinds": ["WATCH_KIND_CREATED", "WATCH_KIND_SNAPSHOT"],
            # In Rust a stream is cancelled by letting go of it, and nobody is told.
            "ended": "dropped" if language == "rust" else "CANCELLED",
        },
        "deadline": "DEADLINE_EXCEEDED",
        "refused": {"code": "INVALID_ARGUMENT", "reason": "INVALID_FIELD", "field": "frame.values"},
        "not_found": {"code": "NOT_FOUND", "type": "server", "name": "nobody"},
        "stranger": {"code": "UNAUTHENTICATED", "reason": "CREDENTIALS_INVALID"},
        "retried": len(METRICS),
    }


def unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@pytest.mark.parametrize("fence", FENCES)
async def test_what_the_page_shows_is_part_of_a_program(fence: str):
    files = [path for path in (HERE / FENCES[fence]).rglob("*") if path.is_file()]
    sources = [unindented(path.read_text(encoding="utf-8")) for path in files]
    shown = blocks(fence, PAGE)
    assert shown
    for block in shown:
        assert any(unindented(block) in source for source in sources), block


async def test_a_transcript_of_the_page_is_what_grpcurl_prints(encrypted: EncryptedMesh):
    grpcurl = shutil.which(os.environ.get("TEST_GRPCURL", "grpcurl"), path=PATH)
    if grpcurl is None:
        pytest.skip("grpcurl is not installed, and TEST_GRPCURL names none")
    now = int(time.time())
    here = {
        "gateway.example.net:50050": encrypted.gateway,
        "-cacert ca.pem": f"-cacert {encrypted.ca}",
        "-import-path protos": f"-import-path {PROTOS}",
        "1795752199000000000": f"{now}000000000",
        "2026-11-27T04:00:00Z": datetime.fromtimestamp(now - 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    done = []
    for step in steps(PAGE, "grpcurl"):
        command = re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], step.command)
        ended = await asyncio.to_thread(
            subprocess.run,
            [grpcurl, *shlex.split(command)[1:]],
            env=encrypted.environment(),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert bool(ended.returncode) == step.shown.startswith("ERROR"), (command, ended.stderr)
        assert_alike(step.shown, ended.stdout + ended.stderr)
        done.append(step)
    assert len(done) == 5
