"""Where an assigned partition is read from: the offset that the database holds, if it still counts in this log."""

import logging
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from alerting.consumer import RecordStream
from alerting.partition import Gap, OwnedPartition, Position, starting_point
from alerting.partitioner import partition_of
from alerting.queries import SQL
from alerting.store import lock_positions, record_gap

_log = logging.getLogger(__name__)


def place(
    connection: Connection[Any], stream: RecordStream, topic: str, parts: Sequence[OwnedPartition], partitions: int
) -> list[Gap]:
    """Lead the consumer to where these partitions go on, and watch their nodes; give the gaps that this met.

    A partition that the consumer is not ready to be led in stays unplaced, for the next time. A gap is on record
    before anything behind it is read.

    Raises:
        KafkaException: the brokers cannot be reached.
        psycopg.Error: the database cannot be used.
    """
    log = stream.log_identity()
    bounds = {part.number: stream.bounds(part) for part in parts}
    gaps = []
    starts: list[tuple[OwnedPartition, Position]] = []
    with connection.transaction():
        stored = lock_positions(connection, topic, [part.number for part in parts])
        for part in parts:
            known = stored.get(part.number)
            offset, gap = starting_point(known, log, *bounds[part.number])
            if gap is not None:
                # What the brokers said was before the lock: another worker may have gone on since, or in a newer log.
                log = stream.log_identity()
                offset, gap = starting_point(known, log, *stream.bounds(part))
            generation = 0 if known is None else known.generation
            if known is None or gap is not None:
                row = connection.execute(
                    SQL["put_offset"],
                    {"topic": topic, "partition": part.number, **log._asdict(), "next_offset": offset},
                ).fetchone()
                assert row is not None
                generation = row[0]
            if gap is not None:
                record_gap(connection, topic, part.number, gap)
                gaps.append(gap)
                _log.error(
                    "%s [%d]: %s: offsets %d to %d; reading from %d",
                    topic,
                    part.number,
                    gap.reason,
                    gap.from_offset,
                    gap.to_offset,
                    offset,
                )
            starts.append((part, Position(offset, log, generation)))
        # Before any of them counts as placed: what is placed is not placed again should the connection be lost here.
        watched = connection.execute(SQL["watched_nodes"]).fetchall()
    started = {part.number: part for part, position in starts if _start(stream, part, position)}
    for node_id, interval_ms in watched:
        placed = started.get(partition_of(node_id, partitions))
        if placed is not None:
            placed.watch.expect(node_id, interval_ms)
    return gaps


def _start(stream: RecordStream, part: OwnedPartition, position: Position) -> bool:
    if not stream.start(part, position.next_offset):
        return False
    part.position = position
    return True
