"""The same stream gives the same history, whatever the batches, the crashes and the second workers; and no deeds."""

import random
from datetime import UTC, datetime, timedelta

import pytest


@pytest.fixture
def busy_stream(stream, make_fleet):
    """Forty turns of four nodes, half an hour a few hours ago, in which much happens; gives the number of records."""
    fleet = make_fleet(nodes=4, gpus=4, start=datetime.now(UTC) - timedelta(hours=3))
    chance = random.Random(7)
    temperatures = {(node, index): 70.0 for node in fleet.nodes for index in range(4)}
    sent = 0
    for turn in range(40):
        for place, temperature in temperatures.items():
            temperatures[place] = min(99.0, max(60.0, temperature + chance.uniform(-9, 10)))
        records = []
        for node in fleet.nodes:
            own = {index: temperatures[node, index] for index in range(4)}
            down = node == "node-2" and 10 <= turn < 16
            lost = (2,) if node == "node-3" and 12 <= turn < 20 else ()
            workloads = [{"namespace": "ml", "pod": f"train-{turn % 3}"}]
            records += fleet.turn(node, own, up=not down, without=lost, workloads=workloads)
        fleet.at += fleet.interval
        stream.send(*records)
        sent += len(records)
    stream.flush()
    return sent


def settled(stream, start, wait_for, count, **settings):
    """The history that an engine makes of the whole topic in this database."""
    engine = start(on=stream, **settings)
    wait_for(lambda: stream.taken_in() == count, 60)
    engine.stop()
    return stream.history()


def test_other_batch_sizes_give_the_identical_history(busy_stream, stream, make_stream, start, wait_for):
    whole = settled(stream, start, wait_for, busy_stream)
    assert len(whole["metrics"]) > 600
    transitions = {event[4] for event in whole["events"]}
    assert {"fired", "raised", "resolved"} <= transitions
    assert {event[1] for event in whole["events"]} >= {"high_temperature", "gpu_lost", "exporter_down"}
    for records in (7, 150):
        again = settled(make_stream(), start, wait_for, busy_stream, batch_records=records)
        assert again == whole


def test_a_second_worker_that_knows_nothing_of_the_first_is_fenced(busy_stream, stream, make_stream, start, wait_for):
    undisturbed = settled(stream, start, wait_for, busy_stream)
    other = make_stream()
    # Groups of their own: each believes that all partitions are its own, as a zombie does.
    engines = [start(on=other, batch_records=10, batch_milliseconds=10) for _ in range(2)]
    wait_for(lambda: other.taken_in() == busy_stream, 60)
    assert other.history() == undisturbed
    for engine in engines:
        engine.stop()


def test_a_topic_that_is_read_again_doubles_nothing(busy_stream, stream, start, wait_for):
    once = settled(stream, start, wait_for, busy_stream)
    stream.execute("UPDATE consumer_offsets SET topic_id = 'another topic''s'")
    start()
    wait_for(lambda: stream.count("stream_gaps") > 0 and stream.taken_in() == busy_stream, 30)
    assert stream.history() == once
    assert stream.query("SELECT DISTINCT reason FROM stream_gaps") == [("rebuilt",)]


def test_an_old_stream_is_decided_on_and_nothing_is_done(busy_stream, stream, start, wait_for, loopback_receiver):
    engine = start(
        webhook_url=loopback_receiver.url + "/hook",
        migration_url=loopback_receiver.url + "/migrate",
        actions_dry_run=False,
    )
    wait_for(lambda: stream.taken_in() == busy_stream, 30)
    # What still fires waits a quarter of an hour for a fresh record; let it pass.
    stream.execute("UPDATE alert_actions SET created_at = now() - interval '15 minutes', next_attempt_at = now()")
    wait_for(lambda: stream.count("alert_actions", "status IN ('pending', 'running')") == 0, 30)
    engine.stop()
    outcomes = set(stream.query("SELECT action_type, status, reason FROM alert_actions"))
    assert outcomes <= {
        ("notify", "skipped", "stale"),
        ("migrate_workload", "skipped", "over"),
        ("migrate_workload", "skipped", "stale"),
    }
    assert ("notify", "skipped", "stale") in outcomes
    assert stream.count("alert_actions", "action_type = 'migrate_workload'") > 0
    assert loopback_receiver.requests == []
