"""The ports of the local stack: the project's own by default, moved together by an offset, checked before use."""

import errno
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final, Self

HOST: Final = "127.0.0.1"
_HIGHEST: Final = 65535


class PortInUse(RuntimeError):
    """Ports that something else listens on: which part wants each, and what helps."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where each part listens on this machine."""

    postgres: int = 5432
    kafka: int = 9092
    kafka_controller: int = 29093
    emulator: int = 9400
    bridge: int = 9500
    alert_engine: int = 9501
    api: int = 8080
    prometheus: int = 9090

    @classmethod
    def with_offset(cls, offset: int) -> Self:
        """The default ports, each `offset` higher.

        Raises:
            ValueError: a port would lie outside 1 to 65535.
        """
        moved = {name: port + offset for name, port in asdict(cls()).items()}
        for name, port in moved.items():
            if not 1 <= port <= _HIGHEST:
                raise ValueError(f"offset {offset} moves the port of {name} to {port}, expected 1 to {_HIGHEST}")
        return cls(**moved)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        # As servers do; else a connection that has just ended would count as a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True


def first_free(port: int, taken: Iterable[int], tries: int = 100) -> int:
    """The first port from `port` on that is free and not among `taken`.

    Raises:
        PortInUse: there is none within `tries`.
    """
    avoided = set(taken)
    for candidate in range(port, min(port + tries, _HIGHEST + 1)):
        if candidate not in avoided and is_free(candidate):
            return candidate
    raise PortInUse(f"no free port from {port} on for PostgreSQL: --port-offset N moves all ports of the stack")
