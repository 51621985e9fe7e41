"""Whether an action should still happen: by wall clock, at the edges."""

from datetime import UTC, datetime, timedelta

import pytest

from alerting.actions.verdict import Go, Skip, Wait, on_notice, on_remediation

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
MOMENT = timedelta(milliseconds=1)
QUARTER = timedelta(minutes=15)
STALE = Skip("stale")


@pytest.mark.parametrize(
    ("event_age", "fires", "record_age", "expected"),
    [
        (QUARTER - MOMENT, False, None, Go()),
        (QUARTER, False, timedelta(0), STALE),
        (QUARTER, True, QUARTER - MOMENT, Go()),
        (QUARTER, True, QUARTER, STALE),
        (QUARTER, True, None, STALE),
    ],
)
def test_a_notice_at_its_first_claim(event_age, fires, record_age, expected):
    newest = None if record_age is None else NOW - record_age
    assert on_notice(NOW, first_claim=True, event_time=NOW - event_age, fires=fires, newest_record=newest) == expected


def test_a_notice_that_went_out_once_is_not_judged_again():
    assert on_notice(NOW, first_claim=False, event_time=NOW - 2 * QUARTER, fires=False, newest_record=None) == Go()


@pytest.mark.parametrize(
    ("fires", "record_age", "interval_ms", "closed", "waited", "expected"),
    [
        (True, timedelta(minutes=2) - MOMENT, 5000, True, timedelta(0), Go()),
        (True, timedelta(minutes=2), 5000, True, timedelta(0), Wait),
        (True, timedelta(minutes=5), 120_000, True, timedelta(0), Go()),
        (True, timedelta(minutes=6), 120_000, True, timedelta(0), Wait),
        (True, timedelta(0), 5000, False, timedelta(0), Wait),
        (True, None, 5000, False, timedelta(0), Wait),
        (True, timedelta(minutes=2), 5000, True, QUARTER - MOMENT, Wait),
        (True, timedelta(minutes=2), 5000, True, QUARTER, STALE),
        (True, timedelta(0), 5000, False, QUARTER, STALE),
        (True, timedelta(0), 5000, True, QUARTER, Go()),
        (False, timedelta(0), 5000, True, timedelta(0), Skip("over")),
    ],
)
def test_a_remediation(fires, record_age, interval_ms, closed, waited, expected):
    verdict = on_remediation(
        NOW,
        created_at=NOW - waited,
        fires=fires,
        newest_gpu_record=None if record_age is None else NOW - record_age,
        interval_ms=interval_ms,
        closed=closed,
    )
    assert isinstance(verdict, Wait) if expected is Wait else verdict == expected
