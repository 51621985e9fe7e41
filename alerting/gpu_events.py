"""Conditions of a GPU that are events: an XID shows up, a counter rises. The page tells of both only by a change."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from alerting.lifecycle import RANK, Lifecycle, inherited
from alerting.node_state import Alert, Gpu, NodeState
from alerting.rule_schema import IncreaseRule, XidRule
from alerting.transitions import AlertKey, Transition
from alerting.xid import Xid, XidClass, xid
from gpu_telemetry.records import GpuRecord

XID_COUNTS: Final = "DCGM_EXP_XID_ERRORS_COUNT"


def xid_counts(record: GpuRecord) -> dict[int, float] | None:
    """The XIDs of the exporter's sliding window by code; None where the page has no such counts.

    With no event in the window the page has one row of 0 without a code. A row whose code is no number says nothing.
    """
    rows = record.fields.get(XID_COUNTS)
    if rows is None:
        return None
    if not isinstance(rows, list):
        return {}
    counts: dict[int, float] = {}
    for row in rows:
        code = row.labels.get("xid", "")
        if row.value > 0 and code.isascii() and code.isdecimal() and len(code) <= 9:  # noqa: PLR2004 - fits an integer
            # MIG and HPC mappings repeat a row with other labels.
            counts[int(code)] = max(row.value, counts.get(int(code), 0))
    return counts


class XidCondition:
    """XID errors of a GPU: one alert, whatever the codes.

    A code fires when the sticky gauge changes to it, or when its count in the exporter's window rises. While an alert
    fires, a code of a higher severity raises it, another code is noted, and the most demanding class seen decides how
    it ends: restart-application after some time without a repeat, any other when the gauge changes to 0.
    After a resolve by hand the same codes stay quiet until the gauge shows another one, the window is empty of them,
    or (restart-application) their time is over; any other code opens a new alert.
    """

    def __init__(self, rule: XidRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def evaluate(
        self,
        state: NodeState,
        gpu: Gpu,
        record: GpuRecord,
        code: int | None,
        counts: dict[int, float] | None,
        out: list[Transition],
    ) -> None:
        """Take in a turn's gauge and counts, each None where the record has none that is new; `gpu` has the last."""
        key = self.lifecycle.key(state, gpu.uuid)
        found, seen = _found_and_seen(gpu, record, code, counts)
        for each in found:
            if xid(each).xid_class.is_reset_or_worse:
                seen.append(each)
            else:
                out.append(self._inherited(state, key, record, xid(each)))
        previous = gpu.steady[-1]
        changed = code is not None and previous is not None and code != previous
        alert = state.alerts.get(key)
        if alert is not None:
            self._end(state, alert, record.collected_at, changed, code, counts, out)
        for each in seen:
            self._occurred(state, key, record, xid(each), out)

    def _end(
        self,
        state: NodeState,
        alert: Alert,
        at: datetime,
        changed: bool,  # noqa: FBT001 - private
        code: int | None,
        counts: dict[int, float] | None,
        out: list[Transition],
    ) -> None:
        if alert.phase == "muted":
            if changed or (counts is not None and not any(each in counts for each in alert.xid_codes)):
                state.drop(alert)
        elif changed and code == 0 and alert.xid_class != XidClass.RESTART_APPLICATION:
            self.lifecycle.resolve(state, alert, at, "cleared", out)

    def _occurred(self, state: NodeState, key: AlertKey, record: GpuRecord, found: Xid, out: list[Transition]) -> None:
        if found.xid_class is XidClass.IGNORE:
            return
        at = record.collected_at
        severity = self.rule.severities[found.xid_class]
        expires_at = (
            at + self.rule.restart_application_expires_after
            if found.xid_class is XidClass.RESTART_APPLICATION
            else None
        )
        alert = state.alerts.get(key)
        is_new = alert is None or found.code not in alert.xid_codes
        rises = alert is None or RANK[severity] > RANK[alert.severity]
        if alert is None or (alert.phase == "muted" and (is_new or rises)):
            self.lifecycle.fire(
                state,
                key,
                at,
                severity,
                self._message(state, record, found),
                out,
                _details(found),
                gpu_index=record.gpu_index,
                actual_value=float(found.code),
                xid_codes=(found.code,),
                xid_class=found.xid_class,
                expires_at=expires_at,
            )
            return
        if is_new:
            alert.xid_codes += (found.code,)
        if found.xid_class.rank > XidClass(alert.xid_class or XidClass.IGNORE).rank:
            alert.xid_class = found.xid_class
        alert.expires_at = expires_at if alert.xid_class == XidClass.RESTART_APPLICATION else None
        state.changed()
        if rises:
            message = self._message(state, record, found)
            actual = float(found.code)
            self.lifecycle.rise(state, alert, at, severity, message, out, actual_value=actual, details=_details(found))
        elif is_new:
            self.lifecycle.note(alert, at, out, _details(found))

    def _inherited(self, state: NodeState, key: AlertKey, record: GpuRecord, found: Xid) -> Transition:
        severity = self.rule.severities.get(found.xid_class, "warning")
        message = self._message(state, record, found)
        return inherited(key, record.collected_at, severity, message, record.gpu_index, _details(found))

    def _message(self, state: NodeState, record: GpuRecord, found: Xid) -> str:
        return self.rule.message.format(
            node_id=state.node_id,
            gpu_index=record.gpu_index,
            gpu_uuid=record.gpu_uuid,
            model=record.model or "unknown model",
            code=found.code,
            name=found.name,
            action=found.xid_class.action,
        )


def _found_and_seen(
    gpu: Gpu, record: GpuRecord, code: int | None, counts: dict[int, float] | None
) -> tuple[list[int], list[int]]:
    """The codes that stood there when the GPU was first seen, and those that occurred since the last turn."""
    is_first_turn = record.collected_at == gpu.known_since
    found: list[int] = []
    seen: list[int] = []
    if code and code != gpu.steady[-1]:
        (found if is_first_turn and gpu.steady[-1] is None else seen).append(code)
    if counts is not None:
        if gpu.xid_counts is not None:
            _add(seen, (each for each, count in counts.items() if count > gpu.xid_counts.get(each, 0)))
        elif is_first_turn:
            _add(found, counts)
        # Counts that begin later than the GPU does are history: they say what was, not since when.
    return [each for each in found if each not in seen], seen


def _add(codes: list[int], more: Iterable[int]) -> None:
    codes.extend(sorted(each for each in more if each not in codes))


def _details(found: Xid) -> dict[str, Any]:
    return {"xid_code": found.code, "xid_name": found.name, "xid_class": str(found.xid_class)}


class IncreaseCondition:
    """A counter that rises: fires at a rise, ends when the counter starts anew at 0.

    A counter that falls to another value than 0 started anew and rose since. After a resolve by hand a rise is quiet
    until the counter has stood still once.
    """

    def __init__(self, rule: IncreaseRule) -> None:
        self.rule = rule
        self.field = rule.field
        self.lifecycle = Lifecycle(rule)

    def evaluate(
        self, state: NodeState, gpu: Gpu, record: GpuRecord, previous: float | None, value: float, out: list[Transition]
    ) -> None:
        """Take in a turn's valid value; `previous` is the last valid one, None where this is the first."""
        if previous is None:
            return
        key = self.lifecycle.key(state, gpu.uuid)
        alert = state.alerts.get(key)
        at = record.collected_at
        increase = value - previous if value >= previous else value
        if increase > 0:
            if alert is None:
                message = self.rule.message.format(
                    node_id=state.node_id,
                    gpu_index=record.gpu_index,
                    gpu_uuid=record.gpu_uuid,
                    model=record.model or "unknown model",
                    value=float(value),
                    increase=float(increase),
                )
                self.lifecycle.fire(
                    state,
                    key,
                    at,
                    self.rule.severity,
                    message,
                    out,
                    {"increase": float(increase)},  # a restart keeps the last value as a float
                    gpu_index=record.gpu_index,
                    actual_value=float(value),
                )
        elif alert is not None and alert.phase == "muted":
            state.drop(alert)
        elif alert is not None and value < previous:
            self.lifecycle.resolve(state, alert, at, "cleared", out)
