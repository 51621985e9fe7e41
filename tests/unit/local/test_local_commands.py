"""`gpu-telemetry up` and `gpu-telemetry status` where there is nothing to run: what they say and how they exit."""

import json
import socket
import subprocess
import sys

import pytest


def gpu_telemetry(*arguments, **options):
    command = [sys.executable, "-P", "-m", "gpu_telemetry.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.fixture
def held(tmp_path):
    """A directory that another process holds, which says nothing of itself yet."""
    code = (
        "import pathlib, sys\n"
        "from gpu_telemetry.local.directory import DataDirectory\n"
        f"DataDirectory(pathlib.Path({str(tmp_path)!r})).hold()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield tmp_path, process.pid
        process.kill()


def test_up_on_a_held_directory_names_its_holder(held):
    directory, pid = held
    refused = gpu_telemetry("up", "--data", directory)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"gpu-telemetry up: {directory} is held by process {pid}")
    assert refused.stdout == ""


def test_up_names_a_port_in_use_and_leaves_the_directory_free(tmp_path):
    with socket.create_server(("127.0.0.1", 8080 + 23000)):
        refused = gpu_telemetry("up", "--data", tmp_path, "--port-offset", 23000, "--no-prometheus")
    assert refused.returncode == 1
    assert "port 31080, where the API would listen, is in use" in refused.stderr
    assert "--port-offset" in refused.stderr
    assert gpu_telemetry("status", "--data", tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kafka", "broker"), "expected HOST:PORT, got 'broker'"),
        (("--exit-after-story",), "--exit-after-story goes with --demo"),
        (("--interval", "0"), "--interval"),
        (("--targets", "no-such-file.yml"), "no-such-file.yml"),
        (("--database", "postgresql://u:p@h/d?no=such"), "expected a libpq URL"),
    ],
)
def test_up_refuses_flags_that_make_no_sense_and_says_why(tmp_path, flags, said):
    refused = gpu_telemetry("up", "--data", tmp_path / "data", *flags)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert not (tmp_path / "data").exists()


def test_up_says_which_offset_leaves_no_port(tmp_path):
    refused = gpu_telemetry("up", "--data", tmp_path, "--port-offset", 60000)
    assert refused.returncode == 1
    assert "offset 60000 moves the port of" in refused.stderr


def test_up_says_that_a_directory_cannot_be_written():
    refused = gpu_telemetry("up", "--data", "/proc/data")
    assert refused.returncode == 1
    assert "/proc/data cannot be used" in refused.stderr


def test_status_without_a_stack_says_so_and_exits_with_1(tmp_path):
    nothing = gpu_telemetry("status", "--json", "--data", tmp_path)
    assert nothing.returncode == 1
    assert "does not run: `gpu-telemetry up` starts one" in nothing.stderr


def test_status_of_a_stack_that_has_said_nothing_yet_says_that_it_starts(held):
    directory, _ = held
    starting = gpu_telemetry("status", "--data", directory)
    assert starting.returncode == 1
    assert "is only just starting" in starting.stderr


def test_status_of_a_stack_whose_services_do_not_answer_shows_what_is_known_and_exits_with_1(held):
    directory, pid = held
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    part = {"name": "API", "state": "restarting", "pid": None, "restarts": 4, "log": f"{directory}/logs/api.log"}
    state = {
        "pid": pid,
        "started_at": "2026-01-31T12:00:00.000Z",
        "data": str(directory),
        "demo": False,
        "urls": {"api": address, "bridge metrics": address, "alert engine metrics": address},
        "database": "postgresql://telemetry@127.0.0.1:5432/gpu_telemetry",
        "kafka": "127.0.0.1:9092",
        "parts": [part],
    }
    (directory / "state.json").write_text(json.dumps(state))
    told = gpu_telemetry("status", "--json", "--data", directory)
    assert told.returncode == 1, told.stderr
    answer = json.loads(told.stdout)
    assert answer["parts"][0]["restarts"] == 4
    assert set(answer["unanswered"]) == {"api", "bridge", "alert engine"}
    table = gpu_telemetry("status", "--data", directory)
    assert table.returncode == 1
    assert "the API does not answer: " in table.stdout
    assert "API restarting (4 restarts)" in table.stdout
    assert f"{directory}/logs/api.log" in table.stdout
