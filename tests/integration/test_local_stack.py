"""`gpu-telemetry up` as a process: what it starts, what it does when parts die, how it ends, what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import psycopg
import pytest

pytestmark = pytest.mark.integration

_START_SECONDS = 90
# What is promised, and a little for a machine that does other things too.
_STOP_SECONDS = 17


def gpu_telemetry(*arguments):
    return [sys.executable, "-P", "-m", "gpu_telemetry.cli", *map(str, arguments)]


class Up:
    """A running `up`, its output in a file; every process that it started carries a mark in its environment."""

    def __init__(self, directory, offset, log, *flags, environment=None):
        self.directory, self.offset, self.log = directory, offset, log
        self.mark = f"GPU_TELEMETRY_TEST_RUN={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        command = gpu_telemetry("up", "--data", directory, "--port-offset", offset, "--interval", 2, *flags)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | (environment or {}) | {name: value},
                start_new_session=True,
            )

    def output(self):
        return self.log.read_text()

    def state(self):
        return json.loads((self.directory / "state.json").read_text())

    def part(self, name):
        return next(part for part in self.state()["parts"] if part["name"] == name)

    def is_up(self):
        assert self.process.poll() is None, self.output()
        return "logs: " in self.output()

    def left(self):
        """Every process of this run that is still there, the guard excepted for the moment that it needs to end."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environ.read_bytes().split(b"\0"):
                    found.append((environ.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def start(free_port_offset, wait_for):
    """`start(home, *flags)`: a stack that is up, its data in the directory `home`."""
    running = []

    def _start(home, *flags, offset=None, environment=None):
        log = home / f"up-{len(running)}.log"
        flags = ("--no-prometheus", *flags)
        made = Up(home / "data", offset or free_port_offset(), log, *flags, environment=environment)
        running.append(made)
        wait_for(made.is_up, _START_SECONDS, made.output)
        return made

    yield _start
    for each in running:
        each.end()
        wait_for(lambda each=each: not each.left(), 15, lambda each=each: f"processes are left: {each.left()}")


@pytest.fixture(scope="class")
def stack(start, tmp_path_factory):
    """A stack that tests only look at."""
    made = start(tmp_path_factory.mktemp("stack"))
    yield made
    made.end()


class TestARunningStack:
    def test_tells_its_state_and_lets_no_second_one_onto_its_directory(self, stack, wait_for):
        def told():
            status = gpu_telemetry("status", "--json", "--data", stack.directory)
            return json.loads(subprocess.run(status, capture_output=True, text=True, timeout=30, check=True).stdout)

        wait_for(lambda: len(told()["gpus"]) == 16, 60, "the fleet is stored")
        answer = told()
        assert [node["node_id"] for node in answer["nodes"]] == ["node-1", "node-2"]
        assert answer["unanswered"] == {}
        assert isinstance(answer["consumer_lag"], int)
        assert {part["name"]: part["state"] for part in answer["parts"]} == dict.fromkeys(
            ["PostgreSQL", "Apache Kafka", "Emulator", "Alert engine", "Exporter bridge", "API"], "up"
        )
        for part in answer["parts"]:
            assert Path(part["log"]).stat().st_size > 0, part

        second = gpu_telemetry("up", "--data", stack.directory, "--port-offset", 1)
        refused = subprocess.run(second, capture_output=True, text=True, timeout=30, check=False)
        assert refused.returncode == 1
        assert f"{stack.directory} is held by process {stack.process.pid}" in refused.stderr

        beside = gpu_telemetry("up", "--data", stack.directory.with_name("other"), "--port-offset", stack.offset)
        refused = subprocess.run(beside, capture_output=True, text=True, timeout=30, check=False)
        assert refused.returncode == 1
        assert f"port {8080 + stack.offset}, where the API would listen, is in use" in refused.stderr

    def test_shows_the_databases_password_nowhere(self, stack):
        password = (stack.directory / "postgres" / "password").read_text().strip()
        texts = [stack.output(), (stack.directory / "state.json").read_text(), *stack.left()]
        texts += [log.read_text(errors="replace") for log in (stack.directory / "logs").glob("*.log")]
        assert len(texts) > 8
        assert not [text for text in texts if password in text]

    def test_is_scraped_by_another_one_beside_it_that_uses_servers_that_are_there(
        self, stack, start, tmp_path, kafka_bootstrap, postgres_url, topic_names, wait_for
    ):
        emulator = httpx.URL(stack.state()["urls"]["emulator"])
        target = {
            "targets": [f"{emulator.host}:{emulator.port}"],
            "labels": {"__metrics_path__": "/nodes/node-2/metrics", "node_id": "borrowed"},
        }
        targets = tmp_path / "targets.json"
        targets.write_text(json.dumps([target]))
        environment = {"KAFKA_TOPIC": topic_names.topic, "KAFKA_DLQ_TOPIC": topic_names.dlq_topic}
        flags = ("--targets", targets, "--kafka", kafka_bootstrap, "--database", postgres_url)
        other = start(tmp_path, *flags, environment=environment)
        assert [part["name"] for part in other.state()["parts"]] == ["Alert engine", "Exporter bridge", "API"]
        api = other.state()["urls"]["api"]

        def heard():
            latest = httpx.get(f"{api}/api/v1/metrics/latest").raise_for_status().json()
            return [row["node_id"] for row in latest] == ["borrowed"] * 8

        wait_for(heard, 60, lambda: f"the borrowed node is stored; the output was:\n{other.output()}")
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(timeout=_STOP_SECONDS) == 0
        with psycopg.connect(postgres_url) as connection:
            assert connection.execute("SELECT count(*) >= 8 FROM gpu_metrics").fetchone() == (True,)


def test_ctrl_c_ends_everything_in_time_and_leaves_nothing_behind(start, tmp_path, wait_for):
    stack = start(tmp_path)
    assert len(stack.left()) > 6
    began = time.monotonic()
    # As the terminal does it, to the whole group.
    os.killpg(stack.process.pid, signal.SIGINT)
    assert stack.process.wait(timeout=_STOP_SECONDS) == 0, stack.output()
    assert time.monotonic() - began < _STOP_SECONDS
    wait_for(lambda: not stack.left(), 10, lambda: f"processes are left: {stack.left()}")
    assert "Stopped in " in stack.output().splitlines()[-1]
    assert not (stack.directory / "state.json").exists()


def test_whatever_is_killed_comes_back_and_a_kill_of_the_whole_leaves_nothing_behind(start, tmp_path, wait_for):
    stack = start(tmp_path)
    for name in ("Exporter bridge", "Alert engine", "API", "Emulator", "PostgreSQL", "Apache Kafka"):
        first = stack.part(name)["pid"]
        os.kill(first, signal.SIGKILL)
        wait_for(
            lambda name=name, first=first: stack.part(name)["state"] == "up" and stack.part(name)["pid"] != first,
            60,
            lambda name=name: f"{name} runs again; the output was:\n{stack.output()}",
        )
        assert stack.part(name)["restarts"] == 1
        assert f"{name} was ended by SIGKILL; starting it again" in stack.output()

    api = stack.state()["urls"]["api"]

    def both_nodes_were_heard():
        try:
            return len(httpx.get(f"{api}/api/v1/metrics/latest").raise_for_status().json()) == 16
        except httpx.HTTPError:
            return False

    wait_for(both_nodes_were_heard, 60, lambda: f"records flow again; the output was:\n{stack.output()}")

    stack.process.kill()
    stack.process.wait()
    wait_for(lambda: not stack.left(), 12, lambda: f"processes are left: {stack.left()}")
    # And the next run finds its data and its ports.
    again = start(tmp_path, offset=stack.offset)
    assert len(httpx.get(f"{api}/api/v1/metrics/latest").json()) == 16
    os.kill(again.process.pid, signal.SIGTERM)
    assert again.process.wait(timeout=_STOP_SECONDS) == 0
