"""GPU records: a fast way for those in which nothing happens, and the full way, with which it must agree."""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Final, NamedTuple

from alerting.gpu_events import XID_COUNTS, IncreaseCondition, XidCondition, xid_counts
from alerting.hearing import Hearing
from alerting.node_state import Gpu, NodeState, Readings
from alerting.saved_state import merged
from alerting.thresholds import Ladder, ThresholdCondition
from alerting.transitions import Transition
from gpu_telemetry.records import GpuRecord

GpuCondition = ThresholdCondition | IncreaseCondition | XidCondition

_NOTHING: Final[tuple[Transition, ...]] = ()
_WHOLE_GPU: Final[tuple[str | None, ...]] = (None,)
# Every so many turns a record is looked at for fields that were not seen yet: a mask of its seq.
_LOOK_AT_TURNS: Final = 63


class _Plan(NamedTuple):
    """What one model's readings are held against.

    No threshold field (in their order) whose value is up to `high` is past a step of a ladder that goes up; `falls`
    says that there are ladders that go down.
    """

    high: tuple[float, ...]
    falls: bool
    ladders: dict[str, Ladder]


class GpuFold:
    """The fold of GPU records for one set of rules.

    `watched` are the fields that are read of each record and `counters` those of them with an increase rule;
    `unseen` is the field of each rule of which no record has held it yet.
    """

    def __init__(self, conditions: Sequence[GpuCondition], hearing: Hearing) -> None:
        self._conditions = conditions
        self._hearing = hearing
        self._thresholds = [each for each in conditions if isinstance(each, ThresholdCondition)]
        fields = tuple(dict.fromkeys(each.field for each in self._thresholds))
        self.counters = tuple(dict.fromkeys(each.field for each in conditions if isinstance(each, IncreaseCondition)))
        # Threshold fields, then the steady ones (counters, XID), then the energy counter: see `fold`.
        self.watched = (*fields, *self.counters, "xid_code", "energy_joules")
        self._first_steady = len(fields)
        self._read = attrgetter(*self.watched)
        self._plans: dict[str | None, _Plan] = {}
        self.unseen = {
            each.rule.name: "xid_code" if isinstance(each, XidCondition) else each.field for each in conditions
        }

    def fold(self, state: NodeState, record: GpuRecord) -> Sequence[Transition]:
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
        ):
            return self.fold_in_full(state, record)
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
            return self.fold_in_full(state, record)
        for value, high in zip(readings, plan.high):  # noqa: B905 - the shorter counts: the threshold fields come first
            if value is not None and value > high:
                return self.fold_in_full(state, record)
        state.clock = gpu.turn_at = at
        if energy is not None:
            state.energy_at = state.moved_at = at
            gpu.energy_joules = energy
        gpu.readings = readings
        gpu.counts_taken = has_counts
        gpu.instances = _WHOLE_GPU if record.mig_instance is None else (record.mig_instance,)
        return _NOTHING

    def fold_in_full(self, state: NodeState, record: GpuRecord) -> Sequence[Transition]:
        """Any GPU record."""
        at = record.collected_at
        if at < state.clock:
            return self._hearing.late(state)
        gpu = state.gpus.get(record.gpu_uuid)
        same_turn = gpu is not None and gpu.turn_at == at
        if gpu is not None and same_turn and (record.mig_instance in gpu.instances or record.gpu_index != gpu.index):
            return self._hearing.duplicate()
        if state.removed and at == state.clock:
            return self._hearing.duplicate()  # a removal is the last word of its moment
        out: list[Transition] = []
        self._hearing.hear(state, at, out)
        if gpu is None:
            gpu = Gpu(record.gpu_uuid, record.gpu_index, at, steady=(None,) * (len(self.counters) + 1))
            state.gpus[gpu.uuid] = gpu
            state.dirty = True
        readings: Readings = self._read(record)
        if self.unseen:
            self.look(record)
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
        first = dict(zip(self.watched, fresh, strict=True))
        last = dict(zip((*self.counters, "xid_code"), gpu.steady, strict=True))
        for condition in self._conditions:
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
        high = dict.fromkeys(self.watched[: self._first_steady], float("inf"))
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

    def look(self, record: GpuRecord) -> None:
        """Look at a record for fields that were not seen yet."""
        for rule, field in list(self.unseen.items()):
            if getattr(record, field) is not None or (field == "xid_code" and XID_COUNTS in record.fields):
                del self.unseen[rule]


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
