"""A partition that this worker owns: where it stands in it, and what it knows of the nodes whose records it holds."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from alerting.node_state import NEVER, NodeState
from alerting.silence import NodeWatch


class LogIdentity(NamedTuple):
    """Which log an offset counts in: a rebuilt broker has another cluster id, a topic made anew another topic id."""

    cluster_id: str
    topic_id: str


class Position(NamedTuple):
    """The next offset to take in, as the database knows it, the log that it counts in, and how many batches led there.

    A batch of commands alone moves no offset: the generation tells a worker that another has written meanwhile.
    """

    next_offset: int
    log: LogIdentity
    generation: int = 0


class Gap(NamedTuple):
    """Offsets that were never read and cannot be, or will be read again: from, up to but not including, and why."""

    reason: str
    from_offset: int
    to_offset: int


def starting_point(stored: Position | None, log: LogIdentity, low: int, high: int) -> tuple[int, Gap | None]:
    """Where to read on, given what the database holds and where the log begins and ends; a gap if that is a jump.

    Reading again what was read before costs time and nothing else: unique keys keep rows from doubling, and the
    engine takes no record twice.
    """
    if stored is None:
        return low, None
    if stored.log != log:
        return low, Gap("rebuilt", stored.next_offset, low)
    if stored.next_offset < low:
        return low, Gap("expired", stored.next_offset, low)
    if stored.next_offset > high:
        return low, Gap("truncated", high, stored.next_offset)
    return stored.next_offset, None


PlacementKey = tuple[int, str, str | None]


@dataclass(slots=True)
class Placement:
    """A row of `placements`, and what it last said of its GPU: model, driver version, bus id, memory in MiB.

    `gpu` is None after the GPU was away: another place may have described it since, so its next record tells anew.
    """

    placement_id: int
    gpu: tuple[str | None, str | None, str | None, int | None] | None
    since: datetime


@dataclass(slots=True)
class OwnedNode:
    """What is known of one node: as it was after the last committed batch, or as the batch at hand makes it.

    `first_seen` is the oldest record's time, NEVER before the first. A batch that fails forgets the nodes that it
    touched; they are restored from what is committed.
    """

    state: NodeState
    first_seen: datetime = NEVER
    status: str = "healthy"
    placements: dict[PlacementKey, Placement] = field(default_factory=dict)
    gpu_uuids: list[str] | None = None

    @property
    def stored(self) -> bool:
        """Whether the node has a row, or the batch at hand gives it one."""
        return self.first_seen < NEVER

    def page_names(self, gpu_uuids: list[str]) -> None:
        """The newest turn names these GPUs (none where it failed), and no longer those that the one before named."""
        gone = set(self.gpu_uuids or ()).difference(gpu_uuids)
        self.gpu_uuids = gpu_uuids
        if gone:
            for (_, gpu_uuid, _), placement in self.placements.items():
                if gpu_uuid in gone:
                    placement.gpu = None


class OwnedPartition:
    """One assigned partition of the records topic.

    `position` is None until it has been read from the database and the consumer was led there.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.position: Position | None = None
        self.nodes: dict[str, OwnedNode] = {}
        self.watch = NodeWatch()
        # Holes in the log that were read twice and must be told.
        self.holes: list[Gap] = []
        self.rewound_to: int | None = None

    def forget(self) -> None:
        """Drop all state: what is committed will be read anew."""
        self.position = None
        self.nodes.clear()
        self.watch = NodeWatch()
        self.holes = []
        self.rewound_to = None
