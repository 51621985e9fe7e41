"""The noun `metrics`: what was measured, by node and newest of all."""

from http import HTTPStatus
from typing import Annotated, Final

from flask import Blueprint, Response
from msgspec import Meta, Struct

from api import queries
from api.operations import operation, page
from api.parameters import DATACENTER, LIMIT, NODE, NODE_ID, AwareMoment, KeyText, Query, cursor_of
from api.problems import NotFound
from api.resources import resources
from api.shapes import MetricRow, MetricRows, shape

blueprint: Final = Blueprint("metrics", __name__)


class NodeMetricsKey(Struct, tag="node_metrics", forbid_unknown_fields=True):
    """A place in a node's rows, newest first; rows of one time are told apart by their placement."""

    collected_at: AwareMoment
    placement_id: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class LatestKey(Struct, tag="latest", forbid_unknown_fields=True):
    """A place among all GPUs and MIG instances; the GPU itself comes after its instances."""

    gpu_uuid: KeyText
    mig_instance: KeyText | None


NODE_CURSOR: Final = cursor_of(NodeMetricsKey)
LATEST_CURSOR: Final = cursor_of(LatestKey)


@blueprint.get("/nodes/<path:node_id>/metrics")
@operation(
    "List a node's measurements",
    tag="metrics",
    answer=MetricRows,
    parameters=(NODE_ID, LIMIT, NODE_CURSOR),
    problems=(HTTPStatus.NOT_FOUND,),
)
def list_node_metrics(query: Query) -> Response:
    """A node's stored rows, newest first: one for each GPU or MIG instance and scrape."""
    after, limit = query[NODE_CURSOR], query[LIMIT]
    with resources().database.reading() as connection:
        if queries.fetch_one(connection, queries.NODE_EXISTS, {"node": query[NODE_ID]}) is None:
            raise NotFound(f"there is no node {query[NODE_ID]!r}")
        rows = queries.fetch(
            connection,
            queries.NODE_METRICS,
            {
                "node": query[NODE_ID],
                "after_time": after.collected_at if after else None,
                "after_placement": after.placement_id if after else None,
                "limit": limit + 1,
            },
        )
    last = rows[limit - 1] if len(rows) > limit else None
    more = NodeMetricsKey(last["collected_at"], last["placement_id"]) if last else None
    return page([shape(MetricRow, row) for row in rows[:limit]], more)


@blueprint.get("/metrics/latest")
@operation(
    "List the newest measurement of every GPU",
    tag="metrics",
    answer=MetricRows,
    parameters=(LIMIT, LATEST_CURSOR, NODE, DATACENTER),
)
def list_latest_metrics(query: Query) -> Response:
    """The newest row of every GPU and MIG instance of the nodes that are in the configuration, by UUID.

    How old it is stands in `collected_at`: a GPU that is silent, gone or replaced keeps its last row. Which of them
    stand in a node now is told by the node.
    """
    after, limit = query[LATEST_CURSOR], query[LIMIT]
    with resources().database.reading() as connection:
        rows = queries.fetch(
            connection,
            queries.LATEST_METRICS,
            {
                "node": query[NODE],
                "datacenter": query[DATACENTER],
                "after_gpu": after.gpu_uuid if after else None,
                "after_mig": after.mig_instance if after else None,
                "limit": limit + 1,
            },
        )
    last = rows[limit - 1] if len(rows) > limit else None
    more = LatestKey(last["gpu_uuid"], last["mig_instance"]) if last else None
    return page([shape(MetricRow, row) for row in rows[:limit]], more)
