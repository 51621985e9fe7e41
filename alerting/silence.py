"""Which nodes are quiet: no record came for three of their intervals, while the worker stayed caught up.

Times are seconds of the worker's monotonic clock. "Caught up until t" means: every record that the broker had at t
has been taken in. So a node whose newest record was taken in at h has sent none that arrived between h and t.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

QUIET_INTERVALS: Final = 3
# A worker that was behind (or the broker away) for longer was not caught up; the wait begins anew. Longer than a batch
# and the probe of the log's end take, shorter than any outage that would hold up a node's records unseen.
TOLERATED_LAG_SECONDS: Final = 5.0


@dataclass(slots=True)
class _Watched:
    heard_at: float
    interval_ms: int
    told: bool = False


class NodeWatch:
    """The nodes of one partition."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Watched] = {}
        self._caught_up_since: float | None = None
        self.caught_up_until: float | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def expect(self, node_id: str, interval_ms: int) -> None:
        """Watch a node that was heard of at some time before this worker owned its partition."""
        self._nodes.setdefault(node_id, _Watched(float("-inf"), interval_ms))

    def heard(self, node_id: str, now: float, interval_ms: int) -> None:
        """A record of the node was taken in."""
        watched = self._nodes.get(node_id)
        if watched is None:
            self._nodes[node_id] = _Watched(now, interval_ms)
        else:
            watched.heard_at = now
            watched.interval_ms = interval_ms
            watched.told = False

    def removed(self, node_id: str) -> None:
        """The node left the configuration: nothing is expected of it."""
        self._nodes.pop(node_id, None)

    def caught_up(self, until: float) -> None:
        """All that the broker had at `until` has been taken in."""
        if self.caught_up_until is None or until - self.caught_up_until > TOLERATED_LAG_SECONDS:
            self._caught_up_since = until
        self.caught_up_until = until

    def quiet(self) -> Iterator[tuple[str, int]]:
        """The nodes that are quiet and not yet told, with their intervals in milliseconds."""
        if self.caught_up_until is None or self._caught_up_since is None:
            return
        for node_id, watched in self._nodes.items():
            waited = self.caught_up_until - max(watched.heard_at, self._caught_up_since)
            if not watched.told and waited * 1000 >= QUIET_INTERVALS * watched.interval_ms:
                yield node_id, watched.interval_ms

    def told(self, node_id: str, *, told: bool = True) -> None:
        """The node's silence was published (or, after all, was not); it is not said again until the node is heard."""
        if node_id in self._nodes:
            self._nodes[node_id].told = told
