"""A batch: messages decoded and checked, in the order of their partitions, poison set apart.

What no column can hold is found here, record by record; only what PostgreSQL alone can find goes further.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, cast

import msgspec
from confluent_kafka import Message

from alerting.dead_letters import DeadLetter, Origin, is_in_calendar, origin_of
from alerting.partition import OwnedPartition, Position
from gpu_telemetry.clock import from_milliseconds, rfc3339
from gpu_telemetry.records import (
    AnyRecord,
    GpuRecord,
    ScrapeRecord,
    SilenceRecord,
    UndecodableRecord,
    decode,
)

CLOCK_SKEW_LIMIT: Final = timedelta(minutes=1)
# PostgreSQL's btree refuses keys over 2,704 bytes; a decision's key holds these identifiers as JSON, and more.
LONGEST_KEY_BYTES: Final = 2000
_CERTAINLY_SHORT: Final = LONGEST_KEY_BYTES // 12  # a character outside the BMP is 12 bytes when JSON escapes it
_ESCAPE: Final = b"\\"
_ESCAPED_NUL: Final = b"\\u0000"


@dataclass(slots=True)
class Slice:
    """The messages of one partition that follow on `start`; those at the places in `refused` are dead-lettered.

    `node_ids` are the nodes that it has records of (also those refused later), `heard` those that sent one of their
    own, `moments` the times of those.
    """

    partition: OwnedPartition
    start: Position
    messages: list[Message]
    refused: set[int] = field(default_factory=set)
    node_ids: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)
    moments: set[datetime] = field(default_factory=set)

    def first(self, count: int) -> "Slice":
        """The slice of the first so many messages."""
        return replace(self, messages=self.messages[:count])

    def records(self) -> Iterator[tuple[int, AnyRecord]]:
        """The records that are not refused with their places, decoded as they are asked for.

        A batch is gone through twice, and to decode twice costs a quarter of the worker's time less than to keep
        thousands of records from one pass to the next: what is made and let go at once stays in the CPU's caches.
        """
        refused = self.refused
        for index, message in enumerate(self.messages):
            if index not in refused:
                yield index, decode(message.value())

    @property
    def next_offset(self) -> int:
        """The offset behind the last message."""
        return cast("int", self.messages[-1].offset()) + 1


class Drop(NamedTuple):
    """A dead letter in the ledger: where it is counted, why it is one, and the partition that it came from."""

    origin: Origin
    reason: str
    partition: OwnedPartition


@dataclass(slots=True)
class Batch:
    """What one transaction takes in. `dead` are to be delivered first; `drops` are the ledger's."""

    slices: list[Slice] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    delivered: int = 0

    def __len__(self) -> int:
        return sum(len(part.messages) for part in self.slices)

    def refuse(self, part: Slice, index: int, reason: str, error: str) -> None:
        """Set one message apart as a dead letter."""
        letter = DeadLetter(part.messages[index], reason, error)
        origin = origin_of(letter.message)
        part.refused.add(index)
        self.dead.append(letter)
        if origin is not None:
            self.drops.append(Drop(origin, reason, part.partition))

    def first(self, places: Sequence[tuple[Slice, int]]) -> "Batch":
        """A batch for a trial: of each partition the records at these places, and what comes before them."""
        counts: dict[int, int] = {}
        for part, index in places:
            counts[id(part)] = index + 1
        return Batch([part.first(counts[id(part)]) for part in self.slices if id(part) in counts])

    def keep(self, owned: dict[int, OwnedPartition]) -> None:
        """Leave out the partitions that are not owned any more, or were placed anew meanwhile."""
        self.slices = [
            part
            for part in self.slices
            if owned.get(part.partition.number) is part.partition and part.partition.position == part.start
        ]
        kept = {part.partition.number: part.partition for part in self.slices}
        # Whoever reads the partition next delivers and counts what was refused of it.
        self.drops = [drop for drop in self.drops if kept.get(drop.partition.number) is drop.partition]
        waiting = [letter for letter in self.dead[self.delivered :] if letter.message.partition() in kept]
        self.dead[self.delivered :] = waiting


def decode_batch(taken: Sequence[tuple[OwnedPartition, list[Message]]]) -> Batch:
    """Decode and check the messages."""
    batch = Batch()
    for partition, messages in taken:
        assert partition.position is not None
        part = Slice(partition, partition.position, messages)
        # A record below the lowest limit needs no look at its own. (The append times of a partition rise, unless its
        # leader's clock steps back; what is refused must not depend on where a batch begins.)
        limit = _limit(min(message.timestamp()[1] for message in messages))
        told: tuple[str, datetime] | None = None
        for index, message in enumerate(messages):
            try:
                record = decode(message.value())
                _check(record, message, limit)
            except UndecodableRecord as error:
                batch.refuse(part, index, error.reason, str(error))
                continue
            if isinstance(record, SilenceRecord):
                part.node_ids.add(record.node_id)
            elif (record.node_id, record.collected_at) != told:  # the records of one turn follow one another
                told = record.node_id, record.collected_at
                part.node_ids.add(record.node_id)
                part.heard.add(record.node_id)
                part.moments.add(record.collected_at)
        batch.slices.append(part)
    return batch


def _limit(appended_ms: int) -> datetime:
    return from_milliseconds(appended_ms) + CLOCK_SKEW_LIMIT


def _check(record: AnyRecord, message: Message, limit: datetime) -> None:
    """Refuse what no column can hold and no clock can have said."""
    node_id = record.node_id
    if message.key() != node_id.encode("utf-8", "surrogatepass"):
        raise UndecodableRecord("key", f"expected the key {node_id!r}, which is the record's node_id")
    if isinstance(record, SilenceRecord):
        return
    _check_moment(record.collected_at, "collected_at")
    if isinstance(record, ScrapeRecord) and record.changed_at is not None:
        _check_moment(record.changed_at, "changed_at")
    if record.collected_at > limit and record.collected_at > (exact := _limit(message.timestamp()[1])):
        raise UndecodableRecord(
            "clock_skew",
            f"expected a time before {rfc3339(exact)}, a minute after the broker took it, "
            f"got {rfc3339(record.collected_at)} - at `$.collected_at`",
        )
    if isinstance(record, GpuRecord):
        identifiers = (node_id, record.gpu_uuid, record.mig_instance or "")
    else:
        identifiers = (node_id, record.boot_id, "")
    if (
        sum(map(len, identifiers)) > _CERTAINLY_SHORT
        and len(msgspec.json.encode(ascii("".join(identifiers)))) > LONGEST_KEY_BYTES
    ):
        raise UndecodableRecord("too_long", f"expected identifiers of together at most {LONGEST_KEY_BYTES} bytes")
    text = cast("bytes", message.value())
    if _ESCAPE in text and _ESCAPED_NUL in text:  # looking for one byte is several times faster, and it is rare
        _check_text(msgspec.to_builtins(record), "$")


def _check_moment(moment: datetime, name: str) -> None:
    """Refuse a time that another offset from UTC puts outside the years 1 to 9999: it could not be read back."""
    if moment.tzinfo is not UTC and not is_in_calendar(moment):
        raise UndecodableRecord("invalid", f"expected a time in the years 1 to 9999 of UTC - at `$.{name}`")


def _check_text(value: object, where: str) -> None:
    """Refuse the character NUL, which no text of PostgreSQL can hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise UndecodableRecord("nul", f"expected text without the character NUL - at `{where}`")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, f"{where} (a key)")
            _check_text(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_text(inner, f"{where}[{index}]")
