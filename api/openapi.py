"""The OpenAPI 3.1 document, made of what the operations and shapes say of themselves."""

import re
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final

import msgspec
from flask import Flask

from api.operations import Operation, operation_of
from api.parameters import AnyParameter
from api.problems import MEDIA_TYPE
from api.shapes import ProblemDocument

_ABOUT: Final = """\
What a fleet's GPUs measured, which alerts that raised, and what was done about them.

Every list is a bare array. `limit` rows come at most (1,000 unless said otherwise, 10,000 at most); the `Link` header
with `rel="next"` names the next page and is absent on the last. Times are RFC 3339 in UTC. A value that was not
measured is null. Every error is an RFC 9457 problem document; a wrong parameter is named in `parameter`, with what
was `expected` and what was `got`; parameters that are not known are refused. Only what is no HTTP, or has a request
line of more than 8,190 bytes, is refused without such a document."""
_REFERENCE: Final = "#/components/schemas/{name}"
# What every operation can answer.
_COMMON_PROBLEMS: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_TAGS: Final = {
    "fleet": "All of it at a glance",
    "nodes": "The fleet's hosts",
    "gpus": "Every GPU, wherever it stands",
    "metrics": "What was measured",
    "alerts": "What is wrong, what was, and the resolve by hand",
    "ledger": "What became of every record",
    "health": "The API itself",
}


def document(app: Flask) -> dict[str, Any]:
    """The document of all operations of an app."""
    operations = [
        (_path(rule.rule), method.lower(), described)
        for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule)
        if (described := operation_of(app.view_functions[rule.endpoint])) is not None
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]
    types: list[Any] = [ProblemDocument]
    for _, _, described in operations:
        types.append(described.answer)
        if described.body is not None:
            types.append(described.body)
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for path, method, described in operations:
        paths.setdefault(path, {})[method] = _operation(described, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GPU telemetry",
            "version": version("gpu-telemetry"),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": {
                "Link": {
                    "description": 'The next page, as `<URL>; rel="next"`; absent on the last page',
                    "schema": {"type": "string"},
                },
                "Retry-After": {
                    "description": "Seconds after which the request may do better",
                    "schema": {"type": "integer"},
                },
            },
            "responses": {_problem_name(status): _problem(status) for status in _problems_of(operations)},
        },
    }


def _path(rule: str) -> str:
    """A route of Flask's as a path of OpenAPI's."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def _operation(described: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    success: dict[str, Any] = {
        "description": described.summary,
        "content": {"application/json": {"schema": schema_of[repr(described.answer)]}},
    }
    if described.paged:
        success["headers"] = {"Link": {"$ref": "#/components/headers/Link"}}
    problems = {
        str(status.value): {"$ref": f"#/components/responses/{_problem_name(status)}"}
        for status in sorted({*_COMMON_PROBLEMS, *described.problems})
    }
    answer: dict[str, Any] = {
        "operationId": described.name,
        "summary": described.summary,
        "description": described.description,
        "tags": [described.tag],
        "parameters": [_parameter(parameter) for parameter in described.parameters],
        "responses": {"200": success} | problems,
    }
    if described.body is not None:
        answer["requestBody"] = {
            "required": False,
            "content": {"application/json": {"schema": schema_of[repr(described.body)]}},
        }
    return answer


def _parameter(parameter: AnyParameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }


def _problems_of(operations: list[tuple[str, str, Operation]]) -> list[HTTPStatus]:
    return sorted({*_COMMON_PROBLEMS, *(status for _, _, described in operations for status in described.problems)})


def _problem_name(status: HTTPStatus) -> str:
    return re.sub(r"\W", "", status.phrase.title())


def _problem(status: HTTPStatus) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": status.phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(name="ProblemDocument")}}},
    }
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer
