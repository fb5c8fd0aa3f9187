"""Whether two stores hold the same samples: counts by series, and a checksum that does not depend on the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openmanager.frame import NANOS_PER_MILLI
from openmanager_timeseries.engines.port import Capabilities, Coded, Wanted
from openmanager_timeseries.samples import Bools, Floats, Ints

# Every double has its own decimal of so many digits.
EXACT_DIGITS = 17

_Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """The series of a part: `keys` int64[N] (server · M + metric), their counts, and where they differ: bool[N]."""

    keys: Ints
    source_counts: Ints
    target_counts: Ints
    differs: Bools
    sample_count: int
    checksum: int


def compare(source: Coded, target: Coded, wanted: Wanted, capabilities: Capabilities) -> Comparison:
    """Compare the samples of two stores, the target's values within the digits that it keeps."""
    ours, theirs = _sorted(source, wanted), _sorted(target, wanted)
    if not capabilities.signed_zero:
        ours = ours._replace(values=ours.values + 0.0)  # −0.0 becomes 0.0
        theirs = theirs._replace(values=theirs.values + 0.0)
    if capabilities.digits < EXACT_DIGITS:
        theirs = theirs._replace(values=_within(ours, theirs, capabilities.digits))
    keys = np.union1d(ours.keys, theirs.keys)
    our_counts, our_sums = _summed(ours, keys)
    their_counts, their_sums = _summed(theirs, keys)
    return Comparison(
        keys=keys,
        source_counts=our_counts,
        target_counts=their_counts,
        differs=(our_counts != their_counts) | (our_sums != their_sums),
        sample_count=len(ours.keys),
        checksum=int(np.add.reduce(our_sums, dtype=np.uint64)),
    )


class _Samples(NamedTuple):
    """Samples by series and time: `keys` int64[K], `times` int64[K] milliseconds, `values` float64[K]."""

    keys: Ints
    times: Ints
    values: Floats


def _sorted(found: Coded, wanted: Wanted) -> _Samples:
    servers = _places(found.servers, wanted.servers)[found.server_codes]
    metrics = _places(found.metrics, wanted.metrics)[found.metric_codes]
    keys, times = servers * len(wanted.metrics) + metrics, found.times // NANOS_PER_MILLI
    order = np.lexsort((times, keys))
    return _Samples(keys[order], times[order], found.values[order])


def _places(names: Sequence[str], among: Sequence[str]) -> Ints:
    place = {name: at for at, name in enumerate(among)}
    return np.asarray([place[name] for name in names], np.int64)


def _within(ours: _Samples, theirs: _Samples, digits: int) -> Floats:
    """Return their values, each replaced by ours of the same series and time where it is that within some digits."""
    at = np.minimum(np.searchsorted(_joined(ours), _joined(theirs)), max(0, len(ours.keys) - 1))
    if not len(ours.keys):
        return theirs.values
    same = (ours.keys[at] == theirs.keys) & (ours.times[at] == theirs.times)
    near = np.abs(ours.values[at] - theirs.values) <= 10.0 ** (1 - digits) * np.abs(ours.values[at])
    return np.where(same & near, ours.values[at], theirs.values)


def _joined(samples: _Samples) -> Any:
    """Return series and time as one number that sorts as they do."""
    return samples.keys << 43 | samples.times & (1 << 43) - 1


def _summed(samples: _Samples, keys: Ints) -> tuple[Ints, _Hashes]:
    """Return the count of every series and the sum of the hashes of its samples, modulo 2^64."""
    counts, sums = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.uint64)
    if len(samples.keys):
        begins = np.flatnonzero(np.concatenate(([True], samples.keys[1:] != samples.keys[:-1])))
        at = np.searchsorted(keys, samples.keys[begins])
        counts[at] = np.diff(np.append(begins, len(samples.keys)))
        sums[at] = np.add.reduceat(_hashes(samples.times, samples.values), begins)
    return counts, sums


def _hashes(times: Ints, values: Floats) -> _Hashes:
    """Return a hash of every sample."""
    return _mixed(_mixed(times.view(np.uint64)) ^ np.ascontiguousarray(values).view(np.uint64))


def _mixed(numbers: _Hashes) -> _Hashes:
    """Return numbers mixed by the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Generators, 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return mixed ^ mixed >> np.uint64(31)
