"""What the parts of the stack are told, and what is told of them."""

import sys
from pathlib import Path

import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from gpu_telemetry.local.directory import DataDirectory, PartState, Rates
from gpu_telemetry.local.ports import Ports
from gpu_telemetry.local.stack import Options, Stack, database_of, prometheus_configuration, without_password

URL = "postgresql://telemetry:hush-hush@db.example:6543/gpu_telemetry?sslmode=require"


@pytest.fixture
def stack(tmp_path):
    def _stack(**options):
        return Stack(Options(data=tmp_path, port_offset=22000, **options), DataDirectory(tmp_path))

    return _stack


@pytest.fixture
def elsewhere(stack):
    """A stack whose servers are already there."""
    return lambda **options: stack(kafka="broker:9092", database=SecretStr(URL), **options)


def test_services_are_told_where_everything_is(elsewhere):
    told = elsewhere(interval_seconds=5).environment()
    assert told["DATABASE_URL"] == URL
    assert told["KAFKA_BOOTSTRAP_SERVERS"] == "broker:9092"
    assert told["BRIDGE_LISTEN"] == "127.0.0.1:31500"
    assert told["BRIDGE_INTERVAL_SECONDS"] == "5"
    assert told["BRIDGE_HTTP_SD_URL"] == "http://127.0.0.1:31400/sd"
    assert told["ALERTING_LISTEN"] == "127.0.0.1:31501"
    assert told["API_LISTEN"] == "127.0.0.1:30080"
    assert told["EMULATOR_LISTEN"] == "127.0.0.1:31400"


def test_actions_are_carried_out_in_the_demo_alone(elsewhere):
    assert elsewhere(demo=True).environment()["ALERTING_ACTIONS_DRY_RUN"] == "false"
    assert elsewhere(demo=True).environment()["ALERTING_MIGRATION_URL"] == "http://127.0.0.1:31400/control/migrate"
    assert "ALERTING_ACTIONS_DRY_RUN" not in elsewhere().environment()


def test_real_exporters_take_the_place_of_the_emulated_fleet(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("BRIDGE_HTTP_SD_URL", "http://left.over/sd")
    stack = elsewhere(targets=tmp_path / "targets.yml", prometheus=False)
    assert stack.environment()["BRIDGE_TARGETS_FILE"] == str(tmp_path / "targets.yml")
    assert "BRIDGE_HTTP_SD_URL" not in stack.environment()
    assert "emulator" not in stack.urls
    assert "Emulator" not in [part.name for part in stack.plan()]


def test_settings_of_the_user_pass_to_the_services(elsewhere, monkeypatch):
    monkeypatch.setenv("EMULATOR_NODES", "4")
    monkeypatch.setenv("BRIDGE_FLUSH_SECONDS", "9")
    told = elsewhere().environment()
    assert told["EMULATOR_NODES"] == "4"
    assert told["BRIDGE_FLUSH_SECONDS"] == "9"


def test_servers_that_are_there_are_not_started_and_the_rest_starts_in_order(elsewhere, stack, tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_TELEMETRY_CACHE", str(tmp_path / "empty"))
    services = ["Emulator", "Alert engine", "Exporter bridge", "API"]
    tasks = ["Database schema", "Kafka topics"]
    assert [part.name for part in elsewhere(prometheus=False).plan()] == [*tasks, *services]
    own = [part.name for part in stack(prometheus=False).plan()]
    download = "Downloading Apache Kafka 4.3.1 (55 MB, once)"
    assert own == ["PostgreSQL", download, "Apache Kafka", *tasks, *services]


def test_no_secret_stands_in_a_command_line_a_repr_or_the_state(elsewhere):
    stack = elsewhere(prometheus=False)
    commands = [part._command for part in stack.plan()]
    state = stack.state("2026-01-31T12:00:00.000Z", [], Rates())
    assert "hush-hush" not in f"{commands} {state} {stack.options} {stack.urls}"
    assert conninfo_to_dict(state.database) == conninfo_to_dict(URL.replace(":hush-hush", ""))
    assert commands[0] == [sys.executable, "-P", "-m", "gpu_telemetry.cli", "db", "upgrade"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://u:p@h/d", "user=u dbname=d host=h"),
        ("postgresql:///d?password=p&host=/run/pg", "dbname=d host=/run/pg"),
        ("host=h password=p", "host=h"),
        ("postgresql://u:p@h1:5432,h2:5433/d", "user=u dbname=d host=h1,h2 port=5432,5433"),
        ("postgresql://u@[::1]:5432/d", "user=u dbname=d host=::1 port=5432"),
        ("postgresql://U%40x:p@Host/d?sslmode=require", "user=U@x dbname=d host=Host sslmode=require"),
        ("postgresql://h/d?sslkey=k&sslpassword=p", "dbname=d host=h sslkey=k"),
    ],
)
def test_a_database_is_shown_without_its_password_as_libpq_takes_it(given, shown):
    assert without_password(given) == shown


def test_the_password_of_a_stacks_own_database_lies_in_its_directory(stack, tmp_path):
    own = stack(kafka="broker:9092", prometheus=False)
    password = tmp_path / "postgres" / "password"
    password.parent.mkdir()
    password.write_text("hush-hush\n")
    parts = [PartState(name=part.name, state="up", pid=1, restarts=0, log="") for part in own.plan()[:1]]
    url = database_of(own.state("2026-01-31T12:00:00.000Z", parts, Rates()), DataDirectory(tmp_path))
    assert conninfo_to_dict(url.get_secret_value()) == conninfo_to_dict(own.environment()["DATABASE_URL"])


def test_a_database_that_was_there_is_not_given_the_password_of_an_earlier_one(elsewhere, tmp_path):
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "password").write_text("of an earlier run")
    parts = [PartState(name="API", state="up", pid=1, restarts=0, log="")]
    url = database_of(elsewhere().state("2026-01-31T12:00:00.000Z", parts, Rates()), DataDirectory(tmp_path))
    assert conninfo_to_dict(url.get_secret_value()) == conninfo_to_dict(URL.replace(":hush-hush", ""))


def test_prometheus_scrapes_every_service_and_keeps_the_fleets_own_labels():
    jobs = {job["job_name"]: job for job in prometheus_configuration(Ports(), 5)["scrape_configs"]}
    assert {name: job["static_configs"][0]["targets"] for name, job in jobs.items()} == {
        "bridge": ["127.0.0.1:9500"],
        "alert-engine": ["127.0.0.1:9501"],
        "api": ["127.0.0.1:8080"],
        "gpu-fleet": ["127.0.0.1:9500"],
        "prometheus": ["127.0.0.1:9090"],
    }
    assert jobs["gpu-fleet"]["metrics_path"] == "/fleet/metrics"
    assert jobs["gpu-fleet"]["honor_labels"] is True


def test_the_repositorys_rules_are_loaded_where_they_are(tmp_path, monkeypatch):
    (pattern,) = prometheus_configuration(Ports(), 5)["rule_files"]
    assert {"fleet.yml", "pipeline.yml"} <= {path.name for path in Path(pattern).parent.glob("*.yml")}
    monkeypatch.setattr("gpu_telemetry.local.stack._RULES", tmp_path / "absent")
    assert "rule_files" not in prometheus_configuration(Ports(), 5)


def test_where_prometheus_is_missing_the_stack_says_so_and_goes_without(elsewhere, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    stack = elsewhere()
    assert stack.notes == ["Prometheus is not on the PATH: the stack runs without it"]
    assert "prometheus" not in stack.urls


def test_prometheus_is_configured_in_the_data_directory(elsewhere, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    stack = elsewhere(interval_seconds=5)
    part = stack.plan()[-1]
    assert part._command[0] == str(program)
    written = yaml.safe_load(Path(tmp_path / "prometheus" / "prometheus.yml").read_text())
    assert written["global"]["scrape_interval"] == "5s"
