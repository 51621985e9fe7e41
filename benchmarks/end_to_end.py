"""What a GPU record costs from page to row: the CPU of bridge, broker, worker and PostgreSQL, each from the system.

Pages are rendered ahead and served from memory, so the exporters' own cost stays out. Run alone by
`python -m benchmarks.end_to_end --nodes 100 --seconds 20`.
"""

import argparse
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cpu import cpu_seconds, resident_bytes
from benchmarks.pages import render_fleet
from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.local.postgres import PostgresServer

_START_SECONDS = 120.0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


@contextmanager
def _process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[int]:
    """A child that is ended, in an orderly way if it can be, when the block is left; gives its process id."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
    try:
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait(condition: Callable[[], bool], what: str, logs: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass  # not listening yet
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come within {_START_SECONDS:g} s; the logs are in {logs}")


def _stored_gpu_records(port: int) -> float:
    """How many GPU records the alert engine says it has stored, on its own /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "alert_engine_records_stored_total" and sample.labels["kind"] == "gpu"
    )


def run(
    nodes: int = 100, gpus: int = 8, interval_seconds: float = 1.0, warm_up_seconds: float = 10, seconds: float = 20
) -> dict[str, float]:
    """Run the whole path for a while and give CPU microseconds per GPU record of each part and of all together."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-telemetry-bench-")))
        home.chmod(0o755)
        logs = home / "logs"
        logs.mkdir()
        page_port, bridge_port, alerting_port, pg_port, kafka_port, controller_port = _free_ports(6)

        print(f"rendering pages of {nodes} nodes x {gpus} GPUs", file=sys.stderr)
        pages = home / "pages.pickle"
        pages.write_bytes(pickle.dumps(render_fleet(nodes, gpus, variants=2)))
        targets = home / "targets.json"
        targets.write_text(
            json.dumps(
                [
                    {
                        "targets": [f"127.0.0.1:{page_port}"],
                        "labels": {
                            "__metrics_path__": f"/nodes/{node}/metrics",
                            "node_id": f"node-{node}",
                            "instance": f"node-{node}:9400",
                            "datacenter": "bench",
                        },
                    }
                    for node in range(nodes)
                ]
            )
        )

        postgres = PostgresServer(home / "postgres", pg_port, log=logs / "postgres.log", password=False)
        stack.callback(postgres.stop)
        postgres.start()
        kafka = KafkaServer(home / "kafka", kafka_port, controller_port, log=logs / "kafka.log")
        stack.callback(kafka.stop)
        kafka.start()
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
            "DATABASE_URL": postgres.url,
            "BRIDGE_LISTEN": f"127.0.0.1:{bridge_port}",
            "BRIDGE_TARGETS_FILE": str(targets),
            "BRIDGE_INTERVAL_SECONDS": f"{interval_seconds:g}",
            "ALERTING_LISTEN": f"127.0.0.1:{alerting_port}",
        }
        command = str(Path(sys.executable).with_name("gpu-telemetry"))
        for verb in (["db", "upgrade"], ["topics", "ensure"]):
            subprocess.run([command, *verb], env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        stack.enter_context(
            _process(
                [sys.executable, "-m", "benchmarks.page_server", str(page_port), str(pages)],
                {},
                logs / "pages.log",
            )
        )
        worker = stack.enter_context(_process([command, "alert-engine"], environment, logs / "alerting.log"))
        bridge = stack.enter_context(_process([command, "bridge"], environment, logs / "bridge.log"))

        def stored() -> float:
            return _stored_gpu_records(alerting_port)

        _wait(lambda: stored() >= nodes * gpus, "the first records", logs)
        print(f"warming up for {warm_up_seconds:g} s, measuring for {seconds:g} s", file=sys.stderr)
        time.sleep(warm_up_seconds)

        assert kafka.pid is not None
        assert postgres.pid is not None
        parts = {"bridge": bridge, "broker": kafka.pid, "worker": worker, "postgres": postgres.pid}

        records, used = stored(), {name: cpu_seconds(pid) for name, pid in parts.items()}
        time.sleep(seconds)
        records = stored() - records
        used = {name: cpu_seconds(pid) - used[name] for name, pid in parts.items()}
        if records < 0.9 * nodes * gpus * seconds / interval_seconds:
            print(f"the machine did not keep up: {records:.0f} records in {seconds:g} s", file=sys.stderr)

        result = {f"{name}_cpu_us_per_record": spent / records * 1e6 for name, spent in used.items()}
        result["end_to_end_cpu_us_per_record"] = sum(used.values()) / records * 1e6
        result["end_to_end_records_per_second"] = records / seconds
        result["bridge_resident_mib"] = resident_bytes(bridge) / 2**20
        result["worker_resident_mib"] = resident_bytes(worker) / 2**20
        return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--warm-up", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    for key, value in run(given.nodes, given.gpus, given.interval, given.warm_up, given.seconds).items():
        print(f"{key:36} {value:12.2f}")
