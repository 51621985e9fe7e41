"""Conditions that a node's closing records decide, or their absence: is it heard, read, moving, whole, ours alone."""

from datetime import datetime, timedelta

from alerting.lifecycle import Lifecycle
from alerting.node_state import LONG_AGO, Bridge, Gpu, NodeState
from alerting.rule_schema import DuplicateScraperRule, ExporterDownRule, ExporterFrozenRule, GpuLostRule, NodeSilentRule
from alerting.transitions import Transition
from gpu_telemetry.clock import rfc3339
from gpu_telemetry.records import ScrapeRecord, SilenceRecord

# A node is silent after this many of its intervals, and scraped twice by two bridges within this many.
SILENT_INTERVALS = 3
DUPLICATE_INTERVALS = 2


class ExporterDown:
    """Turns running that gave no page, whatever the reason; a skipped one (`overrun`) gave none either."""

    def __init__(self, rule: ExporterDownRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def evaluate(self, state: NodeState, record: ScrapeRecord, out: list[Transition]) -> None:
        """Take in a closing record after `down_turns` was counted."""
        if state.down_turns < self.rule.turns and not (record.up and state.alerts):
            return
        reason = record.reason or "unknown"
        self.lifecycle.hold(
            state,
            self.lifecycle.key(state),
            record.collected_at,
            out,
            holds=not record.up,
            severity=self.rule.severity,
            message=lambda: self.rule.message.format(node_id=state.node_id, turns=self.rule.turns, reason=reason),
            details={"reason": reason},
        )


class GpuLost:
    """A known GPU that consecutive pages did not name. Turns without a page say nothing of a GPU."""

    def __init__(self, rule: GpuLostRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def evaluate(self, state: NodeState, gpu: Gpu, at: datetime, out: list[Transition]) -> None:
        """Take in a GPU's count of absences when it changed."""
        if 0 < gpu.absences < self.rule.scrapes:
            return
        self.lifecycle.hold(
            state,
            self.lifecycle.key(state, gpu.uuid),
            at,
            out,
            holds=gpu.absences > 0,
            severity=self.rule.severity,
            message=lambda: self.rule.message.format(node_id=state.node_id, gpu_index=gpu.index, gpu_uuid=gpu.uuid),
            gpu_index=gpu.index,
        )


class ExporterFrozen:
    """Pages are read and nothing moves: the energy counters, or any value on a page that has none.

    Only what moved ends the alert: a turn without a page, or a bridge that starts anew, says nothing. A page that had
    energy counters lately is not judged by its other values.
    """

    def __init__(self, rule: ExporterFrozenRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def evaluate(self, state: NodeState, record: ScrapeRecord, turn_before: datetime, out: list[Transition]) -> None:
        """Take in the closing record of a page; `turn_before` is when the node's turn before was closed."""
        at = record.collected_at
        assert state.up_since is not None
        assert state.page_since is not None
        if state.energy_at > turn_before:
            since = max(state.moved_at, state.up_since)
            moves = state.moved_at > turn_before
        elif at - state.energy_at > self.rule.after and record.changed_at is not None:
            since = max(record.changed_at, state.page_since)
            moves = record.changed_at > state.page_since
        else:
            return
        stands = at - since
        if stands < self.rule.after and not (moves and state.alerts):
            return
        self.lifecycle.hold(
            state,
            self.lifecycle.key(state),
            at,
            out,
            holds=stands >= self.rule.after,
            severity=self.rule.severity,
            message=lambda: self.rule.message.format(node_id=state.node_id, seconds=stands.total_seconds()),
            details={"unchanged_since": since.isoformat()},
        )


class DuplicateScraper:
    """Two bridges that close turns of the node within two intervals (the longer of theirs)."""

    def __init__(self, rule: DuplicateScraperRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def evaluate(self, state: NodeState, record: ScrapeRecord, out: list[Transition]) -> None:
        """Take in a closing record after `bridges` was brought up to date: those that are left are recent."""
        if len(state.bridges) == 1 and not state.alerts:
            return
        bridges = ", ".join(sorted(state.bridges))
        self.lifecycle.hold(
            state,
            self.lifecycle.key(state),
            record.collected_at,
            out,
            holds=len(state.bridges) > 1,
            severity=self.rule.severity,
            message=lambda: self.rule.message.format(node_id=state.node_id, bridges=bridges),
            details={"bridges": sorted(state.bridges)},
        )


class NodeSilent:
    """Nothing of the node was heard, as a silence record says."""

    def __init__(self, rule: NodeSilentRule) -> None:
        self.rule = rule
        self.lifecycle = Lifecycle(rule)

    def begin(self, state: NodeState, record: SilenceRecord, out: list[Transition]) -> bool:
        """Fire, three intervals after the node's last record; False where that is known already."""
        key = self.lifecycle.key(state)
        if key in state.alerts:
            return False
        wait = timedelta(milliseconds=SILENT_INTERVALS * record.interval_ms)
        message = self.rule.message.format(node_id=state.node_id, seconds=wait.total_seconds())
        # Wall time, as the record tells it: it says whether the silence is news, and decides nothing here.
        details = {"detected_at": rfc3339(record.detected_at)}
        self.lifecycle.fire(state, key, record.last_collected_at + wait, self.rule.severity, message, out, details)
        return True

    def end(self, state: NodeState, at: datetime, out: list[Transition]) -> None:
        """The node was heard at `at`: end at the later of then and the start."""
        alert = state.alerts.get(self.lifecycle.key(state))
        if alert is not None:
            self.lifecycle.resolve(state, alert, at, "cleared", out)


def note_bridge(state: NodeState, record: ScrapeRecord) -> datetime:
    """Bring `bridges` up to date with a turn, and forget those not heard for two intervals.

    Returns:
        When the node's turn before was closed; LONG_AGO where there was none.
    """
    at = record.collected_at
    before = max((bridge.at for bridge in state.bridges.values()), default=LONG_AGO)
    earlier = state.bridges.get(record.bridge_id)
    state.bridges[record.bridge_id] = Bridge(record.boot_id, record.seq, at, record.interval_ms)
    if earlier is None:
        state.dirty = True
    if len(state.bridges) > 1:
        for bridge_id, bridge in list(state.bridges.items()):
            longer = max(bridge.interval_ms, record.interval_ms)
            if at - bridge.at > timedelta(milliseconds=DUPLICATE_INTERVALS * longer):
                del state.bridges[bridge_id]
                state.dirty = True
    return before


def replacement(state: NodeState, absent: Gpu, present: frozenset[str]) -> Gpu | None:
    """The GPU, new to the node since `absent` was last seen, that stands at its index; None where there is none."""
    return next(
        (
            gpu
            for gpu in state.gpus.values()
            if gpu.index == absent.index and gpu.uuid in present and not gpu.moved and gpu.known_since > absent.turn_at
        ),
        None,
    )
