"""The noun `gpus`: every GPU wherever it stands, and what happened to it."""

from http import HTTPStatus
from typing import Final

from flask import Blueprint, Response
from msgspec import Struct

from api import queries
from api.operations import json_answer, operation, page
from api.parameters import (
    DATACENTER,
    ERRORS_SINCE,
    GPU_UUID,
    LIMIT,
    MODEL,
    NODE,
    PARTS_LIMIT,
    REMOVED,
    KeyText,
    Query,
    cursor_of,
)
from api.problems import NotFound
from api.resources import resources
from api.shapes import Alert, GpuDetail, GpuError, GpuPlacement, GpuSummary, shape

blueprint: Final = Blueprint("gpus", __name__)


class GpuKey(Struct, tag="gpus", forbid_unknown_fields=True):
    """A place in the list of GPUs."""

    gpu_uuid: KeyText


CURSOR: Final = cursor_of(GpuKey)


@blueprint.get("/gpus")
@operation(
    "List the GPUs",
    tag="gpus",
    answer=list[GpuSummary],
    parameters=(LIMIT, CURSOR, NODE, MODEL, DATACENTER, REMOVED),
)
def list_gpus(query: Query) -> Response:
    """GPUs by their UUIDs, each where its newest row is, also where another stands in its place by now.

    Those in nodes that left the configuration are left out unless `removed=true` asks for them alone.
    """
    after, limit = query[CURSOR], query[LIMIT]
    with resources().database.reading() as connection:
        rows = queries.fetch(
            connection,
            queries.ALL_GPUS,
            {
                "node": query[NODE],
                "model": query[MODEL],
                "datacenter": query[DATACENTER],
                "removed": query[REMOVED],
                "after_gpu": after.gpu_uuid if after else None,
                "limit": limit + 1,
            },
        )
    more = GpuKey(rows[limit - 1]["gpu_uuid"]) if len(rows) > limit else None
    return page([shape(GpuSummary, row) for row in rows[:limit]], more)


@blueprint.get("/gpus/<path:gpu_uuid>")
@operation(
    "Show a GPU and what happened to it",
    tag="gpus",
    answer=GpuDetail,
    parameters=(GPU_UUID, ERRORS_SINCE, PARTS_LIMIT),
    problems=(HTTPStatus.NOT_FOUND,),
)
def show_gpu(query: Query) -> Response:
    """One GPU with its places over time, its alerts, and when its XID changed or its error counters rose.

    An error that was there in the first row is not among them: nobody knows since when.
    """
    wanted = {
        "gpu": query[GPU_UUID],
        "since": query[ERRORS_SINCE],
        "now": resources().clock.now(),
        "limit": query[PARTS_LIMIT],
    }
    with resources().database.reading() as connection:
        row = queries.fetch_one(connection, queries.GPU, wanted)
        if row is None:
            raise NotFound(f"there is no GPU {query[GPU_UUID]!r}")
        placements = [shape(GpuPlacement, one) for one in queries.fetch(connection, queries.GPU_PLACEMENTS, wanted)]
        alerts = [shape(Alert, one) for one in queries.fetch(connection, queries.GPU_ALERTS, wanted)]
        errors = [shape(GpuError, one) for one in queries.fetch(connection, queries.GPU_ERRORS, wanted)]
    return json_answer(shape(GpuDetail, row, placements=placements, alerts=alerts, errors=errors))
