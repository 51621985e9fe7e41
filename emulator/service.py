"""Runs the emulator until it is told to end."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from typing import Final

import uvloop
from aiohttp import web

from emulator.fleet import Fleet
from emulator.server import create_app
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import Clock, SystemClock
from gpu_telemetry.settings import split_address

logger = logging.getLogger(__name__)

# How long requests that are being answered may take when the emulator ends.
_GRACE_SECONDS: Final = 2.0


class CannotListen(Exception):
    """The address cannot be listened on; the text says which and why."""


@contextlib.asynccontextmanager
async def serving(settings: EmulatorSettings, clock: Clock) -> AsyncIterator[str]:
    """Serve a fleet while the context lasts; gives its URL.

    Raises:
        CannotListen: the address is in use, or not one of this machine's.
    """
    closing = asyncio.Event()
    runner = web.AppRunner(
        create_app(Fleet(settings, clock), closing),
        access_log=None,
        # A handler is cancelled when its client leaves: that is how a hanging one ends.
        handler_cancellation=True,
        shutdown_timeout=_GRACE_SECONDS,
    )
    await runner.setup()
    try:
        yield await _listen(runner, settings.listen)
    finally:
        closing.set()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, address: str) -> str:
    host, port = split_address(address)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error
    bound_port = runner.addresses[0][1]
    return f"http://{f'[{host}]' if ':' in host else host}:{bound_port}"


async def _serve_until_told(settings: EmulatorSettings) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with serving(settings, SystemClock()) as url:
        logger.info(
            "Emulating %d nodes with %d GPUs each on %s (seed %d, exporter %s)",
            settings.nodes,
            settings.gpus,
            url,
            settings.seed,
            settings.dialect,
        )
        await told.wait()
        logger.info("Ending")


def run(settings: EmulatorSettings) -> None:
    """Serve the fleet until SIGTERM or SIGINT.

    Raises:
        CannotListen: the address is in use, or not one of this machine's.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_until_told(settings))
