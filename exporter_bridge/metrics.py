"""The bridge's own metrics: every name, its meaning and its labels in one place.

What happens at each scrape is counted through children kept at hand: looking one up by label costs more than counting.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter_bridge.histogram import Histogram, LoopHolds
from gpu_telemetry.fields import FIELD_BY_NAME

# From a cached page on the same host to the longest usual time-out.
_DURATION_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LATENESS_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_HOLD_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)


class Tally:
    """A counter without labels, for one thread: counting costs a tenth of what prometheus_client's costs."""

    def __init__(self) -> None:
        self._total = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count so many."""
        self._total += amount

    def total(self) -> float:
        """What was counted."""
        return self._total


class LabelledCounter:
    """A counter with labels whose children are kept at hand."""

    def __init__(self, parent: Counter) -> None:
        self._parent = parent
        self._children: dict[tuple[str, ...], Counter] = {}

    def add(self, amount: float, *values: str) -> None:
        """Add to the child with these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._parent.labels(*values)
        child.inc(amount)

    def __contains__(self, values: tuple[str, ...]) -> bool:
        return values in self._children


class _ReadWhenAsked(Collector):
    """Numbers that something else counts already."""

    def __init__(self) -> None:
        self._gauges: list[tuple[str, str, Callable[[], float]]] = []
        self._counters: list[tuple[str, str, Callable[[], float]]] = []
        self._histograms: list[Histogram] = []

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        self._histograms.append(Histogram(name, text, bounds))
        return self._histograms[-1]

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._gauges.append((name, text, read))

    def counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._counters.append((name, text, read))

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, value=read())
        for name, text, read in self._counters:
            yield CounterMetricFamily(name, text, value=read())
        for histogram in self._histograms:
            yield histogram.collect()


class BridgeMetrics:
    """The metrics of one bridge, in a registry of its own."""

    def __init__(self, bridge_id: str) -> None:
        # Prometheus' text format has no place for the time at which a series began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry(auto_describe=False)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._read = _ReadWhenAsked()
        registry.register(self._read)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def tally(name: str, text: str) -> Tally:
            counted = Tally()
            self._read.counter(name, text, counted.total)
            return counted

        build = Gauge(
            "gpu_bridge_build_info", "The bridge and its version.", ("version", "bridge_id"), registry=registry
        )
        build.labels(version("gpu-telemetry"), bridge_id).set(1)

        self.scrapes = tally("gpu_bridge_scrapes", "Turns that ended: complete, failed or skipped.")
        self.scrape_failures = LabelledCounter(
            counter("gpu_bridge_scrape_failures_total", "Turns without a page, by reason.", "reason")
        )
        self.scrape_seconds = self._read.histogram(
            "gpu_bridge_scrape_duration_seconds", "How long exporters took to give a page.", _DURATION_BUCKETS
        )
        self.turn_lateness = self._read.histogram(
            "gpu_bridge_turn_lateness_seconds", "How long after its time a node's scrape began.", _LATENESS_BUCKETS
        )
        self.loop_holds = LoopHolds(
            self._read.histogram(
                "gpu_bridge_loop_hold_seconds",
                "CPU time that the event loop's thread spent in one go.",
                _HOLD_BUCKETS,
            )
        )
        self.scraped_bytes = tally("gpu_bridge_scraped_bytes", "Bytes of pages read.")
        self.samples = tally("gpu_bridge_samples", "Samples read from pages.")
        self.gpu_records = tally("gpu_bridge_gpu_records", "GPU records made from pages.")
        self.refused_lines = LabelledCounter(
            counter("gpu_bridge_refused_lines_total", "Lines of pages that were not understood.", "reason")
        )
        self._rejected_values = LabelledCounter(
            counter("gpu_bridge_rejected_values_total", "Values that were read and not believed.", "field", "reason")
        )
        self.not_recorded = LabelledCounter(
            counter("gpu_bridge_not_recorded_samples_total", "Samples that no GPU record holds, by entity.", "entity")
        )
        self.dropped_scrapes = LabelledCounter(
            counter("gpu_bridge_dropped_scrapes_total", "Whole scrapes that will not reach Kafka.", "reason")
        )
        self.dropped_gpu_records = LabelledCounter(
            counter("gpu_bridge_dropped_gpu_records_total", "GPU records that will not reach Kafka.", "reason")
        )
        self.delivered_messages = tally("gpu_bridge_delivered_messages", "Messages that Kafka acknowledged.")
        self.failed_deliveries = LabelledCounter(
            counter("gpu_bridge_failed_deliveries_total", "Messages that Kafka or its client refused.", "error")
        )
        self.removed_nodes = tally("gpu_bridge_removed_nodes", "Nodes that left the configuration for good.")
        self.internal_errors = tally("gpu_bridge_internal_errors", "Pages on which the bridge itself failed.")
        self.reload_success = Gauge(
            "gpu_bridge_config_reload_success", "Whether the last read of the targets was good.", registry=registry
        )
        self.reload_timestamp = Gauge(
            "gpu_bridge_config_last_reload_success_timestamp_seconds",
            "When the targets were last read and good.",
            registry=registry,
        )
        self.family_conflicts = Gauge(
            "gpu_bridge_family_conflicts",
            "Families of the last fleet page, or of its shards, whose TYPE or HELP differs between nodes; "
            "the first one is shown.",
            registry=registry,
        )

    def count_rejected(self, amount: int, name: str, reason: str) -> None:
        """Count rejected values; names outside the field table are one, so that no exporter makes labels up."""
        self._rejected_values.add(amount, name if name in FIELD_BY_NAME else "other", reason)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        self._read.gauge(name, text, read)

    def counter(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A counter that something else keeps, read when it is asked for; without `_total` in its name here."""
        self._read.counter(name, text, read)

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
