"""What the bridge serves: its own metrics, the fleet's pages, their shards as a service discovery, and its health."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from aiohttp import web

from exporter_bridge.metrics import BridgeMetrics
from exporter_bridge.node import Node
from exporter_bridge.reexposure import CONTENT_TYPE, Conflicts, Exposed, exporters_up, fleet_page
from exporter_bridge.scraper import Scraper
from exporter_bridge.settings import split_shard
from exporter_bridge.targets import page_shard_of

_TEXT = "text/plain; charset=utf-8"


class BridgeServer:
    """The HTTP side of a bridge. `unready` gives what keeps it from its work; empty when it is ready."""

    def __init__(
        self,
        scraper: Scraper,
        metrics: BridgeMetrics,
        *,
        nodes_per_shard: int,
        unready: Callable[[], list[str]],
    ) -> None:
        self._scraper = scraper
        self._metrics = metrics
        self._nodes_per_shard = nodes_per_shard
        self._unready = unready
        # Of the whole page or of its shards, as they were last asked for: by shard, and how many shards those are of.
        self._conflicts: dict[int, Conflicts] = {}
        self._shard_count = 1
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; give the port, which the system chooses when `port` is 0.

        Raises:
            OSError: the address cannot be had.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/metrics", self._own_metrics),
                web.get("/fleet/metrics", self._fleet_metrics),
                web.get("/sd", self._shards),
                web.get("/healthz", self._healthy),
                web.get("/readyz", self._ready),
            ]
        )
        # An open page of a slow reader does not hold the end of the process up.
        runner = self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port, backlog=1024)
        await site.start()
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _index(self, _request: web.Request) -> web.Response:
        return web.Response(text="gpu-telemetry bridge: /metrics /fleet/metrics /sd /healthz /readyz\n")

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        reasons = self._unready()
        return web.json_response(
            {"status": "unready" if reasons else "ready", "reasons": reasons}, status=503 if reasons else 200
        )

    async def _own_metrics(self, request: web.Request) -> web.StreamResponse:
        own = self._metrics.page().decode()
        return await self._send(request, _chain(own, exporters_up(self._exposed(self._scraper.nodes.values()))))

    async def _fleet_metrics(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        unknown = query.keys() - {"node", "shard"}
        if unknown:
            return _problem(400, f"unknown parameter {min(unknown)!r}; expected node or shard")
        index, count = 0, 1
        nodes: Iterable[Node] = self._scraper.nodes.values()
        if "node" in query:
            node = self._scraper.nodes.get(query["node"])
            if node is None:
                return _problem(404, f"no node {query['node']!r} is scraped here")
            nodes = (node,)
        if "shard" in query:
            try:
                index, count = split_shard(query["shard"])
            except ValueError as error:
                return _problem(400, f"shard: {error}")
            nodes = [node for node in nodes if page_shard_of(node.target.node_id, count) == index]
        conflicts = Conflicts()
        response = await self._send(request, fleet_page(self._exposed(nodes), conflicts))
        if "node" not in query:
            self._count_conflicts(conflicts, index, count)
        return response

    def _count_conflicts(self, conflicts: Conflicts, index: int, count: int) -> None:
        """Take the conflicts of one shard in place of what it had; those of another number of shards are of old."""
        if count != self._shard_count:
            self._shard_count = count
            self._conflicts.clear()
        self._conflicts[index] = conflicts
        families = frozenset[str]().union(*(shard.families for shard in self._conflicts.values()))
        self._metrics.family_conflicts.set(len(families))

    async def _shards(self, request: web.Request) -> web.Response:
        count = max(1, -(-len(self._scraper.nodes) // self._nodes_per_shard))
        groups = [
            {
                "targets": [request.host],
                "labels": {
                    "__metrics_path__": "/fleet/metrics",
                    "__param_shard": f"{index}/{count}",
                    # Of `up` alone, with honor_labels; without it the shards' would be one series.
                    "instance": f"{request.host}/{index}/{count}",
                },
            }
            for index in range(count)
        ]
        return web.json_response(groups)

    def _exposed(self, nodes: Iterable[Node]) -> list[Exposed]:
        """The nodes that had a turn, by name as the scraper has them, so that it is always the same node's HELP."""
        fresh = self._scraper.is_fresh
        return [Exposed(node.target, node.page if fresh(node) else None) for node in nodes if node.had_turn]

    async def _send(self, request: web.Request, slices: Iterator[str]) -> web.StreamResponse:
        """Answer slice by slice, letting the loop do what is due after each.

        Without compression, asked for or not: on the wire it saves what it would cost many times over in CPU here.
        """
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        # A reader that goes away in the middle is its own affair.
        with suppress(ConnectionResetError):
            await response.prepare(request)
            for text in slices:
                if text:
                    await response.write(text.encode())
                self._metrics.loop_holds.mark()
                await asyncio.sleep(0)
            await response.write_eof()
        return response


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _problem(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers={"Content-Type": _TEXT})
