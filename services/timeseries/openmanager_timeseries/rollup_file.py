"""Files of a tier: a row is a bucket of a series, named by its start; sketches of buckets in files of their own.

Like samples, the columns of a series become integers over one power of ten where that gives exactly the same doubles:
`min_scaled / 10^exponent`, and otherwise `min`. `count` is a whole number; `first` and `growth` are those of counters and
null elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from openmanager.rollup import COLUMNS
from openmanager_timeseries.block import POWERS, encode_values, present_where
from openmanager_timeseries.samples import Bools, Floats, Ints
from openmanager_timeseries.sealed import KEY_FIELDS, Values

_SCALED = tuple(name for name in COLUMNS if name != "count")
_MAX_EXACT = 2.0**53


def scaled_name(name: str) -> str:
    """Return the name of the integer column of a column."""
    return f"{name}_scaled"


class RollupFormat:
    """Buckets; the columns of a row are those of `openmanager.rollup`."""

    schema = pa.schema(
        [
            *KEY_FIELDS,
            pa.field("count", pa.int64()),
            pa.field("exponent", pa.int8()),
            *(pa.field(scaled_name(name), pa.int64()) for name in _SCALED),
            *(pa.field(name, pa.float64()) for name in _SCALED),
        ]
    )
    options: Mapping[str, Mapping[str, Any]] = {
        "compression": {
            "count": "zstd",
            "exponent": "zstd",
            **dict.fromkeys(map(scaled_name, _SCALED), "zstd"),
            **dict.fromkeys(_SCALED, "zstd"),
        },
        "dictionary": {"exponent": True},
        "encoding": {
            "count": "DELTA_BINARY_PACKED",
            **dict.fromkeys(map(scaled_name, _SCALED), "DELTA_BINARY_PACKED"),
            **dict.fromkeys(_SCALED, "BYTE_STREAM_SPLIT"),
        },
    }
    names: tuple[str, ...] = COLUMNS
    # A year of one metric is in a dozen files, and of each a whole row group is read.
    group_rows = 16 << 10

    def encode(self, values: Values, starts: Ints) -> list[pa.Array]:
        """Return count, exponent, the integers and the doubles."""
        counts = np.diff(np.append(starts, len(values["count"])))
        places = _exponents(values, starts)
        exponents = np.repeat(places, counts)
        power = POWERS[exponents]
        integers, doubles = [], []
        for name in _SCALED:
            there = ~np.isnan(values[name])
            if not there.any():
                integers.append(pa.nulls(len(there), pa.int64()))
                doubles.append(pa.nulls(len(there), pa.float64()))
                continue
            scaled, exact = scaled_by(values[name], power)
            if not exact.all():
                exact = np.repeat(np.logical_and.reduceat(exact | ~there, starts), counts)
            integers.append(present_where(exact & there, scaled, pa.int64()))
            doubles.append(present_where(~exact & there, values[name], pa.float64()))
        return [
            pa.array(values["count"].astype(np.int64)),
            pa.array(exponents.astype(np.int8)),
            *integers,
            *doubles,
        ]

    def stored(self, names: Sequence[str]) -> list[str]:
        """Return the columns that make up some columns of a row."""
        found = ["count"] if "count" in names else []
        some = [name for name in names if name != "count"]
        return [*found, *(["exponent"] if some else []), *map(scaled_name, some), *some]

    def decode(self, table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
        """Return columns of rows: float64[K] each, NaN for null."""
        out: dict[str, Any] = {}
        power: Floats | None = None
        for name in names:
            if name == "count":
                out[name] = table.column(name).to_numpy().astype(np.float64)
                continue
            if power is None:
                power = POWERS.take(table.column("exponent").to_numpy(), mode="clip")
            out[name] = _joined(table.column(scaled_name(name)), table.column(name), power)
        return out


def _exponents(values: Values, starts: Ints) -> Ints:
    """Return the smallest exponent of each series that makes whole numbers of its samples, as far as there is one."""
    _, exponents, exact = encode_values(values["last"], starts)
    counts = np.diff(np.append(starts, len(values["last"])))
    rows = POWERS[np.repeat(exponents, counts)]
    enough = exact & np.logical_and.reduceat(
        scaled_by(values["min"], rows)[1] & scaled_by(values["max"], rows)[1], starts
    )
    if not enough.all():  # the newest samples happened to have fewer places than others
        chosen = np.repeat(~enough, counts)
        some = np.cumsum(counts[~enough]) - counts[~enough]
        found = [encode_values(values[name][chosen], some)[1] for name in ("min", "max", "last")]
        exponents[~enough] = np.maximum.reduce(found)
    return exponents


def scaled_by(values: Floats, power: Floats) -> tuple[Ints, Bools]:
    """Return rint(v·power) as integers, and where that over power is v, bit for bit."""
    with np.errstate(over="ignore", invalid="ignore"):
        whole = np.rint(values * power)
        exact = (whole / power == values) & (np.abs(whole) < _MAX_EXACT)
        zero = whole == 0
        if zero.any():
            exact &= ~(zero & np.signbit(values))
        integers: Ints = np.where(exact, whole, 0.0).astype(np.int64)
    return integers, exact


def _joined(scaled: pa.ChunkedArray, doubles: pa.ChunkedArray, power: Floats) -> Floats:
    if scaled.null_count == len(scaled):
        return np.asarray(doubles.to_numpy(), np.float64)
    found: Floats = scaled.fill_null(0).to_numpy() / power
    if scaled.null_count == 0:
        return found
    valid = scaled.is_valid().to_numpy()
    return np.where(valid, found, np.asarray(doubles.to_numpy(), np.float64))


class SketchFormat:
    """Sketches; the only column of a row is `sketch`, the bytes of a KLL sketch of doubles."""

    schema = pa.schema([*KEY_FIELDS, pa.field("sketch", pa.binary())])
    options: Mapping[str, Mapping[str, Any]] = {
        "compression": {"sketch": "zstd"},
        "dictionary": {},
        "encoding": {"sketch": "PLAIN"},
    }
    names: tuple[str, ...] = ("sketch",)
    group_rows = 16 << 10

    def encode(self, values: Values, starts: Ints) -> list[pa.Array]:  # noqa: ARG002
        """Return the sketches."""
        return [pa.array(values["sketch"].tolist(), pa.binary())]

    def stored(self, names: Sequence[str]) -> list[str]:
        """Return the column."""
        return list(names)

    def decode(self, table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
        """Return the sketches: object[K] of bytes."""
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in names}


ROLLUPS = RollupFormat()
SKETCHES = SketchFormat()
