"""Tokens by which one server tells the next who is calling."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jwt
import pytest

from openmanager.access import Grant, Identity, Role, server
from openmanager.config import Secret
from openmanager.errors import ConfigurationError, UnauthenticatedError
from openmanager.runtime import mesh_key
from openmanager.runtime.mesh_key import MeshKey

OLD, NEW = "o" * 40, "n" * 40
ALICE = Identity("users/alice", (Grant(Role.VIEWER, "role = web"), Grant(Role.OPERATOR)), session="s1")


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.seconds = 1_800_000_000.0

    def now_nanos(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(clock: Clock, name: str = "gateway", text: str = OLD, file: Path | None = None) -> MeshKey:
    return MeshKey(Secret(text, file), name, clock)


def test_the_next_server_reads_who_is_calling_and_from_where(clock: Clock):
    word = key(clock, "timeseries").read(key(clock).token(ALICE, "192.0.2.7"))
    assert word == mesh_key.Word(ALICE, "192.0.2.7", "gateway")


def test_only_the_gateway_speaks_for_others(clock: Clock):
    reader = key(clock, "timeseries")
    assert reader.read(key(clock, "simulator").token(server("simulator"))).identity == server("simulator")
    for claimed in (ALICE, server("gateway")):
        with pytest.raises(UnauthenticatedError):
            reader.read(key(clock, "simulator").token(claimed))


def test_only_the_gateway_says_that_a_read_has_been_written_down(clock: Clock):
    reader, gateway, analysis = (key(clock, name) for name in ("timeseries", "gateway", "analysis"))
    assert reader.read(gateway.token(ALICE, noted=True)).noted
    assert not reader.read(gateway.token(ALICE)).noted
    assert not reader.read(analysis.token(ALICE, noted=True)).noted


def test_analysis_reads_for_others_and_does_nothing_else_for_them(clock: Clock):
    reader, analysis = key(clock, "timeseries"), key(clock, "analysis")
    admin = Identity("users/alice", (Grant(Role.ADMIN, "role = web"), Grant(Role.AUDITOR)), session="s1")
    word = reader.read(analysis.token(admin, "192.0.2.7"))
    seen = Identity("users/alice", (Grant(Role.VIEWER, "role = web"), Grant(Role.VIEWER)), session="s1")
    assert word == mesh_key.Word(seen, "192.0.2.7", "analysis")
    with pytest.raises(UnauthenticatedError):
        reader.read(analysis.token(server("gateway")))


def test_a_token_of_another_mesh_is_refused(clock: Clock):
    with pytest.raises(UnauthenticatedError):
        key(clock, "timeseries", NEW).read(key(clock).token(ALICE))


def test_a_token_ends(clock: Clock):
    token, reader = key(clock).token(ALICE), key(clock, "timeseries")
    reader.read(token)
    clock.seconds += mesh_key.LIFETIME_SECONDS + mesh_key.SKEW_SECONDS + 1
    with pytest.raises(UnauthenticatedError):
        reader.read(token)


def test_clocks_may_differ_by_a_minute_and_not_by_more(clock: Clock):
    ahead = Clock()
    ahead.seconds += mesh_key.SKEW_SECONDS - 1
    assert key(clock, "timeseries").read(key(ahead).token(ALICE)).identity == ALICE
    ahead.seconds += 10
    with pytest.raises(UnauthenticatedError):
        key(clock, "timeseries").read(key(ahead).token(server("gateway")))


def parts(token: str) -> tuple[dict, dict, str]:
    header, claims, signature = token.split(".")
    pad = lambda text: base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))  # noqa: E731
    return json.loads(pad(header)), json.loads(pad(claims)), signature


def joined(header: dict, claims: dict, signature: str) -> str:
    encode = lambda part: base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")  # noqa: E731
    return f"{encode(header)}.{encode(claims)}.{signature}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda h, c, s: joined({**h, "alg": "none"}, c, ""),
        lambda h, c, s: joined({**h, "alg": "none"}, c, s),
        lambda h, c, s: joined({**h, "alg": "HS512"}, c, s),
        lambda h, c, s: joined({**h, "alg": "RS256"}, c, s),
        lambda h, c, s: joined({**h, "kid": "../../etc/passwd"}, c, s),
        lambda h, c, s: joined({**h, "kid": None}, c, s),
        lambda h, c, s: joined({k: v for k, v in h.items() if k != "kid"}, c, s),
        lambda h, c, s: joined(h, {**c, "sub": "users/root"}, s),
        lambda h, c, s: joined(h, {**c, "grants": [["admin", ""]]}, s),
        lambda h, c, s: joined(h, {**c, "exp": c["exp"] + 10_000}, s),
        lambda h, c, s: joined(h, c, s[:-2]),
        lambda h, c, s: "a.b.c",
        lambda h, c, s: "",
        lambda h, c, s: "x" * 5000,
        lambda h, c, s: "é" * 10,
    ],
)
def test_a_token_that_was_touched_is_refused(clock: Clock, damage):
    with pytest.raises(UnauthenticatedError) as failure:
        key(clock, "timeseries").read(damage(*parts(key(clock).token(ALICE))))
    assert failure.value.message == "the credentials are not valid"


@pytest.mark.parametrize("missing", ["exp", "iat", "sub", "aud", "iss", "grants", "src", "ses"])
def test_a_token_that_lacks_something_is_refused_although_it_is_signed(clock: Clock, missing: str):
    maker = key(clock)
    header, claims, _ = parts(maker.token(ALICE))
    del claims[missing]
    token = jwt.encode(claims, maker._keys[header["kid"]], "HS256", {"kid": header["kid"]})
    with pytest.raises(UnauthenticatedError):
        key(clock, "timeseries").read(token)


def test_a_token_for_another_use_is_refused(clock: Clock):
    maker = key(clock)
    header, claims, _ = parts(maker.token(ALICE))
    token = jwt.encode({**claims, "aud": "openmanager"}, maker._keys[header["kid"]], "HS256", {"kid": header["kid"]})
    with pytest.raises(UnauthenticatedError):
        key(clock, "timeseries").read(token)


def test_the_key_is_exchanged_in_three_steps_without_a_refusal(clock: Clock, tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(OLD)
    one, other = key(clock, file=file), key(clock, "timeseries", file=file)
    for content in (f"{OLD}\n{NEW}", f"{NEW}\n{OLD}", NEW):
        file.write_text(content)
        for _ in range(3):  # whichever of them has read it by now
            clock.seconds += mesh_key.USE_SECONDS + 1
            assert other.read(one.token(ALICE)).identity == ALICE
    with pytest.raises(UnauthenticatedError):
        other.read(key(clock, text=OLD).token(ALICE))


def test_a_key_that_can_be_guessed_is_refused(clock: Clock):
    with pytest.raises(ConfigurationError):
        key(clock, text="short")
    with pytest.raises(ConfigurationError):
        key(clock, text=f"{OLD}\nshort")
