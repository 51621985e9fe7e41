"""The process's memory: what lives as long as its node is no garbage collector's business, what is free is given back.

What is known of the pages is freed without the collector, but each full collection would walk over all of it: at 1,000
nodes that stopped the loop for 50 ms (measured), and it grows with the fleet. And while a fleet is new, many pages wait
at once to be laid out: afterwards half of the process would be holes in the C library's heap.
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable
from typing import Final

# So little is new between two looks that a collection of it takes 2 ms.
_LOOK_SECONDS: Final = 0.1
# By how much what is known grows before it is settled anew.
_GROWTH: Final = 1.1
# A fleet is known when this long nothing much was new; free memory is given back then, and once in a while (5 ms).
_QUIET_SECONDS: Final = 5.0
_TRIM_SECONDS: Final = 30.0

# Of glibc alone; others give memory back by themselves, or not at all.
_malloc_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)


class Memory:
    """Keeps the memory of a bridge in order; `known` counts what it has learned of pages since the start."""

    def __init__(self, known: Callable[[], int], work_done: Callable[[], None]) -> None:
        self._known = known
        self._work_done = work_done
        self._settled = 0

    async def keep(self) -> None:
        """Look after it until cancelled; `work_done` is called after each piece of work."""
        loop = asyncio.get_running_loop()
        gc.freeze()  # the modules
        settled_at = trimmed_at = loop.time()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = loop.time()
            if self.settle():
                settled_at = now
            elif now - settled_at >= _QUIET_SECONDS and (trimmed_at <= settled_at or now - trimmed_at >= _TRIM_SECONDS):
                give_back()
                trimmed_at = now
            else:
                continue
            self._work_done()

    def settle(self) -> bool:
        """Take what is there out of the collector's sight, if there is markedly more of it than the last time."""
        known = self._known()
        if known <= _GROWTH * self._settled:
            return False
        gc.collect(1)
        gc.freeze()
        self._settled = known
        return True


def give_back() -> None:
    """Give free memory back to the system."""
    if _malloc_trim is not None:
        _malloc_trim(0)
