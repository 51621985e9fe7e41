"""The noun `alerts`: what is wrong now, what was, and the one thing that a person may do about it here."""

from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from flask import Blueprint, Response, request
from msgspec import Meta, Struct

from api import queries
from api.operations import json_answer, operation, page
from api.parameters import (
    ALERT_ID,
    ALERT_STATUS,
    ALERT_TYPE,
    LARGEST_ID,
    LIMIT,
    NODE,
    SEVERITY,
    SINCE,
    AwareMoment,
    Query,
    cursor_of,
)
from api.problems import BadParameter, NotFound, Problem
from api.resources import resources
from api.shapes import Action, Alert, AlertDetail, AlertSummary, Transition, shape

blueprint: Final = Blueprint("alerts", __name__)


class AlertKey(Struct, tag="alerts", forbid_unknown_fields=True):
    """A place among the alerts, newest first; those of one time are told apart by their ids."""

    triggered_at: AwareMoment
    id: Annotated[int, Meta(ge=1, le=LARGEST_ID)]


class Resolution(Struct, forbid_unknown_fields=True):
    """Who resolves an alert."""

    actor: Annotated[
        str, Meta(min_length=1, max_length=200, pattern=r"\A[^\x00]*\Z", description="Who resolves it")
    ] = "api"


CURSOR: Final = cursor_of(AlertKey)


def _alerts(query: Query, filters: dict[str, Any]) -> tuple[list[dict[str, Any]], AlertKey | None]:
    """One page of alerts, and the place behind it if there are more."""
    after, limit = query[CURSOR], query[LIMIT]
    with resources().database.reading() as connection:
        rows = queries.fetch(
            connection,
            queries.ALERTS,
            {
                "status": None,
                "severity": None,
                "type": None,
                "node": None,
                "since": None,
                "after_time": after.triggered_at if after else None,
                "after_id": after.id if after else None,
                "limit": limit + 1,
            }
            | filters,
        )
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], AlertKey(last["triggered_at"], last["id"]) if last else None


@blueprint.get("/alerts/active")
@operation("List the active alerts", tag="alerts", answer=list[AlertSummary], parameters=(LIMIT, CURSOR))
def list_active_alerts(query: Query) -> Response:
    """Alerts that are active now, newest first."""
    rows, more = _alerts(query, {"status": "active"})
    return page([shape(AlertSummary, row) for row in rows], more)


@blueprint.get("/alerts")
@operation(
    "List alerts",
    tag="alerts",
    answer=list[Alert],
    parameters=(LIMIT, CURSOR, ALERT_STATUS, SEVERITY, ALERT_TYPE, NODE, SINCE),
)
def list_alerts(query: Query) -> Response:
    """Alerts of any status, newest first."""
    rows, more = _alerts(
        query,
        {
            "status": query[ALERT_STATUS],
            "severity": query[SEVERITY],
            "type": query[ALERT_TYPE],
            "node": query[NODE],
            "since": query[SINCE],
        },
    )
    return page([shape(Alert, row) for row in rows], more)


@blueprint.get("/alerts/<alert_id>")
@operation("Show an alert", tag="alerts", answer=AlertDetail, parameters=(ALERT_ID,), problems=(HTTPStatus.NOT_FOUND,))
def show_alert(query: Query) -> Response:
    """One alert with its transitions, and what was decided for it and became of that."""
    wanted = {"id": query[ALERT_ID]}
    with resources().database.reading() as connection:
        row = queries.fetch_one(connection, queries.ALERT, wanted)
        if row is None:
            raise NotFound(f"there is no alert {query[ALERT_ID]}")
        transitions = [shape(Transition, one) for one in queries.fetch(connection, queries.TRANSITIONS, wanted)]
        actions = [shape(Action, one) for one in queries.fetch(connection, queries.ACTIONS, wanted)]
    return json_answer(shape(AlertDetail, row, transitions=transitions, actions=actions))


@blueprint.post("/alerts/<alert_id>/resolve")
@operation(
    "Resolve an alert by hand",
    tag="alerts",
    answer=Alert,
    parameters=(ALERT_ID,),
    body=Resolution,
    problems=(
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ),
)
def resolve_alert(query: Query) -> Response:
    """Resolve the alert; one that is resolved already comes back as it is.

    While the condition still holds it stays resolved, up to its severity, until the condition has cleared once.
    """
    _refuse_other_sites()
    actor = _resolution().actor
    with resources().database.writing() as connection:
        row = queries.fetch_one(connection, queries.RESOLVE, {"id": query[ALERT_ID], "actor": actor})
    if row is None:
        raise NotFound(f"there is no alert {query[ALERT_ID]}")
    return json_answer(shape(Alert, row))


def _refuse_other_sites() -> None:
    """Refuse a change that a page of another site makes a browser ask for; programs send neither header."""
    origin = request.headers.get("Origin")
    other_origin = origin is not None and origin.partition("://")[2] != request.host
    if other_origin or request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        raise Problem(HTTPStatus.FORBIDDEN, "a page of another site may not resolve alerts")


def _resolution() -> Resolution:
    body = request.get_data()
    if not body:
        return Resolution()
    if not request.is_json:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"expected a body of application/json or none, got {request.mimetype or 'a body without a type'}",
        )
    try:
        return msgspec.json.decode(body, type=Resolution)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        expected = f'a JSON object as in {{"actor": "jane"}}: {error}'
        raise BadParameter("body", expected, body.decode("utf-8", "backslashreplace")) from error
