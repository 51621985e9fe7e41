"""Partitions made ahead and dropped by retention, by one worker at a time; and the ledger's last whole hour looked at.

Dropping detaches first, concurrently: readers and writers of the table go on meanwhile. What a cut-short run leaves
behind (half detached, or detached and not dropped) is finished by the next.
"""

import logging
import threading
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import psycopg
from apscheduler.schedulers.background import BackgroundScheduler
from psycopg import Connection, sql

from alerting.days import PARTITIONED, first_kept_day, partition_day
from alerting.metrics import Metrics
from alerting.queries import SQL
from alerting.settings import AlertingSettings
from gpu_telemetry import database
from gpu_telemetry.clock import Clock
from gpu_telemetry.settings import DatabaseSettings

_log = logging.getLogger(__name__)

_STOP_SECONDS: Final = 5.0


class Housekeeping:
    """Keeps the daily partitions."""

    def __init__(
        self, database_settings: DatabaseSettings, settings: AlertingSettings, metrics: Metrics, clock: Clock
    ) -> None:
        self._database_settings = database_settings
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._scheduler = BackgroundScheduler(timezone=UTC)
        self._connection: Connection[Any] | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Keep house now, and then at every interval, in a thread of its own."""
        self._scheduler.add_job(
            self._run,
            "interval",
            minutes=self._settings.housekeeping_minutes,
            next_run_time=datetime.now(UTC),
            coalesce=True,
            max_instances=1,
            # Late is better than never: the default grace of one second drops runs on a busy machine.
            misfire_grace_time=None,
        )
        self._scheduler.start()

    def stop(self) -> None:
        """Begin no other run; one under way is cut short and finished by whoever comes next.

        Detaching waits for readers, for as long as they read, and the process for this thread.
        """
        self._stopping.set()
        self._scheduler.shutdown(wait=False)
        deadline = self._clock.monotonic() + _STOP_SECONDS
        # Again and again: what is cancelled between two statements goes on with the next.
        while not self._idle.wait(0.05) and self._clock.monotonic() < deadline:
            if (connection := self._connection) is not None:
                connection.cancel_safe(timeout=1.0)

    def _run(self) -> None:
        self._idle.clear()
        try:
            with database.connect(self._database_settings, "gpu-telemetry housekeeping", autocommit=True) as connection:
                self._connection = connection
                if not self._stopping.is_set():
                    self.keep(connection)
        except psycopg.Error as error:
            if self._stopping.is_set():
                _log.info("housekeeping: cut short")
                return
            self._metrics.database_errors.labels("housekeeping").inc()
            _log.warning("housekeeping: %s; trying again at the next run", str(error).strip())
        finally:
            self._connection = None
            self._idle.set()

    def keep(self, connection: Connection[Any]) -> bool:
        """Look at the ledger, and do all that is due; False when another worker is at it.

        Raises:
            psycopg.Error: the database refuses or is gone.
        """
        # Each worker for itself: one that another keeps house for would go on telling what it last counted.
        self._count_missing(connection)
        row = connection.execute(SQL["housekeeping_lock"]).fetchone()
        if row is None or not row[0]:
            return False
        today = self._clock.now().date()
        for parent in PARTITIONED:
            for ahead in range(self._settings.partitions_ahead_days + 1):
                self._ensure(connection, parent, today + timedelta(days=ahead))
        until = datetime.combine(today + timedelta(days=self._settings.partitions_ahead_days + 1), time(), UTC)
        self._metrics.partitions_until.set(until.timestamp())
        first = first_kept_day(self._clock, self._settings.retention_days)
        for parent in PARTITIONED:
            self._drop_before(connection, parent, first)
        return True

    def _count_missing(self, connection: Connection[Any]) -> None:
        hour = self._clock.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
        row = connection.execute(SQL["ledger_missing"], {"hour": hour}).fetchone()
        if row is not None:
            self._metrics.ledger_missing.set(row[0])
            if row[0]:
                _log.error("%d GPU records from %s on are missing from the ledger of that hour", row[0], hour)

    @staticmethod
    def _ensure(connection: Connection[Any], parent: str, day: date) -> None:
        row = connection.execute(SQL["ensure_partition"], {"parent": parent, "day": day}).fetchone()
        if row is not None and row[0]:
            _log.info("Made the partition of %s for %s", parent, day)

    @staticmethod
    def _drop_before(connection: Connection[Any], parent: str, first: date) -> None:
        attached = connection.execute(SQL["daily_partitions"], {"parent": parent}).fetchall()
        for name, is_half_detached in attached:
            day = partition_day(parent, name)
            if is_half_detached:
                how = sql.SQL("FINALIZE")
            elif day is not None and day < first:
                how = sql.SQL("CONCURRENTLY")
            else:
                continue
            connection.execute(
                sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(
                    sql.Identifier("public", parent), sql.Identifier("parts", name), how
                )
            )
        for (name,) in connection.execute(SQL["detached_partitions"]).fetchall():
            day = partition_day(parent, name)
            if day is not None and day < first:
                connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("parts", name)))
                _log.info("Dropped the partition of %s for %s: beyond retention", parent, day)
