"""The faults that were recorded, as the simulator has them."""

from __future__ import annotations

from openmanager.api.simulator.v1 import simulator_pb2 as pb
from openmanager.runtime.peer import Peer
from openmanager_analysis.scoring import Fault

LIST = "/openmanager.api.simulator.v1.FaultService/ListFaults"
PAGE = 1000
SECONDS = 5.0
_PREFIX = "FAULT_PATTERN_"


class Faults:
    """Faults, asked for in the name of who asks."""

    def __init__(self, simulator: Peer) -> None:
        self._simulator = simulator

    async def between(self, start: int, end: int) -> list[Fault]:
        """Return the faults that end after `start` and start before `end`, nanoseconds."""
        found: list[Fault] = []
        token = ""
        while True:
            request = pb.ListFaultsRequest(page_size=PAGE, page_token=token)
            request.start_time.FromNanoseconds(start)
            request.end_time.FromNanoseconds(end)
            reply = await self._simulator.unary(LIST, request, pb.ListFaultsResponse, seconds=SECONDS)
            found.extend(map(_fault, reply.faults))
            token = reply.next_page_token
            if not token:
                return found


def _fault(fault: pb.Fault) -> Fault:
    return Fault(
        pattern=pb.FaultPattern.Name(fault.pattern).removeprefix(_PREFIX),
        servers=tuple(fault.servers),
        start_nanos=fault.start_time.ToNanoseconds(),
        end_nanos=fault.end_time.ToNanoseconds(),
        severity=fault.severity,
    )
