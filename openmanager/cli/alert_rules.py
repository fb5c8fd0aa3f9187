"""`openmanager alerts rules`: what is to be told of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render
from openmanager.cli.query import length
from openmanager.cli.retention import show_selector
from openmanager.cli.selection import series_options
from openmanager.config import show_duration

if TYPE_CHECKING:
    from rich.table import Table

    from openmanager.client import AlertRule, Client, Provenance

SEVERITIES = ("info", "warning", "critical")
STORE_STATES = ("ok", "slow", "down", "hung", "empty", "readonly", "recovering")


@click.group("rules", invoke_without_command=True, epilog=render.examples("alerts rules", "alerts rules --json"))
@render.json_option
@click.pass_context
def rules(ctx: click.Context, *, as_json: bool) -> None:
    """List the rules, or create, pause and delete them; or keep them in a file."""
    if ctx.invoked_subcommand is None:
        connection.run(lambda client: _rules(client, as_json=as_json))


@rules.command(
    "create",
    epilog=render.examples(
        "alerts rules create cpu cpu_usage --above 90 --clear 80 --for 5m --severity critical",
        "alerts rules create odd --anomaly critical --where 'environment = production'",
        "alerts rules create disk disk_usage --reaches 95 --within 7d",
        "alerts rules create stores --store '*' --for 1m",
        "alerts rules create errors net_errors_total --above 5 --per-second",
        "alerts rules create gone --silent 5m --where 'environment = production'",
    ),
)
@click.argument("rule_id", metavar="ID")
@click.argument("metrics", nargs=-1, metavar="[METRIC]...")
@series_options
@click.option("--above", type=float, metavar="VALUE", help="A metric is above this.")
@click.option("--below", type=float, metavar="VALUE", help="A metric is below this.")
@click.option("--per-second", is_flag=True, help="Not its value is, but its growth per second: of counters.")
@click.option("--clear", type=float, metavar="VALUE", help="It is well again from here on.  [default: the bound]")
@click.option("--for", "lasting", callback=length, metavar="DURATION", help="For so long, before it fires.")
@click.option(
    "--clear-for", "clear_lasting", callback=length, metavar="DURATION", help="Well for so long, before it is over."
)
@click.option("--anomaly", type=click.Choice(SEVERITIES, case_sensitive=False), help="A server is so unusual at least.")
@click.option("--reaches", type=float, metavar="VALUE", help="A metric will reach this, …")
@click.option("--within", callback=length, metavar="DURATION", help="… within so long.")
@click.option("--probability", type=click.FloatRange(0.05, 1), help="… as probably at least.  [default: 0.8]")
@click.option(
    "--silent", callback=length, metavar="DURATION", help="A server, or a METRIC of it, sends nothing for so long."
)
@click.option("--store", "stores", multiple=True, metavar="GLOB", help="A store is not well; may be repeated.")
@click.option("--service", "services", multiple=True, metavar="GLOB", help="A service, or its stores; may be repeated.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STORE_STATES, case_sensitive=False),
    help="Only in this state.",
)
@click.option("--name", default="", metavar="TEXT", help="The label alertname.  [default: ID]")
@click.option("--severity", type=click.Choice(SEVERITIES, case_sensitive=False), default="warning", show_default=True)
@click.option("--label", "labels", multiple=True, metavar="NAME=TEXT", help="A label of its alerts; may be repeated.")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="NAME=TEXT",
    help="A text with {server}, {value} …; may be repeated.",
)
@click.option(
    "--inhibited-by",
    "sources",
    multiple=True,
    metavar="MATCHER",
    help="Not sent while such alerts of the server fire; may be repeated.",
)
@render.json_option
def create_command(**options: Any) -> None:
    """Create a rule ID: on METRICs (keys, names or globs), on anomalies, on limits to come, on stores, or on silence."""
    wanted = _wanted(options)
    connection.run(lambda client: _create(client, wanted, as_json=options["as_json"]))


@rules.command("apply", epilog=render.examples("alerts rules apply deploy/slo/rules.toml"))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def apply_command(*, file: Path) -> None:
    """Create the rules of a TOML FILE, and change those that there are to what it says. Others are left alone."""
    from openmanager.cli import rules_file

    wanted = rules_file.read(file)
    connection.run(lambda client: rules_file.apply(client, wanted))


@rules.command("delete", epilog=render.examples("alerts rules delete cpu"))
@click.argument("rule_id", metavar="ID")
@render.json_option
def delete_command(*, rule_id: str, as_json: bool) -> None:
    """Delete a rule; its alerts end."""
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import rpc

    request = alert_pb2.DeleteRuleRequest(id=rule_id)
    reply = connection.run(lambda client: client.rpc.call(rpc.DELETE_RULE, request))
    render.told(reply, f"{rule_id} is deleted", as_json=as_json)


@rules.command("pause", epilog=render.examples("alerts rules pause cpu"))
@click.argument("rule_id", metavar="ID")
@render.json_option
def pause_command(*, rule_id: str, as_json: bool) -> None:
    """Leave a rule out until `rules resume`; its alerts end."""
    reply = connection.run(lambda client: _pause(client, rule_id, paused=True))
    render.told(reply, f"{rule_id} is paused", as_json=as_json)


@rules.command("resume", epilog=render.examples("alerts rules resume cpu"))
@click.argument("rule_id", metavar="ID")
@render.json_option
def resume_command(*, rule_id: str, as_json: bool) -> None:
    """Have a paused rule apply again."""
    reply = connection.run(lambda client: _pause(client, rule_id, paused=False))
    render.told(reply, f"{rule_id} applies again", as_json=as_json)


async def _rules(client: Client, *, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import codec, rpc

    about: Provenance | None = None
    found: list[AlertRule] = []
    async for page in client.rpc.pages(rpc.LIST_RULES, alert_pb2.ListRulesRequest()):
        if as_json:
            render.print_json(page, line=True)
        found.extend(map(wire.rule, page.rules))
        about = codec.provenance(page.provenance)
    if as_json:
        return
    if found:
        render.console().print(_rules_table(found))
        click.echo()
    click.echo(render.show_count(len(found), "rule"))
    if about is not None and about.reason:
        render.console().print(render.provenance_text(about))


def _rules_table(found: Sequence[AlertRule]) -> Table:
    made = render.table("id", "severity", "what", "of", "series", right=("series",))
    render.fold(made, "what", "of")
    for each in found:
        made.add_row(
            each.id,
            render.severity_text(each.severity),
            _condition_text(each) + (", paused" if each.paused else ""),
            _about(each),
            f"{each.series_count:,}",
        )
    return made


def _about(rule: AlertRule) -> str:
    from openmanager.client import Selector, StoreCondition

    if isinstance(rule.condition, StoreCondition):
        parts = [
            f"{word} {', '.join(names)}"
            for word, names in (("stores", rule.condition.stores), ("services", rule.condition.services))
            if names
        ]
        return " of ".join(parts) or "all stores and services"
    return show_selector(rule.selector) if rule.selector != Selector() else "all servers"


def _condition_text(rule: AlertRule) -> str:
    from openmanager.client import AbsenceCondition, AnomalyCondition, ExhaustionCondition, ThresholdCondition

    match rule.condition:
        case ThresholdCondition() as found:
            bound = f"above {found.above:g}" if found.above is not None else f"below {found.below:g}"
            bound += "/s" if found.per_second else ""
            text = bound + (f" for {show_duration(found.lasting)}" if found.lasting else "")
            return text + (f", clear at {found.clear:g}" if found.clear not in {found.above, found.below, None} else "")
        case AbsenceCondition() as found:
            return f"nothing sent for {show_duration(found.lasting)}"
        case AnomalyCondition() as found:
            return f"anomaly, {found.min_severity.lower()} or graver"
        case ExhaustionCondition() as found:
            return f"reaches {found.limit:g} within {show_duration(found.within)} with {found.min_probability:.0%}"
        case found:
            states = f"is {' or '.join(found.states)}" if found.states else "is not OK"
            return states + (f" for {show_duration(found.lasting)}" if found.lasting else "")


def _wanted(options: dict[str, Any]) -> AlertRule:
    from openmanager.client import AlertRule, Inhibitor, Selector

    return AlertRule(
        id=options["rule_id"],
        name=options["name"],
        condition=_condition(options),
        selector=Selector(metrics=options["metrics"], servers=options["servers"], where=options["where"]),
        severity=options["severity"].upper(),
        labels=_pairs(options["labels"], "--label"),
        annotations=_pairs(options["annotations"], "--annotation"),
        inhibitors=tuple(Inhibitor(source=each) for each in options["sources"]),
    )


def _condition(options: dict[str, Any]) -> Any:
    from openmanager.client import (
        AbsenceCondition,
        AnomalyCondition,
        ExhaustionCondition,
        StoreCondition,
        ThresholdCondition,
    )

    lasting = options["lasting"] or timedelta()
    given = {
        "--above": options["above"] is not None,
        "--below": options["below"] is not None,
        "--anomaly": options["anomaly"] is not None,
        "--reaches": options["reaches"] is not None,
        "--store or --service": bool(options["stores"] or options["services"]),
        "--silent": bool(options["silent"]),
    }
    if sum(given.values()) != 1:
        raise click.UsageError(f"one of {', '.join(given)} is needed")
    if options["per_second"] and not (given["--above"] or given["--below"]):
        raise click.UsageError("--per-second goes with --above or --below")
    if options["silent"]:
        return AbsenceCondition(lasting=options["silent"])
    if options["anomaly"]:
        return AnomalyCondition(min_severity=options["anomaly"].upper())
    if options["reaches"] is not None:
        if options["within"] is None:
            raise click.UsageError("--reaches needs --within")
        return ExhaustionCondition(
            limit=options["reaches"], within=options["within"], min_probability=options["probability"] or 0.0
        )
    if options["stores"] or options["services"]:
        states = tuple(each.upper() for each in options["states"])
        return StoreCondition(services=options["services"], stores=options["stores"], states=states, lasting=lasting)
    return ThresholdCondition(
        above=options["above"],
        below=options["below"],
        clear=options["clear"],
        lasting=lasting,
        clear_lasting=options["clear_lasting"] or timedelta(),
        per_second=options["per_second"],
    )


def _pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise click.UsageError(f"{option} {text!r} is not NAME=TEXT")
        found[name] = value
    return found


async def _create(client: Client, wanted: AlertRule, *, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import alerts as wire
    from openmanager.client import rpc

    request = alert_pb2.CreateRuleRequest(rule=wire.rule_message(wanted))
    reply = await client.rpc.call(rpc.CREATE_RULE, request)
    made = wire.rule(reply.rule)
    render.told(reply, f"{made.id}: {_condition_text(made)}, {_about(made)}, {made.severity.lower()}", as_json=as_json)


async def _pause(client: Client, rule_id: str, *, paused: bool) -> Any:
    from openmanager.api.analysis.v1 import alert_pb2
    from openmanager.client import rpc

    request = alert_pb2.UpdateRuleRequest(rule=alert_pb2.AlertRule(id=rule_id, paused=paused))
    request.update_mask.paths.append("paused")
    return await client.rpc.call(rpc.UPDATE_RULE, request)
