"""Which addresses are this machine's own, and which are those of proxies that say for whom they call."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

from openmanager.errors import ConfigurationError
from openmanager.spiffe import CLIENT, check_name

FORWARDED_FOR = "x-forwarded-for"


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def target(text: str) -> str:
    """Return what gRPC is to connect to for an address, or for several IP addresses by commas, which are called in turn."""
    if "," not in text or text.startswith(("ipv4:", "ipv6:")):
        return text
    parts = [part.strip() for part in text.split(",")]
    return f"{'ipv6' if parts[0].startswith('[') else 'ipv4'}:{','.join(parts)}"


class Proxies:
    """Those whose `x-forwarded-for` is believed: addresses, networks, and names in certificates, separated by commas.

    ConfigurationError for an entry that is none of these.
    """

    def __init__(self, entries: str = "") -> None:
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        for entry in filter(None, map(str.strip, entries.split(","))):
            try:
                self._networks.append(ipaddress.ip_network(entry))
            except ValueError as err:
                # What begins with a digit, or has a colon, was meant to be an address.
                if entry[0].isdigit() or ":" in entry:
                    raise ConfigurationError(f"server.trusted_proxies: {entry!r} is no address or network") from err
                check_name(entry.removeprefix(CLIENT))
                self._names.add(entry)

    def source(self, peer: str, name: str, forwarded: Iterable[str]) -> str:
        """Return the address that a call comes from.

        `peer` is the other end of the connection, `name` whom its certificate names, empty for nobody, and `forwarded`
        are the values of `x-forwarded-for`. Each proxy adds the address that it was called from at the end, and what is
        before the one that the first of ours added is the caller's own invention.
        """
        # Asked of every call: where no address is trusted none is looked at.
        if name not in self._names and not (self._networks and self._has(_parsed(peer))):
            return peer
        for hop in reversed([each.strip() for value in forwarded for each in value.split(",")]):
            found = _parsed(hop)
            if found is None:
                break
            peer = str(found)
            if not self._has(found):
                break
        return peer

    def _has(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def peer_address(peer: str) -> str:
    """Return the address in what gRPC calls a peer (`ipv4:127.0.0.1:1`, `ipv6:%5B::1%5D:1`), else its kind (`unix`)."""
    kind, _, rest = peer.partition(":")
    return unquote(rest).rpartition(":")[0].strip("[]") if kind in {"ipv4", "ipv6"} else kind


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address, None for what is none: that of IPv4 where a socket for both writes it as one of IPv6."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
