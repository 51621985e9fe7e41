"""One node as the bridge knows it: its target, what its pages looked like, where its sequence stands, its last page."""

from collections.abc import Mapping

from exporter_bridge.exposition import PageParser
from exporter_bridge.layouts import Page
from exporter_bridge.records import RecordBuilder, Turn
from exporter_bridge.targets import Target
from gpu_telemetry.records import DropCount


class Node:
    """The bridge's memory of one node. `boot_id` with `seq` names a turn for ever.

    `page` is the last page, compacted, while the last turn was good; `page_at` is its end in monotonic seconds.
    `reason` is None before the first turn's end and after a good one. `offset_seconds` is where in the interval
    its turns lie, `due_at` when the last one should have begun, in the scraper's time.
    """

    __slots__ = (
        "boot_id",
        "builder",
        "busy",
        "collected_at_ms",
        "drops",
        "due_at",
        "had_turn",
        "offset_seconds",
        "page",
        "page_at",
        "parser",
        "reason",
        "refusing",
        "seq",
        "target",
    )

    def __init__(self, target: Target, parser: PageParser, boot_id: str, drops: Mapping[str, DropCount]) -> None:
        self.target = target
        self.parser = parser
        self.builder = RecordBuilder()
        self.boot_id = boot_id
        self.drops = drops
        self.seq = 0
        self.collected_at_ms = 0
        self.busy = False
        self.offset_seconds = 0.0
        self.due_at = 0.0
        self.had_turn = False
        self.page: Page | None = None
        self.page_at = 0.0
        self.reason: str | None = None
        self.refusing = False

    def end_turn(
        self,
        now_ms: int,
        *,
        bridge_id: str,
        interval_ms: int,
        reason: str | None,
        seconds: float | None = None,
        removed: bool = False,
    ) -> Turn:
        """Give the turn that ends now its number and time: both rise, even if the wall clock steps back."""
        self.seq += 1
        self.collected_at_ms = max(now_ms, self.collected_at_ms + 1)
        self.had_turn = True
        target = self.target
        return Turn(
            node_id=target.node_id,
            bridge_id=bridge_id,
            boot_id=self.boot_id,
            seq=self.seq,
            collected_at_ms=self.collected_at_ms,
            interval_ms=interval_ms,
            up=reason is None and not removed,
            reason=reason,
            hostname=target.hostname,
            datacenter=target.datacenter,
            instance=target.instance,
            duration_ms=None if seconds is None else seconds * 1000,
            drops=self.drops,
            removed=removed,
        )
