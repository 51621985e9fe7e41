"""Exporters that cost next to nothing: pages rendered ahead, served from memory over loopback.

FILE is a pickled list, per node a list of bodies that are served in turn at `/nodes/<number>/metrics`; `/served/` tells
how many were.
`python -m benchmarks.page_server PORT FILE` serves all of them on one port. With the port 0 each node listens on a port
of its own, as a fleet does; the ports are printed as one line of JSON, and those nodes that `--hang` names (as in 3,17)
take connections and never answer.
"""

import argparse
import asyncio
import json
import pickle
import resource
from collections.abc import Collection
from pathlib import Path
from typing import cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n"


class PageProtocol(asyncio.Protocol):
    """One kept-alive connection; requests are small and come one at a time, as scrapers send them."""

    def __init__(self, responses: list[list[bytes]], turns: list[int], hanging: Collection[int]) -> None:
        self._responses = responses
        self._turns = turns
        self._hanging = hanging
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer each complete request with the node's next page."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            if request.startswith(b"GET /served/ "):
                told = b"%d" % sum(self._turns)
                self._transport.write(_HEAD % len(told) + told)
                continue
            node = int(request.split(b"/", 3)[2])
            if node in self._hanging:
                continue
            pages = self._responses[node]
            self._turns[node] += 1
            self._transport.write(pages[self._turns[node] % len(pages)])


async def serve(port: int, pages: list[list[bytes]], hanging: Collection[int]) -> None:
    """Serve until the process is ended."""
    responses = [[_HEAD % len(body) + body for body in bodies] for bodies in pages]
    turns = [0] * len(responses)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: PageProtocol(responses, turns, hanging), "127.0.0.1", port, backlog=4096)
        for _ in (responses if port == 0 else [None])
    ]
    if port == 0:
        print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.gather(*[server.serve_forever() for server in servers])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--hang", type=lambda text: {int(part) for part in text.split(",") if part}, default=set())
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(serve(given.port, pickle.loads(given.file.read_bytes()), given.hang))
