"""Starting in order, starting again, ending in reverse order in time."""

import os
import signal
import time
from pathlib import Path

import pytest

from gpu_telemetry.local.parts import Command
from gpu_telemetry.local.process import ServerProcess
from gpu_telemetry.local.supervisor import Supervisor

SERVE = "ready.touch(); time.sleep(60)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready.touch(); time.sleep(60)"


class FilePart:
    """A server that is ready once it has touched a file; `diary` is told what is done to it."""

    def __init__(self, name, command, ready, log, diary):
        self.name = name
        self.log = log
        self._command, self._ready, self._diary = command, ready, diary
        self._process = None

    @property
    def pid(self):
        return None if self._process is None else self._process.pid

    def start(self):
        self._ready.unlink(missing_ok=True)
        self._process = ServerProcess(self.name, self._command, log=self.log)
        self._process.wait_ready(self._ready.exists, 10)
        self._diary.append(f"start {self.name}")

    def exit_status(self):
        return None if self._process is None else self._process.exit_status()

    def stop(self, deadline_seconds):
        process, self._process = self._process, None
        if process is not None:
            self._diary.append(f"stop {self.name}")
            process.stop(deadline_seconds)

    def kill(self):
        if self._process is not None:
            self._process.kill()


@pytest.fixture
def diary():
    return []


@pytest.fixture
def part(program, tmp_path, diary):
    def _part(name, code=SERVE):
        command, ready = program(code, name)
        return FilePart(name, command, ready, tmp_path / f"{name}.log", diary)

    return _part


@pytest.fixture
def supervise():
    running = []

    def _supervise(*plan):
        events = []
        supervisor = Supervisor(plan, events.append, first_delay_seconds=0.05)
        running.append(supervisor)
        supervisor.start()
        return supervisor, events

    yield _supervise
    for supervisor in running:
        supervisor.stop(1)


def texts(events):
    return [event.text for event in events]


def test_parts_start_in_order_and_end_in_reverse_order(part, supervise, diary, wait_for):
    supervisor, _ = supervise(part("database"), part("broker"), part("service"))
    wait_for(lambda: supervisor.is_up, 20, "all parts are up")
    assert [state.state for state in supervisor.parts()] == ["up", "up", "up"]
    supervisor.stop(10)
    assert diary == [
        "start database",
        "start broker",
        "start service",
        "stop service",
        "stop broker",
        "stop database",
    ]


def test_a_part_that_dies_is_started_again_and_reported(part, supervise, wait_for):
    service = part("service")
    supervisor, events = supervise(service)
    wait_for(lambda: supervisor.is_up, 20, "the part is up")
    first = service.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: supervisor.parts()[0].restarts == 1 and supervisor.parts()[0].state == "up", 20, "it runs again")
    state = supervisor.parts()[0]
    assert state.pid != first
    assert state.last_exit == "was ended by SIGKILL"
    assert any("service was ended by SIGKILL; starting it again" in text for text in texts(events))
    assert "service runs again (restart 1)" in texts(events)


def test_a_part_that_dies_again_and_again_is_started_ever_more_slowly(part, supervise, wait_for):
    supervisor, events = supervise(part("service", "ready.touch(); time.sleep(0.2); sys.exit(7)"))
    wait_for(lambda: supervisor.parts()[0].restarts >= 3, 30, "three restarts")
    delays = [text.split("again in ")[1].split(" s")[0] for text in texts(events) if "exited with 7; starting" in text]
    # From 0.05 s: doubled each time, as shown to one decimal.
    assert delays[:3] == ["0.1", "0.1", "0.2"]


def test_a_part_that_fails_to_come_back_is_tried_again(part, supervise, tmp_path, wait_for):
    broken = tmp_path / "broken"
    code = f"sys.exit('no disk') if pathlib.Path({str(broken)!r}).exists() else ready.touch(); time.sleep(60)"
    service = part("service", code)
    supervisor, events = supervise(service)
    wait_for(lambda: supervisor.is_up, 20, "the part is up")
    broken.touch()
    os.kill(service.pid, signal.SIGKILL)
    wait_for(lambda: supervisor.parts()[0].restarts >= 2, 20, "it was tried twice")
    assert supervisor.parts()[0].state == "restarting"
    broken.unlink()
    wait_for(lambda: supervisor.parts()[0].state == "up", 20, "it is up")
    assert any("service exited with 1 while starting" in text for text in texts(events))


def test_stubborn_parts_are_ended_within_the_deadline(part, supervise, wait_for):
    supervisor, _ = supervise(*(part(f"stubborn-{number}", STUBBORN) for number in range(4)))
    wait_for(lambda: supervisor.is_up, 20, "all parts are up")
    pids = [state.pid for state in supervisor.parts()]
    began = time.monotonic()
    supervisor.stop(2)
    assert time.monotonic() - began < 4
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_who_hurries_waits_for_no_stubborn_part(part, supervise, wait_for):
    supervisor, _ = supervise(part("stubborn", STUBBORN))
    wait_for(lambda: supervisor.is_up, 20, "the part is up")
    supervisor.hurry()
    began = time.monotonic()
    supervisor.stop(10)
    assert time.monotonic() - began < 5


def test_a_part_that_does_not_come_up_ends_the_start_with_its_reason(part, supervise, wait_for):
    supervisor, _ = supervise(part("database"), part("broker", "sys.exit('disk is full')"), part("service"))
    wait_for(lambda: supervisor.failure is not None, 20, "the failure is known")
    assert "broker exited with 1" in str(supervisor.failure)
    assert "disk is full" in str(supervisor.failure)
    assert not supervisor.is_up
    assert [state.state for state in supervisor.parts()] == ["up", "starting", "waiting"]


def test_an_error_that_nobody_foresaw_ends_the_start_with_its_place(part, supervise, wait_for):
    broken = part("broker")
    broken.start = lambda: Path("/proc/no/such/directory").mkdir()
    supervisor, _ = supervise(broken)
    wait_for(lambda: supervisor.failure is not None, 20, "the failure is known")
    assert "broker could not be started: FileNotFoundError: " in str(supervisor.failure)


def test_a_stop_during_the_start_ends_what_is_starting(part, supervise, wait_for):
    supervisor, _ = supervise(part("never-ready", "time.sleep(60)"), part("service"))
    wait_for(lambda: supervisor.parts()[0].pid is not None, 20, "the first part was started")
    pid = supervisor.parts()[0].pid
    supervisor.stop(3)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not supervisor.is_up


def test_a_task_runs_to_its_end_before_what_follows(part, program, supervise, diary, tmp_path, wait_for):
    command, done = program("time.sleep(0.2); ready.touch()", "schema")
    task = Command("schema", command, log=tmp_path / "schema.log", environment=lambda: os.environ)
    seen = []
    service = part("service")
    start = service.start
    service.start = lambda: (seen.append(done.exists()), start())
    supervisor, _ = supervise(task, service)
    wait_for(lambda: supervisor.is_up, 20, "the part is up")
    assert seen == [True]
    assert diary == ["start service"]


def test_a_task_that_fails_ends_the_start(part, program, supervise, tmp_path, wait_for):
    command, _ = program("sys.exit('schema is newer')", "schema")
    task = Command("schema", command, log=tmp_path / "schema.log", environment=lambda: os.environ)
    supervisor, _ = supervise(task, part("service"))
    wait_for(lambda: supervisor.failure is not None, 20, "the failure is known")
    assert "schema is newer" in str(supervisor.failure)
