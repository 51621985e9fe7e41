"""A server as a child process: its own process group, its log in a file, watched by the guard, ended for certain."""

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from gpu_telemetry.local.guard import Guard

_POLL_SECONDS: Final = 0.05
_LOG_TAIL_BYTES: Final = 8000
_LOG_TAIL_LINES: Final = 12
_LOG_LIMIT_BYTES: Final = 16 * 1024**2

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
        trim_log(log)
        with log.open("ab") as output:
            self._log_start = output.tell()
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
        try:
            guard().watch(self._process.pid, polite)
        except ValueError:
            # This process is ending and has closed the guard: nothing may start any more.
            self.stop(0.0)
            raise StartFailed(f"{name} was not started: the stack is ending") from None

    @property
    def pid(self) -> int:
        """Its process id, which is its process group too."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; else its exit status, negative for the signal that ended it."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Looked at, not reaped: until `stop` has swept the process group, its number must not go to another.
        try:
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return self._process.wait()  # another thread has just swept and reaped it
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

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
        """The last lines that it wrote to its log since it was started."""
        with self.log.open("rb") as file:
            size = self.log.stat().st_size
            start = self._log_start if self._log_start <= size else 0  # it was trimmed meanwhile
            file.seek(max(start, size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def stop(self, deadline_seconds: float) -> bool:
        """End it and everything in its process group; whether it ended by the polite signal alone.

        The polite signal has `deadline_seconds`; then come the stern one, with a second, and SIGKILL.
        """
        if self._process.returncode is not None:
            return True
        self._signal(self._polite)
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

    def kill(self) -> None:
        """End it at once, in no orderly way; `stop` is still to be called."""
        self._signal(signal.SIGKILL)

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.exit_status() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _signal(self, number: signal.Signals) -> None:
        # Gone already, or a group of which only a zombie is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def trim_log(log: Path) -> None:
    """Begin a log that has grown long anew, beside a copy of it; whoever writes to it goes on writing."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
        shutil.copyfile(log, log.with_name(f"{log.name}.old"))
        os.truncate(log, 0)


def ended(status: int) -> str:
    """An exit status in words: `exited with 1`, `was ended by SIGKILL`."""
    if status >= 0:
        return f"exited with {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
