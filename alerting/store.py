"""One batch as one transaction: rows, inventory, transitions, decisions, engine state and offsets, or nothing.

It is fenced: the rows of the worker's offsets are locked first and compared with memory. A batch that fails leaves
nothing behind; the nodes that it touched are forgotten and restored from what is committed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import Connection

from alerting.alert_rows import AlertChanges
from alerting.batch import Batch, Slice
from alerting.days import Days
from alerting.engine import Engine
from alerting.inventory import Inventory, described_gpu
from alerting.node_state import LONG_AGO
from alerting.partition import Gap, LogIdentity, OwnedNode, OwnedPartition, Placement, Position
from alerting.partitioner import partition_of
from alerting.queries import SQL
from alerting.restore import restore_nodes
from alerting.rows import GPU_METRICS, SCRAPES, UNENCODABLE, EncodedRows, gpu_row, scrape_row, wire_time
from alerting.transitions import AlertKey, ResolveCommand, Transition
from gpu_telemetry.records import GpuRecord, ScrapeRecord, SilenceRecord


class Fenced(RuntimeError):
    """Another worker took these partitions on: what this one knows is stale."""


class EngineFailed(RuntimeError):
    """The engine, or what stands around it, raised what it never should on the record at this place: our error."""

    def __init__(self, part: Slice, index: int, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.part = part
        self.index = index


@dataclass(slots=True)
class Outcome:
    """What a batch came to. Counts are of records."""

    gpu_rows: int = 0
    scrapes: int = 0
    duplicates: int = 0
    late: int = 0
    beyond_retention: int = 0
    commands: int = 0
    decisions: int = 0
    transitions: list[tuple[int | None, Transition]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


@dataclass(slots=True)
class _Folded:
    """What folding a batch gave, to be written; `new_gpus` are rows that wait for the id of their placement."""

    gpu_rows: EncodedRows
    scrapes: EncodedRows
    new_gpus: list[tuple[Placement, GpuRecord, int]] = field(default_factory=list)
    changes: AlertChanges = field(default_factory=AlertChanges)
    drops: dict[tuple[datetime, str, str], list[int]] = field(default_factory=dict)
    beyond_retention: int = 0

    def drop(self, node_id: str, moment: datetime, reason: str, *, gpu: bool) -> None:
        """Count a record in the ledger."""
        hour = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        counts = self.drops.setdefault((hour, node_id, reason), [0, 0])
        counts[0 if gpu else 1] += 1


@dataclass(frozen=True, slots=True)
class _Command:
    number: int
    alert_id: int
    part: OwnedPartition
    next_offset: int
    resolve: ResolveCommand


class BatchTransaction:
    """Takes batches in, one after another."""

    def __init__(self, engine: Engine, days: Days, topic: str, partitions: int) -> None:
        self._engine = engine
        self._days = days
        self._topic = topic
        self._partitions = partitions
        self._commands_at_hand: list[_Command] = []

    def apply(
        self,
        connection: Connection[Any],
        batch: Batch,
        owned: Sequence[OwnedPartition],
        *,
        is_trial: bool = False,
    ) -> Outcome:
        """Take the batch in and commit; `owned` are all partitions that the worker reads.

        A trial keeps nothing.

        Raises:
            Fenced: another worker wrote for one of the partitions.
            EngineFailed: a record brought out an error of ours.
            CommandWaiting: an alert was resolved by hand while this ran; to be tried again.
            psycopg.Error: the database refused or is gone. Whether it committed is then not known, and shows when
                the offsets are compared next.
        """
        self._days.begin_batch()
        self._days.ensure(connection, {moment for part in batch.slices for moment in part.moments})
        late = self._engine.counts.late
        self._commands_at_hand = []
        try:
            with connection.transaction(force_rollback=is_trial):
                outcome = self._take_in(connection, batch, owned)
        except BaseException:
            self._forget(batch, owned)
            raise
        if is_trial:
            self._forget(batch, owned)
            return outcome
        outcome.late = self._engine.counts.late - late
        for partition, next_offset in _places(batch, self._commands_at_hand).items():
            assert partition.position is not None
            partition.position = Position(next_offset, partition.position.log, partition.position.generation + 1)
        for part in batch.slices:
            outcome.gaps += part.partition.holes
            part.partition.holes.clear()
        return outcome

    def _take_in(self, connection: Connection[Any], batch: Batch, owned: Sequence[OwnedPartition]) -> Outcome:
        self._fence(connection, owned)
        folded = _Folded(EncodedRows(connection, GPU_METRICS), EncodedRows(connection, SCRAPES))
        commands = self._commands_at_hand = self._commands(connection, batch, owned)
        self._restore(connection, batch, commands, owned)
        for command in commands:
            state = command.part.nodes[command.resolve.key.node_id].state
            folded.changes.manual += [
                (command.alert_id, transition) for transition in self._engine.resolve(state, command.resolve)
            ]
        inventory = Inventory()
        for part in batch.slices:
            self._fold(part, folded, inventory)
        for origin, reason, _ in batch.drops:
            folded.drop(origin.node_id, origin.collected_at, reason, gpu=origin.kind == "gpu")
        return self._write(connection, batch, commands, folded, inventory)

    def _fence(self, connection: Connection[Any], owned: Sequence[OwnedPartition]) -> None:
        known = {part.number: part.position for part in owned}
        stored = lock_positions(connection, self._topic, sorted(known))
        if stored != known:
            differing = sorted(number for number in known if stored.get(number) != known[number])
            raise Fenced(f"{self._topic} {differing}: the database has other offsets than this worker")

    def _commands(self, connection: Connection[Any], batch: Batch, owned: Sequence[OwnedPartition]) -> list[_Command]:
        """The commands that wait for nodes of these partitions."""
        commands = []
        met = {node_id: part.partition for part in batch.slices for node_id in part.node_ids}
        for (
            number,
            alert_id,
            actor,
            rule,
            node_id,
            gpu_uuid,
            mig_instance,
            started_at,
            severity,
            at,
        ) in connection.execute(SQL["waiting_commands"]).fetchall():
            # A node's records need not lie where its key says: in a topic that grew, or by another's partitioner.
            part = met.get(node_id) or owner_of(node_id, owned, self._partitions)
            if part is not None and part.position is not None:
                key = AlertKey(rule, node_id, gpu_uuid, mig_instance)
                resolve = ResolveCommand(key=key, started_at=started_at, severity=severity, actor=actor, at=at)
                commands.append(_Command(number, alert_id, part, part.position.next_offset, resolve))
        return commands

    def _restore(
        self,
        connection: Connection[Any],
        batch: Batch,
        commands: Iterable[_Command],
        owned: Sequence[OwnedPartition],
    ) -> None:
        """Have every node of the batch in memory; one that is met in two partitions is one node still."""
        wanted: dict[str, list[OwnedPartition]] = defaultdict(list)
        for part in batch.slices:
            for node_id in part.node_ids:
                if node_id not in part.partition.nodes:
                    wanted[node_id].append(part.partition)
        for command in commands:
            node_id = command.resolve.key.node_id
            if node_id not in command.part.nodes:
                wanted[node_id].append(command.part)
        if not wanted:
            return
        found = {node_id: other.nodes[node_id] for node_id in wanted for other in owned if node_id in other.nodes}
        found |= restore_nodes(connection, self._engine, [node_id for node_id in wanted if node_id not in found])
        for node_id, parts in wanted.items():
            for partition in parts:
                partition.nodes[node_id] = found[node_id]

    def _fold(self, part: Slice, folded: _Folded, inventory: Inventory) -> None:  # noqa: C901, PLR0912 - one loop over every record; calls would cost
        nodes = part.partition.nodes
        fold = self._engine.fold
        keeps = self._days.keeps
        add_gpu_row = folded.gpu_rows.add
        last_at = LONG_AGO
        wire = 0
        kept = False
        index = -1
        try:
            for index, record in part.records():  # noqa: B007 - told where one of them fails
                node = nodes[record.node_id]
                state = node.state
                if transitions := fold(state, record):
                    folded.changes.transitions += transitions
                if isinstance(record, SilenceRecord):
                    continue
                if record.collected_at != last_at:  # the records of one turn share their time
                    last_at = record.collected_at
                    wire = wire_time(last_at)
                    kept = keeps(last_at)
                if last_at < node.first_seen:
                    inventory.node(node, record)
                newest = state.clock == last_at
                if not kept:
                    # No row will tell of it after a restart, so the state must.
                    state.dirty = True
                    folded.beyond_retention += 1
                    folded.drop(record.node_id, last_at, "beyond_retention", gpu=isinstance(record, GpuRecord))
                elif isinstance(record, GpuRecord):
                    placement = node.placements.get((record.gpu_index, record.gpu_uuid, record.mig_instance))
                    if placement is None or placement.gpu != described_gpu(record) or last_at < placement.since:
                        placement = inventory.gpu(node, placement, record, newest=newest)
                    if placement.placement_id:
                        add_gpu_row(gpu_row(placement, record, wire))
                    else:
                        folded.new_gpus.append((placement, record, wire))
                else:
                    folded.scrapes.add(scrape_row(record, wire))
                if newest and isinstance(record, ScrapeRecord) and record.removed >= state.removed:
                    inventory.turn(record)  # a removal is the last word of its moment
                    if record.gpu_uuids != node.gpu_uuids:
                        node.page_names(record.gpu_uuids)
        except (psycopg.Error, *UNENCODABLE, MemoryError):
            raise  # the data's fault, or nothing of this record's
        except Exception as error:
            raise EngineFailed(part, index, error) from error

    def _write(
        self,
        connection: Connection[Any],
        batch: Batch,
        commands: Sequence[_Command],
        folded: _Folded,
        inventory: Inventory,
    ) -> Outcome:
        touched = _touched(batch, commands)
        statuses = {node_id: self._engine.status(node.state) for node_id, node in touched.items()}
        inventory.write(connection, touched, statuses)
        outcome = Outcome(beyond_retention=folded.beyond_retention, commands=len(commands))
        with connection.cursor() as cursor:
            for placement, record, wire in folded.new_gpus:
                folded.gpu_rows.add(gpu_row(placement, record, wire))
            held = folded.gpu_rows.store(cursor)
            outcome.gpu_rows = len(folded.gpu_rows) - held
            held_turns = folded.scrapes.store(cursor)
            outcome.scrapes = len(folded.scrapes) - held_turns
            outcome.duplicates = held + held_turns
        outcome.transitions = folded.changes.write(connection)
        manual = [transition for _, transition in folded.changes.manual]
        outcome.decisions = sum(len(transition.actions) for transition in [*folded.changes.transitions, *manual])
        self._write_states(connection, touched)
        self._write_places(connection, batch, commands, folded)
        return outcome

    def _write_states(self, connection: Connection[Any], touched: Mapping[str, OwnedNode]) -> None:
        states = [(node_id, self._engine.save(node.state)) for node_id, node in touched.items() if node.state.dirty]
        if states:
            connection.execute(
                SQL["put_states"],
                {"keys": [node_id for node_id, _ in states], "states": [state.decode() for _, state in states]},
            )

    def _write_places(
        self, connection: Connection[Any], batch: Batch, commands: Sequence[_Command], folded: _Folded
    ) -> None:
        if folded.drops:
            connection.execute(
                SQL["count_drops"],
                {
                    "hours": [hour for hour, _, _ in folded.drops],
                    "node_ids": [node_id for _, node_id, _ in folded.drops],
                    "reasons": [reason for _, _, reason in folded.drops],
                    "gpu_records": [gpu_records for gpu_records, _ in folded.drops.values()],
                    "scrapes": [scrapes for _, scrapes in folded.drops.values()],
                },
            )
        if commands:
            connection.execute(
                SQL["mark_commands_applied"],
                {
                    "ids": [command.number for command in commands],
                    "partitions": [command.part.number for command in commands],
                    "next_offsets": [command.next_offset for command in commands],
                },
            )
        for part in batch.slices:
            for gap in part.partition.holes:
                record_gap(connection, self._topic, part.partition.number, gap)
        places = _places(batch, commands)
        if places:
            connection.execute(
                SQL["advance_offsets"],
                {
                    "topic": self._topic,
                    "partitions": [partition.number for partition in places],
                    "next_offsets": list(places.values()),
                },
            )

    def _forget(self, batch: Batch, owned: Iterable[OwnedPartition]) -> None:
        """Drop what the batch may have changed in memory; the next one restores it from what is committed."""
        changed = {node_id for part in batch.slices for node_id in part.node_ids}
        changed |= {command.resolve.key.node_id for command in self._commands_at_hand}
        for partition in [*owned, *(part.partition for part in batch.slices)]:
            for node_id in changed & partition.nodes.keys():
                del partition.nodes[node_id]


def owner_of(node_id: str, owned: Sequence[OwnedPartition], partitions: int) -> OwnedPartition | None:
    """The partition, of those owned, that holds the node's records: the one that it was met in, else by its key."""
    for part in owned:
        if node_id in part.nodes:
            return part
    number = partition_of(node_id, partitions)
    return next((part for part in owned if part.number == number), None)


def lock_positions(connection: Connection[Any], topic: str, numbers: Sequence[int]) -> dict[int, Position]:
    """Where these partitions stand by the database, those that it knows, locked until the transaction ends."""
    wanted = {"topic": topic, "partitions": numbers}
    return {
        number: Position(next_offset, LogIdentity(cluster_id, topic_id), generation)
        for number, next_offset, cluster_id, topic_id, generation in connection.execute(SQL["lock_offsets"], wanted)
    }


def record_gap(connection: Connection[Any], topic: str, partition: int, gap: Gap) -> None:
    """Put a gap of the stream on record."""
    connection.execute(SQL["record_gap"], {"topic": topic, "partition": partition, **gap._asdict()})


def _places(batch: Batch, commands: Iterable[_Command]) -> dict[OwnedPartition, int]:
    """The partitions that the batch writes for, also by commands alone, and the next offset of each."""
    places = {command.part: command.next_offset for command in commands}
    return places | {part.partition: part.next_offset for part in batch.slices}


def _touched(batch: Batch, commands: Iterable[_Command]) -> dict[str, OwnedNode]:
    touched: dict[str, OwnedNode] = {}
    for part in batch.slices:
        touched |= {node_id: part.partition.nodes[node_id] for node_id in part.node_ids}
    for command in commands:
        node_id = command.resolve.key.node_id
        touched[node_id] = command.part.nodes[node_id]
    return touched
