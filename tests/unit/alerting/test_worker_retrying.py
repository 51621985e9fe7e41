"""Which errors are worth another attempt, and how long to wait for it; what a transition says to people."""

from datetime import UTC, datetime

import psycopg
import pytest

from alerting.retrying import delay_seconds, is_conflict, is_data_error, is_outage
from alerting.transitions import AlertKey, Transition
from alerting.worker import told


def test_delays_double_up_to_their_bound_and_keep_in_its_upper_half():
    for attempt in range(1, 60):
        bound = min(30.0, 0.2 * 2 ** (attempt - 1))
        for _ in range(20):
            assert bound / 2 <= delay_seconds(attempt) <= bound


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.errors.DeadlockDetected, "conflict"),
        (psycopg.errors.SerializationFailure, "conflict"),
        (psycopg.errors.NumericValueOutOfRange, "data"),
        (psycopg.errors.CheckViolation, "data"),
        (psycopg.errors.UntranslatableCharacter, "data"),
        (psycopg.errors.ProgramLimitExceeded, "data"),
        (psycopg.DataError, "data"),  # as the client raises it, without an SQLSTATE
        (psycopg.OperationalError, "outage"),
        (psycopg.errors.AdminShutdown, "outage"),
        (psycopg.errors.DiskFull, "outage"),
        (psycopg.errors.ReadOnlySqlTransaction, "outage"),
        (psycopg.errors.UndefinedTable, "neither"),
        (psycopg.errors.InsufficientPrivilege, "neither"),
    ],
)
def test_errors_of_the_database_are_told_apart(error, kind):
    raised = error()
    if is_conflict(raised):
        found = "conflict"
    elif is_data_error(raised):
        found = "data"
    else:
        found = "outage" if is_outage(raised) else "neither"
    assert found == kind


@pytest.mark.parametrize(
    ("kind", "gpu_index", "line"),
    [
        ("fired", 3, "Created alert ID=1: [warning] high_temperature on node-1 GPU 3"),
        ("raised", 3, "Raised alert ID=1: [warning] high_temperature on node-1 GPU 3: hot"),
        ("resolved", 3, "Resolved alert ID=1: [warning] high_temperature on node-1 GPU 3: cleared"),
        ("noted", None, "Noted on alert ID=1: [warning] high_temperature on node-1: hot"),
    ],
)
def test_a_transition_is_one_line(kind, gpu_index, line):
    moment = datetime(2026, 3, 31, tzinfo=UTC)
    transition = Transition(
        key=AlertKey("high_temperature", "node-1"),
        kind=kind,
        at=moment,
        started_at=moment,
        severity="warning",
        message="hot",
        gpu_index=gpu_index,
        resolved_reason="cleared",
    )
    assert told(1, transition) == line
