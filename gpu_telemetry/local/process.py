"""A server as a child process: its own process group, its log in a file, watched by the guard, ended for certain."""

import atexit
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gpu_telemetry.local.guard import Guard

_POLL_SECONDS: Final = 0.05
_LOG_TAIL_BYTES: Final = 4000

_guard: Guard | None = None
_guard_lock = threading.Lock()


class StartFailed(RuntimeError):
    """A server did not come up: which one, why, and the end of its log."""


def guard() -> Guard:
    """The one guard of this process, started when first asked for."""
    global _guard  # noqa: PLW0603 - one guard a process is the point
    with _guard_lock:
        if _guard is None:
            _guard = Guard()
            atexit.register(_guard.close)
        return _guard


class ServerProcess:
    """A started server.

    `polite` is the signal that asks it to end; `stern`, if given, the one tried before SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        polite: signal.Signals = signal.SIGTERM,
        stern: signal.Signals | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._polite = polite
        self._stern = stern
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            # A session of its own makes it deaf to the terminal's Ctrl-C: who started it ends it, in order.
            self._process = subprocess.Popen(  # noqa: S603 - the commands of the stack's own parts
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                cwd=directory,
                start_new_session=True,
            )
        guard().watch(self._process.pid, polite)

    @property
    def pid(self) -> int:
        """Its process id, which is its process group too."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; else its exit status, negative for the signal that ended it."""
        status = self._process.poll()
        if status is not None:
            guard().forget(self.pid)
        return status

    def wait_ready(self, ready: Callable[[], bool], deadline_seconds: float) -> None:
        """Return when `ready` says so.

        Raises:
            StartFailed: it ended before, or the deadline passed.
        """
        deadline = time.monotonic() + deadline_seconds
        while not ready():
            status = self.exit_status()
            if status is not None:
                raise StartFailed(
                    f"{self.name} {ended(status)} while starting; its log {self.log} ends:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{self.name} was not ready within {deadline_seconds:g} s; its log {self.log} ends:\n{self.tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def tail(self) -> str:
        """The last lines of its log."""
        return log_tail(self.log)

    def ask_to_end(self) -> None:
        """Send the polite signal and return at once."""
        self._signal(self._polite)

    def stop(self, deadline_seconds: float) -> bool:
        """End it and everything in its process group; whether it ended by the polite signal alone.

        The polite signal has `deadline_seconds`; then come the stern one, with a second, and SIGKILL.
        """
        self.ask_to_end()
        if self._ended_within(deadline_seconds):
            orderly = True
        else:
            orderly = False
            if self._stern is not None:
                self._signal(self._stern)
                self._ended_within(1.0)
        # Always: a child of the server may have outlived it in the group.
        self._signal(signal.SIGKILL)
        self._process.wait()
        guard().forget(self.pid)
        return orderly

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        # Gone already, or a group of which only a zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def ended(status: int) -> str:
    """An exit status in words: `exited with 1`, `was ended by SIGKILL`."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def log_tail(log: Path) -> str:
    """The last lines of a log file; empty if there is none yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
