"""`openmanager plan`: what a fleet takes, and what that costs a month."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import render
from openmanager.config import parse_duration, show_duration
from openmanager.errors import InvalidArgumentError

if TYPE_CHECKING:
    from rich.table import Table

    from openmanager.capacity import Plan
    from openmanager.price import Prices

MAX_PRICES_BYTES = 65_536
ENGINES = ("blocks", "influxdb", "victoriametrics")


def _retention(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, timedelta]:
    """Read options such as raw=30d,5m=90d."""
    found = {}
    for text in (part.strip() for value in values for part in value.split(",")):
        tier, sign, kept = text.partition("=")
        try:
            found[tier.strip()] = parse_duration(kept)
        except (ValueError, OverflowError) as err:
            raise click.BadParameter(f"{text!r} is not TIER=DURATION: raw=14d is expected", ctx, param) from err
        if not sign:
            raise click.BadParameter(f"{text!r} is not TIER=DURATION: raw=14d is expected", ctx, param)
    return found


def _interval(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except (ValueError, OverflowError) as err:
        raise click.BadParameter(f"{value!r} is no duration: 10s or 1m is expected", ctx, param) from err


@click.command(
    epilog=render.examples(
        "plan",
        "plan --servers 20000 --interval 10s --machine 8:32GiB:2TiB:120",
        "plan --servers 500 --metrics 200 --retention raw=30d,1h=3650d --json",
        "plan --print-prices > prices.toml",
    )
)
@click.option("--servers", type=int, default=20, show_default=True, help="Servers, up to a million.")
@click.option("--metrics", type=int, default=511, show_default=True, help="Metrics of each.")
@click.option(
    "--interval", callback=_interval, default="10s", show_default=True, metavar="DURATION", help="Between samples."
)
@click.option(
    "--retention",
    callback=_retention,
    multiple=True,
    metavar="TIER=DURATION,…",
    help="How long what is kept.  [default: log=1d,raw=14d,5m=90d,1h=1825d]",
)
@click.option("--engine", type=click.Choice(ENGINES), default="blocks", show_default=True, help="Beside the blocks.")
@click.option("--otlp", "by_otlp", is_flag=True, help="Every server exports by OTLP itself, instead of frames of many.")
@click.option(
    "--headroom",
    type=float,
    default=50.0,
    show_default=True,
    metavar="PERCENT",
    help="Of each machine left free, 0–90.",
)
@click.option(
    "--machine",
    metavar="CORES:MEMORY:DISK[:MONEY]",
    help="A machine and its price a month, such as 8:32GiB:2TiB:120.  [default: that of the prices]",
)
@click.option(
    "--prices",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="What things cost, as TOML.",
)
@click.option("--print-prices", is_flag=True, help="Print the prices that hold otherwise, to edit, and end.")
@click.option("--costs", is_flag=True, help="Also print the unit costs, and where each was measured.")
@render.json_option
def plan(**options: Any) -> None:
    """Say what a fleet takes: processor, memory, disk, network, machines, and money a month.

    Computed from what was measured of this program, for the newest samples of every server, history, and detection;
    what people ask is not in it. Prices are yours to edit. Nothing is connected to.
    """
    from openmanager import capacity, price

    if options["print_prices"]:
        click.echo(price.defaults(), nl=False)
        return
    try:
        workload = capacity.Workload(
            servers=options["servers"],
            metrics=options["metrics"],
            interval=options["interval"],
            retention=options["retention"],
            engine=options["engine"],
            by_otlp=options["by_otlp"],
        )
        made = capacity.plan(workload, _prices(options), headroom=options["headroom"] / 100)
    except InvalidArgumentError as err:
        raise click.UsageError(err.message) from err
    if options["as_json"]:
        click.echo(json.dumps(_document(made, costs=options["costs"])))
        return
    _print(made)
    if options["costs"]:
        render.console().print(_costs_table())


def _prices(options: dict[str, Any]) -> Prices:
    from openmanager import price

    file: Path | None = options["file"]
    try:
        text = price.defaults() if file is None else _read(file)
    except (OSError, UnicodeDecodeError) as err:
        raise click.BadParameter(f"{file} cannot be read as text", param_hint="--prices") from err
    prices = price.read(text)
    return replace(prices, machine=price.parse_machine(options["machine"])) if options["machine"] else prices


def _read(file: Path) -> str:
    with file.open(encoding="utf-8") as source:
        text = source.read(MAX_PRICES_BYTES + 1)
    if len(text) > MAX_PRICES_BYTES:
        raise InvalidArgumentError(f"{file.name} has more than {MAX_PRICES_BYTES} characters")
    return text


# ── for people ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(made: Plan) -> None:
    out, load = render.console(), made.workload
    source = "an OTLP export of each" if load.by_otlp else "frames"
    click.echo(
        f"{load.servers:,} servers × {load.metrics:,} metrics every {show_duration(load.interval)}, {source}: "
        f"{load.series:,} series, {load.rate:,.0f} samples/s\n"
    )
    out.print(_parts_table(made))
    click.echo()
    out.print(_tiers_table(made))
    click.echo()
    out.print(_flows_table(made))
    click.echo()
    click.echo("\n".join(_money(made)))
    click.echo()
    click.echo("\n".join(_assumptions(made)))


def _parts_table(made: Plan) -> Table:
    figures = ("processes", "cores", "memory", "disk")
    table = render.table("part", *figures, right=figures)
    for part in made.parts:
        table.add_row(part.name, f"{part.processes:,}", *_amounts(part.cores, part.memory_bytes, part.disk_bytes))
    table.add_section()
    table.add_row("all", "", *_amounts(made.cores, made.memory_bytes, made.disk_bytes))
    return table


def _amounts(cores: float, memory: float, disk: float) -> tuple[str, str, str]:
    return f"{cores:,.{2 if cores >= 0.1 else 4}f}", _bytes(memory), _bytes(disk) if disk else render.NOTHING


def _bytes(size: float) -> str:
    return render.NOTHING if math.isnan(size) else render.show_bytes(round(size))


def _tiers_table(made: Plan) -> Table:
    figures = ("kept for", "rows", "disk", "B/row")
    table = render.table("history", *figures, right=figures)
    for tier in made.tiers:
        cells = (show_duration(tier.retention), f"{tier.rows:,.0f}", _bytes(tier.disk_bytes))
        table.add_row(tier.name, *cells, f"{tier.disk_bytes / tier.rows:.2f}")
    return table


def _flows_table(made: Plan) -> Table:
    table = render.table("network", "to", "bytes/s", "a month", right=("bytes/s", "a month"))
    for flow in made.flows:
        size = flow.bytes_per_second
        table.add_row(flow.source, flow.target, f"{_bytes(size)}/s", _bytes(size * 86_400 * 30))
    return table


def _money(made: Plan) -> Iterator[str]:
    machine = made.machine
    shape = f"{machine.cores:g} cores, {_bytes(machine.memory_bytes)}, {_bytes(machine.disk_bytes)} of disk"
    yield f"machines     {made.machines:,} of {shape}, by {made.limit}; shards of history: {made.shards:,}"
    own = "no price" if math.isnan(made.self_hosted_month) else f"{made.self_hosted_month:,.0f} {made.currency}"
    yield f"self-hosted  {own} a month"
    if not math.isnan(made.managed_month):
        saved = "" if math.isnan(made.saved) else f"; self-hosted is {_signed(-made.saved)}"
        yield f"managed      {made.managed_month:,.0f} {made.currency} a month, in proportion to samples{saved}"


def _signed(share: float) -> str:
    return f"{share:+.0%}".replace("-", "−")


def _assumptions(made: Plan) -> Iterator[str]:
    yield "assumed"
    yield f"  {made.headroom:.0%} of every machine and of every process's core stays free"
    yield "  a process bears one core; figures are of two shared cores, a little above those of a machine of one's own"
    yield "  values as the standard series has them; others take more or less on disk"
    yield "  disk is of the time when everything is as old as it gets; the network is without what people ask"
    yield "  prices are yours to edit (--print-prices); the defaults are the totals of a report of May 2025 for 20 servers"
    if made.workload.engine != "blocks":
        yield f"  what {made.workload.engine} takes of memory was not measured and is not in the sums"
    for name, value in made.settings.items():
        shown = render.show_bytes(value) if name.endswith("size") else f"{value:,}"
        yield f"  {name} has to be raised to {shown}"


def _costs_table() -> Table:
    table = render.table("unit cost", "value", "unit", "measured by", right=("value",))
    render.fold(table, "measured by")
    for name, cost in _leaves(_unit_costs()):
        if cost["value"]:
            table.add_row(name, f"{cost['value']:.4g}", cost["unit"], cost["source"])
    return table


# ── for programs ───────────────────────────────────────────────────────────────────────────────────────────────────


def _document(made: Plan, *, costs: bool) -> dict[str, Any]:
    """Return the plan as JSON: seconds for durations, null for what is not known."""
    document: dict[str, Any] = _plain({each.name: getattr(made, each.name) for each in fields(made)})
    document["workload"] |= {"series": made.workload.series, "samples_per_second": made.workload.rate}
    document |= {
        "cores": made.cores,
        "memory_bytes": made.memory_bytes,
        "disk_bytes": made.disk_bytes,
        "shards": made.shards,
        "saved_ratio": _plain(made.saved),
    }
    if costs:
        document["unit_costs"] = _unit_costs()
    return document


def _unit_costs() -> dict[str, Any]:
    from openmanager.unit_cost import MEASURED

    found: dict[str, Any] = _plain(MEASURED)
    return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "items"):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _leaves(found: dict[str, Any], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if "source" in found:
        yield where, found
        return
    for name, each in found.items():
        if isinstance(each, dict):
            yield from _leaves(each, f"{where}.{name}".removeprefix(".").removeprefix("processes."))
