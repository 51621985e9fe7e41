"""The statements fit the schema, and rows come back as the records that they were."""

import re
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from psycopg.types.json import set_json_dumps
from pydantic import SecretStr

from alerting import queries
from alerting.engine import Engine
from alerting.inventory import Inventory
from alerting.partition import OwnedNode
from alerting.restore import restore_nodes
from alerting.rows import GPU_METRICS, SCRAPES, EncodedRows, gpu_row, scrape_row, wire_time
from alerting.rules import load_rules
from gpu_telemetry import database
from gpu_telemetry.fields import FIELDS, ValueType
from gpu_telemetry.records import DropCount, GpuRecord, LabelledValue, Rejected, ScrapeRecord, Workload
from gpu_telemetry.settings import DatabaseSettings

AT = datetime(2026, 3, 31, 12, 0, 0, 123000, tzinfo=UTC)


@pytest.fixture
def connection(postgres_url):
    settings = DatabaseSettings.load(url=SecretStr(postgres_url))
    database.upgrade(settings)
    with database.connect(settings, "test", autocommit=True) as connection:
        set_json_dumps(msgspec.json.encode, connection)
        for parent in ("gpu_metrics", "scrapes"):
            connection.execute("SELECT ensure_partition(%s, %s)", (parent, AT.date()))
        yield connection


def numbered(statement):
    """A statement with numbered parameters, as PREPARE takes it."""
    numbers = {}
    for name in re.findall(r"%\((\w+)\)[sb]", statement):
        numbers.setdefault(name, len(numbers) + 1)
    return re.sub(r"%\((\w+)\)[sb]", lambda match: f"${numbers[match[1]]}", statement)


def test_every_statement_is_one_that_the_schema_knows(connection):
    for name, statement in queries.SQL.items():
        connection.execute(f"PREPARE {name} AS {numbered(statement.decode())}".encode())


def test_every_statement_is_used_and_none_is_missing():
    folder = Path(queries.__file__).parent
    code = "".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    assert set(re.findall(r'SQL\["(\w+)"\]', code)) == set(queries.SQL)


def full_record(**changes):
    """A record that has every field of the field table."""
    values = {field.name: (7 if field.type is ValueType.INTEGER else 7.25) for field in FIELDS}
    given = {
        "schema_version": 1,
        "node_id": "node-1",
        "bridge_id": "b",
        "boot_id": "b",
        "seq": 1,
        "collected_at": AT,
        "gpu_index": 3,
        "gpu_uuid": "GPU-1",
        "model": "NVIDIA H100",
        "driver_version": "580.1",
        "pci_bus_id": "00000000:0A:00.0",
        "workloads": [Workload(namespace="ml", pod="train-1")],
        "fields": {"DCGM_FI_X": 1.5, "DCGM_EXP_XID_ERRORS_COUNT": [LabelledValue(labels={"xid": "79"}, value=2)]},
        "rejected": {"power_watts": Rejected(value="2147483632", reason="sentinel")},
    }
    return GpuRecord(**(given | values | changes))


def full_scrape(**changes):
    given = {
        "schema_version": 1,
        "node_id": "node-1",
        "bridge_id": "bridge-1",
        "boot_id": "boot-1",
        "seq": 5,
        "collected_at": AT,
        "up": True,
        "gpu_records": 1,
        "gpu_uuids": ["GPU-1"],
        "interval_ms": 30000,
        "duration_ms": 12.5,
        "changed_at": AT,
        "drops": {"queue_full": DropCount(scrapes=2, gpu_records=16)},
        "trace": "abc",
    }
    return ScrapeRecord(**(given | changes))


def store(connection, records, scrapes=()):
    """Store records as a batch does; gives how many were there already."""
    engine = Engine(load_rules())
    nodes = {each: OwnedNode(engine.new_node(each)) for each in {record.node_id for record in records}}
    inventory = Inventory()
    rows, turns = EncodedRows(connection, GPU_METRICS), EncodedRows(connection, SCRAPES)
    with connection.transaction(), connection.cursor() as cursor:
        placements = []
        for record in records:
            node = nodes[record.node_id]
            inventory.node(node, record)
            placements.append(inventory.gpu(node, None, record, newest=True))
        inventory.write(connection, nodes, dict.fromkeys(nodes, "healthy"))
        for placement, record in zip(placements, records, strict=True):
            rows.add(gpu_row(placement, record, wire_time(record.collected_at)))
        for record in scrapes:
            turns.add(scrape_row(record, wire_time(record.collected_at)))
        return rows.store(cursor) + turns.store(cursor)


def test_a_stored_record_comes_back_whole(connection):
    record = full_record()
    scrape = full_scrape()
    assert store(connection, [record], [scrape]) == 0
    seen = {}

    class Witness(Engine):
        def restore(self, node_id, saved, gpu_rows, scrape_rows):
            seen.update(gpu=list(gpu_rows), scrapes=list(scrape_rows))
            return super().restore(node_id, saved, gpu_rows, scrape_rows)

    restore_nodes(connection, Witness(load_rules()), ["node-1"])
    assert seen["scrapes"] == [scrape]
    expected = msgspec.structs.replace(record, bridge_id="stored", boot_id="stored")
    assert seen["gpu"] == [expected]


def test_rows_that_are_there_already_are_told_apart_from_new_ones(connection):
    first = full_record()
    assert store(connection, [first], [full_scrape()]) == 0
    second = full_record(gpu_uuid="GPU-2")
    # The first again, the second twice in one batch, and one turn again.
    assert store(connection, [first, second, second], [full_scrape(), full_scrape(seq=6)]) == 3
    assert connection.execute("SELECT count(*) FROM gpu_metrics").fetchone() == (2,)
    assert connection.execute("SELECT count(*) FROM scrapes").fetchone() == (2,)


def test_the_memory_of_a_mig_instance_is_not_its_gpus(connection):
    whole = full_record(memory_total_mib=80000)
    part = full_record(mig_instance="1", mig_profile="1g.10gb", memory_total_mib=10000)
    store(connection, [whole])
    store(connection, [part])
    assert connection.execute("SELECT memory_total_mib FROM gpus").fetchall() == [(80000,)]
    assert connection.execute("SELECT mig_instance, mig_profile FROM placements ORDER BY 1 NULLS FIRST").fetchall() == [
        (None, None),
        ("1", "1g.10gb"),
    ]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("batches", [1, 3])
def test_a_gpu_that_was_moved_is_described_by_its_newest_record_whichever_node_is_read_first(
    connection, order, batches
):
    hour = timedelta(hours=1)
    records = [
        full_record(driver_version="570.1", memory_total_mib=80000),
        full_record(node_id="node-2", pci_bus_id="00000000:1B:00.0", memory_total_mib=None, collected_at=AT + hour),
        full_record(node_id="node-3", model=None, pci_bus_id="00000000:2C:00.0", collected_at=AT + 2 * hour,
                    memory_total_mib=10000, mig_instance="1"),
    ]  # fmt: skip
    told = [records[number] for number in order]
    for batch in [told] if batches == 1 else [[record] for record in told]:
        store(connection, batch)
    assert connection.execute("SELECT * FROM gpus").fetchall() == [
        ("GPU-1", "NVIDIA H100", "580.1", "00000000:2C:00.0", 80000, AT, AT + 2 * hour)
    ]
