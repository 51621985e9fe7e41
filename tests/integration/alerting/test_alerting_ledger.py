"""The ledger over what a real alert engine took in from a real Kafka: it balances, and says what became of the rest."""

from datetime import UTC, datetime, timedelta

import msgspec

from gpu_telemetry.records import DropCount, GpuRecord, ScrapeRecord, encode


def test_drops_losses_poison_and_a_killed_bridge_are_each_told(stream, start, make_fleet, wait_for):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    fleet = make_fleet(nodes=1, gpus=4, start=hour + timedelta(minutes=1))
    turns = [fleet.round() for _ in range(12)]
    sent = 0

    def send(number, *, drops=None, poison=0):
        nonlocal sent
        for index, record in enumerate(turns[number]):
            if isinstance(record, ScrapeRecord) and drops:
                record.drops = drops
            if number >= 9:
                record.boot_id, record.seq = "boot-2", number - 8
            value = encode(record)
            if isinstance(record, GpuRecord) and index < poison:
                content = msgspec.to_builtins(record) | {"model": "a\0b"}
                value = msgspec.json.encode({"kind": "gpu"} | content)
            stream.send_raw(value, record.node_id)
            sent += 1

    dropped = {"queue_full": DropCount(1, 4)}
    send(0)
    send(1, poison=1)
    send(3, drops=dropped)  # turn 2 was dropped by the bridge and told of
    send(5, drops=dropped)  # turn 4 was lost without a word
    send(6, drops=dropped)
    send(9)  # the bridge was killed: what it made of turns 7 and 8 nobody knows
    send(10)
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == sent, 30, lambda: f"{stream.taken_in()} of {sent} taken in")
    (line,) = stream.ledger().values()
    assert line == {
        "announced": 28,
        "unannounced": 4,
        "estimated": 4,
        "stored": 27,
        "dropped": 5,
        "missing": 4,
        "missing_scrapes": 1,
        "dropped_by_reason": {"nul": 1, "queue_full": 4},
        "unaccounted_seconds": 90.0,
    }
    stream.execute(
        "DELETE FROM gpu_metrics WHERE gpu_index = 3 AND collected_at = (SELECT max(collected_at) FROM scrapes)"
    )
    (after,) = stream.ledger().values()
    assert after == line | {"stored": 26, "missing": 5}
