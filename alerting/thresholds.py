"""Threshold rules: a ladder of steps for each model, and what a value on it does to an alert."""

import math
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from alerting.lifecycle import RANK, Lifecycle
from alerting.node_state import Alert, Gpu, NodeState
from alerting.rule_schema import Steps, ThresholdRule
from alerting.transitions import AlertKey, Severity, Transition
from gpu_telemetry.fields import FIELD_BY_NAME, Scope
from gpu_telemetry.records import GpuRecord

_AT_ONCE: Final = timedelta()


class Ladder(NamedTuple):
    """A rule's steps for one model, in rising severity.

    Values and steps are compared as `sign` times themselves, so that past a step always means above it.
    """

    severities: tuple[Severity, ...]
    steps: tuple[float, ...]
    sign: int
    inclusive: bool
    clear: float | None

    @classmethod
    def of(cls, rule: ThresholdRule, steps: Steps) -> "Ladder":
        """The ladder of `rule` with these steps."""
        values = tuple(steps.values())
        sign = -1 if rule.comparison == "below" else 1
        return cls(tuple(steps), values, sign, rule.comparison == "at_least", rule.clear_threshold(values[0]))

    def is_past(self, value: float, step: float) -> bool:
        """Whether a value is past a step."""
        return value * self.sign > step * self.sign or (self.inclusive and value == step)

    def is_clear(self, value: float) -> bool:
        """Whether a value ends an alert."""
        if self.clear is None:
            return not self.is_past(value, self.steps[0])
        return value * self.sign < self.clear * self.sign

    def passed(self, value: float) -> tuple[Severity, ...]:
        """The severities whose steps a value is past."""
        return tuple(
            severity for severity, step in zip(self.severities, self.steps, strict=True) if self.is_past(value, step)
        )

    @property
    def quiet_up_to(self) -> float:
        """The highest value that is past no step of a ladder that goes up."""
        return math.nextafter(self.steps[0], -math.inf) if self.inclusive else self.steps[0]


class ThresholdCondition:
    """One threshold rule, evaluated."""

    def __init__(self, rule: ThresholdRule) -> None:
        self.rule = rule
        self.field = rule.field
        self.is_per_instance = FIELD_BY_NAME[rule.field].scope is Scope.INSTANCE
        self._lifecycle = Lifecycle(rule)
        self._default = Ladder.of(rule, rule.steps)
        self._rows = [(row.match, Ladder.of(rule, row.steps)) for row in rule.models]
        self._ladders: dict[str | None, Ladder] = {}

    @property
    def lifecycle(self) -> Lifecycle:
        """The steps of its alerts."""
        return self._lifecycle

    def ladder(self, model: str | None) -> Ladder:
        """The ladder for a model: the first row that matches, else the rule's own."""
        if model is None:
            return self._default
        return next((ladder for match, ladder in self._rows if fnmatchcase(model, match)), self._default)

    def evaluate(
        self, state: NodeState, gpu: Gpu, record: GpuRecord, ladder: Ladder, value: float, out: list[Transition]
    ) -> None:
        """Take in a valid value of the rule's field, the first of its turn where the field is the whole GPU's."""
        key = self._lifecycle.key(state, gpu.uuid, record.mig_instance if self.is_per_instance else None)
        alert = state.alerts.get(key)
        if alert is None and not ladder.is_past(value, ladder.steps[0]):
            return
        at = record.collected_at
        passed = ladder.passed(value)
        if alert is None:
            self._begin(state, key, record, ladder, value, passed, out)
        elif alert.phase == "pending":
            self._go_on_waiting(state, alert, record, ladder, value, passed, out)
        elif alert.phase == "firing":
            ripe = self._ripe(state, alert, at, passed)
            if ripe is not None and RANK[ripe] > RANK[alert.severity]:
                message = self._message(state, record, ladder, value)
                self._lifecycle.rise(state, alert, at, ripe, message, out, actual_value=value)
            self._end_if_clear(state, alert, at, ladder, value, out)
        elif ladder.is_clear(value):
            state.drop(alert)
        else:
            ripe = self._ripe(state, alert, at, passed)
            if ripe is not None and RANK[ripe] > RANK[alert.severity]:
                self._fire(state, key, record, ladder, value, ripe, alert.since, out)

    def _begin(
        self,
        state: NodeState,
        key: AlertKey,
        record: GpuRecord,
        ladder: Ladder,
        value: float,
        passed: tuple[Severity, ...],
        out: list[Transition],
    ) -> None:
        if self.rule.for_ == _AT_ONCE:
            self._fire(state, key, record, ladder, value, passed[-1], {}, out)
            return
        at = record.collected_at
        alert = Alert(
            key,
            self.rule.kind,
            "pending",
            at,
            passed[-1],
            self._message(state, record, ladder, value),
            gpu_index=record.gpu_index,
            threshold_value=ladder.steps[0],
            actual_value=value,
            since=dict.fromkeys(passed, at),
        )
        self._lifecycle.wait(state, alert, out)

    def _go_on_waiting(
        self,
        state: NodeState,
        alert: Alert,
        record: GpuRecord,
        ladder: Ladder,
        value: float,
        passed: tuple[Severity, ...],
        out: list[Transition],
    ) -> None:
        if not passed:
            self._lifecycle.cancel(state, alert, record.collected_at, out)
            return
        ripe = self._ripe(state, alert, record.collected_at, passed)
        if ripe is not None:
            self._fire(state, alert.key, record, ladder, value, ripe, alert.since, out)

    def _fire(
        self,
        state: NodeState,
        key: AlertKey,
        record: GpuRecord,
        ladder: Ladder,
        value: float,
        severity: Severity,
        since: dict[Severity, datetime],
        out: list[Transition],
    ) -> None:
        self._lifecycle.fire(
            state,
            key,
            record.collected_at,
            severity,
            self._message(state, record, ladder, value),
            out,
            gpu_index=record.gpu_index,
            threshold_value=ladder.steps[0],
            actual_value=value,
            since=since,
        )

    def _ripe(self, state: NodeState, alert: Alert, at: datetime, passed: tuple[Severity, ...]) -> Severity | None:
        """The highest severity whose step has been passed for as long as the rule wants; each step waits for itself."""
        if self.rule.for_ == _AT_ONCE:
            return passed[-1] if passed else None
        since = {severity: alert.since.get(severity, at) for severity in passed}
        if since != alert.since:
            alert.since = since
            state.dirty = True
        return next((severity for severity in reversed(passed) if at - since[severity] >= self.rule.for_), None)

    def _end_if_clear(
        self, state: NodeState, alert: Alert, at: datetime, ladder: Ladder, value: float, out: list[Transition]
    ) -> None:
        if not ladder.is_clear(value):
            if alert.clearing_since is not None:
                alert.clearing_since = None
                state.dirty = True
            return
        if alert.clearing_since is None and self.rule.keep_firing_for > _AT_ONCE:
            alert.clearing_since = at
            state.dirty = True
        if at - (alert.clearing_since or at) >= self.rule.keep_firing_for:
            self._lifecycle.resolve(state, alert, at, "cleared", out)

    def _message(self, state: NodeState, record: GpuRecord, ladder: Ladder, value: float) -> str:
        return self.rule.message.format(
            node_id=state.node_id,
            gpu_index=record.gpu_index,
            gpu_uuid=record.gpu_uuid,
            model=record.model or "unknown model",
            value=float(value),
            threshold=float(ladder.steps[0]),
        )
