"""One scrape of one node becomes its messages: a record for each GPU or MIG instance, then the closing scrape record.

The messages are what `gpu_telemetry.records` decodes. A value that is not believed goes to `rejected`, never into a
number; what cannot be ascribed to a GPU is counted by entity in `not_recorded`.
"""

from collections.abc import Mapping

import msgspec
from xxhash import xxh3_128_digest

from exporter_bridge.blocks import Steps
from exporter_bridge.judging import UNCONVERTIBLE
from exporter_bridge.layouts import LabelSet, Page
from exporter_bridge.placing import plan_page
from exporter_bridge.plans import Plan
from exporter_bridge.writing import Turn, Unbelieved, closing, head, judged, prefix, written

__all__ = ["RecordBuilder", "Scrape", "Turn"]


class Scrape(msgspec.Struct, frozen=True):
    """The messages of one turn, all keyed by `node_id`, the closing record last.

    `rejected` counts values that were not believed by (name, reason); `not_recorded` counts samples that no GPU record
    holds by entity: nvlink, nvswitch, cpu, cpu_core, unknown. `removal` says that it tells of the node's removal.
    """

    node_id: str
    messages: list[bytes]
    gpu_records: int
    rejected: Mapping[tuple[str, str], int]
    not_recorded: Mapping[str, int]
    removal: bool = False


class RecordBuilder:
    """Turns one node's pages into messages; it keeps the constant parts of them from scrape to scrape.

    `changed_at_ms` is when any value of the node's page last changed, None before the first page.
    """

    __slots__ = (
        "_described_by", "_digest", "_gpu_uuids", "_heads", "_hostname", "_not_recorded", "_plan", "_shape",
        "_unconvertible", "changed_at_ms",
    )  # fmt: skip

    def __init__(self) -> None:
        self.changed_at_ms: int | None = None
        self._shape: object = None
        self._described_by: tuple[str | None, str | None] = (None, None)
        self._plan: Plan | None = None
        self._heads: list[bytes] = []
        self._gpu_uuids: list[str] = []
        self._hostname: str | None = None
        self._not_recorded: Mapping[str, int] = {}
        self._unconvertible: Mapping[tuple[str, LabelSet], tuple[int, str]] = {}
        self._digest = b""

    def build(self, page: Page, turn: Turn) -> Scrape:
        """The messages of a turn that brought a page; quick if the page was planned."""
        for _ in self.plan_steps(page, turn.hostname, turn.datacenter):
            pass
        assert self._plan is not None
        plan = self._plan
        tokens, values = page.tokens, page.values
        digest = xxh3_128_digest(page.text)
        if digest != self._digest:
            self._digest = digest
            self.changed_at_ms = turn.collected_at_ms
        unconvertible = self._unconvertible_of(page)
        careful = plan.suspects(tokens, values, page.text) if page.plain else set(range(len(plan.records)))
        careful.update(unconvertible)
        rejected: dict[tuple[str, str], int] = {}
        start = prefix(turn)
        messages = []
        for number, (identity, record) in enumerate(zip(self._heads, plan.records, strict=True)):
            message = None if number in careful else written(record, start + identity, tokens, values)
            if message is None:
                rest = judged(record, tokens, values, unconvertible.get(number, {}), rejected)
                message = b"".join((start, identity, rest))
            messages.append(message)
        uuids = list(dict.fromkeys((*self._gpu_uuids, *page.refused_uuids)))
        messages.append(self._closing(turn, gpu_records=len(messages), gpu_uuids=uuids))
        return Scrape(turn.node_id, messages, len(messages) - 1, rejected, self._not_recorded)

    def failed(self, turn: Turn) -> Scrape:
        """The closing record alone, of a turn without a page (or of a node's removal)."""
        return Scrape(turn.node_id, [self._closing(turn, gpu_records=0, gpu_uuids=[])], 0, {}, {}, turn.removed)

    def plan_steps(self, page: Page, hostname: str | None, datacenter: str | None) -> Steps[None]:
        """Find out how a page's samples fall into records, unless that is known; in steps that can be left for a while.

        `hostname` and `datacenter` are the target's own labels.
        """
        described_by = hostname, datacenter
        if self._plan is not None and page.shape is self._shape and described_by == self._described_by:
            return
        planned = yield from plan_page(page.layouts, page.bad_values)
        self._plan = planned.plan
        self._heads = [head(owner, hostname, datacenter) for owner in planned.owners]
        self._gpu_uuids = planned.gpu_uuids
        self._hostname = next((owner.hostname for owner in planned.owners if owner.hostname), None)
        self._not_recorded = planned.not_recorded
        self._unconvertible = planned.unconvertible
        self._shape = page.shape
        self._described_by = described_by

    def _unconvertible_of(self, page: Page) -> dict[int, Unbelieved]:
        """What goes to `rejected` of which record because its text is no number."""
        found: dict[int, Unbelieved] = {}
        for name, labels, token in page.bad_values:
            place = self._unconvertible.get((name, labels))
            if place is not None:
                record, known_as = place
                found.setdefault(record, {})[known_as] = {"value": token, "reason": UNCONVERTIBLE}
        return found

    def _closing(self, turn: Turn, *, gpu_records: int, gpu_uuids: list[str]) -> bytes:
        return closing(
            turn,
            gpu_records=gpu_records,
            gpu_uuids=gpu_uuids,
            hostname=self._hostname,
            changed_at_ms=self.changed_at_ms,
        )
