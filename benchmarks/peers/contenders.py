"""How each contender is set up for the same work: fetch every page once an interval, send all of it to one topic.

Each has LZ4 and waits for all replicas, as ours does; each has buffers large enough that none of it is dropped by
design, which the defaults of both peers do at this size.
"""

import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.end_to_end import write_targets
from benchmarks.peers.building import built, version
from benchmarks.stand import COMMAND

SAMPLES: Final = 200
# The Prometheus receiver adds samples of its own to each scrape: up, and four on the scrape itself.
_RECEIVER_SAMPLES: Final = 5

_TELEGRAF: Final = """\
[agent]
  interval = "{interval:g}s"
  flush_interval = "1s"
  # Spread over the interval, as the others do by themselves.
  collection_jitter = "{interval:g}s"
  metric_batch_size = 10000
  metric_buffer_limit = 2000000
  omit_hostname = true
{inputs}
[[outputs.kafka]]
  brokers = ["{bootstrap}"]
  topic = "{topic}"
  routing_tag = "Hostname"
  compression_codec = 3
  required_acks = -1
  data_format = "influx"
"""
_TELEGRAF_INPUT: Final = """\
[[inputs.prometheus]]
  urls = ["{url}"]
"""

_COLLECTOR: Final = """\
receivers:
  prometheus:
    config:
      global: {{scrape_interval: {interval:g}s, scrape_timeout: {interval:g}s}}
      scrape_configs:
        - job_name: dcgm
          file_sd_configs: [{{files: ["{targets}"]}}]
processors:
  # 2,000 samples make a message of some 700 kB: below the megabyte that broker and client take.
  batch: {{send_batch_size: 2000, send_batch_max_size: 2000, timeout: 1s}}
exporters:
  kafka:
    brokers: ["{bootstrap}"]
    metrics: {{topic: "{topic}"}}
    producer: {{compression: lz4, required_acks: -1, max_message_bytes: 1000000}}
    sending_queue: {{queue_size: 10000}}
service:
  telemetry:
    logs: {{level: warn}}
    metrics:
      readers:
        - pull: {{exporter: {{prometheus: {{host: 127.0.0.1, port: {port}}}}}}}
  pipelines:
    metrics: {{receivers: [prometheus], processors: [batch], exporters: [kafka]}}
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What a contender is to do."""

    nodes: int
    interval_seconds: float
    page_port: int
    free_port: int
    bootstrap: str
    topic: str
    home: Path


@dataclass(frozen=True, slots=True)
class Contender:
    """A program set up for its work; `pages` tells, of the messages in the topic, how many pages it has delivered."""

    title: str
    command: list[str]
    environment: dict[str, str]
    pages: Callable[[int], float]


def bridge(work: Work) -> Contender:
    """Ours. It builds typed records, keeps every page for Prometheus, and proves completeness meanwhile."""
    targets = work.home / "targets.json"
    write_targets(targets, work.nodes, work.page_port)
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": work.bootstrap,
        "KAFKA_TOPIC": work.topic,
        "BRIDGE_LISTEN": f"127.0.0.1:{work.free_port}",
        "BRIDGE_TARGETS_FILE": str(targets),
        "BRIDGE_INTERVAL_SECONDS": f"{work.interval_seconds:g}",
    }
    return Contender("exporter_bridge", [COMMAND, "bridge"], environment, lambda messages: messages / 9)


def telegraf(work: Work) -> Contender:
    """inputs.prometheus to outputs.kafka; each sample is a message of its own, in its default format."""
    # An input for each node: jitter spreads inputs, and all URLs of one would be fetched at the same moment.
    inputs = "".join(
        _TELEGRAF_INPUT.format(url=f"http://127.0.0.1:{work.page_port}/nodes/{node}/metrics")
        for node in range(work.nodes)
    )
    file = work.home / "telegraf.conf"
    file.write_text(
        _TELEGRAF.format(interval=work.interval_seconds, inputs=inputs, bootstrap=work.bootstrap, topic=work.topic)
    )
    return Contender(
        f"Telegraf {version('telegraf')}", [str(built("telegraf")), str(file)], {}, lambda messages: messages / SAMPLES
    )


def collector(work: Work) -> Contender:
    """The Prometheus receiver to the Kafka exporter, batched, in its default encoding (OTLP protobuf)."""
    targets = work.home / "targets.json"
    write_targets(targets, work.nodes, work.page_port)
    file = work.home / "collector.yaml"
    file.write_text(
        _COLLECTOR.format(
            interval=work.interval_seconds,
            targets=targets,
            bootstrap=work.bootstrap,
            topic=work.topic,
            port=work.free_port,
        )
    )
    return Contender(
        f"OpenTelemetry Collector {version('otelcol')}",
        [str(built("otelcol")), "--config", f"file:{file}"],
        {},
        lambda _messages: _sent_points(work.free_port) / (SAMPLES + _RECEIVER_SAMPLES),
    )


def _sent_points(port: int) -> float:
    """How many samples the collector says that Kafka took of it; its messages hold any number of them."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return 0.0  # it has not started yet
        raise
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("otelcol_exporter_sent_metric_points") and not sample.name.endswith("_created")
    )


ALL: Final = (bridge, telegraf, collector)
