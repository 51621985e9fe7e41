"""One scrape of one node becomes its messages: a record for each GPU or MIG instance, then the closing scrape record.

The messages are what `gpu_telemetry.records` decodes. A value that is not believed goes to `rejected`, never into a
number; what cannot be ascribed to a GPU is counted by entity in `not_recorded`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter_bridge.layouts import Page
from gpu_telemetry.records import DropCount


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the bridge knows of one turn of one node when it ends.

    `reason` says why it failed (`up` is false) and is None otherwise. `hostname` and `datacenter` are the target's own
    labels; without a hostname the page's is taken. `drops` counts this node's dropped scrapes since this boot.
    """

    node_id: str
    bridge_id: str
    boot_id: str
    seq: int
    collected_at_ms: int
    interval_ms: int
    up: bool = True
    reason: str | None = None
    hostname: str | None = None
    datacenter: str | None = None
    instance: str | None = None
    duration_ms: float | None = None
    drops: Mapping[str, DropCount] = field(default_factory=dict)
    trace: str | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Scrape:
    """The messages of one turn, all keyed by `node_id`, the closing record last.

    `rejected` counts values that were not believed by (name, reason); `not_recorded` counts samples that no GPU record
    holds by entity: nvlink, nvswitch, cpu, cpu_core, unknown.
    """

    node_id: str
    messages: list[bytes]
    gpu_records: int
    rejected: Mapping[tuple[str, str], int]
    not_recorded: Mapping[str, int]


class RecordBuilder:
    """Turns one node's pages into messages; it keeps the constant parts of them from scrape to scrape.

    `changed_at_ms` is when any value of the node's page last changed, None before the first page.
    """

    def __init__(self) -> None:
        self.changed_at_ms: int | None = None

    def build(self, page: Page, turn: Turn) -> Scrape:
        """The messages of a turn that brought a page."""
        raise NotImplementedError

    def failed(self, turn: Turn) -> Scrape:
        """The closing record alone, of a turn without a page (or of a node's removal)."""
        raise NotImplementedError
