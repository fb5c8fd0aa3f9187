"""The contracts beside those of the last release: what `make check` compares, and that it sees what breaks clients."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from chaos.before import ROOT, named

BUF = Path(sys.executable).parent / "buf"
RELEASED = ROOT / "protos" / "released.binpb.gz"
CACHE = "openmanager/api/cache/v1/cache.proto"


def buf(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *words], capture_output=True, text=True, check=False, timeout=30)


def files(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    found = FileDescriptorSet.FromString(gzip.decompress(data) if path.suffix == ".gz" else data)
    return {file.name: file.SerializeToString(deterministic=True) for file in found.file}


def test_what_is_compared_with_are_the_contracts_of_the_last_release(tmp_path: Path):
    version, revision = named()
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision, "protos"], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the revision of {version} is not in this clone")
    subprocess.run(["tar", "-x", "-C", tmp_path], input=archive.stdout, check=True)
    made = tmp_path / "made.binpb"
    done = buf("build", tmp_path / "protos", "--exclude-source-info", "-o", made)
    assert (done.returncode, done.stderr) == (0, "")
    assert files(RELEASED) == files(made)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rpc GetServer(", "rpc FetchServer(", 'Previously present RPC "GetServer"'),
        ("service EntryService", "service KeyService", 'Previously present service "EntryService"'),
        ("string id = 1;", "string id = 7;", 'Previously present field "1"'),
        ("string id = 1;", "int64 id = 1;", 'Field "1"'),
    ],
)
def test_what_breaks_clients_of_the_last_release_is_seen(tmp_path: Path, before: str, after: str, said: str):
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    file = tmp_path / "protos" / CACHE
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    done = buf("breaking", tmp_path / "protos", "--against", RELEASED)
    assert done.returncode == 100, done
    assert said in done.stdout
