"""The circuit breaker: at most so many migrations in a window, over all workers together."""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from alerting.queries import SQL


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """A limit and its window in seconds."""

    most: int
    window_seconds: float

    def refusal(self, connection: Connection[Any], action_id: int) -> str | None:
        """Why this migration may not begin now; None when it may.

        To be called in the transaction that claims the action: until it ends, nobody else counts.
        """
        connection.execute(SQL["lock_breaker"])
        row = connection.execute(
            SQL["count_migrations"], {"window_seconds": self.window_seconds, "id": action_id}
        ).fetchone()
        assert row is not None
        if row[0] < self.most:
            return None
        return f"circuit_breaker: {row[0]} migrations in {self.window_seconds / 60:g} minutes, at most {self.most}"
