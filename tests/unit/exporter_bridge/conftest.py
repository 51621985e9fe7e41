"""Exporters on loopback that behave as told, and the bridge's parts put together on a loop of the test's own."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvloop

from exporter_bridge.fetch import Fetcher
from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.publisher import Publisher
from exporter_bridge.scraper import Scraper
from exporter_bridge.settings import BridgeSettings
from exporter_bridge.targets import Target
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.records import ScrapeRecord, decode
from gpu_telemetry.settings import KafkaSettings

TEST_DEADLINE_SECONDS = 30
PAGE = """\
# HELP DCGM_FI_DEV_GPU_TEMP GPU temperature (in C).
# TYPE DCGM_FI_DEV_GPU_TEMP gauge
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1",device="nvidia0",modelName="NVIDIA H100",Hostname="host-1"} 45
DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="GPU-2",device="nvidia1",modelName="NVIDIA H100",Hostname="host-1"} 46
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-1",device="nvidia0",modelName="NVIDIA H100",Hostname="host-1"} 300.500000
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-2",device="nvidia1",modelName="NVIDIA H100",Hostname="host-1"} 301.500000
"""

Answering = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def http(body: str | bytes = PAGE, status: str = "200 OK", length: int | None = None) -> Answering:
    """An answer with this body; `length` is what its head claims."""
    content = body.encode() if isinstance(body, str) else body

    async def answer(_head, writer):
        claimed = len(content) if length is None else length
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {claimed}\r\n\r\n".encode() + content)
        await writer.drain()
        if claimed != len(content):
            writer.close()

    return answer


async def hang(_head, _writer):
    """Never answer."""
    await asyncio.Event().wait()


async def hang_up(_head, writer):
    """Close without an answer."""
    writer.close()


@dataclass
class Exporter:
    """A server whose paths answer as `answers` says, or by `answer`; it keeps the heads of the requests."""

    answer: Answering = field(default_factory=http)
    answers: dict[str, Answering] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def url(self, path: str = "/metrics", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests.append(head)
                await self.answers.get(head.split(" ")[1], self.answer)(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(exporter: Exporter, tls: ssl.SSLContext | None = None) -> AsyncIterator[Exporter]:
    """The exporter on a free port, until the end of the block."""
    tasks: set[asyncio.Task] = set()

    def connected(reader, writer):
        task = asyncio.ensure_future(exporter.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    exporter.port = server.sockets[0].getsockname()[1]
    try:
        yield exporter
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], object], deadline_seconds: float = 10) -> None:
    """Wait for a condition while the loop goes on."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + deadline_seconds
    while not condition():
        assert loop.time() < deadline, f"not within {deadline_seconds} s"
        await asyncio.sleep(0.005)


class Bench:
    """A scraper whose publisher never reaches Kafka, so that all it publishes can be read from its queue.

    Its interval is long: a time-out of a fifth of a second passes on a busy machine before a good page is read.
    """

    def __init__(self, clock=None, max_in_flight=100, **settings):
        self.settings = BridgeSettings(**{"interval_seconds": 30, "id": "bridge-1"} | settings)
        self.metrics = BridgeMetrics(self.settings.id)
        self.fetcher = Fetcher(
            asyncio.get_running_loop(), body_limit_bytes=self.settings.body_limit_bytes, kept_connections=10
        )
        self.publisher = Publisher(
            KafkaSettings(bootstrap_servers="127.0.0.1:1"),
            self.metrics,
            queue_scrapes=self.settings.queue_scrapes,
            queue_bytes=self.settings.queue_bytes,
        )
        self.scraper = Scraper(
            self.settings,
            fetcher=self.fetcher,
            publisher=self.publisher,
            metrics=self.metrics,
            clock=clock or SystemClock(),
            max_in_flight=max_in_flight,
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error):
        self.scraper.stop()
        self.fetcher.close()
        await self.publisher.close(0)

    def apply(self, **urls: str) -> None:
        """Scrape these nodes, named with underscores for dashes."""
        targets = [Target(name.replace("_", "-"), url, "host:9400") for name, url in urls.items()]
        self.scraper.apply({target.node_id: target for target in targets})

    def records(self, node_id: str | None = None):
        """All records published so far, decoded."""
        return [
            decode(message)
            for waiting in (*self.publisher._removals, *self.publisher._queue)
            if node_id in {None, waiting.scrape.node_id}
            for message in waiting.scrape.messages
        ]

    def turns(self, node_id: str | None = None) -> list[ScrapeRecord]:
        """The closing records published so far."""
        return [record for record in self.records(node_id) if isinstance(record, ScrapeRecord)]


@pytest.fixture
def on_loop():
    """`on_loop(coroutine)`: run it on the bridge's kind of loop, within a deadline."""

    def run(work):
        async def within():
            return await asyncio.wait_for(work, TEST_DEADLINE_SECONDS)

        return uvloop.run(within())

    return run


@pytest.fixture
def loopback():
    """The names of this file, since test folders are no packages."""
    return Loopback


class Loopback:
    """What tests take from this file."""

    PAGE = PAGE
    Bench = Bench
    Exporter = Exporter
    hang = staticmethod(hang)
    hang_up = staticmethod(hang_up)
    http = staticmethod(http)
    serving = staticmethod(serving)
    until = staticmethod(until)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with ca.pem, and server.pem and client.pem signed by it, each with its .key; all for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name, subject in (("server", "DNS:exporter.test,IP:127.0.0.1"), ("client", "DNS:bridge.test")):
        signed = (
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-addext",
            f"subjectAltName={subject}",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )
        openssl(*new, "-x509", *signed, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def promtool_complaints():
    """`promtool_complaints(text)`: what Prometheus' own linter says of a page."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (it comes with Debian's package prometheus)")

    def complaints(text):
        done = subprocess.run(
            [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False, timeout=30
        )
        assert done.returncode in {0, 3}, done.stderr
        return done.stderr

    return complaints
