"""What the commands of backups refuse: in one sentence, with an exit code, without a secret."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from openmanager import restic
from openmanager.cli.main import main
from openmanager.config import Secret
from openmanager.restic import BackupConfig, Repository

PASSWORD = "the-password-of-backups"
Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def refused(
    plain: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """Runs a command that is refused; returns its exit code and what it says."""
    for name in ("OPENMANAGER_BACKUP_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "password").write_text(PASSWORD)
    monkeypatch.setenv("OPENMANAGER_BACKUP_PASSWORD_FILE", str(tmp_path / "password"))

    def command(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        assert said.err.count("\n") == 1, said.err
        assert PASSWORD not in said.err + said.out
        assert isinstance(end.value.code, int)
        return end.value.code, said.err.removeprefix("openmanager: ").strip()

    return command


@pytest.fixture
def with_restic() -> None:
    if shutil.which("restic") is None:
        pytest.skip("restic is not on the PATH")


@pytest.fixture
def repository(with_restic: None, tmp_path: Path) -> str:
    """A repository with one backup, of a folder with one file."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("x")
    made = Repository(str(tmp_path / "repository"), BackupConfig(password=Secret(PASSWORD)))
    made.backup(tmp_path / "source", {"samples": "1"}, lambda _: None)
    return made.place


def test_no_password(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENMANAGER_BACKUP_PASSWORD_FILE")
    code, said = refused("backup", "list", "--from", "/nowhere")
    assert (code, said.endswith("name it in OPENMANAGER_BACKUP_PASSWORD_FILE")) == (78, True)


def test_no_restic(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, said = refused("backup", "list", "--from", "/nowhere")
    assert (code, said.startswith("restic is not installed")) == (78, True)


def test_no_repository_is_named(refused: Refused):
    code, said = refused("backup", "list")
    assert (code, said.startswith("where the backups are is not said")) == (78, True)


@pytest.mark.parametrize("place", ["sftp:host:/backups", "rclone:x:y", "https://host/bucket"])
def test_another_kind_of_place_is_refused(refused: Refused, place: str):
    code, said = refused("backup", "list", "--from", place)
    assert (code, "is neither a folder nor s3:" in said) == (1, True)


def test_credentials_in_a_url_are_refused_and_not_shown(refused: Refused):
    code, said = refused("backup", "list", "--from", "s3:https://key:secret@host/bucket")
    assert (code, "holds no credentials" in said, "key" in said) == (1, True, False)


def test_s3_without_keys(refused: Refused, with_restic: None):
    code, said = refused("backup", "list", "--from", "s3:http://127.0.0.1:1/bucket")
    assert (code, said.startswith("S3 needs AWS_ACCESS_KEY_ID")) == (78, True)


def test_s3_that_is_away_is_not_said_to_be_empty(refused: Refused, with_restic: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setattr(restic, "OPEN_SECONDS", 10.0)  # newer versions try for long
    code, said = refused("backup", "list", "--from", "s3:http://127.0.0.1:1/bucket")
    assert code == 69
    assert said.startswith(
        ("s3:http://127.0.0.1:1/bucket does not answer", "s3:http://127.0.0.1:1/bucket cannot be read")
    )


def test_a_folder_without_backups(refused: Refused, with_restic: None, tmp_path: Path):
    assert refused("backup", "list", "--from", str(tmp_path / "none")) == (
        1,
        f"there are no backups in {tmp_path / 'none'}",
    )


def test_another_password(refused: Refused, repository: str, tmp_path: Path):
    (tmp_path / "password").write_text("another")
    code, said = refused("backup", "list", "--from", repository)
    assert (code, said) == (78, f"the password is not that of the backups in {repository}")


def test_a_backup_that_is_not_there(refused: Refused, repository: str, tmp_path: Path):
    code, said = refused("restore", "--from", repository, "--to", str(tmp_path / "to"), "--snapshot", "00000000")
    assert (code, said) == (1, f"{repository} has no backup 00000000")
    assert not (tmp_path / "to").exists()


def test_a_folder_that_is_not_empty_is_left_alone(refused: Refused, repository: str, tmp_path: Path):
    code, said = refused("restore", "--from", repository, "--to", str(tmp_path / "source"))
    assert (code, "is not empty, it has file" in said) == (1, True)
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["file"]


def test_a_backup_of_something_else_is_refused(refused: Refused, repository: str, tmp_path: Path):
    code, said = refused("restore", "--from", repository, "--to", str(tmp_path / "to"))
    assert (code, said) == (1, "the backup has no manifest that can be read")


def test_a_folder_that_holds_something_else_takes_no_backups(refused: Refused, with_restic: None, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(Exception, match="holds something else"):
        Repository(str(tmp_path / "other"), BackupConfig(password=Secret(PASSWORD))).backup(
            tmp_path, {}, lambda _: None
        )


def test_what_is_no_data_directory(refused: Refused, with_restic: None, tmp_path: Path):
    code, said = refused("backup", "--data-dir", str(tmp_path), "--to", str(tmp_path / "to"))
    assert (code, "is no data directory" in said) == (78, True)
