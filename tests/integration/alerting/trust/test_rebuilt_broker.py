"""A broker that comes back empty, and a topic cut behind a worker's back: noticed, on record, and nothing doubles."""

import os
import random
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from gpu_telemetry.kafka import admin_client, ensure_topics


@pytest.fixture
def engine(start):
    """`engine(stream)`: an alert engine with small batches."""
    return lambda stream: start(on=stream, group_id=f"g-{os.urandom(6).hex()}", batch_records=20, batch_milliseconds=10)


@pytest.mark.parametrize("is_running", [True, False], ids=["while it runs", "while it is away"])
def test_a_broker_rebuilt_empty_is_read_from_its_start_and_nothing_doubles(
    is_running, record_stream, make_stream, trust, engine, own_kafka, wait_for
):
    recording = record_stream(random.Random(4), with_poison=False)
    half = len(recording.messages) // 2
    stream = make_stream(bootstrap_servers=f"127.0.0.1:{own_kafka.proxy.port}", **trust.new_topic())
    trust.publish(stream, recording.messages[:half])
    running = engine(stream)
    trust.await_all(stream)
    cluster = admin_client(stream.kafka).list_topics(timeout=30).cluster_id
    if not is_running:
        running.stop()
    own_kafka.kill()
    own_kafka.stop()
    shutil.rmtree(own_kafka.directory)
    own_kafka.start()
    wait_for(lambda: stream.kafka.topic in ensure_topics(stream.kafka), 60)
    # Its bridges publish again what they had, and go on.
    trust.publish(stream, recording.messages)
    if not is_running:
        running = engine(stream)
    wait_for(lambda: stream.count("stream_gaps", "reason = 'rebuilt'") == stream.kafka.partitions, 120)
    trust.await_all(stream)
    running.stop()
    assert admin_client(stream.kafka).list_topics(timeout=30).cluster_id != cluster
    expected = trust.undisturbed(stream)
    trust.check(stream, expected)
    assert len(expected["metrics"]) == recording.gpu_records


def test_a_topic_cut_below_the_stored_offset_is_a_gap_on_record_and_in_the_ledger(
    make_fleet, stream, trust, engine, delete_before
):
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    fleet = make_fleet(nodes=1, gpus=4, start=hour + timedelta(minutes=1))
    stream.send(*fleet.round())
    stream.flush()
    running = engine(stream)
    trust.await_all(stream)
    running.stop()
    [(partition,)] = stream.query("SELECT partition FROM consumer_offsets WHERE next_offset > 0")
    for _ in range(5):
        stream.send(*fleet.round())
    stream.flush()
    # Two turns and half of a third are gone; what is left of that one is taken in.
    delete_before(stream, partition, 5 + 5 + 5 + 2)
    engine(stream)
    trust.await_all(stream)
    assert stream.query("SELECT partition, reason, from_offset, to_offset FROM stream_gaps") == [
        (partition, "expired", 5, 17)
    ]
    (line,) = stream.ledger().values()
    told = {"announced": 16, "unannounced": 0, "estimated": 8, "stored": 14, "dropped": 0, "missing": 10}
    assert line == told | {"dropped_by_reason": {}, "missing_scrapes": 2, "unaccounted_seconds": 0.0}
