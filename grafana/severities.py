"""Severities, states and outcomes as tables and timelines show them: the same words and colours everywhere."""

from typing import Final

from grafana.colours import CRITICAL, GOOD, INFO, NEUTRAL, WARNING
from grafana.panels import Column, column, value_map

SEVERITY_MAPPING: Final = value_map(
    {"critical": ("critical", CRITICAL), "warning": ("warning", WARNING), "info": ("info", INFO)}
)
NODE_STATUS_MAPPING: Final = value_map(
    {
        "healthy": ("healthy", GOOD),
        "warning": ("warning", WARNING),
        "critical": ("critical", CRITICAL),
        "down": ("down", CRITICAL),
        "unknown": ("unknown", NEUTRAL),
        "removed": ("removed", NEUTRAL),
    }
)
OUTCOME_MAPPING: Final = value_map(
    {
        "succeeded": ("succeeded", GOOD),
        "failed": ("failed", CRITICAL),
        "unknown": ("unknown", WARNING),
        "skipped": ("skipped", NEUTRAL),
        "pending": ("pending", INFO),
        "running": ("running", INFO),
    }
)
# Of a node `n`, for three intervals, whichever part is the cause.
UNHEARD: Final = "n.last_heard < now() - 3 * n.interval_ms * interval '1 millisecond'"
# What the alert engine says of a node `n`, unless nothing was heard of it.
NODE_STATE: Final = f"CASE WHEN n.removed_at IS NOT NULL THEN 'removed' WHEN {UNHEARD} THEN 'unknown' ELSE n.status END"
# Critical first.
RANK: Final = "CASE a.severity WHEN 'critical' THEN 0 WHEN 'warning' THEN 1 ELSE 2 END"


def severity_column(width: int = 80) -> Column:
    """The column `Severity` in its colours."""
    return column("Severity", width=width, mappings=SEVERITY_MAPPING)


def time_column(name: str, width: int = 145) -> Column:
    """A moment."""
    return column(name, unit="dateTimeAsIsoNoDateIfToday", width=width)
