"""Slow reading in slices, and what is said of many nodes at once."""

import asyncio
from types import SimpleNamespace

import pytest

from exporter_bridge import slicing
from exporter_bridge.slicing import SLICE_SECONDS, SlicedReader
from exporter_bridge.telling import NodeLog


@pytest.fixture
def steps(monkeypatch):
    """`steps(count, seconds, result)`: a page that is read in so many steps, each of which takes so long.

    The time is ours: a machine that is busy would take a known page for a new one.
    """
    now = 0.0

    def make(count, seconds, result="page"):
        nonlocal now
        for _ in range(count):
            now += seconds
            yield
        if result is None:
            raise ZeroDivisionError
        return result

    monkeypatch.setattr(slicing, "time", SimpleNamespace(perf_counter=lambda: now))
    return make


def unexpected():
    raise AssertionError


def test_known_pages_that_come_in_one_go_are_read_in_one_go(on_loop, steps):
    async def run():
        got = []
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(0, 0, "one"), got.append, unexpected)
        reader.read(steps(0, 0, "two"), got.append, unexpected)
        before = list(got), len(reader)
        await asyncio.sleep(0)
        return before, got, len(reader)

    assert on_loop(run()) == (([], 2), ["one", "two"], 0)


def test_a_crowd_of_known_pages_is_read_in_slices(on_loop, loopback, steps):
    async def run():
        got, slices = [], []
        reader = SlicedReader(asyncio.get_running_loop(), lambda: slices.append(len(got)))
        for number in range(40):
            reader.read(steps(1, SLICE_SECONDS / 4, number), got.append, unexpected)
        await loopback.until(lambda: not len(reader))
        return got, slices

    got, slices = on_loop(run())
    assert got == list(range(40))
    assert max(after - before for before, after in zip([0, *slices], slices, strict=False)) <= 5


def test_new_pages_are_read_first_come_first_served_while_known_ones_pass(on_loop, steps):
    async def run():
        got = []
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(10, SLICE_SECONDS / 2, "slow 1"), got.append, unexpected)
        reader.read(steps(10, SLICE_SECONDS / 2, "slow 2"), got.append, unexpected)
        passed = 0
        while len(reader):
            passed += 1
            reader.read(steps(0, 0, "known"), got.append, unexpected)
            await asyncio.sleep(0)
        return got, passed

    got, passed = on_loop(run())
    assert [page for page in got if page != "known"] == ["slow 1", "slow 2"]
    assert got[:2] == ["known", "known"]
    assert passed >= 5


def test_new_pages_go_on_however_many_known_ones_come(on_loop, steps):
    async def run():
        got = []
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(4, SLICE_SECONDS / 8, "new"), got.append, unexpected, new=True)
        while "new" not in got and len(got) < 200:
            for _ in range(5):
                reader.read(steps(1, SLICE_SECONDS / 4, "known"), got.append, unexpected)
            await asyncio.sleep(0)
        reader.stop()
        return got

    assert "new" in on_loop(run())


def test_a_page_that_is_said_to_be_new_waits_for_those_before_it_and_for_known_ones(on_loop, loopback, steps):
    async def run():
        got = []
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(3, SLICE_SECONDS, "slow"), got.append, unexpected, new=True)
        reader.read(steps(0, 0, "new"), got.append, unexpected, new=True)
        reader.read(steps(0, 0, "known"), got.append, unexpected)
        await loopback.until(lambda: not len(reader))
        return got

    assert on_loop(run()) == ["known", "slow", "new"]


def test_a_page_on_which_reading_fails_costs_that_page(on_loop, loopback, steps):
    async def run():
        got, failed = [], []
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(5, SLICE_SECONDS, None), unexpected, lambda: failed.append(1))
        reader.read(steps(5, SLICE_SECONDS), got.append, unexpected)
        await loopback.until(lambda: not len(reader))
        return got, failed

    assert on_loop(run()) == (["page"], [1])


def test_after_a_stop_nothing_is_read(on_loop, steps):
    async def run():
        reader = SlicedReader(asyncio.get_running_loop())
        reader.read(steps(5, SLICE_SECONDS), unexpected, unexpected)
        reader.stop()
        await asyncio.sleep(0.01)
        return len(reader)

    assert on_loop(run()) == 0


def test_a_fleet_that_fails_together_takes_a_few_lines_and_one_that_sums_up(caplog):
    log = NodeLog()
    for number in range(1000):
        log.failed(f"node-{number}", "timeout", "no answer")
    log.sum_up(failing=1000)
    assert len(caplog.records) == 21
    assert "980 more nodes failed or came back; 1000 fail now" in caplog.text
    log.failed("node-1", "dns", "no such host")
    assert caplog.records[-1].message == "node-1: scrape failed: dns (no such host)"
