"""Closing records: how a node's turn ended, and what that tells of the node and of its GPUs."""

from collections.abc import Sequence
from datetime import datetime

from alerting.hearing import Hearing
from alerting.node_conditions import (
    DuplicateScraper,
    ExporterDown,
    ExporterFrozen,
    GpuLost,
    note_bridge,
    replacement,
)
from alerting.node_state import NodeState
from alerting.transitions import Transition
from gpu_telemetry.records import ScrapeRecord


class TurnFold:
    """The fold of closing records; a condition is None where no rule asks for it."""

    def __init__(
        self,
        hearing: Hearing,
        *,
        exporter_down: ExporterDown | None,
        gpu_lost: GpuLost | None,
        frozen: ExporterFrozen | None,
        duplicate: DuplicateScraper | None,
    ) -> None:
        self._hearing = hearing
        self._exporter_down = exporter_down
        self._gpu_lost = gpu_lost
        self._frozen = frozen
        self._duplicate = duplicate
        # Streaks are counted no further than they matter, so that they stop changing.
        self._down_turns = exporter_down.rule.turns if exporter_down else 1
        self._absences = gpu_lost.rule.scrapes if gpu_lost else 1

    def fold(self, state: NodeState, record: ScrapeRecord) -> Sequence[Transition]:
        """Take in a closing record."""
        at = record.collected_at
        if at < state.clock:
            return self._hearing.late(state)
        bridge = state.bridges.get(record.bridge_id)
        if bridge is not None and bridge.boot_id == record.boot_id and bridge.at == at and record.seq <= bridge.seq:
            return self._hearing.duplicate()
        if state.removed and at == state.clock:
            return self._hearing.duplicate()  # a removal is the last word of its moment
        out: list[Transition] = []
        self._hearing.hear(state, at, out)
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
                    self._hearing.end_all(state, record.collected_at, "replaced", out, gpu, {"new_gpu_uuid": new.uuid})
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
        self._hearing.end_all(state, at, "decommissioned", out)
        state.gpus.clear()
        state.bridges.clear()
        state.down_turns = 0
        state.up_since = state.page_since = None
        state.removed = state.dirty = True
