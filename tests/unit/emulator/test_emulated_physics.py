"""The emulated GPUs over virtual time: repeatable, coupled, and within every limit while nothing is wrong."""

from datetime import UTC, datetime

import pytest

from emulator.families import FAMILIES, values
from emulator.faults import FaultKind
from emulator.fleet import Fleet
from emulator.models import MODELS
from emulator.node import _MOST_TICKS_AT_ONCE, TICK_SECONDS
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock

NUMBER = {family.name.removeprefix("DCGM_FI_DEV_"): number for number, family in enumerate(FAMILIES)}
COUNTERS = [number for number, family in enumerate(FAMILIES) if family.type == "counter"]


def a_fleet(seed: int = 1, **settings):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    return clock, Fleet(EmulatorSettings(seed=seed, **settings), clock)


def readings(fleet):
    """The values of every GPU or MIG instance now."""
    now = fleet.now()
    return [
        (gpu, slot, values(gpu, slot, now, None))
        for node in fleet.advanced_nodes()
        for gpu in node.gpus
        for slot in gpu.slots
    ]


def test_the_same_seed_and_times_give_the_same_pages():
    pages = []
    for _ in range(2):
        clock, fleet = a_fleet(seed=7)
        run = []
        for seconds in (0, 5, 12.5, 30, 300, 3600):
            clock.advance(seconds)
            run += [fleet.page("node-1"), fleet.page("node-2")]
        pages.append(run)
    assert pages[0] == pages[1]


def test_another_seed_is_another_fleet():
    _, one = a_fleet(seed=1)
    _, other = a_fleet(seed=2)
    assert {gpu.uuid for gpu in one.nodes["node-1"].gpus}.isdisjoint(gpu.uuid for gpu in other.nodes["node-1"].gpus)


def test_what_a_page_shows_depends_on_the_time_and_not_on_how_often_it_was_asked_for():
    patient_clock, patient = a_fleet()
    eager_clock, eager = a_fleet()
    patient_clock.advance(1800.5)
    for _ in range(3601):
        eager_clock.advance(0.5)
        eager.page("node-1")
    assert patient_clock.monotonic() == eager_clock.monotonic()
    # The blocks' order is drawn anew for every page.
    patient_lines = sorted(patient.page("node-1").decode().splitlines())
    eager_lines = sorted(eager.page("node-1").decode().splitlines())
    unequal = [pair for pair in zip(patient_lines, eager_lines, strict=True) if pair[0] != pair[1]]
    assert unequal == []


def test_counters_never_fall_and_energy_always_rises():
    clock, fleet = a_fleet(models="h100,a100-40", optional_fields="ecc")
    before = readings(fleet)
    for seconds in (0.25, 1, 4, 5, 29, 30, 31, 600) * 20:
        clock.advance(seconds)
        after = readings(fleet)
        for (_, _, old), (_, _, new) in zip(before, after, strict=True):
            assert all(new[number] >= old[number] for number in COUNTERS)
            assert new[NUMBER["TOTAL_ENERGY_CONSUMPTION"]] > old[NUMBER["TOTAL_ENERGY_CONSUMPTION"]]
        before = after


def test_energy_is_the_integral_of_power():
    clock, fleet = a_fleet()
    gpu = fleet.node("node-1").gpus[0]
    began = gpu.energy_millijoules(0)
    joules = 0.0
    for _ in range(720):
        joules += gpu.power_watts * TICK_SECONDS
        clock.advance(TICK_SECONDS)
        fleet.node("node-1")
    assert (gpu.energy_millijoules(fleet.now()) - began) / 1000 == pytest.approx(joules, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_three_hours_without_faults_stay_inside_every_limit(seed):
    models = ",".join(MODELS)
    clock, fleet = a_fleet(seed=seed, nodes=len(MODELS), models=models)
    known = {(gpu.index, gpu.uuid) for gpu, _, _ in readings(fleet)}
    energy_before = {gpu.uuid: -1.0 for gpu, _, _ in readings(fleet)}
    for _ in range(360):
        found = readings(fleet)
        assert {(gpu.index, gpu.uuid) for gpu, _, _ in found} == known
        for gpu, _, row in found:
            used, free = row[NUMBER["FB_USED"]], row[NUMBER["FB_FREE"]]
            energy = row[NUMBER["TOTAL_ENERGY_CONSUMPTION"]]
            assert 20 < row[NUMBER["GPU_TEMP"]] <= 82
            assert row[NUMBER["POWER_USAGE"]] < gpu.model.tdp_watts
            assert 0 <= used / (used + free) < 0.93
            assert used + free + row[NUMBER["FB_RESERVED"]] == gpu.model.memory_mib
            assert row[NUMBER["XID_ERRORS"]] == 0
            assert row[NUMBER["ROW_REMAP_FAILURE"]] == 0
            assert row[NUMBER["ECC_DBE_VOL_TOTAL"]] == 0
            assert energy > energy_before[gpu.uuid]
            energy_before[gpu.uuid] = energy
        clock.advance(30)


def test_three_of_four_gpus_are_busy_and_every_node_keeps_one_free():
    busy = []
    for seed in range(8):
        clock, fleet = a_fleet(seed=seed, nodes=4)
        for _ in range(60):
            clock.advance(120)
            per_node = [sum(bool(gpu.jobs) for gpu in node.gpus) for node in fleet.advanced_nodes()]
            assert max(per_node) <= 7
            busy += per_node
    assert 0.65 < sum(busy) / (8 * len(busy)) < 0.85


def test_jobs_come_and_go():
    clock, fleet = a_fleet()
    pods = set()
    for _ in range(120):
        clock.advance(60)
        pods |= {job.workload.pod for node in fleet.advanced_nodes() for gpu in node.gpus for job in gpu.jobs}
    assert len(pods) > 20
    assert len({pod.rsplit("-", 2)[0] for pod in pods}) > 5


def test_load_draws_power_and_power_makes_warm():
    clock, fleet = a_fleet(nodes=4)
    clock.advance(3600)
    found = readings(fleet)
    idle = [row for gpu, _, row in found if not gpu.load]
    loaded = [row for gpu, _, row in found if gpu.load > 0.8]
    assert idle
    assert loaded
    for name in ("GPU_UTIL", "SM_CLOCK", "POWER_USAGE", "GPU_TEMP", "MEMORY_TEMP", "FB_USED"):
        assert max(row[NUMBER[name]] for row in idle) < min(row[NUMBER[name]] for row in loaded), name
    for name in ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_PROF_PCIE_RX_BYTES"):
        assert max(row[NUMBER[name]] for row in idle) < min(row[NUMBER[name]] for row in loaded), name


def test_temperature_follows_a_change_of_load_with_a_time_constant():
    clock, fleet = a_fleet()
    node = fleet.node("node-1")
    gpu = max(node.gpus, key=lambda gpu: gpu.load)
    hot = gpu.temperature(fleet.now())
    node.withdraw_jobs(gpu, fleet.now())
    clock.advance(30)
    fleet.node("node-1")
    after_one = gpu.temperature(fleet.now())
    clock.advance(300)
    fleet.node("node-1")
    cold = gpu.temperature(fleet.now())
    assert cold < 35 < hot
    assert (hot - after_one) / (hot - cold) == pytest.approx(0.632, abs=0.03)


def test_a_node_that_nobody_asked_for_a_month_catches_up_in_a_bounded_number_of_steps(monkeypatch):
    clock, fleet = a_fleet()
    node = fleet.node("node-1")
    ticks = []
    tick = node._tick
    monkeypatch.setattr(node, "_tick", lambda now: (ticks.append(now), tick(now)))
    before = node.gpus[0].energy_millijoules(0)
    clock.advance(30 * 86400)
    fleet.page("node-1")
    assert 0 < len(ticks) <= _MOST_TICKS_AT_ONCE
    assert ticks[-1] == pytest.approx(30 * 86400, abs=TICK_SECONDS)
    assert node.gpus[0].energy_millijoules(fleet.now()) - before > 30 * 86400 * 65 * 1000
    assert FaultKind.OVERHEAT not in node.gpus[0].faults


def test_default_nodes_are_in_one_datacenter_and_more_spread_over_several():
    _, fleet = a_fleet(nodes=7)
    where = [node.datacenter for node in fleet.nodes.values()]
    assert where == ["us-west-1", "us-west-1", "us-east-1", "us-east-1", "eu-west-1", "eu-west-1", "us-west-1"]
