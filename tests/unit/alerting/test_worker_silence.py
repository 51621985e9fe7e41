"""Which nodes are quiet, in seconds of a clock that the test turns."""

from alerting.silence import TOLERATED_LAG_SECONDS, NodeWatch

INTERVAL_MS = 30_000


def caught_up(watch, since, until):
    """The worker keeps up from `since` to `until`, asking every second."""
    moment = since
    while moment <= until:
        watch.caught_up(float(moment))
        moment += 1


def test_a_node_is_quiet_after_three_intervals_without_a_record():
    watch = NodeWatch()
    watch.caught_up(0)
    watch.heard("node-1", 10, INTERVAL_MS)
    caught_up(watch, 1, 99)
    assert list(watch.quiet()) == []
    watch.caught_up(100)
    assert list(watch.quiet()) == [("node-1", INTERVAL_MS)]


def test_what_was_told_is_not_told_again_until_the_node_was_heard():
    watch = NodeWatch()
    watch.heard("node-1", 0, INTERVAL_MS)
    caught_up(watch, 0, 90)
    watch.told("node-1")
    caught_up(watch, 91, 500)
    assert list(watch.quiet()) == []
    watch.heard("node-1", 500, INTERVAL_MS)
    caught_up(watch, 501, 590)
    assert list(watch.quiet()) == [("node-1", INTERVAL_MS)]


def test_a_silence_that_was_not_delivered_is_told_again():
    watch = NodeWatch()
    watch.heard("node-1", 0, INTERVAL_MS)
    caught_up(watch, 0, 90)
    watch.told("node-1")
    watch.told("node-1", told=False)
    assert list(watch.quiet()) == [("node-1", INTERVAL_MS)]


def test_time_in_which_the_worker_was_behind_does_not_count():
    watch = NodeWatch()
    watch.heard("node-1", 0, INTERVAL_MS)
    caught_up(watch, 0, 60)
    # Behind for longer than is tolerated: the node's records may wait somewhere too.
    watch.caught_up(61 + TOLERATED_LAG_SECONDS)
    caught_up(watch, 67, 67 + 88)
    assert list(watch.quiet()) == []
    caught_up(watch, 156, 157)
    assert list(watch.quiet()) == [("node-1", INTERVAL_MS)]


def test_a_node_from_before_the_start_is_quiet_three_intervals_after_the_worker_caught_up():
    watch = NodeWatch()
    watch.expect("node-1", INTERVAL_MS)
    assert list(watch.quiet()) == []
    caught_up(watch, 1000, 1089)
    assert list(watch.quiet()) == []
    watch.caught_up(1090)
    assert list(watch.quiet()) == [("node-1", INTERVAL_MS)]


def test_each_node_has_its_own_interval_and_a_removed_one_is_not_watched():
    watch = NodeWatch()
    watch.heard("quick", 0, 1000)
    watch.heard("slow", 0, 60_000)
    watch.heard("gone", 0, 1000)
    watch.removed("gone")
    watch.removed("never known")
    caught_up(watch, 0, 3)
    assert list(watch.quiet()) == [("quick", 1000)]
    assert len(watch) == 2


def test_a_worker_that_never_caught_up_calls_nobody_quiet():
    watch = NodeWatch()
    watch.heard("node-1", 0, 1000)
    assert list(watch.quiet()) == []
