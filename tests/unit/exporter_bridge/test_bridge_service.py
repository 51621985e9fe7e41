"""The bridge put together, without Kafka: the list of targets over time, and settings that cannot be used."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from exporter_bridge.membership import REMOVAL_SECONDS
from exporter_bridge.service import Bridge, read_configuration
from exporter_bridge.settings import BridgeSettings
from exporter_bridge.targets import shard_of
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.records import ScrapeRecord, decode
from gpu_telemetry.settings import KafkaSettings, SettingsError


class Fleet:
    """A targets file whose nodes are all one exporter on loopback."""

    def __init__(self, file, port):
        self.file, self.port = file, port

    def list(self, *nodes):
        groups = [{"targets": [f"127.0.0.1:{self.port}"], "labels": {"node_id": node}} for node in nodes]
        self.write(json.dumps(groups).encode())

    def write(self, content):
        new = self.file.with_suffix(".new")
        new.write_bytes(content)
        new.replace(self.file)


@pytest.fixture
def bridging(loopback, tmp_path, free_ports):
    """A running bridge with a fleet of its own; Kafka is nowhere, so its queue holds all that it published."""

    @asynccontextmanager
    async def make(*nodes, clock=None, **settings):
        async with loopback.serving(loopback.Exporter()) as exporter:
            fleet = Fleet(tmp_path / "targets.json", exporter.port)
            fleet.list(*nodes)
            given = {"interval_seconds": 0.2, "refresh_seconds": 0.1, "flush_seconds": 0, "listen": "127.0.0.1:0"}
            (nobody,) = free_ports(1)
            bridge = Bridge(
                BridgeSettings(targets_file=fleet.file, **given | settings),
                KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody}"),
                clock=clock,
            )
            stop = asyncio.Event()
            running = asyncio.create_task(bridge.run(stop))
            try:
                yield bridge, fleet
            finally:
                stop.set()
                await running

    return make


def turns(bridge):
    records = [decode(w.scrape.messages[-1]) for w in bridge.publisher._queue]
    return [record for record in records if isinstance(record, ScrapeRecord)]


def good_reload(bridge):
    return "gpu_bridge_config_reload_success 1.0" in bridge.metrics.page().decode()


def test_a_changed_file_changes_who_is_scraped(on_loop, loopback, bridging):
    async def run():
        async with bridging("node-1", "node-2", "node-3") as (bridge, fleet):
            await loopback.until(lambda: len(turns(bridge)) >= 3)
            fleet.list("node-2", "node-3", "node-4")
            await loopback.until(lambda: any(turn.node_id == "node-4" for turn in turns(bridge)))
            return sorted(bridge.scraper.nodes)

    assert on_loop(run()) == ["node-2", "node-3", "node-4"]


def test_a_broken_version_is_refused_aloud_once_while_the_old_one_stays(on_loop, loopback, bridging, caplog):
    caplog.set_level("INFO")

    async def run():
        async with bridging("node-1", "node-2") as (bridge, fleet):
            await loopback.until(lambda: good_reload(bridge))
            fleet.write(b'[{"targets": ["127.0.0.1"]}]')
            await loopback.until(lambda: not good_reload(bridge))
            seen = len(turns(bridge))
            await loopback.until(lambda: len(turns(bridge)) >= seen + 4)
            nodes = sorted(bridge.scraper.nodes)
            fleet.list("node-1")
            await loopback.until(lambda: good_reload(bridge))
            return nodes, sorted(bridge.scraper.nodes)

    during, after = on_loop(run())
    assert during == ["node-1", "node-2"]
    assert after == ["node-1"]
    said = "targets.json: group 1: targets: expected HOST:PORT, got '127.0.0.1'; the last good targets stay (2 nodes)"
    assert caplog.text.count(said) == 1
    assert "The targets are good again (1 nodes)" in caplog.text
    assert "Starting collector, polling 2 nodes every 0.2s" in caplog.text


@pytest.mark.parametrize("content", [b'[{"targets": ["a:1"], "labels": {"rack": "Z\xfcrich"}}]', b"[" * 100_000])
def test_a_version_that_no_parser_reads_is_refused_like_any_other(content, on_loop, loopback, bridging):
    async def run():
        async with bridging("node-1") as (bridge, fleet):
            await loopback.until(lambda: good_reload(bridge))
            fleet.write(content)
            await loopback.until(lambda: not good_reload(bridge))
            return sorted(bridge.scraper.nodes)

    assert on_loop(run()) == ["node-1"]


def test_a_node_absent_for_ten_minutes_of_good_reads_is_published_as_removed(on_loop, loopback, bridging):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))

    async def run():
        async with bridging("node-1", "node-2", "node-3", clock=clock) as (bridge, fleet):
            await loopback.until(lambda: len({turn.node_id for turn in turns(bridge)}) == 3)
            fleet.list("node-1", "node-2")
            await loopback.until(lambda: len(bridge.scraper.nodes) == 2)
            fleet.write(b"[{")
            await loopback.until(lambda: not good_reload(bridge))
            # Ten minutes of bad reads are no absence from good ones.
            clock.advance(REMOVAL_SECONDS)
            seen = len(turns(bridge))
            await loopback.until(lambda: len(turns(bridge)) > seen + 2)
            before = [turn for turn in turns(bridge) if turn.removed]
            fleet.list("node-1", "node-2")
            await loopback.until(lambda: any(turn.removed for turn in turns(bridge)))
            return before, [turn for turn in turns(bridge) if turn.removed], turns(bridge)

    before, (removed,), every = on_loop(run())
    assert before == []
    assert (removed.node_id, removed.up) == ("node-3", False)
    assert removed.seq == max(turn.seq for turn in every if turn.node_id == "node-3")


def test_over_half_of_the_fleet_vanishing_is_held_and_shown(on_loop, loopback, bridging, caplog):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))

    async def run():
        async with bridging("node-1", "node-2", "node-3", clock=clock) as (bridge, fleet):
            await loopback.until(lambda: len({turn.node_id for turn in turns(bridge)}) == 3)
            fleet.list("node-1")
            await loopback.until(lambda: len(bridge.scraper.nodes) == 1)
            clock.advance(2 * REMOVAL_SECONDS)
            seen = len(turns(bridge))
            await loopback.until(lambda: len(turns(bridge)) > seen + 4)
            return turns(bridge), bridge.metrics.page().decode()

    every, page = on_loop(run())
    assert not any(turn.removed for turn in every)
    assert "gpu_bridge_targets_held 2.0" in page
    assert "2 of 3 nodes vanished together" in caplog.text


def test_a_shard_scrapes_its_own_nodes_only(on_loop, loopback, bridging):
    nodes = [f"node-{number}" for number in range(20)]

    async def run():
        async with bridging(*nodes, shard="1/2") as (bridge, _):
            await loopback.until(lambda: bridge.scraper.nodes)
            return set(bridge.scraper.nodes)

    assert on_loop(run()) == {node for node in nodes if shard_of(node, 2) == 1}


def test_the_configuration_is_checked_as_far_as_the_shard_goes(on_loop, tmp_path):
    nodes = [f"node-{number}" for number in range(20)]
    file = tmp_path / "targets.json"
    file.write_text(json.dumps([{"targets": [f"{node}:9400"]} for node in nodes]))
    reading = on_loop(read_configuration(BridgeSettings(targets_file=file, shard="1/2")))
    assert reading.valid
    assert set(reading.targets) == {node for node in nodes if shard_of(node, 2) == 1}


async def start(settings):
    await Bridge(settings, KafkaSettings(bootstrap_servers="127.0.0.1:1")).run(asyncio.Event())


def test_a_targets_file_that_is_wrong_at_the_start_ends_the_start(on_loop, tmp_path):
    file = tmp_path / "targets.yml"
    file.write_text("- targets: [gpu-1]\n")
    with pytest.raises(
        SettingsError, match=r"BRIDGE_TARGETS_FILE: .*targets.yml: group 1: targets: expected HOST:PORT"
    ):
        on_loop(start(BridgeSettings(targets_file=file)))


def test_without_a_list_of_targets_the_start_says_where_to_give_one(on_loop):
    with pytest.raises(SettingsError, match="BRIDGE_TARGETS_FILE, BRIDGE_HTTP_SD_URL: expected a list of targets"):
        on_loop(start(BridgeSettings()))


def test_a_port_in_use_is_named(on_loop, loopback, tmp_path):
    file = tmp_path / "targets.json"
    file.write_text("[]")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter:
            await start(BridgeSettings(targets_file=file, listen=f"127.0.0.1:{exporter.port}", flush_seconds=0))

    with pytest.raises(SettingsError, match=r"BRIDGE_LISTEN: cannot listen on 127.0.0.1:\d+"):
        on_loop(run())


def test_a_property_that_librdkafka_does_not_know_is_named(on_loop, tmp_path, monkeypatch):
    monkeypatch.setenv("KAFKA_OPT_NO_SUCH_THING", "s3cret")
    with pytest.raises(
        SettingsError, match=r"KAFKA_OPT_\*: No such configuration property: .*no\.such\.thing"
    ) as caught:
        on_loop(start(BridgeSettings(targets_file=tmp_path / "targets.json")))
    assert "s3cret" not in str(caught.value)


def test_an_error_in_any_part_ends_the_bridge_rather_than_a_part_of_it(on_loop, loopback, tmp_path):
    file = tmp_path / "targets.json"
    file.write_text("[]")

    async def broken():
        raise ZeroDivisionError

    async def run():
        settings = BridgeSettings(targets_file=file, listen="127.0.0.1:0", refresh_seconds=0.1, flush_seconds=0)
        bridge = Bridge(settings, KafkaSettings(bootstrap_servers="127.0.0.1:1"))
        running = asyncio.create_task(bridge.run(asyncio.Event()))
        await loopback.until(lambda: good_reload(bridge))
        bridge._discovery.read = broken
        await running

    with pytest.raises(ZeroDivisionError):
        on_loop(run())
