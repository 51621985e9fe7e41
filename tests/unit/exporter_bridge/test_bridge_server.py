"""What the bridge serves, asked over HTTP."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from exporter_bridge.fetch import Fetcher
from exporter_bridge.server import BridgeServer
from exporter_bridge.targets import Access, page_shard_of


class Answered:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body


async def get(port, path):
    """The answer to one request, read plainly so that an error's body is seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answered(int(status.split(" ")[1]), headers, body)


@asynccontextmanager
async def served(loopback, nodes=2, unready=list, nodes_per_shard=250):
    exporter = loopback.Exporter(answers={"/down": loopback.http("", "500 No")})
    async with loopback.serving(exporter), loopback.Bench(interval_seconds=30) as bench:
        server = BridgeServer(bench.scraper, bench.metrics, nodes_per_shard=nodes_per_shard, unready=unready)
        port = await server.start("127.0.0.1", 0)
        bench.apply(**{f"node_{n}": exporter.url() for n in range(1, nodes + 1)}, down=exporter.url("/down"))
        await bench.scraper.scrape_all_once()
        try:
            yield port
        finally:
            await server.close()


@pytest.fixture
def ask(on_loop, loopback):
    """`ask(path, ...)`: the answers of a bridge that scraped node-1, node-2 (or more), and `down`, which failed."""

    def run(*paths, **stage):
        async def asked():
            async with served(loopback, **stage) as port:
                return [await get(port, path) for path in paths]

        return on_loop(asked())

    return run


def nodes_of(text):
    return {line.partition('node_id="')[2].partition('"')[0] for line in text.splitlines() if line.startswith("DCGM")}


def test_the_fleets_page_has_every_good_node_and_says_which_is_not(ask):
    (fleet,) = ask("/fleet/metrics")
    assert fleet.status == 200
    assert fleet.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert nodes_of(fleet.body) == {"node-1", "node-2"}
    assert 'gpu_exporter_up{node_id="down",instance="host:9400"} 0' in fleet.body


def test_one_node_can_be_asked_for(ask):
    one, failed, unknown = ask("/fleet/metrics?node=node-2", "/fleet/metrics?node=down", "/fleet/metrics?node=node-9")
    assert nodes_of(one.body) == {"node-2"}
    assert (failed.status, nodes_of(failed.body)) == (200, set())
    assert (unknown.status, unknown.body) == (404, "no node 'node-9' is scraped here\n")


def test_the_shards_that_sd_lists_are_the_whole_fleet_once(ask):
    (listed,) = ask("/sd", nodes=20, nodes_per_shard=5)
    groups = json.loads(listed.body)
    assert listed.headers["content-type"].startswith("application/json")
    assert len(groups) == 5
    assert len({group["labels"]["instance"] for group in groups}) == 5
    paths = [f"{group['labels']['__metrics_path__']}?shard={group['labels']['__param_shard']}" for group in groups]
    parts = [nodes_of(answer.body) for answer in ask(*paths, nodes=20, nodes_per_shard=5)]
    assert sum(map(len, parts)) == 20
    assert set().union(*parts) == {f"node-{n}" for n in range(1, 21)}
    assert {page_shard_of(node, 5) for node in parts[3]} <= {3}


@pytest.mark.parametrize("query", ["shard=2/2", "shard=1", "shard=a/b", "sharD=0/1"])
def test_a_wrong_parameter_is_named(query, ask):
    (answer,) = ask(f"/fleet/metrics?{query}")
    assert answer.status == 400
    assert "shar" in answer.body


def test_the_bridges_own_metrics_tell_what_happened(ask):
    _, own = ask("/fleet/metrics", "/metrics")
    assert own.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for line in (
        "gpu_bridge_scrapes_total 3.0",
        'gpu_bridge_scrape_failures_total{reason="http_500"} 1.0',
        "gpu_bridge_gpu_records_total 4.0",
        "gpu_bridge_samples_total 8.0",
        'gpu_exporter_up{node_id="node-1",instance="host:9400"} 1',
        'gpu_exporter_up{node_id="down",instance="host:9400"} 0',
    ):
        assert line in own.body.splitlines()


def test_conflicts_are_of_the_page_or_the_shards_that_were_last_asked_for(on_loop, loopback):
    async def run():
        other = loopback.http(loopback.PAGE.replace("GPU temperature (in C).", "Words of another release."))
        exporter = loopback.Exporter(answers={"/other": other})
        async with loopback.serving(exporter), loopback.Bench(interval_seconds=30) as bench:
            server = BridgeServer(bench.scraper, bench.metrics, nodes_per_shard=250, unready=list)
            port = await server.start("127.0.0.1", 0)

            async def conflicts(*paths):
                for path in paths:
                    await get(port, path)
                own = (await get(port, "/metrics")).body
                return next(line for line in own.splitlines() if line.startswith("gpu_bridge_family_conflicts "))

            nodes = [f"node_{number}" for number in range(20)]
            differing = next(node for node in nodes[1:] if page_shard_of(node.replace("_", "-"), 2) == 0)
            shards = "/fleet/metrics?shard=0/2", "/fleet/metrics?shard=1/2"

            async def scrape(path):
                bench.apply(**dict.fromkeys(nodes, exporter.url()) | {differing: exporter.url(path)})
                await bench.scraper.scrape_all_once()

            await scrape("/other")
            told = [await conflicts(*shards), await conflicts(*reversed(shards))]
            # A page of one node tells nothing of the fleet.
            told.append(await conflicts("/fleet/metrics", "/fleet/metrics?node=node-0"))
            await scrape("/metrics")
            told.append(await conflicts(*shards))
            await server.close()
            return [line.split(" ")[1] for line in told]

    assert on_loop(run()) == ["1.0", "1.0", "1.0", "0.0"]


def test_health_touches_nothing_and_readiness_says_what_is_missing(ask):
    health, unready = ask("/healthz", "/readyz", unready=lambda: ["no Kafka yet"])
    assert health.status == 200
    assert unready.status == 503
    assert json.loads(unready.body)["reasons"] == ["no Kafka yet"]
    (ready,) = ask("/readyz")
    assert ready.status == 200


def test_promtool_finds_nothing_wrong_with_the_bridges_own_metrics(ask, promtool_complaints):
    (own,) = ask("/metrics")
    assert promtool_complaints(own.body) == ""


def test_a_reader_that_goes_away_in_the_middle_is_no_error(on_loop, loopback, caplog):
    async def run():
        async with served(loopback, nodes=200) as port:
            for _ in range(5):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /fleet/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                await writer.drain()
                writer.transport.abort()
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=10**7, kept_connections=1)
            answered = asyncio.get_running_loop().create_future()
            fetcher.start(f"http://127.0.0.1:{port}/fleet/metrics", Access(), 10, answered.set_result)
            answer = await answered
            fetcher.close()
            return answer

    assert on_loop(run()).reason is None
    assert "Traceback" not in caplog.text
