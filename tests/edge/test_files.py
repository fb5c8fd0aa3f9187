"""What `openmanager edge` writes, without Envoy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest
import run_edge
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from openmanager_metadata.keyring import ALGORITHM, AUDIENCE, Access, Keyring

from edge.proxied import write_files
from openmanager import suite
from openmanager.config import Secret

SECRET = 40 * "s"


def test_the_descriptors_are_whole_and_the_keys_verify_what_the_mesh_signs(tmp_path: Path):
    key = tmp_path / "identity_key"
    key.write_text(SECRET)
    write_files(tmp_path / "edge", key)
    found = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "edge/descriptors.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:  # in an order in which each knows those that it imports
        pool.Add(file)
    for name in suite.PUBLIC:
        assert pool.FindServiceByName(name).methods
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo")
    options = pool.FindServiceByName("openmanager.api.gateway.v1.GatewayService").methods_by_name["GetServer"]
    rule = descriptor_pb2.MethodOptions.FromString(options.GetOptions().SerializeToString())
    assert rule.Extensions[annotations_pb2.http].get == "/v1/servers/{id}"
    (public,) = jwt.PyJWKSet.from_dict(json.loads((tmp_path / "edge/jwks.json").read_text())).keys
    now = int(time.time())
    token = Keyring(Secret(SECRET)).access_token(Access(user="alice", session="s", end=now + 60), now)
    claims = jwt.decode(token, public.key, algorithms=[ALGORITHM], audience=AUDIENCE)
    assert (claims["sub"], jwt.get_unverified_header(token)["kid"]) == ("alice", public.key_id)
    assert SECRET not in (tmp_path / "edge/jwks.json").read_text()


def test_without_an_identity_key_there_is_nothing_to_verify_by(tmp_path: Path):
    write_files(tmp_path / "edge")
    assert [file.name for file in (tmp_path / "edge").iterdir()] == ["descriptors.binpb"]


@pytest.mark.parametrize("address", ["0.0.0.0:50443", "[::]:50443", "fleet.example.net:50443"])
def test_what_is_not_encrypted_does_not_leave_the_machine(address: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_edge.py", "--listen", address])
    monkeypatch.setattr(run_edge, "program", lambda: pytest.fail("it has begun"))
    with pytest.raises(SystemExit):
        run_edge.main()
    assert "not encrypted" in capsys.readouterr().err
