"""`openmanager status` and `openmanager health`: how the mesh is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from openmanager.cli import connection, render
from openmanager.cli.log import ledger_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from openmanager.client import Board, Client, ServiceStatus, StorageStatus

EXIT_NOT_WELL = 1


@click.command(epilog=render.examples("status", "status --watch", "status --json | jq .overall_state"))
@click.option("--watch", "-w", is_flag=True, help="Go on, and show every change until Ctrl-C.")
@render.json_option
def status(*, watch: bool, as_json: bool) -> None:
    """Show every service and store, and the books of the log.

    Exit code 0 when everything is OK, SLOW or RECOVERING, 1 when something is worse, 69 when no gateway answers.
    """
    if not watch:
        connection.run(lambda client: _once(client, as_json=as_json))
    elif as_json:
        connection.run_until_interrupted(_stream_json)
    else:
        connection.run_until_interrupted(_watch)


@click.command(epilog=render.examples("health", "health timeseries", "health --all"))
@click.argument("service", default="")
@click.option("--all", "every", is_flag=True, help="The health of every service the gateway serves or routes.")
@render.json_option
def health(*, service: str, every: bool, as_json: bool) -> None:
    """Ask for the health of the gateway, or of a SERVICE behind it.

    This is gRPC's health protocol: it tells whether the gateway serves it. SERVICE is a full name such as openmanager.api.timeseries.v1.TimeseriesService, or a part of one that is unique to
    some services, such as timeseries. Exit code 0 when it serves, 1 when it does not.
    """
    healthy = connection.run(lambda client: _health(client, service, every=every, as_json=as_json))
    if not healthy:
        sys.exit(EXIT_NOT_WELL)


# ── health ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _health(client: Client, service: str, *, every: bool, as_json: bool) -> bool:
    from grpc_health.v1 import health_pb2

    from openmanager.client import rpc
    from openmanager.errors import NotFoundError

    if not service and not every:
        reply = await client.rpc.call(rpc.CHECK_HEALTH, health_pb2.HealthCheckRequest())
        render.print_json(reply) if as_json else click.echo(
            health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
        )
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    reply = await client.rpc.call(rpc.LIST_HEALTH, health_pb2.HealthListRequest())
    chosen = {name: each for name, each in sorted(reply.statuses.items()) if _is_meant(service, name)}
    if not chosen:
        raise NotFoundError(f"the gateway knows no service {service!r}; see `openmanager health --all`")
    if as_json:
        render.print_json(health_pb2.HealthListResponse(statuses=chosen))
    else:
        for name, each in chosen.items():
            click.echo(f"{health_pb2.HealthCheckResponse.ServingStatus.Name(each.status):12} {name or '(the gateway)'}")
    return all(each.status == health_pb2.HealthCheckResponse.SERVING for each in chosen.values())


def _is_meant(wanted: str, name: str) -> bool:
    """Say whether a service is asked for: by its full name, its last part, or its area; everything without a wish."""
    parts = name.split(".")
    return not wanted or wanted == name or wanted.lower() in {part.lower() for part in parts[2:]}


# ── status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _once(client: Client, *, as_json: bool) -> None:
    from openmanager.api.gateway.v1 import gateway_pb2
    from openmanager.client import codec, rpc

    reply = await client.rpc.call(rpc.GET_STORAGE_STATUS, gateway_pb2.GetStorageStatusRequest())
    board = codec.board(reply)
    if as_json:
        render.print_json(reply)
    else:
        out = render.console()
        for part in _parts(board, client.rpc.target):
            out.print(part)
    if board.overall_state is None or not board.overall_state.is_useful:
        sys.exit(EXIT_NOT_WELL)


async def _stream_json(client: Client) -> None:
    from openmanager.client.watch import watch_status

    async for message in watch_status(client.rpc):
        render.print_json(message, line=True)


async def _watch(client: Client) -> None:
    out = render.console()
    if not out.is_terminal:
        async for board in client.watch_storage_status():
            for part in _parts(board, client.rpc.target):
                out.print(part)
        return
    from rich.live import Live

    with Live(console=out, auto_refresh=False, screen=True) as live:
        async for board in client.watch_storage_status(on_away=lambda err: live.update(_away(err), refresh=True)):
            live.update(_group(board, client.rpc.target, out), refresh=True)


def _away(err: Exception) -> Text:
    from rich.text import Text

    return Text(f"{err}; trying again", style="bold red")


def _group(board: Board, target: str, out: Console) -> RenderableType:
    from rich.console import Group

    for is_brief in (False, True):  # of stores that are well there is nothing to tell where there is no room
        parts = list(_parts(board, target, is_brief=is_brief))
        lines = sum(len(out.render_lines(part)) for part in parts)
        if lines <= out.height:
            break
    # What does not fit then goes from the end: the books are less urgent than the states.
    while len(parts) > 1 and lines > out.height:
        lines -= len(out.render_lines(parts.pop()))
    return Group(*parts)


def _parts(board: Board, target: str, *, is_brief: bool = False) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text.assemble(
        render.state_text(board.overall_state),
        (f"  the mesh at {target}, {render.show_moment(board.observe_time)}", "dim"),
    )
    yield ""
    yield _services_table(board, is_brief=is_brief)
    remarks = list(_remarks(board))
    if remarks:
        yield ""
        yield from remarks
    yield ""
    yield ledger_table(board.ledger) if board.ledger else Text("ledger: timeseries cannot be reached", style="yellow")


def _services_table(board: Board, *, is_brief: bool) -> Table:
    made = render.table(
        "service", "state", "engine", "latency", "since", "size", "items", right=("latency", "since", "size", "items")
    )
    for service in board.services:
        own = f"openmanager {service.version}" if service.version else ""
        age = render.show_age(service.start_time, board.observe_time)
        made.add_row(f"[bold]{service.service}", render.state_text(service.state), own, "", age)
        for store in service.storages:
            if is_brief and store.state == "OK":
                continue
            made.add_row(*_store_cells(store, board))
    return made


def _store_cells(store: StorageStatus, board: Board) -> tuple[RenderableType, ...]:
    engine = " ".join(part for part in (store.engine, store.version) if part)
    return (
        f"  {store.name}",
        render.state_text(store.state),
        engine,
        render.show_length(store.latency),
        render.show_age(store.since, board.observe_time),
        render.show_bytes(store.size_bytes),
        f"{store.item_count:,}",
    )


def _remarks(board: Board) -> Iterator[Text]:
    """Yield a line for every reason and warning, so that they are whole on any width."""
    from rich.text import Text

    for service in board.services:
        told = False
        for store in service.storages:
            if store.state != "OK":
                told = True
                yield _reason(f"{service.service}/{store.name}", store)
            for warning in store.warnings:
                yield Text(f"! {service.service}/{store.name}: {warning}", style="yellow")
        if service.state != "OK" and not told:
            yield _reason(service.service, service)
        for warning in service.warnings:
            yield Text(f"! {service.service}: {warning}", style="yellow")


def _reason(name: str, of: StorageStatus | ServiceStatus) -> Text:
    from rich.text import Text

    return Text.assemble("✗ ", name, " ", render.state_text(of.state), f": {of.reason or 'no reason given'}")
