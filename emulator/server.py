"""The HTTP side of the fleet: each node's page and health as its exporter would answer, and discovery of them all."""

import asyncio
import contextlib
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from emulator.control import Control
from emulator.faults import FaultKind
from emulator.fleet import Fleet
from emulator.node import Node
from emulator.problems import problem_middleware

# The exporter lets Go's server sniff the type: it names no version of the format.
_PAGE_HEADERS: Final = {"Content-Type": "text/plain; charset=utf-8"}
_LONGEST_HANG_SECONDS: Final = 600.0
# The exporter's own WriteTimeout.
_WRITE_TIMEOUT_SECONDS: Final = 10.0
_DROPS: Final = 50
_LARGEST_REQUEST_BYTES: Final = 64 * 1024
# What an exporter of its own would listen on; Prometheus shows a target by this address.
_EXPORTER_PORT: Final = 9400
_DEFAULT_PORT: Final = 80


class Exporters:
    """The handlers of the nodes' exporters. `closing` is set when the server is about to end."""

    def __init__(self, fleet: Fleet, closing: asyncio.Event) -> None:
        self._fleet = fleet
        self._closing = closing

    def routes(self) -> list[web.RouteDef]:
        """The routes, for an application."""
        return [
            web.get("/", self.overview),
            web.get("/nodes/{node_id}/metrics", self.metrics),
            web.get("/nodes/{node_id}/health", self.health),
            web.get("/sd", self.discovery),
            web.get("/healthz", self.healthz),
        ]

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """A node's page, or what its faults make of it."""
        node = self._fleet.node(request.match_info["node_id"])
        if node.node_fault(FaultKind.DOWN):
            return _dropped(request)
        if node.node_fault(FaultKind.HANG):
            return await self._hang(request)
        if node.node_fault(FaultKind.HTTP_500):
            return web.Response(status=HTTPStatus.INTERNAL_SERVER_ERROR, text="internal server error\n")
        if node.node_fault(FaultKind.EMPTY):
            return web.Response(body=b"", headers=_PAGE_HEADERS)
        return await _sent(request, node, self._fleet.page(node.node_id))

    async def _hang(self, request: web.Request) -> web.StreamResponse:
        """Say nothing until the client leaves (which cancels this), the fleet ends, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_HANG_SECONDS):
                await self._closing.wait()
        return _dropped(request)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """A node's health check, which says OK whatever the page holds."""
        node = self._fleet.node(request.match_info["node_id"])
        if node.node_fault(FaultKind.DOWN):
            return _dropped(request)
        return web.Response(text="OK")

    async def discovery(self, request: web.Request) -> web.Response:
        """The nodes as Prometheus HTTP service discovery, at the address by which the client came."""
        address = request.host if _has_port(request.host) else f"{request.host}:{_DEFAULT_PORT}"
        groups = [_target_group(node, address) for node in self._fleet.nodes.values()]
        return web.Response(body=msgspec.json.encode(groups), content_type="application/json")

    async def healthz(self, _request: web.Request) -> web.Response:
        """The emulator itself is up."""
        return web.Response(text="ok\n")

    async def overview(self, _request: web.Request) -> web.Response:
        """What can be asked."""
        nodes = "".join(f"/nodes/{node_id}/metrics\n" for node_id in self._fleet.nodes)
        return web.Response(text=f"Emulated dcgm-exporters.\n\n/sd\n/control/state\n/control/kinds\n{nodes}")


def create_app(fleet: Fleet, closing: asyncio.Event) -> web.Application:
    """The application that serves a fleet."""
    app = web.Application(middlewares=[problem_middleware], client_max_size=_LARGEST_REQUEST_BYTES)
    app.add_routes([*Exporters(fleet, closing).routes(), *Control(fleet).routes()])
    return app


def _target_group(node: Node, address: str) -> dict[str, object]:
    return {
        "targets": [address],
        "labels": {
            "__metrics_path__": f"/nodes/{node.node_id}/metrics",
            "node_id": node.node_id,
            "datacenter": node.datacenter,
            "instance": f"{node.node_id}:{_EXPORTER_PORT}",
        },
    }


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdecimal()


def _dropped(request: web.Request) -> web.Response:
    """End the connection without an answer; the one that is returned finds nobody to go to."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE)


async def _sent(request: web.Request, node: Node, page: bytes) -> web.StreamResponse:
    """The page on its way, whole or not."""
    if node.node_fault(FaultKind.CUT_SHORT):
        return await _cut_short(request, page)
    slow = node.node_fault(FaultKind.SLOW)
    if slow:
        return await _drop_by_drop(request, page, slow.parameters["seconds"])
    return web.Response(body=page, headers=_PAGE_HEADERS)


async def _cut_short(request: web.Request, page: bytes) -> web.StreamResponse:
    """Announce the whole page, send half of it, end the connection."""
    response = web.StreamResponse(headers=_PAGE_HEADERS)
    response.content_length = len(page)
    await response.prepare(request)
    await response.write(page[: len(page) // 2])
    if request.transport is not None:
        # Unlike abort, close lets what was written go out first.
        request.transport.close()
    return response


async def _drop_by_drop(request: web.Request, page: bytes, seconds: float) -> web.StreamResponse:
    """Send the page in small pieces over that time; cut it off where the exporter's own time-out would."""
    response = web.StreamResponse(headers=_PAGE_HEADERS)
    response.content_length = len(page)
    await response.prepare(request)
    size = max(1, -(-len(page) // _DROPS))
    for drop, start in enumerate(range(0, len(page), size)):
        if drop * seconds / _DROPS >= _WRITE_TIMEOUT_SECONDS:
            break
        await asyncio.sleep(seconds / _DROPS)
        await response.write(page[start : start + size])
    else:
        return response
    if request.transport is not None:
        request.transport.close()
    return response
