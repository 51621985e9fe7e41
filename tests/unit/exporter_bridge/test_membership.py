"""Who left the fleet for good, by the hand of a clock that only the test moves."""

from datetime import UTC, datetime

import pytest

from exporter_bridge.membership import HOLD_SECONDS, REMOVAL_SECONDS, Membership
from gpu_telemetry.clock import ManualClock

FLEET = {f"node-{number}" for number in range(1, 11)}


@pytest.fixture
def clock():
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def membership(clock):
    membership = Membership(clock)
    membership.valid_read(FLEET)
    return membership


def test_a_node_that_is_absent_for_ten_minutes_of_valid_reads_is_removed_once(membership, clock):
    assert membership.valid_read(FLEET - {"node-1"}).removed == []
    clock.advance(REMOVAL_SECONDS - 1)
    assert membership.valid_read(FLEET - {"node-1"}).removed == []
    clock.advance(1)
    assert membership.valid_read(FLEET - {"node-1"}).removed == ["node-1"]
    assert membership.valid_read(FLEET - {"node-1"}).removed == []


def test_a_node_that_comes_back_in_time_is_not_removed(membership, clock):
    membership.valid_read(FLEET - {"node-1"})
    clock.advance(REMOVAL_SECONDS - 1)
    membership.valid_read(FLEET)
    clock.advance(REMOVAL_SECONDS)
    assert membership.valid_read(FLEET).removed == []


def test_absence_is_counted_anew_after_a_return(membership, clock):
    membership.valid_read(FLEET - {"node-1"})
    clock.advance(REMOVAL_SECONDS / 2)
    membership.valid_read(FLEET)
    membership.valid_read(FLEET - {"node-1"})
    clock.advance(REMOVAL_SECONDS / 2)
    assert membership.valid_read(FLEET - {"node-1"}).removed == []


def test_half_of_the_fleet_may_leave_together(membership, clock):
    gone = {f"node-{number}" for number in range(1, 6)}
    membership.valid_read(FLEET - gone)
    clock.advance(REMOVAL_SECONDS)
    assert set(membership.valid_read(FLEET - gone).removed) == gone


def test_over_half_of_the_fleet_vanishing_together_is_held_and_said(membership, clock, caplog):
    gone = {f"node-{number}" for number in range(1, 7)}
    membership.valid_read(FLEET - gone)
    clock.advance(2 * REMOVAL_SECONDS)
    assert membership.valid_read(FLEET - gone).removed == []
    assert membership.held == 6
    assert "6 of 10 nodes vanished together from the configuration; their removal is held" in caplog.text


def test_vanishing_in_two_steps_within_ten_minutes_is_vanishing_together(membership, clock):
    membership.valid_read(FLEET - {"node-1", "node-2", "node-3"})
    clock.advance(REMOVAL_SECONDS / 2)
    left = {"node-8", "node-9", "node-10"}
    membership.valid_read(left)
    clock.advance(REMOVAL_SECONDS)
    assert membership.valid_read(left).removed == []
    assert membership.held == 7


def test_held_nodes_that_come_back_are_held_no_longer(membership, clock):
    membership.valid_read(set())
    membership.valid_read(FLEET)
    assert membership.held == 0
    membership.valid_read(FLEET - {"node-1"})
    clock.advance(REMOVAL_SECONDS)
    assert membership.valid_read(FLEET - {"node-1"}).removed == ["node-1"]


def test_held_nodes_are_let_go_of_after_a_day_without_being_removed(membership, clock):
    membership.valid_read(set())
    clock.advance(HOLD_SECONDS)
    departures = membership.valid_read(set())
    assert departures.removed == []
    assert set(departures.forgotten) == FLEET
    assert membership.held == 0
