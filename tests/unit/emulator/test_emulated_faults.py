"""Each fault by its name: what it does to the page, whom it leaves alone, and that clearing it ends it."""

import math
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from emulator.attribution import Attribution
from emulator.faults import FAULTS, FaultKind, FaultScope, UnusableFault
from emulator.fleet import NotInFleet
from emulator.models import MODELS
from emulator.page import CONVERSION_ERROR
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME, SENTINELS

GPU = 3
ON_GPU = [kind for kind in FaultKind if FAULTS[kind].scope is FaultScope.GPU]
ON_NODE = [kind for kind in FaultKind if FAULTS[kind].scope is FaultScope.NODE]


def values_by_family(rows, gpu=GPU):
    return {row.name: row.value for row in rows if row.labels["gpu"] == str(gpu)}


@pytest.fixture
def struck(new_fleet, clock, rows_of):
    """Sets a fault on GPU 3 of node-1, waits two minutes, gives that GPU's values by family."""

    def strike(kind, parameters=None, **settings):
        fleet = new_fleet(**settings)
        fleet.set_fault(kind, "node-1", GPU, parameters or {})
        clock.advance(120)
        return values_by_family(rows_of(fleet.page("node-1")))

    return strike


def test_overheat_shows_a_temperature_above_the_critical_step(struck):
    found = struck(FaultKind.OVERHEAT)
    assert int(found["DCGM_FI_DEV_GPU_TEMP"]) in {97, 98}
    assert int(found["DCGM_FI_DEV_MEMORY_TEMP"]) > 97


@pytest.mark.parametrize(("model", "limit"), [("h100", 700), ("a100-80", 400), ("a100-40", 400), ("l40s", 350)])
def test_power_shows_a_draw_above_the_limit_and_no_other_alarm(struck, model, limit):
    found = struck(FaultKind.POWER, models=model)
    assert float(found["DCGM_FI_DEV_POWER_USAGE"]) > 1.1 * limit
    assert int(found["DCGM_FI_DEV_GPU_TEMP"]) <= 90


def test_power_can_be_told_the_watts(struck):
    assert float(struck(FaultKind.POWER, {"watts": 345})["DCGM_FI_DEV_POWER_USAGE"]) == pytest.approx(345, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_the_most_that_power_can_be_told_leaves_a_gpu_that_can_be(new_fleet, clock, rows_of, model):
    fleet = new_fleet(models=model, gpus=8)
    limit = MODELS[model].tdp_watts
    with pytest.raises(UnusableFault, match=f"expected a number from 1 to {1.5 * limit:g}, got {1.5 * limit + 1:g}"):
        fleet.set_fault(FaultKind.POWER, "node-1", GPU, {"watts": 1.5 * limit + 1})
    for gpu in range(8):
        fleet.set_fault(FaultKind.POWER, "node-1", gpu, {"watts": 1.5 * limit})
    clock.advance(3600)
    for row in rows_of(fleet.page("node-1")):
        field = FIELD_BY_DCGM_NAME.get(row.name)
        assert field is None or field.low <= float(row.value) * field.multiply_by <= field.high, row
        if row.name == "DCGM_FI_DEV_GPU_TEMP":
            assert 90 < int(row.value) < 110


def test_memory_full_shows_more_than_95_percent_used(struck):
    found = struck(FaultKind.MEMORY_FULL)
    used, free = int(found["DCGM_FI_DEV_FB_USED"]), int(found["DCGM_FI_DEV_FB_FREE"])
    assert 95 < 100 * used / (used + free) < 100
    assert used + free + int(found["DCGM_FI_DEV_FB_RESERVED"]) == 81559


def test_xid_shows_code_79_unless_told_another(struck):
    assert struck(FaultKind.XID)["DCGM_FI_DEV_XID_ERRORS"] == "79"
    assert struck(FaultKind.XID, {"code": 13})["DCGM_FI_DEV_XID_ERRORS"] == "13"


def test_an_xid_stays_while_its_count_leaves_the_window(new_fleet, clock, rows_of):
    fleet = new_fleet(optional_fields="xid_count")

    def shown():
        rows = [row for row in rows_of(fleet.page("node-1")) if row.labels["gpu"] == str(GPU)]
        gauge = next(row.value for row in rows if row.name == "DCGM_FI_DEV_XID_ERRORS")
        counts = {row.labels.get("xid"): row.value for row in rows if row.name == "DCGM_EXP_XID_ERRORS_COUNT"}
        return gauge, counts

    assert shown() == ("0", {None: "0"})
    fleet.set_fault(FaultKind.XID, "node-1", GPU, {"code": 31})
    assert shown() == ("31", {"31": "1"})
    clock.advance(200)
    fleet.set_fault(FaultKind.XID, "node-1", GPU, {"code": 31, "count": 3})
    assert shown() == ("31", {"31": "3"})
    clock.advance(150)
    fleet.set_fault(FaultKind.XID, "node-1", GPU, {"code": 43})
    assert shown() == ("43", {"31": "2", "43": "1"})
    clock.advance(301)
    assert shown() == ("43", {None: "0"})
    fleet.clear_fault(FaultKind.XID, "node-1", GPU)
    assert shown() == ("0", {None: "0"})


def test_a_counter_reset_ends_xids_and_their_faults_for_the_driver_was_reloaded(new_fleet, rows_of):
    fleet = new_fleet()
    fleet.set_fault(FaultKind.XID, "node-1", GPU, {})
    elsewhere, _ = fleet.set_fault(FaultKind.XID, "node-2", GPU, {})
    other_kind, _ = fleet.set_fault(FaultKind.MEMORY_FULL, "node-1", GPU, {})
    reset, _ = fleet.set_fault(FaultKind.COUNTER_RESET, "node-1", None, {})
    assert fleet.faults() == [other_kind, reset, elsewhere]
    assert list(fleet.nodes["node-1"].gpus[GPU].faults) == [FaultKind.MEMORY_FULL]
    assert values_by_family(rows_of(fleet.page("node-1")))["DCGM_FI_DEV_XID_ERRORS"] == "0"
    _, is_new = fleet.set_fault(FaultKind.XID, "node-1", GPU, {})
    assert is_new
    assert values_by_family(rows_of(fleet.page("node-1")))["DCGM_FI_DEV_XID_ERRORS"] == "79"


def test_gpu_lost_takes_its_rows_off_the_page_and_clearing_brings_them_back(new_fleet, rows_of):
    fleet = new_fleet(nvlink_rows=2)
    fleet.set_fault(FaultKind.GPU_LOST, "node-1", GPU, {})
    assert {row.labels["gpu"] for row in rows_of(fleet.page("node-1"))} == {"0", "1", "2", "4", "5", "6", "7"}
    fleet.clear_fault(FaultKind.GPU_LOST, "node-1", GPU)
    assert len({row.labels["gpu"] for row in rows_of(fleet.page("node-1"))}) == 8


def test_a_node_that_lost_every_gpu_has_an_empty_page(new_fleet):
    fleet = new_fleet(gpus=1, nodes=1)
    fleet.set_fault(FaultKind.GPU_LOST, "node-1", 0, {})
    assert fleet.page("node-1") == b""


def test_sentinels_show_dcgms_numbers_for_no_value_of_each_width(struck):
    found = struck(FaultKind.SENTINELS)
    assert {float(value) for value in found.values()} <= SENTINELS | {float(2**63)}
    assert found["DCGM_FI_DEV_POWER_USAGE"].startswith("1407374883553")
    assert found["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"].startswith("92233720368547757")
    assert found["DCGM_FI_DEV_GPU_TEMP"].startswith("21474836")
    assert len(set(found.values())) == 4 + 4 + 3


def test_out_of_range_shows_absurd_numbers_that_are_no_sentinels(struck):
    found = struck(FaultKind.OUT_OF_RANGE)
    assert found["DCGM_FI_DEV_GPU_UTIL"] == "808334905"
    for name in ("GPU_UTIL", "MEM_COPY_UTIL", "ENC_UTIL", "GPU_TEMP", "MEMORY_TEMP"):
        assert float(found[f"DCGM_FI_DEV_{name}"]) > FIELD_BY_DCGM_NAME[f"DCGM_FI_DEV_{name}"].high


def test_conversion_error_shows_the_exporters_text_in_place_of_numbers(struck):
    found = struck(FaultKind.CONVERSION_ERROR)
    unconverted = {name for name, value in found.items() if value == CONVERSION_ERROR}
    assert unconverted == {name for name in found if "_PROF_" in name}
    assert len(unconverted) == 5


def test_contradiction_shows_idle_engines_on_a_busy_gpu(struck):
    found = struck(FaultKind.CONTRADICTION)
    assert found["DCGM_FI_DEV_GPU_UTIL"] == "99"
    assert {float(value) for name, value in found.items() if "_PROF_" in name} == {0.0}


def test_unescaped_label_spoils_every_row_of_its_gpu_and_no_other(new_fleet):
    fleet = new_fleet()
    fleet.set_fault(FaultKind.UNESCAPED_LABEL, "node-1", GPU, {})
    page = fleet.page("node-1").decode()
    with pytest.raises(ValueError):  # noqa: PT011 - prometheus_client words it differently from release to release
        list(text_string_to_metric_families(page))
    sound = [line for line in page.splitlines(keepends=True) if f'{{gpu="{GPU}"' not in line]
    samples = [sample for family in text_string_to_metric_families("".join(sound)) for sample in family.samples]
    assert len(samples) == 7 * 25


def test_duplicate_rows_stand_twice_with_the_same_labels_and_value(new_fleet):
    fleet = new_fleet()
    fleet.set_fault(FaultKind.DUPLICATE_ROWS, "node-1", GPU, {})
    lines = [line for line in fleet.page("node-1").decode().splitlines() if not line.startswith("#")]
    twice = {line for line in lines if lines.count(line) == 2}
    assert len(lines) == 9 * 25
    assert len(twice) == 25
    assert all(f'{{gpu="{GPU}"' in line for line in twice)


@pytest.mark.parametrize("attribution", Attribution)
@pytest.mark.parametrize("dialect", ["3.3", "4.5"])
@pytest.mark.parametrize("mig_nodes", [0, 1])
def test_duplicate_rows_are_equal_whomever_the_rows_name(new_fleet, attribution, dialect, mig_nodes):
    fleet = new_fleet(nodes=1, attribution=attribution, dialect=dialect, mig_nodes=mig_nodes)
    gpu = next(gpu.index for gpu in fleet.nodes["node-1"].gpus if gpu.jobs)

    def rows():
        return Counter(line for line in fleet.page("node-1").decode().splitlines() if f'{{gpu="{gpu}"' in line)

    series = {line.rpartition(" ")[0] for line in rows()}
    fleet.set_fault(FaultKind.DUPLICATE_ROWS, "node-1", gpu, {})
    assert {line.rpartition(" ")[0] for line in rows()} == series
    assert len(rows()) == len(series)
    assert set(rows().values()) == {2}


@pytest.mark.parametrize("count", [1, 5])
def test_garbage_lines_stand_between_rows_that_are_all_still_there(new_fleet, count):
    fleet = new_fleet()
    sound = set(fleet.page("node-1").decode().splitlines())
    fleet.set_fault(FaultKind.GARBAGE_LINE, "node-1", None, {"lines": count})
    spoilt = fleet.page("node-1").decode().splitlines()
    garbage = [line for line in spoilt if line not in sound]
    assert len(garbage) == count
    assert sound <= set(spoilt)
    for line in garbage:
        with pytest.raises(ValueError):  # noqa: PT011 - each kind of garbage fails in its own words
            list(text_string_to_metric_families(line + "\n"))


def test_counter_reset_begins_every_counter_of_the_node_again(new_fleet, clock, rows_of):
    fleet = new_fleet()
    clock.advance(600)
    before = values_by_family(rows_of(fleet.page("node-1")))
    elsewhere = values_by_family(rows_of(fleet.page("node-2")))
    fleet.set_fault(FaultKind.COUNTER_RESET, "node-1", None, {})
    after = values_by_family(rows_of(fleet.page("node-1")))
    energy = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
    assert int(before[energy]) > 1e9
    assert after[energy] == "0"
    assert values_by_family(rows_of(fleet.page("node-2"))) == elsewhere
    clock.advance(10)
    assert 0 < int(values_by_family(rows_of(fleet.page("node-1")))[energy]) < 1e7


def test_counter_reset_leaves_what_a_gpu_keeps_over_its_life(new_fleet, clock, rows_of):
    fleet = new_fleet(optional_fields="ecc")
    clock.advance(36000)

    def shown(kind):
        name = f"DCGM_FI_DEV_ECC_SBE_{kind}_TOTAL"
        return {row.labels["gpu"]: int(row.value) for row in rows_of(fleet.page("node-1")) if row.name == name}

    before, volatile = shown("AGG"), shown("VOL")
    assert max(volatile.values()) > 0
    fleet.set_fault(FaultKind.COUNTER_RESET, "node-1", None, {})
    assert shown("AGG") == before
    assert set(shown("VOL").values()) == {0}
    clock.advance(36000)
    since = shown("VOL")
    assert max(since.values()) > 0
    assert shown("AGG") == {gpu: before[gpu] + since[gpu] for gpu in before}


def test_a_frozen_page_changes_nothing_but_the_order_of_its_blocks(new_fleet, clock):
    fleet = new_fleet()
    fleet.set_fault(FaultKind.FROZEN, "node-1", None, {})
    first = fleet.page("node-1").decode()
    clock.advance(3600)
    later = fleet.page("node-1").decode()
    assert sorted(later.splitlines()) == sorted(first.splitlines())
    assert later != first
    fleet.clear_fault(FaultKind.FROZEN, "node-1", None)
    assert sorted(fleet.page("node-1").decode().splitlines()) != sorted(first.splitlines())


@pytest.mark.parametrize("kind", ON_GPU)
def test_a_fault_of_one_gpu_leaves_all_others_and_other_nodes_alone(new_fleet, clock, kind):
    fleet = new_fleet()
    fleet.set_fault(kind, "node-1", GPU, {})
    untouched = new_fleet()
    clock.advance(60)

    def others(of):
        lines = [f"1 {line}" for line in of.page("node-1").decode().splitlines() if f'{{gpu="{GPU}"' not in line]
        return sorted(lines + of.page("node-2").decode().splitlines())

    # Random numbers that the fault itself used shift later noise, so numbers are compared on the other node alone.
    faulty = [line.rsplit(" ", 1)[0] if line.startswith("1 ") else line for line in others(fleet)]
    sound = [line.rsplit(" ", 1)[0] if line.startswith("1 ") else line for line in others(untouched)]
    assert faulty == sound


@pytest.mark.parametrize("kind", FaultKind)
def test_setting_and_clearing_are_idempotent(new_fleet, kind):
    fleet = new_fleet()
    gpu = GPU if kind in ON_GPU else None
    fault, is_new = fleet.set_fault(kind, "node-1", gpu, {})
    assert is_new
    assert fleet.set_fault(kind, "node-1", gpu, {}) == (fault, False)
    assert fleet.faults() == [fault]
    assert fleet.clear_fault(kind, "node-1", gpu) is True
    assert fleet.clear_fault(kind, "node-1", gpu) is False
    assert fleet.faults() == []


def test_a_gpu_may_be_named_by_its_uuid(new_fleet):
    fleet = new_fleet()
    uuid = fleet.nodes["node-1"].gpus[GPU].uuid
    fault, _ = fleet.set_fault(FaultKind.XID, "node-1", uuid, {})
    assert fault.gpu_index == GPU
    assert fleet.set_fault(FaultKind.XID, "node-1", GPU, {})[1] is False


def test_a_node_or_gpu_that_is_not_there_is_refused_with_those_that_are(new_fleet):
    fleet = new_fleet()
    with pytest.raises(NotInFleet, match="accepted: node-1, node-2"):
        fleet.set_fault(FaultKind.XID, "node-3", 0, {})
    with pytest.raises(NotInFleet, match="indices 0 to 7"):
        fleet.set_fault(FaultKind.XID, "node-1", 8, {})
    with pytest.raises(NotInFleet, match="indices 0 to 7"):
        fleet.set_fault(FaultKind.XID, "node-1", -1, {})
    assert fleet.faults() == []


@pytest.mark.parametrize("kind", ON_NODE)
def test_a_fault_of_a_node_takes_no_gpu(new_fleet, kind):
    with pytest.raises(UnusableFault, match="expected no GPU"):
        new_fleet().set_fault(kind, "node-1", GPU, {})


@pytest.mark.parametrize("kind", ON_GPU)
def test_a_fault_of_a_gpu_needs_one(new_fleet, kind):
    with pytest.raises(UnusableFault, match="expected its index"):
        new_fleet().set_fault(kind, "node-1", None, {})


@pytest.mark.parametrize("value", [0, 10001, 79.9, math.nan, math.inf, True, "79", [79]])
def test_a_parameter_that_is_no_number_of_its_range_is_refused(new_fleet, value):
    with pytest.raises(UnusableFault, match="expected a whole number from 1 to 10000"):
        new_fleet().set_fault(FaultKind.XID, "node-1", GPU, {"code": value})


def test_a_whole_number_written_with_decimals_is_a_whole_number(new_fleet):
    fault, _ = new_fleet().set_fault(FaultKind.XID, "node-1", GPU, {"code": 48.0, "count": 2.0})
    assert {name: repr(value) for name, value in fault.parameters.items()} == {"code": "48", "count": "2"}


def test_an_unknown_parameter_is_refused_with_those_that_are_known(new_fleet):
    with pytest.raises(UnusableFault, match=r"'colour'.*accepted: code, count"):
        new_fleet().set_fault(FaultKind.XID, "node-1", GPU, {"colour": 1})
