"""The noun `nodes`: the fleet's hosts, and what stands in them."""

from http import HTTPStatus
from typing import Final

from flask import Blueprint, Response
from msgspec import Struct

from api import queries
from api.operations import json_answer, operation, page
from api.parameters import DATACENTER, LIMIT, NODE_ID, NODE_STATUS, REMOVED, KeyText, Query, cursor_of
from api.problems import NotFound
from api.resources import resources
from api.shapes import Gpu, Node, NodeSummary, shape

blueprint: Final = Blueprint("nodes", __name__)


class NodeKey(Struct, tag="nodes", forbid_unknown_fields=True):
    """A place in the list of nodes."""

    node_id: KeyText


CURSOR: Final = cursor_of(NodeKey)


@blueprint.get("/nodes")
@operation(
    "List the nodes",
    tag="nodes",
    answer=list[NodeSummary],
    parameters=(LIMIT, CURSOR, DATACENTER, NODE_STATUS, REMOVED),
)
def list_nodes(query: Query) -> Response:
    """Nodes by their ids. Those that left the configuration are left out unless `removed=true` asks for them alone."""
    after, limit = query[CURSOR], query[LIMIT]
    with resources().database.reading() as connection:
        rows = queries.fetch(
            connection,
            queries.NODES,
            {
                "now": resources().clock.now(),
                "removed": query[REMOVED],
                "datacenter": query[DATACENTER],
                "status": query[NODE_STATUS],
                "after_node": after.node_id if after else None,
                "limit": limit + 1,
            },
        )
    more = NodeKey(rows[limit - 1]["node_id"]) if len(rows) > limit else None
    return page([shape(NodeSummary, row) for row in rows[:limit]], more)


@blueprint.get("/nodes/<path:node_id>")
@operation(
    "Show a node and its GPUs", tag="nodes", answer=Node, parameters=(NODE_ID,), problems=(HTTPStatus.NOT_FOUND,)
)
def show_node(query: Query) -> Response:
    """One node, also one that left the configuration, with the GPU or MIG instances at each of its indexes."""
    with resources().database.reading() as connection:
        row = queries.fetch_one(connection, queries.NODE, {"node": query[NODE_ID], "now": resources().clock.now()})
        if row is None:
            raise NotFound(f"there is no node {query[NODE_ID]!r}")
        gpus = [shape(Gpu, gpu) for gpu in queries.fetch(connection, queries.GPUS, {"node": query[NODE_ID]})]
    return json_answer(shape(Node, row, gpus=gpus, gpu_count=len({gpu.gpu_uuid for gpu in gpus})))
