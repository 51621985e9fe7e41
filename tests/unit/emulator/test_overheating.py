"""The demo's loop in virtual time: a GPU overheats, its job moves away, it cools."""

import pytest

from emulator.chance import stream
from emulator.faults import FaultKind
from emulator.jobs import new_job
from emulator.migration import CannotMigrate, KeyReused, Migrations

OVERHEAT = FaultKind.OVERHEAT


def temperatures(clock, fleet, gpu, node_id, seconds, step=5.0):
    """Whole degrees as the page shows them, one reading every `step` seconds, the present one first."""
    found = []
    for _ in range(int(seconds / step) + 1):
        fleet.node(node_id)
        found.append(round(gpu.temperature(fleet.now())))
        clock.advance(step)
    return found


@pytest.mark.parametrize("model", ["h100", "a100-80", "a100-40", "l40s", "t4"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_overheating_gpu_warns_within_40_seconds_then_is_critical_and_then_is_held(new_fleet, clock, model, seed):
    fleet = new_fleet(seed=seed, models=model)
    clock.advance(1234.5)
    for gpu in list(fleet.node("node-2").gpus):
        fleet.set_fault(OVERHEAT, "node-2", gpu.index, {})
    for gpu in fleet.node("node-2").gpus:
        assert gpu.jobs
    readings = {}
    for _ in range(25):
        node = fleet.node("node-2")
        for gpu in node.gpus:
            readings.setdefault(gpu.index, []).append(round(gpu.temperature(fleet.now())))
        clock.advance(5)
    for found in readings.values():
        assert found[0] <= 82
        warned = next(number for number, celsius in enumerate(found) if celsius > 90)
        critical = next(number for number, celsius in enumerate(found) if celsius > 95)
        assert 10 <= 5 * warned <= 40
        assert found[warned] <= 95, "a scrape every 5 s must see the warning before the critical step"
        assert 15 <= 5 * critical <= 50
        assert set(found[critical + 2 :]) <= {97, 98}


def test_while_it_is_held_its_clocks_and_power_are_held_down(new_fleet, clock):
    fleet = new_fleet()
    gpu = max(fleet.node("node-1").gpus, key=lambda gpu: gpu.load)
    watts = gpu.power_watts
    fleet.set_fault(OVERHEAT, "node-1", gpu.index, {})
    clock.advance(90)
    fleet.node("node-1")
    assert gpu.clock_ratio < 0.65
    assert gpu.power_watts < 0.85 * watts
    assert gpu.throttle_reasons == 0x20 | 0x40


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("index", [0, 5])
def test_migrating_its_job_away_cools_it_below_85_within_a_minute_though_the_fault_stays(new_fleet, clock, seed, index):
    fleet = new_fleet(seed=seed)
    migrations = Migrations(fleet)
    fleet.set_fault(OVERHEAT, "node-2", index, {})
    gpu = fleet.node("node-2").gpus[index]
    assert max(temperatures(clock, fleet, gpu, "node-2", 90)) >= 97
    pod = gpu.jobs[0].workload.pod
    answer = migrations.migrate("node-2", gpu.uuid, None, None)
    assert answer["from"] == {"node_id": "node-2", "gpu_index": index, "gpu_uuid": gpu.uuid}
    assert answer["workload"]["pod"] == pod
    after = temperatures(clock, fleet, gpu, "node-2", 1200)
    assert after[0] >= 97
    assert max(after[12:]) < 85
    assert gpu.jobs == []
    target = fleet.gpu(fleet.node(answer["to"]["node_id"]), answer["to"]["gpu_uuid"])
    assert target.temperature(fleet.now()) <= 82


def test_a_repaired_gpu_works_again_and_can_overheat_again_at_once(new_fleet, clock):
    fleet = new_fleet()
    fleet.set_fault(OVERHEAT, "node-1", 0, {})
    Migrations(fleet).migrate("node-1", 0, None, None)
    gpu = fleet.node("node-1").gpus[0]
    assert not gpu.accepts_jobs(fleet.now())
    fleet.clear_fault(OVERHEAT, "node-1", 0)
    assert gpu.accepts_jobs(fleet.now())
    fleet.set_fault(OVERHEAT, "node-1", 0, {})
    assert max(temperatures(clock, fleet, gpu, "node-1", 60)) >= 97


def test_a_gpu_whose_job_was_taken_away_stays_idle_for_half_an_hour(new_fleet, clock):
    fleet = new_fleet()
    busy = next(gpu for gpu in fleet.node("node-1").gpus if gpu.jobs)
    Migrations(fleet).migrate("node-1", busy.index, None, None)
    for _ in range(29):
        clock.advance(60)
        assert not fleet.node("node-1").gpus[busy.index].jobs
    clock.advance(120)
    assert fleet.node("node-1").gpus[busy.index].accepts_jobs(fleet.now())


def test_clearing_the_fault_cools_it_with_its_job_still_running(new_fleet, clock):
    fleet = new_fleet()
    fleet.set_fault(OVERHEAT, "node-1", 0, {})
    gpu = fleet.node("node-1").gpus[0]
    temperatures(clock, fleet, gpu, "node-1", 90)
    assert fleet.clear_fault(OVERHEAT, "node-1", 0)
    assert max(temperatures(clock, fleet, gpu, "node-1", 300)[12:]) <= 82
    assert gpu.jobs


def test_the_temperature_at_which_it_is_held_can_be_chosen(new_fleet, clock):
    fleet = new_fleet()
    fleet.set_fault(OVERHEAT, "node-1", 0, {"celsius": 93})
    found = temperatures(clock, fleet, fleet.node("node-1").gpus[0], "node-1", 120)
    assert max(found) == 93


def test_a_fault_never_cools(new_fleet, clock):
    fleet, sound = new_fleet(), new_fleet()
    index = max(fleet.node("node-1").gpus, key=lambda gpu: gpu.temperature(fleet.now())).index
    warm = fleet.nodes["node-1"].gpus[index].temperature(fleet.now())
    assert warm > 65
    fleet.set_fault(OVERHEAT, "node-1", index, {"celsius": 60})
    assert fleet.nodes["node-1"].gpus[index].temperature(fleet.now()) == warm
    for _ in range(60):
        clock.advance(5)
        struck, other = (of.node("node-1").gpus[index].temperature(of.now()) for of in (fleet, sound))
        assert struck > other - 1, "but for the noise of their loads"


def test_a_gpu_that_is_warmer_than_where_it_would_be_held_cools_down_to_there_slowly(new_fleet, clock):
    fleet = new_fleet()
    node = fleet.node("node-1")
    gpu = max(node.gpus, key=lambda gpu: gpu.load)
    fleet.set_fault(FaultKind.POWER, "node-1", gpu.index, {"watts": 1000})
    clock.advance(600)
    fleet.node("node-1")
    hot = gpu.temperature(fleet.now())
    assert hot > 95
    fleet.clear_fault(FaultKind.POWER, "node-1", gpu.index)
    fleet.set_fault(OVERHEAT, "node-1", gpu.index, {"celsius": 88})
    assert gpu.temperature(fleet.now()) == hot
    found = temperatures(clock, fleet, gpu, "node-1", 300)
    assert found == sorted(found, reverse=True)
    assert found[1] > 93
    assert found[-1] == 88


def test_the_coolest_free_gpu_of_the_same_node_is_taken(new_fleet):
    fleet = new_fleet()
    node = fleet.node("node-1")
    busy = next(gpu for gpu in node.gpus if gpu.jobs)
    free = [gpu for gpu in node.gpus if not gpu.jobs]
    coolest = min(free, key=lambda gpu: gpu.temperature(fleet.now()))
    answer = Migrations(fleet).migrate("node-1", busy.index, None, None)
    assert answer["to"] == {"node_id": "node-1", "gpu_index": coolest.index, "gpu_uuid": coolest.uuid}
    assert coolest.jobs[0].workload.pod == answer["workload"]["pod"]


def test_a_full_node_hands_its_job_to_another_node(new_fleet):
    fleet = new_fleet()
    for gpu in fleet.node("node-1").gpus:
        if not gpu.jobs:
            fleet.set_fault(FaultKind.XID, "node-1", gpu.index, {})
    busy = next(gpu for gpu in fleet.node("node-1").gpus if gpu.jobs)
    answer = Migrations(fleet).migrate("node-1", busy.index, None, None)
    assert answer["to"]["node_id"] == "node-2"


def test_without_a_free_gpu_nothing_moves(new_fleet):
    fleet = new_fleet()
    for node in list(fleet.advanced_nodes()):
        for gpu in node.gpus:
            if not gpu.jobs:
                fleet.set_fault(FaultKind.XID, node.node_id, gpu.index, {})
    busy = next(gpu for gpu in fleet.node("node-1").gpus if gpu.jobs)
    with pytest.raises(CannotMigrate, match="no free GPU"):
        Migrations(fleet).migrate("node-1", busy.index, None, None)
    assert busy.jobs


def test_a_gpu_without_a_job_has_nothing_to_move(new_fleet):
    fleet = new_fleet()
    idle = next(gpu for gpu in fleet.node("node-1").gpus if not gpu.jobs)
    with pytest.raises(CannotMigrate, match="runs no job"):
        Migrations(fleet).migrate("node-1", idle.index, None, None)


def test_a_target_that_is_busy_is_refused_and_a_free_one_taken(new_fleet):
    fleet = new_fleet()
    first, second = [gpu for gpu in fleet.node("node-1").gpus if gpu.jobs][:2]
    free = next(gpu for gpu in fleet.node("node-2").gpus if not gpu.jobs)
    with pytest.raises(CannotMigrate, match="the target"):
        Migrations(fleet).migrate("node-1", first.index, ("node-1", second.index), None)
    answer = Migrations(fleet).migrate("node-1", first.index, ("node-2", free.uuid), None)
    assert answer["to"]["gpu_uuid"] == free.uuid


def test_the_same_key_moves_a_job_once_and_repeats_the_first_answer(new_fleet):
    fleet = new_fleet()
    migrations = Migrations(fleet)
    busy = next(gpu for gpu in fleet.node("node-1").gpus if gpu.jobs)
    first = migrations.migrate("node-1", busy.uuid, None, "key-1")
    where = [[bool(gpu.jobs) for gpu in node.gpus] for node in fleet.advanced_nodes()]
    assert migrations.migrate("node-1", busy.uuid, None, "key-1") == first
    assert [[bool(gpu.jobs) for gpu in node.gpus] for node in fleet.advanced_nodes()] == where
    with pytest.raises(KeyReused):
        migrations.migrate("node-2", busy.index, None, "key-1")


def test_a_refused_migration_may_succeed_later_under_the_same_key(new_fleet):
    fleet = new_fleet()
    migrations = Migrations(fleet)
    idle = next(gpu for gpu in fleet.node("node-1").gpus if not gpu.jobs)
    with pytest.raises(CannotMigrate):
        migrations.migrate("node-1", idle.index, None, "key-1")
    fleet.set_fault(OVERHEAT, "node-1", idle.index, {})
    assert migrations.migrate("node-1", idle.index, None, "key-1")["from"]["gpu_index"] == idle.index


def test_all_jobs_of_a_split_gpu_move_together(new_fleet):
    fleet = new_fleet(mig_nodes=2)
    migrations = Migrations(fleet)
    source = next(gpu for gpu in fleet.node("node-1").gpus if len(gpu.jobs) > 1)
    target = fleet.node("node-2").gpus[0]
    fleet.node("node-2").withdraw_jobs(target, fleet.now())
    target.cordoned_until = 0.0
    pods = [job.workload.pod for job in source.jobs]
    answer = migrations.migrate("node-1", source.index, ("node-2", 0), None)
    assert [workload["pod"] for workload in answer["workloads"]] == pods
    assert [job.workload.pod for job in target.jobs] == pods
    assert source.jobs == []


def test_a_job_of_a_split_gpu_takes_the_free_instance_of_its_size_beside_other_jobs(new_fleet):
    fleet = new_fleet(mig_nodes=2, gpus=2, nodes=2)
    source, target = fleet.node("node-1").gpus
    for gpu in (source, target):
        for slot in gpu.slots:
            slot.job = None
    source.slots[1].job = job = new_job(stream(1, "job"), 0.0)
    target.slots[0].job = new_job(stream(2, "job"), 0.0)
    Migrations(fleet).migrate("node-1", 0, ("node-1", 1), None)
    assert target.slots[1].job is job
    assert target.slots[0].job is not None
    source.slots[0].job = job
    with pytest.raises(CannotMigrate, match="the target"):
        Migrations(fleet).migrate("node-1", 0, ("node-1", 1), None)
