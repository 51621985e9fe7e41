"""When each node's turn is: once an interval at an offset of its own, on one timer for all nodes."""

from bisect import bisect_right
from collections.abc import Mapping


class Timetable:
    """Nodes by their offsets in the interval. Pure: it is told the time, in seconds on any steady scale.

    A turn that lies more than an interval back is lost, so after a standstill each node is due once, not many times.
    """

    def __init__(self, interval_seconds: float, now: float) -> None:
        self._interval = interval_seconds
        self._until = now
        self._offsets: list[float] = []
        self._nodes: list[str] = []

    def set(self, offsets: Mapping[str, float]) -> None:
        """Take these nodes, each with its offset in seconds from the interval's start, in place of the old ones."""
        ordered = sorted((offset, node) for node, offset in offsets.items())
        self._offsets = [offset for offset, _ in ordered]
        self._nodes = [node for _, node in ordered]

    def due(self, now: float) -> list[str]:
        """The nodes whose turn came since the last call, in order."""
        since = max(self._until, now - self._interval)
        if now <= since or not self._nodes:
            self._until = max(now, self._until)
            return []
        self._until = now
        first = bisect_right(self._offsets, since % self._interval)
        last = bisect_right(self._offsets, now % self._interval)
        if since // self._interval == now // self._interval:
            return self._nodes[first:last]
        return self._nodes[first:] + self._nodes[:last]

    def seconds_to_next(self, now: float) -> float:
        """How long until another node is due; an interval if there are no nodes."""
        if not self._nodes:
            return self._interval
        phase = self._until % self._interval
        index = bisect_right(self._offsets, phase)
        at = self._offsets[index] if index < len(self._offsets) else self._interval + self._offsets[0]
        return max(0.0, self._until + at - phase - now)
