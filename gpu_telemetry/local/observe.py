"""What a running stack is doing, asked of its services: nodes, GPUs, open alerts, rates and lag."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Final, TypeVar

import httpx
import msgspec

from gpu_telemetry.local.directory import Rates

_TIMEOUT_SECONDS: Final = 2.0
_WINDOW_SECONDS: Final = 30.0
# Rows of one answer; a longer list is read page by page.
_LIMIT: Final = 5000
# A node in one of these shows nothing: its exporter is down, or nobody heard of it for three intervals.
_SILENT: Final = frozenset({"down", "unknown"})

SCRAPES: Final = "gpu_bridge_scrapes_total"
PUBLISHED: Final = "gpu_bridge_gpu_records_total"
STORED: Final = 'alert_engine_records_stored_total{kind="gpu"}'
LAG: Final = "alert_engine_lag_records"

Shape = TypeVar("Shape")


class GpuView(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or MIG instance as it was last stored. Degrees Celsius, watts, percent."""

    node_id: str
    gpu_index: int
    gpu_uuid: str
    mig_instance: str | None = None
    model: str | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    gpu_utilization_percent: float | None = None
    memory_used_percent: float | None = None
    workloads: list[dict[str, str | None]] = []
    collected_at: str

    @property
    def workload(self) -> str | None:
        """Who uses it, in a word: pods or jobs."""
        names = [each.get("pod") or each.get("job") or each.get("container") for each in self.workloads]
        return ", ".join(name for name in names if name) or None


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the API lists it; `last_seen` is when its newest good page was scraped."""

    node_id: str
    status: str
    datacenter: str | None = None
    last_seen: str | None = None
    active_alerts: int = 0

    @property
    def is_up(self) -> bool:
        """Whether its exporter is heard."""
        return self.status not in _SILENT

    def shows(self, gpu: GpuView) -> bool:
        """Whether a GPU that stands in this node was on its newest page; one that is older is gone or silent."""
        # Both are times of scrapes as the API writes them, so that their order is that of the texts.
        return self.is_up and self.last_seen is not None and gpu.collected_at >= self.last_seen


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that is active."""

    id: int
    node_id: str
    gpu_index: int | None
    alert_type: str
    severity: str
    message: str
    triggered_at: str


class NodeTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes are in the configuration."""

    total: int = 0
    down: int = 0
    unknown: int = 0


class GpuTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many GPUs stand in them, and how many of these were scraped within three intervals."""

    total: int = 0
    reporting: int = 0


class AlertTotals(msgspec.Struct, frozen=True, kw_only=True):
    """How many alerts are active."""

    total: int = 0


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole fleet, counted by the API."""

    nodes: NodeTotals = NodeTotals()
    gpus: GpuTotals = GpuTotals()
    alerts: AlertTotals = AlertTotals()


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything. `unanswered` names the services that gave no answer, and why."""

    fleet: FleetView = FleetView()
    nodes: list[NodeView] = []
    gpus: list[GpuView] = []
    alerts: list[AlertView] = []
    consumer_lag: int | None = None
    counters: dict[str, float] = {}
    unanswered: dict[str, str] = {}

    def shown(self) -> list[GpuView]:
        """The GPUs and MIG instances that their nodes show now, without those of which only an old row is left."""
        nodes = {node.node_id: node for node in self.nodes}
        return [gpu for gpu in self.gpus if gpu.node_id in nodes and nodes[gpu.node_id].shows(gpu)]


class _Problem(msgspec.Struct):
    """What we read of an RFC 9457 problem."""

    detail: str


class Observer:
    """Asks the services of a stack.

    Args:
        urls: the addresses of the services, as the stack's state gives them.
    """

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def look(self) -> Snapshot:
        """Ask all services once; what does not answer is empty and named."""
        unanswered: dict[str, str] = {}
        api = f"{self._urls['api']}/api/v1"
        counters: dict[str, float] = {}
        for service in ("bridge metrics", "alert engine metrics"):
            counters |= self._metrics(service, unanswered)
        lag = counters.get(LAG)
        fleet, nodes, gpus, alerts = FleetView(), list[NodeView](), list[GpuView](), list[AlertView]()
        try:
            (fleet,) = self._pages(f"{api}/fleet/summary", FleetView)
            # Before the GPUs: what was on a node's newest page is then among them, or something newer.
            nodes = list(chain.from_iterable(self._pages(f"{api}/nodes?limit={_LIMIT}", list[NodeView])))
            gpus = list(chain.from_iterable(self._pages(f"{api}/metrics/latest?limit={_LIMIT}", list[GpuView])))
            alerts = list(chain.from_iterable(self._pages(f"{api}/alerts/active?limit={_LIMIT}", list[AlertView])))
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            unanswered["api"] = reason(error)
        return Snapshot(
            fleet=fleet,
            nodes=nodes,
            gpus=gpus,
            alerts=alerts,
            consumer_lag=None if lag is None else int(lag),
            counters=counters,
            unanswered=unanswered,
        )

    def _pages(self, url: str, shape: type[Shape]) -> Iterator[Shape]:
        """The answer at a URL, and those at the pages after it.

        Raises:
            httpx.HTTPError, msgspec.DecodeError: it does not answer, or not so.
        """
        following: str | None = url
        while following is not None:
            answer = self._client.get(following).raise_for_status()
            yield msgspec.json.decode(answer.content, type=shape)
            following = answer.links.get("next", {}).get("url")

    def _metrics(self, service: str, unanswered: dict[str, str]) -> dict[str, float]:
        try:
            text = self._client.get(self._urls[service]).raise_for_status().text
        except httpx.HTTPError as error:
            unanswered[service.removesuffix(" metrics")] = reason(error)
            return {}
        return sums(text, (SCRAPES, PUBLISHED, STORED, LAG))


def reason(error: Exception) -> str:
    """Why a service gave no answer, in a few words."""
    if isinstance(error, httpx.HTTPStatusError):
        status = f"HTTP {error.response.status_code}"
        try:
            return f"{status}: {msgspec.json.decode(error.response.content, type=_Problem).detail}"
        except msgspec.DecodeError:
            return status
    return str(error) or type(error).__name__


def sums(text: str, names: tuple[str, ...]) -> dict[str, float]:
    """The value of each named series of a metrics page without time stamps.

    A name is a family's, whose series are then summed, or a series' with its labels.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        for name in {series, series.partition("{")[0]}.intersection(names):
            found[name] = found.get(name, 0.0) + float(value)
    return found


class RateMeter:
    """Turns counters that are read now and then into rates over the last half minute."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, dict[str, float]]] = deque()

    def read(self, counters: dict[str, float], now: float | None = None) -> Rates:
        """Take a reading and give the rates a second up to it; a counter that fell (a restart) has none for a while."""
        moment = time.monotonic() if now is None else now
        self._readings.append((moment, counters))
        while len(self._readings) > 1 and self._readings[1][0] <= moment - _WINDOW_SECONDS:
            self._readings.popleft()
        began, first = self._readings[0]

        def rate(name: str) -> float | None:
            if moment - began < 1 or name not in counters or name not in first or counters[name] < first[name]:
                return None
            return round((counters[name] - first[name]) / (moment - began), 2)

        return Rates(scrapes=rate(SCRAPES), published=rate(PUBLISHED), stored=rate(STORED))
