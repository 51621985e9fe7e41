"""How a receiver is called: one POST, its answer or the error in words that hold no secret."""

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Self

import httpx
import msgspec

_LONGEST_ANSWER_BYTES: Final = 64 * 1024
_LONGEST_TEXT: Final = 300


def make_client(timeout_seconds: float) -> httpx.Client:
    """The client that all of this process's actions share; it follows no redirects, which could turn a POST around."""
    return httpx.Client(
        timeout=timeout_seconds,
        headers={"User-Agent": "gpu-telemetry"},
        # A connection for each call, which can be cut when its time is over.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


class _Cut:
    """Shuts a call's connection down when its time is over: httpx's time-outs begin anew with every byte."""

    def __init__(self, seconds: float | None) -> None:
        self.is_over = False
        self._socket: socket.socket | None = None
        self._timer = None if seconds is None else threading.Timer(seconds, self._cut)

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Of httpcore: what it does, step by step."""
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            self._socket = info["return_value"].get_extra_info("socket")
            if self.is_over:
                self._cut()

    def _cut(self) -> None:
        self.is_over = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def post(client: httpx.Client, url: str, body: object, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """The answer within the client's time-out, of its body what came by then and at most a little over 64 KiB.

    Raises:
        httpx.HTTPError: there is none; `httpx.ReadTimeout` where it took too long.
    """
    with _Cut(client.timeout.read) as cut:
        request = client.build_request("POST", url, json=body, headers=headers, extensions={"trace": cut.trace})
        try:
            response = client.send(request, stream=True)
        except httpx.HTTPError as error:
            if cut.is_over and not never_arrived(error):
                raise httpx.ReadTimeout("no answer in time", request=request) from None
            raise
        answer = b""
        # The status is the answer; a body that breaks off takes nothing of it back.
        with suppress(httpx.HTTPError):
            for piece in response.iter_bytes():
                answer += piece
                if len(answer) > _LONGEST_ANSWER_BYTES:
                    break
        response.close()
    return httpx.Response(response.status_code, content=answer)


def never_arrived(error: httpx.HTTPError) -> bool:
    """Whether the request certainly had no effect, because there was no connection to send it on."""
    return isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def in_words(error: httpx.HTTPError) -> str:
    """The error without the URL, which may hold a secret."""
    return f"{type(error).__name__}: {error}"[:_LONGEST_TEXT] if never_arrived(error) else type(error).__name__


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of the answer; empty when it is another thing, or long."""
    if len(response.content) > _LONGEST_ANSWER_BYTES:
        return {}
    try:
        return msgspec.json.decode(response.content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def refusal_of(response: httpx.Response) -> str:
    """Status and reason, from problem+json where it is that."""
    detail = answer_of(response).get("detail")
    return f"{response.status_code}: {str(detail)[:_LONGEST_TEXT]}" if detail else f"HTTP status {response.status_code}"
