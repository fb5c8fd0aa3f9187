"""OpenTelemetry metrics as frames: resources become servers, data points samples, attributes part of the metric key.

A resource is the server `host.id`, else `host.name`, else `service.instance.id`. Outside `system.*` the service's name
and instance join the key, so that two processes of a host do not overwrite each other. Histograms become counts, sums
and cumulative buckets; summaries counts, sums and quantiles. Delta sums stay deltas and say so in their MetricInfo.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from openmanager.api.frame.v1 import frame_pb2
from openmanager.errors import InvalidArgumentError
from openmanager.frame import (
    EARLIEST_PLAUSIBLE_NANOS,
    LATEST_PLAUSIBLE_NANOS,
    NANOS_PER_MILLI,
    Frame,
    MetricInfo,
    ServerInfo,
    split,
)
from openmanager.metric import MAX_ATTRIBUTES, check_key, make_key
from openmanager_gateway.otlp_headline import HeadlineState

MAX_REASONS = 10
# A frame that is emptier than this is split by time instead of being filled up with NaN.
SPARSE = 4
MAX_ATTRIBUTE_NAME, MAX_ATTRIBUTE_VALUE = 128, 1024
_NO_VALUE = 1  # DataPointFlags: no recorded value
_EXACT = 1 << 53

_SERVER_KEYS = ("host.id", "host.name", "service.instance.id")
_INFO_KEYS = {
    "hostname": ("host.name",),
    "environment": ("deployment.environment.name", "deployment.environment"),
    "role": ("openmanager.role", "host.role", "service.namespace"),
    "location": ("cloud.availability_zone", "cloud.region"),
}
_INFO_LENGTHS = {"hostname": 255, "environment": 50, "role": 50, "location": 100}
_LABELS = ("os.type", "os.description", "host.arch", "host.type", "cloud.provider", "k8s.cluster.name", "k8s.node.name")
_SERVICE_KEYS = ("service.name", "service.instance.id")


@dataclass(slots=True)
class Conversion:
    """What became of an export: frames, and the data points that could not be taken, with the distinct reasons."""

    frames: list[Frame] = field(default_factory=list)
    rejected_data_points: int = 0
    reasons: dict[str, None] = field(default_factory=dict)

    def reject(self, reason: str, points: int = 1) -> None:
        """Count data points that cannot be taken."""
        self.rejected_data_points += points
        self.note(reason)

    def note(self, reason: str) -> None:
        """Remember a reason, once."""
        if len(self.reasons) < MAX_REASONS:
            self.reasons[reason] = None


@dataclass(slots=True)
class _Samples:
    """The samples of one server, as columns, and what is known of the server and its metrics."""

    info: ServerInfo
    times: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    metrics: dict[str, MetricInfo] = field(default_factory=dict)

    def add(self, time: int, key: str, value: float) -> None:
        self.times.append(time)
        self.keys.append(key)
        self.values.append(value)


def convert(request: ExportMetricsServiceRequest, *, headline: HeadlineState, now_nanos: int) -> Conversion:
    """Return the frames of an export; what cannot be taken is counted and explained, never changed."""
    out = Conversion()
    servers: OrderedDict[str, _Samples] = OrderedDict()
    for resource_metrics in request.resource_metrics:
        attributes = _attributes(resource_metrics.resource.attributes)
        server_id = _server_id(attributes)
        metrics = [metric for scope in resource_metrics.scope_metrics for metric in scope.metrics]
        if not server_id:
            out.reject(f"a resource has none of {', '.join(_SERVER_KEYS)}", sum(map(_point_count, metrics)))
            continue
        samples = servers.setdefault(server_id, _Samples(_server_info(server_id, attributes)))
        service = {key: attributes[key] for key in _SERVICE_KEYS if attributes.get(key)}
        for metric in metrics:
            _Reader(out, samples, service, now_nanos).read(metric)
    for samples in servers.values():
        for time, key, value in headline.derive(samples.info.id, samples.times, samples.keys, samples.values):
            samples.add(time, key, value)
            samples.metrics[key] = MetricInfo(name=key, unit="%", kind=frame_pb2.METRIC_KIND_GAUGE)
        out.frames += _frames(samples)
    return out


def encode_response(conversion: Conversion, rejected_by_store: Mapping[str, int]) -> ExportMetricsServiceResponse:
    """Return the reply: partial success only when something was refused or is worth saying."""
    response = ExportMetricsServiceResponse()
    rejected = conversion.rejected_data_points + sum(rejected_by_store.values())
    reasons = [*conversion.reasons, *(f"{reason}: {count} samples" for reason, count in rejected_by_store.items())]
    if rejected or reasons:
        response.partial_success.rejected_data_points = rejected
        response.partial_success.error_message = "; ".join(reasons)
    return response


# ── resources ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _attributes(found: Iterable[Any]) -> dict[str, str]:
    return {each.key: text for each in found if (text := _text(each.value)) is not None}


def _text(value: Any) -> str | None:
    """Return an attribute's value as text: lists as JSON, None for what has no text."""
    match value.WhichOneof("value"):
        case "string_value":
            return str(value.string_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "int_value":
            return str(value.int_value)
        case "double_value":
            return repr(value.double_value)
        case "array_value":
            return json.dumps(_listed(value), ensure_ascii=False)
        case _:
            return None


def _listed(value: Any) -> Any:
    """Return a list of texts, lists in it as lists: the text of a text would double its escapes at every depth."""
    if value.WhichOneof("value") != "array_value":
        return _text(value)
    return [_listed(each) for each in value.array_value.values]


def _server_id(attributes: Mapping[str, str]) -> str:
    """Return the id of a resource in the alphabet of ids; empty when it has none."""
    for key in _SERVER_KEYS:
        text = re.sub(r"[^a-z0-9._:-]", "-", attributes.get(key, "").lower()).lstrip("._:-")[:255]
        if text:
            return text
    return ""


def _server_info(server_id: str, attributes: Mapping[str, str]) -> ServerInfo:
    known = {
        name: next((_clean(attributes[key], _INFO_LENGTHS[name]) for key in keys if attributes.get(key)), "")
        for name, keys in _INFO_KEYS.items()
    }
    labels = {key: _clean(attributes[key], 1024) for key in _LABELS if attributes.get(key)}
    return ServerInfo(id=server_id, labels={k: v for k, v in labels.items() if v}, **known)


def _clean(text: str, length: int) -> str:
    """Return a text that a server's attribute can hold: the value is for people, so it is cut rather than refused."""
    return re.sub(r"[\x00-\x1f\x7f]", " ", text)[:length]


# ── data points ────────────────────────────────────────────────────────────────────────────────────────────────────


def _point_count(metric: Any) -> int:
    data = metric.WhichOneof("data")
    return len(getattr(metric, data).data_points) if data else 0


class _Reader:
    """Reads the data points of one metric into the columns of its server."""

    def __init__(self, out: Conversion, samples: _Samples, service: Mapping[str, str], now_nanos: int) -> None:
        self._out = out
        self._samples = samples
        self._service = service
        self._now = now_nanos

    def read(self, metric: Any) -> None:
        """Take the points of a metric; those that cannot be taken are rejected one by one."""
        kind = metric.WhichOneof("data")
        if kind is None:
            return
        data = getattr(metric, kind)
        if not metric.name:
            self._out.reject("a metric has no name", len(data.data_points))
            return
        parts = {
            "gauge": _numbers,
            "sum": _numbers,
            "histogram": _histogram,
            "exponential_histogram": _exponential_histogram,
            "summary": _summary,
        }[kind]
        taken = False
        for point in data.data_points:
            taken |= self._take(metric.name, point, parts(self._out, metric.name, point))
        if taken:
            self._learn(metric, kind, data)

    def _take(self, name: str, point: Any, parts: Iterator[tuple[str, dict[str, str], float]]) -> bool:
        if point.flags & _NO_VALUE:
            return False  # “no sample”, not a refusal
        attributes = self._point_attributes(name, point)
        time = point.time_unix_nano or self._now
        if not EARLIEST_PLAUSIBLE_NANOS <= time <= LATEST_PLAUSIBLE_NANOS:
            self._out.reject("a time is not between 2000 and 2200; nanoseconds are expected")
            return False
        try:
            found = [(_key(part, {**attributes, **more}), value) for part, more, value in parts]
        except InvalidArgumentError as err:
            self._out.reject(err.message.removeprefix("frame.metrics "))
            return False
        for key, value in found:
            self._samples.add(time - time % NANOS_PER_MILLI, key, value)
        return True

    def _point_attributes(self, name: str, point: Any) -> dict[str, str]:
        attributes = _attributes(point.attributes)
        return attributes if name.startswith("system.") else {**self._service, **attributes}

    def _learn(self, metric: Any, kind: str, data: Any) -> None:
        delta = getattr(data, "aggregation_temporality", 0) == 1
        temporality = frame_pb2.TEMPORALITY_DELTA if delta else frame_pb2.TEMPORALITY_CUMULATIVE
        monotone = MetricInfo(
            name=metric.name,
            unit=metric.unit[:63],
            kind=frame_pb2.METRIC_KIND_COUNTER,
            temporality=temporality,
            description=_clean(metric.description, 1024),
        )
        gauge = MetricInfo(
            name=metric.name,
            unit=monotone.unit,
            kind=frame_pb2.METRIC_KIND_GAUGE,
            temporality=temporality if kind == "sum" else frame_pb2.TEMPORALITY_UNSPECIFIED,
            description=monotone.description,
        )
        if kind in {"gauge", "sum"}:
            self._samples.metrics[metric.name] = monotone if kind == "sum" and data.is_monotonic else gauge
            return
        for part in ("count", "sum", "bucket"):
            name = f"{metric.name}.{part}"
            self._samples.metrics[name] = MetricInfo(
                name=name,
                unit=monotone.unit if part == "sum" else "1",
                kind=monotone.kind,
                temporality=temporality,
                description=monotone.description,
            )


def _key(name: str, attributes: Mapping[str, str]) -> str:
    """Return the metric key; InvalidArgumentError when it is none we can keep."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArgumentError(f"frame.metrics {name[:80]!r} has more than {MAX_ATTRIBUTES} attributes")
    for key, value in attributes.items():
        if not key or len(key.encode()) > MAX_ATTRIBUTE_NAME or len(value.encode()) > MAX_ATTRIBUTE_VALUE:
            raise InvalidArgumentError(
                f"frame.metrics {name[:80]!r} has an attribute whose name is empty or over {MAX_ATTRIBUTE_NAME} bytes, "
                f"or whose value is over {MAX_ATTRIBUTE_VALUE}"
            )
    key = make_key(name, attributes)
    check_key(key)
    return key


Parts = Iterator[tuple[str, dict[str, str], float]]


def _numbers(out: Conversion, name: str, point: Any) -> Parts:
    if point.WhichOneof("value") == "as_int":
        value = float(point.as_int)
        if abs(point.as_int) > _EXACT and int(value) != point.as_int:
            out.note("an integer beyond 2^53 was rounded to a double")
        yield name, {}, value
    elif point.WhichOneof("value") == "as_double":
        yield name, {}, point.as_double


def _totals(name: str, point: Any) -> Parts:
    yield f"{name}.count", {}, float(point.count)
    for part in ("sum", "min", "max"):
        if point.HasField(part):
            yield f"{name}.{part}", {}, getattr(point, part)


def _histogram(_: Conversion, name: str, point: Any) -> Parts:
    yield from _totals(name, point)
    if not point.bucket_counts:
        return
    total = 0
    bounds = [*(repr(bound) for bound in point.explicit_bounds), "+Inf"]
    for bound, count in zip(bounds, point.bucket_counts, strict=False):
        total += count
        yield f"{name}.bucket", {"le": bound}, float(total)


def _exponential_histogram(_: Conversion, name: str, point: Any) -> Parts:
    """Bucket i of scale s ends at 2^((i + 1) / 2^s); negative ones are mirrored (OpenTelemetry data model)."""
    yield from _totals(name, point)
    base = 2.0 ** (2.0**-point.scale) if point.scale > -10 else float("inf")
    bounds: list[tuple[float, int]] = []
    for index, count in enumerate(point.negative.bucket_counts):
        bounds.append((-_power(base, point.negative.offset + index), count))
    bounds.append((point.zero_threshold, point.zero_count))
    for index, count in enumerate(point.positive.bucket_counts):
        bounds.append((_power(base, point.positive.offset + index + 1), count))
    total = 0
    for bound, count in sorted(bounds):
        total += count
        if count:
            yield f"{name}.bucket", {"le": repr(bound)}, float(total)
    yield f"{name}.bucket", {"le": "+Inf"}, float(point.count)


def _power(base: float, exponent: int) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return float("inf")


def _summary(_: Conversion, name: str, point: Any) -> Parts:
    yield f"{name}.count", {}, float(point.count)
    yield f"{name}.sum", {}, point.sum
    for quantile in point.quantile_values:
        yield name, {"quantile": repr(quantile.quantile)}, quantile.value


# ── frames ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _frames(samples: _Samples) -> list[Frame]:
    """Return the samples of one server as frames: one where they fill it, else one for each time."""
    if not samples.times:
        return []
    times = np.asarray(samples.times, np.int64)
    values = np.asarray(samples.values, np.float64)
    keys = {key: at for at, key in enumerate(dict.fromkeys(samples.keys))}
    columns = np.asarray([keys[key] for key in samples.keys], np.int64)
    distinct = np.unique(times)
    groups = (
        [distinct]
        if len(distinct) * len(keys) <= SPARSE * len(values)
        else [distinct[at : at + 1] for at in range(len(distinct))]
    )
    frames = []
    for index, some in enumerate(groups):
        chosen = np.isin(times, some)
        used, inverse = np.unique(columns[chosen], return_inverse=True)
        grid = np.full((len(some), 1, len(used)), np.nan)
        grid[np.searchsorted(some, times[chosen]), 0, inverse] = values[chosen]
        names = list(keys)
        frames.append(
            Frame(
                times=some,
                servers=(samples.info.id,),
                metrics=tuple(names[at] for at in used.tolist()),
                values=grid,
                server_infos=(samples.info,),
                metric_infos=tuple(samples.metrics.values()) if index == 0 else (),
            )
        )
    return [part for frame in frames for part in split(frame)]


__all__ = ["Conversion", "ExportMetricsServiceRequest", "HeadlineState", "convert", "encode_response"]
