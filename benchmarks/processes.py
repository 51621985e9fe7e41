"""Child processes of a benchmark: started, waited for, ended, with ports of their own."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 20.0


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now; all are held until the last is found, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A child that is ended, in an orderly way if it can be, when the block is left; `log` takes what it prints."""
    with log.open("ab") as output:
        child = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(condition: Callable[[], bool], what: str, logs: Path, seconds: float = _START_SECONDS) -> None:
    """Wait until it is so; while something does not listen or a topic has no leader yet, it is not.

    Raises:
        TimeoutError: it does not come to be; the text says where the logs are.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, KafkaException):
            if condition():
                return
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come within {seconds:g} s; the logs are in {logs}")
