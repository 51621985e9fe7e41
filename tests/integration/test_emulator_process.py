"""The emulator as a process: it says where it listens, serves, and ends promptly when told to."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

COMMAND = Path(sys.executable).with_name("gpu-telemetry")


def start(**environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMULATOR_")}
    return subprocess.Popen(
        [COMMAND, "emulator"], env=clean | environment, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


@pytest.fixture
def process():
    started = start(EMULATOR_LISTEN="127.0.0.1:0", EMULATOR_NODES="3")
    yield started
    started.kill()
    started.wait()
    started.stderr.close()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_serves_and_ends_within_3_seconds(process, told):
    line = process.stderr.readline()
    assert "Emulating 3 nodes with 8 GPUs each on http://127.0.0.1:" in line
    url = re.search(r"http://[\d.:]+", line)[0]
    assert httpx.get(f"{url}/nodes/node-3/metrics").text.count("\n") == 250
    httpx.post(f"{url}/control/faults", json={"kind": "hang", "node": "node-1"})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/nodes/node-1/metrics", timeout=0.2)
    with socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as waiting:
        waiting.sendall(b"GET /nodes/node-1/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert httpx.get(f"{url}/healthz").status_code == 200
        began = time.monotonic()
        process.send_signal(told)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3
    assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_is_one_line_and_exit_code_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start(EMULATOR_LISTEN=address)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith(f"Error: cannot listen on {address}: ")
    assert "in use" in said
    assert said.count("\n") == 1


def test_a_wrong_setting_is_one_line_and_exit_code_2():
    process = start(EMULATOR_DIALECT="9.9")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "EMULATOR_DIALECT" in said
    assert said.count("\n") == 1
