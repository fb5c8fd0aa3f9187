"""Exports: every row once and in order, however the chunks fall and however often the stream breaks."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openmanager_timeseries import export
from openmanager_timeseries.deletion import delete_series
from openmanager_timeseries.export import Asked, Chunk, Export
from openmanager_timeseries.history import History
from openmanager_timeseries.retention import Policy, Rule, Selector
from timeseries.shard import (
    DAY,
    END,
    HOUR,
    MINUTE,
    NOW,
    SECOND,
    ask,
    decimals,
    grid,
    imported,
    opened,
    rolled,
    ticks,
    write,
)

from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    OpenManagerError,
    Reason,
    UnavailableError,
)
from openmanager.frame import Frame, encode
from openmanager.rollup import COLUMNS

START = END - 3 * HOUR
ALL = Asked(servers=(), server_filter="", metrics=(), start=START, end=END, tier="raw")
Row = tuple[str, str, int, float]


async def chunks_of(history: History, asked: Asked = ALL, token: str = "") -> list[Chunk]:
    return [chunk async for chunk in Export(history, asked, token).chunks()]


def table(chunks: Sequence[Chunk]) -> pa.Table:
    return pa.concat_tables([pq.read_table(pa.BufferReader(chunk.parquet)) for chunk in chunks]).unify_dictionaries()


def rows(chunks: Sequence[Chunk], column: str = "value") -> list[Row]:
    """Return all rows: metric, server, time and one column."""
    found: list[Row] = []
    for chunk in chunks:
        made = pq.read_table(pa.BufferReader(chunk.parquet))
        assert made.num_rows == chunk.rows > 0
        times = [time * 10**6 for time in made.column("time").cast("int64").to_pylist()]
        columns = (made.column(name).to_pylist() for name in ("metric", "server"))
        found += zip(*columns, times, made.column(column).to_pylist(), strict=True)
    return found


async def expected(history: History, asked: Asked = ALL) -> list[Row]:
    """Return the rows that queries find."""
    answer = await ask(history, asked.start, asked.end, 0, servers=asked.servers, metrics=asked.metrics)
    names = [answer.names[row] for row in answer.raw.rows.tolist()]
    values = zip(answer.raw.times.tolist(), answer.raw.values.tolist(), strict=True)
    return sorted((name.metric, name.server, *each) for name, each in zip(names, values, strict=True))


async def fill(history: History, servers: Sequence[str] = ("a", "b", "c")) -> None:
    for at, server in enumerate(servers):
        await write(history, ticks(START + at * MINUTE, 100 + at), (server,), load=decimals(100 + at, at))
        await history.seal()
        await write(history, ticks(START + at * HOUR, 50), (server,), requests=decimals(50, at), load=decimals(50, 9))
    history.head.drop(0)


# ── every row once ─────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([1, 70, 300, 10_000]),
    st.sampled_from([1, 100, 10_000]),
    st.sampled_from([1, 2, 10_000]),
)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_row_comes_once_and_in_order_and_resumed_after_every_chunk(
    tmp_path_factory, raw_rows: int, bucket_rows: int, read_rows: int, decode_rows: int, max_series: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "CHUNK_ROWS", {True: raw_rows, False: bucket_rows})
        patch.setattr(export, "READ_ROWS", {True: read_rows, False: read_rows})
        patch.setattr(export, "DECODE_ROWS", decode_rows)
        patch.setattr(export, "MAX_SERIES", max_series)
        async with opened(tmp_path_factory.mktemp("export")) as history:
            await fill(history)
            whole = await chunks_of(history)
            assert rows(whole) == await expected(history)
            assert all(chunk.rows <= raw_rows for chunk in whole)
            done = [chunk.done_series for chunk in whole]
            assert (done == sorted(done), done[-1]) == (True, 6)
            for at in sorted({0, len(whole) // 2, len(whole) - 1}):
                assert rows(await chunks_of(history, ALL, whole[at].token)) == rows(whole[at + 1 :])
            await rolled(history)
            for tier in ("5m", "1h"):
                asked = replace(ALL, tier=tier)
                made = await chunks_of(history, asked)
                assert rows(made, "count") == await counts(history, tier)
                at = len(made) // 2
                assert rows(await chunks_of(history, asked, made[at].token), "sum") == rows(made[at + 1 :], "sum")


async def counts(history: History, tier: str) -> list[Row]:
    width = {"5m": 5 * MINUTE, "1h": HOUR}[tier]
    answer = await ask(history, START, END, width, "COUNT")
    return sorted(
        (name.metric, name.server, int(time), int(value))
        for name, values in zip(answer.names, answer.values, strict=True)
        for time, value in zip(answer.starts, values, strict=True)
        if np.isfinite(value)
    )


async def test_a_stream_that_breaks_after_every_chunk_gives_the_same_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "CHUNK_ROWS", {True: 37, False: 5})
    async with opened(tmp_path) as history:
        await fill(history)
        got, token, done = [], "", 0
        while True:
            stream = Export(history, ALL, token).chunks()
            chunk = await anext(stream, None)
            await stream.aclose()
            if chunk is None:
                break
            got.append(chunk)
            token = chunk.token
            assert chunk.done_series >= done
            done = chunk.done_series
        assert rows(got) == await expected(history)
        assert done == 6


async def test_a_chunk_is_plain_parquet_of_the_columns_in_the_contract(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        await rolled(history)
        raw = table(await chunks_of(history))
        assert raw.column_names == ["metric", "server", "time", "value"]
        assert raw.schema.field("time").type == pa.timestamp("ms", tz="UTC")
        made = table(await chunks_of(history, replace(ALL, tier="5m")))
        assert made.column_names == ["metric", "server", "time", *COLUMNS]
        assert made.schema.field("count").type == pa.int64()
        found = made.to_pylist()
        gauges, counters = ([row for row in found if row["metric"] == each] for each in ("load", "requests"))
        assert {row["first"] is None for row in gauges} == {True}
        assert {row["growth"] is None for row in counters} == {False}


async def test_an_empty_selection_and_an_empty_range_have_no_chunks(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        for asked in (
            replace(ALL, servers=("nobody",)),
            replace(ALL, start=START - HOUR, end=START),
            replace(ALL, start=END, end=NOW),
            replace(ALL, tier="5m"),
        ):
            assert await chunks_of(history, asked) == []


async def test_a_selection_takes_its_series_alone(tmp_path: Path):
    async with opened(tmp_path, max_query_series=1) as history:
        await fill(history)
        asked = replace(ALL, servers=("A", "c"), metrics=("load",), start=START + 5 * MINUTE, end=START + 20 * MINUTE)
        found = rows(await chunks_of(history, asked))
        assert {row[:2] for row in found} == {("load", "a"), ("load", "c")}
        times = [row[2] for row in found]
        assert (min(times), max(times)) == (START + 5 * MINUTE, START + 2 * MINUTE + 1010 * SECOND)


# ── meanwhile ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_series_that_appear_and_vanish_between_disturb_no_others(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "CHUNK_ROWS", {True: 60, False: 5})
    async with opened(tmp_path) as history:
        await fill(history)
        before = await expected(history)
        first, second, *_ = await chunks_of(history)
        last = rows([second])[-1]
        gone = history.catalog.select((last[1],), "", (last[0],))
        await delete_series(history, gone, START, END, dry=False)
        await write(history, ticks(START, 3), ("aa",), load=[1.0, 2.0, 3.0], zoom=[1.0, 2.0, 3.0])
        rest = rows(await chunks_of(history, ALL, second.token))
        assert rest[:1] != []
        for name in {row[:2] for row in before}:
            mine = [row for row in rows([first, second]) + rest if row[:2] == name]
            if name != last[:2]:
                assert mine == [row for row in before if row[:2] == name]
        assert [row[3] for row in rest if row[0] == "zoom"] == [1.0, 2.0, 3.0]


async def test_an_export_without_an_end_keeps_the_one_it_began_with(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "CHUNK_ROWS", {True: 60, False: 5})
    async with opened(tmp_path) as history:
        await fill(history)
        now = replace(ALL, end=NOW, open_end=True)
        first, *others = await chunks_of(history, now)
        await write(history, [NOW + SECOND], ("c",), requests=[1.0])
        later = replace(ALL, end=NOW + HOUR, open_end=True)
        assert rows(await chunks_of(history, later, first.token)) == rows(others)


async def test_a_damaged_file_is_never_passed_over_in_silence(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        path = history.blocks.files[1].path
        content = bytearray(path.read_bytes())
        content[4:400] = bytes(396)
        path.write_bytes(content)
        found = Export(history, ALL, "")
        assert found.partial_reason == ""
        with pytest.raises(UnavailableError):
            [chunk async for chunk in found.chunks()]
        again = Export(history, ALL, "")
        assert "damaged" in again.partial_reason
        assert len(rows([chunk async for chunk in again.chunks()])) < 450


async def test_what_is_not_kept_or_not_computed_yet_is_said(tmp_path: Path):
    async with opened(tmp_path) as history:
        await fill(history)
        assert "not computed yet" in Export(history, replace(ALL, tier="5m"), "").partial_reason
        await rolled(history)
        assert Export(history, replace(ALL, tier="5m"), "").partial_reason == ""
        assert "limited time" in Export(history, replace(ALL, start=NOW - 15 * DAY), "").partial_reason
        history.retention.adopt(Policy(rules=(Rule(tier="raw", selector=Selector(metrics=("load",)), retention=HOUR),)))
        assert "shorter time" in Export(history, ALL, "").partial_reason
        await imported(history, "1h", grid([END - 16 * DAY], 60, 1.0))
        for end in (NOW - 15 * DAY, NOW):
            found = Export(history, replace(ALL, start=NOW - 20 * DAY, end=end), "")
            assert "limited time" in found.partial_reason
            assert bool([chunk async for chunk in found.chunks()]) == (end == NOW)


async def test_what_takes_too_long_is_read_in_parts(tmp_path: Path, monkeypatch):
    async with opened(tmp_path) as history:
        await fill(history)
        plain, asked = history.query_range, []

        async def query_range(query, seconds, selection=None):
            asked.append(query.end - query.start)
            if query.end - query.start > 20 * MINUTE:
                raise DeadlineExceededError("the query took longer than it may; ask for less")
            return await plain(query, seconds, selection)

        wanted = await expected(history)
        monkeypatch.setattr(history, "query_range", query_range)
        assert rows(await chunks_of(history)) == wanted
        assert len(asked) > 10


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_chunk_of_many_long_names_stays_below_its_limit(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "CHUNK_BYTES", 150_000)
    async with opened(tmp_path, max_series=100_000) as history:
        random = np.random.default_rng(3)
        letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", np.uint8)
        for server in "abc":
            text = bytes(random.choice(letters, 250 * 500)).decode()
            metrics = tuple(
                f"m{text[at : at + 240]}{{k={text[at + 240 : at + 500]}}}" for at in range(0, len(text), 500)
            )
            values = random.normal(size=(1, 1, len(metrics)))
            times = np.asarray([START], np.int64)
            await history.write(encode(Frame(times=times, servers=(server,), metrics=metrics, values=values)))
        await rolled(history)
        for tier in ("raw", "5m"):
            found = await chunks_of(history, replace(ALL, tier=tier))
            names = [row[:2] for row in rows(found, "value" if tier == "raw" else "count")]
            assert (len(names), names) == (750, sorted(names))
            assert max(len(chunk.parquet) for chunk in found) <= export.CHUNK_BYTES
            assert len(found) > 1


async def test_random_doubles_at_random_times_fit_a_chunk(tmp_path: Path):
    async with opened(tmp_path) as history:
        random = np.random.default_rng(3)
        offsets = np.unique(random.integers(0, 3 * 3_600_000, 250_000))
        for part in np.array_split(offsets, 5):
            made = Frame(
                times=START + part * 10**6,
                servers=("a",),
                metrics=("load",),
                values=random.normal(size=(len(part), 1, 1)) * 10.0 ** random.integers(-200, 200, (len(part), 1, 1)),
            )
            await history.write(encode(made))
        found = await chunks_of(history)
        assert sum(chunk.rows for chunk in found) == len(offsets)
        assert max(len(chunk.parquet) for chunk in found) <= export.CHUNK_BYTES


async def test_memory_is_bounded_by_what_is_read_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "READ_ROWS", {True: 20_000, False: 20_000})
    monkeypatch.setattr(export, "CHUNK_ROWS", {True: 10_000, False: 10_000})
    async with opened(tmp_path) as history:
        for part in range(10):
            await write(
                history, ticks(START + part * 1000 * SECOND, 1000, SECOND), tuple("abcdefghij"), load=decimals(1000)
            )
            await history.seal()
        history.head.drop(0)
        tracemalloc.start()
        try:
            count = 0
            async for chunk in Export(history, ALL, "").chunks():
                count += chunk.rows
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 100_000
        assert peak < 8 << 20


# ── tokens ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_token_is_bound_to_the_rest_of_the_request(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(export, "CHUNK_ROWS", {True: 60, False: 5})
    async with opened(tmp_path) as history:
        await fill(history)
        token = (await chunks_of(history))[0].token
        for other in (
            replace(ALL, servers=("a",)),
            replace(ALL, server_filter="id=a"),
            replace(ALL, metrics=("load",)),
            replace(ALL, start=START - 1),
            replace(ALL, end=END + 1),
            replace(ALL, open_end=True),
            replace(ALL, tier="5m"),
        ):
            with pytest.raises(InvalidArgumentError, match="invalid page token") as failure:
                Export(history, other, token)
            assert (failure.value.field, failure.value.reason) == ("resume_token", Reason.INVALID_PAGE_TOKEN)


@given(
    st.one_of(
        st.text(max_size=60),
        st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")),
    )
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_is_no_token_is_refused(tmp_path_factory, text: str):
    async with opened(tmp_path_factory.mktemp("export")) as history:
        await write(history, [START], load=[1.0])
        if not text:
            assert len(rows(await chunks_of(history, ALL, text))) == 1
            return
        with pytest.raises(InvalidArgumentError) as failure:
            await chunks_of(history, ALL, text)
        assert (failure.value.message, failure.value.field) == ("invalid page token", "resume_token")


@pytest.mark.parametrize(
    "after",
    [
        ["load", "a", "²", str(END)],
        ["load", "a", "--5", str(END)],
        ["load", "a", "", str(END)],
        ["load", "a", "9" * 19, str(END)],
        ["load", "a", "9" * 400, str(END)],
        ["load", "a", "5", "x"],
        ["load", "a", "5", "9" * 19],
        ["load", "a", "5"],
        ["load", "a", 5, END],
        {"load": "a"},
    ],
)
async def test_a_token_that_is_made_up_is_refused(tmp_path: Path, after):
    from openmanager import page

    async with opened(tmp_path) as history:
        await fill(history)
        key = Export(history, ALL, "")._key
        body = json.dumps(after, separators=(",", ":")).encode()
        made = base64.urlsafe_b64encode(page._digest(key, body) + body).decode().rstrip("=")
        with pytest.raises(InvalidArgumentError, match="invalid page token"):
            Export(history, ALL, made)


@pytest.mark.parametrize("after", [["", "", "-5"], ["zzz", "z", "5"], ["load", "aa", "5"], ["\ud800", "\ud800", "0"]])
async def test_a_token_of_a_place_that_is_not_there_goes_on_after_it(tmp_path: Path, after: list[str]):
    from openmanager import page

    async with opened(tmp_path) as history:
        await fill(history)
        token = page.encode_token(Export(history, ALL, "")._key, [*after, str(END)])
        found = rows(await chunks_of(history, ALL, token))
        assert found == [row for row in await expected(history) if row[:2] > (after[0], after[1])]


async def test_a_tier_that_is_not_there_is_refused(tmp_path: Path):
    async with opened(tmp_path) as history:
        with pytest.raises(InvalidArgumentError, match="must be one of raw, 5m, 1h") as failure:
            Export(history, replace(ALL, tier="2h"), "")
        assert failure.value.field == "tier"


# ── over the wire ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_mesh_exports_what_it_holds(mesh):
    from openmanager.runtime.peer import Peer

    path = "/openmanager.api.timeseries.v1.TimeseriesService/ExportSeries"
    request = pb.ExportSeriesRequest()
    request.start_time.FromSeconds(1_000_000_000)
    async with Peer("timeseries", mesh.address("timeseries")) as peer:
        parts = [
            pb.ExportSeriesResponse.FromString(part) async for part in peer.server_stream(path, request, seconds=20)
        ]
        assert parts[0].header.series_count > 0
        assert (parts[0].header.provenance.source, parts[0].header.provenance.partial) == ("head+blocks", True)
        assert sum(part.chunk.row_count for part in parts[1:]) > 0
        request.resume_token = parts[-1].chunk.resume_token
        rest = [part async for part in peer.server_stream(path, request, seconds=20)]
        assert len(rest) == 1
        for wrong, field in ((pb.ExportSeriesRequest(), "start_time"), (pb.ExportSeriesRequest(tier="x"), "tier")):
            if field == "tier":
                wrong.start_time.FromSeconds(1_000_000_000)
            with pytest.raises(OpenManagerError) as failure:
                async for _ in peer.server_stream(path, wrong, seconds=20):
                    pass
            assert failure.value.field == field
