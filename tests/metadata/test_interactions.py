"""Interactions over gRPC, on the real PostgreSQL of a mesh. Every test has sessions of its own."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from datetime import timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest

from openmanager.api.metadata.v1 import interaction_pb2 as pb
from openmanager.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
)
from openmanager.runtime.peer import Peer

SERVICE = "/openmanager.api.metadata.v1.InteractionService"


async def call(peer: Peer, request: Any) -> Any:
    method = type(request).__name__.removesuffix("Request")
    return await peer.unary(f"{SERVICE}/{method}", request, getattr(pb, f"{method}Response"), seconds=10)


async def record(peer: Peer, session: str, query: str, *, request_id: str = "", **fields: Any) -> pb.Interaction:
    interaction = pb.Interaction(session_id=session, query=query, **fields)
    request = pb.CreateInteractionRequest(interaction=interaction, request_id=request_id)
    return (await call(peer, request)).interaction


async def listed(peer: Peer, session: str, **fields: Any) -> pb.ListInteractionsResponse:
    fields["filter"] = f"session_id = {session}" + (f" AND ({fields['filter']})" if "filter" in fields else "")
    return await call(peer, pb.ListInteractionsRequest(**fields))


async def queries(peer: Peer, session: str, **fields: Any) -> list[str]:
    return [each.query for each in (await listed(peer, session, **fields)).interactions]


async def exported(peer: Peer, request: pb.ExportInteractionsRequest) -> list[pb.ExportInteractionsResponse]:
    replies = peer.server_stream(f"{SERVICE}/ExportInteractions", request, seconds=10)
    return [pb.ExportInteractionsResponse.FromString(data) async for data in replies]


@pytest.fixture
def session() -> str:
    return f"s-{uuid.uuid4().hex}"


async def test_an_interaction_is_kept_with_everything_that_was_recorded(gateway: Peer, session: str):
    asked = pb.Interaction(
        session_id=session,
        query="Why is web-01 slow?\n\tIt was fine.",
        response="Its disk is full.",
        confidence=0.5,
        subject="users/ada",
        trace_id="t",
        servers=["WEB-01", "web-01"],
        metrics=["cpu_usage", "system.*"],
        model="m",
        intent="diagnosis",
        prompt_token_count=0,
        response_token_count=9,
        labels={"a": "é 😀"},
    )
    asked.latency.FromTimedelta(timedelta(seconds=1.5))
    asked.start_time.FromSeconds(1_700_000_000)
    asked.end_time.FromSeconds(1_700_000_060)
    made = (await call(gateway, pb.CreateInteractionRequest(interaction=asked))).interaction
    assert made.id
    assert made.HasField("create_time")
    assert list(made.servers) == ["web-01"]
    assert not made.HasField("rating")
    assert (await call(gateway, pb.GetInteractionRequest(id=made.id.upper()))).interaction == made
    expected = pb.Interaction()
    expected.CopyFrom(asked)
    expected.id, expected.servers[:] = made.id, ["web-01"]
    expected.create_time.CopyFrom(made.create_time)
    assert made == expected


async def test_a_repeated_request_is_answered_as_the_first(gateway: Peer, session: str):
    made = await record(gateway, session, "q", request_id=session)
    await call(gateway, pb.RateInteractionRequest(id=made.id, rating=1, comment="c"))
    assert await record(gateway, session, "q", request_id=session) == made
    with pytest.raises(AlreadyExistsError) as failure:
        await record(gateway, session, "other", request_id=session)
    assert failure.value.reason == Reason.REQUEST_ID_REUSED
    assert (await listed(gateway, session)).total_count == 1


async def test_requests_of_one_id_at_once_record_one(gateway: Peer, session: str):
    found = await asyncio.gather(*(record(gateway, session, "q", request_id=session) for _ in range(5)))
    assert len({each.id for each in found}) == 1


async def test_a_later_rating_replaces_an_earlier_one(gateway: Peer, session: str):
    made = await record(gateway, session, "q")
    first = (await call(gateway, pb.RateInteractionRequest(id=made.id, rating=2, comment="no"))).interaction
    later = (await call(gateway, pb.RateInteractionRequest(id=made.id, rating=5))).interaction
    assert (first.rating, first.rating_comment, later.rating, later.rating_comment) == (2, "no", 5, "")
    assert later.rating_time.ToNanoseconds() > first.rating_time.ToNanoseconds() >= made.create_time.ToNanoseconds()
    assert (await call(gateway, pb.GetInteractionRequest(id=made.id))).interaction == later


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"query": ""}, "query"),
        ({"query": "a\0b"}, "query"),
        ({"query": "a\x1bb"}, "query"),
        ({"query": "é" * (128 * 1024 + 1)}, "query"),
        ({"response": "x" * (256 * 1024 + 1)}, "response"),
        ({"response": "\x7f"}, "response"),
        ({"confidence": 1.01}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"subject": "a\nb"}, "subject"),
        ({"subject": "s" * 256}, "subject"),
        ({"model": "m" * 101}, "model"),
        ({"intent": "\0"}, "intent"),
        ({"trace_id": "t" * 65}, "trace_id"),
        ({"servers": ["a"] * 101}, "servers"),
        ({"servers": ["a b"]}, "servers"),
        ({"metrics": ["a"] * 101}, "metrics"),
        ({"metrics": [""]}, "metrics"),
        ({"metrics": ["m" * 513]}, "metrics"),
        ({"prompt_token_count": -1}, "prompt_token_count"),
        ({"response_token_count": 10**9 + 1}, "response_token_count"),
        ({"labels": {"": "x"}}, "labels"),
        ({"latency": {"seconds": 86_401}}, "latency"),
        ({"latency": {"nanos": -1}}, "latency"),
        ({"start_time": {"seconds": 10}, "end_time": {"seconds": 9}}, "end_time"),
    ],
)
async def test_what_cannot_be_is_refused_by_the_name_of_its_field(
    gateway: Peer, session: str, fields: dict[str, Any], name: str
):
    with pytest.raises(InvalidArgumentError) as failure:
        await record(gateway, session, **{"query": "q", **fields})
    assert failure.value.field == f"interaction.{name}"
    assert (await listed(gateway, session)).total_count == 0


async def test_the_largest_texts_are_kept_and_what_is_searched_of_them_is_bounded(gateway: Peer, session: str):
    # Words with hyphens are in an index whole and in parts: this would be more than a tsvector holds.
    query = " ".join(f"w{at:05}-{at:05}" for at in range(20_000))[: 256 * 1024]
    response = "😀" * (64 * 1024)
    made = await record(gateway, session, query, response=response)
    assert (made.query, made.response, made.truncated) == (query, response, False)
    (basic,) = (await listed(gateway, session, search="w00007")).interactions
    assert (basic.query, basic.response, basic.truncated) == (query[:300], response[:300], True)
    assert await queries(gateway, session, search="w19000") == []


@pytest.mark.parametrize(
    ("filter_", "expected"),
    [
        ("model = a", ["first"]),
        ("model != a", ["third", "second"]),
        ("subject : ada", ["second", "first"]),
        ("server = web-01", ["second", "first"]),
        ("server : web-02", ["second"]),
        ("NOT server = web-02", ["third", "first"]),
        ("metric = cpu_usage AND server != web-02", ["first"]),
        ("confidence >= 0.5", ["second"]),
        ("confidence < 0.5", ["first"]),
        ("NOT confidence < 0.5", ["third", "second"]),
        ("confidence != 0.25", ["third", "second"]),
        ("rating >= 1", ["first"]),
        ("NOT rating >= 1", ["third", "second"]),
        ("rating != 4", ["third", "second"]),
        ("labels.team = a", ["first"]),
        ("intent = x OR intent = ''", ["third", "second"]),
        ('create_time > "2020-01-01T00:00:00Z"', ["third", "second", "first"]),
        ('create_time < "2020-01-01T00:00:00Z"', []),
        ('model = "\'; DROP TABLE ai_interactions;--"', []),
    ],
)
async def test_a_filter_chooses(gateway: Peer, filtered: str, filter_: str, expected: list[str]):
    assert await queries(gateway, filtered, filter=filter_) == expected


@pytest.fixture
async def filtered(gateway: Peer, session: str) -> str:
    first = await record(
        gateway,
        session,
        "first",
        model="a",
        subject="users/ada",
        servers=["web-01"],
        metrics=["cpu_usage"],
        confidence=0.25,
        labels={"team": "a"},
        intent="y",
    )
    await call(gateway, pb.RateInteractionRequest(id=first.id, rating=4))
    await record(
        gateway,
        session,
        "second",
        model="b",
        subject="users/ada2",
        servers=["web-01", "web-02"],
        metrics=["cpu_usage"],
        confidence=0.5,
        intent="x",
    )
    await record(gateway, session, "third")
    return session


@pytest.mark.parametrize("text", ["rating = 4.5", "rating = x", "confidence = nan", "query = x", "rating : 4"])
async def test_a_filter_that_is_none_names_the_filter(gateway: Peer, text: str):
    for request in (
        pb.ListInteractionsRequest(filter=text),
        pb.FindSimilarInteractionsRequest(text="x", filter=text),
        pb.GetInteractionStatisticsRequest(filter=text),
    ):
        with pytest.raises(InvalidArgumentError) as failure:
            await call(gateway, request)
        assert failure.value.field == "filter"


async def test_a_search_looks_in_query_and_response_as_people_search_the_web(gateway: Peer, session: str):
    await record(gateway, session, "Why are the disks of the database full?", response="Logs fill them.")
    await record(gateway, session, "Is memory leaking?", response="No: the database caches.")
    for search, expected in {
        "disk": 1,
        "database": 2,
        '"disks of the database"': 1,
        "database -memory": 1,
        "disks or leaks": 2,
        "disk leak": 0,
        "the": 0,
        "'\"`(((&|!:*<->": 0,
    }.items():
        assert len(await queries(gateway, session, search=search)) == expected, search


async def test_the_most_relevant_is_first_and_one_in_the_query_counts_more(gateway: Peer, session: str):
    await record(gateway, session, "about disks", response="quota")
    await record(gateway, session, "about quota", response="nothing")
    await record(gateway, session, "about nothing", response="many words but only one is quota among them")
    found = await queries(gateway, session, search="quota", order_by="relevance")
    assert found[0] == "about quota"
    assert len(found) == 3
    with pytest.raises(InvalidArgumentError) as failure:
        await listed(gateway, session, order_by="relevance")
    assert failure.value.field == "order_by"


@pytest.mark.parametrize(
    "asked",
    [{}, {"order_by": "create_time"}, {"search": "page"}, {"search": "page", "order_by": "relevance"}],
    ids=str,
)
async def test_pages_are_complete_and_in_order_whatever_comes_in_between(gateway: Peer, session: str, asked):
    for at in range(7):
        await record(gateway, session, f"page {at}", response="page " * (at % 3))
    whole = await queries(gateway, session, **asked)
    assert len(whole) == 7
    found, token = [], ""
    while True:
        reply = await listed(gateway, session, page_size=3, page_token=token, **asked)
        found += [each.query for each in reply.interactions]
        token = reply.next_page_token
        if asked.get("order_by") != "create_time":
            await record(gateway, session, "page in between")
        if not token:
            break
    assert found == whole


async def test_a_page_token_is_of_one_query(gateway: Peer, session: str):
    for at in range(2):
        await record(gateway, session, f"page {at}")
    token = (await listed(gateway, session, page_size=1)).next_page_token
    assert (await listed(gateway, session, page_size=5, page_token=token)).interactions
    for change in ({"search": "page"}, {"order_by": "create_time"}, {"filter": "model = a"}):
        with pytest.raises(InvalidArgumentError) as failure:
            await listed(gateway, session, page_token=token, **change)
        assert failure.value.reason == Reason.INVALID_PAGE_TOKEN


async def test_a_count_is_exact_where_all_is_shown_or_it_is_asked_for(gateway: Peer, session: str):
    for at in range(3):
        await record(gateway, session, f"page {at}")
    for asked, expected in (({}, (3, False)), ({"page_size": 1, "exact_total_count": True}, (3, False))):
        reply = await listed(gateway, session, **asked)
        assert (reply.total_count, reply.total_count_estimated) == expected
    reply = await listed(gateway, session, page_size=1)
    assert reply.total_count_estimated
    assert reply.total_count >= 2


async def test_a_page_of_long_texts_is_cut_to_what_a_message_holds(gateway: Peer, session: str):
    for at in range(16):
        await record(gateway, session, f"{at}", response="é" * (128 * 1024))
    found, token, pages = [], "", 0
    while pages == 0 or token:
        reply = await listed(gateway, session, view=pb.INTERACTION_VIEW_FULL, page_token=token)
        found += [each.query for each in reply.interactions]
        token, pages = reply.next_page_token, pages + 1
        assert {len(each.response) for each in reply.interactions} == {128 * 1024}
    assert found == [f"{at}" for at in range(16)[::-1]]
    assert pages == 2


async def test_similar_questions_are_found_by_the_words_they_share(gateway: Peer, session: str):
    await record(gateway, session, "Why does the replication slot of the warehouse lag?", response="x")
    await record(gateway, session, "Which warehouse is the largest?", response="replication slot lag")
    await record(gateway, session, "How are you?")
    request = pb.FindSimilarInteractionsRequest(
        text="the replication slots lag in our warehouse", filter=f"session_id = {session}"
    )
    found = (await call(gateway, request)).results
    assert [each.interaction.query[:5] for each in found] == ["Why d", "Which"]
    assert 1.0 >= found[0].similarity > found[1].similarity > 0
    request.limit = 1
    assert len((await call(gateway, request)).results) == 1
    for text in ("the of and", "'\\ ''':* & | !", "xyzzyunknown"):
        request.text = text
        assert not (await call(gateway, request)).results


async def test_statistics_are_by_model_and_intent_over_time(gateway: Peer, session: str):
    for at in range(4):
        made = await record(
            gateway,
            session,
            "q",
            model="a" if at else "b",
            intent="x",
            confidence=at / 4,
            latency={"seconds": at},
            prompt_token_count=10,
            response_token_count=at,
        )
        if at > 1:
            await call(gateway, pb.RateInteractionRequest(id=made.id, rating=at))
    request = pb.GetInteractionStatisticsRequest(filter=f"session_id = {session}")
    first, second = (await call(gateway, request)).statistics
    assert (first.model, first.intent, first.interaction_count, first.rated_count) == ("a", "x", 3, 2)
    assert (first.mean_confidence, first.mean_rating) == (0.5, 2.5)
    assert (first.latency_p50.seconds, first.latency_p95.ToTimedelta()) == (2, timedelta(seconds=2.9))
    assert (first.prompt_token_count, first.response_token_count) == (30, 6)
    assert (second.model, second.HasField("mean_rating")) == ("b", False)
    request.group_by, request.step.seconds = pb.INTERACTION_GROUP_BY_ALL, 3600
    found = (await call(gateway, request)).statistics
    assert sum(each.interaction_count for each in found) == 4
    assert {(each.model, each.intent, each.start_time.seconds % 3600) for each in found} == {("", "", 0)}


async def test_ranges_of_statistics_are_checked(gateway: Peer):
    request = pb.GetInteractionStatisticsRequest(start_time={"seconds": 10}, end_time={"seconds": 10})
    with pytest.raises(InvalidArgumentError):
        await call(gateway, request)
    request = pb.GetInteractionStatisticsRequest(step={"seconds": 10})
    with pytest.raises(ResourceExhaustedError) as failure:
        await call(gateway, request)
    assert failure.value.reason == Reason.TOO_MANY_BUCKETS
    for year_1675_and_5_january_1 in (-9_278_409_600, -62_135_251_200):
        request = pb.GetInteractionStatisticsRequest(end_time={"seconds": year_1675_and_5_january_1})
        with pytest.raises(OutOfRangeError):
            await call(gateway, request)


@pytest.mark.parametrize("form", [pb.INTERACTION_FORMAT_JSONL, pb.INTERACTION_FORMAT_PARQUET])
async def test_an_export_has_everything_and_goes_on_where_it_was_left(gateway: Peer, session: str, form):
    for at in range(5):
        # A chunk holds two of these.
        await record(gateway, session, f"{at}" * 250_000, response="r" * 250_000 * (at != 4))
    request = pb.ExportInteractionsRequest(filter=f"session_id = {session}", format=form)
    header, *chunks = await exported(gateway, request)
    assert header.header.estimated_count >= 1
    assert sum(each.chunk.interaction_count for each in chunks) == 5
    assert chunks[-1].chunk.done_count == 5
    assert len(chunks) > 1
    rows = [row for each in chunks for row in rows_of(each.chunk.data, form)]
    assert [row["query"][0] for row in rows] == list("01234")
    assert {len(row["query"]) for row in rows} == {250_000}
    await record(gateway, session, "later")
    request.resume_token = chunks[0].chunk.resume_token
    _, *rest = await exported(gateway, request)
    assert [each.chunk for each in rest] == [each.chunk for each in chunks[1:]]
    request.format = pb.INTERACTION_FORMAT_UNSPECIFIED if form == pb.INTERACTION_FORMAT_PARQUET else 2
    with pytest.raises(InvalidArgumentError) as failure:
        await exported(gateway, request)
    assert failure.value.field == "resume_token"


def rows_of(data: bytes, form: int) -> list[dict[str, Any]]:
    if form == pb.INTERACTION_FORMAT_PARQUET:
        return pq.read_table(io.BytesIO(data)).to_pylist()
    return [json.loads(line) for line in data.decode().splitlines()]


async def test_an_export_leaves_out_what_is_to_be_redacted(gateway: Peer, session: str):
    made = await record(
        gateway,
        session,
        "Mail ada@example.org from 10.0.0.7: db-7 fails",
        response="password=hunter2 on db-7.example.org",
        subject="users/ada@example.org",
        servers=["db-7"],
    )
    request = pb.ExportInteractionsRequest(filter=f"session_id = {session}", redactions=[0])
    _, chunk = await exported(gateway, request)
    (row,) = rows_of(chunk.chunk.data, 0)
    assert row["query"] == "Mail [email] from [ip]: [host] fails"
    assert row["response"] == "password=[secret] on [host]"
    assert (row["subject"], row["servers"], row["id"]) == ("users/[email]", ["[host]"], made.id)
    request = pb.ExportInteractionsRequest(filter=f"session_id = {session}", redactions=[pb.REDACTION_IP_ADDRESS])
    _, chunk = await exported(gateway, request)
    assert rows_of(chunk.chunk.data, 0)[0]["query"] == "Mail ada@example.org from [ip]: db-7 fails"


async def test_what_is_erased_is_nowhere(gateway: Peer, session: str):
    subject, other = f"users/{session}", await record(gateway, session, "zebra other")
    made = [
        await record(gateway, f"{session}-2", f"zebra {at}", subject=subject, request_id=f"{session[:40]}-{at}")
        for at in range(3)
    ]
    request = pb.EraseInteractionsRequest(subject=subject, validate_only=True)
    assert (await call(gateway, request)).erased_count == 3
    request.validate_only = False
    assert [(await call(gateway, request)).erased_count for _ in range(2)] == [3, 0]
    with pytest.raises(NotFoundError):
        await call(gateway, pb.GetInteractionRequest(id=made[0].id))
    assert await queries(gateway, f"{session}-2", search="zebra") == []
    # Not even which requests there were: the same id may be used for something else.
    again = await record(gateway, session, "another", request_id=f"{session[:40]}-0")
    assert again.id != made[0].id
    assert (await call(gateway, pb.EraseInteractionsRequest(session_id=session))).erased_count == 2
    with pytest.raises(NotFoundError):
        await call(gateway, pb.GetInteractionRequest(id=other.id))
    with pytest.raises(InvalidArgumentError):
        await call(gateway, pb.EraseInteractionsRequest())


async def test_an_interaction_that_does_not_exist_is_not_found(gateway: Peer):
    for request in (
        pb.GetInteractionRequest(id=str(uuid.uuid4())),
        pb.RateInteractionRequest(id=str(uuid.uuid4()), rating=1),
    ):
        with pytest.raises(NotFoundError):
            await call(gateway, request)
    for rating in (-1, 0, 6):
        with pytest.raises(InvalidArgumentError):
            await call(gateway, pb.RateInteractionRequest(id=str(uuid.uuid4()), rating=rating))
