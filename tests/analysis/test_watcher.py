"""The consumer of the log, frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from analysis.alerting import Desk, Hook, StillClock
from openmanager_analysis.anomaly import Finding
from openmanager_analysis.collector import Names
from openmanager_analysis.watcher import Watcher

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2 as pb
from openmanager.frame import Frame, encode
from openmanager.runtime.clock import SystemClock

SECOND = 10**9
BEGIN = 1_790_000_000


async def test_the_detector_goes_on_and_ends_what_it_found_after_the_logs_clock_was_ahead_and_is_put_back(
    tmp_path: Path,
):
    watcher = Watcher(
        timeseries=None,  # type: ignore[arg-type]
        clock=SystemClock(),
        path=tmp_path / "state",
        interval_nanos=SECOND,
        save_seconds=60,
        names=Names(most=10),
        alerts=Desk(tmp_path, Hook(), StillClock()).keeper,
    )

    async def take(*seconds: int) -> float:
        """Take a frame of each second; return the last second that was looked at."""
        for at in seconds:
            frame = Frame(times=np.array([at * SECOND]), servers=("a",), metrics=("m",), values=np.ones((1, 1, 1)))
            part = pb.WatchFramesResponse(frame=frame_pb2.Frame.FromString(encode(frame)), position=watcher._taken + 1)
            part.receive_time.FromNanoseconds(at * SECOND)
            await watcher._take(part)
        return watcher.describe().as_of_time.ToSeconds()

    assert await take(*range(BEGIN + 3600, BEGIN + 3605)) == BEGIN + 3602
    found = Finding(server="a", time_nanos=(BEGIN + 3602) * SECOND, score=0.9, confidence=0.9, alarming=True, blames=())
    watcher.register.see(found)
    assert await take(*range(BEGIN, BEGIN + 5)) == BEGIN + 2
    (anomaly,) = watcher.register.open.values()
    assert anomaly.last_nanos <= (BEGIN + 2) * SECOND
    assert await take(BEGIN + 7200, BEGIN + 7203) == BEGIN + 7200
    assert not watcher.register.open
