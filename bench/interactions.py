"""Rows about interactions: a hundred thousand of them, listed and searched at the metadata service, against 20 ms."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np

from bench.pair import Row, at_most
from bench.rpc import mesh, secret
from openmanager.api.metadata.v1 import interaction_pb2 as pb
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
    request = pb.ListInteractionsRequest(page_token=token, **asked)
    return await peer.unary(f"{SERVICE}/ListInteractions", request, pb.ListInteractionsResponse, seconds=10)


async def _deep(peer: Peer, asked: dict[str, Any]) -> str:
    """Return the token of the deepest page, at most fifty pages of a thousand down."""
    token = ""
    for _ in range(DEEP_PAGES):
        more = (await _list(peer, {**asked, "page_size": 1000}, token)).next_page_token
        if not more:
            break
        token = more
    return token


async def _p99(peer: Peer, path: str, requests: list[Any]) -> float:
    """Return the 99th percentile of calls one after the other, in milliseconds."""
    taken = []
    for at in range(WARM_UP + CALLS):
        data = requests[at % len(requests)].SerializeToString()
        start = time.perf_counter()
        await peer.unary_bytes(path, data, seconds=10)
        taken.append(1e3 * (time.perf_counter() - start))
    return float(np.percentile(taken[WARM_UP:], 99))


async def measured(target: str) -> AsyncIterator[Row]:
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
                found = await _p99(peer, f"{SERVICE}/ListInteractions", requests)
                yield _row(f"{name}, {page}, p99", found)
        similar = [
            pb.FindSimilarInteractionsRequest(text=f"{word(3)} {word(50 + at)} {word(900 + at)} {word(8000 + at)}")
            for at in range(30)
        ]
        yield _row("similar questions, p99", await _p99(peer, f"{SERVICE}/FindSimilarInteractions", similar))


def _row(name: str, millis: float) -> Row:
    return at_most(name, (millis, LIMIT_MILLIS, millis / LIMIT_MILLIS), 1.0, "ms", 1)


def rows() -> Iterator[Row]:
    """Measure against a mesh of one server."""
    with mesh(1) as (base, pids), contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(fill(secret(pids["metadata"], "DATABASE_URL")))
        found = measured(f"127.0.0.1:{base + 4}")
        while True:
            try:
                yield loop.run_until_complete(anext(found))
            except StopAsyncIteration:
                return
