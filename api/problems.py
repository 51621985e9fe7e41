"""What goes wrong, as the client sees it: RFC 9457 problem documents for every error, and nothing of our insides.

Problem
├── BadParameter   400: a parameter, with what was expected and what was got
├── NotFound       404: no such node, alert
└── Unavailable    503: the database cannot answer now; carries Retry-After
"""

import logging
from http import HTTPStatus
from typing import Final

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

MEDIA_TYPE: Final = "application/problem+json"
# What a problem repeats of the client's own text; more would only be noise.
_LONGEST_ECHO: Final = 200

_log = logging.getLogger("api.problems")


class Problem(Exception):
    """An error with an answer: the status, a sentence for people, members for programs, headers."""

    def __init__(
        self, status: HTTPStatus, detail: str, *, members: dict[str, str] | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members or {}
        self.retry_after = retry_after


class BadParameter(Problem):
    """A part of the request that cannot be used: its name, what was expected, what was got."""

    def __init__(self, parameter: str, expected: str, got: str) -> None:
        shown = got if len(got) <= _LONGEST_ECHO else got[:_LONGEST_ECHO] + "…"
        # What was no UTF-8 on the wire must not break the answer that tells so.
        shown = shown.encode("utf-8", "backslashreplace").decode()
        super().__init__(
            HTTPStatus.BAD_REQUEST,
            f"{parameter}: expected {expected}, got {shown!r}",
            members={"parameter": parameter, "expected": expected, "got": shown},
        )


class NotFound(Problem):
    """What the path names is not there."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.NOT_FOUND, detail)


class Unavailable(Problem):
    """The database cannot answer now; the same request may do well in a few seconds."""

    def __init__(self, detail: str, *, retry_after: int = 5) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, detail, retry_after=retry_after)


def document(status: HTTPStatus, detail: str, members: dict[str, str] | None = None) -> Response:
    """A problem document as a response; its `instance` is the path that was asked for."""
    path = request.path.encode("utf-8", "backslashreplace").decode()
    body = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail, "instance": path}
    return Response(msgspec.json.encode(body | (members or {})), status=status.value, content_type=MEDIA_TYPE)


def _from_problem(problem: Problem) -> Response:
    response = document(problem.status, problem.detail, problem.members)
    if problem.retry_after is not None:
        response.headers["Retry-After"] = str(problem.retry_after)
    return response


def _from_http_exception(error: HTTPException) -> Response:
    """What Flask and Werkzeug raise: no such route, a method that is not allowed, a body that is too large."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    lost = status is HTTPStatus.NOT_FOUND
    detail = "there is nothing at this path; / leads to all that there is" if lost else error.description
    response = document(status, detail or status.description)
    for name, value in error.get_headers(request.environ):
        if name.lower() not in {"content-type", "content-length"}:
            response.headers[name] = value
    return response


def _from_defect(error: Exception) -> Response:
    """Anything else is a defect of ours: told to the log in full, to the client not at all."""
    _log.error("%s %s failed", request.method, request.path, exc_info=error)
    return document(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed to answer; its log says why.")


def install(app: Flask) -> None:
    """Let the app answer every error with a problem document."""
    app.register_error_handler(Problem, _from_problem)
    app.register_error_handler(HTTPException, _from_http_exception)
    app.register_error_handler(Exception, _from_defect)
