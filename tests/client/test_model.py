"""What the client's own types promise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from openmanager.api.frame.v1 import frame_pb2
from openmanager.api.metadata.v1 import interaction_pb2
from openmanager.api.server.v1 import server_pb2
from openmanager.api.simulator.v1 import simulator_pb2
from openmanager.api.status.v1 import status_pb2
from openmanager.api.timeseries.v1 import timeseries_pb2
from openmanager.client import enumeration, rpc
from openmanager.runtime.module import service_descriptor


@pytest.mark.parametrize(
    ("kind", "wire", "prefix"),
    [
        (enumeration.ServerState, server_pb2.ServerState, "SERVER_STATE_"),
        (enumeration.StorageState, status_pb2.StorageState, "STORAGE_STATE_"),
        (enumeration.WatchKind, server_pb2.WatchKind, "WATCH_KIND_"),
        (enumeration.Aggregation, timeseries_pb2.Aggregation, "AGGREGATION_"),
        (enumeration.GroupBy, timeseries_pb2.GroupBy, "GROUP_BY_"),
        (enumeration.FaultPattern, simulator_pb2.FaultPattern, "FAULT_PATTERN_"),
        (enumeration.InteractionGroupBy, interaction_pb2.InteractionGroupBy, "INTERACTION_GROUP_BY_"),
        (enumeration.InteractionFormat, interaction_pb2.InteractionFormat, "INTERACTION_FORMAT_"),
        (enumeration.Redaction, interaction_pb2.Redaction, "REDACTION_"),
        (enumeration.MetricKind, frame_pb2.MetricKind, "METRIC_KIND_"),
    ],
)
def test_an_enumeration_has_every_value_of_its_contract(kind, wire, prefix):
    named = {name.removeprefix(prefix) for name in wire.keys()} - {"UNSPECIFIED"}  # noqa: SIM118  (no mapping)
    assert {each.value for each in kind} - {"UNSPECIFIED"} == named


@pytest.mark.parametrize("method", rpc.METHODS, ids=lambda method: method.path)
def test_a_method_is_one_of_the_contract_with_its_reply(method):
    found = service_descriptor(method.service).methods_by_name[method.name]
    assert found.output_type is method.reply.DESCRIPTOR


def test_importing_the_package_costs_nothing_and_offers_the_client():
    script = (
        "import sys, openmanager\n"
        "assert not {'grpc', 'numpy', 'google.protobuf'} & set(sys.modules)\n"
        "from openmanager import Client\n"
        "assert Client.__module__ == 'openmanager.client.client'\n"
        "assert not hasattr(openmanager, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
