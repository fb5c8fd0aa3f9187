"""The one file that knows every service of the suite, and what each serves."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from openmanager.config import Configuration
from openmanager.embedded import EmbeddedConfig
from openmanager.restic import BackupConfig
from openmanager.runtime.module import MeshConfig, Module, ServerConfig

# The proto services of each service; the gateway routes them all.
SERVICES: dict[str, tuple[str, ...]] = {
    "timeseries": (
        "openmanager.api.timeseries.v1.TimeseriesService",
        "openmanager.api.timeseries.v1.RetentionService",
        "openmanager.api.timeseries.v1.LogService",
        "openmanager.api.timeseries.v1.ImportService",
    ),
    "cache": ("openmanager.api.cache.v1.CacheService", "openmanager.api.cache.v1.EntryService"),
    "metadata": (
        "openmanager.api.metadata.v1.ServerService",
        "openmanager.api.metadata.v1.PolicyService",
        "openmanager.api.metadata.v1.UserService",
        "openmanager.api.metadata.v1.RoleService",
        "openmanager.api.metadata.v1.KeyService",
        "openmanager.api.metadata.v1.SessionService",
        "openmanager.api.metadata.v1.InteractionService",
        "openmanager.api.metadata.v1.AuditService",
    ),
    "analysis": (
        "openmanager.api.analysis.v1.AnalysisService",
        "openmanager.api.analysis.v1.AnomalyService",
        "openmanager.api.analysis.v1.RuleService",
        "openmanager.api.analysis.v1.SilenceService",
        "openmanager.api.analysis.v1.AlertService",
    ),
    "simulator": (
        "openmanager.api.simulator.v1.SimulatorService",
        "openmanager.api.simulator.v1.FaultService",
    ),
}
GATEWAY = "gateway"
# The proto services that clients find at the gateway.
PUBLIC = ("openmanager.api.gateway.v1.GatewayService", *(each for services in SERVICES.values() for each in services))
NAMES = (*SERVICES, GATEWAY)
# Speaks HTTP, and is a client of the gateway: no server of the mesh, but run like one.
CONSOLE = "console"
PROGRAMS = (*NAMES, CONSOLE)
# Envoy before the gateways, where it runs: deploy/envoy.
EDGE = "edge"
# Who has a certificate of the mesh.
CERTIFIED = (*PROGRAMS, EDGE)


def load_protos() -> None:
    """Import the generated code of every service, so that their descriptors are known."""
    for name in (*SERVICES, "gateway", "status"):
        import_module(f"openmanager.api.{name}.v1.{name}_pb2")
    import_module("openmanager.api.analysis.v1.alert_pb2")
    import_module("openmanager.api.metadata.v1.identity_pb2")
    import_module("openmanager.api.metadata.v1.interaction_pb2")
    import_module("openmanager.api.metadata.v1.audit_pb2")
    import_module("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")


def _gateway() -> Module:
    from openmanager_gateway.module import GatewayModule

    return GatewayModule(SERVICES)


def _service(name: str) -> Callable[[], Module]:
    def load() -> Module:
        module: Module = import_module(f"openmanager_{name}.module").module
        return module

    return load


MODULES: dict[str, Callable[[], Module]] = {**{name: _service(name) for name in SERVICES}, GATEWAY: _gateway}


def load_module(name: str) -> Module:
    """Return a service's module; only its own packages are imported."""
    load_protos()
    return MODULES[name]()


async def serve(name: str, configuration: Configuration) -> None:
    """Serve one of PROGRAMS until it is told to end; ConfigurationError when it cannot begin."""
    if name == CONSOLE:
        from openmanager_console.module import serve as serve_console

        load_protos()
        await serve_console(configuration)
        return
    from openmanager.runtime.server import serve as serve_module

    await serve_module(load_module(name), configuration)


def sections() -> dict[str, type[Any]]:
    """Return every section of the configuration."""
    found: dict[str, type[Any]] = {
        "mesh": MeshConfig,
        "server": ServerConfig,
        "embedded": EmbeddedConfig,
        "backup": BackupConfig,
    }
    for name in PROGRAMS:
        config = import_module(f"openmanager_{name}.config")
        found[name] = getattr(config, f"{name.capitalize()}Config")
    return found
