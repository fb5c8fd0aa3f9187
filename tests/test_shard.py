"""Which shard owns a server: the same in every program, evenly, and with few that move."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from openmanager.errors import ConfigurationError, FailedPreconditionError, Reason
from openmanager.runtime.module import MeshConfig
from openmanager.shard import Shard, shard_of, shards_of

SERVERS = [f"web-{number:05d}.example.net" for number in range(20_000)]
# Published in docs/scale.md, for clients in other languages: server, and its shard of 2, 3, 5 and 64.
VECTORS = [
    ("a", (0, 2, 2, 33)),
    ("web-01", (1, 1, 3, 49)),
    ("web-02", (0, 0, 3, 14)),
    ("db-7.example.net", (1, 2, 2, 25)),
    ("i-0abc123def4567890", (1, 1, 3, 48)),
    ("host:9100", (0, 0, 0, 15)),
]


@pytest.mark.parametrize(("server", "shards"), VECTORS)
def test_the_published_vectors_hold(server: str, shards: tuple[int, ...]):
    assert tuple(shard_of(server, count) for count in (2, 3, 5, 64)) == shards


def test_the_published_vectors_are_those_of_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    for server, shards in VECTORS:
        assert f"| `{server}` | {' | '.join(map(str, shards))} |" in text


@pytest.mark.parametrize("count", [2, 3, 8])
def test_servers_are_spread_evenly(count: int):
    found = Counter(shards_of(SERVERS, count).tolist())
    mean = len(SERVERS) / count
    # Four standard deviations of a binomial distribution.
    assert all(abs(found[shard] - mean) < 4 * np.sqrt(mean) for shard in range(count))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_only_servers_that_go_to_the_new_shard_move(count: int):
    before, after = shards_of(SERVERS, count), shards_of(SERVERS, count + 1)
    moved = before != after
    assert (after[moved] == count).all()
    assert moved.mean() == pytest.approx(1 / (count + 1), abs=0.02)


def test_one_shard_owns_all():
    assert not shards_of(SERVERS, 1).any()
    Shard().check(["anybody"])


def test_servers_of_another_shard_are_refused_by_name():
    stray = next(server for server in SERVERS if shard_of(server, 2) == 1)
    with pytest.raises(FailedPreconditionError, match=stray) as caught:
        Shard(0, 2).check([stray])
    assert caught.value.reason == Reason.WRONG_SHARD


def test_a_folder_remembers_its_shard(tmp_path: Path):
    folder = tmp_path / "timeseries"
    Shard(1, 2).claim(folder)
    Shard(1, 2).claim(folder)
    for other in (Shard(0, 2), Shard(1, 3), Shard()):
        with pytest.raises(ConfigurationError, match="holds shard 1 of 2"):
            other.claim(folder)


def test_a_folder_from_before_there_were_shards_is_whole(tmp_path: Path):
    (tmp_path / "log").mkdir()
    Shard().claim(tmp_path)
    with pytest.raises(ConfigurationError, match="holds shard 0 of 1"):
        Shard(0, 2).claim(tmp_path)


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"shard_count": 2}, "mesh.cache has 1 addresses, and mesh.shard_count is 2"),
        ({"cache": "a:1,b:2"}, "mesh.cache has 2 addresses, and mesh.shard_count is 1"),
        ({"shard_count": 0}, "mesh.shard_count must be 1–64"),
        ({"shard_count": 65}, "mesh.shard_count must be 1–64"),
        ({"cache": "a:1,b:2", "shard_count": 2, "shard_index": 2}, "mesh.shard_index must be 0–1"),
        ({"cache": "a:1,b:2", "shard_count": 2, "shard_index": -1}, "mesh.shard_index must be 0–1"),
    ],
)
def test_a_mesh_that_does_not_fit_together_is_refused(settings: dict[str, object], wrong: str):
    with pytest.raises(ConfigurationError, match=wrong):
        MeshConfig(**settings).own_address("cache")


def test_a_shard_listens_at_its_place_in_the_list():
    mesh = MeshConfig(timeseries="a:1, b:2", shard_count=2, shard_index=1, gateway="c:1,d:2")
    assert mesh.own_address("timeseries") == "b:2"
    with pytest.raises(ConfigurationError, match="listen must say which"):
        mesh.own_address("gateway")
