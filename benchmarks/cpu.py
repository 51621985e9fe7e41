"""CPU seconds that a process and all it ever started have used, from the operating system."""

import contextlib

import psutil


def cpu_seconds(pid: int) -> float:
    """User and system CPU of a process, of its living descendants, and of those it has waited for, in seconds.

    A descendant that ends between two readings moves from the living to the waited-for and is counted once in each.
    """
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of one process, without its descendants."""
    return int(psutil.Process(pid).memory_info().rss)
