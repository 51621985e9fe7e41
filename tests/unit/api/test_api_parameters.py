"""Reading a request's parameters."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from api.alerts import CURSOR as ALERT_CURSOR
from api.alerts import AlertKey
from api.metrics import LATEST_CURSOR, NODE_CURSOR, LatestKey, NodeMetricsKey
from api.nodes import CURSOR as NODES_CURSOR
from api.nodes import NodeKey
from api.parameters import ALERT_ID, LARGEST_ID, LIMIT, MAX_LIMIT, NODE, NODE_ID, SINCE, encode_cursor, read
from api.problems import BadParameter

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
MOMENTS = st.datetimes(timezones=st.just(UTC))


@given(st.integers(1, MAX_LIMIT))
def test_every_limit_in_the_range_is_taken(limit):
    assert LIMIT.read(str(limit)) == limit


@given(st.integers().filter(lambda limit: not 1 <= limit <= MAX_LIMIT))
def test_no_limit_outside_the_range_is_taken(limit):
    with pytest.raises(BadParameter):
        LIMIT.read(str(limit))


@pytest.mark.parametrize("text", ["", " 1", "1 ", "+1", "1_000", "1e3", "0x10", "1.0", "\u0661", "null", "9" * 5000])
def test_only_plain_digits_are_a_number(text):
    with pytest.raises(BadParameter) as refused:
        LIMIT.read(text)
    assert refused.value.members["parameter"] == "limit"


def test_the_largest_id_of_the_database_is_taken_and_the_next_is_not():
    assert ALERT_ID.read(str(LARGEST_ID)) == LARGEST_ID
    with pytest.raises(BadParameter):
        ALERT_ID.read(str(LARGEST_ID + 1))


@pytest.mark.parametrize("text", ["", "a\0", "\ud800", "x" * 513])
def test_what_the_database_cannot_hold_names_no_node(text):
    for parameter in (NODE, NODE_ID):
        with pytest.raises(BadParameter):
            parameter.read(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00.125z", datetime(2026, 1, 31, 12, 0, 0, 125000, tzinfo=UTC)),
        ("2026-01-31T12:00:00-01:30", datetime(2026, 1, 31, 13, 30, tzinfo=UTC)),
    ],
)
def test_a_time_of_rfc_3339_is_taken(text, moment):
    assert SINCE.read(text) == moment
    assert SINCE.read(text).utcoffset() is not None


def test_what_is_not_given_has_its_default():
    query = read((LIMIT, NODE), MultiDict(), {})
    assert (query[LIMIT], query[NODE]) == (1000, None)


def test_a_path_is_read_before_the_query():
    with pytest.raises(BadParameter, match="alert_id"):
        read((ALERT_ID, LIMIT), MultiDict({"limit": "x"}), {"alert_id": "x"})


@given(
    st.one_of(
        st.tuples(st.just(NODES_CURSOR), st.builds(NodeKey, TEXT)),
        st.tuples(st.just(NODE_CURSOR), st.builds(NodeMetricsKey, MOMENTS, st.integers(1, 2**31 - 1))),
        st.tuples(st.just(LATEST_CURSOR), st.builds(LatestKey, TEXT, st.none() | TEXT)),
        st.tuples(st.just(ALERT_CURSOR), st.builds(AlertKey, MOMENTS, st.integers(1, LARGEST_ID))),
    )
)
def test_a_cursor_comes_back_as_the_place_it_was_made_of(case):
    parameter, place = case
    text = encode_cursor(place)
    assert text.isascii()
    assert not set(text) & set("=+/&?% ")
    assert parameter.read(text) == place


def test_a_cursor_keeps_a_time_to_the_microsecond():
    """Rows may be closer than the milliseconds that answers show."""
    at = datetime(2026, 1, 31, tzinfo=UTC) + timedelta(microseconds=123457)
    assert ALERT_CURSOR.read(encode_cursor(AlertKey(at, 1))).triggered_at == at


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_other_text_is_no_cursor(text):
    with pytest.raises(BadParameter):
        LATEST_CURSOR.read(text)
