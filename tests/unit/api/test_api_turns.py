"""Requests take turns, however their answers end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.turns import ARRIVED, REFUSED, Turns


class App:
    """A WSGI app that says why it was refused, or waits to be let go on."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, environ, _start_response):
        if REFUSED in environ:
            return [environ[REFUSED].encode()]
        if environ["PATH_INFO"] == "/defect":
            raise ZeroDivisionError
        if environ["PATH_INFO"] == "/slow":
            self.entered.release()
            assert self.go_on.acquire(timeout=10)
        return [b"ok"]


def ask(turns, path="/"):
    body = turns({"PATH_INFO": path}, None)
    try:
        return b"".join(body)
    finally:
        getattr(body, "close", lambda: None)()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_a_request_waits_for_its_turn(threads):
    app = App()
    turns = Turns(app, at_work=1, in_line=1, patience_seconds=10)
    slow = threads.submit(ask, turns, "/slow")
    assert app.entered.acquire(timeout=10)
    waiting = threads.submit(ask, turns)
    app.go_on.release()
    assert (slow.result(10), waiting.result(10)) == (b"ok", b"ok")


def test_beyond_the_line_a_request_is_refused_at_once_and_a_probe_is_answered(threads):
    app = App()
    turns = Turns(app, at_work=2, in_line=0, patience_seconds=10)
    slow = [threads.submit(ask, turns, "/slow") for _ in range(2)]
    assert all(app.entered.acquire(timeout=10) for _ in slow)
    assert ask(turns) == b"too many requests wait for their turn"
    assert [ask(turns, path) for path in ("/healthz", "/metrics")] == [b"ok", b"ok"]
    app.go_on.release(2)
    assert [answer.result(10) for answer in slow] == [b"ok", b"ok"]
    assert ask(turns) == b"ok"


def test_a_turn_that_does_not_come_in_time_is_told_and_its_place_is_free_again(threads):
    app = App()
    turns = Turns(app, at_work=1, in_line=1, patience_seconds=0.01)
    slow = threads.submit(ask, turns, "/slow")
    assert app.entered.acquire(timeout=10)
    for _ in range(3):
        assert ask(turns) == b"0.01 s were not enough for this request's turn to come"
    app.go_on.release()
    assert slow.result(10) == b"ok"


def test_a_turn_lasts_until_the_answer_is_closed():
    turns = Turns(App(), at_work=1, in_line=1, patience_seconds=0.01)
    unsent = turns({"PATH_INFO": "/"}, None)
    assert ask(turns).startswith(b"0.01 s were not enough")
    unsent.close()
    assert ask(turns) == b"ok"


def test_a_request_knows_when_it_came_however_long_it_waited():
    turns = Turns(App(), at_work=1, in_line=1, patience_seconds=0.05)
    unsent = turns({"PATH_INFO": "/"}, None)
    environ, before = {"PATH_INFO": "/"}, time.perf_counter()
    turns(environ, None)
    assert before <= environ[ARRIVED] <= time.perf_counter() - 0.05
    unsent.close()


def test_a_defect_ends_its_turn():
    turns = Turns(App(), at_work=1, in_line=0, patience_seconds=0.01)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ask(turns, "/defect")
