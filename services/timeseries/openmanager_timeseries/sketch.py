"""Sketches of percentiles: KLL sketches of doubles, from Apache DataSketches (Karnin, Lang, Liberty, 2016).

A sketch of up to K samples holds them all and is exact; of more, the rank of what it answers is off by at most
RANK_ERROR of the samples with a probability of 99 %. Sketches merge: that of an hour is made of those of its minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import datasketches
import numpy as np

from openmanager_timeseries.samples import Floats

K = 200
RANK_ERROR = float(datasketches.kll_doubles_sketch.get_normalized_rank_error(K, False))

Sketch: TypeAlias = Any  # datasketches.kll_doubles_sketch, which has no types


def of_samples(values: Floats) -> bytes:
    """Return the sketch of samples: float64[K], finite."""
    sketch = datasketches.kll_doubles_sketch(K)
    sketch.update(values)
    return bytes(sketch.serialize())


def merged(sketches: Iterable[bytes]) -> Sketch:
    """Return what some sketches make together."""
    whole = datasketches.kll_doubles_sketch(K)
    for each in sketches:
        whole.merge(datasketches.kll_doubles_sketch.deserialize(each))
    return whole


def percentiles(sketch: Sketch, percents: Sequence[float]) -> tuple[list[float], float]:
    """Return percentiles, and the error of their rank: 0 while the sketch holds every sample, then linear between them."""
    if not sketch.is_estimation_mode():
        values = np.asarray([value for value, _ in sketch], np.float64)
        return [float(each) for each in np.percentile(values, percents)], 0.0
    return [float(sketch.get_quantile(percent / 100.0)) for percent in percents], RANK_ERROR
