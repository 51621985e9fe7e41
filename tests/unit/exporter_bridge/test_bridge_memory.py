"""What the bridge learns leaves the garbage collector's sight, and what it no longer needs goes back to the system."""

import asyncio
import gc

import pytest

from exporter_bridge.memory import Memory, give_back

pytestmark = pytest.mark.usefixtures("thawed")


@pytest.fixture
def thawed():
    """What a test froze is the collector's again afterwards."""
    yield
    gc.unfreeze()


def test_what_is_learned_is_settled_when_it_has_grown_by_a_tenth():
    counts = iter([0, 1, 100, 105, 110, 111, 112, 1000])
    memory = Memory(lambda: next(counts), lambda: None)
    assert [memory.settle() for _ in range(8)] == [False, True, True, False, False, True, False, True]


def test_what_is_settled_is_walked_over_by_no_full_collection():
    memory = Memory(lambda: 1, lambda: None)
    learned = [[number] for number in range(1000)]
    assert memory.settle()
    tracked = {id(thing) for thing in gc.get_objects()}
    assert not any(id(thing) in tracked for thing in learned)


def test_a_cycle_that_is_garbage_when_all_is_settled_is_not_kept_for_ever():
    class Thing:
        pass

    thing = Thing()
    thing.itself = thing
    gone = []
    thing.end = type("End", (), {"__del__": lambda _: gone.append(1)})()
    del thing
    assert Memory(lambda: 1, lambda: None).settle()
    assert gone == [1]


def test_free_memory_is_given_back_once_the_fleet_is_known(on_loop, loopback, monkeypatch):
    given_back, done = [], []
    monkeypatch.setattr("exporter_bridge.memory.give_back", lambda: given_back.append(1))
    monkeypatch.setattr("exporter_bridge.memory._QUIET_SECONDS", 0.3)

    async def run():
        looks = []

        def known():
            looks.append(1)
            return 25

        keeping = asyncio.ensure_future(Memory(known, lambda: done.append(1)).keep())
        await loopback.until(lambda: given_back)
        seen = len(looks)
        await loopback.until(lambda: len(looks) > 2 * seen)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    on_loop(run())
    # Once, and not again at each look; each piece of work is told of.
    assert (given_back, done) == ([1], [1, 1])


def test_giving_back_works_on_this_system():
    give_back()
