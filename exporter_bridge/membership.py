"""Which nodes have left the fleet for good: absence from valid reads of the configuration, and mass vanishing held."""

import logging
from collections.abc import Iterable
from typing import Final, NamedTuple

from gpu_telemetry.clock import Clock

_log = logging.getLogger(__name__)

# A node that is absent from every valid read for this long is removed.
REMOVAL_SECONDS: Final = 600.0
# Held removals are let go, without a record, after this time: what is remembered stays bounded by the fleet.
HOLD_SECONDS: Final = 86_400.0
_NAMES_SHOWN: Final = 5


class Departures(NamedTuple):
    """Nodes that left: `removed` are to be published as such, `forgotten` only let go of."""

    removed: list[str]
    forgotten: list[str]


class Membership:
    """The nodes of the whole fleet, all shards, as valid reads of the configuration show them over time.

    When more than half of the nodes vanish together, a broken generator is likelier than an empty hall: their removal
    is held until they come back, and said once. `gpu-telemetry nodes remove` does it by hand.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._present: frozenset[str] = frozenset()
        self._absent_since: dict[str, float] = {}
        self._held: set[str] = set()

    @property
    def held(self) -> int:
        """Vanished nodes whose removal is held."""
        return len(self._held)

    def valid_read(self, nodes: Iterable[str]) -> Departures:
        """Take what a valid read of every source of targets showed; give the nodes that left for good."""
        now = self._clock.monotonic()
        present = frozenset(nodes)
        for node in self._absent_since.keys() & present:
            del self._absent_since[node]
        self._held -= present
        vanished = self._present - present
        if vanished:
            self._note(vanished, now)
        self._present = present
        removed = [node for node, since in self._absent_since.items() if self._is_over(node, now - since)]
        forgotten = [node for node in self._held if now - self._absent_since[node] >= HOLD_SECONDS]
        for node in (*removed, *forgotten):
            del self._absent_since[node]
            self._held.discard(node)
        if forgotten:
            _log.warning("let go of %d nodes whose removal was held for a day: %s", len(forgotten), _names(forgotten))
        return Departures(removed, forgotten)

    def _note(self, vanished: frozenset[str], now: float) -> None:
        pending = self._absent_since.keys() - self._held
        self._absent_since.update(dict.fromkeys(vanished, now))
        together = vanished | pending
        if 2 * len(together) > len(self._present) + len(pending):
            self._held |= together
            _log.error(
                "%d of %d nodes vanished together from the configuration; their removal is held until they come back: "
                "%s (`gpu-telemetry nodes remove` removes one by hand)",
                len(together),
                len(self._present) + len(pending),
                _names(together),
            )

    def _is_over(self, node: str, seconds: float) -> bool:
        return seconds >= REMOVAL_SECONDS and node not in self._held


def _names(nodes: Iterable[str]) -> str:
    shown = sorted(nodes)
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
