"""The emulated fleet through the bridge's parser and records into the engine: quiet without faults, not with them."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from alerting.engine import Engine
from alerting.rules import load_rules
from alerting.transitions import Transition
from emulator.faults import FaultKind
from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.clock import ManualClock, to_milliseconds
from gpu_telemetry.records import decode

NODES, GPUS = 4, 8


class Pipeline:
    """A fleet whose pages become records, folded turn by turn."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.clock = ManualClock(datetime(2026, 1, 31, tzinfo=UTC))
        settings = EmulatorSettings.load(
            nodes=NODES,
            gpus=GPUS,
            mig_nodes=1,
            models="l40s,t4,h100,a100-80",
            optional_fields="ecc,throttle_reasons,xid_count",
            seed=1,
        )
        self.fleet = Fleet(settings, self.clock)
        self.engine = Engine(load_rules())
        exposition = Exposition()
        self.nodes = [
            (node_id, exposition.parser(), RecordBuilder(), self.engine.new_node(node_id))
            for node_id in self.fleet.nodes
        ]
        self.seq = 0
        self.gpu_records = 0

    def run(self, seconds: float) -> Iterator[Transition]:
        """Turns for some seconds of event time; gives all that the engine says."""
        for _ in range(round(seconds / self.interval)):
            self.seq += 1
            for node_id, parser, builder, state in self.nodes:
                turn = Turn(
                    node_id=node_id,
                    bridge_id="bridge-1",
                    boot_id="boot-1",
                    seq=self.seq,
                    collected_at_ms=to_milliseconds(self.clock.now()),
                    interval_ms=round(self.interval * 1000),
                )
                scrape = builder.build(parser.parse(self.fleet.page(node_id)), turn)
                self.gpu_records += scrape.gpu_records
                for message in scrape.messages:
                    yield from self.engine.fold(state, decode(message))
            self.clock.advance(self.interval)


@pytest.mark.parametrize("interval", [30.0, 5.0])
def test_a_fleet_without_faults_raises_nothing_for_an_hour(interval):
    pipeline = Pipeline(interval)

    assert list(pipeline.run(3600)) == []
    assert pipeline.gpu_records >= NODES * GPUS * 3600 / interval


def test_an_overheating_gpu_warns_then_is_critical_within_one_alert():
    pipeline = Pipeline(5.0)
    assert list(pipeline.run(60)) == []
    pipeline.fleet.set_fault(FaultKind.OVERHEAT, "node-2", 5, {})

    heated = list(pipeline.run(120))

    assert [(each.key.rule, each.key.node_id, each.gpu_index, each.kind, each.severity) for each in heated] == [
        ("high_temperature", "node-2", 5, "fired", "warning"),
        ("high_temperature", "node-2", 5, "raised", "critical"),
    ]
    assert "migrate_workload" in heated[1].actions


@pytest.mark.parametrize(
    ("fault", "which", "rule"),
    [
        (FaultKind.POWER, 3, "high_power"),
        (FaultKind.MEMORY_FULL, 3, "high_memory"),
        (FaultKind.XID, 3, "xid_error"),
        (FaultKind.GPU_LOST, 3, "gpu_lost"),
        (FaultKind.FROZEN, None, "exporter_frozen"),
    ],
)
def test_a_fault_raises_the_alert_that_is_for_it_and_no_other(fault, which, rule):
    pipeline = Pipeline(30.0)
    assert list(pipeline.run(120)) == []
    pipeline.fleet.set_fault(fault, "node-2", which, {})

    raised = list(pipeline.run(600))

    assert {(each.key.rule, each.key.node_id, each.gpu_index) for each in raised} == {(rule, "node-2", which)}
    assert raised[0].kind == "fired"


def test_values_that_are_not_believed_raise_nothing():
    pipeline = Pipeline(30.0)
    list(pipeline.run(120))
    pipeline.fleet.set_fault(FaultKind.SENTINELS, "node-1", 0, {})
    pipeline.fleet.set_fault(FaultKind.OUT_OF_RANGE, "node-2", 0, {})
    pipeline.fleet.set_fault(FaultKind.CONVERSION_ERROR, "node-3", 0, {})

    assert list(pipeline.run(900)) == []
