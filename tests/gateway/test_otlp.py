from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmanager_gateway.otlp import HeadlineState, convert, encode_response
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as otlp

from openmanager.api.frame.v1 import frame_pb2
from openmanager.frame import decode, encode
from openmanager.metric import make_key

NOW = 1_790_000_000 * 10**9
HOST = {"host.id": "H 1", "host.name": "Host One", "deployment.environment.name": "prod", "service.name": "shop"}


def attributes(found: dict) -> list[KeyValue]:
    out = []
    for key, value in found.items():
        if isinstance(value, bool):
            any_value = AnyValue(bool_value=value)
        elif isinstance(value, int):
            any_value = AnyValue(int_value=value)
        elif isinstance(value, float):
            any_value = AnyValue(double_value=value)
        elif isinstance(value, list):
            any_value = AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=each) for each in value]))
        else:
            any_value = AnyValue(string_value=value)
        out.append(KeyValue(key=key, value=any_value))
    return out


def request(*metrics: otlp.Metric, resource: dict | None = None) -> ExportMetricsServiceRequest:
    found = ExportMetricsServiceRequest()
    each = found.resource_metrics.add()
    each.resource.attributes.extend(attributes(HOST if resource is None else resource))
    each.scope_metrics.add().metrics.extend(metrics)
    return found


def gauge(name: str, value: float, at: int = NOW, /, **labels) -> otlp.Metric:
    point = otlp.NumberDataPoint(time_unix_nano=at, as_double=value, attributes=attributes(labels))
    return otlp.Metric(name=name, unit="1", gauge=otlp.Gauge(data_points=[point]))


def total(name: str, value: int, *, monotone: bool = True, temporality: int = 2, **labels) -> otlp.Metric:
    point = otlp.NumberDataPoint(time_unix_nano=NOW, as_int=value, attributes=attributes(labels))
    data = otlp.Sum(data_points=[point], is_monotonic=monotone, aggregation_temporality=temporality)
    return otlp.Metric(name=name, sum=data)


def converted(found: ExportMetricsServiceRequest, state: HeadlineState | None = None):
    out = convert(found, headline=state or HeadlineState(), now_nanos=NOW)
    for frame in out.frames:
        decode(frame_pb2.Frame.FromString(encode(frame)))
    return out


def samples(out) -> dict[tuple[str, str], float]:
    found = {}
    for frame in out.frames:
        for values in frame.values:
            for server, row in zip(frame.servers, values, strict=True):
                found.update(
                    {(server, k): v for k, v in zip(frame.metrics, row.tolist(), strict=True) if not np.isnan(v)}
                )
    return found


def test_a_resource_is_a_server_and_its_service_joins_the_key():
    out = converted(request(gauge("system.x", 1.5, core=3, on=True), gauge("jvm.heap", 2.5, pool="a,b")))
    assert samples(out) == {
        ("h-1", "system.x{core=3,on=true}"): 1.5,
        ("h-1", "jvm.heap{pool=a\\,b,service.name=shop}"): 2.5,
    }
    info = out.frames[0].server_infos[0]
    assert (info.id, info.hostname, info.environment) == ("h-1", "Host One", "prod")


@pytest.mark.parametrize(
    ("resource", "server"),
    [({"host.name": "B"}, "b"), ({"service.instance.id": "x/y"}, "x-y"), ({"host.id": "", "host.name": "c"}, "c")],
)
def test_the_server_is_the_first_that_is_known(resource: dict, server: str):
    assert {name for name, _ in samples(converted(request(gauge("system.x", 1.0), resource=resource)))} == {server}


def test_a_resource_that_is_no_server_is_rejected_with_a_reason():
    out = converted(request(gauge("a", 1.0), gauge("b", 1.0), resource={"service.name": "x"}))
    assert (out.frames, out.rejected_data_points) == ([], 2)
    response = encode_response(out, {})
    assert response.partial_success.rejected_data_points == 2
    assert "host.id" in response.partial_success.error_message


@pytest.mark.parametrize(
    ("metric", "kind", "temporality"),
    [
        (gauge("m", 1.0), frame_pb2.METRIC_KIND_GAUGE, frame_pb2.TEMPORALITY_UNSPECIFIED),
        (total("m", 1), frame_pb2.METRIC_KIND_COUNTER, frame_pb2.TEMPORALITY_CUMULATIVE),
        (total("m", 1, temporality=1), frame_pb2.METRIC_KIND_COUNTER, frame_pb2.TEMPORALITY_DELTA),
        (total("m", 1, monotone=False), frame_pb2.METRIC_KIND_GAUGE, frame_pb2.TEMPORALITY_CUMULATIVE),
    ],
)
def test_kind_and_temporality_are_told(metric: otlp.Metric, kind: int, temporality: int):
    (about,) = converted(request(metric)).frames[0].metric_infos
    assert (about.name, about.kind, about.temporality) == ("m", kind, temporality)


def test_a_histogram_is_counts_a_sum_and_cumulative_buckets():
    point = otlp.HistogramDataPoint(
        time_unix_nano=NOW, count=6, sum=9.0, min=0.5, max=4.0, bucket_counts=[1, 2, 3], explicit_bounds=[1.0, 2.5]
    )
    metric = otlp.Metric(name="system.h", histogram=otlp.Histogram(data_points=[point], aggregation_temporality=2))
    found = {key: value for (_, key), value in samples(converted(request(metric))).items()}
    assert found == {
        "system.h.count": 6,
        "system.h.sum": 9,
        "system.h.min": 0.5,
        "system.h.max": 4,
        "system.h.bucket{le=1.0}": 1,
        "system.h.bucket{le=2.5}": 3,
        "system.h.bucket{le=+Inf}": 6,
    }


def test_an_exponential_histogram_has_its_bounds_computed():
    point = otlp.ExponentialHistogramDataPoint(time_unix_nano=NOW, count=10, scale=0, zero_count=1)
    point.positive.CopyFrom(otlp.ExponentialHistogramDataPoint.Buckets(offset=0, bucket_counts=[2, 3]))
    point.negative.CopyFrom(otlp.ExponentialHistogramDataPoint.Buckets(offset=1, bucket_counts=[4]))
    metric = otlp.Metric(name="system.e", exponential_histogram=otlp.ExponentialHistogram(data_points=[point]))
    found = {key: value for (_, key), value in samples(converted(request(metric))).items()}
    assert found == {
        "system.e.count": 10,
        "system.e.bucket{le=-2.0}": 4,
        "system.e.bucket{le=0.0}": 5,
        "system.e.bucket{le=2.0}": 7,
        "system.e.bucket{le=4.0}": 10,
        "system.e.bucket{le=+Inf}": 10,
    }


@pytest.mark.parametrize("scale", [-(2**31), -11, -10, -9, 20, 2**31 - 1])
def test_an_exponential_histogram_of_any_scale_has_bounds(scale: int):
    point = otlp.ExponentialHistogramDataPoint(time_unix_nano=NOW, count=2**64 - 1, scale=scale, zero_count=1)
    point.positive.CopyFrom(otlp.ExponentialHistogramDataPoint.Buckets(offset=2**31 - 1, bucket_counts=[2, 3]))
    point.negative.CopyFrom(otlp.ExponentialHistogramDataPoint.Buckets(offset=-(2**31), bucket_counts=[4]))
    metric = otlp.Metric(name="system.e", exponential_histogram=otlp.ExponentialHistogram(data_points=[point]))
    found = {key: value for (_, key), value in samples(converted(request(metric))).items()}
    assert found["system.e.bucket{le=+Inf}"] == float(2**64 - 1)


def test_lists_in_lists_are_no_longer_than_what_is_in_them():
    value = AnyValue(string_value='"')
    for _ in range(20):
        value = AnyValue(array_value=ArrayValue(values=[value]))
    metric = gauge("system.x", 1.0)
    metric.gauge.data_points[0].attributes.append(KeyValue(key="deep", value=value))
    ((_, key),) = samples(converted(request(metric)))
    assert key == make_key("system.x", {"deep": "[" * 20 + '"\\""' + "]" * 20})


def test_a_summary_is_a_count_a_sum_and_quantiles():
    point = otlp.SummaryDataPoint(time_unix_nano=NOW, count=3, sum=6.0)
    point.quantile_values.add(quantile=0.5, value=2.0)
    metric = otlp.Metric(name="system.s", summary=otlp.Summary(data_points=[point]))
    found = {key: value for (_, key), value in samples(converted(request(metric))).items()}
    assert found == {"system.s.count": 3, "system.s.sum": 6, "system.s{quantile=0.5}": 2}


def test_a_point_without_a_value_is_no_sample_and_no_refusal():
    metric = gauge("m", 1.0)
    metric.gauge.data_points[0].flags = 1
    out = converted(request(metric))
    assert (out.frames, out.rejected_data_points) == ([], 0)


@pytest.mark.parametrize(
    "metric",
    [
        gauge("", 1.0),
        gauge("9x", 1.0),
        gauge("x\0", 1.0),
        gauge("time", 1.0),
        gauge("x", 1.0, a="b" * 2000),
        gauge("x", 1.0, **{f"a{i}": "b" for i in range(31)}),
        gauge("x" * 600, 1.0),
        gauge("x", 1.0, 1),
        gauge("x", 1.0, NOW // 10**6),
        gauge("x", 1.0, 2**63),
        gauge("x", 1.0, 2**64 - 1),
    ],
)
def test_what_cannot_be_kept_is_rejected_and_the_rest_taken(metric: otlp.Metric):
    out = converted(request(metric, gauge("good", 2.0)))
    assert out.rejected_data_points == 1
    assert list(samples(out).values()) == [2.0]
    assert encode_response(out, {}).partial_success.rejected_data_points == 1


def test_an_integer_that_no_double_holds_is_rounded_and_said():
    out = converted(request(total("m", 2**53 + 1)))
    assert list(samples(out).values()) == [2.0**53]
    assert out.rejected_data_points == 0
    assert "rounded" in encode_response(out, {}).partial_success.error_message


def test_nothing_to_say_is_no_partial_success():
    assert not encode_response(converted(request(gauge("m", 1.0))), {}).HasField("partial_success")
    assert encode_response(converted(request()), {"TIME_IN_FUTURE": 3}).partial_success.rejected_data_points == 3


def test_the_headline_comes_from_utilizations():
    out = converted(
        request(
            gauge("system.cpu.utilization", 0.9, cpu=0, state="idle"),
            gauge("system.cpu.utilization", 0.7, cpu=1, state="idle"),
            gauge("system.memory.utilization", 0.25, state="used"),
            gauge("system.filesystem.utilization", 0.4, mountpoint="/"),
            gauge("system.filesystem.utilization", 0.6, mountpoint="/data"),
            gauge("system.filesystem.utilization", 1.0, mountpoint="/snap", type="squashfs"),
        )
    )
    found = {key: value for (_, key), value in samples(out).items() if key.endswith("_usage")}
    assert found == pytest.approx({"cpu_usage": 20.0, "memory_usage": 25.0, "disk_usage": 60.0})


def test_the_headline_comes_from_totals_where_there_is_no_utilization():
    state = HeadlineState()
    memory = [
        gauge("system.memory.usage", value, state=name)
        for name, value in (("used", 3.0), ("free", 1.0), ("available", 1.0))
    ]
    disk = [
        gauge("system.filesystem.usage", value, mountpoint="/", state=name)
        for name, value in (("used", 1.0), ("free", 3.0))
    ]

    def export(idle: int, user: int):
        times = [total("system.cpu.time", idle, state="idle"), total("system.cpu.time", user, state="user")]
        out = converted(request(*times, *memory, *disk), state)
        return {key: value for (_, key), value in samples(out).items() if key.endswith("_usage") and "{" not in key}

    assert export(100, 100) == {"memory_usage": 75.0, "disk_usage": 25.0}
    assert export(170, 130)["cpu_usage"] == pytest.approx(30.0)
    assert "cpu_usage" not in export(5, 5)  # the host has restarted


@given(
    st.lists(
        st.tuples(
            st.text(max_size=8),
            st.floats(allow_nan=False),
            st.integers(0, 5),
            st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        ),
        max_size=20,
    )
)
@settings(max_examples=100)
def test_every_point_is_taken_or_rejected(points):
    out = converted(request(*(gauge(name, value, NOW + at * 10**6, **labels) for name, value, at, labels in points)))
    taken = {
        (key, time)
        for frame in out.frames
        for t, time in enumerate(frame.times.tolist())
        for m, key in enumerate(frame.metrics)
        if not np.isnan(frame.values[t, 0, m])
    }
    assert len(taken) <= len(points) - out.rejected_data_points
    assert bool(out.reasons) == bool(out.rejected_data_points)
