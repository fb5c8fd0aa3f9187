"""deploy/k8s, without a cluster: rendered by Kustomize, and held against Kubernetes' schemas and the program itself."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from deploy.composed import EXAMPLE, ROOT, SERVICES, moved
from deploy.manifest_faults import faults
from deploy.manifests import (
    FOLDER,
    HEALTH,
    INDEX,
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
from openmanager.cli.reshard import reshard
from openmanager.cli.serve import serve
from openmanager.restic import BackupConfig
from openmanager.runtime.module import MeshConfig, ServerConfig
from openmanager.runtime.server import ANSWER_SECONDS, CLOSE_SECONDS, DRAIN_SECONDS, check_address, is_local
from openmanager.shard import SHARDED
from openmanager.spiffe import identity_uri


def placed(documents: list[Document], each: Pod, folder: Path, ordinal: int = 0) -> dict[str, str]:
    """Return the environment of a pod, with a file of this machine for each of a Secret."""
    for path, (secret, key) in each.secrets().items():
        file = folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text({"database_url": "postgresql://o:p@h/d", "redis_url": "redis://:p@h:1/0"}.get(key, secret * 32))
    return moved(environment(documents, each, ordinal), TOP, folder / TOP.removeprefix("/"))


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
        places = [place.rpartition(":") for place in mesh.addresses(other)]
        found = named(documents, "Service", other)
        assert {int(port) for *_, port in places} <= {each["port"] for each in found["spec"]["ports"]}
        owner = pod(documents, other).owner["spec"]
        shards = [f"{other}-{ordinal}.{owner.get('serviceName')}" for ordinal in range(owner.get("replicas", 1))]
        assert [host for host, *_ in places] == (shards if len(shards) > 1 else [other])
        assert selects({"matchLabels": found["spec"]["selector"]}, pod(documents, other).labels)
        # Nothing stands between: a client sees every gateway, and the one owner of a shard as it comes and goes.
        assert found["spec"]["clusterIP"] == "None"
        assert found["spec"].get("publishNotReadyAddresses", False) == (other != suite.GATEWAY)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_owns_data_is_one_and_keeps_it_in_a_volume(name):
    documents = overlay(name)
    for service in ("timeseries", "analysis", "cache", "metadata"):
        owner = pod(documents, service).owner
        count = 2 if name == "shards" and service in SHARDED else 1
        assert (owner["kind"], owner["spec"]["replicas"]) == ("StatefulSet", count)
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
    for each, index in ((backup, {INDEX: "0"}), (pod(documents, "analysis"), {})):
        term = beside(each)
        assert term["topologyKey"] == "kubernetes.io/hostname"
        assert term["labelSelector"] == {"matchLabels": {NAME: "timeseries", **index}}
    assert backup.owner["spec"]["concurrencyPolicy"] == "Forbid"


def beside(each: Pod) -> Document:
    """Return beside whom a pod has to be."""
    (term,) = each.spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return dict(term)


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
    assert engines == dict.fromkeys(OVERLAYS) | {"dev": "influxdb", "victoriametrics-cluster": "victoriametrics"}


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


# --- shards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SHARDED)
def test_the_ordinal_of_a_pod_is_its_shard(service, tmp_path):
    documents = overlay("shards")
    found = pod(documents, service)
    for ordinal in range(2):
        loaded = config.load(suite.sections(), environ=placed(documents, found, tmp_path, ordinal))
        mesh = loaded.section(MeshConfig)
        assert (mesh.shard_index, mesh.shard_count) == (ordinal, found.owner["spec"]["replicas"])
        assert mesh.own_address(service).startswith(f"{service}-{ordinal}.{service}:")
    for other in {*suite.NAMES} - {*SHARDED}:
        assert (
            config.load(suite.sections(), environ=placed(documents, pod(documents, other), tmp_path))
            .section(MeshConfig)
            .shard_count
            == 2
        )


def test_every_shard_has_a_backup_that_runs_where_its_volumes_are():
    documents = overlay("shards")
    jobs = [each for each in pods(documents) if each.program == "backup"]
    assert beside(pod(documents, "analysis"))["matchLabelKeys"] == [INDEX]
    stored = {}
    for job in jobs:
        ordinal = beside(job)["labelSelector"]["matchLabels"][INDEX]
        claims = [each["persistentVolumeClaim"]["claimName"] for each in job.spec["volumes"][:2]]
        assert claims == [f"data-timeseries-{ordinal}", f"data-analysis-{ordinal}"]
        stored[ordinal] = environment(documents, job)["OPENMANAGER_BACKUP_REPOSITORY"]
    assert set(stored) == {"0", "1"}
    restored = {each.name: environment(documents, each) for each in pods(documents) if each.program == "restore"}
    assert [stored["0"], stored["1"]] == [
        restored[name]["OPENMANAGER_BACKUP_REPOSITORY"] for name in ("restore", "restore-1")
    ]
    assert len(set(stored.values())) == len({each.owner["spec"]["schedule"] for each in jobs}) == 2


def test_history_is_split_from_where_one_shard_has_it_to_where_two_look_for_it():
    before, documents, made = overlay("production"), overlay("shards"), render(FOLDER / "reshard")
    assert faults([*before, *made]) == []
    job = pod(made, "reshard")
    command, *arguments = job.container["args"]
    given = reshard.make_context(command, arguments).params
    claims = {each["name"]: each.get("persistentVolumeClaim", {}).get("claimName") for each in job.spec["volumes"]}

    def places(folders: tuple[Path, ...]) -> list[tuple[str, str]]:
        return [(claims[volume], path) for volume, path in (job.in_volume(str(each)) for each in folders)]

    def place(of: list[Document], ordinal: int) -> tuple[str, str]:
        served = pod(of, "timeseries")
        volume, path = served.in_volume(environment(of, served)["OPENMANAGER_TIMESERIES_DATA_DIR"])
        return f"{volume}-timeseries-{ordinal}", path

    assert places(given["sources"]) == [place(before, 0)]
    assert places(given["targets"]) == [place(documents, 0), place(documents, 1)]
    assert job.container["image"] == pod(documents, "timeseries").container["image"]
    (claim,) = pod(documents, "timeseries").claims()
    assert named(made, "PersistentVolumeClaim", "data-timeseries-1")["spec"] == claim["spec"]


@pytest.mark.parametrize("program", ["backup", "restore"])
def test_what_stores_and_restores_a_shard_finds_its_folders(program: str):
    documents = overlay("shards")
    found = [each for each in pods(documents) if each.program == program]
    assert len(found) == 2
    for service in ("timeseries", "analysis"):
        served, variable = pod(documents, service), f"OPENMANAGER_{service.upper()}_DATA_DIR"
        written = served.in_volume(environment(documents, served)[variable])[1]
        for each in found:
            read = environment(documents, each).get(variable) or f"{each.container['args'][-1]}/{service}"
            assert each.in_volume(read) == (service, written)


# --- the edge -----------------------------------------------------------------------------------------------------


def test_the_edge_is_told_what_its_container_of_compose_is():
    documents = overlay("edge")
    edge, compose = pod(documents, "edge"), SERVICES["edge"]
    (volume,) = [each["configMap"]["name"] for each in edge.spec["volumes"] if "configMap" in each]
    told = named(documents, "ConfigMap", volume)["data"]
    assert told == {name: (ROOT / "deploy/envoy" / name).read_text() for name in told}
    mounted = {each["mountPath"] for each in edge.container["volumeMounts"]} | set(edge.secrets())
    named_files = set(re.findall(r"(/etc/(?:openmanager|envoy)/[\w/]+\.\w+)", "".join(told.values())))
    assert [file for file in named_files if not {file, str(Path(file).parent)} & mounted] == []
    assert [*edge.container["command"], *edge.container["args"]] == compose["command"]
    assert edge.container["image"] == EXAMPLE["ENVOY_IMAGE"]
    kind, *check = compose["healthcheck"]["test"]
    assert kind == "CMD"
    assert {tuple(edge.container[probe]["exec"]["command"]) for probe in ("startupProbe", "readinessProbe")} == {
        tuple(check)
    }
    limits = compose["deploy"]["resources"]["limits"]
    given = edge.container["resources"]["limits"]
    assert (float(given["cpu"]), given["memory"].replace("i", "")) == (float(limits["cpus"]), limits["memory"])


def test_the_edge_has_the_contracts_and_keys_of_the_version_that_it_stands_before():
    documents = overlay("edge")
    edge = pod(documents, "edge")
    (files,) = edge.spec["initContainers"]
    assert files["image"] == pod(documents, "gateway").container["image"]
    assert [files["args"]] == [SERVICES["edge-files"]["command"]]
    (variable,) = files["env"]
    assert edge.secrets()[variable["value"]] == ("metadata", "identity_key")
    assert variable["name"] in SERVICES["edge-files"]["environment"]
    seen = {each["name"] for each in edge.container["volumeMounts"]}
    assert seen & {each["name"] for each in files["volumeMounts"]} == {"files", "tmp"}  # not the key


def test_the_edge_is_believed_whose_call_it_passes_on(tmp_path):
    documents = overlay("edge")
    gateway = pod(documents, "gateway")
    server = config.load(suite.sections(), environ=placed(documents, gateway, tmp_path)).section(ServerConfig)
    assert server.trusted_proxies == suite.EDGE
    (identity,) = named(documents, "Certificate", "edge")["spec"]["uris"]
    assert identity == identity_uri(suite.EDGE)
    envoy = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())["static_resources"]
    (cluster,), (listener,) = envoy["clusters"], envoy["listeners"]
    place = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert place["address"] in {each["metadata"]["name"] for each in documents if each["kind"] == "Service"}
    assert f":{place['port_value']}" in server.tls_listen
    host, _ = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    names = set(named(documents, "Certificate", "edge")["spec"]["dnsNames"])
    assert names - {"edge.openmanager.internal"} <= set(host["domains"])
    service = named(documents, "Service", "edge")["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == (
        "LoadBalancer",
        "Local",
    )  # or all came from the nodes


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
