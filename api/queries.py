"""The queries of queries.sql by their names."""

import importlib.resources
import re
from collections.abc import Mapping
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import DictRow, dict_row

_NAME: Final = re.compile(r"^-- name: ([a-z_]+)\n", re.MULTILINE)


def parse(text: str) -> dict[str, bytes]:
    """The queries of a file: each runs from its `-- name:` line to the next."""
    _, *parts = _NAME.split(text)
    return {name: sql.strip().encode() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


_QUERIES: Final = parse(importlib.resources.files("api").joinpath("queries.sql").read_text(encoding="utf-8"))

NODES: Final = _QUERIES["nodes"]
NODE: Final = _QUERIES["node"]
NODE_EXISTS: Final = _QUERIES["node_exists"]
GPUS: Final = _QUERIES["gpus"]
NODE_METRICS: Final = _QUERIES["node_metrics"]
LATEST_METRICS: Final = _QUERIES["latest_metrics"]
ALERTS: Final = _QUERIES["alerts"]
ALERT: Final = _QUERIES["alert"]
TRANSITIONS: Final = _QUERIES["transitions"]
ACTIONS: Final = _QUERIES["actions"]
RESOLVE: Final = _QUERIES["resolve"]
STATUS_COUNTS: Final = _QUERIES["status_counts"]
ACTIVE_ALERT_COUNT: Final = _QUERIES["active_alert_count"]
ALL_GPUS: Final = _QUERIES["all_gpus"]
GPU: Final = _QUERIES["gpu"]
GPU_PLACEMENTS: Final = _QUERIES["gpu_placements"]
GPU_ALERTS: Final = _QUERIES["gpu_alerts"]
GPU_ERRORS: Final = _QUERIES["gpu_errors"]
LEDGER: Final = _QUERIES["ledger"]
LEDGER_TOTALS: Final = _QUERIES["ledger_totals"]
FLEET_NODES: Final = _QUERIES["fleet_nodes"]
FLEET_ALERTS: Final = _QUERIES["fleet_alerts"]
FLEET_GPUS: Final = _QUERIES["fleet_gpus"]


def fetch(connection: Connection, query: bytes, parameters: Mapping[str, Any]) -> list[DictRow]:
    """The rows of a query, each as a dict by column."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def fetch_one(connection: Connection, query: bytes, parameters: Mapping[str, Any]) -> DictRow | None:
    """The first row of a query, or None when there is none."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, parameters).fetchone()
