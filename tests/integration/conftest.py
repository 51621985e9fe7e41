"""An emulated node and the bridge's reading side of it, without a network in between."""

from datetime import UTC, datetime
from typing import NamedTuple

import pytest

from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from exporter_bridge.exposition import Exposition
from exporter_bridge.layouts import Page
from exporter_bridge.records import RecordBuilder, Scrape, Turn
from gpu_telemetry.clock import ManualClock, to_milliseconds
from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode

START = datetime(2026, 1, 1, tzinfo=UTC)


class Read(NamedTuple):
    """What one scrape of node-1 gave."""

    body: bytes
    page: Page
    scrape: Scrape
    records: dict[tuple[str, str | None], GpuRecord]
    closing: ScrapeRecord


class NodeReader:
    """Node-1 of a fleet and the bridge's reading side of it, kept from scrape to scrape."""

    def __init__(self, **options):
        self.clock = ManualClock(START)
        self.fleet = Fleet(EmulatorSettings(nodes=1, gpus=4, **options), self.clock)
        self.exposition = Exposition()
        self._parser = self.exposition.parser()
        self._builder = RecordBuilder()
        self._seq = 0

    @property
    def node(self):
        return self.fleet.node("node-1")

    def set(self, kind, gpu=None, **parameters) -> None:
        """Put a fault in."""
        self.fleet.set_fault(kind, "node-1", gpu, parameters)

    def scrape(self, change=lambda body: body) -> Read:
        """Scrape the node; `change` is what happens to the page on its way."""
        self._seq += 1
        body = change(self.fleet.page("node-1"))
        page = self._parser.parse(body)
        turn = Turn(
            node_id="node-1",
            bridge_id="bridge",
            boot_id="boot",
            seq=self._seq,
            collected_at_ms=to_milliseconds(self.clock.now()),
            interval_ms=30_000,
        )
        scrape = self._builder.build(page, turn)
        *gpus, closing = [decode(message) for message in scrape.messages]
        assert isinstance(closing, ScrapeRecord)
        records = {(record.gpu_uuid, record.mig_instance): record for record in gpus}
        assert len(records) == len(gpus) == scrape.gpu_records == closing.gpu_records
        return Read(body, page, scrape, records, closing)

    def scrapes(self):
        """Scrapes over a day in which jobs come and go; each is checked before the next."""
        for seconds in (0, 30, 1800, 30, 7200, 30, 30, 40_000):
            self.clock.advance(seconds)
            yield self.scrape()


@pytest.fixture
def read_node():
    """`read_node(**settings)`: a reader of node-1 of a fleet with four GPUs and these settings."""
    return NodeReader
