"""Which addresses are this machine's own."""

from __future__ import annotations

import ipaddress


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
