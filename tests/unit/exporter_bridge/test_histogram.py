"""The bridge's own histograms, against prometheus_client's."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Histogram as ClientHistogram

from exporter_bridge.histogram import Histogram, LoopHolds
from exporter_bridge.metrics import BridgeMetrics


@given(st.lists(st.sampled_from([0.0, 0.0005, 0.001, 0.0011, 0.5, 1.0, 1.5, 2.5, 7.0, 1e9]), max_size=30))
def test_it_counts_as_prometheus_client_does(values):
    bounds = (0.001, 0.5, 1.0, 2.5)
    theirs, registry = CollectorRegistry(), CollectorRegistry()
    client = ClientHistogram("some_seconds", "Some.", buckets=bounds, registry=theirs)
    ours = Histogram("some_seconds", "Some.", bounds)

    class Shown:
        def collect(self):
            return [ours.collect()]

    registry.register(Shown())
    for value in values:
        client.observe(value)
        ours.observe(value)
    expected = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(registry).splitlines() == expected


def test_a_hold_is_the_time_computed_between_two_marks():
    times = iter([1.0, 5.0, 5.003, 5.023])
    histogram = Histogram("hold_seconds", "Holds.", (0.005, 0.05))
    holds = LoopHolds(histogram, lambda: next(times))
    holds.begin()  # what went before is not the loop's
    holds.mark()
    holds.mark()
    counts = {sample.labels["le"]: sample.value for sample in histogram.collect().samples if "le" in sample.labels}
    assert counts == {"0.005": 1, "0.05": 2, "+Inf": 2}


def test_the_bridge_tells_how_late_turns_begin_and_how_long_the_loop_is_held():
    metrics = BridgeMetrics("bridge-1")
    metrics.turn_lateness.observe(0.015)
    metrics.loop_holds.mark()
    text = metrics.page().decode()
    assert 'gpu_bridge_turn_lateness_seconds_bucket{le="0.02"} 1.0' in text
    assert "gpu_bridge_loop_hold_seconds_count 1.0" in text
