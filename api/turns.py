"""Requests take turns: so many are at work at a time, some wait in line, the rest is refused, and probes walk past.

Whatever the requests at work wait for, the server's threads are never all theirs: /healthz and /metrics are answered
while the database is not, and a request in line is told 503 when its turn does not come.
"""

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from werkzeug.wsgi import ClosingIterator

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# What the WSGI environment of a request holds: when it came, by time.perf_counter(); and why it got no turn, if so.
ARRIVED: Final = "gpu_telemetry.arrived"
REFUSED: Final = "gpu_telemetry.refused"
# These touch nothing that could keep them waiting.
_PROBES: Final = frozenset(("/healthz", "/metrics"))


class Turns:
    """An app behind a line: `at_work` requests at a time, from their first byte to their answer's last.

    One that finds `in_line` others waiting, or whose turn does not come within `patience_seconds`, goes to the app at
    once, with `REFUSED` in its environment.
    """

    def __init__(self, app: "WSGIApplication", *, at_work: int, in_line: int, patience_seconds: float) -> None:
        self._app = app
        self._patience_seconds = patience_seconds
        self._places = threading.BoundedSemaphore(at_work + in_line)
        self._turns = threading.BoundedSemaphore(at_work)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request when its turn comes."""
        environ[ARRIVED] = time.perf_counter()
        if environ["PATH_INFO"] in _PROBES:
            return self._app(environ, start_response)
        if not self._places.acquire(blocking=False):
            environ[REFUSED] = "too many requests wait for their turn"
            return self._app(environ, start_response)
        if not self._turns.acquire(timeout=self._patience_seconds):
            self._places.release()
            environ[REFUSED] = f"{self._patience_seconds:g} s were not enough for this request's turn to come"
            return self._app(environ, start_response)
        return self._answer(environ, start_response)

    def _answer(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            body = self._app(environ, start_response)
        except BaseException:
            self._leave()
            raise
        return ClosingIterator(body, self._leave)

    def _leave(self) -> None:
        self._turns.release()
        self._places.release()
