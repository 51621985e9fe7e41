"""A node is heard: its clock moves, and what ends by that, or by its time being over, ends."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from alerting.lifecycle import Lifecycle, end_orphan
from alerting.node_conditions import NodeSilent
from alerting.node_state import Gpu, NodeState
from alerting.transitions import ResolvedReason, Transition


class Counts(msgspec.Struct):
    """What was folded to no effect since this engine was made, by why. A batch that is redone counts again."""

    late: int = 0  # older than the node's clock: to be stored, not evaluated
    duplicate: int = 0  # the same placement at the same time, or the same turn, once more
    silence_ignored: int = 0  # a silence that the node's clock contradicts, or that was known


class Hearing:
    """What each record of a node does, whatever it tells."""

    def __init__(self, lifecycles: Mapping[str, Lifecycle], silent: NodeSilent | None) -> None:
        self.counts = Counts()
        self._lifecycles = lifecycles
        self._silent = silent

    def duplicate(self) -> Sequence[Transition]:
        """A record that was taken in before: nothing happens."""
        self.counts.duplicate += 1
        return ()

    def late(self, state: NodeState) -> Sequence[Transition]:
        """A record is older than the node's clock: nothing happens."""
        self.counts.late += 1
        state.dirty = True  # else its row, newer than the saved clock, would be taken for one that was evaluated
        return ()

    def hear(self, state: NodeState, at: datetime, out: list[Transition]) -> None:
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

    def end_all(
        self,
        state: NodeState,
        at: datetime,
        reason: ResolvedReason,
        out: list[Transition],
        gpu: Gpu | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """End every alert of a GPU, or of the whole node, in key order."""
        alerts = [alert for key, alert in state.alerts.items() if gpu is None or key.gpu_uuid == gpu.uuid]
        for alert in sorted(alerts, key=lambda each: each.key.order):
            self._lifecycles[alert.key.rule].resolve(state, alert, at, reason, out, details)
