"""Waiting between attempts: longer each time, up to a bound, never in step with other workers."""

import random
from typing import Final

import psycopg

FIRST_DELAY_SECONDS: Final = 0.2
LONGEST_DELAY_SECONDS: Final = 30.0


def delay_seconds(attempt: int, *, first: float = FIRST_DELAY_SECONDS, longest: float = LONGEST_DELAY_SECONDS) -> float:
    """The wait before attempt number `attempt` (from 1): doubled each time, and anywhere in its upper half."""
    bound = min(longest, first * 2.0 ** min(attempt - 1, 32))
    return bound * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def is_conflict(error: psycopg.Error) -> bool:
    """Whether the transaction met another one and may simply be tried again (SQLSTATE class 40)."""
    return (error.sqlstate or "").startswith("40")


def is_data_error(error: psycopg.Error) -> bool:
    """Whether the database refuses a value: data exceptions, violated constraints, and keys over its limits."""
    # Found by the client before it was sent, it has no SQLSTATE.
    return isinstance(error, psycopg.DataError) or (error.sqlstate or "")[:2] in {"22", "23", "54"}


def is_outage(error: psycopg.Error) -> bool:
    """Whether the database is gone, full, read-only or shutting down: to be tried again, for as long as it takes."""
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError)
