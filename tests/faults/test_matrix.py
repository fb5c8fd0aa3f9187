"""The table of faults: every row is a fault that can be made, and no promise is left out where it could be kept."""

from __future__ import annotations

import inspect

import pytest

from chaos import history_files
from chaos.cell import HOT, KEPT, PAST, Cell, cells
from chaos.stores import ENGINES, POSTGRESQL, REDIS, Influx, Postgresql, Redis, Victoria
from chaos.world import Service
from openmanager import suite
from openmanager.api.status.v1 import status_pb2

CLASSES = {REDIS: Redis, POSTGRESQL: Postgresql, "victoriametrics": Victoria, "influxdb": Influx}
# Made by chaos/faults.py itself.
OWN = {"trouble", "absent at start", "clock jumped", *history_files.CHANGES}
# What happens to every store; the rest is for those that can have it.
EVERY_STORE = {"absent at start", "killed", "stopped", "restarted empty", "restarted old", "disk full", "flapping"}
CELLS = cells()


def test_every_cell_has_a_name_of_its_own():
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_cell_is_a_fault_of_a_part_with_a_promise(cell: Cell):
    for part in cell.parts:
        kind = CLASSES.get(part, Service)
        assert part in {*CLASSES, *suite.NAMES}
        assert part not in ENGINES or (part == cell.engine and part in cell.needs)
        if cell.fault not in OWN:
            arguments = inspect.signature(getattr(kind, cell.fault.replace(" ", "_"))).parameters
            assert set(cell.options) <= set(arguments)
    names = {name.removeprefix("STORAGE_STATE_") for name in dict(status_pb2.StorageState.items())}
    assert set(cell.states) <= names
    assert set(cell.reads) <= {HOT, KEPT, PAST}
    assert cell.small_disks == ("disk full" in cell.fault)


def test_every_store_meets_every_fault_that_all_can_have():
    for store in CLASSES:
        met = {cell.fault for cell in CELLS if cell.parts == (store,)}
        assert met >= EVERY_STORE, store


def test_every_service_is_killed_and_stopped():
    for service in suite.NAMES:
        met = {cell.fault for cell in CELLS if cell.parts == (service,)}
        assert {"killed", "stopped"} <= met, service


def test_a_store_that_is_away_costs_no_write():
    for cell in CELLS:
        if set(cell.parts) <= set(CLASSES) and cell.fault != "absent at start":
            assert cell.writes, cell.name


def test_the_short_run_has_cells_of_every_kind_of_part():
    short = [cell for cell in CELLS if cell.smoke]
    assert len(short) == 20
    assert {REDIS, POSTGRESQL, "victoriametrics", "timeseries"} <= {part for cell in short for part in cell.parts}
