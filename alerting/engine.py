"""The engine: a pure fold of one node's records into transitions of alerts. No I/O, no wall clock.

Its clock is per node: the newest `collected_at` among that node's own GPU and closing records. The same records (and
commands) in the same order give the same transitions, however they are cut into batches and whoever folds them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from alerting.node_state import NodeState
from alerting.rules import Rules
from alerting.transitions import ActiveAlert, NodeStatus, ResolveCommand, Transition
from gpu_telemetry.records import AnyRecord, GpuRecord, ScrapeRecord


class Counts(msgspec.Struct):
    """What was folded to no effect since this engine was made, by why. A batch that is redone counts again."""

    late: int = 0  # older than the node's clock: to be stored, not evaluated
    duplicate: int = 0  # the same placement at the same time, or the same turn, once more
    silence_ignored: int = 0  # a silence that the node's clock contradicts, or that was known


class Engine:
    """The fold, for one set of rules. It holds no state of any node; one engine serves all of a worker's nodes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.counts = Counts()

    def new_node(self, node_id: str) -> NodeState:
        """The state of a node that was never heard of. It is dirty from its first record on."""
        raise NotImplementedError

    def fold(self, state: NodeState, record: AnyRecord) -> Sequence[Transition]:
        """Take in the node's next record, in the order of its partition, and say what it changes.

        The worker folds every record that it decoded, also those that it will not store because they lie beyond
        retention: after such a one it sets `state.dirty = True`, since no row will tell of it. It folds no record
        that it dead-letters (`clock_skew`, poison). Late and repeated records give nothing and are counted in
        `counts`. After the batch's last record each state with `dirty` set is to be saved in the transaction.

        Returns:
            The transitions in the order in which they happened; nearly always the empty tuple.
        """
        raise NotImplementedError

    def resolve(self, state: NodeState, command: ResolveCommand) -> Sequence[Transition]:
        """Apply a manual resolve: the alert ends and is muted up to the command's severity until its condition ends.

        To be called for each unapplied command of the node, in the order of their ids, before a batch's first record.
        The event and the alert's row were already written by the SQL function `resolve_alert`; of the transition
        that comes back (`resolved`, reason `manual`) the worker takes the `actions` only. A command for a firing
        that is over gives nothing.
        """
        raise NotImplementedError

    def status(self, state: NodeState) -> NodeStatus:
        """`down` while an exporter_down rule fires, else the highest severity that fires, else `healthy`."""
        raise NotImplementedError

    def active(self, state: NodeState) -> Sequence[ActiveAlert]:
        """The alerts that fire now, in key order."""
        raise NotImplementedError

    def save(self, state: NodeState) -> bytes:
        """The node's state as a JSON object for `engine_state` (scope `node`, key the node's id); clears `dirty`.

        To be called when `dirty` is set, after the batch's last record, in the transaction that stores its rows.
        """
        raise NotImplementedError

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
                table and `fields`. `bridge_id`, `boot_id` and `seq` may hold anything. None when nothing is stored.
            scrape_rows: the newest stored closing record of each `bridge_id` that scraped the node.

        Raises:
            msgspec.ValidationError: `saved` is not what `save` gives.
        """
        raise NotImplementedError

    def unseen_fields(self) -> dict[str, str]:
        """Rule to field, for each enabled rule whose field no record has held since this engine was made.

        For a log line and a metric: a rule on a field that no exporter sends can never fire. A field is looked for in
        restored rows, in a GPU's first record, and in every 64th turn, so it may take that long to be seen.
        """
        raise NotImplementedError
