"""A real Prometheus scrapes the fleet through the shards that the bridge lists, and sees what it would see alone."""

import asyncio
import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import uvloop

from exporter_bridge.service import Bridge
from exporter_bridge.settings import BridgeSettings
from gpu_telemetry.settings import KafkaSettings

pytestmark = pytest.mark.integration

# Both spellings of the host name, a pod with a quote, a family in two groups, a label that the bridge brings too.
PAGE = """\
# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-0",Hostname="h",pod="a\\"b"} 45
DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="GPU-1",Hostname="h",instance="theirs"} 46.500000
# HELP DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL Total NVLink bandwidth.
# TYPE DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL counter
DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL{gpu="0",UUID="GPU-0",Hostname="h"} 12
# HELP DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL Total NVLink bandwidth.
# TYPE DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL counter
DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL{nvlink="3",gpu="0",hostname="h"} 7
"""

# Scraped straight by Prometheus, and through the bridge: both must hold the same series.
CONFIGURATION = """\
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: straight
    metrics_path: /node-1/metrics
    static_configs:
      - targets: ["127.0.0.1:{exporter}"]
  - job_name: bridge
    honor_labels: true
    http_sd_configs:
      - url: http://127.0.0.1:{bridge}/sd
        refresh_interval: 1s
"""


class _Exporter(BaseHTTPRequestHandler):
    def do_GET(self):
        failing = self.path.startswith(tuple(self.server.failing))
        body = b"" if failing else PAGE.encode()
        self.send_response(500 if failing else 200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def exporters():
    """An exporter at /NODE/metrics; those whose paths begin with one of `failing` answer 500."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    server.daemon_threads = True
    server.failing = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bridge_port(exporters, tmp_path, free_ports, wait_for):
    """A bridge over node-1 and node-2 that serves two or more shards; Kafka is nowhere."""
    port, nobody = free_ports(2)
    groups = [
        {
            "targets": [f"127.0.0.1:{exporters.server_port}"],
            "labels": {"node_id": node, "datacenter": "us-west-1", "__metrics_path__": f"/{node}/metrics"},
        }
        for node in ("node-1", "node-2")
    ]
    file = tmp_path / "targets.json"
    file.write_text(json.dumps(groups))
    settings = BridgeSettings(
        targets_file=file, listen=f"127.0.0.1:{port}", interval_seconds=0.5, flush_seconds=0, nodes_per_sd_shard=1
    )
    loop = []

    async def run():
        stop = asyncio.Event()
        loop.append((asyncio.get_running_loop(), stop))
        await Bridge(settings, KafkaSettings(bootstrap_servers=f"127.0.0.1:{nobody}")).run(stop)

    thread = threading.Thread(target=lambda: uvloop.run(run()))
    thread.start()
    wait_for(lambda: loop)
    yield port
    running, stop = loop[0]
    running.call_soon_threadsafe(stop.set)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def prometheus(exporters, bridge_port, tmp_path, free_ports):
    """`prometheus(query)`: the answer's list of (labels, value)."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    (port,) = free_ports(1)
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(exporter=exporters.server_port, bridge=bridge_port))
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )

    def ask(query):
        with suppress(OSError):
            address = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
            with urllib.request.urlopen(address, timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
            return [(result["metric"], result["value"][1]) for result in found]
        return []

    yield ask
    process.terminate()
    process.wait(20)


def without(labels, *names):
    return {name: value for name, value in labels.items() if name not in names}


def test_a_series_through_the_bridge_is_the_series_of_the_exporter(prometheus, exporters, wait_for):
    series = '{{__name__=~"DCGM_.*",{}}}'
    through, straight = series.format('node_id="node-1"'), series.format('job="straight"')
    wait_for(lambda: len(prometheus(through)) == len(prometheus(straight)) == 4, 30)
    address = f"127.0.0.1:{exporters.server_port}"

    def key(row):
        return sorted(row[0].items())

    ours = sorted(((without(labels, "job", "node_id", "datacenter"), v) for labels, v in prometheus(through)), key=key)
    theirs = sorted(((without(labels, "job"), value) for labels, value in prometheus(straight)), key=key)
    assert ours == theirs
    assert {labels["instance"] for labels, _ in ours} == {address}


def test_a_failed_node_goes_stale_at_once_and_its_up_is_0(prometheus, exporters, wait_for):
    temperature = 'DCGM_FI_DEV_GPU_TEMP{node_id="node-2"}'
    wait_for(lambda: len(prometheus(temperature)) == 2, 30)
    assert prometheus('gpu_exporter_up{node_id="node-2"}')[0][1] == "1"
    exporters.failing.add("/node-2/")
    # Without a staleness marker Prometheus would show the last value for five minutes.
    wait_for(lambda: prometheus(temperature) == [], 30)
    assert prometheus('gpu_exporter_up{node_id="node-2"}')[0][1] == "0"
    assert len(prometheus('DCGM_FI_DEV_GPU_TEMP{node_id="node-1"}')) == 2
    exporters.failing.clear()
    wait_for(lambda: len(prometheus(temperature)) == 2, 30)


def test_the_shards_are_told_apart_in_up(prometheus, bridge_port, wait_for):
    wait_for(lambda: len(prometheus('up{job="bridge"} == 1')) == 2, 30)
    instances = {labels["instance"] for labels, _ in prometheus('up{job="bridge"}')}
    assert instances == {f"127.0.0.1:{bridge_port}/{index}/2" for index in range(2)}


def test_promtool_finds_fault_with_nothing_but_dcgms_own_names(bridge_port, wait_for):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")

    def page():
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{bridge_port}/fleet/metrics") as answer:
            return answer.read().decode()
        return ""

    wait_for(lambda: page().count("DCGM_FI_DEV_GPU_TEMP{") == 4, 30)
    done = subprocess.run([promtool, "check", "metrics"], input=page(), text=True, capture_output=True, check=False)
    complaints = [
        line for line in done.stderr.splitlines() if not re.match(r"DCGM_\w+ (counter metrics|label names)", line)
    ]
    assert complaints == []
