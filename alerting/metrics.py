"""The alert engine's own metrics, and the server that shows them beside its health."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    make_wsgi_app,
)

from alerting.store import Outcome

_BATCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_BATCH_RECORDS = (1, 10, 100, 500, 1000, 2500, 5000, 10_000, 20_000)


class Metrics:
    """What the worker, the outbox and the housekeeping count. Each process has one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.stored = self._counter("records_stored", "Rows stored.", ("kind",))
        self.duplicates = self._counter("records_duplicate", "Records that were stored before.")
        self.late = self._counter("records_late", "Records older than their node's clock: stored, not evaluated.")
        self.beyond_retention = self._counter(
            "records_beyond_retention", "Records of days that are not kept: evaluated, not stored."
        )
        self.dead_letters = self._counter("dead_letters", "Messages sent to the dead-letter topic.", ("reason",))
        self.transitions = self._counter("transitions", "Transitions of alerts.", ("rule", "transition"))
        self.commands = self._counter("commands", "Manual resolves taken in.")
        self.silences = self._counter("silences", "Silences of nodes published.")
        self.gaps = self._counter("stream_gaps", "Times that records were gone before they could be read.", ("reason",))
        self.fenced = self._counter("batches_fenced", "Batches refused because another worker took over.")
        self.retries = self._counter("batch_retries", "Batches begun again.", ("cause",))
        self.database_errors = self._counter("database_errors", "Errors of the database.", ("part",))
        self.actions = self._counter("actions", "Actions that came to an end.", ("action", "outcome"))
        self.action_attempts = self._counter("action_attempts", "Attempts to carry out an action.", ("action",))
        self.batch_seconds = Histogram(
            "alert_engine_batch_seconds",
            "From a batch's decoding to its commit.",
            registry=self.registry,
            buckets=_BATCH_SECONDS,
        )
        self.batch_records = Histogram(
            "alert_engine_batch_records", "Records in a batch.", registry=self.registry, buckets=_BATCH_RECORDS
        )
        self.lag_records = self._gauge("lag_records", "Records in the owned partitions that are not taken in yet.")
        self.lag_seconds = self._gauge("lag_seconds", "How long ago all that the broker then had was taken in.")
        self.partitions = self._gauge("partitions_owned", "Partitions that this worker owns.")
        self.nodes = self._gauge("nodes_watched", "Nodes of these partitions that are expected to be heard.")
        self.last_commit = self._gauge("last_commit_timestamp_seconds", "When the last batch was committed.")
        self.unseen_fields = Gauge(
            "alert_engine_rule_field_unseen",
            "1 for a rule whose field no record has held since the start: it cannot fire.",
            ("rule", "field"),
            registry=self.registry,
        )
        self.partitions_until = self._gauge(
            "partitions_until_timestamp_seconds", "The end of the last day for which all tables have a partition."
        )
        self.ledger_missing = self._gauge(
            "ledger_missing_gpu_records", "GPU records of the last whole hour that nothing explains, as last counted."
        )
        self.backlog = self._gauge("actions_waiting", "Actions that wait or are under way.", ("action",))

    def count(self, outcome: Outcome, records: int, seconds: float, now: datetime) -> None:
        """Count what a committed batch came to."""
        self.stored.labels("gpu").inc(outcome.gpu_rows)
        self.stored.labels("scrape").inc(outcome.scrapes)
        self.duplicates.inc(outcome.duplicates)
        self.late.inc(outcome.late)
        self.beyond_retention.inc(outcome.beyond_retention)
        self.commands.inc(outcome.commands)
        for gap in outcome.gaps:
            self.gaps.labels(gap.reason).inc()
        for _, transition in outcome.transitions:
            self.transitions.labels(transition.key.rule, transition.kind).inc()
        if records:
            self.batch_records.observe(records)
            self.batch_seconds.observe(seconds)
        self.last_commit.set(now.timestamp())

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"alert_engine_{name}", text, tuple(labels), registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"alert_engine_{name}", text, tuple(labels), registry=self.registry)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: a scrape is no news."""


class _Server(WSGIServer):
    daemon_threads = True


def make_listener(host: str, port: int, metrics: Metrics, problems: Callable[[], list[str]]) -> WSGIServer:
    """The server of /metrics, /healthz (the process answers) and /readyz (503 with the problems, if any).

    Raises:
        OSError: the address cannot be listened on.
    """
    metrics_app = make_wsgi_app(metrics.registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            page: Iterable[bytes] = metrics_app(environ, start_response)
            return page
        answer: dict[str, object]
        if path == "/healthz":
            status, answer = "200 OK", {"status": "ok"}
        elif path == "/readyz":
            found = problems()
            status = "503 Service Unavailable" if found else "200 OK"
            answer = {"status": "unready", "problems": found} if found else {"status": "ok"}
        else:
            status, answer = "404 Not Found", {"error": "expected /metrics, /healthz or /readyz"}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode() + b"\n"]

    try:
        return make_server(host, port, application, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
