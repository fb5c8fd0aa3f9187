"""deploy/k8s, without a cluster: rendered by Kustomize, and held against Kubernetes' schemas and the program itself."""

from __future__ import annotations

import asyncio
import base64
import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import clean_environment, free_ports
from deploy.composed import ROOT, SERVICES, moved
from deploy.manifests import (
    ANYBODY,
    FOLDER,
    OVERLAYS,
    SECRETS,
    TLS,
    Document,
    Pod,
    edges,
    faults,
    named,
    outward,
    overlay,
    pod,
    pods,
    render,
)
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.engines import open_engine

from deploy import manifests
from openmanager import authority, certificate, config, suite
from openmanager.cli.main import COMMANDS
from openmanager.cli.serve import serve
from openmanager.errors import OpenManagerError
from openmanager.restic import BackupConfig
from openmanager.runtime.module import MeshConfig, Runtime, ServerConfig
from openmanager.runtime.peer import Peer
from openmanager.runtime.server import ANSWER_SECONDS, CLOSE_SECONDS, DRAIN_SECONDS, check_address, is_local
from openmanager.spiffe import identity_uri, server_name

HEALTH = 50058
TOP = "/etc/openmanager"


def placed(documents: list[Document], each: Pod, folder: Path) -> dict[str, str]:
    """Return the environment of a pod, with a file of this machine for each of a Secret."""
    for path, (secret, key) in each.secrets().items():
        file = folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text({"database_url": "postgresql://o:p@h/d", "redis_url": "redis://:p@h:1/0"}.get(key, secret * 32))
    return moved(manifests.environment(documents, each), TOP, folder / TOP.removeprefix("/"))


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
        assert manifests.selects({"matchLabels": found["spec"]["selector"]}, pod(documents, other).labels)
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


# --- who calls whom -----------------------------------------------------------------------------------------------


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
        (name, called, 50056 if called == suite.GATEWAY else int(address(called).rpartition(":")[2]))
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


# --- certificates and secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", suite.PROGRAMS)
def test_a_certificate_of_cert_manager_holds_what_one_of_ours_does(service):
    found = named(overlay("production"), "Certificate", service)["spec"]
    now = certificate.utc_now()
    made = certificate.issue(
        certificate.new_authority(now=now), service, hosts=(), now=now, lifetime=timedelta(days=90)
    ).certificate
    assert found["secretName"] == f"{service}-tls"
    assert found["uris"] == [identity_uri(service)] == [identity_uri(each) for each in certificate.identities(made)]
    assert set(certificate.hosts_of(made)) | {server_name(service)} <= set(found["dnsNames"])
    assert set(found["usages"]) == {"digital signature", "client auth", "server auth"}
    assert found["privateKey"]["encoding"] == "PKCS8"
    hours = {key: int(found[key].removesuffix("h")) for key in ("duration", "renewBefore")}
    assert hours["renewBefore"] * timedelta(hours=1) > certificate.NOTICE
    assert hours["duration"] >= 2 * hours["renewBefore"]


@pytest.mark.parametrize("service", ["gateway", "console"])
def test_clients_find_the_name_that_they_call_in_the_certificate(service):
    found = named(overlay("production"), "Certificate", service)["spec"]
    assert {service, f"{service}.openmanager.svc", f"{service}.example.net", "localhost"} <= set(found["dnsNames"])
    assert found["ipAddresses"] == ["127.0.0.1"]  # of a port that is forwarded


def test_each_secret_is_known_only_to_those_who_need_it():
    holders: dict[tuple[str, str], set[str]] = {}
    for name in ("dev", "production"):
        for each in pods(overlay(name)):
            for secret, key in each.secrets().values():
                holders.setdefault((secret, key), set()).add(each.name)
    certificates = {(f"{name}-tls", key): {name} for name in suite.PROGRAMS for key in TLS}
    assert {each: holders.pop(each) for each in certificates} == certificates
    assert holders == {
        ("mesh-key", "mesh_key"): set(suite.NAMES),
        ("metadata", "database_url"): {"metadata", "backup", "restore"},
        ("metadata", "identity_key"): {"metadata"},
        ("metadata", "audit_key"): {"metadata"},
        ("cache", "redis_url"): {"cache"},
        ("influxdb", "influxdb_token"): {"influxdb", "timeseries"},
        ("influxdb", "influxdb_password"): {"influxdb"},
        ("postgres", "postgres_password"): {"postgres"},
        ("redis", "redis_password"): {"redis"},
        **{("backup", key): {"backup", "restore"} for key in SECRETS["backup"]},
    }


def secrets(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script that prints Secrets, in a folder."""
    command = ["sh", str(ROOT / "scripts/k8s-secrets.sh")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=50)


def test_the_script_prints_every_secret_that_pods_mount(tmp_path):
    for name, key in ((name, key) for name, keys in SECRETS.items() for key in keys - TLS):
        (tmp_path / "secrets").mkdir(exist_ok=True)
        (tmp_path / "secrets" / key).write_text(f"{name}/{key}")
    for name in (*suite.PROGRAMS, "ca"):
        (tmp_path / "certs" / name).mkdir(parents=True)
        for file in ("ca.pem", "certificate.pem", "key.pem"):
            (tmp_path / "certs" / name / file).write_text(f"{name}/{file}")
    done = secrets(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = [each for each in yaml.safe_load_all(done.stdout) if each]
    assert {each["metadata"]["name"]: set(each["data"]) for each in printed} == SECRETS
    (mesh,) = [each for each in printed if each["metadata"]["name"] == "mesh-key"]
    assert base64.b64decode(mesh["data"]["mesh_key"]) == b"mesh-key/mesh_key"
    assert {each["metadata"]["namespace"] for each in printed} == {"openmanager"}
    assert [fault for version in manifests.VERSIONS for fault in manifests.schema_faults(printed, version)] == []


def test_the_script_says_which_file_of_a_secret_is_missing(tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/database_url").write_text("postgresql://")
    done = secrets(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the Secret metadata also needs: secrets/identity_key secrets/audit_key\n"


@pytest.fixture
def cache(tmp_path) -> Iterator[dict[str, str]]:
    """The cache service as its pod has it, with the Secrets that the script prints; where it listens."""
    subprocess.run(
        ["sh", str(ROOT / "scripts/env.sh")], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True, timeout=30
    )
    authority.make(tmp_path / "certs", now=certificate.utc_now())
    signer = authority.Authority(tmp_path / "certs")
    signer.issue("cache", ("localhost",), now=certificate.utc_now(), lifetime=timedelta(days=1))
    kept = {each["metadata"]["name"]: each["data"] for each in yaml.safe_load_all(secrets(tmp_path).stdout) if each}
    documents = overlay("dev")
    found = pod(documents, "cache")
    for path, (secret, key) in found.secrets().items():
        file = tmp_path / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(kept[secret][key]))
        file.chmod(0o440)
    base = free_ports(2)
    listens = {
        "OPENMANAGER_SERVER_LISTEN": f"127.0.0.1:{base}",
        "OPENMANAGER_SERVER_HEALTH_LISTEN": f"127.0.0.1:{base + 1}",
    }
    told = moved(manifests.environment(documents, found), TOP, tmp_path / TOP.removeprefix("/"))
    process = subprocess.Popen(
        [sys.executable, "-m", "openmanager.cli", *found.container["args"]],
        cwd=tmp_path,
        env={**clean_environment(), **told, **listens},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield listens
    finally:
        process.terminate()
        assert process.wait(timeout=found.spec["terminationGracePeriodSeconds"]) == 0


async def test_a_pod_starts_from_what_the_script_prints_and_answers_its_probe(cache):
    async with Peer("cache", cache["OPENMANAGER_SERVER_HEALTH_LISTEN"]) as probe, asyncio.timeout(50):
        while not await _serves(probe):
            await asyncio.sleep(0.05)
    async with Peer("cache", cache["OPENMANAGER_SERVER_LISTEN"]) as plain:
        assert not await _serves(plain)


async def _serves(peer: Peer) -> bool:
    """Ask as kubelet does."""
    try:
        return await peer.unary_bytes("/grpc.health.v1.Health/Check", b"", seconds=2) == b"\x08\x01"
    except OpenManagerError:
        return False


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
        written = manifests.environment(documents, pod(documents, name))[variable]
        read = manifests.environment(documents, backup)[variable]
        (top,) = [
            each["mountPath"] for each in pod(documents, name).container["volumeMounts"] if each["name"] == "data"
        ]
        assert claims[name] == f"data-{name}-0"
        assert Path(read).relative_to(mounts[name]) == Path(written).relative_to(top)
    beside = {"matchLabels": {manifests.NAME: "timeseries"}}
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
