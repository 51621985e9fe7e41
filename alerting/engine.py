"""The engine: a pure fold of one node's records into transitions of alerts. No I/O, no wall clock.

Its clock is per node: the newest `collected_at` among that node's own GPU and closing records. The same records (and
commands) in the same order give the same transitions, however they are cut into batches and whoever folds them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alerting.gpu_events import IncreaseCondition, XidCondition
from alerting.gpu_fold import GpuCondition, GpuFold
from alerting.hearing import Counts, Hearing
from alerting.lifecycle import RANK, Lifecycle
from alerting.node_conditions import DuplicateScraper, ExporterDown, ExporterFrozen, GpuLost, NodeSilent
from alerting.node_state import NodeState
from alerting.rule_schema import (
    DuplicateScraperRule,
    ExporterDownRule,
    ExporterFrozenRule,
    GpuLostRule,
    IncreaseRule,
    NodeSilentRule,
    Rule,
    ThresholdRule,
    XidRule,
)
from alerting.rules import Rules
from alerting.saved_state import StateCodec
from alerting.thresholds import ThresholdCondition
from alerting.transitions import ActiveAlert, NodeStatus, ResolveCommand, Transition
from alerting.turn_fold import TurnFold
from gpu_telemetry.records import AnyRecord, GpuRecord, ScrapeRecord, SilenceRecord

__all__ = ["Counts", "Engine"]

_Condition = GpuCondition | DuplicateScraper | ExporterDown | ExporterFrozen | GpuLost | NodeSilent
_C = TypeVar("_C", bound=_Condition)


class Engine:
    """The fold, for one set of rules. It holds no state of any node; one engine serves all of a worker's nodes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        # In the order of the file, which is the order of the transitions of one record.
        conditions = [_condition(rule) for rule in rules.enabled]
        lifecycles: dict[str, Lifecycle] = {each.rule.name: each.lifecycle for each in conditions}
        self._lifecycles = lifecycles
        self._silent = _first(conditions, NodeSilent)
        self._hearing = Hearing(lifecycles, self._silent)
        self._gpus = GpuFold([each for each in conditions if isinstance(each, GpuCondition)], self._hearing)
        self._turns = TurnFold(
            self._hearing,
            exporter_down=_first(conditions, ExporterDown),
            gpu_lost=_first(conditions, GpuLost),
            frozen=_first(conditions, ExporterFrozen),
            duplicate=_first(conditions, DuplicateScraper),
        )
        self._fold_gpu = self._gpus.fold
        self._fold_turn = self._turns.fold
        kinds = {name: lifecycle.rule.kind for name, lifecycle in lifecycles.items()}
        self._codec = StateCodec(self._gpus.watched, self._gpus.counters, kinds)

    @property
    def counts(self) -> Counts:
        """What was folded to no effect, by why."""
        return self._hearing.counts

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

    def _fold_silence(self, state: NodeState, record: SilenceRecord) -> Sequence[Transition]:
        out: list[Transition] = []
        current = record.last_collected_at == state.clock and not state.removed
        if not current or self._silent is None or not self._silent.begin(state, record, out):
            self._hearing.counts.silence_ignored += 1
        return out

    def resolve(self, state: NodeState, command: ResolveCommand) -> Sequence[Transition]:
        """Apply a manual resolve: the alert ends and is muted up to the command's severity until its condition ends.

        To be called for each unapplied command of the node, in the order of their ids, before a batch's first record.
        The event and the alert's row were already written by the SQL function `resolve_alert`; of the transition
        that comes back (`resolved`, reason `manual`) the worker takes the `actions` only. A command for a firing
        that is over gives nothing.
        """
        alert = state.alerts.get(command.key)
        if alert is None or alert.phase != "firing" or alert.started_at != command.started_at:
            return ()
        alert.severity = command.severity
        lifecycle = self._lifecycles.get(command.key.rule)
        if lifecycle is None:
            state.drop(alert)
            return ()
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
                there is none, in which case the rows alone tell what the node was (no alert fires, and it is dirty).
            gpu_rows: the newest stored row of every placement of the node, as records with all columns of the field
                table and `fields`. `bridge_id`, `boot_id` and `seq` may hold anything. Empty when nothing is stored.
            scrape_rows: the newest stored closing record of each `bridge_id` that scraped the node.

        Raises:
            msgspec.ValidationError: `saved` is not what `save` gives.
        """
        state = self._codec.restore(node_id, saved, gpu_rows, scrape_rows)
        for row in gpu_rows:
            self._gpus.look(row)
        return state

    def unseen_fields(self) -> dict[str, str]:
        """Rule to field, for each enabled rule whose field no record has held since this engine was made.

        For a log line and a metric: a rule on a field that no exporter sends can never fire. A field is looked for in
        restored rows, in every record that is not quiet, and in every 64th turn, so it may take that long to be seen.
        """
        return dict(self._gpus.unseen)


def _condition(rule: Rule) -> _Condition:  # noqa: PLR0911 - one line a kind
    """What evaluates a rule."""
    match rule:
        case ThresholdRule():
            return ThresholdCondition(rule)
        case IncreaseRule():
            return IncreaseCondition(rule)
        case XidRule():
            return XidCondition(rule)
        case GpuLostRule():
            return GpuLost(rule)
        case ExporterDownRule():
            return ExporterDown(rule)
        case ExporterFrozenRule():
            return ExporterFrozen(rule)
        case DuplicateScraperRule():
            return DuplicateScraper(rule)
        case NodeSilentRule():
            return NodeSilent(rule)


def _first(conditions: Sequence[_Condition], wanted: type[_C]) -> _C | None:
    return next((each for each in conditions if isinstance(each, wanted)), None)
