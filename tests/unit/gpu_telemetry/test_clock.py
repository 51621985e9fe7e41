"""Times keep their milliseconds, and a manual clock moves only by hand."""

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from gpu_telemetry.clock import ManualClock, SystemClock, from_milliseconds, rfc3339, to_milliseconds


@given(st.integers(0, 253_402_300_799_999))
def test_milliseconds_survive_the_way_there_and_back(milliseconds: int):
    assert to_milliseconds(from_milliseconds(milliseconds)) == milliseconds


def test_a_time_is_written_in_utc_with_milliseconds():
    moment = datetime(2026, 1, 31, 14, 0, 0, 7999, timezone(timedelta(hours=2)))
    assert rfc3339(moment) == "2026-01-31T12:00:00.007Z"


def test_a_manual_clock_moves_both_times_together():
    clock = ManualClock(datetime(2026, 1, 31, 12, tzinfo=UTC))
    clock.advance(1.5)
    assert clock.now() == datetime(2026, 1, 31, 12, 0, 1, 500_000, UTC)
    assert clock.monotonic() == 1.5


def test_the_system_clock_is_aware():
    assert SystemClock().now().tzinfo is UTC
