"""Alerts as annotations, written to a stand-in for Grafana: what it is told, and what its failures come to."""

from datetime import UTC, datetime, timedelta

import pytest

from alerting.actions.action import Action, Done, TryAgain
from alerting.actions.annotations import GrafanaAnnotator
from alerting.rules import load_rules, with_annotations
from alerting.settings import AlertingSettings
from gpu_telemetry.settings import SettingsError

FIRED = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def an_action(transition="fired", attempt=1, gpu_index=3):
    return Action(
        action_id=17,
        alert_id=4,
        action_type="annotate",
        transition=transition,
        key="[]",
        details={"severity": "critical", "message": "GPU temperature is 96.3°C", "resolved_reason": "cleared"},
        attempt=attempt,
        event_time=FIRED if transition == "fired" else FIRED + timedelta(minutes=2),
        created_at=FIRED,
        alert_type="high_temperature",
        node_id="node-2",
        datacenter="us-west-1",
        hostname="node-2",
        gpu_index=gpu_index,
        gpu_uuid=None if gpu_index is None else "GPU-1",
        mig_instance=None,
        triggered_at=FIRED,
    )


@pytest.fixture
def make_annotator(stand_in):
    made = []

    def make(token=stand_in.TOKEN, url=stand_in.url, timeout=5.0):
        made.append(GrafanaAnnotator(url, token, timeout))
        return made[-1]

    yield make
    for annotator in made:
        annotator.close()


def test_a_start_is_a_moment_with_tags_to_ask_for(stand_in, make_annotator):
    result = make_annotator().annotate(an_action())

    assert result == Done("succeeded", details={"annotation": 1})
    (kept,) = stand_in.annotations
    assert kept["time"] == 1769860800000
    assert kept["timeEnd"] is None
    assert kept["text"] == "[critical] high_temperature on node-2 GPU 3: GPU temperature is 96.3°C"
    assert {"gpu-telemetry", "high_temperature", "critical", "fired", "node:node-2", "gpu:3"} <= set(kept["tags"])


def test_an_end_is_the_time_over_which_it_fired(stand_in, make_annotator):
    make_annotator().annotate(an_action("resolved"))

    (kept,) = stand_in.annotations
    assert (kept["time"], kept["timeEnd"]) == (1769860800000, 1769860920000)
    assert kept["text"].endswith("(ended: cleared)")


def test_an_alert_of_a_node_names_no_gpu(stand_in, make_annotator):
    make_annotator().annotate(an_action(gpu_index=None))

    (kept,) = stand_in.annotations
    assert "high_temperature on node-2: " in kept["text"]
    assert not any(tag.startswith("gpu:") for tag in kept["tags"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (400, Done("failed", "grafana: 400: it takes no such annotation")),
        (401, TryAgain("grafana: HTTP status 401")),
        (403, TryAgain("grafana: HTTP status 403")),
        (404, Done("failed", "grafana: HTTP status 404")),
        (429, TryAgain("grafana: HTTP status 429")),
        (500, TryAgain("grafana: HTTP status 500", is_unknown=True)),
        (503, TryAgain("grafana: HTTP status 503", is_unknown=True)),
        (b"<html>", TryAgain("grafana: JSONDecodeError", is_unknown=True)),
        (b"[]", TryAgain("grafana: TypeError", is_unknown=True)),
    ],
)
def test_what_a_refusal_comes_to(stand_in, make_annotator, answer, expected):
    stand_in.refuse["POST /api/annotations"] = answer

    assert make_annotator().annotate(an_action()) == expected


def test_a_wrong_token_is_tried_again_since_somebody_may_mend_it(make_annotator):
    assert make_annotator(token="glsa_wrong").annotate(an_action()) == TryAgain("grafana: HTTP status 401")


def test_a_grafana_that_hangs_is_given_up_and_what_became_of_it_is_unknown(stand_in, make_annotator):
    stand_in.refuse["POST /api/annotations"] = "hang"

    assert make_annotator(timeout=0.2).annotate(an_action()) == TryAgain("grafana: time-out", is_unknown=True)


def test_a_refused_connection_is_tried_again_and_tells_no_token(make_annotator, free_ports):
    (nobody,) = free_ports(1)
    result = make_annotator(url=f"http://127.0.0.1:{nobody}").annotate(an_action())

    assert result == TryAgain("grafana: ConnectionError", is_unknown=True)


def test_an_attempt_whose_answer_was_lost_is_found_and_not_written_twice(stand_in, make_annotator):
    annotator = make_annotator()
    annotator.annotate(an_action())

    assert annotator.annotate(an_action(attempt=2)) == Done("succeeded", details={"annotation": 1})
    assert len(stand_in.annotations) == 1


def test_a_later_attempt_writes_what_is_not_there(stand_in, make_annotator):
    assert make_annotator().annotate(an_action(attempt=2)) == Done("succeeded", details={"annotation": 1})
    assert len(stand_in.annotations) == 1


def test_every_rule_annotates_start_and_end_where_a_grafana_is_set():
    rules = with_annotations(load_rules())

    for before, rule in zip(load_rules().rules, rules.rules, strict=True):
        (own,) = [action for action in rule.actions if action.action == "annotate"]
        assert own.when == ["fired", "resolved"]
        assert [action for action in rule.actions if action.action != "annotate"] == before.actions
    assert with_annotations(rules).rules == rules.rules


def test_a_grafana_without_a_token_is_refused_at_the_start():
    with pytest.raises(SettingsError, match="ALERTING_GRAFANA_TOKEN is needed"):
        AlertingSettings.load(grafana_url="http://grafana:3000")
