"""Where the list of targets comes from, read again and again: a file, an HTTP discovery, or both joined."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from exporter_bridge.blocking import in_daemon_thread
from exporter_bridge.fetch import Answer, Fetcher
from exporter_bridge.targets import Access, Target, TargetError, read_targets, unique_nodes

# An HTTP discovery must answer within this time.
_HTTP_TIMEOUT_SECONDS = 10.0


class Source(Protocol):
    """One place that lists targets."""

    name: str

    async def read(self) -> list[Target]:
        """The targets as they stand now; the same list object while nothing changed.

        Raises:
            TargetError: the list cannot be had or used.
        """


class FileSource:
    """A file in Prometheus' file_sd format, parsed again when it changes."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._signature: tuple[int, int, int] | None = None
        self._result: list[Target] | TargetError = TargetError(f"{path}: not read yet")

    async def read(self) -> list[Target]:
        """The targets in the file.

        Raises:
            TargetError: the file cannot be read, or its present version is wrong.
        """
        # Away from the loop: a large YAML file takes a second, a file on a dead server for ever.
        await in_daemon_thread(self._read_if_changed)
        if isinstance(self._result, TargetError):
            raise TargetError(str(self._result))
        return self._result

    def _read_if_changed(self) -> None:
        try:
            status = self._path.stat()
            # The change time too: an edit may keep size and modification time, and a rename brings another inode.
            signature = (status.st_ino, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))
            if signature == self._signature:
                return
            self._result = read_targets(self._path.read_bytes(), self.name)
        except OSError as error:
            self._result = TargetError(f"{self.name}: {error.strerror}")
            self._signature = None
        except TargetError as error:
            self._result = error
            self._signature = signature
        else:
            self._signature = signature


class HttpSource:
    """A Prometheus HTTP service discovery."""

    def __init__(self, url: str, fetcher: Fetcher) -> None:
        # A query may hold what nobody else should see.
        self.name = url.partition("?")[0]
        self._url = url
        self._fetcher = fetcher
        self._content = b""
        self._targets: list[Target] = []
        self._failing: Answer | None = None

    async def read(self) -> list[Target]:
        """The targets that the discovery lists.

        While it fails for one reason the error stays word for word the first one, though libcurl's has milliseconds.

        Raises:
            TargetError: it does not answer with 200, or its answer is no list of target groups.
        """
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def done(answer: Answer) -> None:
            if not answered.cancelled():
                answered.set_result(answer)

        self._fetcher.start(self._url, Access(), _HTTP_TIMEOUT_SECONDS, done)
        answer = await answered
        if answer.reason is not None:
            if self._failing is None or self._failing.reason != answer.reason:
                self._failing = answer
            raise TargetError(f"{self.name}: {self._failing.detail or answer.reason}")
        self._failing = None
        if answer.body != self._content:
            self._targets = await in_daemon_thread(lambda: read_targets(answer.body, self.name))
            self._content = answer.body
        return self._targets


class Reading(NamedTuple):
    """The fleet's targets by node. `valid` says that every source gave a good list this time.

    `targets` is the same object while nothing changed but the order in which the sources list them. `errors` says what
    each bad source had; its last good list stands in for it.
    """

    targets: Mapping[str, Target]
    valid: bool
    errors: tuple[str, ...]


class Discovery:
    """All sources joined; a version that cannot be used is refused while the last good one stays."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._lists: list[list[Target]] = [[] for _ in sources]
        self._joined: dict[str, Target] = {}

    async def read(self) -> Reading:
        """Read every source once."""
        errors: list[str] = []
        lists = list(self._lists)
        for index, source in enumerate(self._sources):
            try:
                lists[index] = await source.read()
            except TargetError as error:
                errors.append(str(error))
        if any(new is not old for new, old in zip(lists, self._lists, strict=True)):
            try:
                joined = unique_nodes(
                    (target for targets in lists for target in targets), " and ".join(s.name for s in self._sources)
                )
                if joined != self._joined:
                    self._joined = joined
                self._lists = lists
            except TargetError as error:
                errors.append(str(error))
        return Reading(self._joined, not errors, tuple(errors))
