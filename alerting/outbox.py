"""The outbox: decisions are claimed under a lease in a short transaction, carried out outside any, and recorded.

Claims of several workers never double: the row is locked while it is claimed. A lease that ran out leaves an action
of unknown outcome, which is asked for again only where the receiver honours the decision's key.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec
import psycopg
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from alerting.actions.action import Action, Done, Result, TryAgain
from alerting.actions.guard import CircuitBreaker
from alerting.actions.migration import WorkloadMigrator
from alerting.actions.notify import Notifier
from alerting.actions.verdict import NOTICE_RETRIED_FOR, Go, Skip, Verdict, Wait, on_notice, on_remediation
from alerting.metrics import Metrics
from alerting.queries import SQL
from alerting.retrying import delay_seconds, is_outage
from gpu_telemetry.clock import Clock

_log = logging.getLogger(__name__)

NOTIFY: Final = "notify"
MIGRATE: Final = "migrate_workload"
ANNOTATE: Final = "annotate"
_IDLE_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 5.0
_MOST_ATTEMPTS_TO_MIGRATE: Final = 5
_LONGEST_NOTICE_DELAY_SECONDS: Final = 300.0
_LONGEST_MIGRATION_DELAY_SECONDS: Final = 30.0
# A lease outlasts the receiver's time-out by what it takes to record the result.
_LEASE_MARGIN_SECONDS: Final = 30.0
_LONGEST_REASON: Final = 500
_CONNECTION_TIMEOUT_SECONDS: Final = 5.0

_Row = dict[str, Any]


class Annotator(Protocol):
    """Marks alerts where people look at graphs."""

    def annotate(self, action: Action) -> Result:
        """Mark one transition."""

    def close(self) -> None:
        """Let go of what it holds."""


class Outbox:
    """Carries decisions out. `step` does one thing; any number of threads and processes may call it at once."""

    def __init__(
        self,
        *,
        pool: ConnectionPool,
        notifier: Notifier,
        migrator: WorkloadMigrator,
        breaker: CircuitBreaker,
        worker_id: str,
        action_timeout_seconds: float,
        metrics: Metrics,
        clock: Clock,
        annotator: Annotator | None = None,
        leaves: Sequence[str] = (),
    ) -> None:
        """`leaves` are types of action that this one never claims."""
        self._pool = pool
        self._annotator = annotator
        self._leaves = list(leaves)
        self._notifier = notifier
        self._migrator = migrator
        self._breaker = breaker
        self._worker_id = worker_id
        self._lease_seconds = action_timeout_seconds + _LEASE_MARGIN_SECONDS
        self._metrics = metrics
        self._clock = clock

    def step(self) -> bool:
        """Claim the next action that is due, carry it out and record what became of it; False when none was due.

        Raises:
            psycopg.Error: the database cannot be used; nothing was carried out, or the lease tells what may have been.
        """
        with self._pool.connection(_CONNECTION_TIMEOUT_SECONDS) as connection:
            due, action = self._claim(connection)
        if action is None:
            return due
        self._metrics.action_attempts.labels(action.action_type).inc()
        try:
            result = self._carry_out(action)
        except Exception as error:  # noqa: BLE001 - whatever an action meets costs that action, not the outbox
            _log.exception("Action ID=%d: %s met an error that nobody foresaw", action.action_id, action.action_type)
            result = TryAgain(type(error).__name__, is_unknown=True)
        self._record(action, result)
        return True

    def expire_leases(self) -> None:
        """Mark actions whose worker vanished."""
        repeatable = [MIGRATE] if self._migrator.honours_keys else []
        if self._annotator is not None:
            # A later attempt looks for what an earlier one wrote.
            repeatable.append(ANNOTATE)
        with self._pool.connection(_CONNECTION_TIMEOUT_SECONDS) as connection:
            expired = connection.execute(
                SQL["expire_leases"], {"repeatable": repeatable, "most_attempts": _MOST_ATTEMPTS_TO_MIGRATE}
            ).fetchall()
        for action_id, action_type in expired:
            self._metrics.actions.labels(action_type, "unknown").inc()
            _log.warning("Action ID=%d: %s: lease expired, its outcome is unknown", action_id, action_type)

    def measure(self) -> None:
        """Update the gauge of what waits."""
        with self._pool.connection(_CONNECTION_TIMEOUT_SECONDS) as connection:
            waiting: dict[str, int] = dict(connection.execute(SQL["outbox_backlog"]).fetchall())
        for action_type in (NOTIFY, MIGRATE, ANNOTATE):
            self._metrics.backlog.labels(action_type).set(waiting.get(action_type, 0))

    def _claim(self, connection: Connection[Any]) -> tuple[bool, Action | None]:
        """Whether an action was due, and the action if it is now ours to carry out."""
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(SQL["claim_action"], {"left": self._leaves}).fetchone()
            if row is None:
                return False, None
            workloads: list[dict[str, Any]] = []
            if row["action_type"] == MIGRATE:
                verdict, workloads = self._judge_remediation(connection, row)
            else:
                verdict = self._judge_notice(connection, row)
            match verdict:
                case Skip(reason):
                    self._close(connection, row, reason)
                case Wait(reason):
                    connection.execute(
                        SQL["postpone_action"], {"id": row["id"], "seconds": _WAIT_SECONDS, "reason": reason}
                    )
                case Go():
                    connection.execute(
                        SQL["start_action"],
                        {"id": row["id"], "worker": self._worker_id, "lease_seconds": self._lease_seconds},
                    )
                    return True, _action(row, workloads)
        return True, None

    def _judge_notice(self, connection: Connection[Any], row: _Row) -> Verdict:
        newest = connection.execute(SQL["newest_gpu_record"], {"node_id": row["node_id"]}).fetchone()
        # A silence is a record of the node too, though no record by the node: it is new where the node is long gone.
        silence = connection.execute(SQL["told_silence"], {"alert_id": row["alert_id"]}).fetchone()
        told = (row["last_heard"], newest and newest[0], silence and silence[0])
        heard = [moment for moment in told if moment is not None]
        return on_notice(
            # Behind an earlier notice of the alert that was tried, its first claim could only come late.
            row["created_at"] if row["has_waited"] else row["now"],
            first_claim=row["attempts"] == 0,
            event_time=row["event_time"],
            fires=row["fires"],
            newest_record=max(heard, default=None),
        )

    def _judge_remediation(self, connection: Connection[Any], row: _Row) -> tuple[Verdict, list[dict[str, Any]]]:
        newest = connection.execute(SQL["newest_gpu_record"], {"node_id": row["node_id"]}).fetchone()
        rows = connection.execute(
            SQL["workloads_of_gpu"], {"node_id": row["node_id"], "gpu_uuid": row["gpu_uuid"]}
        ).fetchall()
        turn = rows[0][0] if rows else None
        verdict = on_remediation(
            row["now"],
            created_at=row["created_at"],
            fires=row["fires"],
            newest_gpu_record=None if newest is None else newest[0],
            interval_ms=row["interval_ms"],
            closed=bool(rows) and rows[0][2],
        )
        if isinstance(verdict, Go) and self._migrator.acts:
            refusal = self._breaker.refusal(connection, row["id"])
            if refusal is not None:
                verdict = Skip(refusal)
        # The instances of a GPU have a row each in one turn.
        return verdict, [workload for at, workloads, _ in rows if at == turn for workload in workloads]

    def _close(self, connection: Connection[Any], row: _Row, reason: str) -> None:
        """Carry it out no more: skipped, but where an earlier attempt may have done it nobody knows."""
        if row["is_unknown"]:
            status, reason = "unknown", f"not asked again: {reason}"
        else:
            status = "skipped"
        connection.execute(SQL["close_action"], {"id": row["id"], "status": status, "reason": reason})
        self._metrics.actions.labels(row["action_type"], status).inc()
        _log.info(
            "Action ID=%d for alert ID=%d: %s %s: %s", row["id"], row["alert_id"], row["action_type"], status, reason
        )

    def _carry_out(self, action: Action) -> Result:
        if action.action_type == MIGRATE:
            return self._migrator.migrate(action)
        if action.action_type == NOTIFY:
            return self._notifier.carry_out(action)
        if action.action_type == ANNOTATE:
            return Done("skipped", "no Grafana is set") if self._annotator is None else self._annotator.annotate(action)
        return Done("failed", f"this version knows no action {action.action_type}")

    def _record(self, action: Action, result: Result) -> None:
        """Record what became of an attempt, for as long as the lease holds; after it, nobody knows."""
        status, retry_seconds = self._ending(action, result)
        reason = result.reason
        if isinstance(result, Done) and status != result.status:
            reason = f"an earlier attempt may have done it; then {result.status}: {reason}"
        parameters = {
            "id": action.action_id,
            "worker": self._worker_id,
            "attempt": action.attempt,
            "status": status,
            "reason": None if reason is None else _storable(reason[:_LONGEST_REASON]),
            "retry_seconds": retry_seconds,
            "details": Jsonb(_storable(result.details)),
        }
        deadline = self._clock.monotonic() + _LEASE_MARGIN_SECONDS
        attempt = 0
        while True:
            try:
                with self._pool.connection(_CONNECTION_TIMEOUT_SECONDS) as connection:
                    recorded = connection.execute(SQL["finish_action"], parameters).rowcount
                break
            except psycopg.OperationalError as error:
                attempt += 1
                delay = delay_seconds(attempt, longest=5.0)
                if self._clock.monotonic() + delay > deadline:
                    _log.error("Action ID=%d: %s, but it could not be recorded: %s", action.action_id, status, error)
                    return
                threading.Event().wait(delay)
        outcome = status if retry_seconds is None else "retried"
        self._metrics.actions.labels(action.action_type, outcome).inc()
        _log.log(
            logging.INFO if status in {"succeeded", "skipped"} else logging.WARNING,
            "Action ID=%d for alert ID=%d: %s on %s %s%s",
            action.action_id,
            action.alert_id,
            action.action_type,
            action.where,
            status if recorded else f"{status}, after its lease had ended",
            f": {reason}" if reason else "",
        )

    def _ending(self, action: Action, result: Result) -> tuple[str, float | None]:
        """The status to record, and in how many seconds to try again, if so."""
        # What one attempt may have done, a later one that came to nothing has not undone.
        if isinstance(result, Done):
            return ("unknown" if action.is_unknown and result.status != "succeeded" else result.status), None
        if action.action_type == MIGRATE:
            is_unknown = result.is_unknown or action.is_unknown
            may_repeat = self._migrator.honours_keys or not is_unknown
            if may_repeat and action.attempt < _MOST_ATTEMPTS_TO_MIGRATE:
                delay = delay_seconds(action.attempt, first=1.0, longest=_LONGEST_MIGRATION_DELAY_SECONDS)
                return ("unknown" if is_unknown else "pending"), delay
            return ("unknown" if is_unknown else "failed"), None
        if self._clock.now() - action.created_at < NOTICE_RETRIED_FOR:
            return "pending", delay_seconds(action.attempt, first=1.0, longest=_LONGEST_NOTICE_DELAY_SECONDS)
        return "failed", None


class OutboxThreads:
    """Threads that step the outbox until told to stop; woken when a decision was committed by this process."""

    def __init__(
        self, outbox: Outbox, threads: int, stop: threading.Event, decided: threading.Event, metrics: Metrics
    ) -> None:
        self._outbox = outbox
        self._stop = stop
        self._decided = decided
        self._metrics = metrics
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"outbox-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the actions under way, so long in all; what takes longer is left to its lease."""
        for thread in self._threads:
            thread.join(seconds / len(self._threads))

    def _run(self, number: int) -> None:
        attempt = 0
        while not self._stop.is_set():
            try:
                if number == 0:
                    self._outbox.expire_leases()
                    self._outbox.measure()
                while not self._stop.is_set() and self._outbox.step():
                    pass
                attempt = 0
            except psycopg.Error as error:
                if self._stop.is_set():
                    return
                if not is_outage(error):
                    _log.exception("The outbox met an error of the database")
                attempt += 1
                delay = delay_seconds(attempt)
                self._metrics.database_errors.labels("outbox").inc()
                _log.warning("outbox: %s; trying again in %.1f s", str(error).strip(), delay)
                self._stop.wait(delay)
            except Exception:  # noqa: BLE001 - a thread that ended would carry nothing out and say nothing
                _log.exception("The outbox met an error that nobody foresaw; going on")
                self._stop.wait(_WAIT_SECONDS)
            self._decided.wait(_IDLE_SECONDS)
            self._decided.clear()


def _action(row: _Row, workloads: list[dict[str, Any]]) -> Action:
    return Action(
        action_id=row["id"],
        alert_id=row["alert_id"],
        action_type=row["action_type"],
        transition=row["transition"],
        key=row["key"],
        details=row["action_details"],
        attempt=row["attempts"] + 1,
        event_time=row["event_time"],
        created_at=row["created_at"],
        alert_type=row["alert_type"],
        node_id=row["node_id"],
        datacenter=row["datacenter"],
        hostname=row["hostname"],
        gpu_index=row["gpu_index"],
        gpu_uuid=row["gpu_uuid"],
        mig_instance=row["mig_instance"],
        triggered_at=row["triggered_at"],
        workloads=workloads,
        is_unknown=row["is_unknown"],
    )


def _storable(told: dict[str, Any] | str) -> Any:  # noqa: ANN401 - JSON
    """Details or a reason without NUL, which a receiver may answer and no column can hold."""
    if isinstance(told, str):
        return told.replace("\0", "\ufffd")
    return msgspec.json.decode(msgspec.json.encode(told).replace(b"\\u0000", b"\\ufffd"))
