"""The NetworkPolicies of deploy/k8s: they allow the calls that services make, and no others."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from deploy.manifests import HEALTH, OVERLAYS, named, overlay
from deploy.network_policies import ANYBODY, edges, outward

from openmanager import config, suite
from openmanager.runtime.module import MeshConfig, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Noting(Runtime):
    """Notes whom a service calls."""

    called: set[str] = field(default_factory=set)

    def peer(self, name: str, *services: str, **options: Any) -> Any:
        self.called.add(name)
        return Runtime.peer(self, name, *services, **options)


async def callees(name: str, folder: Path) -> set[str]:
    """Return whom a service calls, when it is opened with nobody there."""
    environ = {
        "OPENMANAGER_TIMESERIES_DATA_DIR": str(folder / "timeseries"),
        "OPENMANAGER_ANALYSIS_DATA_DIR": str(folder / "analysis"),
        "OPENMANAGER_SIMULATOR_AUTOSTART": "false",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }
    loaded = config.load(suite.sections(), environ=environ)
    runtime = Noting(configuration=loaded, name=name, address="127.0.0.1:0", version="0")
    async with suite.load_module(name).open(runtime) as service:
        audits = service.auditor is None
    return runtime.called | ({"metadata"} if audits else set())


async def test_policies_allow_exactly_the_calls_that_services_make(tmp_path):
    mesh = {
        (name, called, 50056 if called == suite.GATEWAY else int(getattr(MeshConfig(), called).rpartition(":")[2]))
        for name in suite.NAMES
        for called in await callees(name, tmp_path)
    }
    mesh |= {("console", "gateway", 50050)}
    # The two doors: whoever comes needs credentials, and finds them encrypted.
    doors = {("gateway", 50050), ("console", 50080)}
    public = {(ANYBODY, *door) for door in doors}
    stores = {("metadata", "postgres", 5432), ("cache", "redis", 6379), ("timeseries", "influxdb", 8086)}
    engine = {
        ("timeseries", "vminsert", 8480),
        ("timeseries", "vmselect", 8481),
        ("vminsert", "vmstorage", 8400),
        ("vmselect", "vmstorage", 8401),
    }
    assert edges(overlay("dev")) == mesh | public | stores
    assert edges(overlay("production")) == mesh | public
    assert edges(overlay("victoriametrics-cluster")) == mesh | public | engine
    assert edges(overlay("edge")) == mesh | public | {("edge", "gateway", 50056), (ANYBODY, "edge", 50443)}
    assert edges(overlay("shards")) == mesh | public


def test_a_rule_that_is_missing_on_either_side_or_is_too_wide_is_seen():
    documents = copy.deepcopy(overlay("production"))
    before = edges(documents)
    removed = named(documents, "NetworkPolicy", "cache")["spec"]["egress"].pop(0)
    assert before - edges(documents) == {("cache", "timeseries", 50053)}
    named(documents, "NetworkPolicy", "cache")["spec"]["egress"].append(removed)
    del named(documents, "NetworkPolicy", "simulator")["spec"]["ingress"][0]["ports"]
    assert edges(documents) == before  # who calls may still call one port only
    named(documents, "NetworkPolicy", "gateway")["spec"]["egress"].append({"to": [{"podSelector": {}}]})
    opened = {("gateway", "simulator", HEALTH), ("gateway", "console", 50080), ("gateway", "gateway", 50050)}
    assert edges(documents) - before == opened


def test_what_leaves_the_cluster_is_listed():
    documents = overlay("production")
    assert outward(overlay("dev")) == {("analysis", "0.0.0.0/0", 443), ("analysis", "::/0", 443)}
    storage = {(name, block, 443) for name in ("analysis", "backup", "restore") for block in ("0.0.0.0/0", "::/0")}
    database = {(name, "192.0.2.0/28", 5432) for name in ("metadata", "backup", "restore")}
    assert outward(documents) == storage | database | {("cache", "192.0.2.16/28", 6379)}
    for name in ("analysis", "backup"):
        (rule,) = [each for each in named(documents, "NetworkPolicy", name)["spec"]["egress"] if "ipBlock" in str(each)]
        hidden = {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"}
        assert hidden <= {cidr for peer in rule["to"] for cidr in peer["ipBlock"]["except"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_everything_is_denied_that_no_policy_allows_and_names_are_resolved(name):
    documents = overlay(name)
    assert named(documents, "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    ports = named(documents, "NetworkPolicy", "dns")["spec"]["egress"][0]["ports"]
    assert {(each["port"], each["protocol"]) for each in ports} == {(53, "UDP"), (53, "TCP")}
