"""What ends the servers when the process that started them is gone, however it went (kill -9 included).

The guard is a process of its own that reads its standard input: a line tells it of a process group that began or
ended. The input ends when the process that holds the other end of the pipe does, and the guard then ends what is
left. A pipe was chosen over PR_SET_PDEATHSIG because that signal comes when the starting *thread* ends, reaches
neither grandchildren nor a program that changed its user on the way, and has nothing to follow it for a child that
ignores it. The file imports the standard library alone, so that the guard runs isolated (`python -IS`) and is small.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final, TextIO

# After the polite signal; the supervisor itself allows more, but here nobody waits for an orderly end any more.
_GRACE_SECONDS: Final = 6.0


class Guard:
    """The running guard, as seen by the process whose servers it watches."""

    def __init__(self) -> None:
        # The guard is in a session of its own: a Ctrl-C or a hang-up of the terminal must not end it first.
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, this file
            [sys.executable, "-IS", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The guard's process id."""
        return self._process.pid

    def watch(self, group: int, polite: signal.Signals) -> None:
        """Have a process group ended with this process: by the signal `polite` first.

        Raises:
            ValueError: the guard is closed.
        """
        self._tell(f"+ {group} {int(polite)}")

    def forget(self, group: int) -> None:
        """Leave a process group alone from now on: it has ended."""
        with contextlib.suppress(ValueError):  # closed, and so at its end itself
            self._tell(f"- {group}")

    def close(self) -> None:
        """End the guard, and with it every group that it still watches."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # A guard that was killed cannot be told; the servers run on, and end in the orderly way.
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()


def watch(lines: TextIO) -> None:
    """Keep the account of process groups that `lines` gives, and end those left when there are no more lines."""
    groups: dict[int, int] = {}
    for line in lines:
        match line.split():
            case ["+", began, polite]:
                groups[int(began)] = int(polite)
            case ["-", over]:
                groups.pop(int(over), None)
    for group, number in reversed(groups.items()):
        _signal_group(group, number)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and any(_signal_group(group, 0) for group in groups):
        time.sleep(0.05)
    for group in groups:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Whether the group was still there to take the signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch(sys.stdin)
