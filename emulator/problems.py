"""Errors of the emulator's HTTP interface as RFC 9457 problem+json."""

import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
from aiohttp import web

from emulator.faults import UnusableFault
from emulator.fleet import NotInFleet
from emulator.migration import CannotMigrate, KeyReused

logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class UnusableRequest(ValueError):
    """A request whose body or query is not what was expected; the text says what was."""


# Which status an error that a request may meet is answered with.
_STATUSES: dict[type[Exception], HTTPStatus] = {
    NotInFleet: HTTPStatus.NOT_FOUND,
    UnusableFault: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnusableRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    KeyReused: HTTPStatus.UNPROCESSABLE_ENTITY,
    CannotMigrate: HTTPStatus.CONFLICT,
}


def problem(status: int, detail: str) -> web.Response:
    """A problem+json answer."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/problem+json")


@web.middleware
async def problem_middleware(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answer every error, known or not, as a problem."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        answer = problem(error.status, f"{request.method} {request.path}: {error.reason}")
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except tuple(_STATUSES) as error:
        return problem(_STATUSES[type(error)], str(error))
    except Exception:
        logger.exception("%s %s failed", request.method, request.path)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "unexpected error; the emulator's log has it")
