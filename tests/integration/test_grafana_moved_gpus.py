"""GPUs that move, come back, fall off the bus or are replaced: dashboards count each once, where it stands."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row
from pydantic import SecretStr

from gpu_telemetry import database
from gpu_telemetry.settings import DatabaseSettings

pytestmark = pytest.mark.integration

DASHBOARDS = Path(__file__).parents[2] / "grafana" / "dashboards"
MEMORY_MIB = 81920


class Fleet:
    """Two nodes, node-1 and node-2, in a database; times are hours ago."""

    def __init__(self, connection):
        self.connection = connection
        self.now = datetime.now(UTC).replace(microsecond=0)
        for day in range(3):
            connection.execute("SELECT ensure_partition('gpu_metrics', %s)", [(self.now - timedelta(days=day)).date()])
        for name in ("node-1", "node-2"):
            connection.execute(
                "INSERT INTO nodes (node_id, datacenter, first_seen, last_seen, last_heard, interval_ms)"
                " VALUES (%s, 'd', %s, %s, %s, 30000)",
                [name, self.ago(24), self.now, self.now],
            )

    def ago(self, hours):
        return self.now - timedelta(hours=hours)

    def stood(self, place, gpu, since, *records, model="H100", **measured):
        """A GPU or MIG instance that was first seen at a place then, with records of these times."""
        node, index, *mig = place
        self.connection.execute(
            "INSERT INTO gpus (gpu_uuid, model, memory_total_mib, driver_version, first_seen)"
            " VALUES (%s, %s, %s, '550', %s) ON CONFLICT DO NOTHING",
            [gpu, model, MEMORY_MIB, self.ago(24)],
        )
        placement = self.connection.execute(
            "INSERT INTO placements (node_id, gpu_index, gpu_uuid, mig_instance, since) VALUES (%s, %s, %s, %s, %s)"
            " RETURNING placement_id",
            [node, index, gpu, *(mig or [None]), self.ago(since)],
        ).fetchone()["placement_id"]
        columns = ["placement_id", "node_id", "gpu_index", "collected_at", *measured]
        for hours in records:
            self.connection.execute(
                f"INSERT INTO gpu_metrics ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})",
                [placement, node, index, self.ago(hours), *measured.values()],
            )

    def says(self, board, title):
        """The rows of a panel's SQL query, with all datacenters and models chosen."""
        panels = json.loads((DASHBOARDS / f"{board}.json").read_text(encoding="utf-8"))["panels"]
        (text,) = (
            target["rawSql"]
            for panel in panels
            if panel["title"] == title and (title, panel["type"]) != ("Nodes", "stat")
            for target in panel.get("targets", [])
            if "rawSql" in target
        )
        return self.connection.execute(re.sub(r"\$\{\w+:regex\}", ".*", text)).fetchall()

    def models(self):
        return {row["Name"]: row["GPUs"] for row in self.says("inventory", "GPUs by model")}

    def counts(self):
        """What each of the counts of GPUs says, which have to be the same."""
        return {
            self.says("fleet", "From GPUs owned to work done")[0]["Total"],
            self.says("inventory", "GPUs")[0]["GPUs"],
            self.says("inventory", "GPU memory")[0]["Memory"] / MEMORY_MIB,
            *(sum(row["GPUs"] for row in self.says("inventory", f"GPUs by {of}")) for of in ("driver", "datacenter")),
            sum(self.on_nodes().values()),
        }

    def on_nodes(self):
        return {row["Node"]: row["GPUs"] for row in self.says("inventory", "Nodes")}

    def errors(self):
        rows = self.says("inventory", "GPUs with a non-zero error count")
        return {(row["Node"], row["GPU"]): (row["XID"], row["ECC corrected"]) for row in rows if row["Node"]}


@pytest.fixture
def fleet(postgres_url):
    database.upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
    with psycopg.connect(postgres_url, autocommit=True, row_factory=dict_row) as connection:
        yield Fleet(connection)


def test_a_gpu_that_moved_to_another_node_is_counted_there_alone(fleet):
    fleet.stood(("node-1", 0), "stays", 24, 20, 0)
    fleet.stood(("node-1", 1), "moves", 24, 20)
    fleet.stood(("node-2", 0), "moves", 10, 0)

    assert fleet.counts() == {2}
    assert fleet.on_nodes() == {"node-1": 1, "node-2": 1}


def test_a_gpu_that_was_replaced_is_counted_no_more(fleet):
    fleet.stood(("node-1", 0), "old", 24, 20, model="A100")
    fleet.stood(("node-1", 0), "new", 10, 0)

    assert fleet.counts() == {1}
    assert fleet.models() == {"H100": 1}


def test_it_stays_uncounted_when_the_one_in_its_place_has_moved_on(fleet):
    fleet.stood(("node-1", 0), "old", 24, 20)
    fleet.stood(("node-1", 0), "new", 10, 5)
    fleet.stood(("node-2", 3), "new", 4, 0)

    assert fleet.counts() == {1}
    assert fleet.on_nodes() == {"node-1": 0, "node-2": 1}


def test_a_gpu_that_came_back_is_the_one_that_stands_there(fleet):
    fleet.stood(("node-1", 0), "own", 24, 20, 0, model="H100")
    fleet.stood(("node-1", 0), "lent meanwhile", 10, 5, model="A100")

    assert fleet.counts() == {1}
    assert fleet.models() == {"H100": 1}


def test_a_gpu_that_fell_off_the_bus_is_counted_though_its_neighbours_moved_up_to_its_index(fleet):
    fleet.stood(("node-1", 0), "first", 24, 20, 0)
    fleet.stood(("node-1", 1), "lost", 24, 20)
    fleet.stood(("node-1", 2), "last", 24, 20)
    fleet.stood(("node-1", 1), "last", 10, 0)

    assert fleet.counts() == {3}


def test_a_gpu_with_mig_instances_is_counted_once(fleet):
    for instance in ("1", "2"):
        fleet.stood(("node-1", 0, instance), "split", 24, 20, 0)

    assert fleet.counts() == {1}


def test_a_gpu_is_counted_without_a_record_that_is_kept_and_not_with_its_node_removed(fleet):
    fleet.stood(("node-1", 0), "silent for months", 24)
    fleet.stood(("node-2", 0), "gone with its node", 24, 0)
    fleet.connection.execute("UPDATE nodes SET removed_at = now() WHERE node_id = 'node-2'")

    assert fleet.counts() == {1}


def test_a_gpu_that_went_with_a_removed_node_is_not_back_where_it_stood_before(fleet):
    fleet.stood(("node-1", 0), "stays", 24, 20, 0)
    fleet.stood(("node-1", 1), "moved and gone", 24, 20)
    fleet.stood(("node-2", 0), "moved and gone", 10, 5)
    fleet.connection.execute("UPDATE nodes SET removed_at = now() WHERE node_id = 'node-2'")

    assert fleet.counts() == {1}
    assert fleet.on_nodes() == {"node-1": 1}


def test_of_two_at_a_place_without_a_record_that_is_kept_the_later_is_counted(fleet):
    fleet.stood(("node-1", 0), "old", 24, model="A100")
    fleet.stood(("node-1", 0), "new", 10)

    assert fleet.counts() == {1}
    assert fleet.models() == {"H100": 1}


def test_errors_are_those_of_a_gpus_newest_records(fleet):
    fleet.stood(("node-1", 1), "cleared by the boot that moved it", 24, 20, xid_code=48)
    fleet.stood(("node-1", 0), "cleared by the boot that moved it", 10, 0, xid_code=0)
    fleet.stood(("node-2", 0), "split since", 24, 20, xid_code=79)
    fleet.stood(("node-2", 0, "1"), "split since", 10, 0, xid_code=0, ecc_single_bit_aggregate=0)
    fleet.stood(("node-2", 0, "2"), "split since", 10, 0, xid_code=0, ecc_single_bit_aggregate=7)
    fleet.stood(("node-2", 1), "lost with an error", 24, 20, xid_code=79)

    assert fleet.errors() == {("node-2", 0): (0, 7), ("node-2", 1): (79, None)}
