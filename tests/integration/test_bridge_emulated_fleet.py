"""The bridge over the emulated fleet: each fault of the emulator as the bridge tells of it."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from contextlib import suppress

import pytest
import uvloop

from exporter_bridge.service import Bridge
from exporter_bridge.settings import BridgeSettings
from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode
from gpu_telemetry.settings import KafkaSettings

pytestmark = pytest.mark.integration


class Fleet:
    """An emulated fleet of three nodes in a process of its own."""

    def __init__(self):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EMULATOR_")}
        settings = {"EMULATOR_LISTEN": "127.0.0.1:0", "EMULATOR_NODES": "3", "EMULATOR_DIALECT": "mixed"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpu_telemetry.cli", "emulator"],
            env=clean | settings,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = self.process.stderr.readline()
        self.url = re.search(r"http://[\d.:]+", said)[0]

    def strike(self, kind, **whom):
        request = urllib.request.Request(
            f"{self.url}/control/faults",
            data=json.dumps({"kind": kind, "node": "node-2"} | whom).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=5).close()

    def end(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stderr.close()


@pytest.fixture
def fleet():
    fleet = Fleet()
    yield fleet
    fleet.end()


@pytest.fixture
def bridge(fleet, free_ports, wait_for):
    """A bridge that polls the fleet every half second; Kafka is nowhere, so its queue holds all that it published."""
    port, nobody = free_ports(2)
    settings = BridgeSettings(
        http_sd_url=f"{fleet.url}/sd", listen=f"127.0.0.1:{port}", interval_seconds=0.5, flush_seconds=0
    )
    running = []

    async def run():
        stop = asyncio.Event()
        bridge = Bridge(settings, KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody}"))
        running.append((asyncio.get_running_loop(), stop, bridge))
        await bridge.run(stop)

    thread = threading.Thread(target=lambda: uvloop.run(run()))
    thread.start()
    wait_for(lambda: running)
    loop, stop, bridge = running[0]
    yield bridge
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


def records(bridge, node="node-2"):
    # The queue changes under the reading: then it is read again.
    while True:
        with suppress(RuntimeError):
            scrapes = [waiting.scrape for waiting in bridge.publisher._queue]
            break
    return [decode(message) for scrape in scrapes if scrape.node_id == node for message in scrape.messages]


def turns(bridge, node="node-2"):
    return [record for record in records(bridge, node) if isinstance(record, ScrapeRecord)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("http_500", "http_500"),
        ("empty", "empty"),
        ("cut_short", "truncated"),
        ("hang", "timeout"),
        ("down", "truncated"),
    ],
)
def test_a_node_that_gives_no_page_is_down_with_the_reason_and_the_others_are_not(
    fault, reason, fleet, bridge, wait_for
):
    wait_for(lambda: len(turns(bridge)) >= 1 and turns(bridge)[-1].up, 20)
    fleet.strike(fault)
    struck = len(turns(bridge))
    wait_for(lambda: len(turns(bridge)) >= struck + 4, 20)
    assert {turn.reason for turn in turns(bridge) if not turn.up} == {reason}
    assert all(turn.up and turn.gpu_records >= 8 for turn in turns(bridge, "node-1"))
    assert all(turn.up and turn.gpu_records >= 8 for turn in turns(bridge, "node-3"))


@pytest.mark.parametrize(
    ("fault", "whom"),
    [
        ("garbage_line", {}),
        ("unescaped_label", {"gpu": 3}),
        ("duplicate_rows", {"gpu": 3}),
        ("conversion_error", {"gpu": 3}),
    ],
)
def test_a_page_with_bad_lines_is_a_page_and_the_lines_are_counted(fault, whom, fleet, bridge, wait_for):
    wait_for(lambda: len(turns(bridge)) >= 1, 20)
    fleet.strike(fault, **whom)
    wait_for(lambda: "gpu_bridge_refused_lines_total{" in bridge.metrics.page().decode(), 20)
    assert all(turn.up for turn in turns(bridge))
    # The GPU is seen even where its lines are refused.
    assert len(set(turns(bridge)[-1].gpu_uuids)) == 8


def test_a_gpu_that_is_lost_is_missing_and_nothing_is_made_up_for_it(fleet, bridge, wait_for):
    wait_for(lambda: len(turns(bridge)) >= 1, 20)
    fleet.strike("gpu_lost", gpu=5)
    wait_for(lambda: len(turns(bridge)[-1].gpu_uuids) == 7, 20)
    last = turns(bridge)[-1]
    gpus = [record for record in records(bridge) if isinstance(record, GpuRecord) and record.seq == last.seq]
    assert (last.up, len(gpus), 5 in {gpu.gpu_index for gpu in gpus}) == (True, 7, False)


def test_sentinels_are_rejected_and_no_number(fleet, bridge, wait_for):
    wait_for(lambda: len(turns(bridge)) >= 1, 20)
    fleet.strike("sentinels", gpu=2)
    wait_for(lambda: 'reason="sentinel"' in bridge.metrics.page().decode(), 20)
    struck = [record for record in records(bridge) if isinstance(record, GpuRecord) and record.rejected]
    assert {record.gpu_index for record in struck} == {2}
    assert Counter(value.reason for value in struck[-1].rejected.values())["sentinel"] >= 1


def test_a_frozen_page_is_up_and_its_changed_at_stands_still(fleet, bridge, wait_for):
    wait_for(lambda: len(turns(bridge)) >= 1, 20)
    fleet.strike("frozen")
    wait_for(lambda: len(turns(bridge)) >= 5 and len({turn.changed_at for turn in turns(bridge)[-3:]}) == 1, 20)
    last = turns(bridge)[-1]
    assert last.up
    assert last.changed_at < last.collected_at
