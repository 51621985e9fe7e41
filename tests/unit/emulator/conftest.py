"""An emulated fleet on a clock that the test moves, by itself or behind real HTTP on loopback."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest

from emulator.fleet import Fleet
from emulator.service import serving
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock

_ROW = re.compile(r"^(\w+)\{(.*)\} (.+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Row(NamedTuple):
    """One line of a page that holds a value."""

    name: str
    labels: dict[str, str]
    value: str


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def new_fleet(clock: ManualClock) -> Callable[..., Fleet]:
    """Makes a fleet of the given settings on the test's clock, whatever the environment says."""

    def make(**settings: Any) -> Fleet:
        return Fleet(EmulatorSettings(**settings), clock)

    return make


@pytest.fixture
def rows_of() -> Callable[[bytes], list[Row]]:
    """Reads the rows of a page that has no malformed line."""

    def read(page: bytes) -> list[Row]:
        rows = []
        for line in page.decode().splitlines():
            if line.startswith("#"):
                continue
            match = _ROW.match(line)
            assert match, line
            rows.append(Row(match[1], dict(_LABEL.findall(match[2])), match[3]))
        return rows

    return read


@pytest.fixture
def serve(clock: ManualClock) -> Iterator[Callable[..., httpx.Client]]:
    """Serves a fleet of the given settings on a free port; gives a client of it."""
    endings: list[Callable[[], None]] = []

    def start(**settings: Any) -> httpx.Client:
        started = threading.Event()
        found: dict[str, Any] = {}

        async def run() -> None:
            found["loop"], found["told"] = asyncio.get_running_loop(), asyncio.Event()
            async with serving(EmulatorSettings(listen="127.0.0.1:0", **settings), clock) as url:
                found["url"] = url
                started.set()
                await found["told"].wait()

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        assert started.wait(10)
        client = httpx.Client(base_url=found["url"], timeout=10)

        def end() -> None:
            client.close()
            found["loop"].call_soon_threadsafe(found["told"].set)
            thread.join(10)
            assert not thread.is_alive()

        endings.append(end)
        return client

    yield start
    for end in endings:
        end()
