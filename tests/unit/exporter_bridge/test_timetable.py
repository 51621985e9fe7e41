"""When turns come."""

from hypothesis import given
from hypothesis import strategies as st

from exporter_bridge.timetable import Timetable


def test_a_node_is_due_once_an_interval_at_its_offset():
    table = Timetable(30, 1000.0)  # 1000 = 33 intervals and 10 seconds
    table.set({"a": 5.0, "b": 20.0})
    assert table.seconds_to_next(1000.0) == 10.0
    assert table.due(1009.9) == []
    assert table.due(1010.0) == ["b"]
    assert table.seconds_to_next(1010.0) == 15.0
    assert table.due(1025.0) == ["a"]
    assert table.due(1040.0) == ["b"]


def test_after_a_standstill_each_node_is_due_once():
    table = Timetable(30, 0.0)
    table.set({"a": 5.0, "b": 20.0})
    assert sorted(table.due(1000.0)) == ["a", "b"]
    assert table.due(1000.0) == []


def test_nodes_that_come_and_go_leave_the_others_turns_as_they_were():
    table = Timetable(30, 0.0)
    table.set({"a": 5.0, "b": 20.0})
    assert table.due(6.0) == ["a"]
    table.set({"b": 20.0, "c": 5.5})
    assert table.due(29.0) == ["b"]
    assert table.due(36.0) == ["c"]


def test_without_nodes_nothing_is_due():
    table = Timetable(30, 0.0)
    assert table.due(100.0) == []
    assert table.seconds_to_next(100.0) == 30


@given(
    st.dictionaries(st.text(min_size=1), st.floats(0, 9.999), max_size=20),
    st.lists(st.floats(0.01, 9), min_size=1, max_size=40),
)
def test_however_often_it_is_asked_every_node_is_due_once_in_each_interval(offsets, waits):
    table = Timetable(10, 0.0)
    table.set(offsets)
    now, due = 0.0, []
    for wait in waits:
        now += wait
        due += table.due(now)
    for node, offset in offsets.items():
        whole, phase = divmod(now, 10)
        # Both ends of the time that passed lie somewhere in the interval: one turn more or less at each.
        assert abs(due.count(node) - whole - (0 < offset <= phase)) <= 1e-9 or offset == 0
