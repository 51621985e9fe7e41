"""How far behind this worker is, as the log's ends tell; measured also while a batch waits for the database."""

from typing import Final

from alerting.consumer import LogEnds, RecordStream
from alerting.metrics import Metrics
from gpu_telemetry.clock import Clock

_EVERY_SECONDS: Final = 0.5


class Lag:
    """Compares the positions of a worker's partitions with the ends of their logs, in the worker's thread.

    The seconds go on by the clock and are told when they are asked for, so that a worker which stands still, wherever
    that may be, looks like one. A partition counts from when it came, until it was read to its end for the first time.
    """

    def __init__(self, stream: RecordStream, ends: LogEnds, metrics: Metrics, clock: Clock) -> None:
        self._stream = stream
        self._ends = ends
        self._metrics = metrics
        self._clock = clock
        self._measured_at = float("-inf")
        # By partition: when the broker had no more than what is taken in. Replaced whole: another thread reads it.
        self._caught_up: dict[int, float] = {}
        metrics.lag_seconds.set_function(self.seconds)

    def seconds(self) -> float:
        """How long ago all that the broker then had was taken in, of the partition that is furthest behind."""
        now = self._clock.monotonic()
        return max(0.0, now - min(self._caught_up.values(), default=now))

    def measure(self) -> None:
        """Measure, if it is time to; partitions that are at their end are told so."""
        now = self._clock.monotonic()
        if now - self._measured_at < _EVERY_SECONDS:
            return
        self._measured_at = now
        owned = self._stream.partitions
        caught_up = {number: self._caught_up.get(number, now) for number in owned}
        answer = self._ends.poll([part.number for part in self._stream.placed], now)
        if answer is not None:
            asked_at, ends = answer
            behind = 0
            for number, part in owned.items():
                end = ends.get(number)
                if end is None or part.position is None:
                    continue
                behind += max(0, end - part.position.next_offset)
                if part.position.next_offset >= end:
                    caught_up[number] = asked_at
                    part.watch.caught_up(asked_at)
            self._metrics.lag_records.set(behind)
        self._caught_up = caught_up
        self._metrics.partitions.set(len(owned))
