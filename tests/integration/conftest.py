"""An emulated node and the bridge's reading side of it, without a network in between; and a bridge as a process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from exporter_bridge.exposition import Exposition
from exporter_bridge.layouts import Page
from exporter_bridge.records import RecordBuilder, Scrape, Turn
from gpu_telemetry.clock import ManualClock, to_milliseconds
from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode

START = datetime(2026, 1, 1, tzinfo=UTC)


class Read(NamedTuple):
    """What one scrape of node-1 gave."""

    body: bytes
    page: Page
    scrape: Scrape
    records: dict[tuple[str, str | None], GpuRecord]
    closing: ScrapeRecord


class NodeReader:
    """Node-1 of a fleet and the bridge's reading side of it, kept from scrape to scrape."""

    def __init__(self, **options):
        self.clock = ManualClock(START)
        self.fleet = Fleet(EmulatorSettings(nodes=1, gpus=4, **options), self.clock)
        self.exposition = Exposition()
        self._parser = self.exposition.parser()
        self._builder = RecordBuilder()
        self._seq = 0

    @property
    def node(self):
        return self.fleet.node("node-1")

    def set(self, kind, gpu=None, **parameters) -> None:
        """Put a fault in."""
        self.fleet.set_fault(kind, "node-1", gpu, parameters)

    def scrape(self, change=lambda body: body) -> Read:
        """Scrape the node; `change` is what happens to the page on its way."""
        self._seq += 1
        body = change(self.fleet.page("node-1"))
        page = self._parser.parse(body)
        turn = Turn(
            node_id="node-1",
            bridge_id="bridge",
            boot_id="boot",
            seq=self._seq,
            collected_at_ms=to_milliseconds(self.clock.now()),
            interval_ms=30_000,
        )
        scrape = self._builder.build(page, turn)
        *gpus, closing = [decode(message) for message in scrape.messages]
        assert isinstance(closing, ScrapeRecord)
        records = {(record.gpu_uuid, record.mig_instance): record for record in gpus}
        assert len(records) == len(gpus) == scrape.gpu_records == closing.gpu_records
        return Read(body, page, scrape, records, closing)

    def scrapes(self):
        """Scrapes over a day in which jobs come and go; each is checked before the next."""
        for seconds in (0, 30, 1800, 30, 7200, 30, 30, 40_000):
            self.clock.advance(seconds)
            yield self.scrape()


@pytest.fixture
def read_node():
    """`read_node(**settings)`: a reader of node-1 of a fleet with four GPUs and these settings."""
    return NodeReader


PAGE = """\
# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{{gpu="0",UUID="GPU-{node}",device="nvidia0",modelName="NVIDIA H100",Hostname="{node}"}} {value}
"""


class _Exporter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        node = self.path.strip("/").partition("/")[0]
        self.server.scrapes[node] += 1
        body = PAGE.format(node=node, value=self.server.scrapes[node] % 80).encode()
        self.send_response(500 if node.startswith("broken") else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def exporters():
    """A server whose path /NODE/metrics is an exporter; `scrapes` counts by node."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    server.daemon_threads = True
    server.scrapes = defaultdict(int)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Bridge:
    """A bridge's process, its log and its port."""

    def __init__(self, folder, exporters, port, environment, arguments=()):
        self.port = port
        self.log = folder / "bridge.log"
        self.targets = folder / "targets.json"
        self._exporter_port = exporters.server_port
        self._arguments = arguments
        self._environment = {
            "BRIDGE_TARGETS_FILE": str(self.targets),
            "BRIDGE_LISTEN": f"127.0.0.1:{port}",
            "BRIDGE_INTERVAL_SECONDS": "0.5",
            "BRIDGE_REFRESH_SECONDS": "0.2",
        } | environment
        self.process = None

    def list(self, *nodes):
        """Write the targets file."""
        groups = [
            {
                "targets": [f"127.0.0.1:{self._exporter_port}"],
                "labels": {
                    "node_id": node,
                    "datacenter": "us-west-1",
                    "instance": f"{node}:9400",
                    "__metrics_path__": f"/{node}/metrics",
                },
            }
            for node in nodes
        ]
        self.write(groups)

    def write(self, groups):
        """Put a list of target groups in place."""
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps(groups))
        new.replace(self.targets)

    def start(self, *nodes):
        """Write the targets file, and run."""
        self.list(*nodes)
        return self.run()

    def run(self):
        """Run with the targets file as it is."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "KAFKA_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpu_telemetry.cli", "bridge", *self._arguments],
                env=environment | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name):
        """A number of its own metrics; None before it serves them."""
        try:
            page = self.get("/metrics")
        except OSError:
            return None
        return next((float(line.split(" ")[1]) for line in page.splitlines() if line.startswith(f"{name} ")), None)

    def said(self):
        return self.log.read_text()

    def end(self, deadline_seconds=15.0):
        """End it by SIGTERM; its exit status and how long it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(deadline_seconds), time.monotonic() - began


@pytest.fixture
def bridge(tmp_path, exporters, free_ports):
    """`bridge(bootstrap, topic, ...)`: a bridge that is started by `start(nodes)` and ended with the test."""
    made = []

    def make(bootstrap, topic, *arguments, **environment):
        settings = {"KAFKA_BOOTSTRAP_SERVERS": bootstrap, "KAFKA_TOPIC": topic, "KAFKA_DLQ_TOPIC": f"{topic}.dlq"}
        made.append(Bridge(tmp_path, exporters, *free_ports(1), settings | environment, arguments))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)
