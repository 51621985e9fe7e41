"""Blocking work beside the event loop, for which the end of the process need not wait."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives or raises. Whoever waits can be cancelled; the work then goes on, and nobody hears of it."""
    done: Future[Result] = Future()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name="beside-the-loop", daemon=True).start()
    return await asyncio.wrap_future(done)
