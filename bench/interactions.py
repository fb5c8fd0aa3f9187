"""Rows about interactions: a hundred thousand of them, listed and searched at the metadata service, against 20 ms."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

from bench.pair import Row, at_most
from bench.rpc import mesh, secret
from openmanager.api.metadata.v1 import interaction_pb2 as pb
from openmanager.errors import UnavailableError
from openmanager.runtime.peer import Peer

SERVICE = "/openmanager.api.metadata.v1.InteractionService"
COUNT = 100_000
# Words as in a language: the n-th is about 1/n as common as the first. So many in a question, and in an answer.
VOCABULARY, QUESTION, ANSWER = 20_000, 12, 110
# Which share of the interactions has a word: the name of a row, and the rank of some words of that kind.
WORDS = {
    "in half of them": (11, 12, 13),
    "in a tenth": (90, 100, 110),
    "in one of thirty": (330, 350, 370),
    "in one of a hundred": (1000, 1100, 1200),
    "in one of a thousand": (9000, 9500, 10_000),
}
LIMIT_MILLIS = 20.0
CALLS, WARM_UP = 200, 20
DEEP_PAGES = 50
# So many calls that are not answered, on a machine that is too busy for any figure, end the measuring.
PATIENCE, REST_SECONDS = 100, 0.5


def word(rank: int) -> str:
    """Return the word of a rank; none is a stop word or an ending."""
    letters = ""
    while rank or not letters:
        rank, at = divmod(rank, 20)
        letters += "bcdfghjklmnpqrtvwxz"[at % 19] + "aou"[at % 3]
    return letters + "k"


def records(count: int) -> Iterator[tuple[Any, ...]]:
    """Yield rows, the oldest first: ten a minute, four models, nine intents, a thousand servers."""
    generator = np.random.default_rng(1)
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    words = np.array([word(rank) for rank in range(VOCABULARY)])
    newest = datetime.now(UTC).replace(tzinfo=None)
    for at in range(count):
        said = words[np.searchsorted(share, share[-1] * generator.random(QUESTION + ANSWER))]
        yield (
            uuid.UUID(bytes=generator.bytes(16)),
            f"session-{at // 8}",
            " ".join(said[:QUESTION]),
            " ".join(said[QUESTION:]),
            float(generator.random()),
            int(generator.integers(1, 6)) if at % 5 == 0 else None,
            newest - timedelta(seconds=6 * (count - at)),
            f"users/{at % 500}",
            [f"web-{at % 1000:04}"],
            ["cpu_usage"],
            f"model-{at % 4}",
            f"intent-{at % 9}",
            float(generator.exponential(2.0)),
            400,
            130,
        )


_COLUMNS = (
    "id",
    "session_id",
    "query",
    "response",
    "confidence",
    "user_rating",
    "created_at",
    "subject",
    "servers",
    "metrics",
    "model",
    "intent",
    "latency_seconds",
    "prompt_tokens",
    "response_tokens",
)


async def fill(url: str, count: int = COUNT) -> None:
    """Write the interactions into a database."""
    connection = await asyncpg.connect(url)
    try:
        # Word by word the index takes most of the time.
        await connection.execute("ALTER INDEX ai_interactions_words SET (fastupdate = on)")
        await connection.copy_records_to_table("ai_interactions", records=records(count), columns=_COLUMNS)
        await connection.execute("ALTER INDEX ai_interactions_words SET (fastupdate = off)")
        await connection.execute("VACUUM ANALYZE ai_interactions")
    finally:
        await connection.close()


def cases() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield what is asked for: the name of a row, and the lists that it asks for in turn."""
    yield "list", [{}]
    yield "list of a session", [{"filter": f"session_id = session-{at}"} for at in range(0, 9000, 300)]
    yield "list of a model, rated 4 or better", [{"filter": f"model = model-{at} AND rating >= 4"} for at in range(4)]
    yield "list of a server", [{"filter": f"server = web-{at:04}"} for at in range(0, 1000, 30)]
    yield "list of little confidence", [{"filter": "confidence < 0.02"}]
    for name, ranks in WORDS.items():
        yield f"search of a word {name}", [{"search": word(rank)} for rank in ranks]
        yield (
            f"search of a word {name}, by relevance",
            [{"search": word(rank), "order_by": "relevance"} for rank in ranks],
        )
    yield "search of two words in half of them", [{"search": f"{word(11)} {word(12)}"}]
    yield "search of a common and a rare word", [{"search": f"{word(11)} {word(9000)}"}]
    yield "search of what there is not", [{"search": "nothinglikethis"}]


async def _list(peer: Peer, asked: dict[str, Any], token: str = "") -> pb.ListInteractionsResponse:
    """Return a page, however often it has to be asked for: a store that is slow on a busy machine is left alone."""
    request = pb.ListInteractionsRequest(page_token=token, **asked)
    for _ in range(PATIENCE):
        with contextlib.suppress(UnavailableError):
            return await peer.unary(f"{SERVICE}/ListInteractions", request, pb.ListInteractionsResponse, seconds=10)
        await asyncio.sleep(REST_SECONDS)
    raise SystemExit("the metadata service does not answer")


async def _deep(peer: Peer, asked: dict[str, Any]) -> str:
    """Return the token of the deepest page, at most fifty pages of a thousand down."""
    token = ""
    for _ in range(DEEP_PAGES):
        more = (await _list(peer, {**asked, "page_size": 1000}, token)).next_page_token
        if not more:
            break
        token = more
    return token


@dataclass(frozen=True)
class Cost:
    """What calls took, one after the other: milliseconds by the clock, and of the processors, in every process behind it."""

    clock: tuple[float, float]
    processor: tuple[float, float]
    unanswered: int


def processor_nanos(metadata: int, postgresql: int) -> dict[int, int]:
    """Return the processor time of the service, the database and its connections; proc_pid_schedstat(5), a file a thread."""
    children = Path(f"/proc/{postgresql}/task/{postgresql}/children").read_text().split()
    used = {}
    for pid in (metadata, postgresql, *map(int, children)):
        with contextlib.suppress(OSError):  # a connection has ended
            threads = Path(f"/proc/{pid}/task").iterdir()
            used[pid] = sum(int((each / "schedstat").read_text().split()[0]) for each in threads)
    return used


def postgresql_beside(metadata: int) -> int:
    """Return the id of the PostgreSQL that was started by the parent of the metadata service."""
    parent = (Path("/proc") / str(metadata) / "stat").read_text().rpartition(")")[2].split()[1]
    children = map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return next(pid for pid in children if "postgres" in Path(f"/proc/{pid}/comm").read_text())


async def _cost(peer: Peer, metadata: int, path: str, requests: list[Any]) -> Cost:
    """Return the median and the 99th percentile of calls."""
    clock, processor, unanswered, postgresql = [], [], 0, postgresql_beside(metadata)
    while len(clock) < WARM_UP + CALLS:
        data = requests[len(clock) % len(requests)].SerializeToString()
        before, start = processor_nanos(metadata, postgresql), time.perf_counter()
        try:
            await peer.unary_bytes(path, data, seconds=10)
        except UnavailableError:
            unanswered += 1
            if unanswered > PATIENCE:
                raise
            await asyncio.sleep(REST_SECONDS)
            continue
        clock.append(1e3 * (time.perf_counter() - start))
        after = processor_nanos(metadata, postgresql)
        processor.append(1e-6 * sum(used - before.get(pid, 0) for pid, used in after.items()))
    shares = (
        (float(np.median(each[WARM_UP:])), float(np.percentile(each[WARM_UP:], 99))) for each in (clock, processor)
    )
    return Cost(*shares, unanswered)


async def measured(target: str, metadata: int) -> AsyncIterator[Row]:
    """Yield a row for each kind of list, first page and deepest."""
    async with Peer("bench", target) as peer:
        for name, asked in cases():
            pages = [("first page", [""] * len(asked)), ("deepest page", [await _deep(peer, each) for each in asked])]
            for page, tokens in pages:
                if page != "first page" and not any(tokens):
                    continue
                requests = [
                    pb.ListInteractionsRequest(page_token=token, **each)
                    for each, token in zip(asked, tokens, strict=True)
                ]
                found = await _cost(peer, metadata, f"{SERVICE}/ListInteractions", requests)
                yield _row(f"{name}, {page}, p99", found)
        similar = [
            pb.FindSimilarInteractionsRequest(text=f"{word(3)} {word(50 + at)} {word(900 + at)} {word(8000 + at)}")
            for at in range(30)
        ]
        found = await _cost(peer, metadata, f"{SERVICE}/FindSimilarInteractions", similar)
        yield _row("similar questions, p99", found)


def _row(name: str, found: Cost) -> Row:
    millis = found.clock[1]
    note = (
        f"p50 {found.clock[0]:.3g} ms; processor time p50 {found.processor[0]:.3g} ms, p99 {found.processor[1]:.3g} ms"
    )
    note += f"; {found.unanswered} calls were not answered" if found.unanswered else ""
    return at_most(name, (millis, LIMIT_MILLIS, millis / LIMIT_MILLIS), 1.0, "ms", 1, note)


def rows() -> Iterator[Row]:
    """Measure against a mesh of one server."""
    with mesh(1) as (base, pids), contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(fill(secret(pids["metadata"], "DATABASE_URL")))
        found = measured(f"127.0.0.1:{base + 4}", pids["metadata"])
        while True:
            try:
                yield loop.run_until_complete(anext(found))
            except StopAsyncIteration:
                return
