"""The worker's cycle: place new partitions, take a batch in, look out; in the one thread that calls `run`."""

import logging
import threading
from typing import Final

import psycopg
from confluent_kafka import KafkaException

from alerting.batch import Batch, decode_batch
from alerting.consumer import RecordStream
from alerting.intake import Intake
from alerting.log_watch import LogWatch
from alerting.lookout import Lookout
from alerting.metrics import Metrics
from alerting.placing import place
from alerting.queries import SQL
from alerting.retrying import delay_seconds, is_conflict, is_outage
from alerting.session import Session
from alerting.settings import AlertingSettings
from alerting.store import owner_of
from alerting.transitions import Transition
from gpu_telemetry.clock import Clock

_log = logging.getLogger(__name__)

_COMMAND_POLL_SECONDS: Final = 2.0
_DEFAULT_INTERVAL_MS: Final = 30_000


class Worker:
    """Takes the records of its partitions in."""

    def __init__(
        self,
        *,
        topic: str,
        partitions: int,
        settings: AlertingSettings,
        session: Session,
        stream: RecordStream,
        intake: Intake,
        lookout: Lookout,
        log_watch: LogWatch,
        metrics: Metrics,
        clock: Clock,
        stop: threading.Event,
        decided: threading.Event,
    ) -> None:
        self._topic = topic
        self._partitions = partitions
        self._most_records = settings.batch_records
        self._longest_seconds = settings.batch_milliseconds / 1000
        self._session = session
        self._stream = stream
        self._intake = intake
        self._lookout = lookout
        self._log_watch = log_watch
        self._metrics = metrics
        self._clock = clock
        self._stop = stop
        self._decided = decided
        self._commands_at = float("-inf")
        self._placing_attempt = 0
        self._placing_after = float("-inf")

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
            self._session.close()

    def _cycle(self) -> None:
        self._look_at_log()
        if self._stream.unplaced and self._clock.monotonic() >= self._placing_after:
            self._place()
        taken = self._stream.take(self._most_records, self._longest_seconds)
        now = self._clock.monotonic()
        if taken:
            batch = decode_batch(taken)
            self._take_in(batch, len(batch), now)
        elif now - self._commands_at >= _COMMAND_POLL_SECONDS and self._commands_wait(now):
            self._take_in(Batch(), 0, now)
        self._lookout.look(self._stream.placed, self._clock.monotonic())

    def _look_at_log(self) -> None:
        """Place the partitions anew whose offsets count in a log that is no more."""
        log = self._log_watch.poll(self._clock.monotonic())
        stale = [part for part in self._stream.placed if log and part.position and part.position.log != log]
        if stale:
            _log.error("%s is another log than before, made anew or on a rebuilt broker", self._topic)
            self._stream.restart(stale)

    def _place(self) -> None:
        """Lead new partitions to their offsets; what cannot be reached is tried again later, without blocking."""
        try:
            gaps = place(self._session.connection, self._stream, self._topic, self._stream.unplaced, self._partitions)
        except (KafkaException, psycopg.Error) as error:
            if isinstance(error, psycopg.Error) and not (is_outage(error) or is_conflict(error)):
                raise
            self._placing_attempt += 1
            delay = delay_seconds(self._placing_attempt)
            self._placing_after = self._clock.monotonic() + delay
            self._session.trouble("placing", error, delay)
            return
        for gap in gaps:
            self._metrics.gaps.labels(gap.reason).inc()
        self._placing_attempt = 0
        self._session.well()

    def _commands_wait(self, now: float) -> bool:
        """Whether people asked for something about nodes of these partitions, though no record comes."""
        self._commands_at = now
        try:
            waiting = self._session.connection.execute(SQL["waiting_commands"]).fetchall()
        except psycopg.Error as error:
            if not is_outage(error):
                raise
            self._session.trouble("commands", error, _COMMAND_POLL_SECONDS)
            return False
        placed = self._stream.placed
        return any(owner_of(node_id, placed, self._partitions) for _, _, _, _, node_id, *_ in waiting)

    def _take_in(self, batch: Batch, records: int, taken_at: float) -> None:
        outcome = self._intake.take_in(batch)
        self._commands_at = taken_at
        if outcome is None:
            return
        for part in batch.slices:
            watch = part.partition.watch
            for node_id in part.heard:
                state = part.partition.nodes[node_id].state
                if state.removed:
                    # Should it come back, the database has what was kept of it: names come and go for ever.
                    watch.removed(node_id)
                    del part.partition.nodes[node_id]
                else:
                    watch.heard(node_id, taken_at, state.interval_ms or _DEFAULT_INTERVAL_MS)
        self._metrics.count(outcome, records, self._clock.monotonic() - taken_at, self._clock.now())
        for alert_id, transition in outcome.transitions:
            if alert_id is not None:
                _log.info("%s", told(alert_id, transition))
        if outcome.decisions:
            self._decided.set()
        self._stream.hint(self._clock.monotonic())


def told(alert_id: int, transition: Transition) -> str:
    """A transition as one line for people."""
    key = transition.key
    where = key.node_id if transition.gpu_index is None else f"{key.node_id} GPU {transition.gpu_index}"
    what = f"alert ID={alert_id}: [{transition.severity}] {transition.alert_type} on {where}"
    match transition.kind:
        case "fired":
            return f"Created {what}"
        case "raised":
            return f"Raised {what}: {transition.message}"
        case "resolved":
            return f"Resolved {what}: {transition.resolved_reason}"
        case _:
            return f"Noted on {what}: {transition.message}"
