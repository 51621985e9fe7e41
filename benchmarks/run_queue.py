"""How long processes stood ready to run while others had the CPU, from the scheduler's own count.

On a busy machine a time by the clock tells of the neighbours as much as of the thing measured. Where one process works
at a time, as a client, a server and its database do for one request, the clock's time less the time waited for a CPU
is what a machine with a CPU to spare would show.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil


class Spent(NamedTuple):
    """Milliseconds on a CPU, and milliseconds ready to run without one."""

    running: float
    waiting: float

    def since(self, before: "Spent") -> "Spent":
        """What was spent between two readings."""
        return Spent(self.running - before.running, self.waiting - before.waiting)


class RunQueue:
    """The threads that some processes have when it is made; their counters are held open while the block lasts."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._files = ExitStack()
        self._counters: list[int] = []

    def __enter__(self) -> Self:
        for pid in self._pids:
            for thread in psutil.Process(pid).threads():
                descriptor = os.open(Path(f"/proc/{pid}/task/{thread.id}/schedstat"), os.O_RDONLY)
                self._files.callback(os.close, descriptor)
                self._counters.append(descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read(self) -> Spent:
        """What all of them have spent since they began; a thread that is gone has spent nothing."""
        running = waiting = 0
        for descriptor in self._counters:
            with suppress(ProcessLookupError):
                on_cpu, ready, _ = os.pread(descriptor, 64, 0).split()
                running += int(on_cpu)
                waiting += int(ready)
        return Spent(running / 1e6, waiting / 1e6)
