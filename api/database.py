"""The API's way to PostgreSQL: a pool a process, read-only unless asked otherwise, its failures told as problems."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import psycopg
from psycopg import Connection, IsolationLevel
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from api.problems import Unavailable
from api.settings import ApiSettings
from gpu_telemetry.database import SchemaError, connection_options, verify
from gpu_telemetry.settings import DatabaseSettings

# After so long without success the pool forgets its back-off, so that the next request makes it try at once.
_RECONNECT_SECONDS: Final = 4.0
# The largest page, 10,000 rows of 500 bytes, is sorted in memory; PostgreSQL's default would send it through files.
_WORK_MEMORY: Final = "16MB"
# The server cancels what takes too long; this much later it is held to be silent, and the connection is given up.
_SILENCE_SECONDS: Final = 1.0

_log = logging.getLogger("api.database")
# When the time that the request of this thread has for the database ends, by time.monotonic().
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
Answer = TypeVar("Answer")


class Connections(NamedTuple):
    """A pool's connections: open or being opened, of these idle, and how many requests wait for one."""

    open: int
    idle: int
    waiting: int


class DatabaseSilentError(psycopg.OperationalError):
    """The server left a question without an answer until the request's time was over."""


class _ImpatientConnection(Connection[Any]):
    """A connection that waits for its server until the request's deadline, and is closed then.

    A server that is stopped, or behind a network that swallows all, breaks no connection and cancels no statement.
    """

    def wait(self, gen: PQGen[Answer], interval: float = 0.1, timeout: float | None = None) -> Answer:
        """As psycopg's, until the deadline.

        Raises:
            DatabaseSilentError: the deadline passed.
        """
        deadline = _deadline.get()
        if deadline is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(deadline - time.monotonic(), 0.0))
        except psycopg.OperationalError as error:
            # An answer, be it an error, would have ended the exchange; so does a connection that breaks.
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.close()
            raise DatabaseSilentError("no answer") from error


class _RawJson(Loader):
    """JSON as the database wrote it: it goes to the client unparsed."""

    def load(self, data: Buffer) -> msgspec.Raw:
        return msgspec.Raw(bytes(data))


def _pass_json_on(connection: Connection) -> None:
    connection.adapters.register_loader("jsonb", _RawJson)


class Database:
    """A pool of connections that opens at the first use, so that it belongs to the process that uses it.

    Connections come back by themselves after an outage. The schema is verified once, before the first answer.
    """

    def __init__(self, settings: ApiSettings, database: DatabaseSettings) -> None:
        options = connection_options(database, "gpu-telemetry api")
        timeout_ms = round(settings.statement_timeout_seconds * 1000)
        options["options"] += (
            f" -c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout={timeout_ms}"
            f" -c work_mem={_WORK_MEMORY}"
        )
        # Each statement is planned for its own parameters: a filter that is not given must cost nothing.
        options["prepare_threshold"] = None
        self._pool_timeout_seconds = settings.pool_timeout_seconds
        self._statement_timeout_seconds = settings.statement_timeout_seconds
        self._pool: ConnectionPool = ConnectionPool(
            database.url.get_secret_value(),
            connection_class=_ImpatientConnection,
            kwargs=options,
            min_size=settings.pool_min_size,
            max_size=settings.pool_max_size,
            timeout=settings.pool_timeout_seconds,
            reconnect_timeout=_RECONNECT_SECONDS,
            name="api",
            configure=_pass_json_on,
            open=False,
            check=ConnectionPool.check_connection,
        )
        self._opening = threading.Lock()
        self._opened = False
        self._verified = False

    def open(self) -> None:
        """Start the pool's threads and its first connections; a database that is away is no error here."""
        with self._opening:
            if not self._opened:
                self._pool.open(wait=False)
                self._opened = True

    def close(self) -> None:
        """Close all connections; a pool that is closed stays so."""
        self._pool.close()

    def connections(self) -> Connections:
        """How the pool of this process stands."""
        stats = self._pool.get_stats()
        return Connections(stats.get("pool_size", 0), stats.get("pool_available", 0), stats.get("requests_waiting", 0))

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction that sees one moment of the database.

        Raises:
            Unavailable: the database cannot be reached, has another schema, or takes too long.
        """
        with self._lent() as connection:
            self._verify_once(connection)
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that may write; it is committed at the end.

        Raises:
            Unavailable: as `reading`.
        """
        with self._lent(read_only=False, isolation=IsolationLevel.READ_COMMITTED) as connection:
            self._verify_once(connection)
            yield connection

    def check(self) -> None:
        """Ask the database whether it is there and has the schema of this program, every time anew.

        Raises:
            Unavailable: it is not, or has not.
        """
        with self._lent() as connection:
            verify(connection)

    def _verify_once(self, connection: Connection) -> None:
        if not self._verified:
            verify(connection)
            self._verified = True

    @contextmanager
    def _lent(
        self, *, read_only: bool = True, isolation: IsolationLevel = IsolationLevel.REPEATABLE_READ
    ) -> Iterator[Connection]:
        self.open()
        # The pool asks a connection whether it is alive before it lends it; then the request's own time begins.
        asked = _deadline.set(time.monotonic() + self._pool_timeout_seconds)
        try:
            with self._pool.connection() as connection:
                _deadline.set(time.monotonic() + self._statement_timeout_seconds + _SILENCE_SECONDS)
                connection.read_only = read_only
                connection.isolation_level = isolation
                yield connection
        except PoolTimeout as error:
            raise Unavailable("the database cannot be reached, or all connections to it are in use") from error
        except psycopg.errors.QueryCanceled as error:
            _log.warning("A query was cancelled: %s", error)
            raise Unavailable(
                f"the query took longer than {self._statement_timeout_seconds:g} s: ask for less, or again later"
            ) from error
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
            _log.warning("The database gave a transaction up: %s", error)
            raise Unavailable("others were changing the same rows", retry_after=1) from error
        except SchemaError as error:
            _log.warning("The schema cannot be used: %s", error)
            raise Unavailable(str(error)) from error
        except DatabaseSilentError as error:
            _log.warning("The database did not answer in time; the connection is given up")
            raise Unavailable(f"the database did not answer within {self._statement_timeout_seconds:g} s") from error
        except psycopg.OperationalError as error:
            _log.warning("The database failed: %s", error)
            raise Unavailable("the connection to the database failed") from error
        finally:
            _deadline.reset(asked)
