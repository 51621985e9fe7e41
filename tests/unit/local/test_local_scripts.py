"""What the set-up scripts say where they cannot go on."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).parents[3]
# What the scripts call; a PATH of these alone has no other Python.
_TOOLS = ("sh", "dirname", "date", "cat", "grep", "rm", "printf", "id", "sort", "tr")


@pytest.fixture
def run(tmp_path):
    """`run(script, *arguments, python=text)` in a copy of the scripts, with a `python3` of the given text if any."""
    shutil.copytree(_REPOSITORY / "scripts", tmp_path / "project" / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in _TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)

    def _run(script, *arguments, python=None, path=str(tools)):
        if python is not None:
            (tools / "python3").write_text(python)
            (tools / "python3").chmod(0o755)
        return subprocess.run(
            [tmp_path / "project" / "scripts" / script, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={"PATH": path, "HOME": str(tmp_path)},
        )

    return _run


def test_a_machine_without_python_is_told_which_one_is_needed(run):
    refused = run("venv.sh", "local")
    assert refused.returncode == 1
    assert "Python 3.11 or newer is needed" in refused.stderr
    assert "PYTHON=/path/to/python" in refused.stderr


def test_a_machine_with_an_old_python_is_told_which_one_it_has(run):
    old = '#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }\nexit 1\n'
    refused = run("venv.sh", "local", python=old)
    assert refused.returncode == 1
    assert "Python 3.11 or newer is needed, this machine has: Python 3.9.2" in refused.stderr


def test_a_python_without_venv_is_told_what_to_install(run):
    bare = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\nexit 0\n'
    refused = run("venv.sh", "local", python=bare)
    assert refused.returncode == 1
    assert "has no venv" in refused.stderr
    assert "python3-venv" in refused.stderr


def test_programs_that_the_tests_lack_are_named_where_apt_is_not_to_be_had(run):
    told = run("test-programs.sh")
    assert told.returncode == 0
    assert "chromium chromium-driver docker-compose prometheus" in told.stderr


@pytest.fixture
def data(tmp_path):
    (tmp_path / "project" / ".data").mkdir(parents=True)
    return tmp_path / "project" / ".data"


def test_clean_removes_the_data_of_a_stack_that_has_ended(data, run):
    (data / "lock").write_text("1\n")
    cleaned = run("clean.sh", ".data", path=os.environ["PATH"])
    assert cleaned.returncode == 0, cleaned.stderr
    assert not data.exists()


def test_clean_leaves_a_running_stack_alone(data, run):
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        refused = run("clean.sh", ".data", path=os.environ["PATH"])
    assert refused.returncode == 1
    assert "is held by process 4711" in refused.stderr
    assert data.exists()


def test_clean_leaves_alone_what_no_stack_has_made(data, run):
    (data / "letters.txt").write_text("mine\n")
    refused = run("clean.sh", ".data", path=os.environ["PATH"])
    assert refused.returncode == 1
    assert "was not made by" in refused.stderr
    assert data.exists()
