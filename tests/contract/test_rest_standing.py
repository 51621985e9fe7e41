"""Which GPUs stand in a node: those that moved, came back, fell off the bus or were replaced, over a real database.

Whatever happened, the nodes' `gpu_count` add up to the fleet's total.
"""

import random
from datetime import timedelta

import psycopg
import pytest

from gpu_telemetry.clock import rfc3339

from .conftest import NOW


class Fleet:
    """Two nodes, a and b, in datacenters of their names; times are hours before the clock's."""

    def __init__(self, connection, client):
        self.connection = connection
        self._client = client
        connection.execute("TRUNCATE nodes, gpus, placements, gpu_metrics, alerts CASCADE")
        for name in ("a", "b"):
            connection.execute(
                "INSERT INTO nodes (node_id, datacenter, first_seen, last_heard, interval_ms)"
                " VALUES (%s, %s, %s, %s, 30000)",
                [name, f"dc-{name}", NOW - timedelta(hours=48), NOW],
            )

    def stood(self, place, gpu, *records, since=None, mig=None):
        """A GPU or MIG instance that was first seen at a place then, else at its first record, with these records."""
        node, index = place
        self.connection.execute(
            "INSERT INTO gpus (gpu_uuid, first_seen) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [gpu, NOW - timedelta(hours=48)],
        )
        (placement,) = self.connection.execute(
            "INSERT INTO placements (node_id, gpu_index, gpu_uuid, mig_instance, since) VALUES (%s, %s, %s, %s, %s)"
            " RETURNING placement_id",
            [node, index, gpu, mig, NOW - timedelta(hours=max(records) if since is None else since)],
        ).fetchone()
        for hours in records:
            self.connection.execute(
                "INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, power_watts, collected_at)"
                " VALUES (%s, %s, %s, 100, %s)",
                [placement, node, index, NOW - timedelta(hours=hours)],
            )

    def get(self, path):
        response = self._client.get(path)
        assert response.status_code == 200, response.text
        return response.json

    def standing(self):
        """What stands at which place, as NODE INDEX GPU, or NODE INDEX GPU/INSTANCE."""
        found, counts = [], {}
        for node in ("a", "b"):
            answer = self.get(f"/api/v1/nodes/{node}")
            counts[f"dc-{node}"] = answer["gpu_count"]
            found += [
                f"{node} {gpu['gpu_index']} {gpu['gpu_uuid']}" + (f"/{mig}" if (mig := gpu["mig_instance"]) else "")
                for gpu in answer["gpus"]
            ]
        summary = self.get("/api/v1/fleet/summary")
        assert {one["datacenter"]: one["gpus"]["total"] for one in summary["by_datacenter"]} == counts
        assert summary["gpus"]["total"] == sum(counts.values())
        return found


@pytest.fixture
def fleet(writing_client, fleet_url):
    with psycopg.connect(fleet_url, autocommit=True) as connection:
        yield Fleet(connection, writing_client)


def test_a_gpu_that_was_replaced_stands_there_no_more(fleet):
    fleet.stood(("a", 0), "old", 24, 20)
    fleet.stood(("a", 0), "new", 10, 0)
    assert fleet.standing() == ["a 0 new"]


def test_mig_instances_go_with_their_gpu_when_one_without_takes_its_place(fleet):
    for instance in ("1", "2"):
        fleet.stood(("a", 0), "old", 24, 20, mig=instance)
    fleet.stood(("a", 0), "new", 10, 0)
    assert fleet.standing() == ["a 0 new"]
    assert fleet.get("/api/v1/nodes/a")["gpu_count"] == 1


def test_mig_instances_that_were_made_anew_replace_those_before(fleet):
    fleet.stood(("a", 0), "gpu", 24, 20)
    fleet.stood(("a", 0), "gpu", 19, 10, mig="1")
    for instance in ("7", "8"):
        fleet.stood(("a", 0), "gpu", 9, 0, mig=instance)
    assert fleet.standing() == ["a 0 gpu/7", "a 0 gpu/8"]


def test_a_mig_instance_whose_record_of_the_newest_turns_was_lost_is_there(fleet):
    fleet.stood(("a", 0), "gpu", 24, 0, mig="1")
    fleet.stood(("a", 0), "gpu", 24, 0.02, mig="2")
    fleet.stood(("a", 0), "gpu", 24, 0.03, mig="3")
    assert fleet.standing() == ["a 0 gpu/1", "a 0 gpu/2"], "72 s and 108 s ago; three intervals are 90 s"


def test_a_gpu_that_moved_to_another_node_stands_there_alone(fleet):
    fleet.stood(("a", 0), "stays", 24, 0)
    fleet.stood(("a", 1), "moves", 24, 20)
    fleet.stood(("b", 0), "moves", 10, 0)
    assert fleet.standing() == ["a 0 stays", "b 0 moves"]


def test_two_that_changed_places_stand_at_the_new_ones(fleet):
    fleet.stood(("a", 0), "one", 24, 20)
    fleet.stood(("b", 0), "two", 24, 20)
    fleet.stood(("b", 0), "one", 10, 0)
    fleet.stood(("a", 0), "two", 10, 0)
    assert fleet.standing() == ["a 0 two", "b 0 one"]


def test_a_replaced_gpu_does_not_return_when_the_one_in_its_place_moves_on(fleet):
    fleet.stood(("a", 0), "old", 24, 20)
    fleet.stood(("a", 0), "new", 10, 5)
    fleet.stood(("b", 3), "new", 4, 0)
    assert fleet.standing() == ["b 3 new"]


def test_a_gpu_that_came_back_is_the_one_that_stands_there(fleet):
    fleet.stood(("a", 0), "own", 24, 20, 0)
    fleet.stood(("a", 0), "lent meanwhile", 10, 5)
    assert fleet.standing() == ["a 0 own"]


def test_a_gpu_that_fell_off_the_bus_stays_though_its_neighbour_moved_up_to_its_index(fleet):
    fleet.stood(("a", 0), "first", 24, 20, 0)
    fleet.stood(("a", 1), "lost", 24, 20)
    fleet.stood(("a", 2), "last", 24, 20)
    fleet.stood(("a", 1), "last", 10, 0)
    assert fleet.standing() == ["a 0 first", "a 1 last", "a 1 lost"]


def test_a_gpu_without_a_record_that_is_kept_stands_until_another_comes(fleet):
    fleet.stood(("a", 0), "silent for months", since=24)
    fleet.stood(("b", 0), "old", since=24)
    fleet.stood(("b", 0), "new", since=10)
    assert fleet.standing() == ["a 0 silent for months", "b 0 new"]


def test_a_gpu_that_was_replaced_still_has_its_last_row_and_its_own_page(fleet):
    fleet.stood(("a", 0), "old", 24, 20)
    fleet.stood(("a", 0), "new", 10, 0)
    latest = fleet.get("/api/v1/metrics/latest")
    assert {row["gpu_uuid"]: row["collected_at"] for row in latest} == {
        "old": rfc3339(NOW - timedelta(hours=20)),
        "new": rfc3339(NOW),
    }
    assert [gpu["gpu_uuid"] for gpu in fleet.get("/api/v1/gpus?node=a")] == ["new", "old"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_moved_where_each_gpu_stands_at_one_place_at_most_and_all_counts_agree(fleet, seed):
    chance = random.Random(seed)
    places = [(node, index) for node in ("a", "b") for index in range(3)]
    migs = [None, None, "1", "2"]
    stood = {
        (chance.choice(places), f"GPU-{chance.randrange(5)}", chance.choice(migs)): [
            *{chance.randrange(30) for _ in range(chance.choice([0, 1, 4]))}
        ]
        for _ in range(12)
    }
    for (place, gpu, mig), records in stood.items():
        fleet.stood(place, gpu, *records, since=chance.randrange(30, 40), mig=mig)
    found = [text.partition("/")[0].rsplit(" ", 1) for text in fleet.standing()]
    places_of = {gpu: {place for place, uuid in found if uuid == gpu} for _, gpu in found}
    assert all(len(places) == 1 for places in places_of.values()), places_of


def test_a_gpu_that_left_with_a_removed_node_is_not_back_where_it_stood_before(fleet):
    fleet.stood(("a", 0), "stays", 24, 0)
    fleet.stood(("a", 1), "moves", 24, 20)
    fleet.stood(("b", 0), "moves", 10, 5)
    fleet.connection.execute("UPDATE nodes SET removed_at = %s WHERE node_id = 'b'", [NOW])
    assert fleet.get("/api/v1/nodes/a")["gpu_count"] == 1
    assert fleet.get("/api/v1/fleet/summary")["gpus"]["total"] == 1
    assert [row["gpu_uuid"] for row in fleet.get("/api/v1/metrics/latest")] == ["stays"]
    assert [gpu["gpu_uuid"] for gpu in fleet.get("/api/v1/gpus")] == ["stays"]
    assert [gpu["gpu_uuid"] for gpu in fleet.get("/api/v1/nodes/b")["gpus"]] == ["moves"]
