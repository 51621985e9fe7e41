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
    """Reads pages on the event loop: a known one at once, new ones a slice at a time, first come first served.

    `slice_over` is called after each of those slices.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slice_over: Callable[[], None] = lambda: None) -> None:
        self._loop = loop
        self._slice_over = slice_over
        self._waiting: deque[_Reading] = deque()
        self._slice: asyncio.Handle | None = None

    def __len__(self) -> int:
        """Pages that are not read to their end."""
        return len(self._waiting)

    def read(
        self,
        steps: Generator[None, None, Page],
        done: Callable[[Page], None],
        failed: Callable[[], None],
        *,
        new: bool = False,
    ) -> None:
        """Read a page, then call `done` with it, or `failed` from the error's handler.

        It is read at once if it is known or nearly; one that is said to be `new` waits for those before it.
        """
        reading = _Reading(steps, done, failed)
        if new or not _go_on(reading, time.perf_counter() + SLICE_SECONDS / 2):
            self._waiting.append(reading)
            if self._slice is None:
                self._slice = self._loop.call_soon(self._read_on)

    def stop(self) -> None:
        """Give up what is not read."""
        self._waiting.clear()
        if self._slice is not None:
            self._slice.cancel()
            self._slice = None

    def _read_on(self) -> None:
        deadline = time.perf_counter() + SLICE_SECONDS
        while self._waiting and time.perf_counter() < deadline:
            reading = self._waiting.popleft()
            if not _go_on(reading, deadline):
                self._waiting.appendleft(reading)
        self._slice = self._loop.call_soon(self._read_on) if self._waiting else None
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
