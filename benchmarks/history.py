"""A fleet's history in PostgreSQL, filled by COPY: nodes, GPUs, days of rows and closing records, alerts.

The last hours hold a turn every 30 seconds, as the ledger meets them; the days before hold fewer, so that a bounded
number of rows still lies over as many partitions as in life.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg
from psycopg import Connection

from gpu_telemetry.database import upgrade
from gpu_telemetry.settings import DatabaseSettings

GPUS_PER_NODE: Final = 8
DAYS: Final = 30  # what is kept unless a setting says otherwise
_DAYS_AHEAD: Final = 2
_INTERVAL_SECONDS: Final = 30
_DENSE_TURNS: Final = 360  # three hours
_VARIANTS: Final = 997  # no multiple of the fleet's size, so that a GPU's values change from turn to turn
_ALERTS: Final = 20_000
_ACTIVE_ALERTS: Final = 200
_EVENTS_PER_ALERT: Final = 2

# What an exporter serves with its default fields.
_COLUMNS: Final = (
    "temperature_celsius, memory_temperature_celsius, power_watts, energy_joules, gpu_utilization_percent,"
    " memory_copy_utilization_percent, encoder_utilization_percent, decoder_utilization_percent, memory_used_mib,"
    " memory_free_mib, memory_reserved_mib, memory_total_mib, memory_used_percent, sm_clock_mhz, memory_clock_mhz,"
    " xid_code, row_remap_failure, row_remap_uncorrectable_rows, row_remap_correctable_rows, pcie_replay_count,"
    " nvlink_bandwidth_total, graphics_engine_active_ratio, tensor_active_ratio, dram_active_ratio,"
    " pcie_tx_bytes_per_second, pcie_rx_bytes_per_second, workloads, fields"
)
_COPY_METRICS: Final = (
    f"COPY gpu_metrics (placement_id, node_id, gpu_index, {_COLUMNS}, collected_at) FROM STDIN"
).encode()
_COPY_SCRAPES: Final = (
    b"COPY scrapes (node_id, bridge_id, boot_id, gpu_records, gpu_uuids, up, duration_ms, interval_ms, drops, seq,"
    b" collected_at) FROM STDIN"
)


@dataclass(frozen=True, slots=True)
class History:
    """What was filled in: sizes, and the names to ask for."""

    rows: int
    scrapes: int
    node_ids: list[str]
    gpu_uuids: list[str]
    started_at: datetime
    ended_at: datetime


def fill(database: DatabaseSettings, *, rows: int, nodes: int, now: datetime) -> History:
    """Fill an empty database with about `rows` rows of `nodes` nodes, the newest at `now`."""
    upgrade(database)
    turns = max(rows // (nodes * GPUS_PER_NODE), 2)
    moments = _moments(turns, now)
    node_ids = [f"node-{number:05d}" for number in range(nodes)]
    with psycopg.connect(
        database.url.get_secret_value(), autocommit=True, options="-c timezone=UTC", prepare_threshold=None
    ) as connection:
        for day in _days(moments[0].date(), now.date() + timedelta(days=_DAYS_AHEAD)):
            for parent in ("gpu_metrics", "scrapes"):
                connection.execute("SELECT ensure_partition(%s, %s)", (parent, day))
        uuids = _place(connection, node_ids, moments)
        _copy_metrics(connection, node_ids, moments)
        _copy_scrapes(connection, node_ids, uuids, moments)
        _raise_alerts(connection, len(uuids), now)
        # As autovacuum leaves it; its turn would otherwise come while requests are measured.
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")
    return History(len(uuids) * turns, nodes * turns, node_ids, uuids, moments[0], moments[-1])


def _moments(turns: int, now: datetime) -> list[datetime]:
    """The times of the turns, oldest first: every 30 seconds at the end, evenly over the days before."""
    dense = min(turns // 2, _DENSE_TURNS)
    joint = now - dense * timedelta(seconds=_INTERVAL_SECONDS)
    sparse = turns - dense
    step = timedelta(days=DAYS) / sparse
    return [joint - back * step for back in range(sparse - 1, -1, -1)] + [
        now - back * timedelta(seconds=_INTERVAL_SECONDS) for back in range(dense - 1, -1, -1)
    ]


def _days(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first += timedelta(days=1)


def _place(connection: Connection, node_ids: list[str], moments: list[datetime]) -> list[str]:
    """Nodes, and eight GPUs in each; gives their UUIDs in the order of their placements."""
    chance = random.Random(1)
    uuids = [
        f"GPU-{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"
        for bits in (f"{chance.getrandbits(128):032x}" for _ in range(len(node_ids) * GPUS_PER_NODE))
    ]
    first, last = moments[0], moments[-1]
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy(
            "COPY nodes (node_id, hostname, datacenter, instance, status, first_seen, last_seen, last_heard,"
            " interval_ms) FROM STDIN"
        ) as copy:
            for number, node_id in enumerate(node_ids):
                place = (f"{node_id}.example", f"dc-{number % 4}", f"{node_id}.example:9400")
                copy.write_row((node_id, *place, "healthy", first, last, last, _INTERVAL_SECONDS * 1000))
        with cursor.copy(
            "COPY gpus (gpu_uuid, model, driver_version, memory_total_mib, first_seen) FROM STDIN"
        ) as copy:
            for uuid in uuids:
                copy.write_row((uuid, "NVIDIA H100 80GB HBM3", "570.86.15", 81559, first))
        with cursor.copy("COPY placements (node_id, gpu_index, gpu_uuid, since) FROM STDIN") as copy:
            for number, uuid in enumerate(uuids):
                copy.write_row((node_ids[number // GPUS_PER_NODE], number % GPUS_PER_NODE, uuid, first))
    return uuids


def _copy_metrics(connection: Connection, node_ids: list[str], moments: list[datetime]) -> None:
    """One turn of the whole fleet after another, as they come in life."""
    places = [
        f"{node * GPUS_PER_NODE + index + 1}\t{node_id}\t{index}\t"
        for node, node_id in enumerate(node_ids)
        for index in range(GPUS_PER_NODE)
    ]
    chance = random.Random(2)
    values = [_values(chance) for _ in range(_VARIANTS)]
    for turn, moment in enumerate(moments):
        end = f"\t{_text(moment)}\n"
        with connection.cursor() as cursor, cursor.copy(_COPY_METRICS) as copy:
            copy.write(
                "".join(
                    f"{place}{values[(number + turn) % _VARIANTS]}{end}" for number, place in enumerate(places)
                ).encode()
            )


def _values(chance: random.Random) -> str:
    """The measured columns of one row in COPY's text form."""
    used = chance.randrange(200, 78_000)
    fields = {
        "DCGM_FI_DEV_VGPU_LICENSE_STATUS": 0,
        "DCGM_FI_DEV_FB_USED_PERCENT": round(used / 81_000, 6),
        "DCGM_FI_PROF_PIPE_FP16_ACTIVE": round(chance.random(), 6),
    }
    pod = f"train-{chance.randrange(10_000)}"
    workloads = [{"namespace": "research", "pod": pod, "container": "main"}] if chance.random() < 0.7 else None
    numbers: tuple[object, ...] = (
        chance.randrange(30, 88),
        chance.randrange(35, 95),
        round(chance.uniform(70, 690), 3),
        round(chance.uniform(1e8, 2e9), 3),
        chance.randrange(101),
        chance.randrange(101),
        0,
        0,
        used,
        81_000 - used,
        559,
        81_559,
        round(100 * used / 81_000, 4),
        chance.randrange(345, 1981),
        2619,
        0,
        0,
        0,
        chance.randrange(3),
        chance.randrange(5),
        chance.randrange(10**12),
        *(round(chance.random(), 6) for _ in range(3)),
        *(round(chance.uniform(0, 3e10), 3) for _ in range(2)),
        r"\N" if workloads is None else json.dumps(workloads),
        json.dumps(fields),
    )
    return "\t".join(map(str, numbers))


def _copy_scrapes(connection: Connection, node_ids: list[str], uuids: list[str], moments: list[datetime]) -> None:
    starts = [
        f"{node_id}\tbridge-1\tboot-1\t{GPUS_PER_NODE}\t"
        f"{{{','.join(uuids[node * GPUS_PER_NODE : (node + 1) * GPUS_PER_NODE])}}}\tt\t12.5\t"
        f'{_INTERVAL_SECONDS * 1000}\t{{"queue_full": {{"scrapes": 0, "gpu_records": 0}}}}\t'
        for node, node_id in enumerate(node_ids)
    ]
    for seq, moment in enumerate(moments, 1):
        end = f"{seq}\t{_text(moment)}\n"
        with connection.cursor() as cursor, cursor.copy(_COPY_SCRAPES) as copy:
            copy.write("".join(f"{start}{end}" for start in starts).encode())


def _raise_alerts(connection: Connection, gpus: int, now: datetime) -> None:
    """Alerts over the days, the newest of them still active, each with its transitions."""
    connection.execute(
        """
        INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, severity, message, threshold_value,
                            actual_value, status, triggered_at, resolved_at, resolved_reason)
        SELECT 'high_temperature', 'high_temperature', p.node_id, p.gpu_index, p.gpu_uuid, 'warning',
               'GPU temperature is 91.5°C', 90, 91.5, CASE WHEN n < %(active)s THEN 'active' ELSE 'resolved' END,
               at, CASE WHEN n >= %(active)s THEN at + interval '1 minute' END,
               CASE WHEN n >= %(active)s THEN 'cleared' END
        FROM generate_series(0, %(alerts)s - 1) n,
             LATERAL (SELECT %(now)s - n * %(days)s * interval '1 day' / %(alerts)s AS at) t,
             LATERAL (SELECT 1 + n %% %(gpus)s AS place) w
        JOIN placements p ON p.placement_id = w.place
        """,
        {"alerts": _ALERTS, "active": min(_ACTIVE_ALERTS, gpus), "gpus": gpus, "now": now, "days": DAYS},
    )
    connection.execute(
        """
        INSERT INTO alert_events (alert_id, rule, alert_type, node_id, gpu_index, gpu_uuid, transition, severity,
                                  message, started_at, at)
        SELECT id, rule, alert_type, node_id, gpu_index, gpu_uuid,
               CASE n WHEN 1 THEN 'fired' ELSE 'resolved' END, severity, message, triggered_at, triggered_at
        FROM alerts, generate_series(1, %(each)s) n
        """,
        {"each": _EVENTS_PER_ALERT},
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")
