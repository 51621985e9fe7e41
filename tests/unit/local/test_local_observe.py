"""What is asked of the services, and what is made of their answers."""

import http.server
import json
import threading

import pytest
from rich.console import Console

from gpu_telemetry.local.directory import PartState, Rates, StackState
from gpu_telemetry.local.observe import PUBLISHED, SCRAPES, AlertView, GpuView, NodeView, Observer, RateMeter, Snapshot
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
NODE = {"node_id": "node-2", "hostname": "node-2", "status": "critical", "datacenter": "us-west-1", "active_alerts": 1}
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
    """A server that answers each path with the text that it was given; a path that has none, or a problem, with 503."""
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            text = answers.get(self.path.partition("?")[0])
            self.send_response(503 if text is None or '"detail"' in text else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

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
    url, _ = service
    made = Observer({"api": url, "bridge metrics": f"{url}/bridge", "alert engine metrics": f"{url}/alerting"})
    yield made
    made.close()


def test_a_look_gathers_nodes_gpus_alerts_and_counters(service, observer):
    _, answers = service
    answers["/api/v1/nodes"] = json.dumps([NODE])
    answers["/api/v1/metrics/latest"] = json.dumps([GPU])
    answers["/api/v1/alerts/active"] = json.dumps([ALERT])
    answers["/bridge"] = f"# TYPE {SCRAPES} counter\n{SCRAPES} 7.0\n"
    answers["/alerting"] = ""
    snapshot = observer.look()
    assert snapshot.nodes[0].status == "critical"
    assert snapshot.gpus[0].workload == "train-7"
    assert snapshot.alerts[0].message == "GPU temperature is 96.3°C"
    assert snapshot.counters == {SCRAPES: 7.0}
    assert snapshot.unanswered == {}


def test_what_does_not_answer_is_named_and_costs_nothing_else(service, observer):
    _, answers = service
    answers["/bridge"] = f"{SCRAPES} 7.0\n"
    snapshot = observer.look()
    assert snapshot.unanswered == {"api": "HTTP 503", "alert engine": "HTTP 503"}
    assert snapshot.counters == {SCRAPES: 7.0}
    assert summary(snapshot, Rates()) == "the API does not answer: HTTP 503"


def test_a_problem_is_told_in_the_services_own_words(service, observer):
    _, answers = service
    answers["/api/v1/alerts/active"] = json.dumps({"status": 503, "detail": "the database lacks 0002_roles"})
    assert observer.look().unanswered["api"] == "HTTP 503: the database lacks 0002_roles"


def test_an_answer_of_another_shape_is_named(service, observer):
    _, answers = service
    answers["/api/v1/nodes"] = json.dumps([{"id": 1}])
    assert "node_id" in observer.look().unanswered["api"] or "HTTP" in observer.look().unanswered["api"]


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


def shown(nodes, gpus, alerts=()):
    snapshot = Snapshot(nodes=nodes, gpus=gpus, alerts=list(alerts), consumer_lag=12)
    console = Console(width=120, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render(STATE, snapshot))
    return capture.get()


def test_the_table_shows_every_gpu_of_a_small_fleet_with_its_workload():
    node = NodeView(node_id="node-2", status="critical", datacenter="us-west-1", active_alerts=1)
    gpu = GpuView(
        node_id="node-2",
        gpu_index=5,
        gpu_uuid="GPU-1",
        temperature_celsius=96.3,
        power_watts=640.4,
        workloads=[{"pod": "train-7"}],
    )
    alert = AlertView(**ALERT)
    text = shown([node], [gpu], [alert])
    row = next(line for line in text.splitlines() if "train-7" in line)
    assert [word for word in row.split() if word.strip("│")] == ["5", "96", "640", "-", "train-7"]
    assert "[critical]" in text
    assert "GPU temperature is 96.3°C" in text
    assert "1 of 1 nodes up | 1 GPUs | hottest node-2 GPU 5 96.3 °C | ? scrapes/s, ? records/s | lag 12" in text
    assert "Exporter bridge restarting (2 restarts)" in text
    assert "http://127.0.0.1:8080" in text


def test_the_table_lists_gpus_by_their_index_whatever_order_they_come_in():
    gpus = [GpuView(node_id="node-1", gpu_index=index, gpu_uuid=f"GPU-{index}") for index in (7, 0, 3)]
    rows = [line.split() for line in shown([NodeView(node_id="node-1", status="healthy")], gpus).splitlines()]
    assert [row[1] for row in rows if row[0] == "│"] == ["GPU", "0", "3", "7"]


def test_the_table_of_a_large_fleet_has_a_row_for_each_node_and_says_what_it_leaves_out():
    nodes = [NodeView(node_id=f"node-{number}", status="healthy") for number in range(30)]
    gpus = [GpuView(node_id=node.node_id, gpu_index=0, gpu_uuid="g", temperature_celsius=40.0) for node in nodes]
    text = shown(nodes, gpus)
    assert "node-19" in text
    assert "node-20" not in text
    assert "... and 10 more" in text


def test_a_gpu_with_mig_instances_is_one_gpu_and_its_power_counts_once():
    nodes = [NodeView(node_id=f"node-{number}", status="healthy") for number in range(5)]
    gpus = [
        GpuView(node_id="node-0", gpu_index=index, gpu_uuid=f"GPU-{index}", mig_instance=instance, power_watts=300.0)
        for index in range(2)
        for instance in ("1", "2", "3")
    ]
    text = shown(nodes, gpus)
    assert "5 of 5 nodes up | 2 GPUs" in text
    row = next(line for line in text.splitlines() if line.startswith("node-0"))
    assert row.split()[1:] == ["healthy", "2", "0", "600", "W", "0", "0"]


def test_before_the_first_record_the_table_says_that_nothing_was_heard():
    assert "no node has been heard of yet" in shown([], [])
