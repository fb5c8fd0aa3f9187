"""Messages to dataclasses and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from openmanager.api.cache.v1 import cache_pb2
from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.gateway.v1 import gateway_pb2
from openmanager.api.metadata.v1 import metadata_pb2
from openmanager.api.provenance.v1 import provenance_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import enumeration, model
from openmanager.errors import invalid
from openmanager.frame import MetricInfo, length_delimited
from openmanager.rollup import Grid, encode_grid
from openmanager.runtime.clock import to_datetime

E = TypeVar("E", bound=StrEnum)
_THRESHOLDS = ("cpu_warning", "cpu_critical", "memory_warning", "memory_critical", "disk_warning", "disk_critical")


# ── times and enumerations ─────────────────────────────────────────────────────────────────────────────────────────


def timestamp(when: datetime | int, name: str) -> Timestamp:
    """Return a Timestamp from an aware datetime or nanoseconds since the epoch; InvalidArgumentError for a naive one."""
    message = Timestamp()
    if isinstance(when, int):
        message.FromNanoseconds(when)
    elif when.tzinfo is None:
        raise invalid(name, "needs a time zone")
    else:
        message.FromDatetime(when.astimezone(UTC))
    return message


def duration(length: timedelta) -> Duration:
    """Return a Duration."""
    message = Duration()
    message.FromTimedelta(length)
    return message


def moment(message: Any, field: str) -> datetime | None:
    """Return a Timestamp field as an aware datetime; None when it is unset or zero."""
    nanos = getattr(message, field).ToNanoseconds()
    return to_datetime(nanos) if nanos else None


def _length(message: Duration) -> timedelta:
    return timedelta(seconds=message.seconds, microseconds=message.nanos / 1000)


def _enum(kind: type[E], wrapper: Any, prefix: str, number: int) -> E | None:
    """Return a value of an enumeration; None for the unspecified and for one this version does not know."""
    name = wrapper.Name(number).removeprefix(prefix) if number in wrapper.values() else ""
    return kind(name) if name in kind.__members__ else None


def _member(kind: type[E], wanted: str, name: str) -> E:
    if wanted not in kind.__members__:
        raise invalid(name, f"must be one of {', '.join(kind)}")
    return kind(wanted)


def number(wrapper: Any, prefix: str, wanted: str, name: str) -> Any:
    """Return the number of a value of a proto enum; InvalidArgumentError, naming the argument, when there is none such."""
    known = [each.removeprefix(prefix) for each, value in wrapper.items() if value]
    if wanted.upper() not in known:
        raise invalid(name, f"must be one of {', '.join(known)}")
    return wrapper.Value(f"{prefix}{wanted.upper()}")


def server_state(number: int) -> enumeration.ServerState | None:
    """Return a server's state."""
    return _enum(enumeration.ServerState, server_pb2.ServerState, "SERVER_STATE_", number)


def storage_state(number: int) -> enumeration.StorageState | None:
    """Return a store's or a service's state."""
    return _enum(enumeration.StorageState, status_pb2.StorageState, "STORAGE_STATE_", number)


def provenance(message: provenance_pb2.Provenance) -> model.Provenance:
    """Return where an answer came from."""
    return model.Provenance(
        source=message.source,
        tier=message.tier,
        as_of=moment(message, "as_of_time"),
        staleness=_length(message.staleness),
        degraded=message.degraded,
        partial=message.partial,
        reason=message.reason,
        resolution=_length(message.resolution) if message.HasField("resolution") else None,
        segments=tuple(_segment(each) for each in message.segments),
        rank_error=message.rank_error,
    )


def _segment(message: provenance_pb2.Segment) -> model.Segment:
    return model.Segment(
        source=message.source,
        tier=message.tier,
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
    )


# ── servers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _usage(message: Any, field: str) -> float | None:
    return float(getattr(message, field)) if message.HasField(field) else None


def server(message: server_pb2.Server, about: provenance_pb2.Provenance, metrics: tuple[str, ...] = ()) -> model.Server:
    """Return a server; `metrics` are its keys where the message leaves them out because they were sent before."""
    return model.Server(
        id=message.id,
        hostname=message.hostname,
        environment=message.environment,
        role=message.role,
        location=message.location,
        labels=dict(message.labels),
        state=server_state(message.state),
        state_reason=message.state_reason,
        cpu_usage=_usage(message, "cpu_usage"),
        memory_usage=_usage(message, "memory_usage"),
        disk_usage=_usage(message, "disk_usage"),
        sample_time=moment(message, "sample_time"),
        state_since=moment(message, "state_since_time"),
        interval=_length(message.interval) if message.HasField("interval") else None,
        metric_count=message.metric_count,
        metrics=tuple(message.metrics) or metrics,
        values=np.asarray(message.values, np.float64),
        provenance=provenance(about),
    )


class EventDecoder:
    """Decodes the messages of one watch: metric keys come once for each list of them."""

    def __init__(self) -> None:
        self._metrics: dict[str, tuple[str, ...]] = {}

    def event(self, message: gateway_pb2.WatchServersResponse, *, reset: bool) -> model.ServerEvent:
        """Return the event of a message."""
        for each in message.servers:
            if each.metrics:
                self._metrics[each.metric_set] = tuple(each.metrics)
        return model.ServerEvent(
            kind=_enum(enumeration.WatchKind, server_pb2.WatchKind, "WATCH_KIND_", message.kind)
            or enumeration.WatchKind.PROGRESS,
            reset=reset,
            servers=tuple(
                server(each, message.provenance, self._metrics.get(each.metric_set, ())) for each in message.servers
            ),
            deleted_ids=tuple(message.deleted_ids),
            provenance=provenance(message.provenance),
            resume_token=message.resume_token,
        )


def _group(message: server_pb2.GroupSummary) -> model.GroupSummary:
    return model.GroupSummary(
        name=message.name,
        total=message.total_count,
        healthy=message.healthy_count,
        warning=message.warning_count,
        critical=message.critical_count,
        offline=message.offline_count,
        mean_cpu_usage=message.mean_cpu_usage,
    )


def fleet_summary(message: gateway_pb2.GetFleetSummaryResponse) -> model.FleetSummary:
    """Return the summary of the fleet."""
    found = message.summary
    return model.FleetSummary(
        total=found.total_count,
        healthy=found.healthy_count,
        warning=found.warning_count,
        critical=found.critical_count,
        offline=found.offline_count,
        series_count=found.series_count,
        mean_cpu_usage=found.mean_cpu_usage,
        mean_memory_usage=found.mean_memory_usage,
        mean_disk_usage=found.mean_disk_usage,
        environments=tuple(_group(each) for each in found.environments),
        roles=tuple(_group(each) for each in found.roles),
        provenance=provenance(message.provenance),
    )


# ── writing and history ────────────────────────────────────────────────────────────────────────────────────────────


def ack(message: frame_pb2.WriteAck) -> model.WriteAck:
    """Return an acknowledgement."""
    return model.WriteAck(
        position=message.position,
        accepted_sample_count=message.accepted_sample_count,
        rejected_sample_count=message.rejected_sample_count,
        rejections=tuple(
            model.Rejection(server=each.server, metric=each.metric, reason=each.reason, sample_count=each.sample_count)
            for each in message.rejections
        ),
    )


def series_name(message: timeseries_pb2.Series) -> model.SeriesName:
    """Return whose values a part of an answer holds."""
    return model.SeriesName(server=message.server, metric=message.metric, group=message.group)


def series_info(message: timeseries_pb2.SeriesInfo) -> model.SeriesInfo:
    """Return what is known of a series."""
    about = message.metric_info
    return model.SeriesInfo(
        server=message.server,
        metric=message.metric,
        info=MetricInfo(
            name=about.name,
            unit=about.unit,
            kind=about.kind,
            temporality=about.temporality,
            description=about.description,
        ),
        last_time=moment(message, "last_time"),
    )


def aggregation(wanted: str) -> timeseries_pb2.Aggregation.ValueType:
    """Return the number of an aggregation; InvalidArgumentError when there is none of that name."""
    return timeseries_pb2.Aggregation.Value(f"AGGREGATION_{_member(enumeration.Aggregation, wanted, 'aggregation')}")


def group_by(wanted: str) -> timeseries_pb2.GroupBy.ValueType:
    """Return the number of a grouping; InvalidArgumentError when there is none of that name."""
    return timeseries_pb2.GroupBy.Value(f"GROUP_BY_{_member(enumeration.GroupBy, wanted, 'group_by')}")


# ── moving and keeping history ─────────────────────────────────────────────────────────────────────────────────────


def export_chunk(message: timeseries_pb2.ExportChunk, header: timeseries_pb2.ExportHeader) -> model.ExportChunk:
    """Return some rows of an export."""
    return model.ExportChunk(
        parquet=message.parquet,
        row_count=message.row_count,
        resume_token=message.resume_token,
        done_series_count=message.done_series_count,
        series_count=header.series_count,
        provenance=provenance(header.provenance),
    )


def deletion(message: timeseries_pb2.DeleteSeriesResponse) -> model.Deletion:
    """Return what was deleted."""
    return model.Deletion(
        series_count=message.series_count,
        sample_count=message.sample_count,
        bucket_count=message.bucket_count,
        freed_bytes=message.freed_bytes,
    )


def rollup_request(tier: str, grid: Grid) -> bytes:
    """Return the wire form of an ImportRollupsRequest."""
    return length_delimited(1, encode_grid(tier, grid))


def rollup_ack(message: timeseries_pb2.ImportRollupsResponse) -> model.RollupAck:
    """Return how many buckets were taken."""
    return model.RollupAck(
        accepted_bucket_count=message.accepted_bucket_count, rejected_bucket_count=message.rejected_bucket_count
    )


def _selector(message: frame_pb2.Selector) -> model.Selector:
    return model.Selector(metrics=tuple(message.metrics), servers=tuple(message.servers), where=message.server_filter)


def selector_message(wanted: model.Selector) -> frame_pb2.Selector:
    """Return the message of a selector."""
    return frame_pb2.Selector(metrics=wanted.metrics, servers=wanted.servers, server_filter=wanted.where)


def retention_policy(message: timeseries_pb2.RetentionPolicy) -> model.RetentionPolicy:
    """Return what is kept how long."""
    return model.RetentionPolicy(
        rules=tuple(
            model.RetentionRule(tier=each.tier, selector=_selector(each.selector), retention=_length(each.retention))
            for each in message.rules
        ),
        holds=tuple(
            model.LegalHold(
                name=each.name,
                selector=_selector(each.selector),
                start_time=moment(each, "start_time"),
                end_time=moment(each, "end_time"),
                reason=each.reason,
            )
            for each in message.holds
        ),
        etag=message.etag,
        update_time=moment(message, "update_time"),
    )


def retention_message(wanted: model.RetentionPolicy) -> timeseries_pb2.RetentionPolicy:
    """Return the message of a policy, without what only the service sets but the etag."""
    message = timeseries_pb2.RetentionPolicy(etag=wanted.etag)
    for rule in wanted.rules:
        message.rules.add(tier=rule.tier, selector=selector_message(rule.selector), retention=duration(rule.retention))
    for hold in wanted.holds:
        made = message.holds.add(name=hold.name, selector=selector_message(hold.selector), reason=hold.reason)
        if hold.start_time is not None:
            made.start_time.CopyFrom(timestamp(hold.start_time, "start_time"))
        if hold.end_time is not None:
            made.end_time.CopyFrom(timestamp(hold.end_time, "end_time"))
    return message


def tier(message: timeseries_pb2.Tier) -> model.Tier:
    """Return a tier."""
    return model.Tier(
        name=message.name,
        resolution=_length(message.resolution) if message.HasField("resolution") else None,
        retention=_length(message.retention),
        oldest_time=moment(message, "oldest_time"),
        newest_time=moment(message, "newest_time"),
        row_count=message.row_count,
        file_count=message.file_count,
        size_bytes=message.size_bytes,
        waiting_bucket_count=message.waiting_bucket_count,
        deleted_row_count=message.deleted_row_count,
        freed_bytes=message.freed_bytes,
        damaged_file_count=message.damaged_file_count,
        sketch_metrics=tuple(message.sketch_metrics),
    )


def tiers(message: timeseries_pb2.ListTiersResponse) -> model.Tiers:
    """Return the tiers and the disk they take."""
    return model.Tiers(
        tiers=tuple(tier(each) for each in message.tiers),
        disk=model.DiskBudget(
            limit_bytes=message.disk.limit_bytes,
            used_bytes=message.disk.used_bytes,
            full_time=moment(message.disk, "full_time"),
            plan=message.disk.plan,
        ),
    )


# ── status ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _storage(message: status_pb2.StorageStatus) -> model.StorageStatus:
    return model.StorageStatus(
        name=message.name,
        role=message.role,
        engine=message.engine,
        state=storage_state(message.state),
        version=message.version,
        latency=_length(message.latency),
        reason=message.reason,
        since=moment(message, "since_time"),
        size_bytes=message.size_bytes,
        item_count=message.item_count,
        warnings=tuple(message.warnings),
        hit_count=message.hit_count,
        miss_count=message.miss_count,
    )


def _service(message: status_pb2.ServiceStatus) -> model.ServiceStatus:
    return model.ServiceStatus(
        service=message.service,
        address=message.address,
        state=storage_state(message.state),
        version=message.version,
        start_time=moment(message, "start_time"),
        storages=tuple(_storage(each) for each in message.storages),
        reason=message.reason,
        warnings=tuple(message.warnings),
    )


def _consumer(message: status_pb2.Consumer) -> model.Consumer:
    return model.Consumer(
        name=message.name,
        position=message.position,
        delivered=message.delivered_sample_count,
        waiting=message.waiting_sample_count,
        dead_lettered=message.dead_lettered_sample_count,
        resynced=message.resynced_sample_count,
        damaged=message.damaged_sample_count,
        lag=_length(message.lag),
        state=storage_state(message.state),
        reason=message.reason,
        since_time=moment(message, "since_time"),
    )


def dead_letter(message: timeseries_pb2.DeadLetter) -> model.DeadLetter:
    """Return a dead letter."""
    return model.DeadLetter(
        id=message.id,
        consumer=message.consumer,
        reason=message.reason,
        sample_count=message.sample_count,
        servers=tuple(message.servers),
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        first_position=message.first_position,
        last_position=message.last_position,
        create_time=moment(message, "create_time"),
        update_time=moment(message, "update_time"),
        retry_count=message.retry_count,
    )


def ledger(message: status_pb2.Ledger) -> model.Ledger:
    """Return the books of the log."""
    return model.Ledger(
        accepted_sample_count=message.accepted_sample_count,
        head_position=message.head_position,
        consumers=tuple(_consumer(each) for each in message.consumers),
    )


def board(message: gateway_pb2.GetStorageStatusResponse) -> model.Board:
    """Return the state of everything."""
    return model.Board(
        overall_state=storage_state(message.overall_state),
        services=tuple(_service(each) for each in message.services),
        ledger=ledger(message.ledger) if message.HasField("ledger") else None,
        observe_time=moment(message, "observe_time"),
    )


# ── inventory, simulation, entries ─────────────────────────────────────────────────────────────────────────────────


def inventory_server(message: metadata_pb2.Server) -> model.InventoryServer:
    """Return a server of the inventory."""
    return model.InventoryServer(
        id=message.id,
        hostname=message.hostname,
        environment=message.environment,
        role=message.role,
        location=message.location,
        labels=dict(message.labels),
        thresholds=model.Thresholds(**{name: _usage(message.thresholds, name) for name in _THRESHOLDS}),
        etag=message.etag,
        create_time=moment(message, "create_time"),
        update_time=moment(message, "update_time"),
        delete_time=moment(message, "delete_time"),
    )


def inventory_message(wanted: model.InventoryServer) -> metadata_pb2.Server:
    """Return the message of a server of the inventory, without what only the service sets but the etag."""
    return metadata_pb2.Server(
        id=wanted.id,
        hostname=wanted.hostname,
        environment=wanted.environment,
        role=wanted.role,
        location=wanted.location,
        labels=dict(wanted.labels),
        thresholds=thresholds_message(wanted.thresholds),
        etag=wanted.etag,
    )


def thresholds_message(wanted: model.Thresholds) -> metadata_pb2.Thresholds:
    """Return the message of some thresholds."""
    return metadata_pb2.Thresholds(**{name: getattr(wanted, name) for name in _THRESHOLDS})


def simulation(message: simulator_pb2.Simulation) -> model.Simulation:
    """Return the simulation."""
    return model.Simulation(
        running=message.running,
        server_count=message.server_count,
        metric_count=message.metric_count,
        interval=_length(message.interval),
        seed=message.seed,
        tick_count=message.tick_count,
        last_tick_time=moment(message, "last_tick_time"),
        buffered_frame_count=message.buffered_frame_count,
        dropped_frame_count=message.dropped_frame_count,
        acknowledged_sample_count=message.acknowledged_sample_count,
        last_error=message.last_error,
    )


def metric(message: simulator_pb2.Metric) -> model.Metric:
    """Return a metric of the catalogue."""
    return model.Metric(
        key=message.key,
        unit=message.unit,
        kind=_enum(enumeration.MetricKind, frame_pb2.MetricKind, "METRIC_KIND_", message.kind)
        or enumeration.MetricKind.UNSPECIFIED,
        description=message.description,
        minimum=_usage(message, "minimum"),
        maximum=_usage(message, "maximum"),
        resolution=message.resolution,
    )


def fault(message: simulator_pb2.Fault) -> model.Fault:
    """Return a fault."""
    return model.Fault(
        id=message.id,
        pattern=_enum(enumeration.FaultPattern, simulator_pb2.FaultPattern, "FAULT_PATTERN_", message.pattern)
        or enumeration.FaultPattern.UNSPECIFIED,
        servers=tuple(message.servers),
        start_time=moment(message, "start_time"),
        end_time=moment(message, "end_time"),
        severity=message.severity,
        seed=message.seed,
        root=message.root,
        origin=message.origin,
    )


def fault_pattern(wanted: str) -> simulator_pb2.FaultPattern.ValueType:
    """Return the number of a fault pattern; InvalidArgumentError when there is none of that name."""
    return simulator_pb2.FaultPattern.Value(f"FAULT_PATTERN_{_member(enumeration.FaultPattern, wanted, 'pattern')}")


def entry(message: cache_pb2.Entry) -> model.Entry:
    """Return an entry."""
    return model.Entry(
        namespace=message.namespace,
        key=message.key,
        value=message.value,
        expire_time=moment(message, "expire_time"),
    )
