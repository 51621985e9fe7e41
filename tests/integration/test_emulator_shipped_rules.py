"""The emulated fleet before the shipped rules: quiet without faults; the overheating loop opens and closes one alert.

The pages become records here by the field table alone, line by line, so that this says nothing about the bridge.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from alerting.engine import Engine
from alerting.node_state import NodeState
from alerting.rules import load_rules
from alerting.transitions import Transition
from emulator.faults import FaultKind
from emulator.fleet import Fleet
from emulator.migration import Migrations
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME, ValueType
from gpu_telemetry.records import SCHEMA_VERSION, AnyRecord, GpuRecord, ScrapeRecord

ROW = re.compile(r"^(\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')


def records(page: bytes, node_id: str, seq: int, now: datetime, interval: float) -> Iterator[AnyRecord]:
    """The records of one scrape, the closing one last."""
    common: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "node_id": node_id,
        "bridge_id": "bridge",
        "boot_id": "boot",
        "seq": seq,
        "collected_at": now,
    }
    gpus: dict[tuple[str, str | None], dict[str, Any]] = {}
    for line in page.decode().splitlines():
        if line.startswith("#"):
            continue
        match = ROW.match(line)
        assert match, line
        labels = dict(LABEL.findall(match[2]))
        values = gpus.setdefault(
            (labels["UUID"], labels.get("GPU_I_ID")),
            {
                "gpu_index": int(labels["gpu"]),
                "gpu_uuid": labels["UUID"],
                "mig_instance": labels.get("GPU_I_ID"),
                "model": labels["modelName"],
            },
        )
        field = FIELD_BY_DCGM_NAME.get(match[1])
        if field is not None:
            value = float(match[3]) * field.multiply_by
            assert field.low <= value <= field.high, line
            values[field.name] = int(value) if field.type is ValueType.INTEGER else value
    for values in gpus.values():
        used, free = values["memory_used_mib"], values["memory_free_mib"]
        yield GpuRecord(**common, **values, memory_used_percent=100 * used / (used + free))
    yield ScrapeRecord(
        **common,
        up=True,
        gpu_records=len(gpus),
        interval_ms=round(interval * 1000),
        gpu_uuids=sorted({uuid for uuid, _ in gpus}),
        changed_at=now,
    )


class Watched:
    """A fleet that is scraped at an interval and held against the shipped rules, in virtual time."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.fleet = Fleet(EmulatorSettings(**settings), self.clock)
        self._engine = Engine(load_rules())
        self._states: dict[str, NodeState] = {}
        self._seq = 0

    def watch(self, seconds: float, interval: float) -> list[Transition]:
        """The transitions of the next seconds."""
        found: list[Transition] = []
        for _ in range(round(seconds / interval)):
            self.clock.advance(interval)
            self._seq += 1
            for node_id in self.fleet.nodes:
                state = self._states.setdefault(node_id, self._engine.new_node(node_id))
                page = self.fleet.page(node_id)
                for record in records(page, node_id, self._seq, self.clock.now(), interval):
                    found += self._engine.fold(state, record)
        return found


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nodes": 5, "gpus": 4, "models": "h100,a100-80,a100-40,l40s,t4", "optional_fields": "ecc,throttle_reasons"},
        {"mig_nodes": 1, "dialect": "3.5"},
    ],
)
def test_without_faults_an_hour_of_event_time_raises_nothing(seed, settings):
    assert Watched(seed=seed, **settings).watch(3900, 30) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_overheating_warns_is_critical_and_resolves_once_the_job_has_moved(seed):
    watched = Watched(seed=seed)
    watched.watch(60, 5)
    watched.fleet.set_fault(FaultKind.OVERHEAT, "node-2", 5, {})
    heating = watched.watch(60, 5)
    assert [(each.kind, each.severity) for each in heating] == [("fired", "warning"), ("raised", "critical")]
    assert heating[1].actions == ("notify", "migrate_workload")
    Migrations(watched.fleet).migrate("node-2", heating[1].key.gpu_uuid, None, "decision-1")
    cooling = watched.watch(600, 5)
    assert [(each.key, each.kind, each.resolved_reason) for each in cooling] == [
        (heating[0].key, "resolved", "cleared")
    ]
    assert (cooling[0].at - heating[1].at).total_seconds() <= 90


@pytest.mark.parametrize(
    ("kind", "alert"),
    [
        (FaultKind.POWER, "high_power"),
        (FaultKind.MEMORY_FULL, "high_memory"),
        (FaultKind.XID, "xid_error"),
        (FaultKind.GPU_LOST, "gpu_lost"),
    ],
)
@pytest.mark.parametrize("model", ["h100", "a100-80", "l40s", "t4"])
def test_a_fault_of_one_gpu_raises_its_alert_on_that_gpu_and_nothing_else(kind, alert, model):
    watched = Watched(models=model)
    watched.watch(60, 30)
    uuid = watched.fleet.nodes["node-1"].gpus[3].uuid
    watched.fleet.set_fault(kind, "node-1", 3, {})
    found = watched.watch(600, 30)
    assert [(each.kind, each.key.rule, each.key.node_id, each.key.gpu_uuid) for each in found] == [
        ("fired", alert, "node-1", uuid)
    ]
