"""Whose word is taken for where a call comes from."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2
from test_edge import NAME
from test_gate import VIEWER, Known, serving

from openmanager.errors import ConfigurationError, UnauthenticatedError
from openmanager.runtime.address import Proxies, peer_address
from openmanager.runtime.gate import Pass
from openmanager.runtime.peer import Peer

PROXY, CLIENT, FORGED = "10.0.0.7", "192.0.2.1", "198.51.100.9"


@pytest.mark.parametrize(
    ("trusted", "name", "forwarded", "source"),
    [
        ("", "", [CLIENT], PROXY),
        (PROXY, "", [], PROXY),
        (PROXY, "", [CLIENT], CLIENT),
        ("10.0.0.0/24", "", [CLIENT], CLIENT),
        ("10.0.1.0/24", "", [CLIENT], PROXY),
        ("edge, console", "edge", [CLIENT], CLIENT),
        ("edge", "client/edge", [CLIENT], PROXY),
        ("client/edge", "client/edge", [CLIENT], CLIENT),
        # What the client made up stands before what the proxy saw.
        ("edge", "edge", [f"{FORGED}, {CLIENT}"], CLIENT),
        ("edge", "edge", [FORGED, CLIENT], CLIENT),
        # Through two of ours.
        ("edge,10.0.0.0/24", "edge", [f"{FORGED}, {CLIENT}, 10.0.0.8"], CLIENT),
        (PROXY, "", [f"{FORGED}, nonsense"], PROXY),
        (PROXY, "", [""], PROXY),
        (PROXY, "", ["2001:db8::1"], "2001:db8::1"),
        # One address, however a proxy writes it.
        (PROXY, "", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.0/24", "", [f"{FORGED}, ::ffff:{CLIENT}, ::ffff:10.0.0.8"], CLIENT),
    ],
)
def test_the_address_is_the_last_that_somebody_trusted_has_seen(trusted, name, forwarded, source):
    assert Proxies(trusted).source(PROXY, name, forwarded) == source


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "10.0.0.7/24", "300.1.1.1", "::g", "Edge", "a b"])
def test_what_is_neither_an_address_nor_a_name_is_refused(entry):
    with pytest.raises(ConfigurationError):
        Proxies(f"edge,{entry}")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.7:5", PROXY),
        ("ipv6:%5B2001:db8::1%5D:5", "2001:db8::1"),
        ("ipv6:[::1]:5", "::1"),
        ("unix:/x", "unix"),
    ],
)
def test_the_address_of_a_peer_is_without_its_port(peer, address):
    assert peer_address(peer) == address


class Remembering(Known):
    """Knows nobody, and remembers from where they came."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    async def find(self, credential: str, source: str) -> Pass:
        self.sources.append(source)
        return await super().find(credential, source)


@pytest.mark.parametrize(("trusted", "source"), [("", "127.0.0.1"), ("127.0.0.0/8", CLIENT), (PROXY, "127.0.0.1")])
async def test_a_server_believes_its_proxies_and_nobody_else(trusted, source):
    known = Remembering()
    metadata = (("authorization", "Bearer x"), ("x-forwarded-for", f"{FORGED}, {CLIENT}"))
    async with (
        serving(authenticator=known, proxies=Proxies(trusted)) as address,
        Peer("test", address, identify=lambda: metadata) as peer,
    ):
        with pytest.raises(UnauthenticatedError):
            await peer.unary(f"/{NAME}/Call", wrappers_pb2.BytesValue(), wrappers_pb2.BytesValue, seconds=5)
    assert known.sources == [source]


async def test_who_comes_again_from_elsewhere_comes_from_there():
    seen = []
    async with serving(authenticator=Known(good=Pass(VIEWER)), proxies=Proxies("127.0.0.0/8")) as address:
        for place in (CLIENT, FORGED):
            metadata = (("authorization", "Bearer good"), ("x-forwarded-for", place))
            async with Peer("test", address, identify=lambda metadata=metadata: metadata) as peer:
                request = wrappers_pb2.StringValue(value="where")
                reply = await peer.unary(f"/{NAME}/Call", request, wrappers_pb2.BytesValue, seconds=5)
                seen.append(reply.value.decode())
    assert seen == [CLIENT, FORGED]
