"""The API's own health and figures: is the process there, can it answer, what did it answer so far."""

from typing import Final

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api import instruments
from api.operations import json_answer, operation
from api.parameters import Query
from api.resources import resources
from api.shapes import State

blueprint: Final = Blueprint("health", __name__)


@blueprint.get("/healthz")
@operation("Is the process there", tag="health", answer=State)
def healthz(query: Query) -> Response:  # noqa: ARG001 - it takes none, and says so to whoever gives one
    """Answers without touching anything else."""
    return json_answer(State("ok"))


@blueprint.get("/readyz")
@operation("Can it answer", tag="health", answer=State)
def readyz(query: Query) -> Response:  # noqa: ARG001 - as above
    """Asks the database whether it is there and has the schema of this program; 503 says what is missing."""
    resources().database.check()
    return json_answer(State("ready"))


@blueprint.get("/metrics")
def metrics() -> Response:
    """The figures of all processes of this API in Prometheus' text format."""
    instruments.observe_connections(resources().database.connections())
    return Response(generate_latest(instruments.registry()), content_type=CONTENT_TYPE_LATEST)
