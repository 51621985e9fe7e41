"""What a notice looks like to a webhook, and what identifies a decision."""

import json
from datetime import UTC, datetime

import httpx

from alerting.actions.action import Action, Done, TryAgain
from alerting.actions.http import answer_of, refusal_of
from alerting.actions.webhook import Webhook, fingerprint, payload_of
from alerting.alert_rows import decision_key
from alerting.transitions import AlertKey, Transition

BEGAN = datetime(2026, 3, 31, 12, 0, 0, 500_000, tzinfo=UTC)
ENDED = datetime(2026, 3, 31, 12, 5, tzinfo=UTC)


def action(**changes):
    given = {
        "action_id": 7,
        "alert_id": 3,
        "action_type": "notify",
        "transition": "raised",
        "key": "[]",
        "details": {"severity": "critical", "message": "GPU temperature is 96.3°C", "actual_value": 96.3},
        "attempt": 1,
        "event_time": ENDED,
        "created_at": ENDED,
        "alert_type": "high_temperature",
        "node_id": 'node-"1"',
        "datacenter": "us-west-1",
        "hostname": None,
        "gpu_index": 0,
        "gpu_uuid": "GPU-1",
        "mig_instance": None,
        "triggered_at": BEGAN,
    }
    return Action(**(given | changes))


def test_a_rise_is_a_firing_alert_with_the_new_severity():
    body = payload_of(action(), "https://telemetry.example/")
    assert body["status"] == "firing"
    [alert] = body["alerts"]
    assert alert["startsAt"] == "2026-03-31T12:00:00.500Z"
    assert alert["labels"] == {
        "alertname": "high_temperature",
        "severity": "critical",
        "node_id": 'node-"1"',
        "datacenter": "us-west-1",
        "gpu": "0",
        "gpu_uuid": "GPU-1",
    }
    assert alert["annotations"]["actual_value"] == "96.3"
    assert alert["generatorURL"] == "https://telemetry.example/api/v1/alerts/3"
    assert body["groupKey"] == r'{}:{alertname="high_temperature", node_id="node-\"1\"", gpu_uuid="GPU-1"}'
    assert body["truncatedAlerts"] == 0
    assert json.dumps(body)


def test_the_end_of_one_gpus_alert_ends_no_other_ones_group():
    keys = [
        payload_of(action(**changes), "http://localhost")["groupKey"]
        for changes in ({}, {"gpu_uuid": "GPU-2"}, {"mig_instance": "1"}, {"gpu_uuid": None})
    ]
    assert len(set(keys)) == 4


def test_an_end_says_when_and_keeps_the_fingerprint():
    ended = action(transition="resolved", details={"severity": "critical", "resolved_reason": "cleared"})
    [alert] = payload_of(ended, "http://localhost")["alerts"]
    assert (alert["status"], alert["endsAt"]) == ("resolved", "2026-03-31T12:05:00.000Z")
    assert alert["annotations"]["resolved_reason"] == "cleared"
    assert alert["fingerprint"] == fingerprint(action())
    assert fingerprint(action(triggered_at=ENDED)) != fingerprint(action())


def test_a_webhooks_answer_says_whether_to_try_again():
    def answering(status):
        client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(status)))
        return Webhook(client, "http://receiver.example/secret", "http://localhost").send(action())

    assert isinstance(answering(204), Done)
    for status in (408, 429, 500, 503):
        assert isinstance(answering(status), TryAgain), status
    for status in (302, 400, 404):
        assert answering(status).status == "failed", status


def test_an_answer_is_taken_for_what_it_is():
    assert answer_of(httpx.Response(200, json={"to": 1})) == {"to": 1}
    assert answer_of(httpx.Response(200, text="[1]")) == {}
    assert answer_of(httpx.Response(200, content=b'{"a":"' + b"x" * 70_000 + b'"}')) == {}
    assert refusal_of(httpx.Response(409, json={"detail": "busy"})) == "409: busy"
    assert refusal_of(httpx.Response(409, text="busy")) == "HTTP status 409"


def transition(**changes):
    given = {
        "key": AlertKey("high_temperature", "nœud|1", "GPU-1", None),
        "kind": "raised",
        "at": ENDED,
        "started_at": BEGAN,
        "severity": "critical",
        "message": "",
    }
    return Transition(**(given | changes))


def test_a_decisions_key_is_one_line_of_ascii_that_tells_all_its_parts_apart():
    key = decision_key(transition(), "notify")
    assert json.loads(key) == [
        "high_temperature",
        "nœud|1",
        "GPU-1",
        None,
        "2026-03-31T12:00:00.500Z",
        "raised:critical",
        "notify",
    ]
    assert key.isascii()
    others = [
        transition(severity="warning"),
        transition(kind="fired"),
        transition(started_at=ENDED),
        transition(key=AlertKey("high_temperature", "nœud|1", "GPU-1", "1")),
    ]
    assert len({key, *(decision_key(other, "notify") for other in others), decision_key(transition(), "x")}) == 6
