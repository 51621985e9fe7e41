"""The clock that everything is handed, so that a test needs no sleep and a replay needs no wall."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a service asks about time."""

    def now(self) -> datetime:
        """The wall clock: an aware UTC time."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never step back."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The machine's wall clock in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """The machine's monotonic clock in seconds."""
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to; wall time and monotonic time move together."""

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        """The time it was last moved to."""
        return self._now

    def monotonic(self) -> float:
        """Seconds by which it was advanced since it was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self._now = datetime.fromtimestamp(self._now.timestamp() + seconds, UTC)
        self._monotonic += seconds


def to_milliseconds(moment: datetime) -> int:
    """Milliseconds since the Unix epoch of an aware time, rounded to the nearest."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(milliseconds: int) -> datetime:
    """The UTC time that lies `milliseconds` after the Unix epoch, exact to the millisecond."""
    seconds, rest = divmod(milliseconds, 1000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)


def rfc3339(moment: datetime) -> str:
    """A time as the records and the API write it: UTC, milliseconds, `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
