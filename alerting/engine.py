"""The engine: a pure fold of one node's records into transitions of alerts. No I/O, no wall clock.

Its clock is per node: the newest `collected_at` among that node's own GPU and closing records. The same records (and
commands) in the same order give the same transitions, however they are cut into batches and whoever folds them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from alerting.gpu_events import XID_COUNTS, IncreaseCondition, XidCondition, xid_counts
from alerting.lifecycle import RANK, Lifecycle, end_orphan
from alerting.node_conditions import (
    DuplicateScraper,
    ExporterDown,
    ExporterFrozen,
    GpuLost,
    NodeSilent,
    note_bridge,
    replacement,
)
from alerting.node_state import Gpu, NodeState, Readings
from alerting.rule_schema import (
    DuplicateScraperRule,
    ExporterDownRule,
    ExporterFrozenRule,
    GpuLostRule,
    IncreaseRule,
    NodeSilentRule,
    ThresholdRule,
    XidRule,
)
from alerting.rules import Rules
from alerting.saved_state import StateCodec, merged
from alerting.thresholds import Ladder, ThresholdCondition
from alerting.transitions import ActiveAlert, NodeStatus, ResolveCommand, ResolvedReason, Transition
from gpu_telemetry.records import AnyRecord, GpuRecord, ScrapeRecord, SilenceRecord

_NOTHING: Final[tuple[Transition, ...]] = ()
_WHOLE_GPU: Final[tuple[str | None, ...]] = (None,)
# Every so many turns a record is looked at for fields that were not seen yet: a mask of its seq.
_LOOK_AT_TURNS: Final = 63


class Counts(msgspec.Struct):
    """What was folded to no effect since this engine was made, by why. A batch that is redone counts again."""

    late: int = 0  # older than the node's clock: to be stored, not evaluated
    duplicate: int = 0  # the same placement at the same time, or the same turn, once more
    silence_ignored: int = 0  # a silence that the node's clock contradicts, or that was known


class _Plan(NamedTuple):
    """What one model's readings are held against.

    No threshold field (in their order) whose value is up to `high` is past a step of a ladder that goes up; `falls`
    says that there are ladders that go down.
    """

    high: tuple[float, ...]
    falls: bool
    ladders: dict[str, Ladder]


class Engine:
    """The fold, for one set of rules. It holds no state of any node; one engine serves all of a worker's nodes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.counts = Counts()
        # In the order of the file, which is the order of the transitions of one record.
        self._gpu_conditions: list[ThresholdCondition | IncreaseCondition | XidCondition] = []
        self._lifecycles: dict[str, Lifecycle] = {}
        self._exporter_down: ExporterDown | None = None
        self._gpu_lost: GpuLost | None = None
        self._frozen: ExporterFrozen | None = None
        self._duplicate: DuplicateScraper | None = None
        self._silent: NodeSilent | None = None
        for rule in rules.enabled:
            self._add(rule)
        self._down_turns = self._exporter_down.rule.turns if self._exporter_down else 1
        self._absences = self._gpu_lost.rule.scrapes if self._gpu_lost else 1

        thresholds = [each for each in self._gpu_conditions if isinstance(each, ThresholdCondition)]
        fields = tuple(dict.fromkeys(each.field for each in thresholds))
        self._thresholds = thresholds
        self._counters = tuple(
            dict.fromkeys(each.field for each in self._gpu_conditions if isinstance(each, IncreaseCondition))
        )
        # Threshold fields, then the steady ones (counters, XID), then the energy counter: see `_fold_gpu`.
        self._watched = (*fields, *self._counters, "xid_code", "energy_joules")
        self._first_steady = len(fields)
        self._nothing_read: Readings = (None,) * len(self._watched)
        self._read = attrgetter(*self._watched)
        self._plans: dict[str | None, _Plan] = {}
        self._codec = StateCodec(
            self._watched, self._counters, {name: each.rule.kind for name, each in self._lifecycles.items()}
        )
        self._unseen = {
            rule.name: rule.field for rule in rules.enabled if isinstance(rule, ThresholdRule | IncreaseRule)
        } | {rule.name: "xid_code" for rule in rules.enabled if isinstance(rule, XidRule)}

    def _add(self, rule: object) -> None:
        condition: Any
        match rule:
            case ThresholdRule():
                self._gpu_conditions.append(condition := ThresholdCondition(rule))
            case IncreaseRule():
                self._gpu_conditions.append(condition := IncreaseCondition(rule))
            case XidRule():
                self._gpu_conditions.append(condition := XidCondition(rule))
            case GpuLostRule():
                self._gpu_lost = condition = GpuLost(rule)
            case ExporterDownRule():
                self._exporter_down = condition = ExporterDown(rule)
            case ExporterFrozenRule():
                self._frozen = condition = ExporterFrozen(rule)
            case DuplicateScraperRule():
                self._duplicate = condition = DuplicateScraper(rule)
            case NodeSilentRule():
                self._silent = condition = NodeSilent(rule)
            case _:
                raise TypeError(f"no condition evaluates {rule!r}")
        self._lifecycles[condition.rule.name] = condition.lifecycle

    def new_node(self, node_id: str) -> NodeState:
        """The state of a node that was never heard of. It is dirty from its first record on."""
        return NodeState(node_id)

    def fold(self, state: NodeState, record: AnyRecord) -> Sequence[Transition]:
        """Take in the node's next record, in the order of its partition, and say what it changes.

        The worker folds every record that it decoded, also those that it will not store because they lie beyond
        retention: after such a one it sets `state.dirty = True`, since no row will tell of it. It folds no record
        that it dead-letters (`clock_skew`, poison). Late and repeated records give nothing and are counted in
        `counts`. After the batch's last record each state with `dirty` set is to be saved in the transaction.

        Returns:
            The transitions in the order in which they happened; nearly always the empty tuple.
        """
        if type(record) is GpuRecord:
            return self._fold_gpu(state, record)
        if type(record) is ScrapeRecord:
            return self._fold_turn(state, record)
        assert isinstance(record, SilenceRecord)
        return self._fold_silence(state, record)

    def _fold_gpu(self, state: NodeState, record: GpuRecord) -> Sequence[Transition]:
        """A GPU record in which nothing happens, fast; any other in full."""
        at = record.collected_at
        gpu = state.gpus.get(record.gpu_uuid)
        if (
            at < state.clock
            or gpu is None
            or gpu.turn_at == at
            or gpu.alerts
            or gpu.energy_missing
            or gpu.index != record.gpu_index
            or at >= state.next_deadline
            or (record.seq & _LOOK_AT_TURNS) == 0
            or state.removed
        ):
            return self._fold_gpu_in_full(state, record)
        readings: Readings = self._read(record)
        plan = self._plans.get(record.model)
        energy = readings[-1]
        has_counts = XID_COUNTS in record.fields
        if (
            plan is None
            or plan.falls
            or readings[self._first_steady : -1] != gpu.steady
            or (energy == gpu.energy_joules if energy is not None else gpu.energy_joules is not None)
            or state.still
            or (has_counts and xid_counts(record) != gpu.xid_counts)
        ):
            return self._fold_gpu_in_full(state, record)
        for value, high in zip(readings, plan.high):  # noqa: B905 - the shorter counts: the threshold fields come first
            if value is not None and value > high:
                return self._fold_gpu_in_full(state, record)
        state.clock = gpu.turn_at = at
        if energy is not None:
            state.energy_at = state.moved_at = at
            gpu.energy_joules = energy
        gpu.readings = readings
        gpu.counts_taken = has_counts
        gpu.instances = _WHOLE_GPU if record.mig_instance is None else (record.mig_instance,)
        return _NOTHING

    def _fold_gpu_in_full(self, state: NodeState, record: GpuRecord) -> Sequence[Transition]:
        at = record.collected_at
        if at < state.clock:
            return self._late(state)
        gpu = state.gpus.get(record.gpu_uuid)
        same_turn = gpu is not None and gpu.turn_at == at
        if gpu is not None and same_turn and (record.mig_instance in gpu.instances or record.gpu_index != gpu.index):
            self.counts.duplicate += 1
            return _NOTHING
        out: list[Transition] = []
        self._hear(state, at, out)
        if gpu is None:
            gpu = Gpu(record.gpu_uuid, record.gpu_index, at, steady=(None,) * (len(self._counters) + 1))
            state.gpus[gpu.uuid] = gpu
            state.dirty = True
        readings: Readings = self._read(record)
        if self._unseen:
            self._look(record)
        fresh = _go_on(state, gpu, record, readings) if same_turn else _begin_turn(state, gpu, record, readings)
        _take_energy(state, gpu, fresh[-1], at)
        counts = None if gpu.counts_taken else xid_counts(record)
        self._evaluate(state, gpu, record, fresh, counts, out)
        steady = merged(fresh[self._first_steady : -1], gpu.steady)
        if steady != gpu.steady:
            gpu.steady = steady
            state.dirty = True
        if counts is not None:
            gpu.counts_taken = True
            if counts != gpu.xid_counts:
                gpu.xid_counts = counts
                state.dirty = True
        return out

    def _evaluate(
        self,
        state: NodeState,
        gpu: Gpu,
        record: GpuRecord,
        fresh: Readings,
        counts: dict[int, float] | None,
        out: list[Transition],
    ) -> None:
        """Hold a record's fresh readings against every rule of a GPU, in the order of the file."""
        plan = self._plans.get(record.model) or self._plan(record.model)
        first = dict(zip(self._watched, fresh, strict=True))
        last = dict(zip((*self._counters, "xid_code"), gpu.steady, strict=True))
        for condition in self._gpu_conditions:
            if isinstance(condition, XidCondition):
                code = first["xid_code"]
                condition.evaluate(state, gpu, record, None if code is None else int(code), counts, out)
                continue
            value = first[condition.field]
            if isinstance(condition, IncreaseCondition):
                if value is not None:
                    condition.evaluate(state, gpu, record, last[condition.field], value, out)
                continue
            if condition.is_per_instance:
                value = getattr(record, condition.field)
            if value is not None:
                condition.evaluate(state, gpu, record, plan.ladders[condition.rule.name], value, out)

    def _plan(self, model: str | None) -> _Plan:
        ladders = {each.rule.name: each.ladder(model) for each in self._thresholds}
        high = dict.fromkeys(self._watched[: self._first_steady], float("inf"))
        falls = False
        for each in self._thresholds:
            ladder = ladders[each.rule.name]
            if ladder.sign > 0:
                high[each.field] = min(high[each.field], ladder.quiet_up_to)
            else:
                falls = True
        plan = _Plan(tuple(high.values()), falls, ladders)
        self._plans[model] = plan
        return plan

    def _fold_turn(self, state: NodeState, record: ScrapeRecord) -> Sequence[Transition]:
        at = record.collected_at
        if at < state.clock:
            return self._late(state)
        bridge = state.bridges.get(record.bridge_id)
        if bridge is not None and bridge.boot_id == record.boot_id and bridge.at == at and record.seq <= bridge.seq:
            self.counts.duplicate += 1
            return _NOTHING
        out: list[Transition] = []
        self._hear(state, at, out)
        if record.removed:
            self._remove(state, at, out)
            return out
        if record.interval_ms != state.interval_ms:
            state.interval_ms = record.interval_ms
            state.dirty = True
        rebooted = bridge is None or bridge.boot_id != record.boot_id
        turn_before = note_bridge(state, record)
        self._note_outcome(state, record, rebooted=rebooted)
        if record.up:
            self._look_for_gpus(state, record, out)
        if self._exporter_down is not None:
            self._exporter_down.evaluate(state, record, out)
        if self._frozen is not None and record.up:
            self._frozen.evaluate(state, record, turn_before, out)
        if self._duplicate is not None:
            self._duplicate.evaluate(state, record, out)
        return out

    def _note_outcome(self, state: NodeState, record: ScrapeRecord, *, rebooted: bool) -> None:
        before = (state.down_turns, state.up_since, state.page_since)
        if record.up:
            state.down_turns = 0
            state.up_since = state.up_since or record.collected_at
            state.page_since = record.collected_at if rebooted or state.page_since is None else state.page_since
        else:
            state.down_turns = min(state.down_turns + 1, self._down_turns)
            state.up_since = state.page_since = None
        if before != (state.down_turns, state.up_since, state.page_since):
            state.dirty = True

    def _look_for_gpus(self, state: NodeState, record: ScrapeRecord, out: list[Transition]) -> None:
        """Compare a page's GPUs with those that are known: who is absent, who is back, who was replaced."""
        present = frozenset(record.gpu_uuids)
        noteworthy = [gpu for gpu in state.gpus.values() if gpu.uuid not in present or gpu.absences]
        for gpu in sorted(noteworthy, key=lambda each: (each.index, each.uuid)):
            absences = 0 if gpu.uuid in present else min(gpu.absences + 1, self._absences)
            if absences:
                new = replacement(state, gpu, present)
                if new is not None:
                    self._end_all(state, record.collected_at, "replaced", out, gpu, {"new_gpu_uuid": new.uuid})
                    del state.gpus[gpu.uuid]
                    state.dirty = True
                    continue
            if absences != gpu.absences:
                gpu.absences = absences
                state.dirty = True
                if self._gpu_lost is not None:
                    self._gpu_lost.evaluate(state, gpu, record.collected_at, out)

    def _remove(self, state: NodeState, at: datetime, out: list[Transition]) -> None:
        """The node left the configuration: its alerts end, and what it was is forgotten."""
        self._end_all(state, at, "decommissioned", out)
        state.gpus.clear()
        state.bridges.clear()
        state.down_turns = 0
        state.up_since = state.page_since = None
        state.removed = state.dirty = True

    def _end_all(
        self,
        state: NodeState,
        at: datetime,
        reason: ResolvedReason,
        out: list[Transition],
        gpu: Gpu | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        alerts = [alert for key, alert in state.alerts.items() if gpu is None or key.gpu_uuid == gpu.uuid]
        for alert in sorted(alerts, key=lambda each: each.key.order):
            self._lifecycles[alert.key.rule].resolve(state, alert, at, reason, out, details)

    def _fold_silence(self, state: NodeState, record: SilenceRecord) -> Sequence[Transition]:
        out: list[Transition] = []
        current = record.last_collected_at == state.clock and not state.removed
        if not current or self._silent is None or not self._silent.begin(state, record, out):
            self.counts.silence_ignored += 1
        return out

    def _late(self, state: NodeState) -> Sequence[Transition]:
        self.counts.late += 1
        state.dirty = True  # else its row, newer than the saved clock, would be taken for one that was evaluated
        return _NOTHING

    def _hear(self, state: NodeState, at: datetime, out: list[Transition]) -> None:
        """Set the clock by a record, and end what ends by the node being heard, or by its time being over."""
        state.clock = at
        if state.removed:
            state.removed = False
            state.dirty = True
        if at < state.next_deadline:
            return
        for alert in sorted(state.alerts.values(), key=lambda each: each.key.order):
            lifecycle = self._lifecycles.get(alert.key.rule)
            if lifecycle is None or lifecycle.rule.kind != alert.kind:
                end_orphan(state, alert, at, out)
            elif alert.expires_at is not None and at >= alert.expires_at:
                lifecycle.resolve(state, alert, alert.expires_at, "expired", out)
        state.orphans = False
        if self._silent is not None:
            self._silent.end(state, at, out)
        state.changed()

    def _look(self, record: GpuRecord) -> None:
        for rule, field in list(self._unseen.items()):
            if getattr(record, field) is not None or (field == "xid_code" and XID_COUNTS in record.fields):
                del self._unseen[rule]

    def resolve(self, state: NodeState, command: ResolveCommand) -> Sequence[Transition]:
        """Apply a manual resolve: the alert ends and is muted up to the command's severity until its condition ends.

        To be called for each unapplied command of the node, in the order of their ids, before a batch's first record.
        The event and the alert's row were already written by the SQL function `resolve_alert`; of the transition
        that comes back (`resolved`, reason `manual`) the worker takes the `actions` only. A command for a firing
        that is over gives nothing.
        """
        alert = state.alerts.get(command.key)
        if alert is None or alert.phase != "firing" or alert.started_at != command.started_at:
            return _NOTHING
        alert.severity = command.severity
        lifecycle = self._lifecycles.get(command.key.rule)
        if lifecycle is None:
            state.drop(alert)
            return _NOTHING
        return (lifecycle.resolve_by_hand(state, alert, command.at, command.actor),)

    def status(self, state: NodeState) -> NodeStatus:
        """`down` while an exporter_down rule fires, else the highest severity that fires, else `healthy`."""
        status: NodeStatus = "healthy"
        for alert in state.alerts.values():
            if alert.phase == "firing":
                if alert.kind == "exporter_down":
                    return "down"
                if status == "healthy" or RANK[alert.severity] > RANK[status]:
                    status = alert.severity
        return status

    def active(self, state: NodeState) -> Sequence[ActiveAlert]:
        """The alerts that fire now, in key order."""
        return [
            ActiveAlert(
                key=alert.key,
                started_at=alert.started_at,
                severity=alert.severity,
                message=alert.message,
                gpu_index=alert.gpu_index,
                threshold_value=alert.threshold_value,
                actual_value=alert.actual_value,
            )
            for alert in sorted(state.alerts.values(), key=lambda each: each.key.order)
            if alert.phase == "firing"
        ]

    def save(self, state: NodeState) -> bytes:
        """The node's state as a JSON object for `engine_state` (scope `node`, key the node's id); clears `dirty`.

        To be called when `dirty` is set, after the batch's last record, in the transaction that stores its rows.
        """
        state.dirty = False
        return self._codec.save(state)

    def restore(
        self,
        node_id: str,
        saved: bytes | str | Mapping[str, Any] | None,
        gpu_rows: Sequence[GpuRecord],
        scrape_rows: Sequence[ScrapeRecord],
    ) -> NodeState:
        """A node's state as it was after the last committed batch.

        Args:
            node_id: the node.
            saved: what `save` gave at that node's last save, as bytes, text, or the decoded JSON object; None when
                there is none, in which case the rows alone tell what the node was (and no alert fires).
            gpu_rows: the newest stored row of every placement of the node, as records with all columns of the field
                table and `fields`. `bridge_id`, `boot_id` and `seq` may hold anything. Empty when nothing is stored.
            scrape_rows: the newest stored closing record of each `bridge_id` that scraped the node.

        Raises:
            msgspec.ValidationError: `saved` is not what `save` gives.
        """
        state = self._codec.restore(node_id, saved, gpu_rows, scrape_rows)
        for row in gpu_rows:
            self._look(row)
        return state

    def unseen_fields(self) -> dict[str, str]:
        """Rule to field, for each enabled rule whose field no record has held since this engine was made.

        For a log line and a metric: a rule on a field that no exporter sends can never fire. A field is looked for in
        restored rows, in every record that is not quiet, and in every 64th turn, so it may take that long to be seen.
        """
        return dict(self._unseen)


def _begin_turn(state: NodeState, gpu: Gpu, record: GpuRecord, readings: Readings) -> Readings:
    """Take in a GPU's first row of a turn; gives the readings that are to be evaluated: all."""
    gpu.turn_at = record.collected_at
    gpu.readings = readings
    gpu.instances = _WHOLE_GPU if record.mig_instance is None else (record.mig_instance,)
    gpu.counts_taken = False
    if record.gpu_index != gpu.index:
        gpu.index = record.gpu_index
        gpu.moved = True
        state.dirty = True
    return readings


def _go_on(state: NodeState, gpu: Gpu, record: GpuRecord, readings: Readings) -> Readings:
    """Take in a further row (MIG instance) of a GPU's turn; gives what no earlier row of it had a valid value of."""
    fresh = tuple(value if taken is None else None for taken, value in zip(gpu.readings, readings, strict=True))
    if gpu.readings[-1] is not None and readings[-1] not in (None, gpu.readings[-1]):
        state.dirty = True  # rows would not tell which of the two was first
    gpu.readings = merged(gpu.readings, readings)
    gpu.instances += (record.mig_instance,)
    return fresh


def _take_energy(state: NodeState, gpu: Gpu, energy: float | None, at: datetime) -> None:
    """Note a turn's first valid reading of a GPU's energy counter, or that there is none yet."""
    if energy is None:
        if gpu.readings[-1] is None and gpu.energy_joules is not None and not gpu.energy_missing:
            gpu.energy_missing = True
            state.dirty = True  # no row tells the last reading any more
        return
    if gpu.energy_missing:
        gpu.energy_missing = False
        state.dirty = True
    moved = energy != gpu.energy_joules
    gpu.energy_joules = energy
    state.energy_at = at
    if moved:
        state.moved_at = at
        if state.still:
            state.still = False
            state.dirty = True
    elif at > state.moved_at and not state.still:
        state.still = True
        state.dirty = True
