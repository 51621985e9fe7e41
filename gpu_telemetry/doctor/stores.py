"""The checks of what is kept: the database's reach, schema, clock, partitions, records, ledger and actions; disks."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection

from gpu_telemetry import database
from gpu_telemetry.clock import Clock
from gpu_telemetry.doctor.finding import Finding, ok, unchecked, wrong
from gpu_telemetry.settings import DatabaseSettings

# Records further ahead than a minute are refused, and a node counts as silent after 3 intervals: seconds matter.
_LARGEST_SKEW: Final = timedelta(seconds=5)
_OVERDUE: Final = timedelta(minutes=5)
_LEAST_FREE_SHARE: Final = 0.05
_LEAST_FREE_BYTES: Final = 1024**3
_STATEMENT_TIMEOUT: Final = "30s"
_SHOWN: Final = 3


class _Check(NamedTuple):
    name: str
    look: Callable[[Connection[Any], Clock], Finding]


def database_findings(settings: DatabaseSettings, clock: Clock) -> Iterator[Finding]:
    """The findings about the database, one after another."""
    try:
        connection = database.connect(settings, "gpu-telemetry doctor", autocommit=True)
    except psycopg.Error as error:
        yield _not_reached(error)
        for name in ("schema", *(check.name for check in _CHECKS)):
            yield unchecked(name, "database")
        return
    with connection:
        connection.execute(f"SET statement_timeout = '{_STATEMENT_TIMEOUT}'".encode())
        info = connection.info
        yield ok("database", f"PostgreSQL {info.parameter_status('server_version')} at {info.host}:{info.port}")
        schema = _schema(connection)
        yield schema
        for check in _CHECKS:
            if schema.state != "ok" and check.name != "clock":
                yield unchecked(check.name, "schema")
                continue
            try:
                yield check.look(connection, clock)
            except psycopg.errors.QueryCanceled:
                yield wrong(
                    check.name, f"took longer than {_STATEMENT_TIMEOUT} to look at", "look at the database's load"
                )
            except psycopg.Error as error:
                yield wrong(check.name, f"cannot be looked at: {_line(error)}", "look at PostgreSQL's log")


def _not_reached(error: psycopg.Error) -> Finding:
    return wrong(
        "database",
        f"cannot be reached: {_line(error)}",
        "start PostgreSQL, or set DATABASE_URL to where it is (and PGPASSFILE to where its password is)",
    )


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _schema(connection: Connection[Any]) -> Finding:
    try:
        database.verify(connection)
    except database.SchemaError as error:
        said, _, advice = str(error).partition(": run ")
        return wrong("schema", said, f"run {advice}" if advice else "see which program upgraded this database")
    except psycopg.Error as error:
        return wrong("schema", f"cannot be looked at: {_line(error)}", "look at the rights of DATABASE_URL's user")
    return ok("schema", f"version {max(migration.version for migration in database.migrations())}, as it should be")


def _clock(connection: Connection[Any], clock: Clock) -> Finding:
    before = clock.now()
    (theirs,) = _row(connection, "SELECT clock_timestamp()")
    after = clock.now()
    skew = before + (after - before) / 2 - theirs
    said = f"this machine's is {abs(skew.total_seconds()):.1f} s {'ahead of' if skew > timedelta(0) else 'behind'}"
    if abs(skew) > _LARGEST_SKEW + (after - before) / 2:
        return wrong("clock", f"{said} the database's", "synchronise both clocks (NTP)")
    if connection.execute("SELECT to_regclass('public.nodes')").fetchone() == (None,):
        return ok("clock", "this machine and the database agree")
    ahead = connection.execute(
        "SELECT node_id FROM nodes WHERE last_heard > clock_timestamp() + %s ORDER BY last_heard DESC LIMIT %s",
        [_LARGEST_SKEW, _SHOWN],
    ).fetchall()
    if ahead:
        names = ", ".join(node_id for (node_id,) in ahead)
        return wrong("clock", f"records come from the future: {names}", "synchronise the bridge's clock (NTP)")
    return ok("clock", "this machine, the database and the records agree")


def _partitions(connection: Connection[Any], _clock: Clock) -> Finding:
    (today,) = _row(connection, "SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
    wanted = [
        f"{parent}_{day:%Y%m%d}" for parent in ("gpu_metrics", "scrapes") for day in (today, today + timedelta(days=1))
    ]
    missing = [name for name in wanted if _row(connection, "SELECT to_regclass(%s)", [f"parts.{name}"]) == (None,)]
    if missing:
        return wrong(
            "partitions",
            f"missing: {', '.join(missing)}",
            "see why the alert engine's housekeeping does not run (`housekeeping` in its log)",
        )
    return ok("partitions", "today's and tomorrow's are made")


def _records(connection: Connection[Any], _clock: Clock) -> Finding:
    nodes, heard, newest = _row(
        connection,
        "SELECT count(*), count(*) FILTER (WHERE last_heard > clock_timestamp() - interval_ms * interval '3 ms'),"
        " max(last_heard) FROM nodes WHERE removed_at IS NULL",
    )
    if not nodes:
        return wrong("records", "no node was ever heard of", "see `bridge` and `topics`; give the bridge targets")
    if not heard:
        return wrong(
            "records",
            f"none of {nodes} nodes was heard for 3 intervals, the newest at {_time(newest)}",
            "see `bridge`, `lag` and `alert engine`",
        )
    if heard < nodes:
        silent = connection.execute(
            "SELECT node_id FROM nodes WHERE removed_at IS NULL"
            " AND last_heard <= clock_timestamp() - interval_ms * interval '3 ms'"
            " ORDER BY last_heard, node_id LIMIT %s",
            [_SHOWN],
        ).fetchall()
        return wrong(
            "records",
            f"{nodes - heard} of {nodes} nodes were not heard for 3 intervals: {_names(silent, nodes - heard)}",
            "see whether a bridge scrapes them; `gpu-telemetry nodes remove ID` for those that are gone",
        )
    return ok("records", f"all {nodes} nodes are heard")


def _ledger(connection: Connection[Any], _clock: Clock) -> Finding:
    lines = connection.execute(
        "SELECT node_id, sum(announced + unannounced + estimated), sum(missing), sum(unaccounted_seconds) FROM ledger"
        " WHERE hour >= date_trunc('hour', now() - interval '1 hour', 'UTC') GROUP BY node_id ORDER BY 3 DESC, 1"
    ).fetchall()
    missing = sum(line[2] for line in lines)
    gaps, lost = _row(
        connection,
        "SELECT count(*), coalesce(sum(to_offset - from_offset), 0) FROM stream_gaps"
        " WHERE recorded_at > now() - interval '1 day' AND to_offset > from_offset",
    )
    if gaps:
        return wrong(
            "ledger",
            f"{lost} messages were gone before they could be read, in {gaps} places (table stream_gaps)",
            "let the topic keep more (KAFKA_RETENTION_HOURS and the size cap) or see why the alert engine fell behind",
        )
    if missing:
        bad = [line[:1] for line in lines if line[2]]
        return wrong(
            "ledger",
            f"{missing} of {sum(line[1] for line in lines)} GPU records are missing since the last full hour began, "
            f"of {_names(bad, len(bad))}",
            "see /api/v1/ledger?node=… for the hours; was the bridge killed, Kafka's log cut, or were rows deleted?",
        )
    return ok("ledger", f"balances: {sum(line[1] for line in lines)} GPU records since the last full hour began")


def _actions(connection: Connection[Any], _clock: Clock) -> Finding:
    overdue, unknown = _row(
        connection,
        "SELECT count(*) FILTER (WHERE status IN ('pending', 'running') AND isfinite(next_attempt_at)"
        " AND greatest(next_attempt_at, lease_until) < now() - %(overdue)s),"
        " count(*) FILTER (WHERE status = 'unknown' AND created_at > now() - interval '1 day') FROM alert_actions"
        " WHERE status IN ('pending', 'running', 'unknown')",
        {"overdue": _OVERDUE},
    )
    if overdue:
        return wrong(
            "actions", f"{overdue} are due for over 5 minutes and nobody carries them out", "see `alert engine`"
        )
    if unknown:
        return wrong(
            "actions",
            f"{unknown} of the last day are of unknown outcome",
            "see alert_actions, and at their receivers whether they were carried out",
        )
    return ok("actions", "none is overdue")


_CHECKS: Final = (
    _Check("clock", _clock),
    _Check("partitions", _partitions),
    _Check("records", _records),
    _Check("ledger", _ledger),
    _Check("actions", _actions),
)


def disk_finding(paths: Sequence[Path]) -> Finding:
    """Whether the disks under these paths have room; those of other machines cannot be seen from here."""
    if not paths:
        return ok("disk", "not looked at: no data lies on this machine (--disk PATH looks at one)")
    said = []
    for path in paths:
        try:
            usage = shutil.disk_usage(path)
        except OSError as error:
            return wrong("disk", f"{path}: {error.strerror}", "give --disk a path of this machine")
        free = f"{usage.free / 1024**3:.1f} GiB of {usage.total / 1024**3:.0f} free under {path}"
        if usage.free < max(_LEAST_FREE_BYTES, _LEAST_FREE_SHARE * usage.total):
            return wrong("disk", f"only {free}", "make room: lower ALERTING_RETENTION_DAYS or KAFKA_RETENTION_HOURS")
        said.append(free)
    return ok("disk", "; ".join(said))


def _row(connection: Connection[Any], statement: str, parameters: Any = None) -> tuple[Any, ...]:  # noqa: ANN401
    row = connection.execute(statement.encode(), parameters).fetchone()
    assert row is not None  # aggregates and functions have one row
    return tuple(row)


def _names(rows: Sequence[tuple[Any, ...]], count: int) -> str:
    shown = ", ".join(str(row[0]) for row in rows[:_SHOWN])
    return shown if count <= _SHOWN else f"{shown} and {count - _SHOWN} more"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
