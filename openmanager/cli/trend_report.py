"""The report of `openmanager trend`: where series go, what moved most, changes of level, seasons, the period before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from openmanager.cli import page, plot
from openmanager.cli.chart import BLUE, GREEN, GREY, INK, ORANGE, QUIET, RED, Chart, dates, legend, time_axis
from openmanager.cli.chart import unit as said
from openmanager.cli.report import Report, Section, selector, show_range
from openmanager.cli.report_series import (
    MAX_CHARTS,
    Infos,
    broken,
    fitting_step,
    joined,
    labels,
    line_table,
    nanos,
    read,
    table,
)
from openmanager.cli.season import WEEKDAYS, is_shown
from openmanager.cli.unit import NOTHING, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from openmanager.cli.progress import Bar
    from openmanager.client import Client, Provenance, Trend

POINTS = 500
HOUR = 3600
DAY_NANOS = 86_400 * 10**9
WORDS = {"UP": "up", "DOWN": "down", "STEADY": "steady"}
# Colours and signs of the directions: neither is good or bad by itself.
MARKS = {"UP": (ORANGE, "^"), "DOWN": (BLUE, "v"), "STEADY": (GREY, "o")}
# A mean so close to 0, of what a month moves, makes shares of it that say nothing.
TINY_SHARE = 1e-3
# The axis of shares, in percent: so far at least, and so many times the largest; what is not sure would flatten the others.
LEAST_SHARE, MOST_INTERVAL = 2.0, 1.6


async def collect(
    client: Client,
    options: Mapping[str, Any],
    span: tuple[datetime, datetime],
    bar: Bar,
    *,
    found: Sequence[Trend],
    about: Provenance,
    skipped: int,
) -> Report:
    """Return the report on trends in a range, with the samples of each and of the period before."""
    start, end = map(nanos, span)
    infos = await Infos.read(client, options["metrics"], options["servers"], options["where"])
    parts = [_overview(found, infos, (end - start) / DAY_NANOS)]
    for at, each in enumerate(found[:MAX_CHARTS], 1):
        bar.show(at, min(len(found), MAX_CHARTS), f"{at} of {min(len(found), MAX_CHARTS)} series", title="reading")
        step = fitting_step(2 * (end - start), POINTS, HOUR)
        lines = await read(client, each.server, [each.metric], start=2 * start - end, end=end, step=step)
        unit = infos.unit(each.server, each.metric)
        parts.append(_one(each, joined([lines.get(each.metric)]), unit, (start, end)))
    return Report(
        title=f"Trend of {', '.join(options['metrics'])}",
        lead=_lead(found, skipped, infos, (end - start) / DAY_NANOS),
        asked={"Asked": selector(options), "Range": show_range(*span), "Before": "as long a time before the range"},
        provenance=about,
        sections=parts,
    )


def _lead(found: Sequence[Trend], skipped: int, infos: Infos, days: float) -> list[str]:
    count = {way: sum(each.direction == way for each in found) for way in WORDS}
    beyond = f"{count['UP']:,} go up and {count['DOWN']:,} down beyond chance (p < 0.05)"
    words = [f"Of {len(found):,} series {beyond}; {count['STEADY']:,} are steady."]
    if found and found[0].direction != "STEADY":
        words.append(f"Most moved {found[0].server} {found[0].metric}: {_slope(found[0], infos, days)}.")
    if skipped:
        words.append(f"{skipped:,} more have too few samples to judge by.")
    if len(found) > MAX_CHARTS:
        words.append(f"The {MAX_CHARTS} that moved most are drawn; the table has them all.")
    return words


def _slope(each: Trend, infos: Infos, days: float) -> str:
    unit = infos.unit(each.server, each.metric)
    return (
        f"{unit.show_change(each.slope_per_day)} a day (95 % {_interval(each, unit)}), "
        f"{unit.show_change(each.slope_per_day * days)} over {days:.0f} days"
    )


def _interval(each: Trend, unit: Unit) -> str:
    return f"{unit.show_change(each.slope_low)} to {unit.show_change(each.slope_high)}"


# ── all of them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _overview(found: Sequence[Trend], infos: Infos, days: float) -> Section:
    rows = []
    for each in found:
        unit = infos.unit(each.server, each.metric)
        rows.append({
            "server": each.server,
            "metric": each.metric,
            "direction": WORDS[each.direction],
            "change": unit.show_change(each.slope_per_day),
            "slope_95": _interval(each, unit),
            "p": f"{each.p_value:.2g}",
            "mean": unit.show(each.mean),
            "before": unit.show(each.previous_mean),
            "by_hour": f"{each.hour_strength:.0%}" if each.hour_profile else NOTHING,
            "by_weekday": f"{each.weekday_strength:.0%}" if each.weekday_profile else NOTHING,
            "days": each.day_count,
        })  # fmt: skip
    columns = (
        "server",
        "metric",
        "direction",
        "change",
        "slope_95",
        "p",
        "mean",
        "before",
        "by_hour",
        "by_weekday",
        "days",
    )
    words = table(
        "Those that moved most first; by hour and weekday is the share of the variance that these explain",
        columns,
        rows,
    )
    drawn = [each for each in found if abs(each.mean) > TINY_SHARE * abs(each.slope_per_day) * days][:MAX_CHARTS]
    parts: list[str | Chart] = [_movers(drawn, days)] if len(drawn) > 1 else []
    return Section(title="What moved most", parts=[*parts, words])


def _movers(found: Sequence[Trend], days: float) -> Chart:
    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        axes.set_xlim(-edge, edge)
        for row, each in enumerate(found):
            share = 100 * days / abs(each.mean)
            colour, mark = MARKS[each.direction]
            low, high = each.slope_low * share, each.slope_high * share
            axes.plot([max(low, -edge), min(high, edge)], [row, row], color=colour, lw=2.4)
            for beyond, at, arrow in ((low < -edge, -edge, 8), (high > edge, edge, 9)):
                if beyond:
                    axes.plot(at, row, marker=arrow, color=colour, ms=6, clip_on=False)
            axes.plot(each.slope_per_day * share, row, mark, color=colour, ms=6.5, label=WORDS[each.direction])
        axes.axvline(0, color=QUIET, lw=0.8)
        names = labels([(each.server, each.metric) for each in found], 18 if narrow else 44)
        axes.set_yticks(range(len(found)), names)
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, pad=8, labelcolor=INK)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g} %".replace("-", "−") if value else "0")
        axes.locator_params(axis="x", nbins=4 if narrow else 8)
        axes.grid(visible=True, axis="x")
        legend(figure, [axes], narrow=narrow)

    shares = [abs(each.slope_per_day) * 100 * days / abs(each.mean) for each in found]
    edge = max(LEAST_SHARE, max(shares) * MOST_INTERVAL)
    first = found[0]
    share = 100 * days / abs(first.mean)
    return Chart(
        title=f"Change over {days:.0f} days as a share of the mean, with its 95 % interval; an arrow goes on",
        alt=f"{len(found)} series by how much they moved. First is {first.server} {first.metric}: "
        f"{first.slope_per_day * share:+.3g} % of its mean, 95 % interval {first.slope_low * share:+.3g} to "
        f"{first.slope_high * share:+.3g} %. The table below has all of them.",
        height=0.9 + 0.24 * len(found),
        narrow_height=1.1 + 0.24 * len(found),
        draw=draw,
    )


# ── one of them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _one(each: Trend, line: plot.Line, unit: Unit, span: tuple[int, int]) -> Section:
    told = {
        "Slope": f"{unit.show_change(each.slope_per_day)} a day; 95 % {_interval(each, unit)}; {WORDS[each.direction]} "
        f"(p {each.p_value:.2g})",
        "Mean": _against_before(each, unit),
        "Level": "; ".join(_change(change, unit) for change in each.changes) or "no change of level was found",
        "Season": "; ".join(_seasons(each, unit)) or "none that explains 5 % of the variance or more",
        "Days": f"{each.day_count:,} with enough samples to be counted",
    }
    return Section(
        title=f"{each.server} {each.metric}",
        parts=[page.facts(told), _course(each, line, unit, span), *_shape(each, unit)],
    )


def _against_before(each: Trend, unit: Unit) -> str:
    if each.previous_mean is None:
        return f"{unit.show(each.mean)}; the time before is not known"
    change = each.mean - each.previous_mean
    share = f" ({change / abs(each.previous_mean):+.1%})".replace("-", "−") if each.previous_mean else ""
    return (
        f"{unit.show(each.mean)}, {unit.show(each.previous_mean)} in the time before: {unit.show_change(change)}{share}"
    )


def _change(change: Any, unit: Unit) -> str:
    return f"from {unit.show(change.before)} to {unit.show(change.after)} on {change.time:%Y-%m-%d}"


def _seasons(each: Trend, unit: Unit) -> list[str]:
    words = []
    if is_shown(each.hour_profile, each.hour_strength):
        high, low = int(np.argmax(each.hour_profile)), int(np.argmin(each.hour_profile))
        words.append(
            f"by hour, {each.hour_strength:.0%} of the variance within days: {unit.show_change(each.hour_profile[high])} at "
            f"{high:02d} h, {unit.show_change(each.hour_profile[low])} at {low:02d} h"
        )
    if is_shown(each.weekday_profile, each.weekday_strength):
        high, low = int(np.argmax(each.weekday_profile)), int(np.argmin(each.weekday_profile))
        words.append(
            f"by weekday, {each.weekday_strength:.0%} of the variance within weeks: "
            f"{unit.show_change(each.weekday_profile[high])} on {WEEKDAYS[high]}, "
            f"{unit.show_change(each.weekday_profile[low])} on {WEEKDAYS[low]}"
        )
    return words


def _course(each: Trend, line: plot.Line, unit: Unit, span: tuple[int, int]) -> str | Chart:
    """Return the chart of a series: the period before it, itself, its slope, its changes of level."""
    start, end = span
    split = int(np.searchsorted(line.times, start))
    before = plot.Line(times=line.times[:split], values=line.values[:split])
    now = plot.Line(times=line.times[split:], values=line.values[split:])
    if not len(now.times):
        return page.quiet("no samples are kept of this range")
    divisor, symbol = unit.scale(float(np.abs(line.values).max()))
    first = int(line.times[0])

    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        axes = figure.subplots()
        for some, colour, label in ((before, GREY, "time before"), (now, INK, "observed")):
            if len(some.times):
                moments, values = broken(some)
                axes.plot(moments, values / divisor, color=colour, lw=0.9, label=label)
        if each.previous_mean is not None and len(before.times):
            edges = dates(np.array([first, start]))
            axes.plot(edges, [each.previous_mean / divisor] * 2, color=QUIET, lw=1.2, ls=":", label="mean before")
        _slope_lines(axes, each, now, divisor)
        for number, change in enumerate(each.changes):
            if change.time is not None:
                name = "change of level" if not number else None
                axes.axvline(dates(np.array([nanos(change.time)]))[0], color=GREEN, lw=1.3, ls="--", label=name)
        said(axes, symbol)
        time_axis(axes, first, end, narrow=narrow)
        legend(figure, [axes], narrow=narrow)

    return Chart(
        title=f"{each.server} {each.metric}: the range, the time before it, and the slope with its 95 % interval",
        alt=f"{each.server} {each.metric} goes {WORDS[each.direction]}: {unit.show_change(each.slope_per_day)} a day, 95 % "
        f"interval {_interval(each, unit)}. {_against_before(each, unit)}.",
        height=2.9,
        narrow_height=3.2,
        draw=draw,
        table=line_table("Means, least and most", line, unit),
    )


def _slope_lines(axes: Axes, each: Trend, now: plot.Line, divisor: float) -> None:
    """Draw the slope through the middle of the samples, and the interval as a fan about it."""
    ends = now.times[[0, -1]]
    days = np.linspace(-0.5, 0.5, 21) * float(ends[1] - ends[0]) / DAY_NANOS
    moments = dates((float(ends.mean()) + days * DAY_NANOS).astype(np.int64))
    low, high = (each.mean + slope * days for slope in (each.slope_low, each.slope_high))
    axes.fill_between(moments, low / divisor, high / divisor, color=RED, alpha=0.18, lw=0, label="95 % of slope")
    axes.plot(moments, (each.mean + each.slope_per_day * days) / divisor, color=RED, lw=1.3, label="slope")


def _shape(each: Trend, unit: Unit) -> list[str | Chart]:
    """Return the chart of the seasons that explain something, or none."""
    shapes = [
        (np.array(profile), strength, title, marks)
        for profile, strength, title, marks in (
            (each.hour_profile, each.hour_strength, "Hour of the day, UTC", [f"{hour:02d}" for hour in range(24)]),
            (each.weekday_profile, each.weekday_strength, "Weekday", list(WEEKDAYS)),
        )
        if is_shown(profile, strength)
    ]
    if not shapes:
        return []
    divisor, symbol = unit.scale(max(float(np.abs(shape[0]).max()) for shape in shapes))
    if unit.ucum == "%":
        symbol = "points"

    def draw(figure: Figure, narrow: bool) -> None:  # noqa: FBT001
        ratios = [len(shape[0]) + 4 for shape in shapes]
        rows, columns = (len(shapes), 1) if narrow else (1, len(shapes))
        grid = figure.subplots(rows, columns, squeeze=False, width_ratios=None if narrow else ratios).ravel()
        for axes, (profile, strength, title, marks) in zip(grid, shapes, strict=True):
            axes.bar(range(len(profile)), profile / divisor, color=BLUE, width=0.75)
            axes.axhline(0, color=QUIET, lw=0.8)
            every = 3 if len(profile) > 7 else 1
            axes.set_xticks(range(0, len(profile), every), marks[::every])
            said(axes, symbol, f"{title}: {strength:.0%} of the variance")

    rows = [
        {"time": label, "difference": unit.show_change(float(value))}
        for profile, _, _, marks in shapes
        for label, value in zip(marks, profile, strict=True)
    ]
    return [
        Chart(
            title=f"{each.server} {each.metric}: what the hour and the weekday add to the mean",
            alt=f"{each.server} {each.metric}, seasons: {'; '.join(_seasons(each, unit))}.",
            height=2.1,
            narrow_height=2.0 * len(shapes),
            draw=draw,
            table=table(
                "What is added to the mean",
                ("time", "difference"),
                rows,
            ),
        )
    ]
