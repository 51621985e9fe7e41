"""How long the REST API takes on a fleet's history, over HTTP, from its real server and a real PostgreSQL.

`python -m benchmarks.api --rows 10000000` fills a database of its own by COPY (7 GB of disk for 10 million rows,
given back at the end), asks each route once when nothing is in memory, and then many times, one request after another.
Beside the wall time stands what a busy machine moves less: the 95th percentile without the time that the client, the
API and its database waited for a CPU (`alone`), and the CPU time of the API and of PostgreSQL.
"""

import argparse
import http.client
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import psutil
from pydantic import SecretStr

from benchmarks.cpu import Machine, Stopwatch
from benchmarks.history import History, fill
from benchmarks.processes import free_ports, running, wait_for
from benchmarks.run_queue import RunQueue
from gpu_telemetry.clock import rfc3339
from gpu_telemetry.local.postgres import PostgresServer
from gpu_telemetry.settings import DatabaseSettings

ROWS: Final = 10_000_000
NODES: Final = 1000
REQUESTS: Final = 200
_WARM_UP: Final = 5
# A slow route gets fewer requests, so that the whole run is bounded.
_ROUTE_SECONDS: Final = 20.0
_BYTES_A_ROW: Final = 800  # the row, its two index entries, its share of closing records and of the log
_TIMEOUT_SECONDS: Final = 30.0


class Asked(NamedTuple):
    """Milliseconds of each request, by the clock and without waiting for a CPU; mean bytes of an answer."""

    taken: list[float]
    alone: list[float]
    size: float


class Times(NamedTuple):
    """What the requests of one route took: milliseconds, of the wall and of CPU a request, and bytes an answer."""

    requests: int
    first: float
    p50: float
    p95: float
    p99: float
    alone_p95: float
    api_cpu: float
    postgres_cpu: float
    size: float


def paths_of(history: History) -> dict[str, list[str]]:
    """Each route's paths, which are asked in turn, so that no answer is the one before; the cheapest route first.

    What /healthz takes is what a request costs by itself.
    """
    nodes = history.node_ids[:: max(len(history.node_ids) // 97, 1)]
    # A full hour: what the running one holds depends on when one looks.
    hour = quote(rfc3339(history.ended_at.replace(minute=0, second=0, microsecond=0)))
    return {
        "healthz": ["/healthz"],
        "alerts_active": ["/api/v1/alerts/active"],
        "nodes": ["/api/v1/nodes"],
        "node": [f"/api/v1/nodes/{node}" for node in nodes],
        "node_metrics": [f"/api/v1/nodes/{node}/metrics?limit=100" for node in nodes],
        "metrics_latest_of_node": [f"/api/v1/metrics/latest?node={node}" for node in nodes],
        "metrics_latest": ["/api/v1/metrics/latest"],
        "gpus": ["/api/v1/gpus"],
        "gpu": [f"/api/v1/gpus/{gpu}" for gpu in history.gpu_uuids[::61]],
        "ledger_of_node": [f"/api/v1/ledger?node={node}" for node in nodes],
        "ledger": [f"/api/v1/ledger?until={hour}"],
        "fleet_summary": ["/api/v1/fleet/summary"],
        "node_metrics_10000": [f"/api/v1/nodes/{node}/metrics?limit=10000" for node in nodes],
        "metrics_latest_10000": ["/api/v1/metrics/latest?limit=10000"],
    }


def run(
    rows: int = ROWS,
    nodes: int = NODES,
    requests: int = REQUESTS,
    *,
    names: Sequence[str] = (),
    home: Path | None = None,
) -> dict[str, float]:
    """The figures of the routes named, of all if none is, from a database that is made in `home` and removed.

    Without `home` that is the system's temporary directory.

    Raises:
        RuntimeError: there is too little disk, or a request was not answered 200.
    """
    home = Path(tempfile.gettempdir()) if home is None else home
    free = shutil.disk_usage(home).free
    if free < rows * _BYTES_A_ROW:
        raise RuntimeError(
            f"{rows:,} rows take {rows * _BYTES_A_ROW / 1e9:.1f} GB, {home} has {free / 1e9:.1f} GB free"
        )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-telemetry-bench-api-", dir=home) as directory:
        root = Path(directory)
        root.chmod(0o755)
        server = PostgresServer(
            root / "postgres", *free_ports(1), log=root / "postgres.log", password=False, durable=False
        )
        server.start()
        try:
            started = time.monotonic()
            history = fill(
                DatabaseSettings.load(url=SecretStr(server.url)), rows=rows, nodes=nodes, now=datetime.now(UTC)
            )
            disk = _size(root)
            print(
                f"  {history.rows:,} rows and {history.scrapes:,} closing records of {nodes:,} nodes over"
                f" {(history.ended_at - history.started_at) / timedelta(days=1):.1f} days,"
                f" filled in {time.monotonic() - started:.0f} s; {disk / 1e9:.2f} GB on disk",
                flush=True,
            )
            figures["api_benchmark_disk_gb"] = disk / 1e9
            _print_header()
            before = Machine.now()
            paths = paths_of(history)
            for name in names or paths:
                times = _measure(server, paths[name], requests, root)
                _print_times(name, times)
                figures |= {
                    f"api_first_ms_{name}": times.first,
                    f"api_p50_ms_{name}": times.p50,
                    f"api_p95_ms_{name}": times.p95,
                    f"api_p99_ms_{name}": times.p99,
                    f"api_alone_p95_ms_{name}": times.alone_p95,
                    f"api_cpu_ms_{name}": times.api_cpu,
                    f"api_postgres_cpu_ms_{name}": times.postgres_cpu,
                }
            busy, stolen = Machine.now().since(before)
            print(f"  the machine was {busy:.0%} busy, {stolen:.0%} stolen, load {os.getloadavg()[0]:.1f}", flush=True)
        finally:
            server.stop()
    return figures


def _measure(server: PostgresServer, route: Sequence[str], requests: int, root: Path) -> Times:
    """One request to servers just started, the files out of memory, then many to the warm ones."""
    server.stop(deadline_seconds=60)
    _forget_files(root)
    server.start()
    assert server.pid is not None
    with _api(server, root) as (pid, port):
        paths = cycle(route)
        first = _ask(port, islice(paths, 1), 1, [])
        _ask(port, paths, max(_WARM_UP, min(len(route), requests)), [])
        watch = Stopwatch({"api": pid, "postgres": server.pid})
        asked = _ask(port, paths, requests, [os.getpid(), *_workers(pid), *_backends(server.pid)])
        cpu = watch.read()
    cuts, alone = _percentiles(asked.taken), _percentiles(asked.alone)
    count = len(asked.taken)
    return Times(
        requests=count,
        first=first.taken[0],
        p50=cuts[49],
        p95=cuts[94],
        p99=cuts[98],
        alone_p95=alone[94],
        api_cpu=cpu["api"] / count * 1000,
        postgres_cpu=cpu["postgres"] / count * 1000,
        size=asked.size,
    )


def _percentiles(values: list[float]) -> list[float]:
    """The 1st to the 99th."""
    return statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99


def _workers(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _backends(postmaster: int) -> list[int]:
    """The processes of PostgreSQL that serve clients."""
    return [child.pid for child in psutil.Process(postmaster).children() if "127.0.0.1(" in " ".join(child.cmdline())]


@contextmanager
def _api(server: PostgresServer, root: Path) -> Iterator[tuple[int, int]]:
    """The API as people run it; gives its process id and port."""
    (port,) = free_ports(1)
    log = root / "api.log"
    command = [str(Path(sys.executable).with_name("gpu-telemetry")), "api", "--listen", f"127.0.0.1:{port}"]
    environment = {"DATABASE_URL": server.url, "LOG_LEVEL": "WARNING", "API_STATEMENT_TIMEOUT_SECONDS": "30"}
    with running(command, environment, log) as child:
        wait_for(lambda: _answers(port), "the API", log)
        yield child.pid, port


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    finally:
        connection.close()


def _ask(port: int, paths: Iterator[str], requests: int, watched: Sequence[int]) -> Asked:
    """Ask one after another; a request lasts from its sending to the last byte of its answer.

    Raises:
        RuntimeError: one was not answered 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    connection.connect()
    taken: list[float] = []
    alone: list[float] = []
    size = 0
    deadline = time.monotonic() + _ROUTE_SECONDS
    try:
        with RunQueue(watched) as queue:
            for path in islice(paths, requests):
                before = queue.read()
                started = time.perf_counter()
                connection.request("GET", path)
                response = connection.getresponse()
                body = response.read()
                taken.append((time.perf_counter() - started) * 1000)
                spent = queue.read().since(before)
                # Two that waited at once are taken off twice, so what was worked is the least it can have been.
                alone.append(max(taken[-1] - spent.waiting, min(spent.running, taken[-1])))
                if response.status != http.HTTPStatus.OK:
                    said = body[:500].decode(errors="replace")
                    raise RuntimeError(f"GET {path} was answered {response.status}: {said}")
                size += len(body)
                if time.monotonic() > deadline:
                    break
    finally:
        connection.close()
    return Asked(taken, alone, size / len(taken))


def _forget_files(root: Path) -> None:
    """Ask the operating system to keep nothing of these files in memory."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _print_header() -> None:
    titles = ("first", "p50", "p95", "p99", "alone", "API CPU", "PG CPU")
    print(f"  {'milliseconds':24}" + "".join(f"{title:>9}" for title in titles) + "   requests, kB an answer")


def _print_times(name: str, times: Times) -> None:
    figures = (times.first, times.p50, times.p95, times.p99, times.alone_p95, times.api_cpu, times.postgres_cpu)
    counted = f"   {times.requests}, {times.size / 1000:.0f}"
    print(f"  {name:24}" + "".join(f"{figure:9.1f}" for figure in figures) + counted, flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of gpu_metrics (default: 10 million)")
    parser.add_argument("--nodes", type=int, default=NODES, help="nodes of 8 GPUs each (default: 1,000)")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests to a route at most (default: 200)")
    parser.add_argument(
        "--route", action="append", default=[], metavar="NAME", help="only this route of the table; may be given again"
    )
    parser.add_argument("--directory", type=Path, help="where the database is made (default: the temporary directory)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the database is removed then too
    run(arguments.rows, arguments.nodes, arguments.requests, names=arguments.route, home=arguments.directory)


if __name__ == "__main__":
    main()
