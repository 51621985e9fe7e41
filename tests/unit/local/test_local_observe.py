"""What is asked of the services, and what is made of their answers."""

import http.server
import json
import threading

import msgspec
import pytest
from rich.console import Console

from gpu_telemetry.local.directory import PartState, Rates, StackState
from gpu_telemetry.local.observe import (
    PUBLISHED,
    SCRAPES,
    AlertTotals,
    AlertView,
    FleetView,
    GpuTotals,
    GpuView,
    NodeTotals,
    NodeView,
    Observer,
    RateMeter,
    Snapshot,
)
from gpu_telemetry.local.observe import sums as sums_of
from gpu_telemetry.local.table import render, summary

GPU = {
    "node_id": "node-2",
    "gpu_index": 5,
    "gpu_uuid": "GPU-1",
    "temperature_celsius": 96.3,
    "power_watts": 640.4,
    "gpu_utilization_percent": 98,
    "workloads": [{"namespace": "ml", "pod": "train-7", "container": "main", "job": None}],
    "collected_at": "2026-01-31T12:00:00.000Z",
    "more": "is ignored",
}
NODE = {
    "node_id": "node-2",
    "hostname": "node-2",
    "status": "critical",
    "datacenter": "us-west-1",
    "last_seen": "2026-01-31T12:00:00.000Z",
    "active_alerts": 1,
}
FLEET = {
    "at": "2026-01-31T12:00:01.000Z",
    "nodes": {"total": 3, "healthy": 0, "warning": 0, "critical": 1, "down": 1, "unknown": 1},
    "gpus": {"total": 24, "reporting": 8, "allocated": 1},
    "alerts": {"total": 7, "info": 0, "warning": 0, "critical": 7},
}
ALERT = {
    "id": 3,
    "node_id": "node-2",
    "gpu_index": 5,
    "alert_type": "high_temperature",
    "severity": "critical",
    "message": "GPU temperature is 96.3°C",
    "triggered_at": "2026-01-31T12:00:00.000Z",
}
STATE = StackState(
    pid=1,
    started_at="2026-01-31T12:00:00.000Z",
    data="/data",
    demo=True,
    urls={"api": "http://127.0.0.1:8080", "bridge metrics": "http://127.0.0.1:9500/metrics"},
    database="postgresql://telemetry@127.0.0.1:5432/gpu_telemetry",
    kafka="127.0.0.1:9092",
    parts=[
        PartState(name="API", state="up", pid=2, restarts=0, log="/data/logs/api.log"),
        PartState(name="Exporter bridge", state="restarting", pid=None, restarts=2, log="/data/logs/bridge.log"),
    ],
)


@pytest.fixture
def service():
    """A server that answers each path with the text that it was given; a path that has none, or a problem, with 503.

    Several texts of a path are its pages.
    """
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            pages = answers.get(path, [""])
            pages = [pages] if isinstance(pages, str) else pages
            number = int(query.partition("page=")[2] or 0)
            self.send_response(503 if path not in answers or '"detail"' in pages[number] else 200)
            if number + 1 < len(pages):
                self.send_header("Link", f'<http://{self.headers["Host"]}{path}?page={number + 1}>; rel="next"')
            self.end_headers()
            self.wfile.write(pages[number].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()
        thread.join()


@pytest.fixture
def observer(service):
    """Asks a fleet that is well and empty, unless a test says otherwise."""
    url, answers = service
    for path in ("nodes", "metrics/latest", "alerts/active"):
        answers[f"/api/v1/{path}"] = "[]"
    answers["/api/v1/fleet/summary"] = json.dumps(FLEET)
    answers["/bridge"] = answers["/alerting"] = ""
    made = Observer({"api": url, "bridge metrics": f"{url}/bridge", "alert engine metrics": f"{url}/alerting"})
    yield made
    made.close()


def test_a_look_gathers_nodes_gpus_alerts_and_counters(service, observer):
    _, answers = service
    answers["/api/v1/nodes"] = json.dumps([NODE])
    answers["/api/v1/metrics/latest"] = json.dumps([GPU])
    answers["/api/v1/alerts/active"] = json.dumps([ALERT])
    answers["/bridge"] = f"# TYPE {SCRAPES} counter\n{SCRAPES} 7.0\n"
    snapshot = observer.look()
    assert snapshot.fleet.gpus.total == 24
    assert snapshot.nodes[0].status == "critical"
    assert snapshot.gpus[0].workload == "train-7"
    assert snapshot.alerts[0].message == "GPU temperature is 96.3°C"
    assert snapshot.counters == {SCRAPES: 7.0}
    assert snapshot.unanswered == {}


def test_what_does_not_answer_is_named_and_costs_nothing_else(service, observer):
    _, answers = service
    answers["/bridge"] = f"{SCRAPES} 7.0\n"
    del answers["/api/v1/nodes"], answers["/alerting"]
    snapshot = observer.look()
    assert snapshot.unanswered == {"api": "HTTP 503", "alert engine": "HTTP 503"}
    assert snapshot.counters == {SCRAPES: 7.0}
    assert summary(snapshot, Rates()) == (
        "the alert engine does not answer: HTTP 503 | the API does not answer: HTTP 503"
    )


def test_a_list_of_several_pages_is_read_whole(service, observer):
    _, answers = service
    answers["/api/v1/nodes"] = [json.dumps([NODE | {"node_id": f"node-{number}"}]) for number in range(3)]
    answers["/api/v1/metrics/latest"] = [json.dumps([GPU]), json.dumps([GPU | {"gpu_uuid": "GPU-2"}])]
    snapshot = observer.look()
    assert snapshot.unanswered == {}
    assert [node.node_id for node in snapshot.nodes] == ["node-0", "node-1", "node-2"]
    assert [gpu.gpu_uuid for gpu in snapshot.gpus] == ["GPU-1", "GPU-2"]


def test_a_problem_is_told_in_the_services_own_words(service, observer):
    _, answers = service
    answers["/api/v1/alerts/active"] = json.dumps({"status": 503, "detail": "the database lacks 0002_roles"})
    assert observer.look().unanswered["api"] == "HTTP 503: the database lacks 0002_roles"


def test_an_answer_of_another_shape_is_named(service, observer):
    _, answers = service
    answers["/api/v1/nodes"] = json.dumps([{"id": 1}])
    assert "node_id" in observer.look().unanswered["api"]


def test_series_of_one_name_are_summed_over_their_labels():
    text = 'a_total{x="1 } y"} 2.0\na_total{x="2"} 3.5\na_total_created 9\n# HELP a_total 4\nb 1e3\n'
    assert sums_of(text, ("a_total", "b")) == {"a_total": 5.5, "b": 1000.0}
    assert sums_of(text, ('a_total{x="2"}',)) == {'a_total{x="2"}': 3.5}


def test_rates_are_taken_over_the_last_half_minute():
    meter = RateMeter()
    assert meter.read({SCRAPES: 0, PUBLISHED: 0}, now=0.0) == Rates()
    for second in range(1, 61):
        rates = meter.read({SCRAPES: max(0, second - 30), PUBLISHED: 8 * second}, now=float(second))
    assert rates.scrapes == 1.0
    assert rates.published == 8.0
    assert rates.stored is None


def test_a_counter_that_was_reset_has_no_rate_for_a_while():
    meter = RateMeter()
    meter.read({SCRAPES: 100}, now=0.0)
    assert meter.read({SCRAPES: 1}, now=5.0).scrapes is None


NOW = "2026-01-31T12:00:00.000Z"
EARLIER = "2026-01-31T11:59:30.000Z"


def node_view(number=1, status="healthy", last_seen=NOW, **more):
    return NodeView(node_id=f"node-{number}", status=status, last_seen=last_seen, **more)


def gpu_view(index=0, node=1, **more):
    return GpuView(
        **{"node_id": f"node-{node}", "gpu_index": index, "gpu_uuid": f"GPU-{node}-{index}", "collected_at": NOW} | more
    )


def shown(nodes, gpus, alerts=(), **more):
    snapshot = Snapshot(nodes=nodes, gpus=gpus, alerts=list(alerts), consumer_lag=12, **more)
    console = Console(width=120, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render(STATE, snapshot))
    return capture.get()


def row_of(text, first):
    return next(line for line in text.splitlines() if line.strip("│ ").startswith(first)).strip("│ ").split()


def test_the_table_shows_every_gpu_of_a_small_fleet_with_its_workload():
    node = node_view(2, "critical", datacenter="us-west-1", active_alerts=1)
    gpu = gpu_view(5, 2, temperature_celsius=96.3, power_watts=640.4, workloads=[{"pod": "train-7"}])
    fleet = FleetView(nodes=NodeTotals(total=1), gpus=GpuTotals(total=1, reporting=1), alerts=AlertTotals(total=1))
    text = shown([node], [gpu], [AlertView(**ALERT)], fleet=fleet)
    assert row_of(text, "5 ") == ["5", "96", "640", "-", "train-7"]
    assert "[critical]" in text
    assert "GPU temperature is 96.3°C" in text
    assert (
        "1 of 1 nodes up | 1 GPUs | hottest node-2 GPU 5 96.3 °C | ? scrapes/s, ? records/s | lag 12 | open alerts 1"
    ) in text
    assert "Exporter bridge restarting (2 restarts)" in text
    assert "http://127.0.0.1:8080" in text


def test_the_totals_are_those_that_the_api_counts():
    line = summary(Snapshot(fleet=msgspec.convert(FLEET, FleetView)), Rates())
    assert line.startswith("1 of 3 nodes up | 8 of 24 GPUs report | ")
    assert line.endswith(" | open alerts 7")


def test_a_gpu_that_is_gone_is_not_the_hottest_and_is_told_as_gone():
    gpus = [
        gpu_view(3, temperature_celsius=97.0, power_watts=700.0, collected_at=EARLIER),
        gpu_view(4, temperature_celsius=60.0, power_watts=300.0),
    ]
    text = shown([node_view()], gpus)
    assert "hottest node-1 GPU 4 60.0 °C" in text
    assert row_of(text, "3 ") == ["3", "-", "-", "-", "seen", "2026-01-31", "11:59", "UTC"]
    large = shown([node_view(number) for number in range(1, 6)], gpus)
    assert row_of(large, "node-1")[1:] == ["healthy", "1", "60", "300", "W", "0", "0"]


@pytest.mark.parametrize("status", ["down", "unknown"])
def test_what_a_node_showed_before_it_fell_silent_is_not_shown_as_live(status):
    gpus = [gpu_view(3, temperature_celsius=97.0)]
    text = shown([node_view(status=status)], gpus)
    assert "hottest" not in text
    assert row_of(text, "3 ") == ["3", "-", "-", "-", "seen", "2026-01-31", "12:00", "UTC"]
    large = shown([node_view(1, status), *(node_view(number) for number in range(2, 6))], gpus)
    assert row_of(large, "node-1")[1:] == [status, "0", "-", "0", "W", "0", "0"]


def test_a_gpu_that_was_replaced_gives_its_row_to_the_new_one():
    old = gpu_view(3, gpu_uuid="GPU-old", temperature_celsius=97.0, collected_at=EARLIER)
    text = shown([node_view()], [old, gpu_view(3, temperature_celsius=40.0)])
    assert row_of(text, "3 ") == ["3", "40", "-", "-", "-"]
    assert "seen" not in text


def test_the_table_lists_gpus_by_their_index_whatever_order_they_come_in():
    rows = [line.split() for line in shown([node_view()], [gpu_view(index) for index in (7, 0, 3)]).splitlines()]
    assert [row[1] for row in rows if row[0] == "│"] == ["GPU", "0", "3", "7"]


def test_the_table_of_a_large_fleet_has_a_row_for_each_node_and_says_what_it_leaves_out():
    nodes = [node_view(number) for number in range(30)]
    gpus = [gpu_view(0, number, temperature_celsius=40.0) for number in range(30)]
    text = shown(nodes, gpus)
    assert "node-19" in text
    assert "node-20" not in text
    assert "... and 10 more" in text


def test_a_gpu_with_mig_instances_is_one_gpu_that_counts_once():
    nodes = [node_view(number) for number in range(5)]
    workloads = [{"pod": "serve"}]
    gpus = [
        gpu_view(index, 0, mig_instance=instance, power_watts=300.0, workloads=workloads if index else [])
        for index in range(2)
        for instance in ("1", "2", "3")
    ]
    assert row_of(shown(nodes, gpus), "node-0")[1:] == ["healthy", "2", "-", "600", "W", "1", "0"]


def test_before_the_first_record_the_table_says_that_nothing_was_heard():
    assert "no node has been heard of yet" in shown([], [])


def test_while_the_api_is_silent_the_table_does_not_say_that_no_node_was_heard():
    text = shown([], [], unanswered={"api": "Connection refused"})
    assert "no node has been heard of" not in text
    assert "nothing is known of the nodes while the API does not answer" in text
    assert "the API does not answer: Connection refused" in text
