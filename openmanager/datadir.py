"""The data directory: one process at a time, one layout version, and a short directory beside it for sockets.

::

    DIR/VERSION       the layout's version, one number; there is one in timeseries/ and analysis/ too
    DIR/lock          held by the process that uses DIR; contains its pid
    DIR/credentials/  generated secrets, one file each
    DIR/locks/        one per child process, held as long as any process of it lives
    DIR/logs/         what the child processes printed
    DIR/timeseries/ DIR/analysis/ DIR/postgresql/ DIR/valkey/
    DIR/RESTORING     only while a backup is restored into it: nothing else may use what is half there

Everything is made for its owner alone: the programs that run as somebody else are started inside their directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from openmanager.config import Secret
from openmanager.errors import ConfigurationError

# Of everything that is kept in folders: who knows less must not touch them (docs/decisions/0031-mixed-versions.md).
LAYOUT_VERSION = 2
RESTORING = "RESTORING"
# A socket's address has 108 bytes (unix(7)), its end included; the longest name below is `pg/.s.PGSQL.5432`.
MAX_RUNTIME_PATH = 80

_SUBDIRECTORIES = ("credentials", "locks", "logs", "timeseries", "analysis", "postgresql", "valkey")


class DataDirError(ConfigurationError):
    """The data directory cannot be used; the message is one line for the person who named it."""


class DataDir:
    """An open data directory: locked, of a known version, with every sub-directory made."""

    def __init__(self, path: Path, runtime: Path, held: ExitStack) -> None:
        self.path = path
        self.runtime = runtime
        self.credentials = path / "credentials"
        self.locks = path / "locks"
        self.logs = path / "logs"
        self.timeseries = path / "timeseries"
        self.analysis = path / "analysis"
        self.postgresql = path / "postgresql"
        self.valkey = path / "valkey"
        self._held = held

    @classmethod
    def open(cls, path: str | Path, *, restoring: bool = False) -> Self:
        """Open a data directory, made if need be; DataDirError when it is in use, too new, half restored, or not writable."""
        with ExitStack() as held:
            try:
                path = Path(path).resolve()
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                held.enter_context(_lock(path))
                if not restoring and (path / RESTORING).exists():
                    raise DataDirError(
                        f"the data directory {path} holds a restore that has not ended: run it again, or delete it"
                    )
                _check_version(path)
                for name in _SUBDIRECTORIES:
                    (path / name).mkdir(mode=0o700, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as err:
                raise DataDirError(f"the data directory {path} is not a directory") from err
            except OSError as err:
                raise DataDirError(f"the data directory {path} is not writable: {err.strerror}") from err
            runtime = held.enter_context(_runtime_directory(path))
            return cls(path, runtime, held.pop_all())
        raise AssertionError  # unreachable: ExitStack swallows nothing here

    def close(self) -> None:
        """Let others open it; the sockets' directory goes."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def credential(self, name: str) -> Secret:
        """Return the secret of a name: letters, digits, `-` and `_`; made when first asked for."""
        return Secret(self.credential_file(name).read_text(encoding="ascii").strip())

    def credential_file(self, name: str) -> Path:
        """Return the file of the secret of a name; made when first asked for."""
        file = self.credentials / name
        if not file.exists():
            write_durably(file, secrets.token_urlsafe(32))
        return file


def write_durably(file: Path, text: str) -> None:
    """Write a file for its owner alone, so that a crash leaves the old content or the new one."""
    fd, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    Path(temporary).rename(file)
    sync_directory(file.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the directory; closed at exec, so that no child can hold it longer than we live."""
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            holder = os.read(fd, 32).decode("ascii", "replace").strip()
            by = f" by process {holder}" if holder.isdigit() else ""
            raise DataDirError(f"the data directory {path} is in use{by}") from err
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def claim(path: Path) -> None:
    """Mark a service's folder, made if need be, as of this layout; DataDirError when it is of a newer one.

    A folder that cannot be written, on a full disk say, is the service's affair, which may still read it.
    """
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_version(path)


def _check_version(path: Path) -> None:
    """Mark a folder as of this layout; DataDirError when it is of a newer one, before anything in it is touched."""
    file = path / "VERSION"
    text = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else "0"
    if not text.isdecimal():
        raise DataDirError(f"the data directory {path} has no version in its file VERSION")
    if int(text) > LAYOUT_VERSION:
        raise DataDirError(
            f"the data directory {path} has layout version {int(text)}, this program knows {LAYOUT_VERSION}: "
            "use the newer program that wrote it"
        )
    if int(text) < LAYOUT_VERSION:
        write_durably(file, f"{LAYOUT_VERSION}\n")


@contextmanager
def _runtime_directory(path: Path) -> Iterator[Path]:
    """Make, hold and at last delete the directory for sockets: short, and nobody else's."""
    runtime = runtime_path(path)
    try:
        runtime.mkdir(mode=0o700, exist_ok=True)
        # O_NOFOLLOW and the owner's check on what was opened: in /tmp anybody may have made that name before us.
        fd = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as err:
        raise DataDirError(f"the directory {runtime} for sockets cannot be used: {err.strerror}") from err
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise DataDirError(f"the directory {runtime} for sockets belongs to somebody else")
        # Root's PostgreSQL runs as another user and must pass; a directory of its own inside keeps the rest out.
        os.fchmod(fd, 0o711 if os.geteuid() == 0 else 0o700)
        # systemd-tmpfiles leaves alone what is locked (tmpfiles.d(5)), however old.
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield runtime
        shutil.rmtree(runtime, ignore_errors=True)
    finally:
        os.close(fd)


def runtime_path(path: Path) -> Path:
    """Return the runtime directory of a data directory: always the same one for the same user and environment."""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    user = os.geteuid()
    # Root's directory in /run/user is closed to the user that PostgreSQL runs as.
    candidate = Path("/run" if user == 0 else os.environ.get("XDG_RUNTIME_DIR") or "/nonexistent")
    runtime = candidate / f"openmanager-{digest}"
    if candidate.is_absolute() and _is_private(candidate) and len(os.fsencode(runtime)) <= MAX_RUNTIME_PATH:
        return runtime
    return Path("/tmp") / f"openmanager-{user}-{digest}"  # noqa: S108  (checked when opened)


def _is_private(directory: Path) -> bool:
    """Whether only this user can make names in the directory."""
    try:
        found = directory.stat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and os.access(directory, os.W_OK | os.X_OK)
    )
