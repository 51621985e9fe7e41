"""The ledger balances: announced + unannounced + estimated = stored + dropped + missing, whatever happened."""

import json
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from pydantic import SecretStr

from gpu_telemetry.database import upgrade
from gpu_telemetry.settings import DatabaseSettings

HOUR = datetime(2026, 1, 31, 10, tzinfo=UTC)
GPUS = 4
S, H = timedelta(seconds=1), timedelta(hours=1)
NOTHING = {
    "announced": 0,
    "unannounced": 0,
    "estimated": 0,
    "stored": 0,
    "dropped": 0,
    "missing": 0,
    "dropped_by_reason": {},
    "scrapes": 0,
    "missing_scrapes": 0,
    "unaccounted_seconds": 0.0,
}


class Book:
    """A database with one node, into which turns are written as the alert engine would store them."""

    def __init__(self, connection):
        self.connection = connection
        self.drops = {}

    def turn(self, number, *, boot="boot-1", seq=None, at=None, stored=GPUS, announced=GPUS, closing=True):
        """Store a turn: its rows, and its closing record unless that was lost. Turns are 30 s apart."""
        at = HOUR + number * timedelta(seconds=30) if at is None else at
        self.connection.execute(
            "INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)"
            " SELECT placement_id, node_id, gpu_index, %s FROM placements WHERE gpu_index < %s",
            [at, stored],
        )
        if closing:
            self.connection.execute(
                "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids,"
                " interval_ms, drops) VALUES ('node-1', 'bridge', %s, %s, %s, true, %s, '{}', 30000, %s)",
                [boot, number if seq is None else seq, at, announced, json.dumps(self.drops) if self.drops else None],
            )

    def drop(self, reason, scrapes, gpu_records):
        """The bridge dropped; the closing records from now on tell."""
        before = self.drops.get(reason, {"scrapes": 0, "gpu_records": 0})
        self.drops = self.drops | {
            reason: {"scrapes": before["scrapes"] + scrapes, "gpu_records": before["gpu_records"] + gpu_records}
        }

    def dead_letter(self, reason, gpu_records, scrapes=0, hour=HOUR):
        self.connection.execute(
            "INSERT INTO stream_drops AS d (node_id, hour, reason, gpu_records, scrapes)"
            " VALUES ('node-1', %s, %s, %s, %s) ON CONFLICT (hour, node_id, reason)"
            " DO UPDATE SET gpu_records = d.gpu_records + excluded.gpu_records, scrapes = d.scrapes + excluded.scrapes",
            [hour, reason, gpu_records, scrapes],
        )

    def entry(self, hour=HOUR):
        """The ledger's line of an hour, without its key; it balances in every test."""
        with self.connection.cursor(row_factory=dict_row) as cursor:
            line = cursor.execute("SELECT * FROM ledger_entry('node-1', %s)", [hour]).fetchone()
        assert line["announced"] + line["unannounced"] + line["estimated"] == (
            line["stored"] + line["dropped"] + line["missing"]
        ), line
        assert min(value for value in line.values() if isinstance(value, int | float)) >= 0, line
        assert sum(line["dropped_by_reason"].values()) == line["dropped"]
        return line


def prepare(url):
    upgrade(DatabaseSettings(url=SecretStr(url)))
    connection = psycopg.connect(url, autocommit=True, options="-c timezone=UTC")
    connection.execute(
        """
        SELECT ensure_partition(parent, day::date)
        FROM unnest(ARRAY['gpu_metrics', 'scrapes']) parent, generate_series('2026-01-29'::date, '2026-02-01', '1 day')
             day;
        INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
        VALUES ('node-1', 'healthy', '2026-01-31 10:00', '2026-01-31 11:59', 30000);
        INSERT INTO gpus (gpu_uuid, first_seen) SELECT 'GPU-' || n, '2026-01-31' FROM generate_series(0, 3) n;
        INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
        SELECT 'node-1', n, 'GPU-' || n, '2026-01-31' FROM generate_series(0, 3) n;
        """
    )
    return connection


@pytest.fixture
def book(postgres_url):
    with prepare(postgres_url) as connection:
        yield Book(connection)


def test_an_hour_in_which_all_went_well_has_what_was_announced_and_no_more(book):
    for number in range(1, 11):
        book.turn(number)
    assert book.entry() == NOTHING | {"announced": 40, "stored": 40, "scrapes": 10}


def test_an_hour_without_records_has_nothing(book):
    assert book.entry() == NOTHING


def test_a_row_deleted_behind_its_back_is_missing(book):
    for number in range(1, 11):
        book.turn(number)
    book.connection.execute("DELETE FROM gpu_metrics WHERE gpu_index = 2 AND collected_at = %s", [HOUR + 5 * 30 * S])
    assert book.entry() == NOTHING | {"announced": 40, "stored": 39, "missing": 1, "scrapes": 10}


def test_a_gap_in_seq_that_nothing_explains_is_estimated_and_missing(book):
    book.turn(1)
    book.turn(2, stored=3, announced=3)
    book.turn(5)
    assert book.entry() == NOTHING | {
        "announced": 11,
        "estimated": 6,
        "stored": 11,
        "missing": 6,
        "scrapes": 3,
        "missing_scrapes": 2,
    }


def test_a_lost_closing_record_whose_rows_are_all_there_misses_nothing(book):
    book.turn(1)
    book.turn(2, closing=False)
    book.turn(3)
    assert book.entry() == NOTHING | {
        "announced": 8,
        "estimated": 4,
        "stored": 12,
        "scrapes": 2,
        "missing_scrapes": 1,
    }


def test_rows_whose_closing_record_has_not_come_yet_miss_nothing(book):
    book.turn(1)
    book.turn(2, stored=2, closing=False)
    assert book.entry() == NOTHING | {"announced": 4, "estimated": 2, "stored": 6, "scrapes": 1}


def test_scrapes_that_the_bridge_dropped_explain_their_gap(book):
    book.turn(1)
    book.drop("queue_full", 2, 8)
    book.turn(4)
    assert book.entry() == NOTHING | {
        "announced": 8,
        "unannounced": 8,
        "stored": 8,
        "dropped": 8,
        "dropped_by_reason": {"queue_full": 8},
        "scrapes": 2,
    }


def test_what_is_missing_beside_dropped_scrapes_is_still_seen(book):
    book.turn(1)
    book.drop("queue_full", 2, 8)
    book.turn(4)
    book.turn(5, stored=3)
    book.turn(7)
    line = book.entry()
    assert (line["dropped"], line["estimated"], line["missing"]) == (8, 4, 5)


def test_drops_told_some_turns_after_their_gap_explain_it(book):
    """Turns 2 and 3 were dropped while 4 and 5, already closed, waited behind them."""
    book.turn(1)
    book.turn(4)
    book.turn(5)
    book.drop("queue_full", 2, 8)
    book.turn(6)
    assert book.entry() == NOTHING | {
        "announced": 16,
        "unannounced": 8,
        "stored": 16,
        "dropped": 8,
        "dropped_by_reason": {"queue_full": 8},
        "scrapes": 4,
    }


def test_drops_told_before_a_gap_do_not_explain_it(book):
    book.turn(1)
    book.drop("queue_full", 1, 4)
    book.turn(3)
    book.turn(5)
    line = book.entry()
    assert (line["missing_scrapes"], line["estimated"], line["missing"]) == (1, 4, 4)


def test_drops_told_in_the_next_hour_explain_the_gap_in_this_one(book):
    book.turn(117, seq=1)
    book.turn(119, seq=3)
    book.drop("queue_full", 1, 4)
    book.turn(120, seq=4)
    first, second = book.entry(), book.entry(HOUR + H)
    assert (first["estimated"], first["missing"], first["missing_scrapes"]) == (0, 0, 0)
    assert (second["unannounced"], second["dropped"], second["missing_scrapes"]) == (4, 4, 0)


def test_drops_reach_back_only_as_far_as_they_count(book):
    """114 and 2 turns are missing before the hour's end, 1 after it; 3 drops explain that one and the nearer 2."""
    book.turn(1, seq=1)
    book.turn(118, seq=116)
    book.turn(119, seq=119)
    book.drop("queue_full", 3, 12)
    book.turn(121, seq=121)
    line = book.entry()
    assert (line["missing_scrapes"], line["estimated"]) == (114, 456)
    assert book.entry(HOUR + H)["missing_scrapes"] == 0


def test_rows_that_came_without_a_closing_record_belong_to_the_gap_that_they_lie_in(book):
    """A killed boot's last rows do not stand in for the turn that the next one lost."""
    book.turn(1, boot="boot-1", seq=1)
    book.turn(2, boot="boot-1", closing=False)
    book.turn(5, boot="boot-2", seq=1)
    book.turn(7, boot="boot-2", seq=3)
    line = book.entry()
    assert (line["estimated"], line["missing"], line["missing_scrapes"]) == (8, 4, 1)


def test_rows_of_the_hours_last_turn_whose_closing_record_was_lost_are_not_missed_in_the_next(book):
    book.turn(118, seq=1)
    book.turn(119, closing=False)
    book.turn(120, seq=3)
    first, second = book.entry(), book.entry(HOUR + H)
    assert (first["estimated"], first["stored"], first["missing"]) == (4, 8, 0)
    assert (second["estimated"], second["missing"], second["missing_scrapes"]) == (0, 0, 1)


def test_the_hours_last_turn_is_the_next_ones_predecessor(book):
    book.turn(119)
    book.turn(122)
    line = book.entry(HOUR + H)
    assert (line["missing_scrapes"], line["estimated"], line["unaccounted_seconds"]) == (2, 8, 0)


def test_single_records_that_kafka_did_not_take_are_dropped_of_what_was_announced(book):
    book.turn(1)
    book.turn(2, stored=3)
    book.drop("delivery_failed", 0, 1)
    book.turn(3)
    assert book.entry() == NOTHING | {
        "announced": 12,
        "stored": 11,
        "dropped": 1,
        "dropped_by_reason": {"delivery_failed": 1},
        "scrapes": 3,
    }


@pytest.mark.parametrize("stored", range(GPUS + 1))
def test_a_turn_that_failed_in_part_with_its_closing_record_balances(book, stored):
    book.turn(1)
    book.turn(2, stored=stored, closing=False)
    book.drop("delivery_failed", 1, GPUS - stored)
    book.turn(3)
    line = book.entry()
    assert (line["stored"], line["dropped"], line["missing"]) == (8 + stored, GPUS - stored, 0)


def test_dead_letters_are_dropped_of_what_was_announced(book):
    book.turn(1, stored=2)
    book.dead_letter("nul", 1)
    book.dead_letter("invalid", 1)
    book.turn(2)
    line = book.entry()
    assert line["dropped_by_reason"] == {"nul": 1, "invalid": 1}
    assert (line["announced"], line["unannounced"], line["missing"]) == (8, 0, 0)


def test_a_closing_record_among_the_dead_letters_leaves_its_rows_to_be_estimated(book):
    book.turn(1)
    book.turn(2, closing=False, stored=3)
    book.dead_letter("too_long", 1, scrapes=1)
    book.turn(3)
    line = book.entry()
    assert (line["estimated"], line["stored"], line["dropped"], line["missing"]) == (4, 11, 1, 0)


def test_a_dead_letter_that_no_turn_announced_stands_on_both_sides(book):
    book.turn(1)
    book.dead_letter("invalid", 3)
    line = book.entry()
    assert (line["announced"], line["unannounced"], line["dropped"], line["missing"]) == (4, 3, 3, 0)


def test_between_two_boots_there_are_seconds_and_no_count(book):
    book.turn(1)
    book.turn(2)
    book.turn(12, boot="boot-2", seq=1)
    book.turn(13, boot="boot-2", seq=2)
    assert book.entry() == NOTHING | {"announced": 16, "stored": 16, "scrapes": 4, "unaccounted_seconds": 300.0}


def test_the_seconds_stand_in_the_hour_in_which_the_new_boot_is_heard(book):
    book.turn(1)
    book.turn(241, boot="boot-2", seq=1)
    assert book.entry()["unaccounted_seconds"] == 0
    assert book.entry(HOUR + 2 * H)["unaccounted_seconds"] == 7200


def test_turns_lost_at_the_start_of_a_boot_are_a_gap(book):
    book.turn(3)
    line = book.entry()
    assert (line["missing_scrapes"], line["estimated"], line["missing"]) == (2, 8, 8)


def test_the_first_turn_of_the_oldest_day_that_is_kept_has_lost_nothing(book):
    midnight = datetime(2026, 1, 29, tzinfo=UTC)
    book.drop("queue_full", 7, 28)
    book.turn(0, seq=4711, at=midnight + 12 * S)
    book.turn(0, seq=4713, at=midnight + 72 * S)
    line = book.entry(midnight)
    assert (line["missing_scrapes"], line["dropped"], line["missing"]) == (1, 0, 4)


def test_two_bridges_that_scrape_one_node_are_each_in_order(book):
    for number in range(1, 6):
        book.turn(number, boot="boot-1", seq=number)
        book.turn(number, boot="boot-2", seq=number, at=HOUR + number * 30 * S + 10 * S)
    line = book.entry()
    assert (line["announced"], line["stored"], line["missing"], line["missing_scrapes"]) == (40, 40, 0, 0)
    assert line["unaccounted_seconds"] == 10


def test_a_bridge_that_another_stands_between_finds_its_predecessor(book):
    book.turn(1, boot="boot-1", seq=1)
    book.turn(119, boot="boot-2", seq=1)
    book.turn(121, boot="boot-1", seq=3)
    line = book.entry(HOUR + H)
    assert (line["missing_scrapes"], line["unaccounted_seconds"]) == (1, 0)


def test_a_node_taken_out_by_hand_leaves_no_time_unaccounted(book):
    book.turn(1)
    book.connection.execute(
        "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids, interval_ms,"
        " removed) VALUES ('node-1', 'by hand', 'other', 1, %s, false, 0, '{}', 30000, true)",
        [HOUR + 20 * 60 * S],
    )
    assert book.entry()["unaccounted_seconds"] == 0


def test_the_view_has_a_line_for_each_node_and_hour_and_those_of_dead_letters(book):
    book.turn(1)
    book.turn(121)
    book.connection.execute(
        "INSERT INTO stream_drops (node_id, hour, reason, gpu_records) VALUES ('junk', %s, 'invalid', 2)", [HOUR]
    )
    lines = book.connection.execute("SELECT node_id, hour, stored, dropped FROM ledger ORDER BY 1, 2").fetchall()
    assert lines == [("junk", HOUR, 0, 2), ("node-1", HOUR, 4, 0), ("node-1", HOUR + H, 4, 0)]


def test_the_reader_may_read_the_ledger(book):
    book.turn(1)
    book.connection.execute("SET ROLE telemetry_reader")
    assert book.connection.execute("SELECT stored FROM ledger WHERE hour = %s", [HOUR]).fetchall() == [(4,)]


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["kept", "kept", "kept", "dropped", "lost", "unclosed", "failed", "poisoned", "reboot"]),
        st.integers(0, GPUS),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=TURNS, start=st.integers(85, 119))
def test_whatever_becomes_of_the_turns_each_hour_balances_and_only_what_is_lost_is_missing(book, turns, start):
    """A turn is kept; dropped whole; lost with all it had; loses its closing record; fails or is poisoned in part."""
    book.connection.execute("TRUNCATE gpu_metrics, scrapes, stream_drops")
    book.drops = {}
    boot, seq, lost, lost_in_boot = 1, 0, 0, 0
    for number, (fate, count) in enumerate([("kept", 0), *turns, ("kept", 0)], start):
        if fate == "reboot":  # what the boot before lost at its end has no count
            boot, seq, book.drops, lost_in_boot = boot + 1, 0, {}, 0
        seq += 1
        whole = {"boot": f"boot-{boot}", "seq": seq}
        if fate == "dropped":
            book.drop("queue_full", 1, GPUS)
        elif fate == "lost":
            lost_in_boot += GPUS
        elif fate == "unclosed":
            book.turn(number, closing=False)
        else:
            stored = count if fate in {"failed", "poisoned"} else GPUS
            if fate == "failed":
                book.drop("delivery_failed", 0, GPUS - stored)
            elif fate == "poisoned":
                book.dead_letter("nul", GPUS - stored, hour=HOUR + number * 30 // 3600 * H)
            book.turn(number, stored=stored, **whole)
            lost, lost_in_boot = lost + lost_in_boot, 0
    lines = [book.entry(HOUR), book.entry(HOUR + H)]
    assert sum(line["missing"] for line in lines) == lost
    (stored,) = book.connection.execute("SELECT count(*) FROM gpu_metrics").fetchone()
    assert sum(line["stored"] for line in lines) == stored
