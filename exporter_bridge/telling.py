"""What is logged of single nodes: each failure when it begins and ends, but never a whole fleet's at once."""

import logging
from collections.abc import Mapping
from typing import Final

_log = logging.getLogger(__name__)

# Events of single nodes that are logged within an interval; beyond it they are only counted.
_LOGGED_AN_INTERVAL: Final = 20
_EXAMPLES_SHOWN: Final = 3


class NodeLog:
    """The log lines about single nodes, so many an interval."""

    def __init__(self) -> None:
        self._told = 0
        self._untold = 0

    def failed(self, node_id: str, reason: str, detail: str) -> None:
        """A node's scrapes begin to fail."""
        self._say(logging.WARNING, "%s: scrape failed: %s (%s)", node_id, reason, detail)

    def recovered(self, node_id: str, reason: str) -> None:
        """A node's scrapes are good again."""
        self._say(logging.INFO, "%s: scraped again, after %s", node_id, reason)

    def refused(self, node_id: str, refused: Mapping[str, int], examples: tuple[str, ...]) -> None:
        """A node's pages begin to have lines that are not understood."""
        counts = ", ".join(f"{amount} {reason}" for reason, amount in refused.items())
        shown = " | ".join(examples[:_EXAMPLES_SHOWN])
        self._say(logging.WARNING, "%s: lines not understood: %s; as in: %s", node_id, counts, shown)

    def sum_up(self, failing: int) -> None:
        """Once an interval: say how much was not said, and that so many nodes fail; then tell of nodes again."""
        if self._untold:
            _log.warning("%d more nodes failed or came back; %d fail now", self._untold, failing)
        self._told = self._untold = 0

    def _say(self, level: int, text: str, *values: object) -> None:
        if self._told < _LOGGED_AN_INTERVAL:
            self._told += 1
            _log.log(level, text, *values)
        else:
            self._untold += 1
