"""What a running stack is doing, asked of its services: nodes, GPUs, open alerts, rates and lag."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from gpu_telemetry.local.directory import Rates

_TIMEOUT_SECONDS: Final = 2.0
_WINDOW_SECONDS: Final = 30.0
# Enough for any fleet that one machine emulates; a larger one is shown in part, and says so.
_LIMIT: Final = 5000

SCRAPES: Final = "gpu_bridge_scrapes_total"
PUBLISHED: Final = "gpu_bridge_gpu_records_total"
STORED: Final = 'alert_engine_records_stored_total{kind="gpu"}'
LAG: Final = "alert_engine_lag_records"


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
    collected_at: str | None = None

    @property
    def workload(self) -> str | None:
        """Who uses it, in a word: pods or jobs."""
        names = [each.get("pod") or each.get("job") or each.get("container") for each in self.workloads]
        return ", ".join(name for name in names if name) or None


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the API lists it."""

    node_id: str
    status: str
    datacenter: str | None = None
    last_seen: str | None = None
    active_alerts: int = 0


class AlertView(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that is active."""

    id: int
    node_id: str
    gpu_index: int | None
    alert_type: str
    severity: str
    message: str
    triggered_at: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything. `unanswered` names the services that gave no answer, and why."""

    nodes: list[NodeView] = []
    gpus: list[GpuView] = []
    alerts: list[AlertView] = []
    consumer_lag: int | None = None
    counters: dict[str, float] = {}
    unanswered: dict[str, str] = {}


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
        api = self._urls["api"]
        counters: dict[str, float] = {}
        for service in ("bridge metrics", "alert engine metrics"):
            counters |= self._metrics(service, unanswered)
        lag = counters.get(LAG)
        return Snapshot(
            nodes=self._list(f"{api}/api/v1/nodes?limit={_LIMIT}", list[NodeView], unanswered),
            gpus=self._list(f"{api}/api/v1/metrics/latest?limit={_LIMIT}", list[GpuView], unanswered),
            alerts=self._list(f"{api}/api/v1/alerts/active?limit={_LIMIT}", list[AlertView], unanswered),
            consumer_lag=None if lag is None else int(lag),
            counters=counters,
            unanswered=unanswered,
        )

    def _list(self, url: str, shape: type[Any], unanswered: dict[str, str]) -> Any:  # noqa: ANN401 - of that shape
        try:
            answer = self._client.get(url).raise_for_status()
            return msgspec.json.decode(answer.content, type=shape)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            unanswered["api"] = reason(error)
            return []

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
