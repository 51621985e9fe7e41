"""`gpu-telemetry emulate` against a running emulator, and against none."""

import socket

import pytest
from click.testing import CliRunner

from emulator.faults import FaultKind
from gpu_telemetry.cli.emulate import command


@pytest.fixture
def emulate(serve):
    client = serve()

    def run(*words: str, url: str = str(client.base_url)):
        return CliRunner().invoke(command, list(words), env={"EMULATOR_URL": url})

    run.client = client
    return run


def test_a_fault_goes_in_is_listed_and_comes_out(emulate):
    words = ("fault", "overheat", "--node", "node-2", "--gpu", "5")
    assert emulate(*words).output == "overheat is active on node-2 GPU 5\n"
    assert emulate("faults").output == "overheat on node-2 GPU 5 since 2026-01-01T00:00:00.000Z celsius=97.6\n"
    assert emulate(*words, "--clear").output == "overheat is cleared on node-2 GPU 5\n"
    assert emulate(*words, "--clear").output == "overheat was not active on node-2 GPU 5\n"
    assert emulate("faults").output == "no fault is active\n"


def test_a_fault_of_a_node_needs_no_gpu(emulate):
    assert emulate("fault", "frozen", "--node", "node-1").output == "frozen is active on node-1\n"


def test_parameters_are_set(emulate):
    assert emulate("fault", "xid", "--node", "node-1", "--gpu", "0", "--set", "code=48").exit_code == 0
    assert emulate.client.get("/control/faults").json()[0]["parameters"] == {"code": 48, "count": 1}


@pytest.mark.parametrize("pair", ["code", "code=many", "code=nan", "code=-inf"])
def test_a_parameter_that_is_no_number_is_a_usage_error(emulate, pair):
    result = emulate("fault", "xid", "--node", "node-1", "--gpu", "0", "--set", pair)
    assert result.exit_code == 2
    assert f"expected NAME=NUMBER, got {pair!r}" in result.output


def test_a_proxy_in_the_environment_is_not_asked(emulate, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert emulate("faults").output == "no fault is active\n"


def test_a_job_is_moved(emulate):
    gpus = emulate.client.get("/control/state?node=node-1").json()["nodes"][0]["gpus"]
    busy = next(gpu for gpu in gpus if gpu["workload"])
    idle = next(gpu for gpu in gpus if not gpu["workload"])
    moved = emulate("migrate", "--node", "node-1", "--gpu", str(busy["gpu_index"]))
    assert moved.exit_code == 0
    assert f"{busy['workload']['pod']} moved from node-1 GPU {busy['gpu_index']} to node-1 GPU " in moved.output
    refused = emulate("migrate", "--node", "node-1", "--gpu", str(busy["gpu_index"]))
    assert (refused.exit_code, refused.output) == (1, f"Error: GPU {busy['gpu_index']} on node-1 runs no job\n")
    assert idle["gpu_index"] != busy["gpu_index"]


def test_what_the_emulator_refuses_is_said_in_one_line(emulate):
    result = emulate("fault", "xid", "--node", "node-9", "--gpu", "0")
    assert (result.exit_code, result.output) == (1, "Error: no node 'node-9'; accepted: node-1, node-2\n")
    result = emulate("fault", "xid", "--node", "node-1")
    assert result.exit_code == 1
    assert "expected its index (0 to 7)" in result.output


def test_an_unknown_kind_is_refused_with_those_that_are_known(emulate):
    result = emulate("fault", "meltdown", "--node", "node-1")
    assert result.exit_code == 2
    assert all(kind in result.output for kind in FaultKind)


def test_the_help_describes_every_kind(emulate):
    text = emulate("fault", "--help").output
    assert all(f"{kind} (" in text for kind in FaultKind)


def test_no_emulator_is_one_line_and_exit_code_1(emulate):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = emulate("faults", url=url)
    assert result.exit_code == 1
    assert result.output == f"Error: no emulator answers at {url} (is it running? see --url)\n"


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[::1"])
def test_an_unusable_url_is_one_line_and_exit_code_1(emulate, url):
    result = emulate("faults", url=url)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {url}")
    assert result.output.count("\n") == 1
