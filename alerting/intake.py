"""Commits one batch, however long that takes: what can be tried again is, and what the database refuses is set apart.

While the database or Kafka is away the partitions are held and the consumer goes on being polled, so that the group
keeps this worker; the batch at hand is neither lost nor skipped.
"""

import logging
import threading
from typing import Final

import psycopg

from alerting.alert_rows import CommandWaiting
from alerting.batch import Batch, Slice
from alerting.consumer import RecordStream
from alerting.days import Days
from alerting.dead_letters import DeadLetterPublisher, NotDelivered
from alerting.lag import Lag
from alerting.metrics import Metrics
from alerting.retrying import delay_seconds, is_conflict, is_data_error, is_outage
from alerting.rows import UNENCODABLE
from alerting.session import Session
from alerting.store import BatchTransaction, EngineFailed, Fenced, Outcome
from gpu_telemetry.clock import Clock

_log = logging.getLogger(__name__)

ENGINE_FAILED: Final = "engine_failed"
_POLL_WHILE_WAITING_SECONDS: Final = 0.1
# An error of ours on so many records of one batch is none that single records bring out.
_MOST_ENGINE_FAILURES: Final = 3


def _refuses_data(error: Exception) -> bool:
    return isinstance(error, UNENCODABLE) or (isinstance(error, psycopg.Error) and is_data_error(error))


class Intake:
    """Takes batches in, one after another, in the worker's thread."""

    def __init__(
        self,
        *,
        session: Session,
        stream: RecordStream,
        transaction: BatchTransaction,
        dead_letters: DeadLetterPublisher,
        days: Days,
        metrics: Metrics,
        clock: Clock,
        stop: threading.Event,
        lag: Lag,
    ) -> None:
        self._session = session
        self._stream = stream
        self._transaction = transaction
        self._dead_letters = dead_letters
        self._days = days
        self._metrics = metrics
        self._clock = clock
        self._stop = stop
        self._lag = lag

    def take_in(self, batch: Batch) -> Outcome | None:
        """Commit the batch (an empty one takes in commands alone) and give what it came to.

        None when it was not committed: told to stop, its partitions gave way, or another worker goes on with them.

        Raises:
            psycopg.Error: the database answers in a way that neither waiting nor setting a record apart mends.
            EngineFailed: the engine fails on record after record; nothing is lost where the worker ends for it.
        """
        is_for_commands = not batch.slices
        attempt = 0
        refusals = 0
        try:
            while not self._stop.is_set():
                batch.keep(self._stream.partitions)
                if not batch.slices and not is_for_commands:
                    return None
                try:
                    outcome = self._attempt(batch)
                except Fenced as fenced:
                    _log.warning("%s; reading its state anew", fenced)
                    self._metrics.fenced.inc()
                    self._stream.restart(self._stream.placed)
                    return None
                except EngineFailed as failure:
                    self._set_apart_for_engine(batch, failure)
                except (CommandWaiting, NotDelivered, psycopg.Error, *UNENCODABLE) as error:
                    attempt += 1
                    refusals += _refuses_data(error)
                    self._mend(batch, error, attempt, refusals)
                else:
                    self._session.well()
                    return outcome
            return None
        finally:
            self._stream.release()

    def _attempt(self, batch: Batch) -> Outcome:
        """Deliver the dead letters, then commit."""
        letters = batch.dead[batch.delivered :]
        if any(letter.reason == ENGINE_FAILED for letter in letters):
            # Should the engine fail on all, the worker ends again and again, and must not leave letters each time.
            self._transaction.apply(self._session.connection, batch, self._stream.placed, is_trial=True)
        if letters:
            self._dead_letters.deliver(letters)
            batch.delivered = len(batch.dead)
            for letter in letters:
                self._metrics.dead_letters.labels(letter.reason).inc()
        return self._transaction.apply(self._session.connection, batch, self._stream.placed)

    def _mend(self, batch: Batch, error: Exception, attempt: int, refusals: int) -> None:
        """Do what makes another attempt worth it: wait, or set a record apart."""
        if _refuses_data(error):
            self._metrics.retries.labels("data").inc()
            if refusals == 1:
                # A partition that retention dropped a moment ago looks like this too.
                self._days.forget()
            else:
                self._set_apart(batch, error)
        elif isinstance(error, CommandWaiting):
            self._metrics.retries.labels("command").inc()
        elif isinstance(error, psycopg.Error) and is_conflict(error):
            self._metrics.retries.labels("conflict").inc()
            self._wait(delay_seconds(attempt, first=0.01, longest=1.0))
        elif isinstance(error, NotDelivered) or (isinstance(error, psycopg.Error) and is_outage(error)):
            delay = delay_seconds(attempt)
            self._session.trouble("dead letters" if isinstance(error, NotDelivered) else "batch", error, delay)
            self._wait(delay)
        else:
            raise error

    def _wait(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        self._stream.hold()
        while not self._stop.is_set() and (left := until - self._clock.monotonic()) > 0:
            self._stream.take(1, min(left, _POLL_WHILE_WAITING_SECONDS))
            self._lag.measure()

    def _set_apart(self, batch: Batch, error: Exception) -> None:
        """Find the record that the database refuses and make it a dead letter."""
        try:
            culprit = self._find_refused(batch)
        except (
            Fenced,
            EngineFailed,
            CommandWaiting,
            psycopg.OperationalError,
            psycopg.InterfaceError,
        ) as interruption:
            _log.info("looking for the refused record was cut short: %s", interruption)
            return
        if culprit is None:
            return
        part, index = culprit
        batch.refuse(part, index, "refused_by_database", f"{type(error).__name__}: {error}")

    def _set_apart_for_engine(self, batch: Batch, failure: EngineFailed) -> None:
        """Make the record that brings out an error of ours a dead letter: it must not hold up its partition."""
        part, index = failure.part, failure.index
        if sum(letter.reason == ENGINE_FAILED for letter in batch.dead) >= _MOST_ENGINE_FAILURES:
            raise failure
        message = part.messages[index]
        where = f"{message.topic()} [{message.partition()}] offset {message.offset()}"
        _log.error("The engine failed on the record at %s", where, exc_info=failure)
        batch.refuse(part, index, ENGINE_FAILED, str(failure))

    def _find_refused(self, batch: Batch) -> tuple[Slice, int] | None:
        """The first record without which the database takes all that stand before it; None when it takes all now."""
        places = [
            (part, index) for part in batch.slices for index in range(len(part.messages)) if index not in part.refused
        ]
        taken, refused = 0, len(places)
        refusal = self._refusal(batch, places, refused)
        if refusal is None:
            return None
        if (refusal_of_none := self._refusal(batch, places, 0)) is not None:
            raise refusal_of_none  # no record's fault
        while refused - taken > 1:
            middle = (taken + refused) // 2
            if self._refusal(batch, places, middle) is None:
                taken = middle
            else:
                refused = middle
        return places[refused - 1]

    def _refusal(self, batch: Batch, places: list[tuple[Slice, int]], count: int) -> Exception | None:
        """Why the database refuses the first `count` of these records; None when it takes them. Nothing is kept."""
        trial = batch.first(places[:count])
        try:
            self._transaction.apply(self._session.connection, trial, self._stream.placed, is_trial=True)
        except (psycopg.Error, *UNENCODABLE) as error:
            if not _refuses_data(error):
                raise
            return error
        return None
