"""The parser against a real Prometheus: what it stores from a page is what we read from it."""

import json
import math
import os
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter_bridge import lines
from exporter_bridge.exposition import Exposition

pytestmark = pytest.mark.integration

CORPUS = sorted((Path(__file__).parents[1] / "data" / "pages").glob("*.prom"))
START_DEADLINE_SECONDS = 60

# Each is a page of its own, because Prometheus refuses a whole page for one bad line.
ODD_LINES = (
    b"x 1", b"x\t1", b"x  1 ", b" x 1", b"x{} 1", b"x {} 1", b"x{}1", b'x{a="b"}1', b'x{a="b",} 1', b'x{,a="b"} 1',
    b'x{a="b",,} 1', b'x{a="b"c="d"} 1', b'x{a="b" ,c="d"} 1', b'x{ a = "b" } 1', b"x{a='b'} 1", b"x{a=b} 1",
    b"x{a} 1", b'x{a="b"', b'x{a="b} 1', b'x{a="b"c"} 1', b'x{a="b\\"} 1', b'x{a="\\q"} 1', b'x{a="b",a="c"} 1',
    b'x{1a="b"} 1', b'x{a:b="c"} 1', b'x{a="\xff"} 1', b'x{a="\xc3\xa9"} 1', b'{a="b"} 1', b"{} 1",
    b'x{__name__="y"} 1', b"1x 1", b"x-y 1", b"x:y 1", b":x 1", b"x", b"x ", b"x{}", b"x one", b"x 1 2 3",
    b"x 1 @NOW_MS@", b"x 1\t@NOW_MS@", b"x 1 1.5", b"x 1 now", b"x 0x10", b"x 0x1p4", b"x 1_000", b"x 1e3", b"x 1E+3",
    b"x 1e", b"x +1", b"x --1", b"x .5", b"x 5.", b"x .", b"x 007", b"x 1e400", b"x 1e-400", b"x nan", b"x +nan",
    b"x -nan", b"x NaN", b"x inf", b"x -INFINITY", b"x Inf", b"x infinit", b"x 1,5", b"x \xd9\xa3", b"x 1\xc2\xa0",
    b"x 1 # y", b"x 1 # {} 1", b"x\x0b1", b"x 1\x0c", b"# HELP x\nx 1", b"# TYPE x gauge\nx 1",
    b"# TYPE x gauge \nx 1", b"# TYPE x gouge\nx 1", b"# TYPE x\nx 1", b"# HELP\nx 1", b"# TYPE\nx 1",
    b"#HELP x y\nx 1", b"# help x y\nx 1", b"# HELP 1x y\nx 1", b"# HELP x \xff\nx 1", b"#\nx 1", b"#\tHELP x y\nx 1",
    b" # HELP x y\nx 1", b"\nx 1\n\n", b"# TYPE x gauge\n# TYPE x gauge\nx 1", b"x 1\n# TYPE x gauge",
    b"ERROR - FAILED", b'x{a="b"} ERROR - FAILED TO CONVERT TO STRING', b"# EOF\nx 1", b"x 1\n# EOF", b"x 1\r\n",
)  # fmt: skip
# Where we take a line that one of the two refuses, and why.
TOLERATED = {
    b" x 1": "prometheus_client takes it, and the line is clear (Prometheus 3 stores a name that begins with a blank)",
    b"# TYPE x gauge \nx 1": "the same",
    b"x 1\r\n": "the same: a proxy may have changed the ends of lines",
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, free_ports):
    """`prometheus(pages)`: what a real Prometheus stores of each page, or None where it refuses the page."""
    binary = shutil.which("prometheus")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no `prometheus` in PATH")
        pytest.skip("no `prometheus` in PATH")
    started = []

    def store(pages):
        directory = tmp_path_factory.mktemp("prometheus")
        server = serve(pages)
        [port] = free_ports(1)
        jobs = [
            {"job_name": str(number), "metrics_path": f"/{number}", "honor_labels": True, "scrape_interval": "1s",
             "scrape_timeout": "1s", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
            for number in range(len(pages))
        ]  # fmt: skip
        (directory / "prometheus.yml").write_text(json.dumps({"scrape_configs": jobs}))
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [binary, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
                 f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        started.append((process, server))
        api = f"http://127.0.0.1:{port}/api/v1"
        up = wait_for(lambda: scraped(api, len(pages)), process, directory / "log")
        return [stored(api, number) if up[str(number)] else None for number in range(len(pages))]

    yield store
    for process, server in started:
        process.terminate()
        process.wait(30)
        server.shutdown()
        server.server_close()


def serve(pages):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages[int(self.path[1:])]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def query(api, expression):
    address = f"{api}/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def scraped(api, count):
    """Whether each job's page was good, once every job was scraped."""
    try:
        series = query(api, "up")
    except OSError:
        return None
    return {one["metric"]["job"]: one["value"][1] == "1" for one in series} if len(series) == count else None


def wait_for(condition, process, log):
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"Prometheus did not scrape within {START_DEADLINE_SECONDS} s:\n{log.read_text()}")


def stored(api, job):
    """Each series with the values that it ever had; a stamped one with its time."""
    own = "up|scrape_duration_seconds|scrape_samples_scraped|scrape_samples_post_metric_relabeling|scrape_series_added"
    series = {}
    for one in query(api, f'{{job="{job}",__name__!~"{own}"}}[5m]'):
        labels = frozenset(item for item in one["metric"].items() if item[0] not in ("__name__", "job", "instance"))
        values = {value for _, value in one["values"]}
        assert len(values) == 1
        times = {stamp for stamp, _ in one["values"]}
        series[one["metric"]["__name__"], labels] = comparable(float(values.pop())), times
    return series


def comparable(value):
    return "nan" if math.isnan(value) else value


def read(body):
    """What we read, as Prometheus keeps it: a label with an empty value is no label."""
    page = Exposition().parser().parse(body)
    series = {}
    for name, labels, value, timestamp in page:
        kept = frozenset(item for item in labels.labels.items() if item[1])
        series[name, kept] = comparable(value), timestamp
    return series, page.refused


def now(text):
    return text.replace(b"@NOW_MS@", str(int(time.time()) * 1000).encode())


def test_the_corpus_reads_as_a_real_prometheus_stores_it(prometheus):
    assert len(CORPUS) >= 10
    pages = [now(path.read_bytes()) for path in CORPUS]
    for path, body, expected in zip(CORPUS, pages, prometheus(pages), strict=True):
        series, refused = read(body)
        assert expected is not None, f"Prometheus refuses {path.name}"
        assert {key: value for key, (value, _) in series.items()} == {
            key: value for key, (value, _) in expected.items()
        }, path.name
        assert set(refused) <= {lines.DUPLICATE}
        for key, (_, timestamp) in series.items():
            assert timestamp is None or expected[key][1] == {timestamp / 1000}


def client_takes(body):
    try:
        return [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]
    except ValueError:
        return None


def test_a_line_is_taken_if_prometheus_and_prometheus_client_both_take_it(prometheus):
    pages = [now(line) for line in ODD_LINES]
    wrong = {}
    for line, body, expected in zip(ODD_LINES, pages, prometheus(pages), strict=True):
        series, refused = read(body)
        both = expected is not None and client_takes(body) is not None
        taken = not refused
        if taken != (both or line in TOLERATED):
            wrong[line] = f"ours {series or refused}, Prometheus {expected}, prometheus_client {client_takes(body)}"
        elif both and line not in TOLERATED:
            assert {key: value for key, (value, _) in series.items()} == {
                key: value for key, (value, _) in expected.items()
            }, line
    assert not wrong, "\n".join(f"{line!r}: {what}" for line, what in wrong.items())
