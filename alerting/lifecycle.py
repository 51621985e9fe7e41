"""The steps of one rule's alerts: firing, rising, ending; and the actions that are decided at each.

A condition says what holds; this module alone changes an alert and writes its transitions.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from alerting.node_state import Alert, NodeState
from alerting.rule_schema import Rule
from alerting.transitions import (
    SEVERITIES,
    ActionType,
    AlertKey,
    ResolvedReason,
    Severity,
    Transition,
    TransitionKind,
)

RANK: Final[dict[str, int]] = {severity: rank for rank, severity in enumerate(SEVERITIES)}
# Times in records are exact to the millisecond.
_SMALLEST_STEP: Final = timedelta(milliseconds=1)


class Lifecycle:
    """The alerts of one rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._decisions = {
            (kind, severity): _decisions(rule, kind, severity)
            for kind in ("fired", "raised", "resolved")
            for severity in SEVERITIES
        }

    def key(self, state: NodeState, gpu_uuid: str | None = None, mig_instance: str | None = None) -> AlertKey:
        """Whose alert it is."""
        return AlertKey(self.rule.name, state.node_id, gpu_uuid, mig_instance)

    def wait(self, state: NodeState, alert: Alert, out: list[Transition]) -> None:
        """The condition holds and must go on: `alert` is pending."""
        state.put(alert)
        out.append(_transition("pending", alert, alert.started_at))

    def cancel(self, state: NodeState, alert: Alert, at: datetime, out: list[Transition]) -> None:
        """A pending alert's condition no longer holds."""
        state.drop(alert)
        out.append(_transition("cancelled", alert, at))

    def fire(
        self,
        state: NodeState,
        key: AlertKey,
        at: datetime,
        severity: Severity,
        message: str,
        out: list[Transition],
        details: dict[str, Any] | None = None,
        **values: Any,  # noqa: ANN401 - the fields of Alert, checked by its constructor
    ) -> Alert:
        """An alert begins; what stood at its key (pending or muted) makes way."""
        if key in state.alerts:
            state.drop(state.alerts[key])
        taken = state.recent_starts.get(key)
        if taken is not None and at <= taken:
            at = taken + _SMALLEST_STEP
        alert = Alert(key, self.rule.kind, "firing", at, severity, message, **values)
        state.put(alert)
        out.append(_transition("fired", alert, at, actions=self._decisions["fired", severity], details=details))
        return alert

    def rise(
        self,
        state: NodeState,
        alert: Alert,
        at: datetime,
        severity: Severity,
        message: str,
        out: list[Transition],
        actual_value: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """A firing alert's severity rises."""
        alert.severity = severity
        alert.message = message
        alert.actual_value = actual_value
        state.changed()
        out.append(_transition("raised", alert, at, actions=self._decisions["raised", severity], details=details))

    def note(self, alert: Alert, at: datetime, out: list[Transition], details: dict[str, Any]) -> None:
        """More of the same was seen; the alert stays as it is."""
        out.append(_transition("noted", alert, at, details=details))

    def resolve(
        self,
        state: NodeState,
        alert: Alert,
        at: datetime,
        reason: ResolvedReason,
        out: list[Transition],
        details: dict[str, Any] | None = None,
    ) -> None:
        """A firing alert ends, a pending one is cancelled, a mute is lifted: whatever stood at the key is at rest."""
        if alert.phase == "pending":
            self.cancel(state, alert, at, out)
            return
        state.drop(alert)
        if alert.phase == "firing":
            actions = self._decisions["resolved", alert.severity]
            out.append(_transition("resolved", alert, at, reason=reason, actions=actions, details=details))

    def resolve_by_hand(self, state: NodeState, alert: Alert, at: datetime, actor: str) -> Transition:
        """A firing alert ends by hand and is muted, unless its condition has cleared already."""
        actions = self._decisions["resolved", alert.severity]
        transition = _transition("resolved", alert, at, reason="manual", actor=actor, actions=actions)
        if alert.clearing_since is not None:
            state.drop(alert)
        else:
            alert.phase = "muted"
            state.changed()
        return transition

    def hold(
        self,
        state: NodeState,
        key: AlertKey,
        at: datetime,
        out: list[Transition],
        *,
        holds: bool,
        severity: Severity,
        message: Callable[[], str],
        gpu_index: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """A condition of one severity holds, or does not: fire or end."""
        alert = state.alerts.get(key)
        if holds and alert is None:
            self.fire(state, key, at, severity, message(), out, details, gpu_index=gpu_index)
        elif not holds and alert is not None:
            self.resolve(state, alert, at, "cleared", out)


def inherited(
    key: AlertKey, at: datetime, severity: Severity, message: str, gpu_index: int, details: dict[str, Any]
) -> Transition:
    """What stood there before the GPU was first seen, and does not fire."""
    return Transition(
        key=key,
        kind="inherited",
        at=at,
        started_at=at,
        severity=severity,
        message=message,
        gpu_index=gpu_index,
        details=details,
    )


def end_orphan(state: NodeState, alert: Alert, at: datetime, out: list[Transition]) -> None:
    """End an alert whose rule is no more; with the rule, its actions are gone."""
    state.drop(alert)
    if alert.phase == "firing":
        out.append(_transition("resolved", alert, at, reason="rule_removed"))
    elif alert.phase == "pending":
        out.append(_transition("cancelled", alert, at))


def _decisions(rule: Rule, kind: TransitionKind, severity: Severity) -> tuple[ActionType, ...]:
    moments = {kind} if kind == "resolved" else {kind, severity}
    return tuple(action.action for action in rule.actions if not moments.isdisjoint(action.when))


def _transition(
    kind: TransitionKind,
    alert: Alert,
    at: datetime,
    *,
    reason: ResolvedReason | None = None,
    actor: str | None = None,
    actions: tuple[ActionType, ...] = (),
    details: dict[str, Any] | None = None,
) -> Transition:
    return Transition(
        key=alert.key,
        kind=kind,
        # By hand it can end before it began: a person's clock is the wall's.
        at=at if reason == "manual" else max(at, alert.started_at),
        started_at=alert.started_at,
        severity=alert.severity,
        message=alert.message,
        gpu_index=alert.gpu_index,
        threshold_value=alert.threshold_value,
        actual_value=alert.actual_value,
        resolved_reason=reason,
        actor=actor,
        actions=actions,
        details=details or {},
    )
