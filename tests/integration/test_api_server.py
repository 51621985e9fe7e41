"""The API as it runs: gunicorn's processes over HTTP, with a database that comes and goes, until SIGTERM."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from gpu_telemetry.database import upgrade
from gpu_telemetry.local.postgres import PostgresServer
from gpu_telemetry.settings import DatabaseSettings

COMMAND = [sys.executable, "-c", "from gpu_telemetry.cli import main; main()"]


class Served:
    """A running API: its process, its address, its log so far."""

    def __init__(self, process, log, wait_for):
        self.process = process
        self.log = log
        started = re.compile(r"API started, serving on (http://\S+)")
        wait_for(lambda: started.search(self.text) or process.poll() is not None, 20, lambda: self.text)
        match = started.search(self.text)
        assert match is not None, self.text
        self.url = match[1]

    @property
    def text(self):
        return self.log.read_text(encoding="utf-8")

    def get(self, path, **keywords):
        return httpx.get(self.url + path, timeout=10, **keywords)


@pytest.fixture
def serve(tmp_path, wait_for):
    """`with serve(url, **environment) as served:` runs the API on a free port of its own choice."""

    @contextmanager
    def run(url, **environment):
        log = tmp_path / "api.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*COMMAND, "api", "--listen", "127.0.0.1:0"],
                env={**os.environ, "DATABASE_URL": url, "TMPDIR": str(tmp_path), **environment},
                stderr=sink,
                stdout=sink,
            )
        try:
            yield Served(process, log, wait_for)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)

    return run


@pytest.fixture
def filled_url(postgres_url):
    upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)"
            " VALUES ('node-1', 'healthy', now(), now(), 30000)"
        )
        connection.execute(
            "INSERT INTO alerts (rule, alert_type, node_id, severity, message, status, triggered_at)"
            " SELECT rule, rule, 'node-1', 'critical', 'Exporter is down', 'active', now()"
            " FROM unnest(ARRAY['exporter_down', 'exporter_frozen']) rule"
        )
    return postgres_url


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_ends_in_peace_when_told_to(serve, filled_url, tmp_path, told):
    with serve(filled_url) as served:
        assert served.get("/readyz").json() == {"status": "ready"}
        assert [node["node_id"] for node in served.get("/api/v1/nodes").json()] == ["node-1"]
        first = served.get("/api/v1/alerts?limit=1")
        (rest,) = httpx.get(first.links["next"]["url"]).json()
        assert {first.json()[0]["id"], rest["id"]} == {1, 2}
        resolved = httpx.post(f"{served.url}/api/v1/alerts/1/resolve", json={"actor": "jane"}).json()
        assert resolved["status"] == "resolved"
        served.process.send_signal(told)
        assert served.process.wait(10) == 0
    assert not list(tmp_path.glob("gpu-telemetry-api-*")), "the files of the metrics must go with the server"


def test_a_page_of_a_node_with_an_odd_id_leads_to_the_next_one(serve, filled_url):
    with psycopg.connect(filled_url) as connection:
        connection.execute(
            """
            SELECT ensure_partition('gpu_metrics', '2026-01-30');
            INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
            VALUES ('rack 7/€>%41', 'healthy', now(), now(), 30000);
            INSERT INTO gpus (gpu_uuid, first_seen) VALUES ('GPU-1', now());
            INSERT INTO placements (node_id, gpu_index, gpu_uuid, since) VALUES ('rack 7/€>%41', 0, 'GPU-1', now());
            INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)
            SELECT placement_id, node_id, 0, at FROM placements,
                   generate_series('2026-01-30 00:00Z'::timestamptz, '2026-01-30 02:00Z', '1 hour') at
            """
        )
    with serve(filled_url) as served:
        url, hours = f"{served.url}/api/v1/nodes/{quote('rack 7/€>%41', safe='')}/metrics?limit=1", []
        while url is not None:
            answer = httpx.get(url)
            assert answer.status_code == 200, answer.text
            hours += [(row["node_id"], row["collected_at"][11:13]) for row in answer.json()]
            url = answer.links.get("next", {}).get("url")
    assert hours == [("rack 7/€>%41", hour) for hour in ("02", "01", "00")]


def test_what_the_api_accepts_fits_into_a_request_line(serve, filled_url):
    key = {"type": "nodes", "node_id": "a" * 3043}
    cursor = base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode()
    assert (len(cursor), cursor[-1] != "=") == (4096, True), "the longest cursor"
    with serve(filled_url) as served:
        answer = served.get(f"/api/v1/nodes?cursor={cursor}&datacenter={'%25' * 512}&status=healthy&limit=10000")
        assert (answer.status_code, answer.json()) == (200, [])
        assert [node["node_id"] for node in served.get(f"/api/v1/nodes?cursor={cursor}").json()] == ["node-1"]
        assert served.get(f"/api/v1/nodes?cursor={cursor}&datacenter={'%25' * 1400}").status_code == 414


def test_log_lines_have_the_form_of_the_project(serve, filled_url):
    with serve(filled_url) as served:
        served.get("/api/v1/nodes?limit=5")
        served.get("/healthz")
    lines = served.text.splitlines()
    assert lines
    form = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) (api|gunicorn|psycopg): ")
    assert [line for line in lines if not form.match(line)] == []
    assert re.search(r"INFO api: GET /api/v1/nodes\?limit=5 200 in \d+\.\d ms", served.text)
    assert "healthz" not in served.text


def test_a_request_under_way_is_answered_before_the_server_ends(serve, filled_url, wait_for):
    with (
        serve(filled_url, LOG_LEVEL="DEBUG") as served,
        psycopg.connect(filled_url) as blocker,
        psycopg.connect(filled_url, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        served.get("/api/v1/nodes")
        blocker.execute("LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        answer = pool.submit(served.get, "/api/v1/nodes")
        wait_for(lambda: watcher.execute(waiting).fetchone() == (1,), 10, "the request waits for the lock")
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "Handling signal: term" in served.text, 10, "the server was told to end")
        blocker.rollback()
        assert answer.result(10).status_code == 200
        assert served.process.wait(15) == 0


def test_it_starts_without_a_database_and_is_ready_when_that_comes(serve, tmp_path, free_ports, wait_for):
    server = PostgresServer(
        tmp_path / "server", *free_ports(1), log=tmp_path / "postgres.log", password=False, durable=False
    )
    with serve(server.database_url("gpu_telemetry"), API_POOL_TIMEOUT_SECONDS="0.5") as served:
        response = served.get("/readyz")
        assert (response.status_code, response.headers["Content-Type"]) == (503, "application/problem+json")
        assert served.get("/healthz").status_code == 200
        server.start()
        try:
            with psycopg.connect(server.database_url("postgres"), autocommit=True) as connection:
                names = {row[0] for row in connection.execute("SELECT datname FROM pg_database").fetchall()}
                if "gpu_telemetry" not in names:
                    connection.execute("CREATE DATABASE gpu_telemetry")
            upgrade(DatabaseSettings(url=SecretStr(server.database_url("gpu_telemetry"))))

            def every_worker_answers():
                return all(served.get(path).status_code == 200 for path in ["/readyz", "/api/v1/nodes"] * 8)

            wait_for(every_worker_answers, 20, lambda: served.get("/readyz").text)
        finally:
            server.stop()
        wait_for(lambda: served.get("/api/v1/nodes").status_code == 503, 20, "it notices that the database went")


class Stopped:
    """Processes that stand still while the block runs, as those of a machine that swaps or whose disk hangs."""

    def __init__(self, *pids):
        self._pids = pids

    def __enter__(self):
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_):
        for pid in self._pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGCONT)


def all_processes(pid):
    """A process and its children, as PostgreSQL has one for each connection."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.fixture
def own_postgres(tmp_path, free_ports):
    """A PostgreSQL of this test alone, which may be stopped and killed, with the schema and a node."""
    server = PostgresServer(
        tmp_path / "server", *free_ports(1), log=tmp_path / "postgres.log", password=False, durable=False
    )
    server.start()
    upgrade(DatabaseSettings(url=SecretStr(server.url)))
    with psycopg.connect(server.url) as connection:
        connection.execute(
            "INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)"
            " VALUES ('node-1', 'healthy', now(), now(), 30000)"
        )
    yield server
    server.stop()


def test_while_the_database_stands_still_every_request_is_answered_in_time_and_probes_at_once(
    serve, own_postgres, wait_for
):
    limits = {"API_WORKERS": "1", "API_POOL_TIMEOUT_SECONDS": "1.5", "API_STATEMENT_TIMEOUT_SECONDS": "1"}
    idle = re.compile(r'gpu_telemetry_api_database_connections{state="idle"} ([2-9])')
    with serve(own_postgres.url, **limits) as served, ThreadPoolExecutor(24) as pool:

        def the_pool_is_warm():
            list(pool.map(served.get, ["/api/v1/nodes"] * 24))
            return idle.search(served.get("/metrics").text)

        wait_for(the_pool_is_warm, 20, "several idle connections")
        with Stopped(*all_processes(own_postgres.pid)):
            asked = [pool.submit(served.get, path) for path in ["/api/v1/nodes", "/readyz"] * 12]
            while not all(answer.done() for answer in asked):
                for probe in ("/healthz", "/metrics"):
                    assert httpx.get(served.url + probe, timeout=1).status_code == 200
            answers = [answer.result() for answer in asked]
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["Content-Type"] for answer in answers} == {"application/problem+json"}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
        # A turn, then a connection, and what a busy machine adds.
        assert max(answer.elapsed.total_seconds() for answer in answers) < 1.5 + 1.5 + 2
        wait_for(lambda: served.get("/readyz").status_code == 200, 20, lambda: served.text)


def test_a_query_whose_server_process_stands_still_is_given_up(serve, own_postgres, wait_for):
    with (
        serve(own_postgres.url, API_WORKERS="1", API_STATEMENT_TIMEOUT_SECONDS="1") as served,
        psycopg.connect(own_postgres.url) as blocker,
        psycopg.connect(own_postgres.url, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        assert served.get("/api/v1/nodes").status_code == 200
        blocker.execute("LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE")
        answer = pool.submit(served.get, "/api/v1/nodes")
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_for(lambda: watcher.execute(waiting).fetchone(), 10, "the request waits for the lock")
        with Stopped(watcher.execute(waiting).fetchone()[0]):
            response = answer.result(10)
        blocker.rollback()
        assert response.status_code == 503
        assert response.json()["detail"] == "the database did not answer within 1 s"
        assert served.get("/api/v1/nodes").status_code == 200
    assert "Traceback" not in served.text


def test_a_line_that_is_too_long_is_told_to_come_again(serve, own_postgres, wait_for):
    limits = {"API_WORKERS": "1", "API_THREADS": "1", "API_POOL_TIMEOUT_SECONDS": "0.5"}
    with (
        serve(own_postgres.url, **limits) as served,
        psycopg.connect(own_postgres.url) as blocker,
        psycopg.connect(own_postgres.url, autocommit=True) as watcher,
        ThreadPoolExecutor(1) as pool,
    ):
        blocker.execute("LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE")
        first = pool.submit(served.get, "/api/v1/nodes")
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_for(lambda: watcher.execute(waiting).fetchone() is not None, 10, "the request waits for the lock")
        refused = served.get("/api/v1/alerts")
        blocker.rollback()
        assert first.result(10).status_code == 200
        assert served.get("/api/v1/alerts").status_code == 200
    assert (refused.status_code, refused.headers["Content-Type"]) == (503, "application/problem+json")
    assert refused.json()["detail"] == "0.5 s were not enough for this request's turn to come"
    assert refused.headers["Retry-After"] == "1"
    assert re.search(r"/api/v1/alerts 503 in ([5-9]\d\d|\d{4,})\.\d ms", served.text), "the wait in line is part of it"


def test_the_metrics_count_the_requests_of_all_processes_and_of_those_that_died(serve, filled_url, wait_for):
    counted = re.compile(
        r'gpu_telemetry_api_requests_total{method="GET",route="/api/v1/alerts/<alert_id>",status="404"} (\d+)\.0'
    )
    with serve(filled_url, API_WORKERS="2") as served:
        wait_for(lambda: len(children(served.process)) == 2, 10, "two workers")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: served.get(f"/api/v1/alerts/{1000 + number}"), range(40)))
        text = served.get("/metrics").text
        assert counted.findall(text) == ["40"]
        assert "/api/v1/alerts/1000" not in text, "a path as a label would make a series for every alert"
        before = children(served.process)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: set(children(served.process)) != set(before), 10, "a new worker")
        wait_for(lambda: len(children(served.process)) == 2, 10, "two workers again")
        assert counted.findall(served.get("/metrics").text) == ["40"]


def test_a_wrong_setting_ends_it_with_the_variables_name(postgres_url):
    ended = subprocess.run(
        [*COMMAND, "api"],
        env={**os.environ, "DATABASE_URL": postgres_url, "API_WORKERS": "0", "API_LISTEN": "nowhere"},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert "API_WORKERS:" in ended.stderr
    assert "API_LISTEN:" in ended.stderr


def test_a_port_in_use_is_named(serve, filled_url):
    with serve(filled_url) as served:
        address = served.url.removeprefix("http://")
        ended = subprocess.run(
            [*COMMAND, "api", "--listen", address],
            env={**os.environ, "DATABASE_URL": filled_url},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode != 0
    assert f"{address.rpartition(':')[2]}" in ended.stderr
