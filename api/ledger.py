"""The noun `ledger`: what became of every GPU record, by node and hour."""

from datetime import datetime, timedelta
from typing import Final

from flask import Blueprint, Response
from msgspec import Struct

from api import queries
from api.operations import json_answer, operation, page
from api.parameters import (
    HOURS_SINCE,
    HOURS_UNTIL,
    LEDGER_LIMIT,
    NODE,
    AwareMoment,
    KeyText,
    Query,
    cursor_of,
)
from api.resources import resources
from api.shapes import LedgerEntry, LedgerTotals, shape

blueprint: Final = Blueprint("ledger", __name__)


class LedgerKey(Struct, tag="ledger", forbid_unknown_fields=True):
    """A place in the ledger, newest hour first, within it by node; and how far back the walk goes that came by it."""

    hour: AwareMoment
    node_id: KeyText
    since: AwareMoment


CURSOR: Final = cursor_of(LedgerKey)


def _since(query: Query, after: LedgerKey | None = None) -> datetime:
    """A time in the first hour asked for; in the last full one, or the one that was that when the walk began."""
    return query[HOURS_SINCE] or (after.since if after else resources().clock.now() - timedelta(hours=1))


@blueprint.get("/ledger")
@operation(
    "List what became of the records",
    tag="ledger",
    answer=list[LedgerEntry],
    parameters=(LEDGER_LIMIT, CURSOR, NODE, HOURS_SINCE, HOURS_UNTIL),
)
def list_ledger(query: Query) -> Response:
    """The ledger by node and hour, newest hour first: announced + unannounced + estimated = stored + dropped + missing.

    It is counted from the stored rows at each call. The last full hour and all after it, unless `since` says more; an
    hour that lies ahead holds what was dropped because of a clock that is wrong.
    """
    after, limit = query[CURSOR], query[LEDGER_LIMIT]
    since = _since(query, after)
    with resources().database.reading() as connection:
        rows = queries.fetch(
            connection,
            queries.LEDGER,
            {
                "node": query[NODE],
                "since": since,
                "until": query[HOURS_UNTIL],
                "after_hour": after.hour if after else None,
                "after_node": after.node_id if after else None,
                "limit": limit + 1,
            },
        )
    last = rows[limit - 1] if len(rows) > limit else None
    more = LedgerKey(last["hour"], last["node_id"], since) if last else None
    return page([shape(LedgerEntry, row) for row in rows[:limit]], more)


@blueprint.get("/ledger/totals")
@operation(
    "Sum up what became of the records",
    tag="ledger",
    answer=LedgerTotals,
    parameters=(NODE, HOURS_SINCE, HOURS_UNTIL),
)
def show_ledger_totals(query: Query) -> Response:
    """The sum of the ledger's lines; it counts every row of the range, so a long range of a large fleet takes long."""
    with resources().database.reading() as connection:
        row = queries.fetch_one(
            connection,
            queries.LEDGER_TOTALS,
            {"node": query[NODE], "since": _since(query), "until": query[HOURS_UNTIL]},
        )
    assert row is not None  # an aggregate has one row
    return json_answer(shape(LedgerTotals, row))
