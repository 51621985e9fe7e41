"""Turns: each node scraped once an interval at its own offset, every turn closed by a record, on one event loop."""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from msgspec import structs

from exporter_bridge.blocks import Steps
from exporter_bridge.exposition import Exposition
from exporter_bridge.fetch import Answer, Fetcher
from exporter_bridge.layouts import Page
from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.node import Node
from exporter_bridge.publisher import Publisher
from exporter_bridge.records import Scrape, Turn
from exporter_bridge.settings import BridgeSettings
from exporter_bridge.slicing import SLICE_SECONDS, SlicedReader
from exporter_bridge.targets import Target, offset_of
from exporter_bridge.telling import NodeLog
from exporter_bridge.timetable import Timetable
from gpu_telemetry.clock import Clock, to_milliseconds

_log = logging.getLogger(__name__)

# A time-out of one interval ends a little before the next turn: else the two would race, for a time-out or an overrun.
# At an interval of a second a busy machine is 20 ms late at times.
_LONGEST_SHARE: Final = 0.95
# Several times what the largest node with MIG instances, links and cores prints. What is done to all lines of a page in
# one go takes some 10 ms at so many.
MOST_LINES: Final = 50_000
# What a turn that began late is given in any case.
_LEAST_SHARE: Final = 0.5
# The loop's timers are exact to a millisecond: without this one that fires early would be set again and again.
_TIMER_SECONDS: Final = 0.001
# Turns that come within this time, and this share of an interval, begin together: at 1,000 nodes a second, pages that
# are read in one go cost a fifth less than as many wakings (measured).
_TOGETHER_SECONDS: Final = 0.02
_TOGETHER_SHARE: Final = 0.05


class Scraper:
    """Scrapes the nodes it is given and hands each turn to the publisher.

    A node costs only itself: what fails, hangs or is new waits for nobody and nobody waits for it (but see
    docs/architecture.md for many names that hang in their lookup). Slow reading of new pages goes on in slices between
    what is due.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        *,
        fetcher: Fetcher,
        publisher: Publisher,
        metrics: BridgeMetrics,
        clock: Clock,
        max_in_flight: int,
    ) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._together_seconds = min(_TOGETHER_SECONDS, _TOGETHER_SHARE * settings.interval_seconds)
        self._interval_ms = round(settings.interval_seconds * 1000)
        self._loop = asyncio.get_running_loop()
        self.exposition = Exposition()
        self._nodes: dict[str, Node] = {}
        # Out of the configuration, not yet removed: should one come back, its sequence goes on.
        self._departed: dict[str, Node] = {}
        self._boot = secrets.token_hex(6)
        self._boot_id = self._boot
        self._removals = 0
        # Offsets lie on the wall clock's intervals, so that a restart keeps them; a later step of it changes nothing.
        self._to_wall = clock.now().timestamp() - time.monotonic()
        self._timetable = Timetable(settings.interval_seconds, self._now())
        self._timer: asyncio.TimerHandle | None = None
        self._due: deque[Node] = deque()
        self._beginning: asyncio.Handle | None = None
        self._in_flight = 0
        self._waiting: deque[Node] = deque()
        self._reader = SlicedReader(self._loop, metrics.loop_holds.mark)
        self._on_idle: Callable[[], None] | None = None
        self._node_log = NodeLog()

    # -- who is scraped -----------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes that are scraped now."""
        return self._nodes

    def is_fresh(self, node: Node) -> bool:
        """Whether the node's last turn was good and is not older than two intervals."""
        age = self._clock.monotonic() - node.page_at
        return node.page is not None and age <= 2 * self._settings.interval_seconds

    def apply(self, targets: Mapping[str, Target]) -> None:
        """Scrape these nodes from now on, and no others; `nodes` gives them by name."""
        for node_id in self._nodes.keys() - targets.keys():
            node = self._departed[node_id] = self._nodes.pop(node_id)
            node.page = None
        nodes = {}
        for node_id, target in sorted(targets.items(), key=lambda item: item[0]):
            known = self._nodes.get(node_id) or self._departed.pop(node_id, None)
            node = known or Node(target, self.exposition.parser(), self._boot_id, self._publisher.admit(node_id))
            node.target = target
            node.offset_seconds = offset_of(node_id, self._settings.interval_seconds)
            nodes[node_id] = node
        self._nodes = nodes
        self._timetable.set({node_id: node.offset_seconds for node_id, node in nodes.items()})
        if self._timer is not None:
            self._arm()

    def remove(self, node_ids: Iterable[str]) -> None:
        """Publish that these nodes left the configuration for good, and forget them."""
        for node_id in node_ids:
            node = self._departed.get(node_id)
            if node is None:
                continue  # another shard's
            turn = self._end_turn(node, reason=None, removed=True)
            self._publisher.publish(node.builder.failed(turn))
            self._metrics.removed_nodes.inc()
            _log.info("%s left the configuration and is removed", node_id)
            self.forget((node_id,))

    def forget(self, node_ids: Iterable[str]) -> None:
        """Forget nodes that left; should one come back it begins another sequence, under another boot_id."""
        for node_id in node_ids:
            if self._departed.pop(node_id, None) is not None:
                self._publisher.forget(node_id)
                self._removals += 1
                self._boot_id = f"{self._boot}-{self._removals}"

    # -- when -------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Scrapes under way."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Turns that have come and wait to begin, for a free connection, or for the reading of their page."""
        return len(self._due) + len(self._waiting) + len(self._reader)

    def start(self) -> None:
        """Let the turns come."""
        self._arm()

    def stop(self) -> None:
        """Begin no further turn, and give up those under way."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._beginning is not None:
            self._beginning.cancel()
            self._beginning = None
        self._due.clear()
        self._waiting.clear()
        self._reader.stop()

    async def scrape_all_once(self) -> int:
        """Give every node one turn at once; how many were good."""
        idle = asyncio.Event()
        self._on_idle = idle.set
        for node in self._nodes.values():
            node.due_at = self._now()
            self._begin(node)
        if self._nodes:
            await idle.wait()
        self._on_idle = None
        return sum(node.had_turn and node.reason is None for node in self._nodes.values())

    def _now(self) -> float:
        """The time in seconds since the epoch, but steady; the loop's own is as old as its iteration."""
        return time.monotonic() + self._to_wall

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        wait = self._timetable.seconds_to_next(self._now())
        self._timer = self._loop.call_later(max(wait + _TIMER_SECONDS, self._together_seconds), self._let_turns_come)

    def _let_turns_come(self) -> None:
        now = self._now()
        for node_id in self._timetable.due(now):
            node = self._nodes[node_id]
            node.due_at = now - (now - node.offset_seconds) % self._settings.interval_seconds
            self._due.append(node)
        if self._beginning is None:
            self._begin_due()
        self._arm()

    def _begin_due(self) -> None:
        """Begin the turns that have come; after a standstill they are many, so with a breath in between."""
        deadline = time.perf_counter() + SLICE_SECONDS
        while self._due and time.perf_counter() < deadline:
            node = self._due.popleft()
            if self._nodes.get(node.target.node_id) is node:
                self._begin(node)
        self._beginning = self._loop.call_soon(self._begin_due) if self._due else None
        self._metrics.loop_holds.mark()

    # -- a turn -----------------------------------------------------------------------------------------------------

    def _begin(self, node: Node) -> None:
        if node.busy:
            self._fail(node, "overrun", "the last scrape is still under way")
            return
        node.busy = True
        if self._in_flight < self._max_in_flight:
            self._fetch(node)
        else:
            self._waiting.append(node)

    def _fetch(self, node: Node) -> None:
        self._in_flight += 1
        now = self._now()
        self._metrics.turn_lateness.observe(now - node.due_at)
        target = node.target
        timeout = target.timeout_seconds or self._settings.scrape_timeout_seconds
        interval = self._settings.interval_seconds
        if timeout <= interval:
            left = node.due_at + interval * _LONGEST_SHARE - now
            timeout = min(timeout, max(left, interval * _LEAST_SHARE))
        self._fetcher.start(target.url, target.access, timeout, lambda answer: self._fetched(node, answer))

    def _fetched(self, node: Node, answer: Answer) -> None:
        self._in_flight -= 1
        if self._waiting:
            self._fetch(self._waiting.popleft())
        if answer.reason is not None:
            self._finish(node, answer.reason, answer)
            return
        self._metrics.scraped_bytes.inc(len(answer.body))
        # To count costs a third of reading a known page: done where a page is new, or much longer than the last.
        if len(answer.body) > max(MOST_LINES, 2 * node.parser.known_bytes) and (
            (lines := answer.body.count(b"\n")) > MOST_LINES
        ):
            detail = f"{lines:,} lines, and at most {MOST_LINES:,} are read"
            self._finish(node, "too_large", answer._replace(body=b"", detail=detail))
            return
        at_ms = to_milliseconds(self._clock.now())
        self._reader.read(
            _reading(node, answer.body),
            lambda page: self._take_page(node, answer, page, at_ms),
            lambda: self._internal_error(node, answer),
            new=node.page is None,
        )

    def _take_page(self, node: Node, answer: Answer, page: Page, at_ms: int) -> None:
        self._count_refused(node, page)
        if not page.samples:
            if page.refused:
                example = page.examples[0] if page.examples else ""
                self._finish(node, "unparseable", answer._replace(detail=f"no line was understood: {example}"))
            else:
                self._finish(node, "empty", answer._replace(detail="the page has no samples"))
            return
        turn = self._end_turn(node, reason=None, seconds=answer.seconds, at_ms=at_ms)
        try:
            scrape = node.builder.build(page, turn)
            page.compact()
        except Exception:  # noqa: BLE001 - an error of ours on one page costs that node, and is told with its traceback
            self._internal_error(node, answer, turn)
            return
        if node.target.node_id in self._nodes:
            node.page = page
            node.page_at = self._clock.monotonic()
        if node.reason is not None:
            self._node_log.recovered(node.target.node_id, node.reason)
            node.reason = None
        self._publisher.publish(scrape)
        self._count(scrape, page, answer)
        self._free(node)

    def _finish(self, node: Node, reason: str, answer: Answer) -> None:
        self._fail(node, reason, answer.detail, answer.seconds)
        self._free(node)

    def _free(self, node: Node) -> None:
        node.busy = False
        if self._on_idle is not None and not (self._in_flight or self._waiting or self._reader):
            self._loop.call_soon(self._on_idle)

    def _fail(self, node: Node, reason: str, detail: str, seconds: float | None = None) -> None:
        """Close a turn that brought no page."""
        self._close_failed(node, self._end_turn(node, reason=reason, seconds=seconds), detail)

    def _close_failed(self, node: Node, turn: Turn, detail: str) -> None:
        reason = turn.reason or "other"
        if node.reason is None:
            self._node_log.failed(turn.node_id, reason, detail)
        node.reason = reason
        node.page = None
        self._metrics.scrapes.inc()
        self._metrics.scrape_failures.add(1, reason)
        self._publisher.publish(node.builder.failed(turn))

    def _internal_error(self, node: Node, answer: Answer, turn: Turn | None = None) -> None:
        """A page on which we ourselves fail is a failed scrape of that node, and a traceback for us."""
        self._metrics.internal_errors.inc()
        if node.reason != "internal_error":
            _log.exception("%s: the bridge failed on its page", node.target.node_id)
        if turn is None:
            turn = self._end_turn(node, reason="internal_error", seconds=answer.seconds)
        else:
            turn = structs.replace(turn, up=False, reason="internal_error")
        self._close_failed(node, turn, "an error of the bridge itself")
        self._free(node)

    def _end_turn(
        self,
        node: Node,
        *,
        reason: str | None,
        seconds: float | None = None,
        at_ms: int | None = None,
        removed: bool = False,
    ) -> Turn:
        return node.end_turn(
            to_milliseconds(self._clock.now()) if at_ms is None else at_ms,
            bridge_id=self._settings.id,
            interval_ms=self._interval_ms,
            reason=reason,
            seconds=seconds,
            removed=removed,
        )

    # -- what is told -----------------------------------------------------------------------------------------------

    def _count(self, scrape: Scrape, page: Page, answer: Answer) -> None:
        metrics = self._metrics
        metrics.scrapes.inc()
        metrics.scrape_seconds.observe(answer.seconds)
        metrics.samples.inc(page.samples)
        metrics.gpu_records.inc(scrape.gpu_records)
        for (name, reason), amount in scrape.rejected.items():
            metrics.count_rejected(amount, name, reason)
        for entity, amount in scrape.not_recorded.items():
            metrics.not_recorded.add(amount, entity)

    def _count_refused(self, node: Node, page: Page) -> None:
        for reason, amount in page.refused.items():
            self._metrics.refused_lines.add(amount, reason)
        if page.refused and not node.refusing:
            self._node_log.refused(node.target.node_id, page.refused, page.examples)
        node.refusing = bool(page.refused)

    def sum_up(self) -> None:
        """Once an interval: say of how many nodes it was not said that they failed or came back."""
        self._node_log.sum_up(sum(node.reason is not None for node in self._nodes.values()))


def _reading(node: Node, body: bytes) -> Steps[Page]:
    """Read a node's page and make it ready for its records."""
    page = yield from node.parser.parse_steps(body)
    yield from node.builder.plan_steps(page, node.target.hostname, node.target.datacenter)
    return page
