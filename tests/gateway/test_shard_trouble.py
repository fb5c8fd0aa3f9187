"""Shards that hang, change, refuse or go away in the midst of a call, and callers that leave."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import wait_until
from openmanager_gateway.router import Upstream
from openmanager_gateway.shards import writing
from openmanager_gateway.shards.calls import Shards
from openmanager_gateway.shards.table import TABLE

from openmanager.api.analysis.v1 import alert_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.errors import InvalidArgumentError
from openmanager.frame import Frame, encode_write_request
from openmanager.runtime.breaker import Breaker
from openmanager.runtime.clock import SystemClock
from openmanager.runtime.module import service_descriptor
from openmanager.runtime.peer import Peer

HISTORY = "openmanager.api.timeseries.v1.TimeseriesService"
ALERTS = "openmanager.api.analysis.v1.AlertService"
MINUTE = 60 * 10**9
Answer = Callable[[bytes], AsyncIterator[Any]]


class Shard(grpc.GenericRpcHandler):
    """A server whose every method answers what `answer` yields for a request; it counts the calls under way."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.calls = self.most = 0

    def service(self, called: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        streams = called.method.endswith(("QueryRange", "QueryLatest", "ExportSeries"))
        if called.method.endswith("WriteFrames"):
            return grpc.stream_stream_rpc_method_handler(self._stream)
        make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return make(self._stream if streams else self._unary)

    async def _stream(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        self.calls += 1
        self.most = max(self.most, self.calls)
        try:
            async for each in self._answer(request):
                if isinstance(each, grpc.StatusCode):
                    await context.abort(each, "no")
                yield each.SerializeToString()
        finally:
            self.calls -= 1

    async def _unary(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        async for data in self._stream(request, context):
            return data
        raise AssertionError


class Call:
    """The context of a call with some seconds left."""

    def __init__(self, seconds: float = 20.0) -> None:
        self._end = time.monotonic() + seconds

    def time_remaining(self) -> float:
        return self._end - time.monotonic()

    def invocation_metadata(self) -> tuple[()]:
        return ()


@contextlib.asynccontextmanager
async def served(*answers: Answer) -> AsyncIterator[tuple[Shards, list[Shard]]]:
    async with contextlib.AsyncExitStack() as stack:
        handlers, upstreams = [Shard(answer) for answer in answers], []
        for at, handler in enumerate(handlers):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((handler,))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            peer = await stack.enter_async_context(Peer(f"shard {at}", f"127.0.0.1:{port}"))
            breaker = Breaker(f"shard {at}", "calls", SystemClock(), random.Random(1), slow_seconds=float("inf"))
            upstreams.append(Upstream(peer, breaker, SystemClock()))
        yield Shards(upstreams), handlers


def handler(shards: Shards, service: str, method: str) -> Any:
    return TABLE[service][method](shards, service_descriptor(service).methods_by_name[method])


async def hangs(_: bytes) -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield None


def always(*some: Any) -> Answer:
    async def answer(_: bytes) -> AsyncIterator[Any]:
        for each in some:
            yield each

    return answer


def header(*starts: int) -> pb.QueryRangeResponse:
    return pb.QueryRangeResponse(header=pb.QueryRangeHeader(time_unix_nanos=starts, series_count=1))


def series(**fields: Any) -> pb.QueryRangeResponse:
    return pb.QueryRangeResponse(batch=pb.SeriesBatch(series=[pb.Series(metric="m", **fields)]))


def asked(
    aggregation: pb.Aggregation.ValueType = pb.AGGREGATION_MEAN, *, grouped: bool = False
) -> pb.QueryRangeRequest:
    request = pb.QueryRangeRequest(aggregation=aggregation)
    if grouped:
        request.group_by = pb.GROUP_BY_ALL
        request.step.FromSeconds(60)
    return request


async def test_a_query_is_answered_in_time_as_partial_while_a_shard_hangs():
    async with served(always(header(), series(server="a", values=[1.0])), hangs) as (shards, _):
        query = handler(shards, HISTORY, "QueryRange")
        call = Call(2.0)
        first, second = [each async for each in query(asked(), call)]
        assert call.time_remaining() > 0.2
        assert first.header.provenance.reason == "shard 1 of 2 did not answer"
        assert second.series.server == "a"


async def test_a_shard_that_goes_away_between_the_parts_of_a_mean_has_no_part_in_it():
    def answers(value: float, *, stays: bool) -> Answer:
        async def answer(data: bytes) -> AsyncIterator[Any]:
            request = pb.QueryRangeRequest.FromString(data)
            counts = request.aggregation == pb.AGGREGATION_COUNT
            if not counts and not stays:
                yield grpc.StatusCode.UNAVAILABLE
            yield header(0)
            yield series(values=[10.0 if counts else value])

        return answer

    async with served(answers(3.0, stays=True), answers(5.0, stays=True)) as (shards, _):
        _, found = [each async for each in handler(shards, HISTORY, "QueryRange")(asked(grouped=True), Call())]
        assert list(found.series.values) == [4.0]
    async with served(answers(3.0, stays=True), answers(5.0, stays=False)) as (shards, _):
        head, found = [each async for each in handler(shards, HISTORY, "QueryRange")(asked(grouped=True), Call())]
        assert list(found.series.values) == [3.0]
        assert head.header.provenance.partial

    # What was deleted after it was counted weighs nothing.
    async with served(answers(3.0, stays=True), answers(np.nan, stays=True)) as (shards, _):
        _, found = [each async for each in handler(shards, HISTORY, "QueryRange")(asked(grouped=True), Call())]
        assert list(found.series.values) == [3.0]


async def endless(_: bytes) -> AsyncIterator[Any]:
    yield header()
    while True:
        yield series(server="a", values=[1.0] * 1000)


@pytest.mark.parametrize("read", [1, 5])
async def test_a_caller_that_leaves_ends_the_calls_of_all_shards(read: int):
    async with served(endless, endless) as (shards, servers):
        stream = handler(shards, HISTORY, "QueryRange")(asked(), Call())
        for _ in range(read):
            await anext(stream)
        assert [each.calls for each in servers] == [1, 1]
        await stream.aclose()
        await wait_until(lambda: _is(lambda: [each.calls for each in servers] == [0, 0]))


@pytest.mark.parametrize("other", [grpc.StatusCode.UNAVAILABLE, None])
async def test_a_wrong_request_is_told_before_a_shard_that_is_away_and_ends_the_other_calls(other: Any):
    answers = [always(grpc.StatusCode.INVALID_ARGUMENT), always(other) if other else endless]
    async with served(*reversed(answers)) as (shards, servers):
        with pytest.raises(InvalidArgumentError) as caught:
            await anext(handler(shards, HISTORY, "QueryRange")(asked(), Call()))
        # Not only once the error is forgotten.
        await wait_until(lambda: _is(lambda: [each.calls for each in servers] == [0, 0]))
        assert caught.value.code == 3


async def test_samples_of_groups_are_gathered_for_one_caller_at_a_time():
    async def answer(data: bytes) -> AsyncIterator[Any]:
        request = pb.QueryRangeRequest.FromString(data)
        yield header(*([0] if request.HasField("step") else []))
        if request.HasField("step"):
            yield series(values=[2.0])
        else:
            raw.calls += 1
            raw.most = max(raw.most, raw.calls)
            await asyncio.sleep(0.02)
            raw.calls -= 1
            yield series(server="a", values=[1.0, 3.0], time_unix_nanos=[0, 1])

    raw = Shard(answer)
    async with served(answer, answer) as (shards, _):
        query = handler(shards, HISTORY, "QueryRange")

        async def one() -> list[float]:
            _, found = [each async for each in query(asked(pb.AGGREGATION_P50, grouped=True), Call())]
            return list(found.series.values)

        assert await asyncio.gather(*(one() for _ in range(4))) == [[2.0]] * 4
    assert raw.most == 2  # both shards of one


async def test_an_alert_is_found_while_another_shard_hangs():
    reply = alert_pb2.GetAlertResponse()
    reply.alert.id = "a"
    async with served(hangs, always(reply)) as (shards, servers):
        get = handler(shards, ALERTS, "GetAlert")
        found = alert_pb2.GetAlertResponse.FromString(await get(alert_pb2.GetAlertRequest(id="a"), call := Call(5.0)))
        assert found.alert.id == "a"
        assert call.time_remaining() > 2
        await wait_until(lambda: _is(lambda: servers[0].calls == 0))


class Names:
    """A list of series by server that may change after each look at it."""

    def __init__(self, names: Sequence[str], *changes: Sequence[str]) -> None:
        self._states = [list(names), *map(list, changes)]

    async def __call__(self, data: bytes) -> AsyncIterator[Any]:
        request = pb.ListSeriesRequest.FromString(data)
        names = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        rest = [name for name in sorted(names) if name > request.page_token]
        reply = pb.ListSeriesResponse(total_count=len(names))
        for name in rest[: request.page_size]:
            reply.series.add(server=name, metric="m")
        if len(rest) > request.page_size:
            reply.next_page_token = rest[request.page_size - 1]
        yield reply


async def listed(shards: Shards, seconds: float = 20.0, size: int = 3) -> list[str]:
    names, request = list[str](), pb.ListSeriesRequest(page_size=size)
    while True:
        page = await handler(shards, HISTORY, "ListSeries")(request, Call(seconds))
        assert len(page.series) <= size
        names += [each.server for each in page.series]
        request.page_token = page.next_page_token
        if not request.page_token:
            return names


async def test_a_list_that_loses_a_row_while_a_page_is_made_loses_no_other():
    # Of the first two rows of this shard one goes between the look at them and that which tells where they end.
    async with served(Names("acegi", "cegi"), Names("bdfh")) as (shards, _):
        assert await listed(shards) == list("bcdefghi")


async def test_pages_are_told_in_time_while_a_third_shard_hangs():
    async with served(Names("ace"), Names("bd"), hangs) as (shards, _):
        assert await listed(shards, 1.0) == list("abcde")


async def test_a_stream_of_large_frames_does_not_pile_up_before_a_shard_that_hangs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "UNDER_WAY_BYTES", 100_000)
    values = np.random.default_rng(1).random((1, 40, 100))
    frame = Frame(
        times=np.array([30_000_000 * MINUTE]),
        servers=tuple(f"s{at}" for at in range(40)),
        metrics=_names(100),
        values=values,
    )
    request = encode_write_request(frame)
    sent = 0

    async def requests() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield request

    async with served(hangs, hangs) as (shards, servers):
        stream = handler(shards, HISTORY, "WriteFrames")(requests(), Call(1.0))
        with pytest.raises(Exception, match="shard"):
            await anext(stream)
        await stream.aclose()
        await wait_until(lambda: _is(lambda: [each.calls for each in servers] == [0, 0]))
    assert 1 < sent <= 100_000 // len(request) + 1


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"m{at:03d}" for at in range(count))


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()
