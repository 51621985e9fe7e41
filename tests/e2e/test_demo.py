"""The demo as a newcomer sees it: a fresh clone, `make demo`, the story to its end, Ctrl-C, nothing left."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import psycopg
import pytest

from gpu_telemetry.local.kafka import console_consumer_command

pytestmark = pytest.mark.e2e

_REPOSITORY = Path(__file__).parents[2]
# Two minutes are promised after the last download; the rest is the set-up, and a machine that does other things too.
_STORY_SECONDS = 360
_STOP_SECONDS = 17

STORY = (
    r"16 GPUs of 2 nodes report",
    r"Fault overheat put in: the cooling of node-2 GPU (\d) fails",
    r"Alert \d+ \[warning\] on node-2 GPU \1: GPU temperature is 9[0-5]\.\d°C",
    r"Alert \d+ \[critical\] on node-2 GPU \1: GPU temperature is 9\d\.\d°C",
    r"Workload migrated: \S+ from node-2 GPU \1 to node-\d GPU \d",
    r"node-2 GPU \1 cools: ",
    r"Alert \d+ resolved \(cleared\) after \d+ s",
)


def marked(mark):
    """Every process that carries the mark in its environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environ.read_bytes().split(b"\0"):
                found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def clone(tmp_path):
    if shutil.which("git") is None or not (_REPOSITORY / ".git").exists():
        pytest.skip("no git repository to clone")
    target = tmp_path / "clone"
    # A clone that the tests run in may itself be owned by someone else.
    git = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", str(_REPOSITORY), str(target)]
    subprocess.run(git, check=True, timeout=120)
    return target


@pytest.fixture
def demo(clone, tmp_path, free_port_offset, wait_for):
    """A running `make demo`; its output, its mark, and the offset of its ports."""
    offset = free_port_offset()
    log = tmp_path / "demo.log"
    mark = f"GPU_TELEMETRY_TEST_RUN={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    # What this test's own set-up put into the environment is not the newcomer's.
    environment = {key: text for key, text in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "VENV"}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "demo", f"ARGS=--port-offset {offset}"],
            cwd=clone,
            env=environment | {name: value},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process, log, mark, offset
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not marked(mark), 15, lambda: f"processes are left: {marked(mark)}")


NODE = {"node_id", "hostname", "status", "datacenter", "last_seen", "active_alerts"}
ALERT = {
    "id",
    "node_id",
    "gpu_index",
    "alert_type",
    "severity",
    "message",
    "threshold_value",
    "actual_value",
    "status",
    "triggered_at",
}


def assert_promised_shapes(api, alert):
    """The five promised calls, asked of the running stack."""
    assert [set(node) for node in httpx.get(f"{api}/nodes").json()] == [NODE, NODE]
    newest = httpx.get(f"{api}/nodes/node-1/metrics?limit=10").json()
    assert len(newest) == 10
    assert [row["collected_at"] for row in newest] == sorted((row["collected_at"] for row in newest), reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["collected_at"]) for row in newest)
    latest = httpx.get(f"{api}/metrics/latest").json()
    assert len({row["gpu_uuid"] for row in latest}) == len(latest) == 16
    assert len(httpx.get(f"{api}/metrics/latest?node=node-2").json()) == 8
    assert set(alert) >= ALERT
    again = httpx.post(f"{api}/alerts/{alert['id']}/resolve").raise_for_status().json()
    assert (again["id"], again["status"], again["resolved_reason"]) == (alert["id"], "resolved", "cleared")


def assert_kafka_shows_json(bootstrap):
    """Kafka's own console consumer shows what anyone can read."""
    options = ("--from-beginning", "--max-messages", "20", "--timeout-ms", "30000")
    command = console_consumer_command(bootstrap, "gpu-telemetry", options=options)
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    records = [json.loads(line) for line in shown]
    assert len(records) == 20
    assert {record["kind"] for record in records} == {"gpu", "scrape"}
    assert {record["node_id"] for record in records} <= {"node-1", "node-2"}


def test_the_demo_tells_its_story_and_ends_on_ctrl_c(clone, demo, wait_for):
    process, log, mark, offset = demo

    def over():
        assert process.poll() is None, log.read_text()
        text = log.read_text()
        assert "The story stopped" not in text, text
        return "Look further" in text

    wait_for(over, _STORY_SECONDS, log.read_text)
    told = log.read_text()
    assert re.search(".*".join(STORY), told, re.DOTALL), told

    api = f"http://127.0.0.1:{8080 + offset}/api/v1"
    alert = httpx.get(f"{api}/alerts?node=node-2").raise_for_status().json()[-1]
    assert (alert["alert_type"], alert["severity"], alert["status"]) == ("high_temperature", "critical", "resolved")
    assert alert["threshold_value"] == 90.0
    assert httpx.get(f"{api}/alerts/active").json() == []
    nodes = httpx.get(f"{api}/nodes").json()
    assert [(node["node_id"], node["status"]) for node in nodes] == [("node-1", "healthy"), ("node-2", "healthy")]
    assert_promised_shapes(api, alert)
    assert_kafka_shows_json(f"127.0.0.1:{9092 + offset}")

    password = (clone / ".data" / "postgres" / "password").read_text().strip()
    url = f"postgresql://telemetry:{password}@127.0.0.1:{5432 + offset}/gpu_telemetry"
    with psycopg.connect(url) as connection:
        metrics = connection.execute(
            "SELECT node_id, gpu_index, temperature_celsius, collected_at FROM gpu_metrics "
            "ORDER BY collected_at DESC LIMIT 10"
        ).fetchall()
        actions = connection.execute(
            "SELECT a.alert_type, a.severity, aa.action_type, aa.action_details "
            "FROM alerts a JOIN alert_actions aa ON a.id = aa.alert_id"
        ).fetchall()
    assert len(metrics) == 10
    assert ("high_temperature", "critical", "migrate_workload") in [row[:3] for row in actions]

    status = [clone / ".venv" / "bin" / "gpu-telemetry", "status", "--json", "--data", clone / ".data"]
    state = json.loads(subprocess.run(status, capture_output=True, text=True, timeout=30, check=True).stdout)
    assert state["unanswered"] == {}
    assert {part["state"] for part in state["parts"]} == {"up"}
    assert sum(part["restarts"] for part in state["parts"]) == 0, state["parts"]

    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=_STOP_SECONDS)
    assert time.monotonic() - began < _STOP_SECONDS
    wait_for(lambda: not marked(mark), 10, lambda: f"processes are left: {marked(mark)}")
    assert "Stopped in " in log.read_text()
    # make ends by the signal that it was sent, once its recipe has ended; a failed recipe would be named.
    assert "Error" not in log.read_text().splitlines()[-1]

    subprocess.run(["make", "clean"], cwd=clone, check=True, capture_output=True, timeout=60)
    assert not (clone / ".data").exists()
