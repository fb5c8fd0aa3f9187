"""Numbers with their units, for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

# Names that OpenManager itself gives to percentages, where whoever wrote them did not say the unit.
PERCENTAGES: Final = frozenset({"cpu_usage", "memory_usage", "disk_usage"})
NOTHING: Final = "–"
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
# What UCUM writes otherwise than people do.
_WORDS: Final = {"1": "", "By": "B", "Cel": "°C", "us": "µs", "min": "min"}


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of UCUM as OpenTelemetry has it: `%`, `By`, `s`, `1`, `{request}/s`; empty where it is not known."""

    ucum: str = ""

    @classmethod
    def of(cls, metric: str, told: str, *, is_rate: bool = False) -> Unit:
        """Return the unit of a metric key of which this was told; of its growth a second if that is looked at."""
        name = metric.partition("{")[0]
        unit = told or ("%" if name in PERCENTAGES else "")
        return cls(f"{unit or '1'}/s" if is_rate else unit)

    @property
    def is_bytes(self) -> bool:
        """Whether it is counted in bytes."""
        return self.ucum.partition("/")[0] == "By"

    def scale(self, largest: float) -> tuple[float, str]:
        """Return what to divide by where numbers go up to `largest`, and the symbol that stands for it then."""
        head, slash, rest = self.ucum.partition("/")
        word = head[1:-1] if head.startswith("{") else _WORDS.get(head, head)
        if not self.is_bytes:
            return 1.0, f"{word}{slash}{rest}"
        power = min(len(_BINARY) - 1, int(math.log(abs(largest), 1024))) if abs(largest) >= 1024 else 0
        return 1024.0**power, f"{_BINARY[power]}B{slash}{rest}"

    def show(self, value: float | None) -> str:
        """Return a value: “93.4 %”, “1.2 GiB”."""
        if value is None or not math.isfinite(value):
            return NOTHING
        divisor, symbol = self.scale(value)
        return f"{figure(value / divisor)} {symbol}".rstrip()

    def show_range(self, low: float, high: float) -> str:
        """Return a range: “41 to 58 %”."""
        divisor, symbol = self.scale(max(abs(low), abs(high)))
        ends = (figure(low / divisor), figure(high / divisor))
        return f"{ends[0] if ends[0] == ends[1] else ' to '.join(ends)} {symbol}".rstrip()

    def show_change(self, value: float) -> str:
        """Return a difference with its sign; of percentages in points, which are not percents of anything."""
        divisor, symbol = self.scale(value)
        number = value / divisor
        text = f"{number:+,.0f}" if abs(number) >= 1000 else f"{number:+.3g}"
        return f"{text.replace('-', '−')} {'points' if self.ucum == '%' else symbol}".rstrip()


def figure(value: float) -> str:
    """Return a number with four digits at most, as the explanations of the analysis have them."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")
