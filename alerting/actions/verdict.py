"""Whether an action should still happen, by wall clock. Pure: an old stream decides the same, and does nothing."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

NOTICE_FRESH_FOR: Final = timedelta(minutes=15)
NOTICE_RETRIED_FOR: Final = timedelta(hours=24)
REMEDIATION_WAITS_FOR: Final = timedelta(minutes=15)
_LEAST_FRESHNESS: Final = timedelta(minutes=2)
_FRESH_INTERVALS: Final = 3


@dataclass(frozen=True, slots=True)
class Go:
    """Carry it out."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again later, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Skip:
    """Do not carry it out, and why."""

    reason: str


Verdict = Go | Wait | Skip


def on_notice(
    now: datetime, *, first_claim: bool, event_time: datetime, fires: bool, newest_record: datetime | None
) -> Verdict:
    """A notice goes out if it is news at its first claim: itself, or its alert that still fires on a live node."""
    if not first_claim or now - event_time < NOTICE_FRESH_FOR:
        return Go()
    if fires and newest_record is not None and now - newest_record < NOTICE_FRESH_FOR:
        return Go()
    return Skip("stale")


def on_remediation(
    now: datetime,
    *,
    created_at: datetime,
    fires: bool,
    newest_gpu_record: datetime | None,
    interval_ms: int,
    closed: bool,
) -> Verdict:
    """A remediation acts while its alert fires, on what is known to be so now; it waits a while to know it.

    `closed` says that the closing record of the GPU's newest turn is stored.
    """
    if not fires:
        return Skip("over")
    freshness = max(_LEAST_FRESHNESS, _FRESH_INTERVALS * timedelta(milliseconds=interval_ms))
    if newest_gpu_record is not None and now - newest_gpu_record < freshness and closed:
        return Go()
    if now - created_at < REMEDIATION_WAITS_FOR:
        return Wait("waits for a fresh record of the GPU")
    return Skip("stale")
