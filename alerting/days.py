"""The days that have a partition, and those whose rows are kept. A day is a UTC day."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from psycopg import Connection

from alerting.queries import SQL
from gpu_telemetry.clock import Clock

PARTITIONED: Final = ("gpu_metrics", "scrapes")


def partition_day(parent: str, partition: str) -> date | None:
    """The day that a partition's name tells; None for another table's name."""
    prefix, _, digits = partition.rpartition("_")
    if prefix != parent or len(digits) != len("YYYYMMDD"):
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def first_kept_day(clock: Clock, retention_days: int) -> date:
    """The oldest day whose rows are kept."""
    return clock.now().date() - timedelta(days=retention_days)


class Days:
    """Which days can take rows, as far as is known; what lies before retention takes none."""

    def __init__(self, clock: Clock, retention_days: int) -> None:
        self._clock = clock
        self._retention_days = retention_days
        self._made: set[date] = set()
        self._kept_from = datetime.max.replace(tzinfo=UTC)

    def begin_batch(self) -> None:
        """Settle what counts as beyond retention while one batch is taken in."""
        first = first_kept_day(self._clock, self._retention_days)
        self._kept_from = datetime(first.year, first.month, first.day, tzinfo=UTC)

    def keeps(self, moment: datetime) -> bool:
        """Whether rows of that time are stored."""
        return moment >= self._kept_from

    def forget(self) -> None:
        """Look at the database anew before the next batch."""
        self._made.clear()

    def ensure(self, connection: Connection[Any], moments: Iterable[datetime]) -> None:
        """Make the partitions that these times need and that do not stand.

        Each in a transaction of its own, outside the batch's: making one takes a lock that batches of other workers
        may wait for.
        """
        days = {moment.astimezone(UTC).date() for moment in moments if self.keeps(moment)}
        for day in sorted(days - self._made):
            for parent in PARTITIONED:
                connection.execute(SQL["ensure_partition"], {"parent": parent, "day": day})
            self._made.add(day)
