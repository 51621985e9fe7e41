"""Who holds a data directory, and what the stack on it says of itself."""

import fcntl
import os
import subprocess
import sys

import pytest

from gpu_telemetry.local.directory import DataDirectory, DirectoryHeld, PartState, StackState

STATE = StackState(
    pid=1,
    started_at="2026-01-31T12:00:00.000Z",
    data="/data",
    demo=True,
    urls={"api": "http://127.0.0.1:8080"},
    database="postgresql://telemetry@127.0.0.1:5432/gpu_telemetry",
    kafka="127.0.0.1:9092",
    parts=[PartState(name="API", state="up", pid=2, restarts=0, log="/data/logs/api.log")],
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory."""
    code = (
        "import pathlib, sys\n"
        "from gpu_telemetry.local.directory import DataDirectory\n"
        f"DataDirectory(pathlib.Path({str(tmp_path)!r})).hold()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_stack_is_told_who_holds_the_directory(tmp_path, holder):
    with pytest.raises(DirectoryHeld, match=f"{tmp_path} is held by process {holder.pid}"):
        DataDirectory(tmp_path).hold()


def test_a_directory_is_free_once_its_holder_was_killed(tmp_path, holder):
    holder.kill()
    holder.wait()
    directory = DataDirectory(tmp_path)
    directory.hold()
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    directory.let_go()


def test_the_state_is_read_as_it_was_written_while_the_stack_runs(tmp_path, holder):
    directory = DataDirectory(tmp_path)
    assert directory.read_state() is None
    directory.write_state(STATE)
    assert directory.read_state() == STATE
    assert f"process {holder.pid}" in directory.held_by()


def test_what_a_killed_stack_said_of_itself_is_not_believed(tmp_path):
    directory = DataDirectory(tmp_path)
    directory.write_state(STATE)
    assert directory.read_state() is None
    assert directory.was_killed()


def test_a_stack_that_ended_leaves_no_state(tmp_path):
    directory = DataDirectory(tmp_path)
    directory.hold()
    directory.write_state(STATE)
    directory.let_go()
    assert not directory.was_killed()
    assert directory.held_by() is None


def test_who_only_asks_for_the_holder_keeps_nobody_from_holding(tmp_path, monkeypatch):
    directory = DataDirectory(tmp_path)
    directory.hold()
    directory.let_go()
    asking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda _seconds: os.close(asking))
    directory.hold()
    assert directory.held_by() is not None
    directory.let_go()


def test_a_directory_that_was_never_used_is_held_by_nobody(tmp_path):
    assert DataDirectory(tmp_path / "new").read_state() is None
