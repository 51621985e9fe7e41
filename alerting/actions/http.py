"""How a receiver is called: one POST, its answer or the error in words that hold no secret."""

from typing import Any, Final

import httpx
import msgspec

_LONGEST_ANSWER_BYTES: Final = 64 * 1024
_LONGEST_TEXT: Final = 300


def make_client(timeout_seconds: float) -> httpx.Client:
    """The client that all of this process's actions share; it follows no redirects, which could turn a POST around."""
    return httpx.Client(timeout=timeout_seconds, headers={"User-Agent": "gpu-telemetry"})


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
