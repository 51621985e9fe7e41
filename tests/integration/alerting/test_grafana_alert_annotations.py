"""Annotations through the outbox: a Grafana that is down or hangs delays nothing else and loses nothing."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytestmark = pytest.mark.integration


class Grafana:
    """Keeps annotations; `is_up` says whether it answers, else it lets the caller wait."""

    def __init__(self):
        self.annotations = []
        self.is_up = threading.Event()
        self.waiting = 0
        grafana = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                grafana.waiting += 1
                if not grafana.is_up.wait(1.5):
                    self._say(503, {"message": "starting"})
                    return
                grafana.annotations.append(body)
                self._say(200, {"id": len(grafana.annotations), "message": "Annotation added"})

            def do_GET(self):
                grafana.is_up.wait(1.5)
                self._say(200, grafana.annotations if grafana.is_up.is_set() else [])

            def _say(self, status, answer):
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def end(self):
        self.is_up.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def grafana():
    grafana = Grafana()
    yield grafana
    grafana.end()


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
    wait_for(lambda: grafana.waiting, 30, "Grafana was asked")

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
