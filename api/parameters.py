"""What a request may ask with: each parameter's name, meaning, JSON schema and parser, said once.

The same declaration validates requests and stands in the OpenAPI document. A parser raises ValueError; the answer then
names the parameter, what was expected and what was got.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, cast, get_args

import msgspec
from msgspec import Meta, Struct
from werkzeug.datastructures import MultiDict

from api.problems import BadParameter
from api.shapes import AlertStatus, NodeStatus, Severity
from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH

Value = TypeVar("Value")
Cursor = TypeVar("Cursor", bound=Struct)

AwareMoment = Annotated[datetime, Meta(tz=True)]
# PostgreSQL's text holds no NUL.
KeyText = Annotated[str, Meta(pattern=r"\A[^\x00]*\Z")]

DEFAULT_LIMIT: Final = 1000
MAX_LIMIT: Final = 10_000
LARGEST_ID: Final = 2**63 - 1
_LONGEST_CURSOR: Final = 4096
_IDENTIFIER_SCHEMA: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_IDENTIFIER_LENGTH,
    "pattern": r"^[^\u0000]+$",
}


@dataclass(frozen=True, slots=True)
class Parameter(Generic[Value]):
    """One parameter of a query string or a path; `default` is its value when it is not given."""

    name: str
    description: str
    expected: str
    parse: Callable[[str], Value]
    schema: Mapping[str, Any]
    default: Value
    place: Literal["query", "path"] = "query"

    def read(self, text: str) -> Value:
        """The value of a text.

        Raises:
            BadParameter: it is not what was expected.
        """
        try:
            return self.parse(text)
        except ValueError as error:
            raise BadParameter(self.name, self.expected, text) from error


AnyParameter = Parameter[Any]


class Query:
    """The parameters of one request, all read and valid: `query[LIMIT]`."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def __getitem__(self, parameter: Parameter[Value]) -> Value:
        return cast("Value", self._values[parameter.name])


def read(parameters: tuple[AnyParameter, ...], arguments: MultiDict[str, str], path_values: Mapping[str, str]) -> Query:
    """The values of a request's parameters.

    Raises:
        BadParameter: one is wrong, stands twice, or is not known; the first in the order of the request.
    """
    known = {parameter.name: parameter for parameter in parameters if parameter.place == "query"}
    values = {name: parameter.default for name, parameter in known.items()}
    for parameter in parameters:
        if parameter.place == "path":
            values[parameter.name] = parameter.read(path_values[parameter.name])
    for name, texts in arguments.lists():
        if name not in known:
            takes = f"one of the parameters {', '.join(sorted(known))}" if known else "no parameters"
            raise BadParameter(name, takes, texts[0])
        if len(texts) > 1:
            raise BadParameter(name, "one value", ", ".join(texts))
        values[name] = known[name].read(texts[0])
    return Query(values)


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take spaces, signs, underscores and the digits of every script.
        if re.fullmatch(r"[0-9]{1,19}", text) is None or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _identifier(text: str) -> str:
    # PostgreSQL's text holds no NUL, and what was no UTF-8 on the wire names nothing.
    if not 0 < len(text) <= MAX_IDENTIFIER_LENGTH or "\0" in text:
        raise ValueError
    text.encode()
    return text


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _moment(text: str) -> datetime:
    if re.match(r"\d{4}-\d\d-\d\d[Tt ]", text) is None:  # msgspec also takes seconds since 1970
        raise ValueError
    moment: datetime = msgspec.convert(text, AwareMoment)
    return moment


def _filter(name: str, description: str) -> Parameter[str | None]:
    expected = f"1 to {MAX_IDENTIFIER_LENGTH} characters"
    return Parameter(name, description, expected, _identifier, _IDENTIFIER_SCHEMA, None)


def _choice(name: str, description: str, choices: tuple[str, ...]) -> Parameter[str | None]:
    schema = {"type": "string", "enum": list(choices)}
    return Parameter(name, description, f"one of {', '.join(choices)}", _one_of(choices), schema, None)


def _limit(description: str, default: int) -> Parameter[int]:
    schema = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": default}
    return Parameter(
        "limit", description, f"a whole number from 1 to {MAX_LIMIT}", _whole_number(1, MAX_LIMIT), schema, default
    )


def _time(name: str, description: str) -> Parameter[datetime | None]:
    expected = "an RFC 3339 time with Z or an offset, as in 2026-01-31T12:00:00Z (a plus sign in a URL is written %2B)"
    return Parameter(name, description, expected, _moment, {"type": "string", "format": "date-time"}, None)


LIMIT: Final = _limit("How many rows to give at most; the next page is in the Link header.", DEFAULT_LIMIT)
LEDGER_LIMIT: Final = _limit(
    "How many lines to give at most, each counted from an hour of rows; the next page is in the Link header.", 100
)
PARTS_LIMIT: Final = _limit("How many alerts and how many errors to give at most.", 100)
NODE_ID: Final = Parameter(
    "node_id",
    "The node.",
    f"1 to {MAX_IDENTIFIER_LENGTH} characters",
    _identifier,
    _IDENTIFIER_SCHEMA,
    "",
    "path",
)
GPU_UUID: Final = Parameter(
    "gpu_uuid",
    "The GPU.",
    f"1 to {MAX_IDENTIFIER_LENGTH} characters",
    _identifier,
    _IDENTIFIER_SCHEMA,
    "",
    "path",
)
ALERT_ID: Final = Parameter(
    "alert_id",
    "The alert.",
    f"a whole number from 1 to {LARGEST_ID}",
    _whole_number(1, LARGEST_ID),
    {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID},
    0,
    "path",
)
NODE: Final = _filter("node", "Only this node's.")
DATACENTER: Final = _filter("datacenter", "Only this datacenter's.")
MODEL: Final = _filter("model", "Only GPUs of this model, as in NVIDIA H100 80GB HBM3.")
ALERT_TYPE: Final = _filter("type", "Only alerts of this type, as in high_temperature.")
NODE_STATUS: Final = _choice("status", "Only nodes of this status.", get_args(NodeStatus))
ALERT_STATUS: Final = _choice("status", "Only alerts of this status.", get_args(AlertStatus))
SEVERITY: Final = _choice("severity", "Only alerts of this severity.", get_args(Severity))
REMOVED: Final = Parameter(
    "removed",
    "true: only nodes that left the configuration; false: only those that are in it.",
    "true or false",
    lambda text: _one_of(("true", "false"))(text) == "true",
    {"type": "boolean", "default": False},
    default=False,
)
SINCE: Final = _time("since", "Only alerts triggered at or after this time.")
ERRORS_SINCE: Final = _time("since", "Only errors at or after this time; of the last day if it is not given.")
HOURS_SINCE: Final = _time(
    "since", "Only the hour in which this time lies, and later ones; the last full hour if it is not given."
)
HOURS_UNTIL: Final = _time("until", "Only hours that begin before this time; all there are if it is not given.")


def encode_cursor(key: Struct) -> str:
    """The place behind a row as a text that a URL takes as it is."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).rstrip(b"=").decode()


def cursor_of(key: type[Cursor]) -> Parameter[Cursor | None]:
    """The cursor of a list whose rows are ordered by `key`, a struct with a tag of its own."""

    def parse(text: str) -> Cursor:
        # Python's decoder skips what is no base64 unless told not to, so one place has only one text.
        if len(text) > _LONGEST_CURSOR:
            raise ValueError
        try:
            content = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
            place = msgspec.json.decode(content, type=key)
        except (binascii.Error, msgspec.DecodeError, RecursionError) as error:
            raise ValueError from error
        if encode_cursor(place) != text:
            raise ValueError
        return place

    return Parameter(
        "cursor",
        "Where to go on: as the Link header of the page before gives it.",
        "a cursor as a Link header of this list gave it",
        parse,
        {"type": "string", "maxLength": _LONGEST_CURSOR},
        None,
    )
