"""restic, the program that keeps backups: deduplicated, encrypted, in a folder or in S3-compatible storage.

It is run as a program that dies with us. What is secret reaches it by a file in memory or by its environment, never by
its arguments. A snapshot is there as a whole or not at all: restic writes it last, when all that it needs is stored.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from openmanager.config import Secret, setting
from openmanager.errors import (
    ConfigurationError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OpenManagerError,
    UnavailableError,
)
from openmanager.runtime import launch

PROGRAM = "restic"
TAG = "openmanager"
S3 = "s3:"
TICK_SECONDS = 0.25
END_SECONDS = 5.0
# For what is small. Of the rest restic itself gives up what does not answer, after a quarter of an hour.
OPEN_SECONDS = 60.0
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Of our environment what it needs; anything else, such as RESTIC_PASSWORD_COMMAND, would change what it does.
_KEPT = (
    "PATH",
    "HOME",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "AWS_DEFAULT_REGION",
)
_MISSING = "restic is not installed: backups need it on the PATH (apt install restic, or the container image)"
# From version 0.17 on the exit code says it, before that the text alone.
_NO_REPOSITORY, _LOCKED, _WRONG_PASSWORD, _NOT_ALL_READ = 10, 11, 12, 3
_ERRORS = re.compile(r"There were \d+ errors")
_ABSENT = re.compile(r"unable to open config file: .*(not exist|no such file)")

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupConfig:
    """The section `backup`."""

    repository: str = setting("", "Where backups are kept: a folder, or s3:https://HOST/BUCKET/PATH.")
    password: Secret = setting(
        Secret(""), "What backups are encrypted with. Keep it elsewhere too: without it nobody can restore them."
    )
    s3_access_key: Secret = setting(Secret(""), "Access key of the S3-compatible storage.", env="AWS_ACCESS_KEY_ID")
    s3_secret_key: Secret = setting(Secret(""), "Secret key of the same.", env="AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A backup that is whole: its id, when and on which machine it was made, and `facts`, `name=value` of its maker."""

    id: str
    time: datetime
    host: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a backup came to, in bytes: of the whole, and of what was new."""

    snapshot: str
    total_bytes: int
    added_bytes: int


class Repository:
    """A repository of backups. Every call is blocking, and belongs into the main thread, whose end ends restic."""

    def __init__(self, place: str, config: BackupConfig, *, cache: Path | None = None) -> None:
        """Take where it is; ConfigurationError without a password or without restic."""
        self.place = check_place(place)
        if not config.password:
            raise ConfigurationError(
                "backups are encrypted: put a password into a file and name it in OPENMANAGER_BACKUP_PASSWORD_FILE"
            )
        if shutil.which(PROGRAM) is None:
            raise ConfigurationError(_MISSING)
        self._config = config
        self._cache = cache if self.is_remote else None

    @property
    def is_remote(self) -> bool:
        """Whether it is elsewhere than in a folder."""
        return self.place.startswith(S3)

    def backup(self, folder: Path, facts: Mapping[str, str], show: Show) -> Summary:
        """Store what is in a folder as a new snapshot; `show` hears how far it is. The first one makes the repository."""
        if not self._is_there():
            self._make()
        tags = ",".join([TAG, *(f"{name}={value}" for name, value in facts.items())])
        found: dict[str, Any] = {}

        def hear(message: Mapping[str, Any]) -> None:
            if message.get("message_type") == "summary":
                found.update(message)
            elif message.get("message_type") == "status":
                show(message)

        # The copy is made of links, which have a new time of change each time: content, size and inode tell.
        arguments = ["backup", "--json", "--ignore-ctime", "--tag", tags, "."]
        try:
            self._run(arguments, cwd=folder, hear=hear)
        except DataLossError:
            if "snapshot_id" in found:  # what could not be read is missing in it
                self._run(["forget", found["snapshot_id"]])
            raise
        return Summary(
            snapshot=found["snapshot_id"],
            total_bytes=int(found["total_bytes_processed"]),
            added_bytes=int(found["data_added"]),
        )

    def snapshots(self) -> list[Snapshot]:
        """Return the backups, oldest first."""
        found = json.loads(self._run(["snapshots", "--json", "--no-lock", "--tag", TAG], seconds=OPEN_SECONDS)) or []
        made = [
            Snapshot(
                id=each["short_id"],
                time=datetime.fromisoformat(each["time"]),
                host=each.get("hostname", ""),
                facts=dict(tag.split("=", 1) for tag in each.get("tags") or () if "=" in tag),
            )
            for each in found
        ]
        return sorted(made, key=lambda each: each.time)

    def find(self, name: str) -> Snapshot:
        """Return a backup by its id or the beginning of it, the newest for `latest`; NotFoundError for none."""
        made = self.snapshots()
        found = made[-1:] if name == "latest" else [each for each in made if name and each.id.startswith(name[:8])]
        if not found:
            raise NotFoundError(f"{self.place} has no backup{'' if name == 'latest' else f' {name}'}")
        return found[-1]

    def check(self, *, read_all: bool, tick: Callable[[], None] = lambda: None) -> None:
        """Look whether everything that the backups need is there, and undamaged where all is read; else DataLossError."""
        self._unlock()
        try:
            self._run(["check", *(["--read-data"] if read_all else [])], tick=tick)
        except UnavailableError as err:
            raise DataLossError(f"the repository is damaged: {err.message}") from err

    def restore(self, snapshot: str, into: Path, tick: Callable[[], None]) -> None:
        """Write the files of a snapshot to a folder, and read them again."""
        self._run(["restore", snapshot, "--no-lock", "--target", str(into), "--verify"], tick=tick)

    def forget(self, keep: Mapping[str, int], tick: Callable[[], None] = lambda: None) -> list[str]:
        """Delete old backups, and what only they needed; return the ids of those that went."""
        self._unlock()
        options = [part for name, count in keep.items() for part in (f"--keep-{name}", str(count))]
        before = {each.id for each in self.snapshots()}
        self._run(["forget", "--tag", TAG, "--group-by", "", "--prune", *options], tick=tick)
        return sorted(before - {each.id for each in self.snapshots()})

    def _is_there(self) -> bool:
        """Say whether there is a repository; UnavailableError when storage elsewhere does not answer."""
        if not self.is_remote:
            return (Path(self.place) / "config").exists()
        try:
            self.snapshots()
        except NotFoundError:
            return False
        return True

    def _make(self) -> None:
        """Make it. A folder has its name when it is complete: a crash leaves none that is half made."""
        if self.is_remote:
            self._run(["init"])
            return
        path = Path(self.place)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FailedPreconditionError(f"{path} holds something else than backups")
        aside = path.with_name(f".{path.name}.new")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._run(["init"], place=str(aside))
            try:
                aside.rename(path)
            except OSError:  # a volume is mounted there
                shutil.rmtree(aside)
                self._run(["init"])
        except OSError as err:
            raise FailedPreconditionError(f"{path} cannot be made: {err.strerror}") from err

    def _unlock(self) -> None:
        """Remove the locks of those that were killed; those of living ones stay. Who only adds needs no lock alone."""
        self._run(["unlock"])

    def _run(
        self,
        arguments: Sequence[str],
        *,
        place: str = "",
        cwd: Path | None = None,
        hear: Show | None = None,
        tick: Callable[[], None] = lambda: None,
        seconds: float = math.inf,
    ) -> str:
        """Run restic and return what it printed; `hear` gets each line of JSON, `tick` is called now and then."""
        end = time.monotonic() + seconds

        def on_time() -> None:
            tick()
            if time.monotonic() > end:
                raise UnavailableError(f"{self.place} does not answer")

        lines: list[str] = []
        with _in_memory(self._config.password) as secret, tempfile.TemporaryFile() as errors:
            cache = ["--cache-dir", str(self._cache)] if self._cache else ["--no-cache"]
            program = [PROGRAM, *cache, *arguments]
            environment = {
                **{name: os.environ[name] for name in _KEPT if name in os.environ},
                "RESTIC_REPOSITORY": place or self.place,
                "RESTIC_PASSWORD_FILE": f"/dev/fd/{secret}",
                "RESTIC_PROGRESS_FPS": "4",
                **self._credentials(),
            }
            process = subprocess.Popen(  # noqa: S603  (no shell, and what users name are no options)
                launch.argv(program, death_signal=signal.SIGKILL),
                cwd=cwd,
                env=environment,
                pass_fds=(secret,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
            try:
                for line in _lines(process, on_time):
                    lines.append(line) if hear is None else hear(_message(line))
                code = process.wait()
            finally:
                _end(process)
            if code:
                raise self._failure(code, _text(errors))
        return "\n".join(lines)

    def _credentials(self) -> dict[str, str]:
        config = self._config
        if not self.is_remote:
            return {}
        if not config.s3_access_key or not config.s3_secret_key:
            raise ConfigurationError("S3 needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or files named by …_FILE")
        return {
            "AWS_ACCESS_KEY_ID": config.s3_access_key.reveal(),
            "AWS_SECRET_ACCESS_KEY": config.s3_secret_key.reveal(),
        }

    def _failure(self, code: int, text: str) -> OpenManagerError:  # noqa: PLR0911  (a line for each end)
        """Return what an end of restic means."""
        # Newer versions say it in JSON where the rest is JSON.
        lines = [str(_message(line).get("message", line)) for line in text.splitlines()]
        told = [line.removeprefix("Fatal: ").strip() for line in lines if line.strip()]
        if code == _NO_REPOSITORY or _ABSENT.search(text):
            return NotFoundError(f"there are no backups in {self.place}")
        if "unable to open config file" in text:
            return UnavailableError(
                f"{self.place} cannot be read: {told[0].removeprefix('unable to open config file: ')}"
            )
        if code == _WRONG_PASSWORD or "wrong password" in text:
            return ConfigurationError(f"the password is not that of the backups in {self.place}")
        if code == _LOCKED or "already locked" in text:
            return FailedPreconditionError(f"{self.place} is in use by another backup: try again when it has ended")
        if code == _NOT_ALL_READ:
            return DataLossError("not everything could be read: no backup was made")
        if _ERRORS.fullmatch(told[-1] if told else ""):  # each was told before
            return DataLossError(f"the backup cannot be read as a whole: {told[0]}")
        return UnavailableError(f"restic failed: {told[-1] if told else f'exit code {code}'}")


def check_place(place: str) -> str:
    """Return where a repository is, a folder as its whole path; InvalidArgumentError for what is neither that nor S3."""
    if not place:
        raise ConfigurationError("where the backups are is not said: name a folder, or s3:https://HOST/BUCKET/PATH")
    if place.startswith(S3):
        if "@" in place.partition("/")[2].rpartition("/")[0]:
            raise InvalidArgumentError("a repository's URL holds no credentials: AWS_ACCESS_KEY_ID is for them")
        return place
    if _SCHEME.match(place):
        raise InvalidArgumentError(f"{place!r} is neither a folder nor s3:https://HOST/BUCKET/PATH")
    return str(Path(place).absolute())


@contextmanager
def _in_memory(secret: Secret) -> Iterator[int]:
    """Yield the descriptor of a file that holds a secret and is on no disk."""
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, secret.reveal().encode())
        yield descriptor
    finally:
        os.close(descriptor)


def _lines(process: subprocess.Popen[bytes], tick: Callable[[], None]) -> Iterator[str]:
    """Yield what a program prints, and call `tick` meanwhile."""
    assert process.stdout is not None  # noqa: S101  (it is a pipe)
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], TICK_SECONDS)
        tick()
        if not ready:
            continue
        data = os.read(descriptor, 1 << 16)
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in whole)
    if rest:
        yield rest.decode("utf-8", "replace")


def _message(line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a program is gone: it removes its lock when it is asked to end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(1 << 16).decode("utf-8", "replace")
