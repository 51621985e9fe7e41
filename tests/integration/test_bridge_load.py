"""The load test itself, small and short: nothing of it depends on how fast the machine is."""

import pytest

from benchmarks.load import BOUNDS, broken, run

pytestmark = pytest.mark.integration


def test_a_small_fleet_of_which_part_hangs_and_part_refuses_is_scraped_and_fetched_again():
    figures = run(nodes=40, gpus=2, interval=1.0, seconds=9, failing=0.05, seed=1, slope_seconds=0)
    assert figures["good_scrapes_a_second"] > 10
    assert figures["shards_fetched"] >= 1
    assert (figures["failed_fetches"], figures["dropped_scrapes"]) == (0, 0)
    assert figures.keys() >= {bound.figure for bound in BOUNDS} - {"bytes_a_node"}


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.figure)
def test_a_bound_that_is_broken_is_told_and_one_that_is_met_is_not(bound):
    assert broken({bound.figure: bound.at_most}) == []
    (told,) = broken({bound.figure: bound.at_most + 0.5})
    assert told.startswith(f"{bound.figure} is ")
    assert bound.meaning in told
