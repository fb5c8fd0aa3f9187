"""`openmanager servers`: the servers as they are now, and their entries in the inventory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render

if TYPE_CHECKING:
    from rich.text import Text

    from openmanager.client import Client, InventoryServer, Provenance, Server

NARROW = 110
MIN_BAR, MAX_BAR, GAP = 3, 12, 2
HEADLINES = ("cpu %", "memory %", "disk %")
DEFAULT_LIMIT = 100


class _Servers(click.Group):
    """A group that lists without a sub-command, and shows a server where an id stands for one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        elif args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["get", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Servers,
    subcommand_metavar="[ID | COMMAND] [OPTIONS]",
    epilog=render.examples(
        "servers",
        "servers web-01",
        "servers --filter 'state = CRITICAL OR role = database' --order-by 'cpu_usage desc'",
        "servers update web-01 --role cache --label rack=r12",
    ),
)
def servers() -> None:
    """List servers, show one, and keep the inventory.

    Without a command the servers are listed (see `servers list --help`); with an ID that server is shown.
    """


@servers.command("list", epilog=render.examples("servers --filter 'environment = production' --limit 20"))
@click.option("--filter", "filter_", metavar="FILTER", default="", help="Which servers, such as “role = web”.")
@click.option("--order-by", metavar="FIELD", default="", help="Such as “cpu_usage desc”.  [default: id]")
@click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="How many at most.")
@click.option("--inventory", is_flag=True, help="What the inventory says, instead of how they are now.")
@click.option("--show-deleted", is_flag=True, help="With --inventory: deleted servers too.")
@render.json_option
def list_command(**options: Any) -> None:
    """List servers as they are now, or as the inventory has them.

    A FILTER compares id, hostname, environment, role, location, labels.NAME and state by =, != and : (contains),
    joined by AND, OR, NOT and parentheses.
    """
    connection.run(lambda client: _list_inventory(client, options) if options["inventory"] else _list(client, options))


@servers.command("get", epilog=render.examples("servers web-01", "servers get web-01 --inventory --json"))
@click.argument("server_id", metavar="ID")
@click.option("--inventory", is_flag=True, help="What the inventory says, instead of how it is now.")
@render.json_option
def get_command(*, server_id: str, inventory: bool, as_json: bool) -> None:
    """Show one server with the newest value of every metric, or its entry in the inventory."""
    show = _get_inventory if inventory else _get
    connection.run(lambda client: show(client, server_id, as_json=as_json))


def _attribute_options(command: Any) -> Any:
    """Give a command the options of what people say of a server."""
    for name in ("location", "role", "environment", "hostname"):
        command = click.option(f"--{name}", metavar="TEXT", help=f"Its {name}.")(command)
    label = click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="A label; all others go.")
    threshold = click.option(
        "--threshold",
        "thresholds",
        metavar="NAME=PERCENT",
        multiple=True,
        help="A threshold of its own, such as cpu_warning=60; all others follow its role.",
    )
    return label(threshold(command))


@servers.command("create", epilog=render.examples("servers create web-99 --role web --environment production"))
@click.argument("server_id", metavar="ID")
@_attribute_options
@render.json_option
def create_command(*, server_id: str, as_json: bool, **options: Any) -> None:
    """Create a server in the inventory."""
    connection.run(lambda client: _create(client, server_id, _changes(options), as_json=as_json))


@servers.command("update", epilog=render.examples("servers update web-01 --role cache --label rack=r12"))
@click.argument("server_id", metavar="ID")
@_attribute_options
@click.option("--etag", default="", help="Only if nobody changed it since this etag was read.")
@render.json_option
def update_command(*, server_id: str, etag: str, as_json: bool, **options: Any) -> None:
    """Change what is given of a server in the inventory."""
    changes = _changes(options)
    if not changes:
        raise click.UsageError("nothing to change was given")
    connection.run(lambda client: _update(client, server_id, changes, etag=etag, as_json=as_json))


@servers.command("delete", epilog=render.examples("servers delete web-99"))
@click.argument("server_id", metavar="ID")
@click.option("--purge", is_flag=True, help="Remove its row instead of hiding it.")
@click.option("--etag", default="", help="Only if nobody changed it since this etag was read.")
@render.json_option
def delete_command(*, server_id: str, purge: bool, etag: str, as_json: bool) -> None:
    """Hide a server and its hot state; its history follows retention, and its next frame registers it again."""
    connection.run(lambda client: _delete(client, server_id, purge=purge, etag=etag, as_json=as_json))


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {name: value for name, value in options.items() if isinstance(value, str)}
    if options["labels"]:
        changes["labels"] = dict(_pair(text, "--label") for text in options["labels"])
    if options["thresholds"]:
        changes["thresholds"] = dict(_threshold(text) for text in options["thresholds"])
    return changes


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise click.UsageError(f"{option} {text!r} is not NAME=VALUE")
    return name, value


def _threshold(text: str) -> tuple[str, float]:
    name, value = _pair(text, "--threshold")
    try:
        return name, float(value)
    except ValueError as err:
        raise click.UsageError(f"--threshold {text!r} is not NAME=PERCENT") from err


# ── how they are now ───────────────────────────────────────────────────────────────────────────────────────────────


async def _list(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.api.gateway.v1 import gateway_pb2
    from openmanager.client import Provenance, codec, rpc

    request = gateway_pb2.ListServersRequest(filter=options["filter_"], order_by=options["order_by"])
    found: list[Server] = []
    total, about = 0, Provenance()
    async for page in client.rpc.pages(rpc.LIST_SERVERS, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
        found.extend(codec.server(each, page.provenance) for each in page.servers)
        total, about = page.total_count, codec.provenance(page.provenance)
    if not options["as_json"]:
        print_servers(found, total=total, about=about)


def print_servers(found: Sequence[Server], *, total: int, about: Provenance) -> None:
    """Print a table of servers and where it came from."""
    out = render.console()
    if found:
        out.print(servers_table(found, out.width))
    of = f"{len(found):,} of " if len(found) < total else ""
    shown = f"{of}{render.show_count(total, 'server')}"
    out.print(f"\n{shown}" if found else "no servers", end=", " if found else ": ")
    out.print(render.provenance_text(about))


def servers_table(found: Sequence[Server], width: int) -> Any:
    """Return a table of servers for a terminal of `width` cells: the bars take what the names leave them."""
    columns = {"role": [server.role for server in found], "environment": [server.environment for server in found]}
    ids = max((len(server.id) for server in found), default=2)
    cells = _bar_cells(width - ids, columns)
    while columns and cells < MIN_BAR:
        columns.popitem()
        cells = _bar_cells(width - ids, columns)
    made = render.table("id", "state", *HEADLINES, *columns, "seen", right=("seen",))
    made.columns[0].no_wrap, made.columns[0].overflow = False, "fold"
    for row, server in enumerate(found):
        made.add_row(
            server.id,
            render.state_text(server.state),
            *usage_bars(usages(server), max(MIN_BAR, min(cells, MAX_BAR))),
            *(column[row] for column in columns.values()),
            render.show_age(server.sample_time),
        )
    return made


def _bar_cells(width: int, columns: Mapping[str, Sequence[str]]) -> int:
    """Return how long each of the three bars may be beside columns of texts, the state and the age."""
    others = [len("CRITICAL"), len("seen") + 1]
    others.extend(max(map(len, (name, *texts))) for name, texts in columns.items())
    return (width - sum(others) - GAP * len(others)) // len(HEADLINES) - GAP - len(" 99.9")


def usage_bars(usage: Sequence[float | None], cells: int) -> tuple[Text, Text, Text]:
    """Return the bars of the three headline figures, coloured by the default thresholds."""
    cpu, memory, disk = usage
    return (
        render.bar(cpu, cells, warning=70, critical=85),
        render.bar(memory, cells, warning=75, critical=90),
        render.bar(disk, cells, warning=80, critical=90),
    )


def usages(server: Server) -> tuple[float | None, float | None, float | None]:
    """Return the three headline figures of a server."""
    return server.cpu_usage, server.memory_usage, server.disk_usage


async def _get(client: Client, server_id: str, *, as_json: bool) -> None:
    from openmanager.api.gateway.v1 import gateway_pb2
    from openmanager.api.server.v1 import server_pb2
    from openmanager.client import codec, rpc

    request = gateway_pb2.GetServerRequest(id=server_id, view=server_pb2.VIEW_FULL)
    reply = await client.rpc.call(rpc.GET_SERVER, request)
    if as_json:
        render.print_json(reply)
        return
    server = codec.server(reply.server, reply.provenance)
    out = render.console()
    _print_facts(_facts(server))
    made = render.table("metric", "value", right=("value",))
    made.columns[0].overflow = "fold"
    made.columns[0].no_wrap = False
    for key, value in zip(server.metrics, server.values.tolist(), strict=True):
        made.add_row(key, render.show_value(value))
    out.print()
    out.print(made)
    out.print()
    out.print(render.provenance_text(server.provenance))


def _facts(server: Server) -> dict[str, Any]:
    from rich.text import Text

    state = Text.assemble(render.state_text(server.state), f" for {render.show_age(server.state_since)}")
    if server.state_reason:
        state.append(f": {server.state_reason}")
    return {
        "server": Text(server.id, style="bold"),
        "hostname": server.hostname,
        "environment": server.environment,
        "role": server.role,
        "location": server.location,
        "labels": _labels(server.labels),
        "state": state,
        **dict(zip(HEADLINES, usage_bars(usages(server), 20), strict=True)),
        "last sample": f"{render.show_moment(server.sample_time)}, {render.show_age(server.sample_time)} ago",
        "interval": render.show_length(server.interval) if server.interval else "",
    }


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _print_facts(facts: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            made.add_row(Text(name, style="dim"), Text(value) if isinstance(value, str) else value)
    render.console().print(made)


# ── the inventory ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _list_inventory(client: Client, options: Mapping[str, Any]) -> None:
    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.client import Provenance, codec, rpc

    request = metadata_pb2.ListServersRequest(
        filter=options["filter_"], order_by=options["order_by"], show_deleted=options["show_deleted"]
    )
    out = render.console()
    names = ("id", "hostname", "environment", "role", "location", "labels", "changed")
    shown = [name for name in names if name != "hostname" or out.width >= NARROW]
    made = render.table(*shown)
    made.columns[-2].no_wrap, made.columns[-2].overflow = False, "fold"
    total, about = 0, Provenance()
    async for page in client.rpc.pages(rpc.LIST_INVENTORY_SERVERS, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
        for each in page.servers:
            made.add_row(*(_inventory_cells(codec.inventory_server(each))[name] for name in shown))
        total, about = page.total_count, codec.provenance(page.provenance)
    if options["as_json"]:
        return
    out.print(made)
    of = f"{made.row_count:,} of " if made.row_count < total else ""
    out.print(f"\n{of}{render.show_count(total, 'server')} in the inventory", end=", ")
    out.print(render.provenance_text(about))


def _inventory_cells(server: InventoryServer) -> dict[str, str]:
    changed = render.show_age(server.update_time)
    return {
        "id": server.id,
        "hostname": server.hostname,
        "environment": server.environment,
        "role": server.role,
        "location": server.location,
        "labels": _labels(server.labels),
        "changed": f"deleted, {changed}" if server.delete_time else changed,
    }


async def _get_inventory(client: Client, server_id: str, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.client import rpc

    request = metadata_pb2.GetServerRequest(id=server_id)
    _print_inventory(await client.rpc.call(rpc.GET_INVENTORY_SERVER, request), as_json=as_json)


async def _create(client: Client, server_id: str, changes: Mapping[str, Any], *, as_json: bool) -> None:
    import uuid

    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.client import rpc

    request = metadata_pb2.CreateServerRequest(server=_message(server_id, changes), request_id=uuid.uuid4().hex)
    _print_inventory(await client.rpc.call(rpc.CREATE_INVENTORY_SERVER, request), as_json=as_json)


async def _update(client: Client, server_id: str, changes: Mapping[str, Any], *, etag: str, as_json: bool) -> None:
    from google.protobuf.field_mask_pb2 import FieldMask

    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.client import rpc

    request = metadata_pb2.UpdateServerRequest(
        server=_message(server_id, {**changes, "etag": etag}), update_mask=FieldMask(paths=sorted(changes))
    )
    _print_inventory(await client.rpc.call(rpc.UPDATE_INVENTORY_SERVER, request), as_json=as_json)


async def _delete(client: Client, server_id: str, *, purge: bool, etag: str, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import metadata_pb2
    from openmanager.client import rpc

    request = metadata_pb2.DeleteServerRequest(id=server_id, purge=purge, etag=etag)
    reply = await client.rpc.call(rpc.DELETE_INVENTORY_SERVER, request)
    done = "gone from the inventory" if purge else "hidden"
    render.told(reply, f"{reply.server.id} is {done}; its history stays", as_json=as_json)


def _message(server_id: str, changes: Mapping[str, Any]) -> Any:
    from openmanager.api.metadata.v1 import metadata_pb2

    fields = dict(changes)
    thresholds = fields.pop("thresholds", {})
    unknown = [name for name in thresholds if name not in metadata_pb2.Thresholds.DESCRIPTOR.fields_by_name]
    if unknown:
        known = ", ".join(metadata_pb2.Thresholds.DESCRIPTOR.fields_by_name)
        raise click.UsageError(f"there is no threshold {unknown[0]!r}; there are {known}")
    return metadata_pb2.Server(id=server_id, thresholds=metadata_pb2.Thresholds(**thresholds), **fields)


def _print_inventory(reply: Any, *, as_json: bool) -> None:
    from openmanager.client import codec

    if as_json:
        render.print_json(reply)
        return
    server = codec.inventory_server(reply.server)
    own = {name: getattr(server.thresholds, name) for name in server.thresholds.__slots__}
    _print_facts(
        {
            "server": server.id,
            "hostname": server.hostname,
            "environment": server.environment,
            "role": server.role,
            "location": server.location,
            "labels": _labels(server.labels),
            "thresholds": ", ".join(f"{name} {value:g} %" for name, value in own.items() if value is not None),
            "created": render.show_moment(server.create_time),
            "changed": render.show_moment(server.update_time),
            "etag": server.etag,
        }
    )
