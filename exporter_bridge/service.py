"""The bridge as a process: its parts wired together, started, watched, and ended in order."""

import asyncio
import logging
import resource
import signal
from collections.abc import Awaitable, Mapping
from typing import Final

from confluent_kafka import KafkaException

from exporter_bridge.discovery import Discovery, FileSource, HttpSource, Reading, Source
from exporter_bridge.fetch import Fetcher
from exporter_bridge.membership import Membership
from exporter_bridge.memory import Memory
from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.publisher import Publisher
from exporter_bridge.scraper import Scraper
from exporter_bridge.server import BridgeServer
from exporter_bridge.settings import BridgeSettings, split_shard
from exporter_bridge.targets import Target, shard_of
from gpu_telemetry.clock import Clock, SystemClock
from gpu_telemetry.settings import KafkaSettings, SettingsError, split_address

_log = logging.getLogger(__name__)

# Files that are open beside the connections to exporters: the listener's, Kafka's, the process's own.
_OTHER_OPEN_FILES: Final = 256
_MOST_OPEN_FILES: Final = 1_000_000
# A discovery that starts beside the bridge is asked again soon.
_FIRST_RETRY_SECONDS: Final = 1.0


class Bridge:
    """One bridge on the running event loop."""

    def __init__(self, settings: BridgeSettings, kafka: KafkaSettings, *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._kafka = kafka
        self._clock = clock or SystemClock()
        loop = asyncio.get_running_loop()
        connections = _connections_allowed()
        kept = min(settings.max_kept_connections, connections // 2)
        in_flight = min(settings.max_in_flight or connections, connections - kept)
        self.metrics = BridgeMetrics(settings.id)
        self._fetcher = Fetcher(
            loop,
            body_limit_bytes=settings.body_limit_bytes,
            kept_connections=kept,
            work_done=self.metrics.loop_holds.mark,
        )
        try:
            self.publisher = Publisher(
                kafka, self.metrics, queue_scrapes=settings.queue_scrapes, queue_bytes=settings.queue_bytes
            )
        except KafkaException as error:
            raise SettingsError(f"{KafkaSettings.OPTION_PREFIX}*: {error.args[0].str()}") from None
        self.scraper = Scraper(
            settings,
            fetcher=self._fetcher,
            publisher=self.publisher,
            metrics=self.metrics,
            clock=self._clock,
            max_in_flight=in_flight,
        )
        self._discovery = Discovery(_sources(settings, self._fetcher))
        self._membership = Membership(self._clock)
        self._applied: Mapping[str, Target] | None = None
        self._has_targets = False
        self._server = BridgeServer(
            self.scraper, self.metrics, nodes_per_shard=settings.nodes_per_sd_shard, unready=self._unready
        )
        self._told_published = 0
        self._told_errors: tuple[str, ...] = ()
        self._watch_numbers()

    # -- running ------------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Scrape, publish and serve until `stop` is set, then deliver what is queued.

        Raises:
            SettingsError: the targets file cannot be used, or the address to listen on cannot be had.
        """
        publishing = asyncio.create_task(self.publisher.run())
        try:
            # A first read that hangs does not outlive a stop either.
            await _until(stop, publishing, self._begin())
            if not stop.is_set():
                memory = Memory(lambda: self.scraper.exposition.blocks_laid_out, self.metrics.loop_holds.mark)
                await _until(stop, publishing, self._keep_targets_current(), self._report(), memory.keep())
        finally:
            self.scraper.stop()
            self._fetcher.close()
            await self._close_publisher(publishing)
            await self._server.close()
            _log.info("Collector stopped")

    async def _begin(self) -> None:
        """Read the targets, listen, and let the turns come."""
        await self._first_read()
        host, port = split_address(self._settings.listen)
        try:
            port = await self._server.start(host, port)
        except OSError as error:
            raise SettingsError(
                f"BRIDGE_LISTEN: cannot listen on {self._settings.listen}: {error.strerror or error}"
            ) from None
        _log.info("Serving /metrics, /fleet/metrics and /sd on %s:%d", host, port)
        self.metrics.loop_holds.begin()
        self.scraper.start()

    async def run_once(self) -> bool:
        """Scrape every node once, publish, and give whether a node was scraped and all of it was delivered.

        Raises:
            SettingsError: the targets cannot be had.
        """
        publishing = asyncio.create_task(self.publisher.run())
        try:
            reading = await self._discovery.read()
            if not reading.valid:
                raise SettingsError("\n".join(reading.errors))
            self._take(reading)
            good = await self.scraper.scrape_all_once()
            nodes = len(self.scraper.nodes)
        finally:
            self._fetcher.close()
            delivered = await self._close_publisher(publishing)
        _log.info("Scraped %d of %d nodes", good, nodes)
        return good > 0 and delivered

    async def _close_publisher(self, publishing: "asyncio.Task[None]") -> bool:
        """Deliver what is queued, while there is time; whether all of it was delivered."""
        left = await self.publisher.close(self._settings.flush_seconds)
        if left.scrapes:
            _log.error(
                "Could not deliver %d GPU records of %d scrapes to Kafka within %g s",
                left.gpu_records,
                left.scrapes,
                self._settings.flush_seconds,
            )
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        self._tell_published()
        return not left.scrapes

    # -- targets ------------------------------------------------------------------------------------------------------

    async def _first_read(self) -> None:
        reading = await self._discovery.read()
        file = self._settings.targets_file
        if (
            not reading.valid
            and file is not None
            and (errors := [e for e in reading.errors if e.startswith(str(file))])
        ):
            raise SettingsError("\n".join(f"BRIDGE_TARGETS_FILE: {error}" for error in errors))
        self._take(reading)

    async def _keep_targets_current(self) -> None:
        while True:
            wait = self._settings.refresh_seconds
            await asyncio.sleep(wait if self._has_targets else min(wait, _FIRST_RETRY_SECONDS))
            self._take(await self._discovery.read())
            self.metrics.loop_holds.mark()

    def _take(self, reading: Reading) -> None:
        """Scrape what a read of the configuration shows, and let go of whom it has long not shown."""
        self._tell_errors(reading)
        self.metrics.reload_success.set(reading.valid)
        if reading.targets is not self._applied:
            ours = _in_shard(reading.targets, self._settings.shard)
            known = self.scraper.nodes.keys()
            if self._has_targets:
                added, gone = len(ours.keys() - known), len(known - ours.keys())
                _log.info("The targets changed: polling %d nodes, %d new, %d gone", len(ours), added, gone)
            self.scraper.apply(ours)
            self._applied = reading.targets
        if reading.valid:
            if not self._has_targets:
                nodes, seconds = len(self.scraper.nodes), self._settings.interval_seconds
                _log.info("Starting collector, polling %d nodes every %gs", nodes, seconds)
            self._has_targets = True
            self.metrics.reload_timestamp.set(self._clock.now().timestamp())
            left = self._membership.valid_read(reading.targets)
            self.scraper.remove(left.removed)
            self.scraper.forget(left.forgotten)

    # -- what is told -------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_seconds)
            self._tell_published()
            self.scraper.sum_up()

    def _tell_errors(self, reading: Reading) -> None:
        """Say what is wrong with the targets when it appears, and when it is over; not at every read."""
        nodes = len(reading.targets)
        consequence = f"the last good targets stay ({nodes} nodes)" if nodes else "it is tried again"
        for error in reading.errors:
            if error not in self._told_errors:
                _log.error("%s; %s", error, consequence)
        if self._told_errors and not reading.errors:
            _log.info("The targets are good again (%d nodes)", nodes)
        self._told_errors = reading.errors

    def _tell_published(self) -> None:
        published = self.publisher.published_gpu_records
        if published > self._told_published:
            _log.info("Published %d GPU records to Kafka", published - self._told_published)
        self._told_published = published

    def _unready(self) -> list[str]:
        reasons = []
        if not self._has_targets:
            reasons.append("no list of targets could be read yet")
        if not self.publisher.topic_seen:
            reasons.append(f"Kafka with the topic {self._kafka.topic} was not reached yet")
        return reasons

    def _watch_numbers(self) -> None:
        gauge, publisher, scraper = self.metrics.gauge, self.publisher, self.scraper
        gauge("gpu_bridge_targets", "Nodes that this bridge scrapes.", lambda: len(scraper.nodes))
        gauge(
            "gpu_bridge_targets_held",
            "Nodes that vanished with over half of the fleet, whose removal is held.",
            lambda: self._membership.held,
        )
        gauge("gpu_bridge_scrapes_in_flight", "Scrapes under way.", lambda: scraper.in_flight)
        gauge("gpu_bridge_scrapes_waiting", "Turns that wait for a connection or for reading.", lambda: scraper.waiting)
        gauge("gpu_bridge_queue_scrapes", "Scrapes that wait for Kafka.", lambda: publisher.queued_scrapes)
        gauge("gpu_bridge_queue_bytes", "Bytes of records that wait for Kafka.", lambda: publisher.queued_bytes)
        limits = self._settings
        gauge("gpu_bridge_queue_scrapes_limit", "Scrapes that may wait for Kafka.", lambda: limits.queue_scrapes)
        gauge("gpu_bridge_queue_bytes_limit", "Bytes that may wait for Kafka.", lambda: limits.queue_bytes)
        gauge("gpu_bridge_client_messages", "Messages that the Kafka client holds.", lambda: publisher.in_flight)
        counter, exposition = self.metrics.counter, scraper.exposition
        counter(
            "gpu_bridge_label_texts_parsed",
            "Distinct label texts that were parsed, the slow part of a new page.",
            lambda: exposition.label_texts_parsed,
        )
        counter("gpu_bridge_blocks_laid_out", "Blocks that were not known yet.", lambda: exposition.blocks_laid_out)


async def _until(stop: asyncio.Event, *work: Awaitable[None]) -> None:
    """Do the work until told to stop or a part of it ends, in an error or well; the first of it goes on afterwards."""
    tasks = [asyncio.ensure_future(part) for part in work]
    stopped = asyncio.ensure_future(stop.wait())
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, *tasks[1:]):
        task.cancel()
    await asyncio.gather(stopped, *tasks[1:], return_exceptions=True)
    for task in done:
        task.result()


def _in_shard(targets: Mapping[str, Target], shard: str) -> dict[str, Target]:
    index, count = split_shard(shard)
    return {name: target for name, target in targets.items() if shard_of(name, count) == index}


def _sources(settings: BridgeSettings, fetcher: Fetcher) -> list[Source]:
    sources: list[Source] = []
    if settings.targets_file is not None:
        sources.append(FileSource(settings.targets_file))
    if settings.http_sd_url is not None:
        sources.append(HttpSource(settings.http_sd_url, fetcher))
    if not sources:
        raise SettingsError("BRIDGE_TARGETS_FILE, BRIDGE_HTTP_SD_URL: expected a list of targets in one of them")
    return sources


def _connections_allowed() -> int:
    """How many connections to exporters the limit on open files leaves, after raising it to what it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        wanted = _MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(16, wanted - _OTHER_OPEN_FILES)


async def serve(settings: BridgeSettings, kafka: KafkaSettings) -> None:
    """Run a bridge until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await Bridge(settings, kafka).run(stop)


async def scrape_once(settings: BridgeSettings, kafka: KafkaSettings) -> bool:
    """One round of all nodes; whether a node was scraped and all of it was delivered."""
    return await Bridge(settings, kafka).run_once()


async def read_configuration(settings: BridgeSettings) -> Reading:
    """Read the targets of this bridge once, for `--check-config`."""
    fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=settings.body_limit_bytes, kept_connections=1)
    try:
        reading = await Discovery(_sources(settings, fetcher)).read()
        return reading._replace(targets=_in_shard(reading.targets, settings.shard))
    finally:
        fetcher.close()
