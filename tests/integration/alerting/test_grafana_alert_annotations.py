"""Annotations through the outbox: a Grafana that is down or hangs delays nothing else and loses nothing."""

import threading
import time

import pytest

pytestmark = pytest.mark.integration


class Grafana:
    """Keeps annotations; `is_up` says whether it answers, else it lets the caller wait."""

    def __init__(self, receiver):
        self.annotations = []
        self.is_up = threading.Event()
        self.asked = receiver.requests
        self.url = receiver.url
        receiver.answers["/api/annotations"] = self._answer

    def _answer(self, body):
        is_up = self.is_up.wait(1.5)
        if body is None:  # whoever looks for one that is there
            return 200, self.annotations if is_up else []
        if not is_up:
            return 503, {"message": "starting"}
        self.annotations.append(body)
        return 200, {"id": len(self.annotations), "message": "Annotation added"}


@pytest.fixture
def grafana(loopback_receiver):
    grafana = Grafana(loopback_receiver)
    yield grafana
    grafana.is_up.set()


def actions(stream, kind):
    return stream.query(
        "SELECT transition, status, attempts FROM alert_actions WHERE action_type = %s ORDER BY id", kind
    )


def test_a_hanging_grafana_delays_no_notice_and_gets_every_annotation_in_the_end(
    stream, start, make_fleet, grafana, wait_for
):
    start(grafana_url=grafana.url, grafana_token="glsa_x", action_workers=1)
    fleet = make_fleet()
    stream.send(*fleet.round())
    stream.send(*fleet.round({(node, index): 97.0 for node in fleet.nodes for index in range(4)}))
    stream.flush()
    wait_for(lambda: grafana.asked, 30, "Grafana was asked")

    began = time.monotonic()
    wait_for(
        lambda: [status for _, status, _ in actions(stream, "notify")].count("succeeded") >= 8,
        20,
        "all notices went out",
    )
    # Each of the eight annotations alone would hold up a thread for as long as Grafana hangs.
    assert time.monotonic() - began < 10
    assert grafana.annotations == []

    grafana.is_up.set()
    wait_for(
        lambda: [status for _, status, _ in actions(stream, "annotate")] == ["succeeded"] * 8,
        60,
        lambda: str(actions(stream, "annotate")),
    )
    assert len(grafana.annotations) == 8
    assert len({tuple(each["tags"]) for each in grafana.annotations}) == 8


def test_an_alerts_end_is_annotated_too(stream, start, make_fleet, grafana, wait_for):
    grafana.is_up.set()
    start(grafana_url=grafana.url, grafana_token="glsa_x")
    fleet = make_fleet()
    for temperature in (60.0, 92.0, 60.0):
        stream.send(*fleet.round({("node-1", 0): temperature}))
    stream.flush()

    wait_for(lambda: len(actions(stream, "annotate")) == 2, 30, "two annotations were decided")
    wait_for(lambda: len(grafana.annotations) == 2, 30, "two annotations were written")
    begun, ended = grafana.annotations
    assert begun["timeEnd"] is None
    assert (ended["time"], ended["timeEnd"]) == (begun["time"], begun["time"] + 30_000)


def test_without_a_grafana_nothing_is_decided_for_it(stream, start, make_fleet, wait_for):
    start()
    fleet = make_fleet()
    for temperature in (60.0, 92.0):
        stream.send(*fleet.round({("node-1", 0): temperature}))
    stream.flush()

    wait_for(lambda: actions(stream, "notify"), 30, "a notice was decided")
    assert actions(stream, "annotate") == []
