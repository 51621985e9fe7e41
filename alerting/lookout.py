"""Looks out, now and then: which nodes are silent, which rules cannot fire."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

import psycopg

from alerting.engine import Engine
from alerting.lag import Lag
from alerting.metrics import Metrics
from alerting.node_state import LONG_AGO, NodeState
from alerting.partition import OwnedPartition
from alerting.restore import restore_nodes
from alerting.retrying import is_outage
from alerting.session import Session
from alerting.silence import QUIET_INTERVALS
from alerting.silence_publisher import MOST_A_ROUND, SilencePublisher
from gpu_telemetry.clock import Clock
from gpu_telemetry.records import SCHEMA_VERSION, SilenceRecord

_log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 0.5
# A rule on a field that no record held for this long is worth a line in the log.
_UNSEEN_AFTER_SECONDS: Final = 600.0


class Lookout:
    """The worker's view of its partitions as a whole."""

    def __init__(
        self,
        *,
        session: Session,
        lag: Lag,
        silences: SilencePublisher,
        engine: Engine,
        worker_id: str,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._session = session
        self._lag = lag
        self._silences = silences
        self._engine = engine
        self._worker_id = worker_id
        self._metrics = metrics
        self._clock = clock
        self._began_at = clock.monotonic()
        self._looked_at = float("-inf")
        self._unseen: dict[str, str] = {}
        self._has_told_unseen = False

    def look(self, placed: Sequence[OwnedPartition], now: float) -> None:
        """Look, if it is time to."""
        if now - self._looked_at < EVERY_SECONDS:
            return
        self._looked_at = now
        self._lag.measure()
        for part in placed:
            self._tell_silence(part, now)
        self._silences.poll()
        self._metrics.nodes.set(sum(len(part.watch) for part in placed))
        self._tell_unseen(now)

    def _tell_silence(self, part: OwnedPartition, now: float) -> None:
        quiet = dict(islice(part.watch.quiet(), MOST_A_ROUND))
        if not quiet:
            return
        missing = [node_id for node_id in quiet if node_id not in part.nodes]
        try:
            restored = restore_nodes(self._session.connection, self._engine, missing) if missing else {}
        except psycopg.Error as error:
            if not is_outage(error):
                raise
            self._session.trouble("silence", error, EVERY_SECONDS)
            return
        for node_id, interval_ms in quiet.items():
            state = (part.nodes.get(node_id) or restored[node_id]).state
            if state.removed or state.clock == LONG_AGO:
                part.watch.removed(node_id)
                continue
            if node_id in restored and self._is_heard_elsewhere(state, interval_ms):
                part.watch.heard(node_id, now, interval_ms)
                continue
            record = SilenceRecord(
                schema_version=SCHEMA_VERSION,
                node_id=node_id,
                last_collected_at=state.clock,
                interval_ms=interval_ms,
                detected_at=self._clock.now(),
                worker_id=self._worker_id,
            )
            self._silences.publish(record, part.watch)
            self._metrics.silences.inc()

    def _is_heard_elsewhere(self, state: NodeState, interval_ms: int) -> bool:
        """Whether a node that this partition never heard sends its records to another, by another's partitioner."""
        return self._clock.now() - state.clock < timedelta(milliseconds=QUIET_INTERVALS * interval_ms)

    def _tell_unseen(self, now: float) -> None:
        unseen = self._engine.unseen_fields()
        if unseen != self._unseen:
            for rule, field in (self._unseen | unseen).items():
                self._metrics.unseen_fields.labels(rule, field).set(int(rule in unseen))
            self._unseen = unseen
        if not self._has_told_unseen and now - self._began_at > _UNSEEN_AFTER_SECONDS:
            self._has_told_unseen = True
            for rule, field in unseen.items():
                _log.warning("rule %s cannot fire: no record has held %s yet", rule, field)
