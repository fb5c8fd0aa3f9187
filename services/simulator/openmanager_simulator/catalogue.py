"""The metrics of a simulated server: 511 by default, from one data file whose entries are expanded over attributes.

A gauge is `size · (offset + scale · driver · (1 + noise · n))` with n a standard normal of its own, or one that the
metrics of a group share; a counter grows by `scale` a second times its driver. Values are multiples of `resolution`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from openmanager.metric import make_key

DRIVERS = ("cpu", "memory", "disk", "network", "requests", "response")
COUNTER_DRIVERS = ("season", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of the catalogue."""

    key: str
    name: str
    unit: str
    kind: str
    description: str
    driver: str
    offset: float
    scale: float
    noise: float
    resolution: float
    minimum: float | None = None
    maximum: float | None = None
    size: str = "one"
    derived: str = ""
    noise_group: str = ""
    fault_rate: float = 0.0
    resets: bool = False
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """The metrics in order, and their parameters as arrays."""

    metrics: tuple[Metric, ...]

    def column(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return one numeric parameter of all metrics: float64[M]."""
        return np.asarray([getattr(metric, name) for metric in self.metrics], np.float64)

    def where(self, **wanted: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the indices of the metrics whose fields have the given values."""
        return np.asarray(
            [
                index
                for index, metric in enumerate(self.metrics)
                if all(getattr(metric, name) == value for name, value in wanted.items())
            ],
            np.int64,
        )


@cache
def load_catalogue() -> Catalogue:
    """Return the catalogue of the data file."""
    document = json.loads(resources.files(__package__).joinpath("catalogue.json").read_text(encoding="utf-8"))
    return Catalogue(tuple(metric for entry in document["metrics"] for metric in _expand(entry)))


def _expand(entry: dict[str, Any]) -> list[Metric]:
    values = dict(entry)
    choices = values.pop("attributes", {})
    shared = values.pop("shared_noise", "")
    out = []
    for chosen in itertools.product(*choices.values()):
        attributes = dict(zip(choices, chosen, strict=True))
        group = f"{shared}/{next(iter(attributes.values()))}" if shared else ""
        out.append(Metric(key=make_key(values["name"], attributes), noise_group=group, attributes=attributes, **values))
    return out
