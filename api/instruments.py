"""The API's own metrics: requests by route, method and status, how long they took, and the pool's connections.

A route is the pattern (`/api/v1/alerts/<alert_id>`), never the path, so the number of series is fixed. With several
processes each writes to files in PROMETHEUS_MULTIPROC_DIR, which must be set before this module is imported.
"""

import os
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from api.database import Connections

REQUESTS: Final = Counter(
    "gpu_telemetry_api_requests", "Requests answered, by route, method and status", ["route", "method", "status"]
)
REQUEST_SECONDS: Final = Histogram(
    "gpu_telemetry_api_request_duration_seconds",
    "How long requests took to answer, by route and method",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
CONNECTIONS: Final = Gauge(
    "gpu_telemetry_api_database_connections",
    "Connections to the database, open or being opened, and of these idle, of all processes",
    ["state"],
    multiprocess_mode="livesum",
)
WAITING_REQUESTS: Final = Gauge(
    "gpu_telemetry_api_database_waiting_requests",
    "Requests that wait for a connection to the database",
    multiprocess_mode="livesum",
)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"))


def observe(route: str | None, method: str, status: int, seconds: float) -> None:
    """Count one request; `route` is None where no route matched."""
    route = route or "unmatched"
    method = method if method in _METHODS else "other"
    REQUESTS.labels(route, method, str(status)).inc()
    REQUEST_SECONDS.labels(route, method).observe(seconds)


def observe_connections(connections: Connections) -> None:
    """Show how the pool of this process stands."""
    CONNECTIONS.labels("open").set(connections.open)
    CONNECTIONS.labels("idle").set(connections.idle)
    WAITING_REQUESTS.set(connections.waiting)


def registry() -> CollectorRegistry:
    """The figures of all processes where there are several, else of this one."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    gathered = CollectorRegistry()
    MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
    return gathered
