"""A server as a child process."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_telemetry.local import guard
from gpu_telemetry.local.process import ServerProcess, StartFailed, ended, trim_log

SERVE = "ready.touch(); time.sleep(60)"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready.touch(); time.sleep(60)"


def is_running(pid):
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start(program, tmp_path):
    started = []

    def _start(code, **options):
        command, ready = program(code)
        process = ServerProcess("the server", command, log=tmp_path / "server.log", **options)
        started.append(process)
        process.wait_ready(ready.exists, 10)
        return process

    yield _start
    for process in started:
        process.stop(0)


def test_a_server_that_ends_when_asked_to_has_ended_in_order(start):
    server = start(SERVE)
    assert server.exit_status() is None
    assert server.stop(10)
    assert server.exit_status() == -signal.SIGTERM


def test_a_server_that_ignores_the_polite_signal_is_ended_at_the_deadline(start):
    server = start(IGNORE)
    began = time.monotonic()
    assert not server.stop(0.3)
    assert 0.3 <= time.monotonic() - began < 3
    assert server.exit_status() == -signal.SIGKILL


def test_the_stern_signal_comes_before_sigkill(start):
    server = start(IGNORE, stern=signal.SIGQUIT)
    assert not server.stop(0.1)
    assert server.exit_status() == -signal.SIGQUIT


def test_children_that_outlive_their_server_are_ended_with_it(start, tmp_path, wait_for):
    child_pid = tmp_path / "child"
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path({str(child_pid)!r}).write_text(str(child.pid)); ready.touch(); time.sleep(60)"
    )
    server = start(code)
    pid = int(child_pid.read_text())
    server.stop(5)
    wait_for(lambda: not is_running(pid), 5, "the child has ended")


def test_a_server_that_dies_at_its_start_is_named_with_the_end_of_its_log(program, tmp_path):
    command, ready = program("print('no such disk'); sys.exit(3)")
    log = tmp_path / "logs" / "server.log"
    log.parent.mkdir()
    log.write_text("from an earlier start\n")
    server = ServerProcess("the server", command, log=log)
    with pytest.raises(StartFailed) as failure:
        server.wait_ready(ready.exists, 10)
    server.stop(0)
    assert "the server exited with 3" in str(failure.value)
    assert "no such disk" in str(failure.value)
    assert "earlier" not in str(failure.value)
    assert log.read_text().startswith("from an earlier start\n")


def test_a_server_that_is_never_ready_fails_at_the_deadline(program, tmp_path):
    command, ready = program("time.sleep(60)")
    server = ServerProcess("the server", command, log=tmp_path / "server.log")
    with pytest.raises(StartFailed, match=r"not ready within 0\.2 s"):
        server.wait_ready(ready.exists, 0.2)
    server.stop(0)


def test_a_log_that_has_grown_long_begins_anew_while_it_is_written_to(start, tmp_path, monkeypatch, wait_for):
    go_on = tmp_path / "go-on"
    code = (
        f"print('long ' * 10, flush=True); ready.touch(); go_on = pathlib.Path({str(go_on)!r})\n"
        "while not go_on.exists(): time.sleep(0.01)\n"
        "print('after', flush=True); time.sleep(60)"
    )
    start(code)
    log = tmp_path / "server.log"
    monkeypatch.setattr("gpu_telemetry.local.process._LOG_LIMIT_BYTES", 10)
    trim_log(log)
    go_on.touch()
    wait_for(lambda: log.read_text() == "after\n", 10, "the log goes on at its start")
    assert (tmp_path / "server.log.old").read_text() == "long " * 10 + "\n"


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exited with 0"), (1, "exited with 1"), (-9, "was ended by SIGKILL")]
)
def test_an_exit_status_is_told_in_words(status, words):
    assert ended(status) == words


@pytest.fixture
def starter(program, tmp_path):
    """A process that starts a server and says the pids of the server and of its guard."""
    command, ready = program(SERVE)
    code = (
        "import pathlib, time\n"
        "from gpu_telemetry.local.process import ServerProcess, guard\n"
        f"server = ServerProcess('the server', {command!r}, log=pathlib.Path({str(tmp_path / 'log')!r}))\n"
        f"server.wait_ready(pathlib.Path({str(ready)!r}).exists, 10)\n"
        "print(server.pid, guard().pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        yield running
        running.kill()


def test_servers_end_when_the_process_that_started_them_is_killed(starter, wait_for):
    server, guard = map(int, starter.stdout.readline().split())
    starter.kill()
    wait_for(lambda: not is_running(server), 5, "the server has ended")
    wait_for(lambda: not is_running(guard), 5, "the guard has ended")


def test_servers_end_when_the_whole_process_group_of_who_started_them_is_killed(starter, wait_for):
    server, _ = map(int, starter.stdout.readline().split())
    os.killpg(starter.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(server), 5, "the server has ended")


def test_servers_end_when_the_process_that_started_them_ends_without_ending_them(starter, wait_for):
    server, _ = map(int, starter.stdout.readline().split())
    starter.send_signal(signal.SIGINT)  # a traceback, and the interpreter's orderly end
    wait_for(lambda: not is_running(server), 5, "the server has ended")


def test_the_guard_kills_what_does_not_end_politely_and_leaves_alone_what_has_ended(start, monkeypatch):
    monkeypatch.setattr(guard, "_GRACE_SECONDS", 0.2)
    stubborn, forgotten = start(IGNORE), start(SERVE)
    lines = [
        f"+ {stubborn.pid} {int(signal.SIGTERM)}",
        f"+ {forgotten.pid} {int(signal.SIGTERM)}",
        f"- {forgotten.pid}",
    ]
    guard.watch(io.StringIO("\n".join(lines) + "\n"))
    assert stubborn.stop(5)
    assert stubborn.exit_status() == -signal.SIGKILL
    assert forgotten.exit_status() is None
