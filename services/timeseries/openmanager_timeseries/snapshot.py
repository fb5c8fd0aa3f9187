"""The catalogue on disk: written whenever a block is sealed, so that a start need not read the blocks."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openmanager import durable
from openmanager.frame import MetricInfo, ServerInfo
from openmanager_timeseries.catalog import Catalog
from openmanager_timeseries.sealed import Format, Reader, Sealed

log = logging.getLogger(__name__)
_KEY = b"openmanager"
_EMPTY_TIME = np.iinfo(np.int64).min


def save(path: Path, catalog: Catalog, position: int) -> None:
    """Write the catalogue as of a log position: aside, synced, renamed (blocking)."""
    ids = np.arange(catalog.count)
    times, values = catalog.last(ids)
    about = {
        "position": position,
        "servers": [asdict(info) for info in tuple(catalog.infos.values())],
        "metrics": [asdict(info) for info in tuple(catalog.metric_infos.values())],
    }
    table = pa.table(
        {
            "server": pa.DictionaryArray.from_arrays(catalog.server_of(ids), pa.array(catalog.servers, pa.string())),
            "metric": pa.DictionaryArray.from_arrays(catalog.metric_of(ids), pa.array(catalog.metrics, pa.string())),
            "last_time_unix_nanos": times,
            "last_value": values,
        }
    ).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    durable.replace(path, buffer.getvalue().to_pybytes())


def load(path: Path, catalog: Catalog) -> int:
    """Fill a catalogue from disk (blocking); return the log position it is of, −1 when there is none to read."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        about = json.loads(table.schema.metadata[_KEY])
        restore(catalog, table)
        catalog.learn(
            [ServerInfo(**info) for info in about["servers"]], [MetricInfo(**info) for info in about["metrics"]]
        )
        return int(about["position"])
    except FileNotFoundError:
        return -1
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as err:
        log.warning("the stored catalogue cannot be read and is rebuilt from the files: %s", type(err).__name__)
        return -1


def restore(catalog: Catalog, table: pa.Table) -> None:
    """Take the series of a table with the columns server, metric, last_time_unix_nanos, last_value."""
    times = table.column("last_time_unix_nanos").to_numpy()
    known = times != _EMPTY_TIME
    catalog.restore(
        table.column("server").filter(pa.array(known)).to_pylist(),
        table.column("metric").filter(pa.array(known)).to_pylist(),
        times[known],
        table.column("last_value").to_numpy()[known],
    )


def restore_from(catalog: Catalog, sealed: Sealed, kind: Format, name: str) -> None:
    """Take the series of a sealed file and their newest values, those of the column `name` (blocking)."""
    with Reader(sealed, kind) as reader:
        for index in range(len(sealed.groups)):
            metrics, servers, rows = reader.group(index, (name,))
            ends = np.append(
                np.flatnonzero((rows.metrics[1:] != rows.metrics[:-1]) | (rows.servers[1:] != rows.servers[:-1])),
                len(rows.times) - 1,
            )
            catalog.restore(
                [servers[code] for code in rows.servers[ends].tolist()],
                [metrics[code] for code in rows.metrics[ends].tolist()],
                rows.times[ends],
                rows.values[name][ends],
            )
