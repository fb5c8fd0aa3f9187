"""`openmanager anomalies`: what is unlike what is usual, found as samples arrive or in stored history."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from openmanager.cli import connection, render, report
from openmanager.cli.query import length, moment
from openmanager.cli.selection import series_options

if TYPE_CHECKING:
    from openmanager.cli.progress import Bar
    from openmanager.cli.report import Report
    from openmanager.client import Anomaly, Client, FailureRisk, Provenance
    from openmanager.client.analysis import DetectionScores

SEVERITIES = ("info", "warning", "critical")
# From which probability of an alarm within the longest horizon on a server is shown, and how many are.
LIKELY, SHOWN_RISKS = 0.25, 5


@click.group(
    invoke_without_command=True,
    epilog=render.examples(
        "anomalies",
        "anomalies --active --filter 'severity = CRITICAL'",
        "anomalies --last 1d --html anomalies.html --png anomalies.png",
        "anomalies watch",
        "anomalies detect cpu_usage --server web-01 --last 6h",
        "anomalies score --last 7d",
    ),
)
@click.option("--active", is_flag=True, help="Only those that go on now.")
@click.option("--filter", "where", default="", metavar="FILTER", help="By server, severity, metric or incident_id.")
@click.option("--last", callback=length, metavar="DURATION", help="Only those that touch this time.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@report.options
@render.json_option
@click.pass_context
def anomalies(ctx: click.Context, /, **options: Any) -> None:
    """List what was unlike what is usual, the newest first: which server, how grave, and which metrics show it."""
    if ctx.invoked_subcommand is None:
        report.run(options, lambda client, bar: _list(client, options, bar))


@anomalies.command("watch", epilog=render.examples("anomalies watch", "anomalies watch --filter 'server : web' --json"))
@click.option("--filter", "where", default="", metavar="FILTER", help="By server, severity, metric or incident_id.")
@render.json_option
def watch_command(*, where: str, as_json: bool) -> None:
    """Show those that go on, and then each that begins, changes or ends, until Ctrl-C."""
    connection.run_until_interrupted(lambda client: _watch(client, where, as_json=as_json))


@anomalies.command(
    "detect",
    epilog=render.examples(
        "anomalies detect cpu_usage --last 6h", "anomalies detect --server db-01 --start 09:00 --step 1m"
    ),
)
@click.argument("metrics", nargs=-1, metavar="[METRIC]...")
@series_options
@click.option("--last", callback=length, metavar="DURATION", help="From so long ago until now.  [default: 1h]")
@click.option("--start", callback=moment, metavar="TIME", help="From then on.")
@click.option("--end", callback=moment, metavar="TIME", help="Until then, exclusive.  [default: now]")
@click.option("--step", callback=length, metavar="DURATION", help="Width of a bucket.  [default: as samples arrive]")
@click.option("--severity", type=click.Choice(SEVERITIES, case_sensitive=False), help="Only what is as grave at least.")
@report.options
@render.json_option
def detect_command(**options: Any) -> None:
    """Run the detector over stored history of METRICs: keys, names, or globs over them; all where none is named.

    It knows nothing from before the range, so that it is not sure of anything in the first hours of it.
    """
    report.run(options, lambda client, bar: _detect(client, options, bar))


@anomalies.command("score", epilog=render.examples("anomalies score", "anomalies score --last 7d --json"))
@click.option("--last", callback=length, metavar="DURATION", help="From so long ago until now.  [default: 24h]")
@render.json_option
def score_command(*, last: timedelta | None, as_json: bool) -> None:
    """Hold what was found against the faults that the simulator has recorded: how many it found, how soon, how falsely."""
    connection.run(lambda client: _score(client, last, as_json=as_json))


async def _list(client: Client, options: dict[str, Any], bar: Bar | None) -> Report | None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import Provenance, analysis, codec, rpc

    request = analysis_pb2.ListAnomaliesRequest(filter=options["where"], active_only=options["active"])
    since = datetime.now(UTC) - options["last"] if options["last"] is not None else None
    if since is not None:
        request.start_time.CopyFrom(codec.timestamp(since, "start"))
    found: list[Anomaly] = []
    risks: list[FailureRisk] = []
    total, about, threshold = 0, Provenance(), 0.0
    async for page in client.rpc.pages(rpc.LIST_ANOMALIES, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
        found.extend(map(analysis.anomaly, page.anomalies))
        risks.extend(map(analysis.risk, page.risks))
        total, about, threshold = page.total_count, codec.provenance(page.provenance), page.threshold
    if bar is not None:
        from openmanager.cli import anomalies_report

        asked = anomalies_report.listed(options, since)
        return await anomalies_report.collect(
            client, asked, bar, found=found, total=total, about=about, threshold=threshold
        )
    if not options["as_json"]:
        _print(found, total, about)
        _print_risks(risks)
    return None


async def _watch(client: Client, where: str, *, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import analysis, rpc
    from openmanager.client.rpc import closable

    request = analysis_pb2.WatchAnomaliesRequest(filter=where)
    async with aclosing(closable(client.rpc.watched(rpc.WATCH_ANOMALIES, request))) as replies:
        async for reply in replies:
            if as_json:
                render.print_json(reply, line=True)
                continue
            for each in reply.anomalies:
                render.console().print(_line(analysis.anomaly(each)))


async def _detect(client: Client, options: dict[str, Any], bar: Bar | None) -> Report | None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import analysis, codec, history, rpc

    if options["last"] is not None and options["start"] is not None:
        raise click.UsageError("--last and --start exclude each other")
    selector = history.selector(options["metrics"], options["servers"], options["where"])
    request = analysis_pb2.DetectAnomaliesRequest(selector=selector)
    if options["severity"] is not None:
        request.min_severity = analysis_pb2.AnomalySeverity.Value(f"ANOMALY_SEVERITY_{options['severity'].upper()}")
    start = options["start"] or (
        (options["end"] or datetime.now(UTC)) - options["last"] if options["last"] is not None else None
    )
    for field, value in (("start_time", start), ("end_time", options["end"])):
        if value is not None:
            getattr(request, field).CopyFrom(codec.timestamp(value, field))
    if options["step"] is not None:
        request.step.CopyFrom(codec.duration(options["step"]))
    reply = await client.rpc.call(rpc.DETECT_ANOMALIES, request, seconds=analysis.ANALYSIS_SECONDS)
    if options["as_json"]:
        render.print_json(reply)
    found, about = [analysis.anomaly(each) for each in reply.anomalies], codec.provenance(reply.provenance)
    if bar is not None:
        from openmanager.cli import anomalies_report

        asked = anomalies_report.detected(options, start, options["end"])
        return await anomalies_report.collect(
            client, asked, bar, found=found, total=reply.total_count, about=about, threshold=reply.threshold
        )
    if not options["as_json"]:
        _print(found, reply.total_count, about)
    return None


async def _score(client: Client, last: timedelta | None, *, as_json: bool) -> None:
    from openmanager.api.analysis.v1 import analysis_pb2
    from openmanager.client import analysis, codec, rpc

    request = analysis_pb2.ScoreDetectionRequest()
    if last is not None:
        request.start_time.CopyFrom(codec.timestamp(datetime.now(UTC) - last, "start"))
    reply = await client.rpc.call(rpc.SCORE_DETECTION, request, seconds=analysis.ANALYSIS_SECONDS)
    if as_json:
        render.print_json(reply)
        return
    scores = analysis.scores(reply)
    made = render.table("faults", "there", "found", "delay", "lead", right=("there", "found", "delay", "lead"))
    for each in (*scores.patterns, *scores.severities, scores.total):
        made.add_row(
            each.name.lower().replace("_", " ") or "all",
            str(each.fault_count),
            str(each.found_count),
            render.show_length(each.delay) if each.delay is not None else render.NOTHING,
            render.show_length(each.lead) if each.lead is not None else render.NOTHING,
        )
    render.console().print(made)
    precision = f"{scores.precision:.0%}" if scores.precision is not None else render.NOTHING
    click.echo(
        f"\n{render.show_count(scores.anomaly_count, 'run')} of alarms on {render.show_count(scores.server_count, 'server')}"
        f": precision {precision}, {scores.false_alarm_rate:.2f} false ones a server and day"
    )
    _print_forecast_scores(scores)


def _print(found: Sequence[Anomaly], total: int, about: Provenance | None) -> None:
    if found:
        made = render.table(
            "start", "for", "severity", "score", "sure", "server", "what", right=("for", "score", "sure")
        )
        made.columns[-1].no_wrap, made.columns[-1].overflow = False, "fold"
        for each in found:
            made.add_row(*_cells(each))
        render.console().print(made)
        click.echo()
    of = f"{len(found):,} of " if len(found) < total else ""
    click.echo(f"{of}{total:,} {'anomaly' if total == 1 else 'anomalies'}")
    if about is not None:
        render.console().print(render.provenance_text(about))


def _print_risks(risks: Sequence[FailureRisk]) -> None:
    """Say where an anomaly is likely to begin, if anywhere."""
    likely = [each for each in risks if each.probabilities and each.probabilities[-1][1] >= LIKELY]
    for each in likely[:SHOWN_RISKS]:
        said = ", ".join(f"{chance:.0%} in {render.show_length(within)}" for within, chance in each.probabilities)
        click.echo(f"likely next: {each.server}, {said}")


def _print_forecast_scores(scores: DetectionScores) -> None:
    """Show how good forecasts, times to thresholds and probabilities were."""

    def share(value: float | None) -> str:
        return f"{value:.0%}" if value is not None else render.NOTHING

    if scores.forecasts:
        made = render.table(
            "a day ahead", "made", "error", "in 80 %", "in 95 %", right=("made", "error", "in 80 %", "in 95 %")
        )
        for each in scores.forecasts:
            error = f"{each.relative_error:.2f}" if each.relative_error is not None else render.NOTHING
            made.add_row(
                each.metric, f"{each.forecast_count:,}", error, share(each.coverage_80), share(each.coverage_95)
            )
        click.echo()
        render.console().print(made)
    if scores.predictions:
        right = ("asked", "came", "Brier", "skill", "lead")
        made = render.table("threshold passed within", *right, right=right)
        for one in scores.predictions:
            made.add_row(
                render.show_length(one.horizon),
                f"{one.count:,}",
                f"{one.event_count:,}",
                f"{one.brier:.3f}",
                f"{one.skill:.2f}" if one.skill is not None else render.NOTHING,
                render.show_length(one.lead) if one.lead is not None else render.NOTHING,
            )
        click.echo()
        render.console().print(made)
    if (found := scores.exhaustion) is not None:
        click.echo(
            f"\ntimes to a threshold: {found.answer_count:,} answers, {found.reached_count:,} reached; median error "
            f"{share(found.median_error)}, 80 % interval held {share(found.coverage_80)}, missed {share(found.missed_share)}, "
            f"false {share(found.false_share)}"
        )
    for text in scores.omissions:
        click.echo(f"not scored: {text}")


def _cells(each: Anomaly) -> tuple[Any, ...]:

    now = datetime.now(UTC)
    start = each.start_time or now
    lasting = render.show_length((each.end_time or now) - start)
    return (
        start.astimezone().strftime("%d %b %H:%M"),
        lasting if each.end_time else f"{lasting} …",
        render.severity_text(each.severity),
        f"{each.score:.2f}",
        f"{each.confidence:.0%}",
        each.server,
        each.explanation,
    )


def _line(each: Anomaly) -> Any:
    from rich.text import Text

    start, lasting, severity, score, _, server, what = _cells(each)
    state = "is over after" if each.end_time else "goes on for"
    return Text.assemble(f"{start}  ", severity, f"  {server}  {state} {lasting.removesuffix(' …')}, {score}: {what}")
