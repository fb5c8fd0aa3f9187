import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from openmanager import datadir
from openmanager.datadir import DataDir, DataDirError, claim
from openmanager.errors import ConfigurationError

HOLD = "import sys, time; from openmanager.datadir import DataDir; d = DataDir.open(sys.argv[1]); print('held', flush=True); time.sleep(60)"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's files")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


@contextlib.contextmanager
def ordinary_user():
    """Yield a directory of an ordinary user, as that user."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    before = os.geteuid()
    try:
        if before == 0:
            nobody = pwd.getpwnam("nobody").pw_uid
            os.chown(directory, nobody, -1)
            os.seteuid(nobody)
        yield directory
    finally:
        os.seteuid(before)
        shutil.rmtree(directory)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_made_for_the_owner_alone(path):
    with DataDir.open(path) as data:
        assert {mode(entry) for entry in (path, *path.iterdir()) if entry.is_dir()} == {0o700}
        assert {mode(entry) for entry in path.iterdir() if entry.is_file()} == {0o600}
        assert {data.logs, data.timeseries, data.postgresql, data.valkey, data.credentials, data.locks} <= set(
            path.iterdir()
        )


def test_a_second_open_is_refused_and_names_the_holder(path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    with holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(DataDirError, match=f"^the data directory {path} is in use by process {holder.pid}$"):
                DataDir.open(path)
        finally:
            holder.kill()
    DataDir.open(path).close()  # takes what the holder left


def test_a_killed_holder_holds_nothing(path):
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)
    with DataDir.open(path) as data:
        assert data.path == path


def test_a_closed_directory_opens_again_with_the_same_credentials(path):
    with DataDir.open(path) as data:
        made = data.credential("valkey").reveal()
        assert data.credential("postgresql").reveal() != made
    with DataDir.open(path) as data:
        assert data.credential("valkey").reveal() == made
        assert mode(data.credentials / "valkey") == 0o600
        assert len(made) >= 32
        assert made not in repr(data.credential("valkey"))


def test_a_directory_of_a_newer_program_is_refused_and_names_both_versions(path):
    DataDir.open(path).close()
    (path / "VERSION").write_text("7\n")
    with pytest.raises(DataDirError, match=r"^the data directory \S+ has layout version 7, this program knows 2: .*$"):
        DataDir.open(path)


def test_a_folder_of_an_older_layout_is_marked_so_that_the_older_program_leaves_it_alone(path):
    path.mkdir()
    (path / "VERSION").write_text("1\n")
    DataDir.open(path).close()
    assert (path / "VERSION").read_text() == "2\n"


def test_a_folder_of_a_service_is_marked_and_one_of_a_newer_layout_is_not_touched(path):
    claim(path)
    assert (path / "VERSION").read_text() == "2\n"
    (path / "VERSION").write_text("7\n")
    with pytest.raises(DataDirError, match="use the newer program that wrote it"):
        claim(path)
    assert (path / "VERSION").read_text() == "7\n"


def test_a_damaged_version_is_refused(path):
    DataDir.open(path).close()
    (path / "VERSION").write_text("")
    with pytest.raises(DataDirError, match="has no version"):
        DataDir.open(path)


def test_a_refused_directory_is_not_kept_locked(path):
    DataDir.open(path).close()
    (path / "VERSION").write_text("7\n")
    with pytest.raises(DataDirError, match="layout version 7"):
        DataDir.open(path)
    (path / "VERSION").write_text("1\n")
    DataDir.open(path).close()


def test_a_file_is_no_data_directory(path):
    path.touch()
    with pytest.raises(DataDirError, match=f"^the data directory {path} is not a directory$"):
        DataDir.open(path)


def test_a_directory_that_cannot_be_written_is_refused_in_one_line():
    with pytest.raises(DataDirError, match=r"^the data directory /proc/openmanager is not writable: .*$") as refused:
        DataDir.open("/proc/openmanager")  # not even for root
    assert isinstance(refused.value, ConfigurationError)
    assert "\n" not in str(refused.value)


def test_a_long_path_has_a_short_directory_for_sockets_which_goes_at_the_end(tmp_path):
    path = tmp_path / ("x" * 100) / ("y" * 100)
    with DataDir.open(path) as data:
        assert len(os.fsencode(data.runtime)) <= datadir.MAX_RUNTIME_PATH
        assert data.runtime.is_dir()
        runtime = data.runtime
    assert not runtime.exists()


def test_two_data_directories_have_two_directories_for_sockets(tmp_path):
    with DataDir.open(tmp_path / "a") as a, DataDir.open(tmp_path / "b") as b:
        assert a.runtime != b.runtime


def test_what_a_crash_left_in_the_directory_for_sockets_does_no_harm(path):
    runtime = datadir.runtime_path(path)
    runtime.mkdir(mode=0o777)
    (runtime / "valkey.sock").touch()
    with DataDir.open(path) as data:
        assert data.runtime == runtime
        assert not mode(runtime) & 0o066


def test_a_link_in_place_of_the_directory_for_sockets_is_refused(path, tmp_path):
    runtime = datadir.runtime_path(path)
    runtime.symlink_to(tmp_path)
    try:
        with pytest.raises(DataDirError, match=f"^the directory {runtime} for sockets cannot be used"):
            DataDir.open(path)
    finally:
        runtime.unlink()


@needs_root
def test_a_directory_for_sockets_that_belongs_to_somebody_else_is_refused(path):
    runtime = datadir.runtime_path(path)
    runtime.mkdir()
    os.chown(runtime, pwd.getpwnam("nobody").pw_uid, -1)
    try:
        with pytest.raises(DataDirError, match=f"^the directory {runtime} for sockets belongs to somebody else$"):
            DataDir.open(path)
    finally:
        runtime.rmdir()


def test_an_ordinary_user_has_the_sockets_where_the_session_keeps_them(monkeypatch):
    with ordinary_user() as home:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
        with DataDir.open(home / "data") as data:
            assert data.runtime.parent == home
            assert mode(data.runtime) == 0o700


@pytest.mark.parametrize("unfit", ["", "relative", "/nonexistent", "/tmp", "long"])
def test_a_session_directory_that_is_missing_long_or_open_to_others_is_not_used(monkeypatch, unfit):
    with ordinary_user() as home:
        long = home / ("x" * 80)
        long.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long) if unfit == "long" else unfit)
        with DataDir.open(home / "data") as data:
            assert data.runtime.parent == Path("/tmp")
            assert data.runtime.name.startswith(f"openmanager-{os.geteuid()}-")
