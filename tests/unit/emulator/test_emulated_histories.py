"""Whatever is done to the fleet in whatever order, what must always hold holds."""

import re
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.faults import FAULTS, FaultKind, FaultScope
from emulator.fleet import Fleet
from emulator.migration import CannotMigrate, Migrations
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock

NODES = ("node-1", "node-2")
ROW = re.compile(r"^[A-Z_a-z]+\{[^{}]*\} \S.*$")
# What spoils lines or takes rows off is left out of the history, so that each page must be whole.
WHOLE_PAGE = [
    kind for kind in FaultKind if kind not in {FaultKind.GARBAGE_LINE, FaultKind.GPU_LOST, FaultKind.UNESCAPED_LABEL}
]

waits = st.tuples(st.just("wait"), st.floats(0, 900))
faults = st.tuples(
    st.sampled_from(["set", "clear"]), st.sampled_from(WHOLE_PAGE), st.sampled_from(NODES), st.integers(0, 3)
)
moves = st.tuples(st.just("move"), st.sampled_from(NODES), st.integers(0, 3))


def carry_out(step, fleet, migrations, clock):
    match step:
        case ("wait", seconds):
            clock.advance(seconds)
        case (("set" | "clear") as what, kind, node_id, index):
            gpu = index if FAULTS[kind].scope is FaultScope.GPU else None
            if what == "set":
                fleet.set_fault(kind, node_id, gpu, {})
            else:
                fleet.clear_fault(kind, node_id, gpu)
        case ("move", node_id, index):
            try:
                migrations.migrate(node_id, index, None, None)
            except CannotMigrate:
                assert not fleet.node(node_id).gpus[index].jobs or not any(
                    gpu.accepts_jobs(fleet.now()) and not gpu.jobs
                    for node in fleet.advanced_nodes()
                    for gpu in node.gpus
                )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), history=st.lists(st.one_of(waits, faults, moves), max_size=25))
def test_any_history_keeps_pages_whole_counters_rising_and_each_job_in_one_place(seed, history):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    fleet = Fleet(EmulatorSettings(seed=seed, gpus=4), clock)
    migrations = Migrations(fleet)
    energy: dict[str, int] = {}
    for step in history:
        carry_out(step, fleet, migrations, clock)
        if step[:2] == ("set", FaultKind.COUNTER_RESET):
            energy.clear()
        running = [job.workload.pod_uid for node in fleet.advanced_nodes() for gpu in node.gpus for job in gpu.jobs]
        assert len(running) == len(set(running))
        for node in fleet.advanced_nodes():
            lines = fleet.page(node.node_id).decode().splitlines()
            assert all(line.startswith("#") or ROW.match(line) for line in lines)
            for gpu in node.gpus:
                assert 15 < gpu.temperature(fleet.now()) < 98.5
                assert 0 < gpu.power_watts < 1.2 * gpu.model.tdp_watts
                now = gpu.energy_millijoules(fleet.now())
                assert now >= energy.get(gpu.uuid, 0)
                energy[gpu.uuid] = now
