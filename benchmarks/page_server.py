"""Exporters that cost next to nothing: pages rendered ahead, served from memory over loopback.

Run as `python -m benchmarks.page_server PORT FILE`: FILE is a pickled list, per node a list of bodies that are served
in turn at `/nodes/<number>/metrics`.
"""

import asyncio
import pickle
import sys
from pathlib import Path

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n"


class PageProtocol(asyncio.Protocol):
    """One kept-alive connection; requests are small and come one at a time, as scrapers send them."""

    def __init__(self, responses: list[list[bytes]], turns: list[int]) -> None:
        self._responses = responses
        self._turns = turns
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each complete request with the node's next page."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            node = int(request.split(b"/", 3)[2])
            pages = self._responses[node]
            self._turns[node] += 1
            self._transport.write(pages[self._turns[node] % len(pages)])


async def serve(port: int, pages: list[list[bytes]]) -> None:
    """Serve until the process is ended."""
    responses = [[_HEAD % len(body) + body for body in bodies] for bodies in pages]
    turns = [0] * len(responses)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: PageProtocol(responses, turns), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())))
