"""What the engine says happened: the identity of an alert, its transitions, and the command that people give it.

These are values without behaviour, shared by the engine, which makes them, and the worker, which stores them.
Every time in them is event time: it comes from a record (or from a command), never from a clock of this process.
"""

from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

Severity = Literal["warning", "critical"]
# Rising; a severity never falls within one firing.
SEVERITIES: Final[tuple[Severity, ...]] = ("warning", "critical")

ActionType = Literal["notify", "migrate_workload", "annotate"]
ACTION_TYPES: Final[tuple[ActionType, ...]] = ("notify", "migrate_workload", "annotate")

NodeStatus = Literal["healthy", "warning", "critical", "down"]

TransitionKind = Literal[
    "pending",  # the condition holds, and must go on for the rule's `for`; no alert yet
    "cancelled",  # it stopped holding before that; no alert
    "fired",  # an alert begins
    "raised",  # the same alert's severity rises
    "noted",  # more of the same was seen while it fires (another XID code); the alert itself stays as it is
    "resolved",  # the alert ends, for `resolved_reason`
    "inherited",  # an XID code stood there before the GPU was first seen, and does not fire; no alert
]

ResolvedReason = Literal[
    "cleared",  # the condition ended
    "expired",  # an XID of a restart-application class was not repeated in time
    "manual",  # by hand
    "replaced",  # another GPU, new to the node, stands where this one stood
    "decommissioned",  # the node left the configuration
    "rule_removed",  # the rules no longer hold this rule
]


class AlertKey(NamedTuple):
    """Whom an alert belongs to. At most one alert of a key fires at a time."""

    rule: str
    node_id: str
    gpu_uuid: str | None = None
    mig_instance: str | None = None

    @property
    def order(self) -> tuple[str, str, str, str]:
        """A key to sort by, which None does not upset: alerts are locked in this order."""
        return (self.rule, self.node_id, self.gpu_uuid or "", self.mig_instance or "")


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One step of one alert, in the order in which they happened.

    `at` is its event time. `started_at` is the start of the firing that it belongs to and, with `key`, the alert's
    identity; for `pending` and `cancelled` it is the start of the wait, for `inherited` it equals `at`.
    `severity`, `message` and `actual_value` are those of the firing's last rise, also in `noted` and `resolved`.
    `threshold_value` is the ladder's lowest step for this GPU's model; None where the rule has no threshold.
    `actions` are the decisions taken at this transition, each to be written to the outbox exactly once; its key
    there is (`key`, `started_at`, `kind`, action), and for `raised` the severity tells repeated rises apart.
    `details` is for `alert_events.details`: `xid_code`, `xid_class` and `xid_name` for XIDs, `new_gpu_uuid` for a
    replacement, `reason` of the last failed turn for exporter_down, `bridges` for duplicate_scraper, and so on.
    """

    key: AlertKey
    kind: TransitionKind
    at: datetime
    started_at: datetime
    severity: Severity
    message: str
    gpu_index: int | None = None
    threshold_value: float | None = None
    actual_value: float | None = None
    resolved_reason: ResolvedReason | None = None
    actor: str | None = None
    actions: tuple[ActionType, ...] = ()
    details: dict[str, Any] = {}

    @property
    def alert_type(self) -> str:
        """The alert's public type: the rule's name."""
        return self.key.rule


class ResolveCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A person resolved an alert: which firing, at what severity it then stood, who, and when (wall time)."""

    key: AlertKey
    started_at: datetime
    severity: Severity
    actor: str
    at: datetime


class ActiveAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that fires now, as the row in `alerts` shows it."""

    key: AlertKey
    started_at: datetime
    severity: Severity
    message: str
    gpu_index: int | None
    threshold_value: float | None
    actual_value: float | None
