"""Pages over HTTP: libcurl's multi interface driven by the event loop, no thread and no task a transfer."""

import asyncio
import errno
import os
import ssl
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import pycurl

from exporter_bridge.targets import Access, read_secret

_USER_AGENT: Final = f"gpu-telemetry/{version('gpu-telemetry')}"
# One receive buffer for all transfers: a usual page comes in one or two pieces.
_RECEIVE_BUFFER_BYTES: Final = 256 * 1024
# Easy handles that wait for the next transfer; those beyond are closed.
_IDLE_HANDLES: Final = 64
# Sets of files that are remembered; far more than a configuration names at one time.
_MOST_CREDENTIALS: Final = 1000
# How often the files of secrets and certificates are looked at.
_CREDENTIALS_CHECK_SECONDS: Final = 1.0
# The loop's timers are exact to a millisecond, and libcurl would not name the time again if it was woken too early.
_ALARM_SECONDS: Final = 0.001
# What closing connections may take; it takes a few milliseconds.
_CLOSING_SECONDS: Final = 0.5
_HTTP_OK: Final = 200


class Answer(NamedTuple):
    """How a transfer ended: a body, or a reason that is a counter's label, with a detail for people.

    `seconds` is how long it took.
    """

    body: bytes
    reason: str | None
    detail: str
    seconds: float


# The names under which a failure is counted and recorded, by libcurl's code.
_REASONS: Final[dict[int, str]] = {
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_CONNECT: "connection_refused",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
    pycurl.E_PARTIAL_FILE: "truncated",
    pycurl.E_RECV_ERROR: "truncated",
    pycurl.E_SEND_ERROR: "truncated",
    pycurl.E_GOT_NOTHING: "truncated",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CERTPROBLEM: "tls",
    pycurl.E_SSL_CIPHER: "tls",
    pycurl.E_SSL_CACERT_BADFILE: "tls",
    pycurl.E_SSL_ISSUER_ERROR: "tls",
    pycurl.E_SSL_CRL_BADFILE: "tls",
}


class _Transfer:
    """An easy handle, set up for one `Access`, and what it is doing."""

    __slots__ = ("access", "chunks", "done", "easy", "generation")

    def __init__(self, access: Access, generation: object) -> None:
        self.access = access
        self.generation = generation
        self.chunks: list[bytes] = []
        self.done: Callable[[Answer], None] | None = None
        self.easy = pycurl.Curl()


class _Credentials:
    """The secrets of one `Access` as last read, and the state of its files then."""

    __slots__ = ("checked_at", "signature")

    def __init__(self, signature: tuple[tuple[int, int, int] | None, ...], checked_at: float) -> None:
        self.signature = signature
        self.checked_at = checked_at


class Fetcher:
    """Transfers on the running event loop. `start` gives at once; its callback gets the answer from the loop.

    A transfer fails alone, with its reason. Connections are kept for the next one to the same exporter, up to
    `kept_connections` over all; easy handles are used again. `work_done` is called when libcurl has done what there was
    to do for the time being, and the callbacks of what ended have returned.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        body_limit_bytes: int,
        kept_connections: int,
        work_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._body_limit_bytes = body_limit_bytes
        self._work_done = work_done
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        # To libcurl 0 means "four times the handles".
        self._multi.setopt(pycurl.M_MAXCONNECTS, max(1, kept_connections))
        self._soon: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = self._wanted_at = float("inf")
        self._watched: dict[int, int] = {}
        self._under_way: dict[pycurl.Curl, _Transfer] = {}
        self._idle: dict[Access, list[_Transfer]] = {}
        self._idle_count = 0
        self._credentials: dict[Access, _Credentials] = {}
        paths = ssl.get_default_verify_paths()
        self._default_ca = next(
            (path for path in (paths.cafile, paths.openssl_cafile) if path and Path(path).exists()), None
        )

    @property
    def under_way(self) -> int:
        """Transfers that have not ended."""
        return len(self._under_way)

    def start(self, url: str, access: Access, timeout_seconds: float, done: Callable[[Answer], None]) -> None:
        """Fetch `url`; call `done` from the loop, once, when the transfer has ended in whichever way."""
        try:
            transfer = self._ready(access)
            easy = transfer.easy
            self._address(easy, url, access)
            easy.setopt(pycurl.TIMEOUT_MS, max(1, round(timeout_seconds * 1000)))
        except UnicodeEncodeError:
            # Its text shows the character. What may be a secret is handed over as bytes, so it is the address.
            self._loop.call_soon(done, Answer(b"", "configuration", "expected a URL in ASCII", 0.0))
            return
        except (OSError, ValueError) as error:
            self._loop.call_soon(done, Answer(b"", "credentials", str(error), 0.0))
            return
        except pycurl.error as error:
            self._loop.call_soon(done, Answer(b"", "configuration", str(error.args[-1]), 0.0))
            return
        transfer.done = done
        self._under_way[easy] = transfer
        self._multi.add_handle(easy)

    def close(self) -> None:
        """Give up what is under way, without calling back, and close every connection.

        libcurl waits here for the names that are being looked up, and a lookup cannot be given up: one that hangs is
        left to the end of the process.
        """
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, lambda *_: None)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, lambda _: None)
        for fd in list(self._watched):
            self._watch(pycurl.POLL_REMOVE, fd, None, None)
        for handle in (self._soon, self._alarm):
            if handle is not None:
                handle.cancel()
        self._soon = self._alarm = None
        for easy in self._under_way:
            self._multi.remove_handle(easy)
        for transfer in [*self._under_way.values(), *(t for idle in self._idle.values() for t in idle)]:
            transfer.easy.close()
        self._under_way.clear()
        self._idle.clear()
        closing = threading.Thread(target=self._multi.close, name="close-connections", daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)

    # -- handles ----------------------------------------------------------------------------------------------------

    def _ready(self, access: Access) -> _Transfer:
        """A handle set up for `access`, from the idle ones if it can be."""
        generation = self._current_credentials(access) if access != _PLAIN else None
        while idle := self._idle.get(access):
            transfer = idle.pop()
            self._idle_count -= 1
            if not idle:
                del self._idle[access]
            if transfer.generation is generation:
                return transfer
            transfer.easy.close()
        transfer = _Transfer(access, generation)
        try:
            self._set_up(transfer)
        except BaseException:
            transfer.easy.close()
            raise
        return transfer

    def _give_back(self, transfer: _Transfer) -> None:
        transfer.chunks.clear()
        transfer.done = None
        if self._idle_count >= _IDLE_HANDLES:
            # Of those that wait longest for their like: perhaps none comes any more.
            for other in self._idle.pop(next(iter(self._idle))):
                other.easy.close()
                self._idle_count -= 1
        self._idle.setdefault(transfer.access, []).append(transfer)
        self._idle_count += 1

    def _current_credentials(self, access: Access) -> _Credentials:
        """What identifies the present content of the files of `access`; another object once they changed."""
        known = self._credentials.get(access)
        now = time.monotonic()
        if known is not None and now - known.checked_at < _CREDENTIALS_CHECK_SECONDS:
            return known
        files = (access.ca_file, access.cert_file, access.key_file, access.password_file, access.bearer_token_file)
        signature = tuple(_file_signature(name) for name in files)
        if known is None and len(self._credentials) >= _MOST_CREDENTIALS:
            self._credentials.clear()
        if known is None or known.signature != signature:
            known = self._credentials[access] = _Credentials(signature, now)
        known.checked_at = now
        return known

    def _set_up(self, transfer: _Transfer) -> None:
        """Set what does not change from one transfer of an `Access` to the next."""
        easy, access = transfer.easy, transfer.access
        easy.setopt(pycurl.NOSIGNAL, 1)
        easy.setopt(pycurl.USERAGENT, _USER_AGENT)
        easy.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        headers = [b"Accept: text/plain;version=0.0.4,*/*;q=0.5"]
        # A scrape goes straight to the exporter, whatever proxy the environment names.
        easy.setopt(pycurl.PROXY, "")
        # An address that is kept costs each transfer a look (7 % of all work at 1,000 nodes); connections are kept.
        easy.setopt(pycurl.DNS_CACHE_TIMEOUT, 0)
        easy.setopt(pycurl.BUFFERSIZE, _RECEIVE_BUFFER_BYTES)
        easy.setopt(pycurl.MAXFILESIZE, self._body_limit_bytes)
        easy.setopt(pycurl.WRITEFUNCTION, transfer.chunks.append)
        if access.ca_file:
            # By content, since libcurl keeps a CA file that it was given by name for a day.
            easy.setopt(pycurl.CAINFO_BLOB, Path(access.ca_file).read_bytes())
        elif self._default_ca:
            easy.setopt(pycurl.CAINFO, self._default_ca)
        if access.cert_file and access.key_file:
            easy.setopt(pycurl.SSLCERT, os.fsencode(access.cert_file))
            easy.setopt(pycurl.SSLKEY, os.fsencode(access.key_file))
        if access.username is not None and access.password_file is not None:
            easy.setopt(pycurl.HTTPAUTH, pycurl.HTTPAUTH_BASIC)
            easy.setopt(pycurl.USERNAME, access.username.encode())
            easy.setopt(pycurl.PASSWORD, read_secret(access.password_file).encode())
        if access.bearer_token_file is not None:
            headers.append(b"Authorization: Bearer " + read_secret(access.bearer_token_file).encode())
        easy.setopt(pycurl.HTTPHEADER, headers)

    @staticmethod
    def _address(easy: pycurl.Curl, url: str, access: Access) -> None:
        if access.server_name is None:
            easy.setopt(pycurl.URL, url)
            return
        # The certificate must bear another name than the address: ask for that name, connect to the address.
        scheme, _, rest = url.partition("://")
        address, slash, path = rest.partition("/")
        port = address.rpartition(":")[2]
        easy.setopt(pycurl.URL, f"{scheme}://{access.server_name}:{port}{slash}{path}")
        easy.setopt(pycurl.CONNECT_TO, [f"{access.server_name}:{port}:{address}"])

    # -- libcurl and the loop ---------------------------------------------------------------------------------------

    def _watch(self, event: int, fd: int, _multi: object, _data: object) -> None:
        """Watch a socket as libcurl asks."""
        wanted = 0 if event == pycurl.POLL_REMOVE else event
        watched = self._watched.get(fd, 0)
        if wanted & pycurl.POLL_IN and not watched & pycurl.POLL_IN:
            self._loop.add_reader(fd, self._act, fd, pycurl.CSELECT_IN)
        elif watched & pycurl.POLL_IN and not wanted & pycurl.POLL_IN:
            self._loop.remove_reader(fd)
        if wanted & pycurl.POLL_OUT and not watched & pycurl.POLL_OUT:
            self._loop.add_writer(fd, self._act, fd, pycurl.CSELECT_OUT)
        elif watched & pycurl.POLL_OUT and not wanted & pycurl.POLL_OUT:
            self._loop.remove_writer(fd)
        if wanted:
            self._watched[fd] = wanted
        else:
            self._watched.pop(fd, None)

    def _set_timer(self, milliseconds: int) -> None:
        """Wake libcurl when it asks to be woken: once, at the time that it named last; a negative one means never.

        It names another time at each transfer's beginning and end, so an alarm that comes too early is left to come.
        """
        if milliseconds == 0:
            if self._soon is None:
                self._soon = self._loop.call_soon(self._go_on)
            return
        if milliseconds < 0:
            self._wanted_at = float("inf")
            return
        self._wanted_at = time.monotonic() + milliseconds / 1000
        if self._alarm is None or self._wanted_at < self._alarm_at:
            self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = self._wanted_at
        wait = max(0.0, self._alarm_at - time.monotonic()) + _ALARM_SECONDS
        self._alarm = self._loop.call_later(wait, self._alarmed)

    def _alarmed(self) -> None:
        self._alarm = None
        if time.monotonic() >= self._wanted_at:
            self._wanted_at = float("inf")
            self._act(pycurl.SOCKET_TIMEOUT, 0)
        elif self._wanted_at < float("inf"):
            self._set_alarm()

    def _go_on(self) -> None:
        self._soon = None
        self._act(pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, fd: int, ready: int) -> None:
        """Let libcurl go on, then hand out what has ended."""
        _, running = self._multi.socket_action(fd, ready)
        if running < len(self._under_way):
            self._finish()
        self._work_done()

    def _finish(self) -> None:
        queued = 1
        while queued:
            queued, succeeded, failed = self._multi.info_read()
            for easy in succeeded:
                status = easy.getinfo(pycurl.RESPONSE_CODE)
                body = b"".join(self._under_way[easy].chunks)
                if status != _HTTP_OK:
                    self._answer(easy, b"", f"http_{status}", f"HTTP status {status}")
                elif not body or body.isspace():
                    self._answer(easy, b"", "empty", "the answer has no body")
                else:
                    self._answer(easy, body, None, "")
            for easy, code, text in failed:
                self._answer(easy, b"", _failure_reason(easy, code), text)

    def _answer(self, easy: pycurl.Curl, body: bytes, reason: str | None, detail: str) -> None:
        transfer = self._under_way.pop(easy)
        seconds = easy.getinfo(pycurl.TOTAL_TIME)
        self._multi.remove_handle(easy)
        done = transfer.done
        self._give_back(transfer)
        assert done is not None
        done(Answer(body, reason, detail, seconds))


_PLAIN: Final = Access()


def _failure_reason(easy: pycurl.Curl, code: int) -> str:
    reason = _REASONS.get(code, "other")
    if reason == "connection_refused" and easy.getinfo(pycurl.OS_ERRNO) != errno.ECONNREFUSED:
        return "unreachable"
    return reason


def _file_signature(name: str | None) -> tuple[int, int, int] | None:
    """What changes when a file does; None where there is none."""
    if name is None:
        return None
    try:
        status = os.stat(name)  # noqa: PTH116 - once a second for each set of credentials
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
