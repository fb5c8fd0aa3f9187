"""What becomes of a method where its service has shards is said of every one."""

from __future__ import annotations

from openmanager_gateway.module import CACHE
from openmanager_gateway.shards.table import TABLE

from openmanager import suite
from openmanager.runtime.module import service_methods
from openmanager.shard import SHARDED


def test_every_method_of_a_service_with_shards_has_a_line_and_no_other_has():
    sharded = {service for name in SHARDED for service in suite.SERVICES[name]} - {CACHE}
    own = "openmanager.api.gateway.v1.GatewayService"
    assert {service: set(lines) for service, lines in TABLE.items() if service != own} == {
        service: set(service_methods(service)) for service in sharded
    }
    assert set(TABLE[own]) == {"WriteFrame", "WriteFrames"}
