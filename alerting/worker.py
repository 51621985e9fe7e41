"""The worker's cycle: place new partitions, take a batch, commit it, look for silence; and what it does when it cannot.

While the database is away the partitions are held and the consumer goes on being polled, so that the group keeps
this worker; a batch at hand is neither lost nor skipped.
"""

import logging
import threading
from itertools import islice
from typing import Any, Final

import msgspec
import psycopg
from confluent_kafka import KafkaException
from psycopg import Connection
from psycopg.types.json import set_json_dumps

from alerting.alert_rows import CommandWaiting
from alerting.batch import Batch, Slice, decode_batch
from alerting.consumer import LogEnds, RecordStream
from alerting.days import Days
from alerting.dead_letters import DeadLetterPublisher, NotDelivered
from alerting.engine import Engine
from alerting.metrics import Metrics
from alerting.node_state import LONG_AGO
from alerting.placing import place
from alerting.queries import SQL
from alerting.restore import restore_nodes
from alerting.retrying import delay_seconds, is_conflict, is_data_error, is_outage
from alerting.settings import AlertingSettings
from alerting.silence_publisher import MOST_A_ROUND, SilencePublisher
from alerting.transaction import BatchTransaction, Fenced, Outcome, owner_of
from alerting.transitions import Transition
from gpu_telemetry import database
from gpu_telemetry.clock import Clock
from gpu_telemetry.records import SCHEMA_VERSION, SilenceRecord
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings

_log = logging.getLogger(__name__)

APPLICATION: Final = "gpu-telemetry alert-engine"
_COMMAND_POLL_SECONDS: Final = 2.0
_TEND_SECONDS: Final = 0.5
_POLL_WHILE_WAITING_SECONDS: Final = 0.1
_DEFAULT_INTERVAL_MS: Final = 30_000
# A rule on a field that no record held for this long is worth a line in the log.
_UNSEEN_AFTER_SECONDS: Final = 600.0

# What psycopg's binary form raises for a value that the column's type cannot hold.
_CLIENT_DATA_ERRORS: Final = (OverflowError, UnicodeEncodeError)


class Worker:
    """Takes the records of its partitions in. Everything happens in the thread that calls `run`."""

    def __init__(
        self,
        *,
        kafka: KafkaSettings,
        database_settings: DatabaseSettings,
        settings: AlertingSettings,
        partitions: int,
        stream: RecordStream,
        ends: LogEnds,
        dead_letters: DeadLetterPublisher,
        silences: SilencePublisher,
        engine: Engine,
        days: Days,
        metrics: Metrics,
        clock: Clock,
        stop: threading.Event,
        decided: threading.Event,
    ) -> None:
        self._kafka = kafka
        self._database_settings = database_settings
        self._settings = settings
        self._partitions = partitions
        self._stream = stream
        self._ends = ends
        self._dead_letters = dead_letters
        self._silences = silences
        self._engine = engine
        self._days = days
        self._transaction = BatchTransaction(engine, days, kafka.topic, partitions)
        self._metrics = metrics
        self._clock = clock
        self._stop = stop
        self._decided = decided
        self._held: Connection[Any] | None = None
        self._problem: str | None = "not yet in the consumer group"
        self._began_at = clock.monotonic()
        self._commands_at = float("-inf")
        self._tended_at = float("-inf")
        self._placing_attempt = 0
        self._placing_after = float("-inf")
        self._told_unseen = False

    def problems(self) -> list[str]:
        """Why this worker takes nothing in, if so; to be asked from any thread."""
        problem = self._problem
        return [] if problem is None else [problem]

    def run(self) -> None:
        """Take records in until told to stop, then leave the group.

        Raises:
            ConsumerFailed: Kafka has given this worker's place to another.
            psycopg.Error: the database answers in a way that trying again does not mend.
        """
        self._stream.subscribe()
        _log.info("Alert engine started, consuming from Kafka")
        try:
            while not self._stop.is_set():
                self._cycle()
        finally:
            self._stream.close()
            self._disconnect()

    def _cycle(self) -> None:
        if self._stream.unplaced:
            self._place()
        taken = self._stream.take(self._settings.batch_records, self._settings.batch_milliseconds / 1000)
        now = self._clock.monotonic()
        if taken:
            self._take_in(decode_batch(taken), now)
        elif now - self._commands_at >= _COMMAND_POLL_SECONDS:
            self._take_in_commands(now)
        if now - self._tended_at >= _TEND_SECONDS:
            self._tend(now)

    @property
    def _connection(self) -> Connection[Any]:
        """The worker's own connection, opened when it is needed."""
        if self._held is None or self._held.closed:
            self._held = database.connect(self._database_settings, APPLICATION, autocommit=True)
            set_json_dumps(msgspec.json.encode, self._held)
        return self._held

    def _disconnect(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _place(self) -> None:
        """Lead new partitions to their offsets; what cannot be reached is tried again later, without blocking."""
        if self._clock.monotonic() < self._placing_after:
            return
        try:
            for gap in place(
                self._connection, self._stream, self._kafka.topic, self._stream.unplaced, self._partitions
            ):
                self._metrics.gaps.labels(gap.reason).inc()
        except (KafkaException, psycopg.Error) as error:
            if isinstance(error, psycopg.Error) and not (is_outage(error) or is_conflict(error)):
                raise
            self._placing_attempt += 1
            delay = delay_seconds(self._placing_attempt)
            self._placing_after = self._clock.monotonic() + delay
            self._trouble("placing", error, delay)
        else:
            self._placing_attempt = 0
            self._problem = None

    def _take_in_commands(self, now: float) -> None:
        """Apply what people asked for, though no record comes to do it with."""
        self._commands_at = now
        try:
            waiting = self._connection.execute(SQL["waiting_commands"]).fetchall()
        except psycopg.Error as error:
            if not is_outage(error):
                raise
            self._trouble("commands", error, _COMMAND_POLL_SECONDS)
            return
        self._problem = None
        placed = self._stream.placed
        if any(owner_of(node_id, placed, self._partitions) for _, _, _, _, node_id, *_ in waiting):
            self._take_in(Batch(), now)

    def _take_in(self, batch: Batch, now: float) -> None:
        """Commit the batch, however long that takes; nothing behind it is read before."""
        self._commands_at = now
        only_commands = not batch.slices
        records = len(batch)
        attempt = 0
        data_errors = 0
        while not self._stop.is_set():
            batch.keep(self._stream.partitions)
            if not batch.slices and not only_commands:
                break
            try:
                self._deliver(batch)
                outcome = self._transaction.apply(self._connection, batch, self._stream.placed)
            except Fenced as fenced:
                _log.warning("%s; reading its state anew", fenced)
                self._metrics.fenced.inc()
                self._stream.restart(self._stream.placed)
                break
            except CommandWaiting:
                self._metrics.retries.labels("command").inc()
            except _CLIENT_DATA_ERRORS as error:
                data_errors += 1
                self._refused(batch, error, data_errors)
            except psycopg.Error as error:
                if is_conflict(error):
                    attempt += 1
                    self._metrics.retries.labels("conflict").inc()
                    self._wait(delay_seconds(attempt, first=0.01, longest=1.0))
                elif is_data_error(error):
                    data_errors += 1
                    self._refused(batch, error, data_errors)
                elif is_outage(error):
                    attempt += 1
                    self._outage("batch", error, attempt)
                else:
                    raise
            except NotDelivered as error:
                attempt += 1
                self._outage("dead_letters", error, attempt)
            else:
                self._problem = None
                self._committed(batch, outcome, records, now)
                break
        self._stream.release()

    def _deliver(self, batch: Batch) -> None:
        letters = batch.dead[batch.delivered :]
        if letters:
            self._dead_letters.deliver(letters)
            batch.delivered = len(batch.dead)
            for letter in letters:
                self._metrics.dead_letters.labels(letter.reason).inc()

    def _refused(self, batch: Batch, error: Exception, times: int) -> None:
        """The database refuses a value of the batch: find the record, and set it apart."""
        self._metrics.retries.labels("data").inc()
        if times == 1:
            # A partition that retention dropped a moment ago looks like this too.
            self._days.forget()
            return
        culprit = self._find_refused(batch)
        if culprit is None:
            if not batch.slices:
                raise error
            return
        part, index = culprit
        batch.refuse(part, index, "refused_by_database", f"{type(error).__name__}: {error}")

    def _find_refused(self, batch: Batch) -> tuple[Slice, int] | None:
        """The first record without which the database takes all that stand before it; None when it takes all now."""
        places = [(part, index) for part in batch.slices for index in range(len(part.records))]
        taken, refused = 0, len(places)
        if self._takes(batch, refused):
            return None
        while refused - taken > 1:
            middle = (taken + refused) // 2
            if self._takes(batch, middle):
                taken = middle
            else:
                refused = middle
        return places[refused - 1]

    def _takes(self, batch: Batch, records: int) -> bool:
        """Whether the database takes so many of the batch's records; nothing is kept."""
        try:
            self._transaction.apply(self._connection, batch, self._stream.placed, trial_of=records)
        except _CLIENT_DATA_ERRORS:
            return False
        except psycopg.Error as error:
            if is_data_error(error):
                return False
            raise
        return True

    def _committed(self, batch: Batch, outcome: Outcome, records: int, taken_at: float) -> None:
        """Count and tell what a batch came to."""
        for part in batch.slices:
            watch = part.partition.watch
            for node_id in part.heard:
                state = part.partition.nodes[node_id].state
                if state.removed:
                    watch.removed(node_id)
                else:
                    watch.heard(node_id, taken_at, state.interval_ms or _DEFAULT_INTERVAL_MS)
        metrics = self._metrics
        metrics.stored.labels("gpu").inc(outcome.gpu_rows)
        metrics.stored.labels("scrape").inc(outcome.scrapes)
        metrics.duplicates.inc(outcome.duplicates)
        metrics.late.inc(outcome.late)
        metrics.beyond_retention.inc(outcome.beyond_retention)
        metrics.commands.inc(outcome.commands)
        if records:
            metrics.batch_records.observe(records)
            metrics.batch_seconds.observe(self._clock.monotonic() - taken_at)
        metrics.last_commit.set(self._clock.now().timestamp())
        for alert_id, transition in outcome.transitions:
            metrics.transitions.labels(transition.key.rule, transition.kind).inc()
            if alert_id is not None:
                _log.info("%s", told(alert_id, transition))
        if outcome.decisions:
            self._decided.set()
        self._stream.hint(self._clock.monotonic())

    def _tend(self, now: float) -> None:
        """What is due now and then: how far behind this worker is, who is silent, and the gauges."""
        self._tended_at = now
        placed = self._stream.placed
        answer = self._ends.poll([part.number for part in placed], now)
        if answer is not None:
            self._take_ends(*answer)
        self._tell_silence()
        self._silences.poll()
        metrics = self._metrics
        metrics.partitions.set(len(placed))
        metrics.nodes.set(sum(len(part.watch) for part in placed))
        seen_until = [part.watch.caught_up_until for part in placed]
        oldest = min((self._began_at if until is None else until for until in seen_until), default=now)
        metrics.lag_seconds.set(now - oldest)
        unseen = self._engine.unseen_fields()
        metrics.unseen_fields.clear()
        for rule, field in unseen.items():
            metrics.unseen_fields.labels(rule, field).set(1)
        if not self._told_unseen and now - self._began_at > _UNSEEN_AFTER_SECONDS:
            self._told_unseen = True
            for rule, field in unseen.items():
                _log.warning("rule %s cannot fire: no record has held %s yet", rule, field)

    def _take_ends(self, asked_at: float, ends: dict[int, int]) -> None:
        behind = 0
        for part in self._stream.placed:
            end = ends.get(part.number)
            if end is None or part.position is None:
                continue
            behind += max(0, end - part.position.next_offset)
            if part.position.next_offset >= end:
                part.watch.caught_up(asked_at)
        self._metrics.lag_records.set(behind)

    def _tell_silence(self) -> None:
        for part in self._stream.placed:
            quiet = dict(islice(part.watch.quiet(), MOST_A_ROUND))
            if not quiet:
                continue
            try:
                missing = [node_id for node_id in quiet if node_id not in part.nodes]
                nodes = restore_nodes(self._connection, self._engine, missing) if missing else {}
            except psycopg.Error as error:
                if not is_outage(error):
                    raise
                self._trouble("silence", error, _TEND_SECONDS)
                return
            for node_id, interval_ms in quiet.items():
                state = (part.nodes.get(node_id) or nodes[node_id]).state
                if state.removed or state.clock == LONG_AGO:
                    part.watch.removed(node_id)
                    continue
                record = SilenceRecord(
                    schema_version=SCHEMA_VERSION,
                    node_id=node_id,
                    last_collected_at=state.clock,
                    interval_ms=interval_ms,
                    detected_at=self._clock.now(),
                    worker_id=self._settings.worker_id,
                )
                self._silences.publish(record, part.watch)
                self._metrics.silences.inc()

    def _outage(self, part: str, error: Exception, attempt: int) -> None:
        """Wait for what is away, holding the partitions; the group keeps this worker."""
        self._stream.hold()
        delay = delay_seconds(attempt)
        self._trouble(part, error, delay)
        self._wait(delay)

    def _trouble(self, part: str, error: Exception, delay: float) -> None:
        """Note what is away; the next attempt opens a new connection."""
        text = str(error).strip() or type(error).__name__
        self._problem = text
        if isinstance(error, psycopg.Error):
            self._metrics.database_errors.labels(part).inc()
            self._disconnect()
        _log.warning("%s: %s; trying again in %.1f s", part, text, delay)

    def _wait(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        self._stream.hold()
        while not self._stop.is_set() and (left := until - self._clock.monotonic()) > 0:
            self._stream.take(1, min(left, _POLL_WHILE_WAITING_SECONDS))


def told(alert_id: int, transition: Transition) -> str:
    """A transition as one line for people."""
    key = transition.key
    where = key.node_id if transition.gpu_index is None else f"{key.node_id} GPU {transition.gpu_index}"
    what = f"ID={alert_id}: [{transition.severity}] {transition.alert_type} on {where}"
    match transition.kind:
        case "fired":
            return f"Created alert {what}"
        case "raised":
            return f"Raised alert {what}: {transition.message}"
        case "resolved":
            return f"Resolved alert {what}: {transition.resolved_reason}"
        case _:
            return f"Noted on alert {what}: {transition.message}"
