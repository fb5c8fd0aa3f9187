"""`openmanager interactions`: what people asked an AI, what it answered, and how good they found it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from openmanager.cli import connection, render, selection
from openmanager.cli.interaction_figures import GROUPS, show_statistics
from openmanager.cli.interaction_file import FORMATS, STDOUT, Job, export
from openmanager.cli.query import length
from openmanager.errors import NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from openmanager.client import Client, Interaction

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_LIMIT = 20
# Stands for the id of the interaction that was recorded last.
LATEST = "latest"


@click.group(
    epilog=render.examples(
        'interactions record "Why is web-01 slow?" "Its disk is full." --model m1 --server web-01',
        "interactions rate latest 5",
        "interactions search 'disk full' --filter 'rating >= 4'",
        "interactions export good.jsonl --filter 'rating >= 4' --redact",
    )
)
def interactions() -> None:
    """Record, rate, search, export and erase what people asked an AI and what it answered.

    A FILTER compares session_id, subject, model, intent, trace_id, server, metric, labels.NAME, confidence, rating and
    create_time, joined by AND, OR, NOT and parentheses.
    """


_filter_option = click.option("--filter", "filter_", metavar="FILTER", default="", help="Only these: “rating >= 4”.")
_full_option = click.option("--full", is_flag=True, help="Whole texts instead of their beginnings.")


def _limit_option(limit: int, most: int | None = None) -> Callable[[F], F]:
    kind = click.IntRange(1, most)
    return click.option("--limit", type=kind, default=limit, show_default=True, help="How many at most.")


@interactions.command("list", epilog=render.examples("interactions list --filter 'model = m1' --limit 5"))
@_filter_option
@_limit_option(DEFAULT_LIMIT)
@_full_option
@click.option("--count", is_flag=True, help="Count exactly how many there are, which may take long.")
@render.json_option
def list_command(**options: Any) -> None:
    """List interactions, the newest first."""
    connection.run(lambda client: _list(client, "", "", options))


@interactions.command(
    "search",
    epilog=render.examples("interactions search 'disk -network'", "interactions search '\"disk full\"' --newest"),
)
@click.argument("text", metavar="TEXT")
@click.option("--newest", is_flag=True, help="The newest first, instead of the most relevant.")
@_filter_option
@_limit_option(DEFAULT_LIMIT)
@_full_option
@click.option("--count", is_flag=True, help="Count exactly how many there are, which may take long.")
@render.json_option
def search_command(*, text: str, newest: bool, **options: Any) -> None:
    """Find interactions with all words of TEXT in query or response; “a phrase”, `or` and `-without` mean what they do on
    the web.
    """  # noqa: D205  (click shows it as one paragraph)
    if not text.strip():
        raise click.UsageError("TEXT is empty")
    connection.run(lambda client: _list(client, text, "" if newest else "relevance", options))


@interactions.command("show", epilog=render.examples("interactions show latest"))
@click.argument("interaction_id", metavar="ID")
@render.json_option
def show_command(*, interaction_id: str, as_json: bool) -> None:
    """Show an interaction with its whole texts; `latest` is the one that was recorded last."""
    connection.run(lambda client: _show(client, interaction_id, as_json=as_json))


@interactions.command(
    "record",
    epilog=render.examples(
        'interactions record "Why is web-01 slow?" "Its disk is full." --model m1 --intent diagnosis --server web-01',
        'interactions record "What is new?" - --session s1 < answer.txt',
    ),
)
@click.argument("query")
@click.argument("response", default="")
@click.option("--session", "session_id", metavar="TEXT", default="", help="The session it belongs to.")
@click.option("--subject", metavar="TEXT", default="", help="Who asked, such as users/ada.")
@click.option("--trace", "trace_id", metavar="TEXT", default="", help="The trace it was part of.")
@click.option("--model", metavar="TEXT", default="", help="The model that answered.")
@click.option("--intent", metavar="TEXT", default="", help="What it was asked for, such as capacity.")
@click.option("--confidence", type=click.FloatRange(0, 1), metavar="0-1", help="How sure the model was.")
@click.option("--server", "servers", multiple=True, metavar="ID", help="A server it was about; may be repeated.")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help="A metric it was about; may be repeated.")
@selection.range_options
@click.option("--latency", callback=length, metavar="DURATION", help="How long the answer took.")
@click.option(
    "--prompt-tokens", "prompt_token_count", type=click.IntRange(0), metavar="N", help="Tokens of the prompt."
)
@click.option(
    "--response-tokens", "response_token_count", type=click.IntRange(0), metavar="N", help="And of the response."
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label; may be repeated.")
@click.option("--request-id", metavar="TEXT", default="", help="Makes it safe to run the same command again.")
@render.json_option
def record_command(*, as_json: bool, request_id: str, **options: Any) -> None:
    """Record that QUERY was answered by RESPONSE; - reads the response from standard input.

    --last, --start and --end say of what time the data was that it was about.
    """
    options["start_time"], options["end_time"] = selection.range_of(options)
    for name in ("last", "start", "end"):
        del options[name]
    options["labels"] = dict(_pair(text) for text in options["labels"])
    if options["response"] == STDOUT:
        options["response"] = sys.stdin.read()
    connection.run(lambda client: _record(client, options, request_id, as_json=as_json))


@interactions.command("rate", epilog=render.examples("interactions rate latest 2 --comment 'It was the network.'"))
@click.argument("interaction_id", metavar="ID")
@click.argument("rating", type=click.IntRange(1, 5), metavar="1-5")
@click.option("--comment", metavar="TEXT", default="", help="Why.")
@render.json_option
def rate_command(*, interaction_id: str, rating: int, comment: str, as_json: bool) -> None:
    """Rate an interaction from 1 (bad) to 5 (good); an earlier rating and its comment go."""
    connection.run(lambda client: _rate(client, interaction_id, rating, comment, as_json=as_json))


@interactions.command("similar", epilog=render.examples("interactions similar 'web-02 is slow' --filter 'rating >= 4'"))
@click.argument("text", metavar="TEXT")
@_filter_option
@_limit_option(5, 100)
@_full_option
@render.json_option
def similar_command(*, text: str, **options: Any) -> None:
    """Find interactions whose queries are most like TEXT."""
    connection.run(lambda client: _similar(client, text, options))


@interactions.command(
    "statistics",
    epilog=render.examples("interactions statistics --last 7d", "interactions statistics --step 1d --by model"),
)
@_filter_option
@selection.range_options
@click.option("--step", callback=length, metavar="DURATION", help="Also draw how many there were in each bucket.")
@click.option(
    "--by", type=click.Choice(tuple(GROUPS)), default="model-intent", show_default=True, help="What to separate."
)
@render.json_option
def statistics_command(**options: Any) -> None:
    """Count interactions by model and intent, with confidence, rating, latency and tokens: 30 days unless told."""
    start, end = selection.range_of(options)
    end = end or datetime.now(UTC)
    start = start or end - timedelta(days=30)
    connection.run(lambda client: show_statistics(client, options, start, end))


@interactions.command(
    "export",
    epilog=render.examples(
        "interactions export good.jsonl --filter 'rating >= 4' --redact",
        "interactions export all.parquet",
        "interactions export - --format jsonl | gzip > all.jsonl.gz",
    ),
)
@click.argument("file", metavar="FILE")
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS.values())), help="The format.  [default: by FILE's name]"
)
@_filter_option
@click.option("--redact", is_flag=True, help="Replace e-mail and IP addresses, secrets and host names.")
@click.option("--resume", is_flag=True, help="Go on with an export to FILE that was interrupted.")
@click.option("--force", is_flag=True, help="Overwrite FILE, and what an interrupted export left.")
@click.option("--json", "as_json", is_flag=True, help="Print what was exported as JSON.")
def export_command(*, as_json: bool, **options: Any) -> None:
    """Write interactions to FILE, the oldest first; - is standard output.

    What is redacted is recognised by its form: look through what leaves the house.
    """
    job = Job.of(**options)
    summary = connection.run(lambda client: export(client, job, quiet=as_json))
    if as_json:
        render.print_document(summary, err=job.path is None)


@interactions.command("erase", epilog=render.examples("interactions erase --subject users/ada"))
@click.option("--session", "session_id", metavar="TEXT", default="", help="All of this session.")
@click.option("--subject", metavar="TEXT", default="", help="All that this subject asked.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@render.json_option
def erase_command(*, session_id: str, subject: str, yes: bool, as_json: bool) -> None:
    """Erase all interactions of a session or of a subject, for good."""
    if bool(session_id) == bool(subject):
        raise click.UsageError("either --session or --subject is needed")
    connection.run(lambda client: _erase(client, session_id, subject, yes=yes, as_json=as_json))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise click.UsageError(f"--label {text!r} is not NAME=VALUE")
    return name, value


# ── reading ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _list(client: Client, search: str, order_by: str, options: Mapping[str, Any]) -> None:
    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import interaction, rpc
    from openmanager.client.interactions import view

    request = pb.ListInteractionsRequest(
        filter=options["filter_"],
        search=search,
        order_by=order_by,
        view=view(full=options["full"]),
        exact_total_count=options["count"],
    )
    out, shown, total = render.console(), 0, ""
    async for page in client.rpc.pages(rpc.LIST_INTERACTIONS, request, limit=options["limit"]):
        if options["as_json"]:
            render.print_json(page, line=True)
            continue
        for each in page.interactions:
            _print_short(out, interaction.interaction(each), full=options["full"])
        shown += len(page.interactions)
        about = "about " if page.total_count_estimated else ""
        total = total or (f" of {about}{page.total_count:,}" if page.next_page_token else "")
    if not options["as_json"]:
        out.print(f"{shown:,}{total} interactions" if shown != 1 or total else "1 interaction", style="dim")


def _print_short(out: Console, each: Interaction, *, full: bool, similarity: float | None = None) -> None:
    from rich.text import Text

    facts = [f"{render.show_age(each.create_time)} ago", each.model, each.intent, each.subject]
    facts.insert(0, f"{similarity:.0%}" if similarity is not None else "")
    head = Text(each.id, style="cyan").append(f"  {'  '.join(filter(None, facts))}", style="dim")
    head.append(f"  {stars(each.rating)}" if each.rating else "", style="yellow")
    out.print(head, soft_wrap=True)
    for mark, text in (("?", each.query), ("→", each.response)):
        line = Text(f"  {mark} ").append(text if full else " ".join(text.split()))
        if text:
            out.print(line, no_wrap=not full, overflow="fold" if full else "ellipsis")
    out.print()


def stars(rating: int) -> str:
    """Return a rating as stars."""
    return "★" * rating + "☆" * (5 - rating)


async def _id(client: Client, wanted: str) -> str:
    if wanted != LATEST:
        return wanted
    async for each in client.interactions.list(limit=1):
        return each.id
    raise NotFoundError("nothing was recorded yet")


async def _show(client: Client, interaction_id: str, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import rpc

    request = pb.GetInteractionRequest(id=await _id(client, interaction_id))
    _print_whole(await client.rpc.call(rpc.GET_INTERACTION, request), as_json=as_json)


def _print_whole(reply: Any, *, as_json: bool) -> None:
    from rich.text import Text

    from openmanager.client import interaction

    if as_json:
        render.print_json(reply)
        return
    out, each = render.console(), interaction.interaction(reply.interaction)
    facts = _facts(each)
    width = max(map(len, facts))
    for name, value in facts.items():
        if value:
            out.print(Text(f"{name:{width}}  ", style="dim").append(value), soft_wrap=True)
    for name, text in (("query", each.query), ("response", each.response)):
        out.print(Text(f"\n{name}", style="bold"))
        out.print(Text(text or render.NOTHING), soft_wrap=True)


def _facts(each: Interaction) -> dict[str, str]:
    rated = (
        f"{stars(each.rating)}  {render.show_moment(each.rating_time)}  {each.rating_comment}" if each.rating else ""
    )
    bounds: Sequence[datetime | None] = (each.start_time, each.end_time)
    return {
        "interaction": each.id,
        "recorded": render.show_moment(each.create_time),
        "rating": rated.rstrip(),
        "session": each.session_id,
        "subject": each.subject,
        "trace": each.trace_id,
        "model": each.model,
        "intent": each.intent,
        "confidence": "" if each.confidence is None else f"{each.confidence:.2f}",
        "servers": ", ".join(each.servers),
        "metrics": ", ".join(each.metrics),
        "data of": " to ".join(map(render.show_moment, bounds)) if any(bounds) else "",
        "latency": render.show_length(each.latency) if each.latency is not None else "",
        "tokens": _tokens(each),
        "labels": ", ".join(f"{name}={value}" for name, value in sorted(each.labels.items())),
    }


def _tokens(each: Interaction) -> str:
    counts = {"prompt": each.prompt_token_count, "response": each.response_token_count}
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count is not None)


async def _similar(client: Client, text: str, options: Mapping[str, Any]) -> None:
    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import interaction, rpc
    from openmanager.client.interactions import view

    request = pb.FindSimilarInteractionsRequest(
        text=text, filter=options["filter_"], limit=options["limit"], view=view(full=options["full"])
    )
    reply = await client.rpc.call(rpc.FIND_SIMILAR_INTERACTIONS, request)
    if options["as_json"]:
        render.print_json(reply)
        return
    out = render.console()
    for each in map(interaction.similar, reply.results):
        _print_short(out, each.interaction, full=options["full"], similarity=each.similarity)
    if not reply.results:
        out.print("nothing similar", style="dim")


# ── changing ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def _record(client: Client, fields: Mapping[str, Any], request_id: str, *, as_json: bool) -> None:
    import uuid

    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import Interaction, interaction, rpc

    request = pb.CreateInteractionRequest(
        interaction=interaction.message(Interaction(**fields)), request_id=request_id or uuid.uuid4().hex
    )
    reply = await client.rpc.call(rpc.CREATE_INTERACTION, request)
    render.told(reply, f"recorded {reply.interaction.id}", as_json=as_json)


async def _rate(client: Client, interaction_id: str, rating: int, comment: str, *, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import rpc

    request = pb.RateInteractionRequest(id=await _id(client, interaction_id), rating=rating, comment=comment)
    reply = await client.rpc.call(rpc.RATE_INTERACTION, request)
    render.told(reply, f"{reply.interaction.id} is rated {stars(reply.interaction.rating)}", as_json=as_json)


async def _erase(client: Client, session_id: str, subject: str, *, yes: bool, as_json: bool) -> None:
    from openmanager.api.metadata.v1 import interaction_pb2 as pb
    from openmanager.client import rpc
    from openmanager.client.interactions import ERASE_SECONDS

    whose: Any = {"session_id": session_id} if session_id else {"subject": subject}
    if not yes:
        count = await client.interactions.erase(session_id=session_id, subject=subject, validate_only=True)
        click.confirm(
            f"Erase {render.show_count(count, 'interaction')} of {session_id or subject}?", abort=True, err=True
        )
    request = pb.EraseInteractionsRequest(**whose)
    reply = await client.rpc.call(rpc.ERASE_INTERACTIONS, request, seconds=ERASE_SECONDS)
    render.told(reply, f"{render.show_count(reply.erased_count, 'interaction')} erased", as_json=as_json)
