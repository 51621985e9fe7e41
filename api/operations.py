"""An operation of the REST API: a view that says what it takes and gives, for the OpenAPI document to repeat."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
from flask import Response, request
from msgspec import Struct

from api.parameters import AnyParameter, Query, encode_cursor, read

View = Callable[[Query], Response]

_encoder: Final = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Operation:
    """What the OpenAPI document says of a view. `answer` is the type of the body that a success carries."""

    name: str
    summary: str
    description: str
    tag: str
    parameters: tuple[AnyParameter, ...]
    answer: Any
    body: type[Struct] | None
    problems: tuple[HTTPStatus, ...]
    paged: bool


def operation(
    summary: str,
    *,
    tag: str,
    answer: Any,  # noqa: ANN401 - any type that msgspec has a schema for
    parameters: tuple[AnyParameter, ...] = (),
    body: type[Struct] | None = None,
    problems: tuple[HTTPStatus, ...] = (),
) -> Callable[[View], Callable[..., Response]]:
    """Make a view an operation: its parameters are read before it runs; its docstring is its description."""

    def decorate(view: View) -> Callable[..., Response]:
        @functools.wraps(view)
        def answer_request(**path_values: str) -> Response:
            return view(read(parameters, request.args, path_values))

        described = Operation(
            name=view.__name__,
            summary=summary,
            description=" ".join((view.__doc__ or "").split()),
            tag=tag,
            parameters=parameters,
            answer=answer,
            body=body,
            problems=problems,
            paged=any(parameter.name == "cursor" for parameter in parameters),
        )
        answer_request.__dict__["operation"] = described
        return answer_request

    return decorate


def operation_of(view: Callable[..., object]) -> Operation | None:
    """What `operation` said of a view; None for a view that is none."""
    found = getattr(view, "operation", None)
    return found if isinstance(found, Operation) else None


def json_answer(content: object) -> Response:
    """A body of JSON."""
    return Response(_encoder.encode(content), content_type="application/json")


def page(content: object, next_key: Struct | None) -> Response:
    """One page of a list: the Link header names the next one, unless this is the last (`next_key` is None)."""
    response = json_answer(content)
    if next_key is not None:
        asked = {**request.args, "cursor": encode_cursor(next_key)}
        response.headers["Link"] = f'<{_asked_url()}?{urlencode(asked)}>; rel="next"'
    return response


def _asked_url() -> str:
    """The request's URL without its query, all in ASCII; a path alone where the client named no host.

    A slash in a node's id is quoted too, lest a client should take `..` between two of them for a step up.
    """
    assert request.url_rule is not None  # a view answers
    values = request.view_args or {}
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda name: quote(values[name[1]], safe=""), request.url_rule.rule)
    origin = f"{request.scheme}://{request.host}" if request.host else ""
    return f"{origin}{quote(request.root_path)}{path}"
