"""The emulator is the receiver that migrations are asked of in the demo: both sides agree."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest

from alerting.actions.action import Action
from alerting.actions.migration import EmulatorMigrator


@pytest.fixture
def emulator_url(free_ports, wait_for):
    [port] = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-c", "from gpu_telemetry.cli import main; main()", "emulator"],
        env=os.environ | {"EMULATOR_LISTEN": f"127.0.0.1:{port}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def answers():
        try:
            return httpx.get(f"{url}/control/state").is_success
        except httpx.TransportError:
            return False

    wait_for(answers, 20, "the emulator answers")
    yield url
    process.terminate()
    process.wait(10)


def asked(node_id, gpu, key):
    now = datetime.now(UTC)
    return Action(
        action_id=1,
        alert_id=1,
        action_type="migrate_workload",
        transition="raised",
        key=key,
        details={},
        attempt=1,
        event_time=now,
        created_at=now,
        alert_type="high_temperature",
        node_id=node_id,
        datacenter=None,
        hostname=None,
        gpu_index=gpu["gpu_index"],
        gpu_uuid=gpu["gpu_uuid"],
        mig_instance=None,
        triggered_at=now,
    )


def test_a_job_is_moved_once_for_one_key_and_an_idle_gpu_is_a_refusal_with_its_reason(emulator_url):
    nodes = httpx.get(f"{emulator_url}/control/state").json()["nodes"]
    node_id, busy = next((node["node_id"], gpu) for node in nodes for gpu in node["gpus"] if gpu["workloads"])
    with httpx.Client(timeout=5) as client:
        migrator = EmulatorMigrator(client, f"{emulator_url}/control/migrate")
        first = migrator.migrate(asked(node_id, busy, '["high_temperature","node-1"]'))
        assert first.status == "succeeded", first.reason
        assert first.details["from"]["gpu_uuid"] == busy["gpu_uuid"]
        assert first.details["to"]["gpu_uuid"] != busy["gpu_uuid"]
        assert first.details["workload"]["pod"]
        again = migrator.migrate(asked(node_id, busy, '["high_temperature","node-1"]'))
        assert again.details["to"] == first.details["to"]
        refused = migrator.migrate(asked(node_id, busy, "another key"))
    assert refused.status == "failed"
    assert refused.reason.startswith("409: ")
    assert "runs no job" in refused.reason
