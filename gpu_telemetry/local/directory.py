"""The data directory of a local stack: what lies where, who holds it, and what the running stack says of itself."""

import fcntl
import os
import time
from pathlib import Path
from typing import Final

import msgspec

DEFAULT: Final = Path(".data")
# Longer than it takes to ask who holds a directory.
_ASKING_SECONDS: Final = 0.005


class DirectoryHeld(RuntimeError):
    """Another stack runs on this directory; the text says which."""


class PartState(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a running stack: `state` is starting, up, restarting, down or ended."""

    name: str
    state: str
    pid: int | None
    restarts: int
    log: str
    last_exit: str | None = None


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What went through the stack over the last half minute, a second; None where it is not known."""

    scrapes: float | None = None
    published: float | None = None
    stored: float | None = None


class StackState(msgspec.Struct, frozen=True, kw_only=True):
    """What a running stack says of itself, for `status`. It holds no secret."""

    pid: int
    started_at: str
    data: str
    demo: bool
    urls: dict[str, str]
    database: str
    kafka: str
    parts: list[PartState]
    rates: Rates = Rates()


class DataDirectory:
    """The directory under which everything lies that a stack keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.postgres = self.path / "postgres"
        self.kafka = self.path / "kafka"
        self.prometheus = self.path / "prometheus"
        self._state = self.path / "state.json"
        self._lock_file = self.path / "lock"
        self._lock: int | None = None

    def log(self, part: str) -> Path:
        """The log file of a part, by its short name."""
        return self.logs / f"{part}.log"

    def hold(self) -> None:
        """Take the directory for this process until it ends or lets go.

        Raises:
            DirectoryHeld: another process has it.
            OSError: the directory cannot be made or written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = self.held_by()
                if holder is not None:
                    os.close(descriptor)
                    raise DirectoryHeld(holder) from None
            # Somebody only asks who holds it, as `status` does.
            time.sleep(_ASKING_SECONDS)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def let_go(self) -> None:
        """Give the directory back; what the stack said of itself is no longer true and goes."""
        self.forget_state()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def held_by(self) -> str | None:
        """Who holds the directory, in words; None if nobody does."""
        try:
            with self._lock_file.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    pid = lock.read().strip() or "unknown"
                    return (
                        f"{self.path} is held by process {pid} (a running `gpu-telemetry up`): "
                        "stop that one, or give another --data"
                    )
        except FileNotFoundError:
            pass
        return None

    def was_killed(self) -> bool:
        """Whether the stack that ran here before left no time to tidy up: its guard may still be ending its parts."""
        return self._state.exists()

    def forget_state(self) -> None:
        """What an earlier stack said of itself is no longer true."""
        self._state.unlink(missing_ok=True)

    def write_state(self, state: StackState) -> None:
        """Say what the stack is; a reader sees the old text or the new one, never a part."""
        new = self._state.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        new.replace(self._state)

    def read_state(self) -> StackState | None:
        """What the stack on this directory says of itself; None if none is held or it has said nothing yet."""
        if self.held_by() is None:
            return None
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=StackState)
        except FileNotFoundError:
            return None
