"""The one table of what becomes of each method where its service has several shards. A method without a line ends the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from openmanager.api.analysis.v1 import analysis_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager_gateway.shards import history, listing, merging, watching, writing
from openmanager_gateway.shards.calls import Shards
from openmanager_gateway.shards.listing import Listing
from openmanager_gateway.shards.merging import Handler

_API = "openmanager.api"
_WRITES: Mapping[str, Handler] = {
    "WriteFrame": writing.write_frame,
    "WriteFrames": writing.write_stream(pb.WriteFramesResponse, pb.WriteFramesRequest),
}
# Stored by the metadata service, and followed by every shard.
_ANYWHERE = merging.first()
# Answered from all history, through the gateway.
_SPREAD = merging.first(spread=True)


def _newest(each: Any) -> tuple[int, str]:
    return each.start_time.ToNanoseconds(), each.id


def _riskiest(reply: analysis_pb2.ListAnomaliesResponse, pages: Mapping[int, Any], is_first: bool) -> None:  # noqa: FBT001
    """Give the first page the risks of all shards, the likeliest first, and say from which score on a time is alarming."""
    risks = [each for found in pages.values() for each in found.risks if is_first]
    risks.sort(key=lambda each: max((chance.probability for chance in each.probabilities), default=0.0), reverse=True)
    reply.risks.extend(risks[:100])
    reply.threshold = next(iter(pages.values())).threshold


TABLE: Mapping[str, Mapping[str, Handler]] = {
    f"{_API}.timeseries.v1.TimeseriesService": {
        **_WRITES,
        "WatchFrames": watching.watch_frames,
        "QueryRange": history.query_range,
        "QueryLatest": history.query_latest,
        "ListSeries": listing.pages(Listing(items="series", key=lambda each: (each.server, each.metric))),
        "DeleteSeries": merging.delete_series,
        "ExportSeries": history.export_series,
    },
    f"{_API}.timeseries.v1.RetentionService": {
        "GetRetentionPolicy": _ANYWHERE,
        "UpdateRetentionPolicy": merging.update_policy,
        "ListTiers": merging.every(merging.tiers, whole=True),
        "RebuildTier": merging.every(merging.summed(pb.RebuildTierResponse), whole=True),
    },
    f"{_API}.timeseries.v1.LogService": {
        "GetLedger": merging.every(merging.ledger, whole=True),
        "ConfirmPosition": watching.confirm_position,
        "ListDeadLetters": listing.pages(
            Listing(
                items="dead_letters",
                key=lambda each: each.create_time.ToNanoseconds(),
                own=merging.number_letter,
                finish=merging.count_letters,
            )
        ),
        "RetryDeadLetters": merging.chosen_letters(pb.RetryDeadLettersResponse),
        "DeleteDeadLetters": merging.chosen_letters(pb.DeleteDeadLettersResponse),
    },
    f"{_API}.timeseries.v1.ImportService": {
        "ImportFrames": writing.write_stream(pb.ImportFramesResponse, pb.ImportFramesRequest),
        "ImportRollups": writing.import_rollups,
    },
    f"{_API}.cache.v1.EntryService": {
        "GetEntry": merging.entry,
        "SetEntry": merging.entry,
        "DeleteEntry": merging.entry,
    },
    f"{_API}.analysis.v1.AnalysisService": {
        "AnalyzeTrend": _SPREAD,
        "ForecastCapacity": _SPREAD,
        "ScoreDetection": _SPREAD,
    },
    f"{_API}.analysis.v1.AnomalyService": {
        "DetectAnomalies": _SPREAD,
        "ListAnomalies": listing.pages(Listing(items="anomalies", key=_newest, reverse=True, finish=_riskiest)),
        "WatchAnomalies": watching.watch,
    },
    f"{_API}.analysis.v1.RuleService": {
        "CreateRule": _ANYWHERE,
        "GetRule": merging.counted("rule", "series_count"),
        "ListRules": merging.counted("rules", "series_count"),
        "UpdateRule": _ANYWHERE,
        "DeleteRule": _ANYWHERE,
    },
    f"{_API}.analysis.v1.SilenceService": {
        "CreateSilence": _ANYWHERE,
        "GetSilence": merging.counted("silence", "alert_count"),
        "ListSilences": merging.counted("silences", "alert_count"),
        "UpdateSilence": _ANYWHERE,
        "ExpireSilence": _ANYWHERE,
    },
    f"{_API}.analysis.v1.AlertService": {
        "ListAlerts": listing.pages(Listing(items="alerts", key=_newest, reverse=True)),
        "GetAlert": merging.get_alert,
        "WatchAlerts": watching.watch,
    },
    # Its writes; hot state is the gateway's own.
    f"{_API}.gateway.v1.GatewayService": _WRITES,
}


class ShardedRoute:
    """A servicer of a service with several shards."""

    def __init__(self, descriptor: ServiceDescriptor, shards: Shards) -> None:
        for method in descriptor.methods:
            setattr(self, method.name, TABLE[descriptor.full_name][method.name](shards, method))
