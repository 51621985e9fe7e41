"""A local stack from its start to its end: holds the directory, runs the supervisor, shows what happens."""

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from types import FrameType
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gpu_telemetry.clock import rfc3339
from gpu_telemetry.local.directory import DataDirectory, Rates, StackState
from gpu_telemetry.local.observe import Observer, RateMeter, Snapshot
from gpu_telemetry.local.ports import PortInUse
from gpu_telemetry.local.stack import Options, Stack
from gpu_telemetry.local.story import Story
from gpu_telemetry.local.supervisor import Event, Level, Supervisor
from gpu_telemetry.local.table import render, shown_urls, summary

_TICK_SECONDS: Final = 0.2
_LOOK_EVERY_SECONDS: Final = 1.0
_LINE_EVERY_SECONDS: Final = 10.0
# A run that was killed has its parts ended by its guard within this time.
_LEFTOVERS_SECONDS: Final = 10.0

_STYLE: Final = {Level.PROGRESS: "", Level.GOOD: "green", Level.NOTICE: "yellow", Level.BAD: "bold red"}


class Run:
    """One run of a stack in this process.

    Args:
        options: what the user chose.
        exit_after_story: end by itself when the demo's story is over.
        console: where lines and the table go.
    """

    def __init__(self, options: Options, *, exit_after_story: bool = False, console: Console | None = None) -> None:
        self._options = options
        self._exit_after_story = exit_after_story
        # Lines are not broken where there is no terminal: each event is one line.
        self._console = console or Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._snapshot = Snapshot()
        self._rates = Rates()
        self._supervisor: Supervisor | None = None
        self._started_at = rfc3339(datetime.now(UTC))

    def run(self) -> int:
        """Run until Ctrl-C, SIGTERM or the story's end; the exit status.

        Raises:
            DirectoryHeld: another stack runs on the directory.
            PortInUse: a port cannot be had.
            OSError: the directory cannot be written.
        """
        directory = DataDirectory(self._options.data)
        directory.hold()
        try:
            stack = Stack(self._options, directory)
            self._check_ports(stack)
            directory.forget_state()
            with self._signals():
                return self._supervise(stack, directory)
        finally:
            directory.let_go()

    def _check_ports(self, stack: Stack) -> None:
        deadline = time.monotonic() + _LEFTOVERS_SECONDS
        waiting = False
        while True:
            try:
                stack.check_ports()
            except PortInUse:
                # Only what a killed run left behind will go by itself.
                if not stack.directory.was_killed() or time.monotonic() > deadline:
                    raise
                if not waiting:
                    self._print(Event(Level.NOTICE, "Waiting for the parts of a run that was killed to end ..."))
                waiting = True
                time.sleep(_TICK_SECONDS)
            else:
                return

    def _supervise(self, stack: Stack, directory: DataDirectory) -> int:
        for note in stack.notes:
            self._print(Event(Level.NOTICE, note))
        supervisor = self._supervisor = Supervisor(stack.plan(), self._events.put)
        observer = threading.Thread(target=self._observe, args=(stack,), name="observer", daemon=True)
        began = time.monotonic()
        supervisor.start()
        status = 0
        try:
            status = self._until_the_end(stack, directory, supervisor, observer)
        finally:
            self._stopping.set()
            self._drain()
            self._print(Event(Level.PROGRESS, "Stopping ..."))
            stop_began = time.monotonic()
            supervisor.stop()
            self._drain()
            ran, took = stop_began - began, time.monotonic() - stop_began
            self._print(Event(Level.PROGRESS, f"Stopped in {took:.1f} s after running for {ran:.0f} s"))
        return status

    def _until_the_end(
        self, stack: Stack, directory: DataDirectory, supervisor: Supervisor, observer: threading.Thread
    ) -> int:
        story: Story | None = None
        is_live = self._console.is_terminal
        live = Live(console=self._console, auto_refresh=False, transient=True) if is_live else None
        next_look, next_line = 0.0, time.monotonic() + _LINE_EVERY_SECONDS
        with live or nullcontext():
            while not self._stopping.wait(_TICK_SECONDS):
                self._drain()
                if supervisor.failure is not None:
                    self._print(Event(Level.BAD, str(supervisor.failure)))
                    return 1
                now = time.monotonic()
                if now >= next_look:
                    next_look = now + _LOOK_EVERY_SECONDS
                    state = self._state(stack, supervisor)
                    directory.write_state(state)
                    if live is not None:
                        live.update(render(state, self._snapshot), refresh=True)
                if not supervisor.is_up:
                    continue
                if not observer.is_alive():
                    observer.start()
                    # Written anew: who is told that all is up and asks for the state is not to be told of before.
                    state = self._state(stack, supervisor)
                    directory.write_state(state)
                    self._print_urls(state)
                    story = self._begin_story(stack)
                elif live is None and now >= next_line:
                    next_line = now + _LINE_EVERY_SECONDS
                    self._print(Event(Level.PROGRESS, summary(self._snapshot, self._rates)))
                if story is not None and story.finished.is_set():
                    self._drain()
                    if self._exit_after_story:
                        return self._verdict(story)
                    self._print_closing(state, story)
                    story = None
        return 0

    def _begin_story(self, stack: Stack) -> Story | None:
        if not self._options.demo or stack.emulator_url is None:
            return None
        story = Story(stack.urls["api"], stack.emulator_url, self._events.put, self._stopping)
        threading.Thread(target=story.tell, name="story", daemon=True).start()
        return story

    def _verdict(self, story: Story) -> int:
        if story.missing:
            self._print(Event(Level.BAD, f"The story is not complete; missing: {', '.join(story.missing)}"))
            return 1
        self._print(Event(Level.GOOD, "The story is complete"))
        return 0

    def _observe(self, stack: Stack) -> None:
        observer, meter = Observer(stack.urls), RateMeter()
        while not self._stopping.wait(_LOOK_EVERY_SECONDS):
            self._snapshot = observer.look()
            self._rates = meter.read(self._snapshot.counters)
        observer.close()

    def _state(self, stack: Stack, supervisor: Supervisor) -> StackState:
        return stack.state(self._started_at, supervisor.parts(), self._rates)

    def _drain(self) -> None:
        while not self._events.empty():
            self._print(self._events.get())

    def _print(self, event: Event) -> None:
        moment = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(Text.assemble((moment, "dim"), " ", (event.text, _STYLE[event.level])))

    def _print_urls(self, state: StackState) -> None:
        for name, url in shown_urls(state).items():
            self._print(Event(Level.PROGRESS, f"{name}: {url}"))
        self._print(Event(Level.PROGRESS, f"logs: {state.data}/logs"))

    def _print_closing(self, state: StackState, story: Story) -> None:
        if not story.missing:
            self._print(Event(Level.GOOD, "That was the whole way: page, Kafka, PostgreSQL, alert, action, API"))
        api = state.urls["api"]
        lines = [
            "Look further (Ctrl-C ends it all):",
            f"  curl -s {api}/api/v1/nodes",
            f"  curl -s '{api}/api/v1/alerts?limit=5'",
            f"  open {state.urls['api docs']}",
            f"  gpu-telemetry status --data {state.data}",
        ]
        if "emulator" in state.urls:
            url = state.urls["emulator"]
            lines.append(f"  gpu-telemetry emulate fault overheat --node node-1 --gpu 3 --url {url}")
        for line in lines:
            self._console.print(Text(line))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM set a flag, and all ends in order; a second one ends it at once."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self._stopping.is_set() and self._supervisor is not None:
                self._supervisor.hurry()  # asked a second time
            self._stopping.set()

        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
