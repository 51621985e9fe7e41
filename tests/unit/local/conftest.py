"""Small real programs that behave as a server may: serve, die, refuse to end, leave children behind."""

import sys

import pytest

_READY = "import pathlib, signal, subprocess, sys, time; ready = pathlib.Path(sys.argv[1]);"


@pytest.fixture
def program(tmp_path):
    """`program(code, name)`: the command of a Python program, and the file that it touches when it is ready.

    The code may use `ready`, `signal`, `subprocess`, `sys` and `time`.
    """

    def command(code: str, name: str = "ready"):
        ready = tmp_path / name
        return [sys.executable, "-c", _READY + code, str(ready)], ready

    return command
