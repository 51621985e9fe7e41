"""The worker's connection to the database, and whether what the worker needs is there."""

import logging
from typing import Any, Final

import msgspec
import psycopg
from psycopg import Connection
from psycopg.types.json import set_json_dumps

from alerting.metrics import Metrics
from alerting.queries import SQL
from alerting.retrying import is_outage
from gpu_telemetry import database
from gpu_telemetry.settings import DatabaseSettings

_log = logging.getLogger(__name__)

APPLICATION: Final = "gpu-telemetry alert-engine"

# A worker that stands still in the middle of a transaction would hold up the one that took over: it is disconnected,
# by PostgreSQL where it waits for the next statement, by whom it holds up where it waits for the next row of a COPY.
# One that waits for such a lock goes on polling Kafka between its attempts, so that the group keeps it.
_LIMITS: Final = "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '30s'"
_STANDING_SECONDS: Final = 30.0


class Session:
    """One connection, opened when it is needed and given up after an error; and the last trouble, for /readyz."""

    def __init__(
        self, settings: DatabaseSettings, metrics: Metrics, *, standing_seconds: float = _STANDING_SECONDS
    ) -> None:
        self._settings = settings
        self._standing_seconds = standing_seconds
        self._metrics = metrics
        self._connection: Connection[Any] | None = None
        self._problem: str | None = "not yet in the consumer group"

    @property
    def connection(self) -> Connection[Any]:
        """The connection, in autocommit mode.

        Raises:
            psycopg.OperationalError: the database cannot be reached.
        """
        if self._connection is None or self._connection.closed:
            self._connection = database.connect(self._settings, APPLICATION, autocommit=True)
            set_json_dumps(msgspec.json.encode, self._connection)
            self._connection.execute(_LIMITS)
        return self._connection

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def problems(self) -> list[str]:
        """Why nothing is taken in, if so; to be asked from any thread."""
        problem = self._problem
        return [] if problem is None else [problem]

    def well(self) -> None:
        """Everything that was needed was there."""
        if self._problem is not None:
            self._problem = None
            _log.info("Kafka and the database are there")

    def trouble(self, part: str, error: Exception, delay_seconds: float) -> None:
        """Note what is away; the next attempt opens a new connection."""
        text = str(error).strip() or type(error).__name__
        self._problem = text
        if isinstance(error, psycopg.Error):
            self._metrics.database_errors.labels(part).inc()
            if isinstance(error, psycopg.errors.LockNotAvailable):
                self._end_standing_sessions()
            self.close()
        _log.warning("%s: %s; trying again in %.1f s", part, text, delay_seconds)

    def _end_standing_sessions(self) -> None:
        """Disconnect workers that have stood still in the middle of a COPY, which no time-out of PostgreSQL's ends."""
        try:
            standing = {"application": APPLICATION, "seconds": self._standing_seconds}
            ended = self.connection.execute(SQL["end_standing_sessions"], standing).fetchall()
        except psycopg.Error as error:
            if not is_outage(error):
                raise
            return  # the next attempt meets it too
        for pid, address in ended:
            _log.warning("Disconnected a worker that stood still in a transaction: session %d from %s", pid, address)
