"""Records in; rows, alerts, decisions and actions out."""

from datetime import UTC, datetime, timedelta

from gpu_telemetry.records import encode


def test_an_overheating_gpu_is_stored_warned_of_raised_acted_on_and_resolved(stream, make_fleet, start, wait_for):
    fleet = make_fleet()
    hot = ("node-2", 3)
    for temperature in (60, 92, 96.3, 80, 60):
        stream.send(*fleet.round({hot: temperature}))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 5 * 2 * 5, 30)
    assert stream.count("gpu_metrics") == 5 * 2 * 4
    assert stream.count("scrapes") == 5 * 2
    assert stream.count("placements") == 8
    newest = stream.query(
        "SELECT node_id, gpu_index, temperature_celsius, collected_at FROM gpu_metrics"
        " ORDER BY collected_at DESC LIMIT 10"
    )
    assert len(newest) == 10
    [alert] = stream.query(
        "SELECT node_id, gpu_index, alert_type, severity, message, threshold_value, actual_value, resolved_reason"
        " FROM alerts"
    )
    assert alert == ("node-2", 3, "high_temperature", "critical", "GPU temperature is 96.3°C", 90.0, 96.3, "cleared")
    transitions = [row[0] for row in stream.query("SELECT transition FROM alert_events ORDER BY id")]
    assert transitions == ["fired", "raised", "resolved"]
    actions = stream.query(
        "SELECT a.alert_type, a.severity, aa.action_type, aa.action_details, aa.transition"
        " FROM alerts a JOIN alert_actions aa ON a.id = aa.alert_id ORDER BY aa.id"
    )
    assert [(action[2], action[4]) for action in actions] == [
        ("notify", "fired"),
        ("notify", "raised"),
        ("migrate_workload", "raised"),
        ("notify", "resolved"),
    ]
    wait_for(lambda: stream.count("alert_actions", "status IN ('pending', 'running')") == 0, 20)
    outcomes = stream.query("SELECT action_type, status, reason FROM alert_actions ORDER BY id")
    assert outcomes == [
        ("notify", "succeeded", None),
        ("notify", "succeeded", None),
        ("migrate_workload", "skipped", "over"),
        ("notify", "succeeded", None),
    ]


def test_statuses_and_times_of_nodes_follow_their_closing_records(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1)
    stream.send(*fleet.turn("node-1", {0: 97}))
    fleet.at += fleet.interval
    seen = fleet.at
    stream.send(*fleet.turn("node-1", {0: 97}))
    fleet.at += fleet.interval
    stream.send(*fleet.turn("node-1", up=False))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 11, 30)
    [(status, last_seen, last_heard, interval, hostname)] = stream.query(
        "SELECT status, last_seen, last_heard, interval_ms, hostname FROM nodes"
    )
    assert (status, last_seen, last_heard, interval, hostname) == (
        "critical",
        seen,
        fleet.at,
        30000,
        "node-1.example",
    )


def test_the_state_survives_a_restart(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1)
    stream.send(*fleet.turn("node-1", {0: 92}))
    stream.flush()
    first = start()
    wait_for(lambda: stream.count("alerts") == 1, 30)
    first.stop()
    fleet.at += fleet.interval
    stream.send(*fleet.turn("node-1", {0: 88}))  # hysteresis: still firing
    fleet.at += fleet.interval
    stream.send(*fleet.turn("node-1", {0: 96}))
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 15, 30)
    assert stream.query("SELECT severity, status FROM alerts") == [("critical", "active")]
    assert [row[0] for row in stream.query("SELECT transition FROM alert_events ORDER BY id")] == ["fired", "raised"]


def test_a_gpu_that_moves_to_another_node_is_one_gpu_with_alerts_of_each_node(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=2, gpus=2)
    moved = fleet.uuid("node-1", 0)
    stream.send(*fleet.round({("node-1", 0): 97}))
    for _ in range(2):
        *gpus, closing = fleet.turn("node-1", without=(0,))
        stream.send(*gpus, closing)
        first, *gpus, closing = fleet.turn("node-2", {0: 97})
        first.gpu_uuid, first.gpu_index, first.pci_bus_id = moved, 7, "0000:0A:00.0"
        closing.gpu_uuids = [moved, *closing.gpu_uuids]
        stream.send(first, *gpus, closing)
        fleet.at += fleet.interval
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 6 + 2 * 5, 30)
    assert stream.query("SELECT pci_bus_id FROM gpus WHERE gpu_uuid = %s", moved) == [("0000:0A:00.0",)]
    assert stream.query("SELECT node_id, gpu_index FROM placements WHERE gpu_uuid = %s ORDER BY node_id", moved) == [
        ("node-1", 0),
        ("node-2", 7),
    ]
    assert stream.query(
        "SELECT node_id, rule, status FROM alerts WHERE gpu_uuid = %s ORDER BY node_id, rule", moved
    ) == [
        ("node-1", "gpu_lost", "active"),
        ("node-1", "high_temperature", "active"),  # gone is not cool
        ("node-2", "high_temperature", "active"),
    ]


def test_a_gpu_that_comes_back_is_described_by_where_it_stands(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=2, gpus=1)
    moved = fleet.uuid("node-1", 0)
    at_home = fleet.turn("node-1")
    away = fleet.turn("node-2", at=fleet.at + 2 * fleet.interval)
    for record, bus in ((at_home[0], "0000:0A:00.0"), (away[0], "0000:1B:00.0")):
        record.gpu_uuid, record.pci_bus_id = moved, bus
    away[1].gpu_uuids = [moved]
    dark = fleet.turn("node-1", at=fleet.at + fleet.interval, up=False)  # while it is taken out, and put in again
    back = fleet.turn("node-1", at=fleet.at + 3 * fleet.interval)
    back[0].pci_bus_id = "0000:0A:00.0"
    engine = start()
    for taken_in, records in ((3, (*at_home, *dark)), (5, away), (7, back)):
        stream.send(*records)
        stream.flush()
        wait_for(lambda taken_in=taken_in: stream.taken_in() == taken_in, 30)
    assert stream.query("SELECT pci_bus_id FROM gpus") == [("0000:0A:00.0",)]
    engine.stop()


def test_records_that_come_late_lower_since_when_a_node_and_its_gpus_are_known(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1)
    fleet.at = fleet.at.replace(minute=30)
    newest, older, oldest = (fleet.turn("node-1", at=fleet.at - timedelta(hours=age)) for age in (1, 2, 3))
    begun = fleet.at - timedelta(hours=3)
    start()
    for taken_in, records in ((2, newest), (4, older), (6, oldest)):
        stream.send(*records)
        stream.flush()
        wait_for(lambda taken_in=taken_in: stream.taken_in() == taken_in, 30)
    assert stream.query("SELECT first_seen FROM nodes") == [(begun,)]
    assert stream.query("SELECT first_seen FROM gpus") == [(begun,)]
    assert stream.query("SELECT since FROM placements") == [(begun,)]
    # So the ledger has a line for each of the hours.
    assert [line["stored"] for line in stream.ledger().values() if line["stored"]] == [1, 1, 1]


def test_a_node_whose_records_lie_in_two_partitions_is_one_node(stream, make_fleet, start, wait_for):
    # As in a topic that grew before it was read to its end.
    fleet = make_fleet(nodes=1, gpus=2, start=datetime.now(UTC) - timedelta(minutes=10))
    turns = [fleet.round({("node-1", 0): temperature}) for temperature in (60, 92, 97, 80)]
    for partition, turn in zip((0, 0, 1, 1), turns, strict=True):
        for record in turn:
            stream.producer.produce(stream.kafka.topic, encode(record), record.node_id.encode(), partition=partition)
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 12, 30)
    assert stream.count("gpu_metrics") == 8
    assert stream.count("placements") == 2
    # In which order the partitions come is nobody's to say; no alert is opened twice, and none is left behind.
    assert stream.count("alerts", "status = 'active'") == 0
    assert stream.count("alerts") <= 1


def test_a_turn_of_the_moment_of_a_removal_does_not_bring_the_node_back(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=0)
    [removal] = fleet.turn("node-1", up=False)
    removal.removed = True
    [turn] = fleet.turn("node-1")
    turn.bridge_id = turn.boot_id = "bridge-2"
    stream.send(removal, turn)
    stream.flush()
    start()
    wait_for(lambda: stream.taken_in() == 2, 30)
    assert stream.query("SELECT removed_at FROM nodes") == [(removal.collected_at,)]
    assert stream.count("scrapes") == 2
