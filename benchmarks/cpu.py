"""CPU seconds and memory of a process and all that it started, from the operating system."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import psutil


def cpu_seconds(pid: int) -> float:
    """User and system CPU of a process, of its living descendants, and of those they waited for, in seconds.

    A descendant that ends between two readings moves from the living to the waited-for and is counted once in each.
    """
    total = 0.0
    for process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of one process, without its descendants."""
    return int(psutil.Process(pid).memory_info().rss)


def family_bytes(pid: int) -> int:
    """Memory of a process and its living descendants that is in RAM; what several processes share is shared out."""
    total = 0
    for process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _family(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)


class Stopwatch:
    """CPU of named processes since it was made."""

    def __init__(self, parts: Mapping[str, int]) -> None:
        self._parts = dict(parts)
        self._before = {name: cpu_seconds(pid) for name, pid in self._parts.items()}

    def read(self) -> dict[str, float]:
        """CPU seconds by name."""
        return {name: cpu_seconds(pid) - self._before[name] for name, pid in self._parts.items()}


class Machine(NamedTuple):
    """How busy the whole machine was, for a reader who doubts a figure: jiffies of all CPUs since it started."""

    busy: float
    stolen: float
    total: float

    @classmethod
    def now(cls) -> "Machine":
        """The counters as they stand."""
        times = psutil.cpu_times()
        total = sum(times[:8])
        return cls(total - times.idle - times.iowait, times.steal, total)

    def since(self, before: "Machine") -> tuple[float, float]:
        """The busy and the stolen share, 0 to 1, between two readings."""
        total = max(self.total - before.total, 1e-9)
        return (self.busy - before.busy) / total, (self.stolen - before.stolen) / total
