"""The page of measures, read as Prometheus reads it."""

from __future__ import annotations

import numpy as np
from client.mesh import LocalMesh, frame_of, replica_filled
from prometheus_client.parser import text_string_to_metric_families

from console.served import Console
from openmanager.client import Client


async def measured(console: Console) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return what there is, by name and labels."""
    status, body, told = await console.ask("GET", "/metrics")
    assert status == 200
    assert told["Content-Type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(body.decode()))
    assert all(family.documentation for family in families)
    assert len({family.name for family in families}) == len(families)
    return {
        each.name: {
            tuple(sorted(sample.labels.items())): sample.value for sample in family.samples if sample.name == each.name
        }
        for family in families
        for each in family.samples
    }


async def test_the_state_of_every_service_is_one_of_its_states(console: Console, local: LocalMesh):
    async with Client(local.gateway) as client:
        await replica_filled(client)
    found = (await measured(console))["openmanager_service_state"]
    states = {}
    for labels, value in found.items():
        named = dict(labels)
        states.setdefault(named["service"], {})[named["state"]] = value
    assert {service: [name for name, value in each.items() if value] for service, each in states.items()} == {
        "gateway": ["ok"], "timeseries": ["ok"], "cache": ["ok"],
        "metadata": ["down"], "analysis": ["down"], "simulator": ["down"],
    }  # fmt: skip
    assert {sum(each.values()) for each in states.values()} == {1.0}


async def test_the_books_add_up(console: Console, local: LocalMesh):
    async with Client(local.gateway) as client:
        ack = await client.write_frame(frame_of(3, 5))
    found = await measured(console)
    accepted = found["openmanager_log_accepted_samples_total"][()]
    assert accepted == ack.accepted_sample_count
    assert found["openmanager_log_head_position"][()] == ack.position
    by_consumer: dict[str, float] = {}
    for labels, value in found["openmanager_log_consumer_samples"].items():
        consumer = dict(labels)["consumer"]
        by_consumer[consumer] = by_consumer.get(consumer, 0.0) + value
    assert by_consumer
    assert set(by_consumer.values()) == {accepted}


async def test_its_own_process_is_among_them(console: Console):
    found = await measured(console)
    assert found["openmanager_console_connections"][()] >= 1
    assert found["openmanager_console_process_resident_memory_bytes"][()] > 10e6
    assert not np.isnan(found["openmanager_console_process_cpu_seconds_total"][()])


async def test_a_scrape_fails_while_the_gateway_is_away(lonely: Console):
    status, body, _ = await lonely.ask("GET", "/metrics")
    assert (status, body["error"]["message"]) == (503, "the gateway cannot be reached")
