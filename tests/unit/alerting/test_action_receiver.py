"""Receivers that answer slowly, too much or not to the end."""

import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest

from alerting.actions.http import make_client, post

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def receiver():
    """`receiver(*pieces, endless=b"")`: the URL of a server that sends these, and then the last one for ever."""
    over = threading.Event()
    listeners = []

    def serve(listener, pieces, endless):
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                while endless and not over.wait(0.02):
                    connection.sendall(endless)

    def begin(*pieces, endless=b""):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, pieces, endless), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield begin
    over.set()
    for listener in listeners:
        listener.close()


def test_a_receiver_that_begins_an_answer_for_ever_is_given_up_in_time(receiver):
    begun = time.monotonic()
    with make_client(0.5) as client, pytest.raises(httpx.ReadTimeout, match="no answer in time"):
        post(client, receiver(OK + b"X-Slow: ", endless=b"a"), {})
    assert time.monotonic() - begun < 5


def test_a_status_counts_though_its_body_never_ends(receiver):
    begun = time.monotonic()
    with make_client(0.5) as client:
        answer = post(client, receiver(OK + b"Content-Length: 100000\r\n\r\n", endless=b"a"), {})
    assert answer.status_code == 200
    assert 0 < len(answer.content) < 1000
    assert time.monotonic() - begun < 5


def test_no_more_of_an_answer_is_read_than_is_used(receiver):
    with make_client(20) as client:
        answer = post(client, receiver(OK + b"\r\n", endless=b"a" * 10_000), {})
    assert answer.status_code == 200
    assert 2**16 < len(answer.content) < 2**18


def test_an_answer_in_time_is_whole(receiver):
    with make_client(20) as client:
        answer = post(client, receiver(b'HTTP/1.1 404 No\r\nContent-Length: 14\r\n\r\n{"detail": "x"', b"}"), {})
    assert (answer.status_code, answer.content) == (404, b'{"detail": "x"')
