"""`make score`: the detector over simulated fleets, held against the faults that were simulated.

The seeds are none that anything was tuned on. The fleet is watched through the whole pipeline but the log: the collector's
spans, the detector, the register; the first days are for learning and are not scored. What would have been forecast and
foretold in the days that are scored is held against what came, as ScoreDetection does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openmanager_analysis import crossing, risk, rolling, scoring
from openmanager_analysis.analyst import CRITICAL
from openmanager_analysis.anomaly import Anomaly, Register
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.rolling import PredictionScore, Recorded, Rolled
from openmanager_analysis.scoring import DAY, Fault, Score
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import hits
from openmanager_simulator.fleet import Server, make_fleet
from openmanager_simulator.schedule import Schedule
from openmanager_simulator.simulation import Simulation

JUDGED_SEEDS = (101, 102, 103)
BEGIN = 1_790_000_000 // 86_400 * DAY
SECOND = 10**9
HOUR_SECONDS = 3_600
# Seconds from one time at which it is asked how likely alarms are to the next.
ASKED_SECONDS = 300


@dataclass(frozen=True)
class Judged:
    score: Score
    faults: Sequence[Fault]
    anomalies: Sequence[Anomaly]
    tick_millis: float
    rolled: Rolled
    alarms: Sequence[PredictionScore]


def judge(seed: int, *, servers: int, days: int, learning: int, seconds: int) -> Judged:
    """Watch a fleet for some days, and score what was found after the first `learning` of them."""
    fleet, catalogue = make_fleet(servers), load_catalogue()
    simulation = Simulation(fleet=fleet, catalogue=catalogue, seed=seed, interval_nanos=seconds * SECOND)
    series = [(server.id, metric.key) for server in fleet for metric in catalogue.metrics]
    counters = [metric.kind == "counter" for _ in fleet for metric in catalogue.metrics]
    environments = {server.id: server.environment for server in fleet}
    lookout, register = Lookout(), Register(kept=1_000_000)
    lookout.watch(series, counters)
    first, count = BEGIN // (seconds * SECOND), days * 86_400 // seconds
    columns = [[metric.key for metric in catalogue.metrics].index(name) for name in CRITICAL]
    headline = np.zeros((count, servers, len(CRITICAL)))
    asked: list[tuple[int, np.ndarray]] = []
    spent = 0.0
    for tick in range(count):
        values = simulation.values(first + tick, 1)[0]
        headline[tick] = values[:, columns]
        moment = (first + tick) * seconds * SECOND
        begin = time.process_time()
        for each in lookout.look(moment // 1_000_000, values.ravel()):
            register.see(each, environments[each.server])
        register.pass_time(moment)
        if moment % (ASKED_SECONDS * SECOND) == 0 and moment >= BEGIN + learning * DAY:
            asked.append((moment, _likely(lookout, register, fleet)))
        spent += time.process_time() - begin
        if sys.stderr.isatty() and tick % 100 == 0:
            print(f"seed {seed}: day {tick * seconds / 86_400:.1f} of {days}", end="\r", file=sys.stderr)
    start, end = BEGIN + learning * DAY, BEGIN + days * DAY
    faults = _faults(Schedule(seed, 0, servers), start, end, frozenset(environments))
    anomalies = [each for each in register if each.start_nanos >= start]
    places = {server.id: place for place, server in enumerate(fleet)}
    critical = (headline >= list(CRITICAL.values())).any(axis=2)

    def crossing(server: str, begin: int, until: int) -> int | None:
        rows = slice(*((moment - BEGIN) // (seconds * SECOND) for moment in (begin, until)))
        found = np.flatnonzero(critical[rows, places[server]]) if server in places else ()
        return begin + int(found[0]) * seconds * SECOND if len(found) else None

    found = scoring.score(faults, anomalies, crossing=crossing, server_count=servers, range_nanos=end - start)
    return Judged(
        score=found,
        faults=faults,
        anomalies=anomalies,
        tick_millis=1000 * spent / count,
        rolled=rolling.roll(_recorded(headline, seconds, learning)),
        alarms=_foretold(asked, anomalies, places, end),
    )


def _likely(lookout: Lookout, register: Register, fleet: Sequence[Server]) -> np.ndarray:
    """Return how likely each server alarms within each horizon, NaN where an anomaly goes on."""
    found = dict(lookout.risks())
    busy = {each.server for each in register.going_on()}
    none = np.full(len(risk.HORIZON_SECONDS), np.nan)
    return np.array([none if server.id in busy else found[server.id] for server in fleet])


def _foretold(
    asked: Sequence[tuple[int, np.ndarray]], anomalies: Sequence[Anomaly], places: dict[str, int], end: int
) -> list[PredictionScore]:
    """Hold the chances of alarms against the alarms that came."""
    times, chances = np.array([moment for moment, _ in asked]), np.array([each for _, each in asked])
    starts = [np.sort([each.start_nanos for each in anomalies if places[each.server] == at]) for at in places.values()]
    made = []
    for column, seconds in enumerate(risk.HORIZON_SECONDS):
        until = times + seconds * SECOND
        came = np.stack(
            [np.searchsorted(some, until, "right") > np.searchsorted(some, times, "right") for some in starts]
        )
        said = chances[:, :, column]
        use = ~np.isnan(said) & (until <= end)[:, None]
        leads = [
            (start - times[warned][0]) / SECOND
            for place, some in enumerate(starts)
            for start in some
            if (warned := (times < start) & (times >= start - seconds * SECOND) & (said[:, place] >= 0.5)).any()
        ]
        made.append(PredictionScore(seconds=seconds, chances=said[use], came=came.T[use], leads=tuple(leads)))
    return made


def _recorded(headline: np.ndarray, seconds: int, learning: int) -> Recorded:
    """Return what rolling takes, of values float64[T, S, 3]."""
    series = headline.transpose(1, 2, 0).reshape(-1, len(headline))
    hour, step = HOUR_SECONDS // seconds, crossing.STEP_MINUTES * 60 // seconds
    return Recorded(
        metrics=tuple(CRITICAL) * headline.shape[1],
        limits=np.tile(list(CRITICAL.values()), headline.shape[1]),
        hours=series.reshape(len(series), -1, hour).mean(axis=2),
        first=learning * 24,
        highest=series.reshape(len(series), -1, step).max(axis=2),
        near_first=learning * crossing.DAY,
    )


def _faults(schedule: Schedule, start: int, end: int, watched: frozenset[str]) -> list[Fault]:
    """Return the faults that begin in a range, as far as watched servers feel them: a cascade may pass a small fleet by."""
    found = []
    for row in schedule.between(start, end):
        fault = schedule.fault(row)
        if fault.start_nanos < start:
            continue
        felt = [hit for hit in hits(fault) if hit.server in watched]
        if not felt:
            continue
        found.append(
            Fault(
                pattern=str(fault.pattern),
                servers=tuple(dict.fromkeys(hit.server for hit in felt)),
                start_nanos=fault.start_nanos,
                end_nanos=max(hit.end_nanos for hit in felt),
                severity=fault.severity,
            )
        )
    return found


def lines(judged: Sequence[Judged]) -> list[str]:
    """Return the table of some seeds together."""
    rows: dict[str, list[scoring.Share]] = {}
    for each in judged:
        for share in (*each.score.patterns, *each.score.severities, each.score.total):
            rows.setdefault(share.name or "all", []).append(share)
    out = [f"{'faults':24} {'there':>6} {'found':>6} {'recall':>7} {'delay':>8} {'lead':>8}"]
    for name, some in rows.items():
        there, found = sum(each.fault_count for each in some), sum(each.found_count for each in some)
        delays, leads = (
            [getattr(each, kind) for each in some if getattr(each, kind) is not None]
            for kind in ("delay_nanos", "lead_nanos")
        )
        shown = [f"{np.median(times) / 60e9:6.1f} m" if times else "–" for times in (delays, leads)]
        out.append(f"{name:24} {there:6} {found:6} {found / max(there, 1):7.2f} {shown[0]:>8} {shown[1]:>8}")
    runs, (_, precision) = sum(len(each.anomalies) for each in judged), shares(judged)
    rate = np.mean([each.score.false_alarm_rate for each in judged])
    out.append(f"{runs} runs of alarms, precision {precision:.2f}, {rate:.2f} false ones a server and day")
    out.append(f"{np.mean([each.tick_millis for each in judged]):.1f} ms of processor time a tick")
    return out + _forecast_lines(rolling.together([each.rolled for each in judged])) + _alarm_lines(judged)


def _forecast_lines(rolled: Rolled) -> list[str]:
    out = ["", f"{'a day ahead':24} {'made':>6} {'error':>7} {'in 80 %':>8} {'in 95 %':>8}"]
    for each in rolled.forecasts:
        within = f"{each.within_80 / each.value_count:8.2f} {each.within_95 / each.value_count:8.2f}"
        out.append(f"{each.metric:24} {each.forecast_count:6} {each.error / each.naive_error:7.2f} {within}")
    if rolled.exhaustion is not None:
        found = rolled.exhaustion
        reached, other = max(found.reached_count, 1), max(found.answer_count - found.reached_count, 1)
        out.append(
            f"times to a threshold: {found.answer_count} answers, {found.reached_count} reached, median error "
            f"{np.median(found.errors) if found.errors else np.nan:.2f}, 80 % held {found.within_80 / reached:.2f}, missed "
            f"{found.missed_count / reached:.2f}, false {found.false_count / other:.2f}"
        )
    out += ["", *_chance_lines("threshold passed", rolled.predictions)]
    return out + [f"not scored: {text}" for text in rolled.omissions]


def _alarm_lines(judged: Sequence[Judged]) -> list[str]:
    parts = [Rolled(forecasts=(), exhaustion=None, predictions=tuple(each.alarms), omissions=()) for each in judged]
    return _chance_lines("alarm begins", rolling.together(parts).predictions)


def _chance_lines(what: str, found: Sequence[PredictionScore]) -> list[str]:
    out = [f"{what:24} {'asked':>7} {'came':>6} {'Brier':>7} {'skill':>6} {'warned':>7} {'lead':>8}"]
    for each in found:
        skill = f"{each.skill:6.2f}" if each.skill is not None else f"{'–':>6}"
        lead = f"{np.median(each.leads) / 60:6.1f} m" if each.leads else "–"
        name = f"within {each.seconds / HOUR_SECONDS:g} h"
        out.append(
            f"{name:24} {len(each.chances):7} {int(each.came.sum()):6} {each.brier:7.4f} {skill} {len(each.leads):7} {lead:>8}"
        )
        out.append("  said and came: " + ", ".join(f"{said:.3f} {came:.3f} ({n:,})" for n, said, came in each.bins()))
    return out


def shares(judged: Sequence[Judged]) -> tuple[float, float]:
    """Return recall and precision of some seeds together."""
    there, found = (sum(getattr(each.score.total, kind) for each in judged) for kind in ("fault_count", "found_count"))
    runs = sum(len(each.anomalies) for each in judged)
    right = sum((each.score.precision or 0) * len(each.anomalies) for each in judged)
    return found / max(there, 1), right / max(runs, 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="score", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=JUDGED_SEEDS)
    parser.add_argument("--servers", type=int, default=20)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--learning", type=int, default=3, help="days that are not scored")
    parser.add_argument("--seconds", type=int, default=60, help="between ticks")
    parser.add_argument("--least-recall", type=float, default=0.0, help="fail below")
    parser.add_argument("--least-precision", type=float, default=0.0, help="fail below")
    options = parser.parse_args()
    judged = [
        judge(seed, servers=options.servers, days=options.days, learning=options.learning, seconds=options.seconds)
        for seed in options.seeds
    ]
    print("\n".join(lines(judged)))
    recall, precision = shares(judged)
    if recall < options.least_recall or precision < options.least_precision:
        sys.exit(f"recall {recall:.2f} and precision {precision:.2f} are below what is asked for")


if __name__ == "__main__":
    main()
