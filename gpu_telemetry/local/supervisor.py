"""Starts the parts of a stack in order, starts one again when it dies, and ends all in reverse order in time."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gpu_telemetry.local.directory import PartState
from gpu_telemetry.local.parts import Part, Task
from gpu_telemetry.local.process import StartFailed, ended, trim_log

_POLL_SECONDS: Final = 0.2
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
# A part that ran this long is healthy again: its next restart is quick.
_SETTLED_SECONDS: Final = 60.0
# All parts together, with two seconds to spare of the fifteen that are promised.
_STOP_DEADLINE_SECONDS: Final = 13.0
_STOP_EACH_SECONDS: Final = 8.0
# Kept back for every part that is still to be stopped.
_STOP_RESERVE_SECONDS: Final = 0.6
# A thread that is in a download does not look up; it is left to end with the process.
_JOIN_SECONDS: Final = 1.0


class Level(StrEnum):
    """How much an event matters to who watches."""

    PROGRESS = "progress"
    GOOD = "good"
    NOTICE = "notice"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a line."""

    level: Level
    text: str


Report = Callable[[Event], None]


@dataclass(slots=True)
class _Kept:
    """A part and what happened to it."""

    part: Part
    state: str = "waiting"
    restarts: int = 0
    last_exit: str | None = None
    started: float = 0.0
    delay_seconds: float = _FIRST_DELAY_SECONDS


class Supervisor:
    """The parts of one stack, and the threads that keep them.

    Args:
        plan: servers and tasks, in the order in which they start.
        report: told of every event, from any thread.
        first_delay_seconds: how long after its first death a part starts again; it doubles with each.
    """

    def __init__(
        self, plan: Sequence[Part | Task], report: Report, *, first_delay_seconds: float = _FIRST_DELAY_SECONDS
    ) -> None:
        self._plan = list(plan)
        self._report = report
        self._first_delay_seconds = first_delay_seconds
        self._kept = [_Kept(part) for part in self._plan if not isinstance(part, Task)]
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._failure: StartFailed | None = None
        self._threads: list[threading.Thread] = []

    @property
    def is_up(self) -> bool:
        """Whether every part has been started."""
        return self._up.is_set()

    @property
    def failure(self) -> StartFailed | None:
        """Why the stack could not be started, if so."""
        return self._failure

    def parts(self) -> list[PartState]:
        """Every server as it is now."""
        return [
            PartState(
                name=kept.part.name,
                state=kept.state,
                pid=kept.part.pid,
                restarts=kept.restarts,
                log=str(kept.part.log),
                last_exit=kept.last_exit,
            )
            for kept in self._kept
        ]

    def start(self) -> None:
        """Begin to start the parts, in the background: `is_up` or `failure` tells when that is done."""
        self._run(self._bring_up, "start")

    def stop(self, deadline_seconds: float = _STOP_DEADLINE_SECONDS) -> None:
        """End all parts in reverse order: politely as long as the deadline allows, then for certain."""
        self._stopping.set()
        deadline = time.monotonic() + deadline_seconds
        left = list(reversed(self._plan))
        while left:
            part = left.pop(0)
            spare = deadline - time.monotonic() - _STOP_RESERVE_SECONDS * len(left)
            part.stop(max(0.0, min(_STOP_EACH_SECONDS, spare)))
        for thread in self._threads:
            thread.join(timeout=_JOIN_SECONDS)
        # One that a thread was just starting while its turn to be stopped passed.
        for part in reversed(self._plan):
            part.stop(0.0)
        for kept in self._kept:
            kept.state = "ended"

    def hurry(self) -> None:
        """Have a `stop` that is under way wait for nobody any more."""
        for part in self._plan:
            part.kill()

    def _run(self, target: Callable[..., None], name: str, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _bring_up(self) -> None:
        kept = {id(entry.part): entry for entry in self._kept}
        for part in self._plan:
            if self._stopping.is_set():
                return
            began = time.monotonic()
            try:
                if isinstance(part, Task):
                    self._report(Event(Level.PROGRESS, f"{part.name} ..."))
                    _attempt(part.name, part.run)
                    continue
                self._report(Event(Level.PROGRESS, f"Starting {part.name} ..."))
                entry = kept[id(part)]
                entry.state = "starting"
                _attempt(part.name, part.start)
            except StartFailed as failure:
                self._failure = failure
                return
            entry.state, entry.started = "up", time.monotonic()
            self._report(Event(Level.PROGRESS, f"{part.name} is up ({entry.started - began:.1f} s)"))
            self._run(self._keep, part.name, entry)
        self._up.set()

    def _keep(self, kept: _Kept) -> None:
        """Start a part again whenever it has ended, until all are to end."""
        kept.delay_seconds = self._first_delay_seconds
        while not self._stopping.wait(_POLL_SECONDS):
            status = kept.part.exit_status()
            if status is None:
                trim_log(kept.part.log)
                continue
            kept.last_exit = ended(status)
            if time.monotonic() - kept.started > _SETTLED_SECONDS:
                kept.delay_seconds = self._first_delay_seconds
            self._say_of(kept, f"{kept.part.name} {kept.last_exit}")
            while not self._started_again(kept):
                if self._stopping.is_set():
                    return

    def _started_again(self, kept: _Kept) -> bool:
        kept.state = "restarting"
        delay = kept.delay_seconds
        kept.delay_seconds = min(_LONGEST_DELAY_SECONDS, 2 * delay)
        if self._stopping.wait(delay):
            return False
        kept.part.stop(0.0)  # what it may have left in its process group
        kept.restarts += 1
        try:
            _attempt(kept.part.name, kept.part.start)
        except StartFailed as failure:
            if not self._stopping.is_set():
                kept.last_exit = str(failure).splitlines()[0]
                self._say_of(kept, kept.last_exit)
            return False
        kept.state, kept.started = "up", time.monotonic()
        self._report(Event(Level.GOOD, f"{kept.part.name} runs again (restart {kept.restarts})"))
        return True

    def _say_of(self, kept: _Kept, what: str) -> None:
        if not self._stopping.is_set():
            again = f"starting it again in {kept.delay_seconds:.1f} s; its log: {kept.part.log}"
            self._report(Event(Level.BAD, f"{what}; {again}"))


def _attempt(name: str, act: Callable[[], None]) -> None:
    """Start a part or run a task; whatever goes wrong is a start that failed, since a thread has nobody to raise to."""
    try:
        act()
    except StartFailed:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise StartFailed(
            f"{name} could not be started: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        ) from error
