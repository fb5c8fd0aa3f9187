"""`make score`: the detector over simulated fleets, held against the faults that were simulated.

The seeds are none that anything was tuned on. The fleet is watched through the whole pipeline but the log: the collector's
spans, the detector, the register; the first days are for learning and are not scored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from openmanager_analysis import scoring
from openmanager_analysis.analyst import CRITICAL
from openmanager_analysis.anomaly import Anomaly, Register
from openmanager_analysis.lookout import Lookout
from openmanager_analysis.scoring import DAY, Fault, Score
from openmanager_simulator.catalogue import load_catalogue
from openmanager_simulator.fault import hits
from openmanager_simulator.fleet import make_fleet
from openmanager_simulator.schedule import Schedule
from openmanager_simulator.simulation import Simulation

JUDGED_SEEDS = (101, 102, 103)
BEGIN = 1_790_000_000 // 86_400 * DAY
SECOND = 10**9


@dataclass(frozen=True)
class Judged:
    score: Score
    faults: Sequence[Fault]
    anomalies: Sequence[Anomaly]
    tick_millis: float


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
    critical = np.zeros((count, servers), bool)
    spent = 0.0
    for tick in range(count):
        values = simulation.values(first + tick, 1)[0]
        critical[tick] = (values[:, columns] >= list(CRITICAL.values())).any(axis=1)
        moment = (first + tick) * seconds * SECOND
        begin = time.process_time()
        for each in lookout.look(moment // 1_000_000, values.ravel()):
            register.see(each, environments[each.server])
        register.pass_time(moment)
        spent += time.process_time() - begin
        if sys.stderr.isatty() and tick % 100 == 0:
            print(f"seed {seed}: day {tick * seconds / 86_400:.1f} of {days}", end="\r", file=sys.stderr)
    start, end = BEGIN + learning * DAY, BEGIN + days * DAY
    faults = _faults(Schedule(seed, 0, servers), start, end)
    anomalies = [each for each in register if each.start_nanos >= start]
    places = {server.id: place for place, server in enumerate(fleet)}

    def crossing(server: str, begin: int, until: int) -> int | None:
        rows = slice(*((moment - BEGIN) // (seconds * SECOND) for moment in (begin, until)))
        found = np.flatnonzero(critical[rows, places[server]]) if server in places else ()
        return begin + int(found[0]) * seconds * SECOND if len(found) else None

    found = scoring.score(faults, anomalies, crossing=crossing, server_count=servers, range_nanos=end - start)
    return Judged(found, faults, anomalies, 1000 * spent / count)


def _faults(schedule: Schedule, start: int, end: int) -> list[Fault]:
    found = []
    for row in schedule.between(start, end):
        fault = schedule.fault(row)
        if fault.start_nanos < start:
            continue
        felt = hits(fault)
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
