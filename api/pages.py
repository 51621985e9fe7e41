"""The pages for people: the front page that leads to all, and the reference of the API."""

import importlib.resources
import logging
from http import HTTPStatus
from typing import Any, Final, get_args

import msgspec
from flask import Blueprint, Response, current_app, render_template, send_from_directory

from api import openapi, queries
from api.problems import Unavailable
from api.resources import resources
from api.shapes import AlertSummary, NodeStatus, shape
from gpu_telemetry.clock import rfc3339

blueprint: Final = Blueprint("pages", __name__)

# The front page shows this many alerts and leads to the rest.
_SHOWN_ALERTS: Final = 50
_SWAGGER_FILES: Final = str(importlib.resources.files("flask_swagger_ui").joinpath("dist"))
# Swagger UI brings icons as data URLs and styles its parts one by one; scripts come from this server alone.
_DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_log = logging.getLogger("api.pages")


@blueprint.get("/")
def front() -> Response:
    """How many nodes there are of each status, the active alerts, and where to look further."""
    now = resources().clock.now()
    try:
        seen, status, trouble = _fleet(), HTTPStatus.OK, None
    except Unavailable as problem:
        seen, status, trouble = None, problem.status, problem.detail
    page = render_template("front.html", fleet=seen, trouble=trouble, now=rfc3339(now), shown=_SHOWN_ALERTS)
    response = Response(page, status=status.value, content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _PAGE_POLICY
    return response


def _fleet() -> dict[str, Any]:
    with resources().database.reading() as connection:
        counts = {
            row["status"]: row["nodes"]
            for row in queries.fetch(connection, queries.STATUS_COUNTS, {"now": resources().clock.now()})
        }
        total = queries.fetch_one(connection, queries.ACTIVE_ALERT_COUNT, {})
        alerts = queries.fetch(
            connection,
            queries.ALERTS,
            {
                "status": "active",
                "severity": None,
                "type": None,
                "node": None,
                "since": None,
                "after_time": None,
                "after_id": None,
                "limit": _SHOWN_ALERTS,
            },
        )
    return {
        "nodes": {status: counts.get(status, 0) for status in get_args(NodeStatus)},
        "node_count": sum(counts.values()),
        "alert_count": total["alerts"] if total else 0,
        "alerts": [shape(AlertSummary, alert) for alert in alerts],
    }


@blueprint.get("/openapi.json")
def openapi_document() -> Response:
    """The API as an OpenAPI 3.1 document."""
    return Response(msgspec.json.encode(openapi.document(current_app)), content_type="application/json")


@blueprint.get("/docs", strict_slashes=False)
def docs() -> Response:
    """The reference: Swagger UI over /openapi.json, from files of this server alone."""
    response = Response(render_template("docs.html"), content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = _DOCS_POLICY
    return response


@blueprint.get("/docs/files/<path:name>")
def swagger_file(name: str) -> Response:
    """A file of Swagger UI, as its package brings it."""
    return send_from_directory(_SWAGGER_FILES, name, max_age=86400)
