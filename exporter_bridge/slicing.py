"""Slow reading in slices of time: a page never seen before keeps nothing else waiting."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from exporter_bridge.layouts import Page

# How long what can wait, as the reading of new pages can, may keep the loop from what is due.
SLICE_SECONDS: Final = 0.004


class _Reading(NamedTuple):
    steps: Generator[None, None, Page]
    done: Callable[[Page], None]
    failed: Callable[[], None]


class SlicedReader:
    """Reads pages on the event loop, a slice at a time: known ones first, then new ones, each first come first served.

    Pages that come in one go are read in one go, after all of them have come: reading alone costs less than reading by
    turns with fetching. `slice_over` is called after each slice.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slice_over: Callable[[], None] = lambda: None) -> None:
        self._loop = loop
        self._slice_over = slice_over
        self._known: deque[_Reading] = deque()
        self._new: deque[_Reading] = deque()
        self._slice: asyncio.Handle | None = None

    def __len__(self) -> int:
        """Pages that are not read to their end."""
        return len(self._known) + len(self._new)

    def read(
        self,
        steps: Generator[None, None, Page],
        done: Callable[[Page], None],
        failed: Callable[[], None],
        *,
        new: bool = False,
    ) -> None:
        """Read a page, then call `done` with it, or `failed` from the error's handler.

        One that is said to be `new`, or turns out to be, waits for those before it and for all that are known.
        """
        (self._new if new else self._known).append(_Reading(steps, done, failed))
        if self._slice is None:
            self._slice = self._loop.call_soon(self._read_on)

    def stop(self) -> None:
        """Give up what is not read."""
        self._known.clear()
        self._new.clear()
        if self._slice is not None:
            self._slice.cancel()
            self._slice = None

    def _read_on(self) -> None:
        deadline = time.perf_counter() + SLICE_SECONDS
        while self._known and (now := time.perf_counter()) < deadline:
            reading = self._known.popleft()
            if not _go_on(reading, now + SLICE_SECONDS / 2):
                self._new.append(reading)
        # New ones go on in any case, if by less.
        deadline = max(deadline, time.perf_counter() + SLICE_SECONDS / 4)
        while self._new and time.perf_counter() < deadline:
            reading = self._new.popleft()
            if not _go_on(reading, deadline):
                self._new.appendleft(reading)
        self._slice = self._loop.call_soon(self._read_on) if self else None
        self._slice_over()


def _go_on(reading: _Reading, deadline: float) -> bool:
    """Go on until the page is read or the deadline is past; whether it is over."""
    try:
        while True:
            next(reading.steps)
            if time.perf_counter() >= deadline:
                return False
    except StopIteration as end:
        page: Page = end.value
    except Exception:  # noqa: BLE001 - an error of ours on one page costs that page; who waits for it tells of it
        reading.failed()
        return True
    reading.done(page)
    return True
