"""Rows of gpu_metrics and scrapes, in COPY's binary form and back as records."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from operator import attrgetter
from struct import Struct
from typing import Any, Final, NamedTuple

import msgspec
from psycopg import Connection, Copy, Cursor
from psycopg.copy import FileWriter
from psycopg.errors import UniqueViolation

from alerting.partition import Placement
from gpu_telemetry.fields import FIELDS
from gpu_telemetry.records import SCHEMA_VERSION, GpuRecord, ScrapeRecord

_POSTGRES_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_TEXT_OID: Final = 25
_TEXTS: Final = Struct("!iiIii")
_LENGTH: Final = Struct("!i")
_NO_TEXTS: Final = Struct("!iiI").pack(0, 0, _TEXT_OID)
# What psycopg's binary form raises for a value that the column's type cannot hold.
UNENCODABLE: Final = (OverflowError, UnicodeEncodeError)
_encode_json: Final = msgspec.json.Encoder().encode


class Table(NamedTuple):
    """A table that rows are copied into: its columns, and the types that their values are sent as.

    What is costly to send is given as it is on the wire: a timestamptz as an int8 of microseconds since 2000, which
    many rows share; a jsonb and a text[] as bytes.
    """

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def _columns(self) -> str:
        return ", ".join(self.columns)

    @property
    def copy(self) -> bytes:
        """The statement that copies into the table."""
        return f"COPY {self.name} ({self._columns}) FROM STDIN (FORMAT BINARY)".encode()

    @property
    def create_staging(self) -> bytes:
        """The statement that makes the temporary table beside it, empty in each transaction."""
        return (
            f"CREATE TEMPORARY TABLE IF NOT EXISTS staged_{self.name} (LIKE {self.name}) ON COMMIT DELETE ROWS"
        ).encode()

    @property
    def copy_staging(self) -> bytes:
        """The statement that copies into the temporary table."""
        return f"COPY staged_{self.name} ({self._columns}) FROM STDIN (FORMAT BINARY)".encode()

    @property
    def take_staged(self) -> bytes:
        """The statement that takes over what the table does not hold yet."""
        return (
            f"INSERT INTO {self.name} ({self._columns}) SELECT {self._columns} FROM staged_{self.name} "  # noqa: S608 - names of this module
            "ON CONFLICT DO NOTHING"
        ).encode()


def _column_type(name: str) -> str:
    hint = msgspec.inspect.type_info(GpuRecord.__annotations__[name])
    options = hint.types if isinstance(hint, msgspec.inspect.UnionType) else (hint,)
    for option in options:
        if isinstance(option, msgspec.inspect.IntType):
            return "int4" if option.le is not None and option.le < 2**31 else "int8"
    return "float8"


_MEASURED: Final = tuple(field.name for field in FIELDS)
GPU_METRICS: Final = Table(
    "gpu_metrics",
    ("placement_id", "node_id", "gpu_index", *_MEASURED, "workloads", "fields", "rejected", "collected_at"),
    ("int4", "text", "int4", *map(_column_type, _MEASURED), "bytea", "bytea", "bytea", "int8"),
)
SCRAPES: Final = Table(
    "scrapes",
    (
        "node_id",
        "bridge_id",
        "boot_id",
        "seq",
        "collected_at",
        "up",
        "reason",
        "gpu_records",
        "gpu_uuids",
        "duration_ms",
        "interval_ms",
        "changed_at",
        "drops",
        "trace",
        "removed",
    ),
    (
        "text",
        "text",
        "text",
        "int8",
        "int8",
        "bool",
        "text",
        "int4",
        "bytea",
        "float8",
        "int4",
        "int8",
        "bytea",
        "text",
        "bool",
    ),
)
EVENTS: Final = Table(
    "alert_events",
    (
        "alert_id",
        "rule",
        "alert_type",
        "node_id",
        "gpu_index",
        "gpu_uuid",
        "mig_instance",
        "transition",
        "severity",
        "message",
        "threshold_value",
        "actual_value",
        "reason",
        "actor",
        "details",
        "started_at",
        "at",
    ),
    (
        "int8",
        "text",
        "text",
        "text",
        "int4",
        "text",
        "text",
        "text",
        "text",
        "text",
        "float8",
        "float8",
        "text",
        "text",
        "jsonb",
        "int8",
        "int8",
    ),
)

measured_values = attrgetter(*_MEASURED)


def wire_time(moment: datetime) -> int:
    """A time as PostgreSQL sends it: microseconds since 2000."""
    return (moment - _POSTGRES_EPOCH) // _MICROSECOND


def wire_json(value: object) -> bytes:
    """A value as PostgreSQL takes a jsonb: the version of the format, then the text."""
    return b"\x01" + _encode_json(value)


def wire_texts(values: Sequence[str]) -> bytes:
    """A list as PostgreSQL takes a text[]: dimensions, nulls, the elements' type; length and first index; elements."""
    if not values:
        return _NO_TEXTS
    texts = [value.encode() for value in values]
    parts = [_TEXTS.pack(1, 0, _TEXT_OID, len(texts), 1)]
    for text in texts:
        parts += (_LENGTH.pack(len(text)), text)
    return b"".join(parts)


def gpu_row(placement: Placement, record: GpuRecord, collected_at: int) -> tuple[Any, ...]:
    """The row of a GPU record; `collected_at` is its time on the wire."""
    return (
        placement.placement_id,
        record.node_id,
        record.gpu_index,
        *measured_values(record),
        wire_json(record.workloads) if record.workloads else None,
        wire_json(record.fields) if record.fields else None,
        wire_json(record.rejected) if record.rejected else None,
        collected_at,
    )


def scrape_row(record: ScrapeRecord, collected_at: int) -> tuple[Any, ...]:
    """The row of a closing record; `collected_at` is its time on the wire."""
    return (
        record.node_id,
        record.bridge_id,
        record.boot_id,
        record.seq,
        collected_at,
        record.up,
        record.reason,
        record.gpu_records,
        wire_texts(record.gpu_uuids),
        record.duration_ms,
        record.interval_ms,
        None if record.changed_at is None else wire_time(record.changed_at),
        wire_json(record.drops) if record.drops else None,
        record.trace,
        record.removed,
    )


def copy_rows(cursor: Cursor[Any], table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Copy rows into the table."""
    with cursor.copy(table.copy) as copy:
        copy.set_types(table.types)
        write_row = copy.write_row
        for row in rows:
            write_row(row)


class EncodedRows:
    """Rows of a table in COPY's binary form; each is encoded when it is added, and what it was made of let go."""

    def __init__(self, connection: Connection[Any], table: Table) -> None:
        self._table = table
        self._data = BytesIO()
        self._copy = Copy(connection.cursor(), binary=True, writer=FileWriter(self._data))
        self._copy.set_types(table.types)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, row: Sequence[Any]) -> None:
        """Encode a row.

        Raises:
            psycopg.DataError: a value is not one of its column's.
        """
        self._copy.write_row(row)
        self._count += 1

    def store(self, cursor: Cursor[Any]) -> int:
        """Store the rows, of which the table may hold some already; give how many it held. No row can follow.

        Only a topic that is read again can bring such rows, so they are looked for after a first one was met, at twice
        the cost.
        """
        if not self._count:
            return 0
        self._copy.finish(None)
        table = self._table
        try:
            with cursor.connection.transaction(), cursor.copy(table.copy) as copy:
                copy.write(self._data.getbuffer())
        except UniqueViolation:
            cursor.execute(table.create_staging)
            with cursor.copy(table.copy_staging) as copy:
                copy.write(self._data.getbuffer())
            cursor.execute(table.take_staged)
            return self._count - cursor.rowcount
        return 0


def gpu_record_of(row: Mapping[str, Any]) -> GpuRecord:
    """The record of a stored row, as the engine is given it; what the row does not tell stands as `stored`."""
    values = {name: value for name, value in row.items() if value is not None and name in _RECORD_FIELDS}
    values |= {"schema_version": SCHEMA_VERSION, "bridge_id": "stored", "boot_id": "stored", "seq": 1, "kind": "gpu"}
    return msgspec.convert(values, GpuRecord)


def scrape_record_of(row: Mapping[str, Any]) -> ScrapeRecord:
    """The record of a stored closing record."""
    values = {name: value for name, value in row.items() if value is not None}
    return msgspec.convert(values | {"schema_version": SCHEMA_VERSION, "kind": "scrape"}, ScrapeRecord)


_RECORD_FIELDS: Final = frozenset(GpuRecord.__struct_fields__)
