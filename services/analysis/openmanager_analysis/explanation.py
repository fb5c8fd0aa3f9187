"""What was found, in sentences made of the figures."""

from __future__ import annotations

from openmanager_analysis.anomaly import Anomaly, Blame

NANOS = 10**9
SHOWN = 3


def explain(anomaly: Anomaly) -> str:
    """Return what happened: “cpu_usage 93 against 41–58 expected, for 12 min; also memory_usage 88 against 60–70”."""
    if not anomaly.blames:
        return f"unusual {_lasting(anomaly)}"
    first, *others = (_against(blame) for blame in anomaly.blames[:SHOWN])
    text = f"{first}, {_lasting(anomaly)}"
    if others:
        text += f"; also {', '.join(others)}"
    if (more := len(anomaly.blames) - SHOWN) > 0:
        text += f" and {more} more"
    return text


def figure(value: float) -> str:
    """Return a number as people say it: four digits at most."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _against(blame: Blame) -> str:
    low, high = figure(blame.low), figure(blame.high)
    expected = low if low == high else f"{low}–{high}"
    return f"{blame.metric} {figure(blame.value)} against {expected} expected"


def _lasting(anomaly: Anomaly) -> str:
    return f"for {span((anomaly.last_nanos - anomaly.start_nanos) / NANOS)}"


def span(seconds: float) -> str:
    """Return a length of time: “40 s”, “12 min”, “3.5 h”, “12 d”."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:.0f} d"
