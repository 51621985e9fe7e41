"""Transitions as rows: alerts as they stand at the end of a batch, every event, and the decisions in the outbox."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
from psycopg import Connection

from alerting.queries import SQL
from alerting.rows import EVENTS, copy_rows, wire_time
from alerting.transitions import AlertKey, Transition
from gpu_telemetry.clock import rfc3339

# What never became an alert has no row in `alerts`.
_WITHOUT_ALERT: Final = frozenset(("pending", "cancelled", "inherited"))

Firing = tuple[AlertKey, datetime]


class CommandWaiting(RuntimeError):
    """An alert that the batch changes was resolved by hand meanwhile: the command is to be applied first."""


@dataclass(slots=True)
class _Draft:
    """One firing as the batch leaves it. `alert_id` is None until the alert has a row."""

    last: Transition
    alert_id: int | None = None
    began: Transition | None = None
    raised_at: datetime | None = None
    resolved: Transition | None = None
    changed: bool = False


@dataclass(slots=True)
class AlertChanges:
    """What a batch does to alerts, in the order in which it happened."""

    transitions: list[Transition] = field(default_factory=list)
    # Resolved by hand, and so written already, but for what is to be done about it.
    manual: list[tuple[int, Transition]] = field(default_factory=list)

    def write(self, connection: Connection[Any]) -> list[tuple[int | None, Transition]]:
        """Write all of it; give each transition with the id of its alert.

        Raises:
            CommandWaiting: see there.
        """
        if not self.transitions and not self.manual:
            return []
        drafts = self._drafts()
        self._lock(connection, drafts)
        _update(connection, [draft for draft in drafts.values() if draft.alert_id is not None and draft.changed])
        _insert(connection, {firing: draft for firing, draft in drafts.items() if draft.began is not None})
        told = [(_alert_id(drafts, transition), transition) for transition in self.transitions]
        with connection.cursor() as cursor:
            copy_rows(cursor, EVENTS, (_event_row(alert_id, transition) for alert_id, transition in told))
        _decide(connection, [*self.manual, *told])
        return told

    def _drafts(self) -> dict[Firing, _Draft]:
        drafts: dict[Firing, _Draft] = {}
        for transition in self.transitions:
            if transition.kind in _WITHOUT_ALERT:
                continue
            firing = (transition.key, transition.started_at)
            draft = drafts.setdefault(firing, _Draft(transition))
            match transition.kind:
                case "fired":
                    draft.began = transition
                case "raised":
                    draft.raised_at = transition.at
                    draft.changed = True
                case "resolved":
                    draft.resolved = transition
                    draft.changed = True
            draft.last = transition
        return drafts

    def _lock(self, connection: Connection[Any], drafts: dict[Firing, _Draft]) -> None:
        """Lock the alerts that fire and give the drafts their ids."""
        standing = {firing: draft for firing, draft in drafts.items() if draft.began is None}
        if not standing:
            return
        nodes = sorted({key.node_id for key, _ in standing})
        for alert_id, rule, node_id, gpu_uuid, mig_instance, triggered_at in connection.execute(
            SQL["lock_active_alerts"], {"nodes": nodes}
        ):
            draft = standing.pop((AlertKey(rule, node_id, gpu_uuid, mig_instance), triggered_at), None)
            if draft is not None:
                draft.alert_id = alert_id
        if standing:
            self._not_active(connection, nodes, standing)

    @staticmethod
    def _not_active(connection: Connection[Any], nodes: list[str], standing: dict[Firing, _Draft]) -> None:
        """Alerts that the engine believes to fire and that do not: by a command, or by somebody's own SQL."""
        row = connection.execute(SQL["commands_wait_for"], {"nodes": nodes}).fetchone()
        if row is not None and row[0]:
            raise CommandWaiting(", ".join(sorted({key.node_id for key, _ in standing})))
        for (key, started_at), draft in standing.items():
            found = connection.execute(SQL["find_alert"], key._asdict() | {"triggered_at": started_at}).fetchone()
            draft.alert_id = None if found is None else found[0]
            draft.changed = False


def _alert_id(drafts: dict[Firing, _Draft], transition: Transition) -> int | None:
    draft = drafts.get((transition.key, transition.started_at))
    return None if draft is None or transition.kind in _WITHOUT_ALERT else draft.alert_id


def _update(connection: Connection[Any], drafts: Sequence[_Draft]) -> None:
    if not drafts:
        return
    drafts = sorted(drafts, key=lambda draft: draft.last.key.order)
    connection.execute(
        SQL["update_alerts"],
        {
            "ids": [draft.alert_id for draft in drafts],
            "severities": [draft.last.severity for draft in drafts],
            "messages": [draft.last.message for draft in drafts],
            "actual_values": [_real(draft.last.actual_value) for draft in drafts],
            "raised_ats": [draft.raised_at for draft in drafts],
            **_endings(drafts),
        },
    )


def _insert(connection: Connection[Any], drafts: dict[Firing, _Draft]) -> None:
    if not drafts:
        return
    made = connection.execute(
        SQL["insert_alerts"],
        {
            "rules": [key.rule for key, _ in drafts],
            "alert_types": [draft.last.alert_type for draft in drafts.values()],
            "node_ids": [key.node_id for key, _ in drafts],
            "gpu_indexes": [draft.last.gpu_index for draft in drafts.values()],
            "gpu_uuids": [key.gpu_uuid for key, _ in drafts],
            "mig_instances": [key.mig_instance for key, _ in drafts],
            "severities": [draft.last.severity for draft in drafts.values()],
            "messages": [draft.last.message for draft in drafts.values()],
            "threshold_values": [_real(draft.last.threshold_value) for draft in drafts.values()],
            "actual_values": [_real(draft.last.actual_value) for draft in drafts.values()],
            "triggered_ats": [started_at for _, started_at in drafts],
            "raised_ats": [draft.raised_at for draft in drafts.values()],
            **_endings(list(drafts.values())),
        },
    )
    for alert_id, rule, node_id, gpu_uuid, mig_instance, triggered_at in made:
        drafts[AlertKey(rule, node_id, gpu_uuid, mig_instance), triggered_at].alert_id = alert_id


def _real(value: float | None) -> float | None:
    # An array of the database has one type; an int may stand for a float in Python.
    return None if value is None else float(value)


def _endings(drafts: Sequence[_Draft]) -> dict[str, list[Any]]:
    ends = [draft.resolved for draft in drafts]
    return {
        "statuses": ["active" if end is None else "resolved" for end in ends],
        "resolved_ats": [None if end is None else end.at for end in ends],
        "resolved_reasons": [None if end is None else end.resolved_reason for end in ends],
    }


def _event_row(alert_id: int | None, transition: Transition) -> tuple[Any, ...]:
    key = transition.key
    return (
        alert_id,
        key.rule,
        transition.alert_type,
        key.node_id,
        transition.gpu_index,
        key.gpu_uuid,
        key.mig_instance,
        transition.kind,
        transition.severity,
        transition.message,
        transition.threshold_value,
        transition.actual_value,
        transition.resolved_reason,
        transition.actor,
        transition.details or None,
        wire_time(transition.started_at),
        wire_time(transition.at),
    )


def decision_key(transition: Transition, action: str) -> str:
    """A decision's identity, as one text: a JSON list in ASCII, so that it may stand in an HTTP header.

    A severity can rise twice within one firing, so a rise is told apart by where it came to.
    """
    kind = f"raised:{transition.severity}" if transition.kind == "raised" else transition.kind
    return json.dumps([*transition.key, rfc3339(transition.started_at), kind, action], separators=(",", ":"))


def _decide(connection: Connection[Any], told: Iterable[tuple[int | None, Transition]]) -> None:
    decisions = [
        (alert_id, transition, action)
        for alert_id, transition in told
        if alert_id is not None
        for action in transition.actions
    ]
    if not decisions:
        return
    connection.execute(
        SQL["insert_actions"],
        {
            "alert_ids": [alert_id for alert_id, _, _ in decisions],
            "action_types": [action for _, _, action in decisions],
            "transitions": [transition.kind for _, transition, _ in decisions],
            "keys": [decision_key(transition, action) for _, transition, action in decisions],
            "details": [_decision_details(transition) for _, transition, _ in decisions],
            "event_times": [transition.at for _, transition, _ in decisions],
        },
    )


def _decision_details(transition: Transition) -> str:
    details = {
        "severity": transition.severity,
        "message": transition.message,
        "threshold_value": transition.threshold_value,
        "actual_value": transition.actual_value,
        "resolved_reason": transition.resolved_reason,
    }
    return msgspec.json.encode({name: value for name, value in details.items() if value is not None}).decode()
