"""The parts of `make bench-history`: history beside real engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bench import (
    catalog,
    history_disk,
    history_fleet,
    history_ingest,
    history_query,
    history_tsbs,
    line_protocol,
    victoriametrics,
)
from bench.pair import Row


def parts(minutes: float, pace: float) -> Mapping[str, Callable[[], Row | Iterable[Row]]]:
    """Return the parts; the steady load goes on for some minutes, with a frame every `pace` seconds."""
    return {
        "ack": history_ingest.acknowledged,
        "engines": history_ingest.engines,
        "steady": lambda: history_fleet.steady(minutes, pace),
        "fleet-tick": history_fleet.tick,
        "size": history_disk.size,
        "query": history_query.rows,
        "restart": history_disk.restart,
        "year": history_disk.year,
        "tsbs": history_tsbs.rows,
        "catalog": catalog.catalog,
        "line-protocol": line_protocol.line_protocol,
        "victoriametrics": victoriametrics.rows,
    }
