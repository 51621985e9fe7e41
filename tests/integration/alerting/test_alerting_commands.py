"""What people ask of alerts: the API calls resolve_alert, the worker takes it into its state."""

import psycopg
import pytest

from alerting.partitioner import partition_of
from gpu_telemetry.records import encode


@pytest.fixture
def hot_gpu(stream, make_fleet, start, wait_for):
    """One GPU that is too hot and whose alert (ID 1) fires; gives the fleet and a way to send its next turns."""
    fleet = make_fleet(nodes=1, gpus=1)
    sent = 0

    def turns(*temperatures):
        nonlocal sent
        for temperature in temperatures:
            stream.send(*fleet.round({("node-1", 0): temperature}))
            sent += 2
        stream.flush()
        wait_for(lambda: stream.taken_in() == sent, 30)

    turns.next_turn = lambda temperature: fleet.round({("node-1", 0): temperature})
    start()
    turns(60, 92)
    assert stream.query("SELECT id, severity, status FROM alerts") == [(1, "warning", "active")]
    return turns


def test_a_manual_resolve_mutes_until_the_condition_has_cleared_once(stream, hot_gpu):
    stream.execute("SELECT resolve_alert(1, 'alice')")
    hot_gpu(93, 94)
    assert stream.query("SELECT status, resolved_reason, resolved_by FROM alerts") == [("resolved", "manual", "alice")]
    [(partition, offset)] = stream.query("SELECT applied_partition, applied_offset FROM alert_commands")
    [(own_partition, next_offset)] = stream.query(
        "SELECT partition, next_offset FROM consumer_offsets WHERE next_offset > 0"
    )
    assert partition == own_partition
    assert 4 <= offset <= next_offset - 4
    hot_gpu(60, 92)
    assert stream.query("SELECT id, severity, status FROM alerts ORDER BY id") == [
        (1, "warning", "resolved"),
        (2, "warning", "active"),
    ]
    assert [row[0] for row in stream.query("SELECT transition FROM alert_events ORDER BY id")] == [
        "fired",
        "resolved",
        "fired",
    ]


def test_a_higher_step_opens_a_new_alert_through_the_mute(stream, hot_gpu):
    stream.execute("SELECT resolve_alert(1, 'alice')")
    hot_gpu(93, 97)
    assert stream.query("SELECT severity, status FROM alerts ORDER BY id") == [
        ("warning", "resolved"),
        ("critical", "active"),
    ]


def test_a_command_is_taken_in_though_no_record_comes(stream, hot_gpu, wait_for):  # noqa: ARG001 - its alert is needed
    stream.execute("SELECT resolve_alert(1, 'alice')")
    wait_for(lambda: stream.count("alert_commands", "applied_at IS NOT NULL") == 1, 10)
    assert stream.query("SELECT status FROM nodes") == [("healthy",)]
    wait_for(lambda: stream.count("alert_actions", "transition = 'resolved'") == 1, 10)


def test_a_resolve_that_commits_while_a_batch_is_taken_in_is_applied_first(stream, hot_gpu, wait_for):
    with psycopg.connect(stream.database.url.get_secret_value()) as api:
        api.execute("SELECT resolve_alert(1, 'alice')")  # holds the alert's row until it commits
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        stream.send(*hot_gpu.next_turn(97))
        stream.flush()
        wait_for(lambda: stream.query(waits)[0][0] > 0, 20, "the batch waits for the alert's row")
        api.commit()
    wait_for(lambda: stream.count("alerts") == 2, 20)
    assert stream.query("SELECT severity, status, resolved_reason FROM alerts ORDER BY id") == [
        ("warning", "resolved", "manual"),
        ("critical", "active", None),
    ]
    assert [row[0] for row in stream.query("SELECT transition FROM alert_events ORDER BY id")] == [
        "fired",
        "resolved",
        "fired",
    ]


def test_a_command_reaches_a_node_whose_records_lie_in_another_partition_than_its_key_says(
    stream, make_fleet, start, wait_for
):
    def publish(records):
        for record in records:
            other = (partition_of(record.node_id, stream.kafka.partitions) + 1) % stream.kafka.partitions
            stream.producer.produce(stream.kafka.topic, encode(record), record.node_id.encode(), partition=other)
        stream.flush()

    fleet = make_fleet(nodes=1, gpus=1)
    publish(fleet.round({("node-1", 0): 97}))
    first = start()
    wait_for(lambda: stream.count("alerts") == 1, 30)
    first.stop()
    stream.execute("SELECT resolve_alert(1, 'alice')")
    publish([*fleet.round({("node-1", 0): 97}), *fleet.round({("node-1", 0): 60}), *fleet.round({("node-1", 0): 97})])
    start()
    wait_for(lambda: stream.taken_in() == 8, 30)
    assert stream.query("SELECT status, resolved_reason FROM alerts ORDER BY id") == [
        ("resolved", "manual"),
        ("active", None),
    ]
    assert stream.count("alert_commands", "applied_at IS NULL") == 0
