"""The demo's story against services that answer what a test says: what it tells, and what it says of a gap."""

import http.server
import json
import threading
from datetime import UTC, datetime

import pytest

from gpu_telemetry.clock import rfc3339
from gpu_telemetry.local import story as story_module
from gpu_telemetry.local.story import STEPS, Story
from gpu_telemetry.local.supervisor import Level

WORKLOAD = {"namespace": "ml", "pod": "train-7", "container": "main"}
ACTION = {
    "action_type": "migrate_workload",
    "status": "succeeded",
    "reason": None,
    "action_details": {
        "from": {"node_id": "node-2", "gpu_index": 5},
        "to": {"node_id": "node-2", "gpu_index": 1},
        "workload": WORKLOAD,
    },
}


def transition(kind, severity, celsius):
    return {"transition": kind, "severity": severity, "message": f"GPU temperature is {celsius}°C"}


class Services:
    """The API and the emulated fleet at once; `pages` is one temperature and state of the alert a request for it."""

    def __init__(self):
        self.calls = []
        self.celsius = [70.0]
        self.alerts = [None]
        self.busy = True
        self.fresh = True
        self.reporting = ["GPU-4", "GPU-5"]

    def answer(self, method, path, query, body):
        self.calls.append((method, path, query, body))
        if path == "/control/state":
            gpus = [
                {
                    "gpu_index": index,
                    "gpu_uuid": f"GPU-{index}",
                    "temperature_celsius": 70.0,
                    "gpu_utilization_percent": load,
                    "workload": WORKLOAD if self.busy else None,
                }
                for index, load in ((4, 60.0), (5, 98.0))
            ]
            return {"nodes": [{"gpus": gpus}]}
        if path == "/api/v1/metrics/latest":
            now = self.celsius.pop(0) if len(self.celsius) > 1 else self.celsius[0]
            when = rfc3339(datetime.now(UTC)) if self.fresh else "2026-01-31T12:00:00.000Z"
            return [
                {"node_id": "node-2", "gpu_uuid": uuid, "temperature_celsius": now, "collected_at": when}
                for uuid in self.reporting
            ]
        if path == "/api/v1/alerts":
            now = self.alerts.pop(0) if len(self.alerts) > 1 else self.alerts[0]
            self.alert = now
            return [] if now is None else [now]
        return self.alert if path.startswith("/api/v1/alerts/") else {}

    def called(self, method):
        return [call for call in self.calls if call[0] == method]


@pytest.fixture
def services():
    made = Services()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self):
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = json.dumps(made.answer(self.command, path, query, body)).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that http.server calls

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def tell(services, monkeypatch):
    """`tell(seconds=20)`: tell the story with short waits and so long for its end; gives it and its events."""
    monkeypatch.setattr(story_module, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(story_module, "_FLEET_DEADLINE_SECONDS", 0.3)
    monkeypatch.setattr(story_module, "_BUSY_DEADLINE_SECONDS", 0.3)

    def _tell(stopping=None, seconds=20.0):
        monkeypatch.setattr(story_module, "_STORY_DEADLINE_SECONDS", seconds)
        events = []
        story = Story(services.url, services.url, events.append, stopping or threading.Event(), quiet_seconds=0)
        story.tell()
        assert story.finished.is_set()
        return story, events

    return _tell


def alert(status="active", *, steps=(), actions=()):
    now = rfc3339(datetime.now(UTC))
    return {
        "id": 3,
        "alert_type": "high_temperature",
        "gpu_index": 5,
        "status": status,
        "triggered_at": now,
        "resolved_at": now if status == "resolved" else None,
        "resolved_reason": "cleared" if status == "resolved" else None,
        "transitions": list(steps),
        "actions": list(actions),
    }


WARNED = [transition("fired", "warning", 91.2)]
RAISED = [*WARNED, transition("raised", "critical", 96.3)]


def test_the_story_is_told_in_order_from_what_the_services_say(services, tell):
    services.celsius = [70.0, 91.2, 96.3, 88.0, 84.0]
    services.alerts = [
        None,
        alert(steps=WARNED),
        alert(steps=RAISED, actions=[ACTION | {"status": "pending"}]),
        alert(steps=RAISED, actions=[ACTION]),
        alert("resolved", steps=RAISED, actions=[ACTION]),
    ]
    story, events = tell()
    assert story.missing == []
    assert [event.text for event in events] == [
        "2 GPUs of 1 nodes report; all is quiet",
        "Fault overheat put in: the cooling of node-2 GPU 5 fails. It runs ml/train-7 at 98 % and 70 °C",
        "Alert 3 [warning] on node-2 GPU 5: GPU temperature is 91.2°C",
        "Alert 3 [critical] on node-2 GPU 5: GPU temperature is 96.3°C",
        "Action migrate_workload is pending",
        "Workload migrated: ml/train-7 from node-2 GPU 5 to node-2 GPU 1",
        "node-2 GPU 5 cools: 88.0 °C, its peak was 96.3 °C",
        "Alert 3 resolved (cleared) after 0 s",
        "Fault overheat taken out: node-2 GPU 5 has its cooling back",
    ]


def test_the_fault_goes_to_the_busiest_gpu_and_is_taken_out_again(services, tell):
    services.alerts = [alert("resolved", steps=RAISED, actions=[ACTION])]
    services.celsius = [96.0, 96.0, 80.0]
    tell()
    (put_in,) = services.called("POST")
    assert json.loads(put_in[3]) == {"kind": "overheat", "node": "node-2", "gpu": 5}
    (taken_out,) = services.called("DELETE")
    assert taken_out[2] == "kind=overheat&node=node-2&gpu=5"


def test_a_story_without_an_alert_says_what_is_missing_and_takes_the_fault_out(services, tell):
    story, events = tell(seconds=1.0)
    assert story.missing == list(STEPS[2:])
    assert events[-1].level is Level.BAD
    assert events[-1].text == f"The story stopped: not seen within 1 s: {', '.join(STEPS[2:])}"
    assert len(services.called("DELETE")) == 1


def test_a_migration_that_failed_is_told_with_its_reason(services, tell):
    failed = ACTION | {"status": "failed", "reason": "no free GPU"}
    services.alerts = [alert(steps=RAISED, actions=[failed])]
    story, events = tell(seconds=1.0)
    assert "the workload migrated" in story.missing
    assert "Migration failed: no free GPU" in [event.text for event in events]


@pytest.mark.parametrize("lack", [{"reporting": ["GPU-5"]}, {"fresh": False}], ids=["a GPU is missing", "all is old"])
def test_no_fault_is_put_in_before_the_whole_fleet_has_reported_in_this_run(services, tell, lack):
    vars(services).update(lack)
    story, _ = tell()
    assert story.missing == list(STEPS)
    assert services.called("POST") == []


def test_without_a_busy_gpu_no_fault_is_put_in(services, tell):
    services.busy = False
    story, _ = tell()
    assert story.missing == list(STEPS[1:])
    assert services.called("POST") == services.called("DELETE") == []


def test_a_story_that_is_interrupted_says_nothing_more_and_takes_the_fault_out(services, tell):
    stopping = threading.Event()
    answer = services.answer

    def stop_at_the_first_alert(method, path, query, body):
        if path == "/api/v1/alerts":
            stopping.set()
        return answer(method, path, query, body)

    services.answer = stop_at_the_first_alert
    _, events = tell(stopping)
    assert len(services.called("DELETE")) == 1
    assert all(event.level is not Level.BAD for event in events)
