"""The alert engine as people run it: its log, its metrics, its end; two of them share the work."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta

import psycopg
import pytest


def command(*arguments, **environment):
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-c", "from gpu_telemetry.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def read(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.status, response.read().decode()


def test_it_says_what_it_does_serves_its_metrics_and_ends_on_sigterm(
    stream, make_fleet, engine_process, wait_for, free_ports
):
    [port] = free_ports(1)
    fleet = make_fleet(nodes=1, gpus=4)
    stream.send(*fleet.round({("node-1", 3): 92}), *fleet.round({("node-1", 3): 70}))
    stream.flush()
    process = engine_process(ALERTING_LISTEN=f"127.0.0.1:{port}")
    wait_for(lambda: stream.taken_in() == 10, 30, lambda: "".join(process.lines))
    wait_for(lambda: any("Resolved alert" in line for line in process.lines), 10)
    said = "".join(process.lines)
    assert "INFO alerting: Alert engine started, consuming from Kafka" in said
    assert "Created alert ID=1: [warning] high_temperature on node-1 GPU 3" in said
    assert "Resolved alert ID=1: [warning] high_temperature on node-1 GPU 3: cleared" in said
    assert read(f"http://127.0.0.1:{port}/healthz")[0] == 200
    assert read(f"http://127.0.0.1:{port}/readyz")[0] == 200
    page = read(f"http://127.0.0.1:{port}/metrics")[1]
    assert 'alert_engine_records_stored_total{kind="gpu"} 8.0' in page
    assert 'alert_engine_transitions_total{rule="high_temperature",transition="fired"} 1.0' in page
    wait_for(lambda: "alert_engine_lag_records 0.0" in read(f"http://127.0.0.1:{port}/metrics")[1], 10)
    begun = datetime.now(UTC)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert datetime.now(UTC) - begun < timedelta(seconds=10)
    wait_for(lambda: any("Alert engine stopped" in line for line in process.lines), 5)
    assert not [line for line in process.lines if "Traceback" in line]


def test_how_far_behind_it_is_shows_while_the_database_is_away(
    stream, make_fleet, engine_process, wait_for, free_ports, postgres_server
):
    [port] = free_ports(1)
    fleet = make_fleet(nodes=3, gpus=4, start=datetime.now(UTC) - timedelta(minutes=10))
    process = engine_process(ALERTING_LISTEN=f"127.0.0.1:{port}")

    def gauge(name):
        page = read(f"http://127.0.0.1:{port}/metrics")[1]
        return float(re.search(rf"^alert_engine_{name} (\S+)$", page, re.MULTILINE)[1])

    stream.send(*fleet.round())
    stream.flush()
    wait_for(lambda: stream.taken_in() == 15, 60, lambda: "".join(process.lines))
    wait_for(lambda: gauge("lag_records") == 0 and gauge("lag_seconds") < 4, 30)
    [(name,)] = stream.query("SELECT current_database()")
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        stream.send(*fleet.round(), *fleet.round())
        stream.flush()
        wait_for(lambda: gauge("lag_records") == 30 and gauge("lag_seconds") > 5, 30, lambda: "".join(process.lines))
        other.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    wait_for(lambda: gauge("lag_records") == 0 and gauge("lag_seconds") < 4, 60, lambda: "".join(process.lines))
    assert stream.taken_in() == 45


def test_two_engines_share_the_partitions_and_a_node_moves_with_its_state(stream, make_fleet, start, wait_for, caplog):
    caplog.set_level("INFO", logger="alerting")
    group = f"shared-{os.urandom(4).hex()}"
    fleet = make_fleet(nodes=8, gpus=2, start=datetime.now(UTC) - timedelta(minutes=10))
    hot = {(node, 0): 92 for node in fleet.nodes}
    stream.send(*fleet.round(hot))
    stream.flush()
    first = start(group_id=group)
    wait_for(lambda: stream.taken_in() == 24, 30)
    start(group_id=group, worker_id="second")
    wait_for(lambda: caplog.text.count("Assigned partitions") >= 2, 30)
    stream.send(*fleet.round(hot))
    stream.flush()
    wait_for(lambda: stream.taken_in() == 48, 30)
    first.stop()
    stream.send(*fleet.round(dict.fromkeys(hot, 97)))
    stream.flush()
    wait_for(lambda: stream.taken_in() == 72, 30)
    assert stream.query("SELECT severity, count(*) FROM alerts GROUP BY 1") == [("critical", 8)]
    assert stream.query("SELECT transition, count(*) FROM alert_events GROUP BY 1 ORDER BY 1") == [
        ("fired", 8),
        ("raised", 8),
    ]
    assert stream.count("gpu_metrics") == 3 * 8 * 2


def test_a_database_without_the_schema_is_refused_with_what_to_run(stream, postgres_url):
    said = command(
        "alert-engine",
        KAFKA_BOOTSTRAP_SERVERS=stream.kafka.bootstrap_servers,
        DATABASE_URL=postgres_url,
        ALERTING_LISTEN="127.0.0.1:0",
    )
    assert said.returncode == 1
    assert "alert-engine: the database has no schema: run `gpu-telemetry db upgrade`" in said.stderr


def test_a_missing_topic_is_refused_with_what_to_run(stream):
    said = command(
        "alert-engine",
        KAFKA_BOOTSTRAP_SERVERS=stream.kafka.bootstrap_servers,
        KAFKA_TOPIC="no-such-topic",
        DATABASE_URL=stream.database.url.get_secret_value(),
        ALERTING_LISTEN="127.0.0.1:0",
    )
    assert said.returncode == 1
    assert "topic no-such-topic does not exist: run `gpu-telemetry topics ensure`" in said.stderr


def test_an_address_in_use_is_named(stream):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = command(
            "alert-engine",
            KAFKA_BOOTSTRAP_SERVERS=stream.kafka.bootstrap_servers,
            DATABASE_URL=stream.database.url.get_secret_value(),
            ALERTING_LISTEN=f"127.0.0.1:{port}",
        )
    assert said.returncode == 1
    assert re.search(rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use", said.stderr)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ALERTING_RETENTION_DAYS": "0"}, "ALERTING_RETENTION_DAYS: "),
        ({"ALERTING_ACTIONS_DRY_RUN": "false"}, "ALERTING_MIGRATION_URL is needed"),
        ({"ALERTING_WEBHOOK_URL": "ftp://hidden-secret/"}, "ALERTING_WEBHOOK_URL: "),
    ],
)
def test_settings_that_cannot_be_used_are_named_without_their_secrets(variables, expected):
    said = command("alert-engine", **variables)
    assert said.returncode == 2
    assert expected in said.stderr
    assert "hidden-secret" not in said.stderr


def test_nodes_remove_ends_a_nodes_alerts_and_its_watch(stream, make_fleet, start, wait_for):
    fleet = make_fleet(nodes=1, gpus=1)
    stream.send(*fleet.round({("node-1", 0): 97}))
    stream.flush()
    start()
    wait_for(lambda: stream.count("alerts", "status = 'active'") == 1, 30)
    said = command(
        "nodes",
        "remove",
        "node-1",
        KAFKA_BOOTSTRAP_SERVERS=stream.kafka.bootstrap_servers,
        KAFKA_TOPIC=stream.kafka.topic,
        DATABASE_URL=stream.database.url.get_secret_value(),
    )
    assert said.returncode == 0, said.stderr
    assert re.fullmatch(r"node-1: asked for its removal as of \d{4}-\S+Z\n", said.stdout)
    wait_for(lambda: stream.count("alerts", "resolved_reason = 'decommissioned'") == 1, 20)
    assert stream.count("nodes", "removed_at IS NOT NULL") == 1
    [(bridge, seq, up, removed)] = stream.query(
        "SELECT bridge_id, seq, up, removed FROM scrapes ORDER BY collected_at DESC LIMIT 1"
    )
    assert bridge.startswith("cli-")
    assert (seq, up, removed) == (1, False, True)
