"""Requests that are bad only together with others, or only for what they mean."""

from __future__ import annotations

import time

import numpy as np
import pytest

from contract.rpc import tag, varint
from contract.test_catalogue import MOST_SECONDS, told
from fuzz.mesh import Method
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.frame import Frame, encode_write_request, length_delimited

pytestmark = pytest.mark.asyncio(loop_scope="session")

FAULTS = "gateway:FaultService."
SERVERS = "gateway:ServerService."
TIMESERIES = "gateway:TimeseriesService."


async def test_a_request_id_stands_for_one_request(local: dict[str, Method]):
    request = simulator_pb2.InjectFaultRequest(request_id="once")
    request.fault.pattern = simulator_pb2.FAULT_PATTERN_CPU_SPIKE
    request.fault.servers.append("web-onpremise-01")
    inject = local[FAULTS + "InjectFault"]
    first, again = [await inject.call(request.SerializeToString(), MOST_SECONDS) for _ in range(2)]
    assert first == again
    request.fault.severity = 0.5
    found = await told(inject, request.SerializeToString())
    assert (found.code, found.reason, found.fault) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED", "")


async def test_a_page_token_is_of_one_query(local: dict[str, Method]):
    create, page = local[SERVERS + "CreateServer"], local[SERVERS + "ListServers"]
    for name in ("page-1", "page-2"):
        await told(create, metadata_pb2.CreateServerRequest(server={"id": name}).SerializeToString())
    request = metadata_pb2.ListServersRequest(page_size=1)
    reply = metadata_pb2.ListServersResponse.FromString(await page.call(request.SerializeToString(), MOST_SECONDS))
    request.page_token = reply.next_page_token
    assert (await told(page, request.SerializeToString())).code == "OK"
    for change in ({"filter": 'id != "x"'}, {"order_by": "id desc"}, {"show_deleted": True}):
        other = metadata_pb2.ListServersRequest(page_size=1, page_token=request.page_token, **change)
        found = await told(page, other.SerializeToString())
        assert (found.code, found.reason, found.text) == (
            "INVALID_ARGUMENT",
            "INVALID_PAGE_TOKEN",
            "invalid page token",
        )


async def test_one_id_a_thousand_times_is_one(local: dict[str, Method]):
    request = metadata_pb2.BatchGetServersRequest(ids=["nobody"] * 1000)
    data = await local[SERVERS + "BatchGetServers"].call(request.SerializeToString(), MOST_SECONDS)
    assert metadata_pb2.BatchGetServersResponse.FromString(data).missing_ids == ["nobody"]


async def test_whoever_does_not_exist_is_told_of_in_one_way(local: dict[str, Method]):
    told_of = set()
    for name in ("nobody", "nobody-else", "0"):
        told_of.add(await told(local[SERVERS + "GetServer"], length_delimited(1, name.encode())))
    assert [(each.code, each.text) for each in told_of] == [("NOT_FOUND", "there is no such server")]


@pytest.mark.parametrize("depth", [20, 45, 60, 100_000])
async def test_a_document_of_any_depth_is_stored_or_refused(local: dict[str, Method], depth: int):
    """The parser goes 100 messages deep, a list in a document takes two."""
    value = lists(depth)
    field = length_delimited(1, b"rules") + length_delimited(2, length_delimited(6, value))
    document = length_delimited(1, field)
    policy = length_delimited(1, b"retention") + length_delimited(2, b"default") + length_delimited(3, document)
    found = await told(local["gateway:PolicyService.UpdatePolicy"], length_delimited(1, policy))
    assert (found.code, found.fault) == ("INVALID_ARGUMENT", "")
    assert (found.reason == "MALFORMED_MESSAGE") == (depth > 45)


def lists(depth: int) -> bytes:
    """Return a google.protobuf.Value of lists in lists, put together from its end: from within, it would be copied as often."""
    heads, size = [], 0
    for number in (6, 1) * depth:
        heads.append(tag(number, 2) + varint(size))
        size += len(heads[-1])
    return b"".join(reversed(heads))


async def test_every_double_is_kept_as_it_is_and_what_is_no_number_is_not(local: dict[str, Method]):
    values = [-0.0, 5e-324, 1.7976931348623157e308, 2.0**53 + 2, np.pi, np.nan, np.inf, -np.inf]
    now = time.time_ns() // 10**9 * 10**9
    frame = Frame(
        times=now - np.arange(len(values))[::-1] * 10**9,
        servers=("doubles",),
        metrics=("x",),
        values=np.asarray(values).reshape(-1, 1, 1),
    )
    data = await local[TIMESERIES + "WriteFrame"].call(encode_write_request(frame), MOST_SECONDS)
    ack = timeseries_pb2.WriteFrameResponse.FromString(data).ack
    assert (ack.accepted_sample_count, ack.rejected_sample_count) == (5, 2)
    assert [(each.reason, each.sample_count) for each in ack.rejections] == [("VALUE_NOT_FINITE", 2)]
    request = timeseries_pb2.QueryRangeRequest(selector=frame_pb2.Selector(servers=["doubles"]))
    request.start_time.FromNanoseconds(int(frame.times[0]))
    call = local[TIMESERIES + "QueryRange"].call(request.SerializeToString(), MOST_SECONDS)
    await call.read()
    series = timeseries_pb2.QueryRangeResponse.FromString(await call.read()).series
    assert np.asarray(series.values).tobytes() == np.asarray(values[:5]).tobytes()
