"""The parts of a stack as the supervisor sees them: servers that are kept running, and tasks that run once."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from gpu_telemetry.local.ports import HOST
from gpu_telemetry.local.process import ServerProcess

_READY_DEADLINE_SECONDS: Final = 45.0
_TASK_DEADLINE_SECONDS: Final = 120.0

# Asked at each start: the database's password exists only once PostgreSQL was started.
Environment = Callable[[], Mapping[str, str]]


class Part(Protocol):
    """A server that is started, watched, started again, and stopped."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def log(self) -> Path:
        """The file of its log."""

    @property
    def pid(self) -> int | None:
        """Its process id while it is started."""

    def start(self) -> None:
        """Start it and return when it serves; StartFailed if it does not come up."""

    def exit_status(self) -> int | None:
        """None while it runs; else its exit status."""

    def stop(self, deadline_seconds: float) -> None:
        """End it: politely until the deadline, then for certain. Nothing happens if it does not run."""

    def kill(self) -> None:
        """End it at once, in no orderly way; `stop` is still to be called."""


class Service:
    """One of our own services, or any server that listens on a port of loopback."""

    def __init__(self, name: str, command: Sequence[str], port: int, *, log: Path, environment: Environment) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._port = port
        self._environment = environment
        self._process: ServerProcess | None = None

    @property
    def pid(self) -> int | None:
        """Its process id while it is started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and return when it listens on its port.

        Raises:
            StartFailed: it ended before, or took too long.
        """
        process = ServerProcess(self.name, self._command, log=self.log, environment=self._environment())
        self._process = process
        try:
            process.wait_ready(self._listens, _READY_DEADLINE_SECONDS)
        except BaseException:
            self.stop(1.0)
            raise

    def exit_status(self) -> int | None:
        """None while it runs; else its exit status."""
        return None if self._process is None else self._process.exit_status()

    def stop(self, deadline_seconds: float) -> None:
        """End it: by SIGTERM until the deadline, then by SIGKILL, with everything in its process group."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(deadline_seconds)

    def kill(self) -> None:
        """End it at once, in no orderly way; `stop` is still to be called."""
        process = self._process
        if process is not None:
            process.kill()

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self._port), timeout=1).close()
        except OSError:
            return False
        return True


class Task(ABC):
    """Something that is done once, before the parts that follow it start."""

    name: str

    @abstractmethod
    def run(self) -> None:
        """Do it; StartFailed if it does not succeed."""

    @abstractmethod
    def stop(self, deadline_seconds: float) -> None:
        """End what it started, if that still runs."""

    @abstractmethod
    def kill(self) -> None:
        """End what it started at once; `stop` is still to be called."""


class Command(Task):
    """A command that runs to its end."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environment: Environment) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = environment
        self._process: ServerProcess | None = None

    def run(self) -> None:
        """Run it to its end.

        Raises:
            StartFailed: it did not succeed, or took too long.
        """
        process = ServerProcess(self.name, self._command, log=self.log, environment=self._environment())
        self._process = process
        try:
            process.wait_ready(lambda: process.exit_status() == 0, _TASK_DEADLINE_SECONDS)
        finally:
            self.stop(1.0)

    def stop(self, deadline_seconds: float) -> None:
        """End it if it still runs."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(deadline_seconds)

    def kill(self) -> None:
        """End it at once if it still runs."""
        process = self._process
        if process is not None:
            process.kill()


class Download(Task):
    """A download into a cache, by a function of this process."""

    def __init__(self, name: str, fetch: Callable[[], object]) -> None:
        self.name = name
        self._fetch = fetch

    def run(self) -> None:
        """Download it; StartFailed if that fails."""
        self._fetch()

    def stop(self, deadline_seconds: float) -> None:
        """Nothing: it runs in a thread of this process, and what it has half done is thrown away next time."""

    def kill(self) -> None:
        """Nothing, for the same reason."""
