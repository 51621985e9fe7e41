"""The noun `fleet`: all of it at a glance."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flask import Blueprint, Response

from api import queries
from api.operations import json_answer, operation
from api.parameters import Query
from api.resources import resources
from api.shapes import AlertCounts, DatacenterSummary, FleetSummary, GpuTotals, ModelSummary, NodeCounts
from gpu_telemetry.clock import rfc3339

blueprint: Final = Blueprint("fleet", __name__)

Rows = Iterable[Mapping[str, Any]]


@blueprint.get("/fleet/summary")
@operation("Sum up the fleet", tag="fleet", answer=FleetSummary)
def show_fleet(query: Query) -> Response:  # noqa: ARG001 - it takes none, and says so to whoever gives one
    """Nodes by status, GPUs and what they do, active alerts by severity: in all, by datacenter, GPUs also by model."""
    now = resources().clock.now()
    with resources().database.reading() as connection:
        nodes = queries.fetch(connection, queries.FLEET_NODES, {"now": now})
        alerts = queries.fetch(connection, queries.FLEET_ALERTS, {})
        gpus = queries.fetch(connection, queries.FLEET_GPUS, {"now": now})
    return json_answer(
        FleetSummary(
            at=rfc3339(now),
            nodes=_node_counts(nodes),
            gpus=_gpu_totals(gpus),
            alerts=_alert_counts(alerts),
            by_datacenter=[
                DatacenterSummary(
                    name,
                    _node_counts(_of(nodes, "datacenter", name)),
                    _gpu_totals(_of(gpus, "datacenter", name)),
                    _alert_counts(_of(alerts, "datacenter", name)),
                )
                for name in _names(nodes, "datacenter")
            ],
            by_model=[ModelSummary(name, _gpu_totals(_of(gpus, "model", name))) for name in _names(gpus, "model")],
        )
    )


def _names(rows: Rows, key: str) -> list[str | None]:
    """The values of a key in order, that of rows without one last."""
    return sorted({row[key] for row in rows}, key=lambda name: (name is None, name or ""))


def _of(rows: Rows, key: str, name: str | None) -> list[Mapping[str, Any]]:
    return [row for row in rows if row[key] == name]


def _node_counts(rows: Rows) -> NodeCounts:
    counts = NodeCounts()
    for row in rows:
        setattr(counts, row["status"], getattr(counts, row["status"]) + row["nodes"])
        counts.total += row["nodes"]
    return counts


def _alert_counts(rows: Rows) -> AlertCounts:
    counts = AlertCounts()
    for row in rows:
        setattr(counts, row["severity"], getattr(counts, row["severity"]) + row["alerts"])
        counts.total += row["alerts"]
    return counts


def _gpu_totals(rows: Rows) -> GpuTotals:
    rows = list(rows)
    powers = [row["power_watts"] for row in rows if row["power_watts"] is not None]
    temperatures = [row["temperature_max_celsius"] for row in rows if row["temperature_max_celsius"] is not None]
    return GpuTotals(
        total=sum(row["total"] for row in rows),
        reporting=sum(row["reporting"] for row in rows),
        allocated=sum(row["allocated"] for row in rows),
        active=sum(row["active"] for row in rows),
        power_watts=round(sum(powers), 3) if powers else None,
        temperature_max_celsius=max(temperatures, default=None),
    )
