"""Certificates and Secrets of deploy/k8s, and a service that starts from them."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from conftest import clean_environment, free_ports, wait_until
from deploy.composed import ROOT, moved
from deploy.manifest_faults import VERSIONS, schema_faults
from deploy.manifests import SECRETS, TLS, TOP, environment, named, overlay, pod, pods

from openmanager import authority, certificate, suite
from openmanager.errors import OpenManagerError
from openmanager.runtime.peer import Peer
from openmanager.spiffe import identity_uri, server_name


@pytest.mark.parametrize("service", suite.CERTIFIED)
def test_a_certificate_of_cert_manager_holds_what_one_of_ours_does(service):
    found = named(overlay("edge"), "Certificate", service)["spec"]
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
    for name in ("dev", "production", "edge"):
        for each in pods(overlay(name)):
            for secret, key in each.secrets().values():
                holders.setdefault((secret, key), set()).add(each.name)
    certificates = {(f"{name}-tls", key): {name} for name in suite.CERTIFIED for key in TLS}
    assert {each: holders.pop(each) for each in certificates} == certificates
    assert holders == {
        ("mesh-key", "mesh_key"): set(suite.NAMES),
        ("metadata", "database_url"): {"metadata", "backup", "restore"},
        ("metadata", "identity_key"): {"metadata", "edge"},
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
    for name in (*suite.CERTIFIED, "ca"):
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
    assert [fault for version in VERSIONS for fault in schema_faults(printed, version)] == []


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
    told = moved(environment(documents, found), TOP, tmp_path / TOP.removeprefix("/"))
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
    async with Peer("cache", cache["OPENMANAGER_SERVER_HEALTH_LISTEN"]) as probe:
        await wait_until(lambda: _serves(probe), 50)
    async with Peer("cache", cache["OPENMANAGER_SERVER_LISTEN"]) as plain:
        assert not await _serves(plain)


async def _serves(peer: Peer) -> bool:
    """Ask as kubelet does."""
    try:
        return await peer.unary_bytes("/grpc.health.v1.Health/Check", b"", seconds=2) == b"\x08\x01"
    except OpenManagerError:
        return False
