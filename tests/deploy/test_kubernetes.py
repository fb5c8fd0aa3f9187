"""deploy/k8s, without a cluster: rendered by Kustomize, and held against Kubernetes' schemas and the program itself."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from deploy.composed import ROOT, SERVICES, moved
from deploy.manifest_faults import faults
from deploy.manifests import (
    FOLDER,
    HEALTH,
    NAME,
    OVERLAYS,
    TOP,
    Document,
    Pod,
    environment,
    named,
    overlay,
    pod,
    pods,
    render,
    selects,
)
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.engines import open_engine

from openmanager import config, suite
from openmanager.cli.main import COMMANDS
from openmanager.cli.serve import serve
from openmanager.restic import BackupConfig
from openmanager.runtime.module import MeshConfig, ServerConfig
from openmanager.runtime.server import ANSWER_SECONDS, CLOSE_SECONDS, DRAIN_SECONDS, check_address, is_local


def placed(documents: list[Document], each: Pod, folder: Path) -> dict[str, str]:
    """Return the environment of a pod, with a file of this machine for each of a Secret."""
    for path, (secret, key) in each.secrets().items():
        file = folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text({"database_url": "postgresql://o:p@h/d", "redis_url": "redis://:p@h:1/0"}.get(key, secret * 32))
    return moved(environment(documents, each), TOP, folder / TOP.removeprefix("/"))


# --- the objects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_no_fault(name):
    assert faults(overlay(name)) == []


def test_influxdb_elsewhere_may_be_the_engine_of_production(tmp_path):
    written = {
        "resources": [os.path.relpath(FOLDER / "overlays/production", tmp_path)],
        "components": [os.path.relpath(FOLDER / "components/influxdb", tmp_path)],
        "configMapGenerator": [
            {"name": "settings", "behavior": "merge", "literals": ["INFLUXDB_URL=https://influxdb.example.net"]}
        ],
        "namespace": "openmanager",
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(written))
    documents = render(tmp_path)
    assert faults(documents) == []
    timeseries = pod(documents, "timeseries")
    loaded = config.load(suite.sections(), environ=placed(documents, timeseries, tmp_path))
    engine = open_engine(loaded.section(TimeseriesConfig))
    assert engine is not None
    assert engine.name == "influxdb"


# --- our services -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_service_runs_from_the_one_image(name):
    found = [each for each in pods(overlay(name)) if each.program]
    assert {each.program for each in found} - {"backup", "restore"} == set(suite.PROGRAMS)
    assert len({each.container["image"] for each in found}) == 1
    for each in found:
        command, *arguments = each.container["args"]
        assert command in COMMANDS
        if command == "serve":
            assert serve.make_context(command, arguments).params["service"] == each.name
    users = {(each.spec["securityContext"]["runAsUser"], each.spec["securityContext"]["fsGroup"]) for each in found}
    assert [f"{user}:{group}" for user, group in users] == re.findall(
        r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("service", suite.PROGRAMS)
def test_a_service_loads_its_configuration_and_may_be_served(name, service, tmp_path):
    documents = overlay(name)
    each = pod(documents, service)
    loaded = config.load(suite.sections(), environ=placed(documents, each, tmp_path))
    server, port = loaded.section(ServerConfig), address(service).rpartition(":")[2]
    check_address(server.listen, allow_insecure=False, encrypted=bool(server.tls_certificate))
    assert server.listen == f"0.0.0.0:{port}"
    assert int(port) in each.ports.values()
    assert {
        str(Path(path).relative_to(tmp_path)) for path in (server.tls_ca, server.tls_certificate, server.tls_key)
    } <= {path.removeprefix("/") for path, (secret, _) in each.secrets().items() if secret == f"{service}-tls"}
    if service != suite.CONSOLE:
        assert not is_local(server)
        assert server.health_listen == f"0.0.0.0:{HEALTH}"
        asked = {each.container[probe]["grpc"]["port"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
        assert asked == {HEALTH} == {each.ports["health"]}


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("service", suite.PROGRAMS)
def test_a_service_finds_the_others(name, service, tmp_path):
    documents = overlay(name)
    loaded = config.load(suite.sections(), environ=placed(documents, pod(documents, service), tmp_path))
    mesh = loaded.section(MeshConfig)
    for other in suite.NAMES if service != suite.CONSOLE else (suite.GATEWAY,):
        host, _, port = getattr(mesh, other).rpartition(":")
        found = named(documents, "Service", host)
        assert int(port) in {each["port"] for each in found["spec"]["ports"]}
        assert selects({"matchLabels": found["spec"]["selector"]}, pod(documents, other).labels)
        # Nothing stands between: a client sees every gateway, and the one owner of a shard as it comes and goes.
        assert found["spec"]["clusterIP"] == "None"
        assert found["spec"].get("publishNotReadyAddresses", False) == (other != suite.GATEWAY)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_owns_data_is_one_and_keeps_it_in_a_volume(name):
    documents = overlay(name)
    for service in ("timeseries", "analysis", "cache", "metadata"):
        owner = pod(documents, service).owner
        assert (owner["kind"], owner["spec"]["replicas"]) == ("StatefulSet", 1)
    for service in ("timeseries", "analysis"):
        (claim,) = pod(documents, service).claims()
        # Not ReadWriteOncePod: a backup mounts it too.
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        kept = pod(documents, service).owner["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert set(kept.values()) == {"Retain"}
    assert pod(documents, "simulator").owner["spec"]["strategy"] == {"type": "Recreate"}


def address(service: str) -> str:
    return str(getattr(MeshConfig(), service))


def test_a_gateway_that_ends_is_no_longer_sent_to_and_has_the_time_to_end():
    documents = overlay("production")
    gateway = pod(documents, "gateway")
    server = ServerConfig()
    ends = timedelta(seconds=DRAIN_SECONDS + CLOSE_SECONDS) + server.grace
    sleep = gateway.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert server.grace.total_seconds() > ANSWER_SECONDS
    assert timedelta(seconds=gateway.spec["terminationGracePeriodSeconds"] - sleep) >= 2 * ends
    # By default an answer of the cluster's DNS holds for 5 s, and a client asks it every 2 s at most.
    assert sleep >= 5 + 2
    assert "replicas" not in gateway.owner["spec"]  # or every `apply` would undo what the autoscaler did
    scaled = named(documents, "HorizontalPodAutoscaler", "gateway")["spec"]
    assert scaled["minReplicas"] >= 2
    budgets = [each for each in documents if each["kind"] == "PodDisruptionBudget"]
    assert {each["metadata"]["name"] for each in budgets} == {*suite.NAMES} - {"simulator"}
    assert {each["spec"]["maxUnavailable"] for each in budgets} == {1}


@pytest.mark.parametrize("name", ["timeseries", "analysis", "metadata", "cache", "gateway", "simulator", "console"])
def test_a_pod_may_take_as_much_as_a_container_of_compose(name):
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    found = pod(overlay("dev"), name).container["resources"]["limits"]
    assert (float(found["cpu"]), f"{found['memory']}".replace("i", "")) == (float(limits["cpus"]), limits["memory"])


# --- history, backup, engines -------------------------------------------------------------------------------------


def test_a_backup_finds_what_services_write_and_is_where_their_volumes_are(tmp_path):
    documents = overlay("production")
    backup = pod(documents, "backup")
    loaded = config.load(suite.sections(), environ=placed(documents, backup, tmp_path))
    assert loaded.section(BackupConfig).repository.startswith("s3:https://")
    assert loaded.section(BackupConfig).password.reveal()
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in backup.spec["volumes"][:2]}
    mounts = {each["name"]: each["mountPath"] for each in backup.container["volumeMounts"]}
    for name in ("timeseries", "analysis"):
        variable = f"OPENMANAGER_{name.upper()}_DATA_DIR"
        written = environment(documents, pod(documents, name))[variable]
        read = environment(documents, backup)[variable]
        (top,) = [
            each["mountPath"] for each in pod(documents, name).container["volumeMounts"] if each["name"] == "data"
        ]
        assert claims[name] == f"data-{name}-0"
        assert Path(read).relative_to(mounts[name]) == Path(written).relative_to(top)
    beside = {"matchLabels": {NAME: "timeseries"}}
    for each in (backup, pod(documents, "analysis")):
        (term,) = each.spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert (term["topologyKey"], term["labelSelector"]) == ("kubernetes.io/hostname", beside)
    assert backup.owner["spec"]["concurrencyPolicy"] == "Forbid"


def test_a_restore_writes_where_services_read_and_only_when_it_is_asked_for():
    documents = overlay("production")
    restore = pod(documents, "restore")
    assert restore.owner["spec"]["suspend"] is True
    target = restore.container["args"][-1]
    mounts = {each["name"]: each for each in restore.container["volumeMounts"]}
    assert mounts["timeseries"]["mountPath"] == target
    assert (mounts["analysis"]["mountPath"], mounts["analysis"]["subPath"]) == (f"{target}/analysis", "analysis")
    written = yaml.safe_load_all((FOLDER / "restore/claims.yaml").read_text())
    expected = {
        f"data-{name}-0": claim["spec"]
        for name in ("timeseries", "analysis")
        for claim in pod(documents, name).claims()
    }
    assert {each["metadata"]["name"]: each["spec"] for each in written} == expected


def test_history_is_kept_in_the_engine_that_the_overlay_brings(tmp_path):
    engines = {}
    for name in OVERLAYS:
        documents = overlay(name)
        loaded = config.load(suite.sections(), environ=placed(documents, pod(documents, "timeseries"), tmp_path / name))
        found = open_engine(loaded.section(TimeseriesConfig))
        engines[name] = found and found.name
    assert engines == {"dev": "influxdb", "production": None, "victoriametrics-cluster": "victoriametrics"}


def test_a_victoriametrics_cluster_keeps_what_the_program_needs_of_it():
    documents = overlay("victoriametrics-cluster")
    flags = {
        name: dict(flag.removeprefix("-").split("=", 1) for flag in pod(documents, name).container["args"])
        for name in ("vmstorage", "vminsert", "vmselect")
    }
    assert {flags[name]["dedup.minScrapeInterval"] for name in ("vmstorage", "vmselect")} == {"1ms"}
    assert int(flags["vminsert"]["maxLabelsPerTimeseries"]) >= 40
    assert int(flags["vmstorage"]["retentionPeriod"].removesuffix("d")) > TimeseriesConfig().raw_retention.days
    count = pod(documents, "vmstorage").owner["spec"]["replicas"]
    copies = {int(flags[name]["replicationFactor"]) for name in ("vminsert", "vmselect")}
    assert copies == {2}
    assert count >= 2 * 2 - 1  # or writes wait while one is away
    ports = pod(documents, "vmstorage").ports
    for name, port in (("vminsert", "insert"), ("vmselect", "select")):
        hosts = [f"vmstorage-{ordinal}.vmstorage:{ports[port]}" for ordinal in range(count)]
        assert flags[name]["storageNode"].split(",") == hosts


PAGE = (ROOT / "docs/kubernetes.md").read_text()


def test_the_overlay_that_the_page_shows_has_no_fault(tmp_path):
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    production = os.path.relpath(FOLDER / "overlays/production", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(shown.replace("../production]", f"{production}]"))
    documents = render(tmp_path)
    assert faults(documents) == []
    text = yaml.safe_dump_all(documents)
    assert "mine.example" in text
    assert "registry.example.net" not in text
    assert "192.0.2." not in text


def test_what_the_page_names_is_there():
    paths = set(re.findall(r"(?<![\w/])(?:deploy|scripts)/[\w./-]*\w", PAGE)) - {
        "deploy/k8s/overlays/mine/kustomization.yaml"
    }
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    there = {(each["kind"].lower(), each["metadata"]["name"]) for name in OVERLAYS for each in overlay(name)}
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    meant = re.findall(r"\b(statefulset|deployment|cronjob|service)[/ ]([a-z]+)", commands)
    assert meant != []
    assert set(meant) <= there
    subprocess.run(["sh", "-n"], input=commands, text=True, check=True, timeout=20)
