"""A real Prometheus that scrapes the bridge of an emulated fleet: NVIDIA's dashboard, recording rules, staleness."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from alerting.metrics import Metrics
from api.instruments import registry

pytestmark = pytest.mark.integration

PROMETHEUS = Path(__file__).parents[2] / "prometheus"
INTERVAL = "1s"

# The panels of NVIDIA's dcgm-exporter dashboard, grafana.com id 12239, as people have it.
NVIDIA_PANELS = {
    "GPU Temperature": 'DCGM_FI_DEV_GPU_TEMP{instance=~"${instance}", gpu=~"${gpu}"}',
    "GPU Avg. Temp": 'avg(DCGM_FI_DEV_GPU_TEMP{instance=~"${instance}", gpu=~"${gpu}"})',
    "GPU Power Usage": 'DCGM_FI_DEV_POWER_USAGE{instance=~"${instance}", gpu=~"${gpu}"}',
    "GPU Power Total": 'sum(DCGM_FI_DEV_POWER_USAGE{instance=~"${instance}", gpu=~"${gpu}"})',
    "GPU SM Clocks": 'DCGM_FI_DEV_SM_CLOCK{instance=~"${instance}", gpu=~"${gpu}"} * 1000000',
    "GPU Utilization": 'DCGM_FI_DEV_GPU_UTIL{instance=~"${instance}", gpu=~"${gpu}"}',
    "GPU Framebuffer Mem Used": 'DCGM_FI_DEV_FB_USED{instance=~"${instance}", gpu=~"${gpu}"}',
    "Tensor Core Utilization": 'DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{instance=~"${instance}", gpu=~"${gpu}"}',
}
# Later releases of it choose by the host's name, and take the highest of a GPU's rows.
NVIDIA_LATER_PANEL = 'max(DCGM_FI_DEV_GPU_TEMP{Hostname=~"$Hostname", gpu=~"$gpu"}) by (Hostname, gpu, uuid)'


class Processes:
    """Programs of the test, each with its output in a file, ended in the opposite order."""

    def __init__(self, directory):
        self._directory = directory
        self._running = []

    def start(self, name, *command, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("EMULATOR_", "BRIDGE_"))}
        log = self._directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=clean | environment, stdout=output, stderr=output)
        self._running.append(process)
        return log

    def end(self):
        for process in reversed(self._running):
            process.terminate()
            process.wait(20)


def ours(*verb):
    return [sys.executable, "-P", "-m", "gpu_telemetry.cli", *verb]


def configuration(bridge):
    """The shipped configuration, of which only the bridge is there, with short intervals."""
    text = (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8").replace("exporter-bridge:9500", bridge)
    shipped = yaml.safe_load(text)
    shipped["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), INTERVAL)
    shipped["scrape_configs"] = [job for job in shipped["scrape_configs"] if job["job_name"] in {"bridge", "gpu-fleet"}]
    for job in shipped["scrape_configs"]:
        for discovery in job.get("http_sd_configs", []):
            discovery["refresh_interval"] = INTERVAL
    return shipped


class Fleet:
    """An emulated fleet of three nodes, its bridge, and a Prometheus over it with the shipped rules."""

    def __init__(self, directory, ports, wait_for):
        self._wait_for = wait_for
        emulator, bridge, self._port, nobody = ports
        self._emulator = f"http://127.0.0.1:{emulator}"
        self.bridge = f"http://127.0.0.1:{bridge}"
        self.prometheus = f"http://127.0.0.1:{self._port}"
        self._processes = Processes(directory)
        self._processes.start(
            "emulator",
            *ours("emulator"),
            EMULATOR_LISTEN=f"127.0.0.1:{emulator}",
            EMULATOR_NODES="3",
            EMULATOR_GPUS="2",
            EMULATOR_MIG_NODES="1",
            EMULATOR_MODELS="h100",
            EMULATOR_OPTIONAL_FIELDS="throttle_reasons",
        )
        self._processes.start(
            "bridge",
            *ours("bridge"),
            BRIDGE_LISTEN=f"127.0.0.1:{bridge}",
            BRIDGE_HTTP_SD_URL=f"{self._emulator}/sd",
            BRIDGE_INTERVAL_SECONDS="0.5",
            BRIDGE_NODES_PER_SD_SHARD="2",
            BRIDGE_FLUSH_SECONDS="0",
            KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{nobody}",
        )
        rules = directory / "rules"
        rules.mkdir()
        for path in (PROMETHEUS / "rules").glob("*.yml"):
            text = re.sub(r"(?m)^    interval: \w+$", f"    interval: {INTERVAL}", path.read_text(encoding="utf-8"))
            (rules / path.name).write_text(text, encoding="utf-8")
        file = directory / "prometheus.yml"
        file.write_text(yaml.safe_dump(configuration(f"127.0.0.1:{bridge}")))
        self.log = self._processes.start(
            "prometheus",
            shutil.which("prometheus"),
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        )

    def end(self):
        self._processes.end()

    def strike(self, kind, node):
        self._control("POST", {"kind": kind, "node": node})

    def heal(self, kind, node):
        self._control("DELETE", {"kind": kind, "node": node})

    def _control(self, method, fault):
        address, data = f"{self._emulator}/control/faults", json.dumps(fault).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, data=data, headers=headers, method=method)
        urllib.request.urlopen(request, timeout=5).close()

    def asked(self, path, **parameters):
        """What Prometheus' API answers; None while it does not."""
        address = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)["data"]
        return None

    def query(self, expression):
        """The (labels, value) of an instant query; empty while there are none."""
        found = self.asked("query", query=expression)
        return [(each["metric"], float(each["value"][1])) for each in found["result"]] if found else []

    def labels_of(self, expression):
        return sorted(sorted(labels.items()) for labels, _ in self.query(expression))

    def wait_for(self, condition, seconds=30, message="the condition"):
        self._wait_for(condition, seconds, message)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, free_ports, wait_for):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), free_ports(4), wait_for)
    try:
        fleet.wait_for(lambda: len(fleet.query('gpu_exporter_up{job="gpu-fleet"} == 1')) == 3, 60, fleet.log.read_text)
        yield fleet
    finally:
        fleet.end()


def choices(fleet, label):
    """As Grafana fills a variable by label_values(DCGM_FI_DEV_GPU_TEMP, label)."""
    return fleet.asked(f"label/{label}/values", **{"match[]": "DCGM_FI_DEV_GPU_TEMP"})


def chosen(values):
    """As Grafana puts several values of a variable into a regular expression."""
    return "(" + "|".join(re.escape(value).replace("\\", "\\\\") for value in values) + ")"


def test_nvidias_dashboard_finds_its_variables_and_fills_its_panels(fleet):
    instances, gpus = choices(fleet, "instance"), choices(fleet, "gpu")
    # One exporter each, and no name of the bridge.
    assert len(instances) == 3
    assert {node for labels, _ in fleet.query("DCGM_FI_DEV_GPU_TEMP") for node in [labels["instance"]]} == set(
        instances
    )
    assert gpus == ["0", "1"]

    def shown(panel, one_instance, one_gpu):
        expression = panel.replace("${instance}", one_instance).replace("${gpu}", one_gpu)
        return fleet.query(expression)

    whole = fleet.query('DCGM_FI_DEV_GPU_UTIL{gpu="0"}')  # the driver has none for MIG instances
    two_nodes = chosen(labels["instance"] for labels, _ in whole)
    filled = {title: shown(panel, two_nodes, chosen(gpus)) for title, panel in NVIDIA_PANELS.items()}
    sizes = {title: len(series) for title, series in filled.items()}
    assert sizes == {title: 1 if panel.startswith(("avg", "sum")) else 4 for title, panel in NVIDIA_PANELS.items()}
    assert 15 < filled["GPU Avg. Temp"][0][1] < 100
    assert filled["GPU Power Total"][0][1] == pytest.approx(
        sum(value for _, value in filled["GPU Power Usage"]), rel=0.2
    )
    # And with each single choice.
    for instance in instances:
        assert shown(NVIDIA_PANELS["GPU Temperature"], re.escape(instance).replace("\\", "\\\\"), "0")

    later = NVIDIA_LATER_PANEL.replace("$Hostname", "node-.*").replace("$gpu", ".*")
    assert {labels["Hostname"] for labels, _ in fleet.query(later)} == {"node-1", "node-2", "node-3"}


@pytest.mark.parametrize("fault", ["http_500", "down"])
def test_a_node_that_goes_down_leaves_at_once_and_comes_back_with_the_same_labels(fleet, fault):
    of_node_2, power = '{__name__=~"DCGM_.*",node_id="node-2"}', 'node:gpu_power_watts:sum{node_id="node-2"}'
    fleet.wait_for(lambda: fleet.query(power))
    before = fleet.labels_of(f"group by (__name__, instance, gpu, UUID) ({of_node_2})")
    assert len(before) > 40
    fleet.strike(fault, "node-2")
    # Without staleness markers Prometheus would show the last values for five minutes.
    fleet.wait_for(lambda: not fleet.query(of_node_2), 20)
    fleet.wait_for(lambda: not fleet.query(power), 20)
    assert fleet.query('gpu_exporter_up{node_id="node-2"}')[0][1] == 0
    assert fleet.query('DCGM_FI_DEV_GPU_TEMP{node_id="node-1"}')
    # It left in the very scrape that said so: at no time was it shown as down and with values.
    both = 'DCGM_FI_DEV_GPU_TEMP{node_id="node-2"} and on (node_id) gpu_exporter_up == 0'
    assert not fleet.query(f"max_over_time(({both})[2m:100ms])")
    fleet.heal(fault, "node-2")
    fleet.wait_for(lambda: fleet.query(power), 20)
    assert fleet.labels_of(f"group by (__name__, instance, gpu, UUID) ({of_node_2})") == before


def test_each_recording_rule_records_what_the_emulated_fleet_sends(fleet):
    names = {
        rule["record"]
        for path in (PROMETHEUS / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    # Events of single GPUs, which a healthy fleet need not have.
    names -= {"gpu:throttled:bool", "gpu:idle_allocated:bool"}

    def absent():
        found = fleet.query('group by (__name__) ({__name__=~"[a-z]+:.+:.+"})')
        return names - {labels["__name__"] for labels, _ in found}

    fleet.wait_for(lambda: not absent(), 60, lambda: f"recorded: {absent()} are not")
    assert fleet.query("fleet:gpus:count") == [({"__name__": "fleet:gpus:count"}, 6)]
    failures = [
        (rule["name"], rule["lastError"])
        for group in fleet.asked("rules")["groups"]
        for rule in group["rules"]
        if rule["health"] != "ok"
    ]
    assert failures == []
    # The whole GPU's power is on each MIG instance's row, and counts once.
    rows = fleet.query('count(DCGM_FI_DEV_POWER_USAGE{node_id="node-3"})')[0][1]
    assert rows > 2
    total = fleet.query('node:gpu_power_watts:sum{node_id="node-3"}')[0][1]
    assert total < fleet.query('sum(DCGM_FI_DEV_POWER_USAGE{node_id="node-3"})')[0][1] / 2


def test_alerts_look_at_metrics_that_there_are(fleet):
    pages = [generate_latest(Metrics().registry).decode(), generate_latest(registry()).decode()]
    for server in (fleet.bridge, fleet.prometheus):
        with urllib.request.urlopen(f"{server}/metrics", timeout=10) as answer:
            pages.append(answer.read().decode())
    served = {name for page in pages for name in re.findall(r"(?m)^# TYPE (\w+) ", page)}
    groups = yaml.safe_load((PROMETHEUS / "rules" / "pipeline.yml").read_text(encoding="utf-8"))["groups"]
    expressions = " ".join(rule["expr"] for group in groups for rule in group["rules"])
    asked_for = set(re.findall(r"(?:gpu_bridge|alert_engine|gpu_telemetry_api|prometheus)_\w+", expressions))
    assert len(asked_for) > 25
    assert asked_for - served == set()


def test_services_whose_counters_appear_with_their_first_event_tell_when_they_began(fleet):
    bridge = 'up{job="bridge"} and on (job, instance) process_start_time_seconds > time() - 3600'
    fleet.wait_for(lambda: fleet.query(bridge), 20)
    assert re.search(r"(?m)^process_start_time_seconds \d", generate_latest(Metrics().registry).decode())
    rules = (PROMETHEUS / "rules" / "pipeline.yml").read_text(encoding="utf-8")
    asking = re.findall(r"(\w+)(?:{.*})?\s+and on \(job, instance\) process_start_time_seconds", rules)
    assert len(asking) == 7
    # The API is not among them: under gunicorn its page is of several processes, none of which it tells the start of.
    assert [name for name in asking if not name.startswith(("gpu_bridge_", "alert_engine_"))] == []


def test_alerts_tell_that_there_is_no_alert_engine(fleet):
    fleet.wait_for(lambda: fleet.query('ALERTS{alertname="AlertEngineDown"}'), 30)
    assert not fleet.query('ALERTS{alertname="BridgeDown"}')
