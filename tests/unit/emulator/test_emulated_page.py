"""The emulated page against what dcgm-exporter writes: labels by release, types, formats, blocks."""

import itertools
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from emulator.dialects import DIALECTS
from emulator.families import FAMILIES
from emulator.faults import FaultKind
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME, SENTINELS, Behaviour, Scope

DEFAULT = [family for family in FAMILIES if not family.group]
POD = ["container", "namespace", "pod"]


def label_order(page: bytes, family: str, gpu: int) -> list[str]:
    line = next(line for line in page.decode().splitlines() if line.startswith(f'{family}{{gpu="{gpu}"'))
    return re.findall(r'(\w+)="', line)


def a_busy_and_an_idle_gpu(fleet) -> tuple[int, int]:
    gpus = fleet.node("node-1").gpus
    return next(gpu.index for gpu in gpus if gpu.jobs), next(gpu.index for gpu in gpus if not gpu.jobs)


@pytest.mark.parametrize(
    ("dialect", "of_busy", "of_idle"),
    [
        (
            "3.3",
            ["gpu", "UUID", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", *POD],
            ["gpu", "UUID", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", *POD],
        ),
        (
            "3.5",
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", *POD],
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", *POD],
        ),
        (
            "4.5",
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION", *POD, "pod_uid"],
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION"],
        ),
        (
            "4.6",
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "hostname", "DCGM_FI_DRIVER_VERSION", *POD, "pod_uid"],
            ["gpu", "UUID", "pci_bus_id", "device", "modelName", "hostname", "DCGM_FI_DRIVER_VERSION"],
        ),
    ],
)
def test_labels_stand_in_the_order_of_the_release(new_fleet, dialect, of_busy, of_idle):
    fleet = new_fleet(dialect=dialect)
    busy, idle = a_busy_and_an_idle_gpu(fleet)
    page = fleet.page("node-1")
    assert label_order(page, "DCGM_FI_DEV_GPU_TEMP", busy) == of_busy
    assert label_order(page, "DCGM_FI_DEV_GPU_TEMP", idle) == of_idle


@pytest.mark.parametrize(("dialect", "has_meaning"), [("3.3", False), ("3.4", True), ("4.5", True)])
def test_xid_rows_say_the_meaning_of_the_code_since_3_4(new_fleet, rows_of, dialect, has_meaning):
    fleet = new_fleet(dialect=dialect)
    fleet.set_fault(FaultKind.XID, "node-1", 2, {"code": 48})
    xids = {row.labels["gpu"]: row for row in rows_of(fleet.page("node-1")) if row.name == "DCGM_FI_DEV_XID_ERRORS"}
    assert (xids["2"].value, xids["3"].value) == ("48", "0")
    assert (xids["2"].labels.get("err_msg") == "Double Bit ECC Error") is has_meaning
    assert (xids["3"].labels.get("err_msg") == "No Error") is has_meaning
    attributes = [name for name in xids["2"].labels if name in {*POD, "err_code", "err_msg", "pod_uid"}]
    assert attributes == sorted(attributes)


def test_an_old_release_prints_empty_pod_labels_for_a_gpu_without_a_pod(new_fleet, rows_of):
    fleet = new_fleet(dialect="3.3")
    _, idle = a_busy_and_an_idle_gpu(fleet)
    row = next(row for row in rows_of(fleet.page("node-1")) if row.labels["gpu"] == str(idle))
    assert [row.labels[name] for name in POD] == ["", "", ""]


@pytest.mark.parametrize(
    ("dialect", "mig_nodes"),
    [(dialect, 0) for dialect in DIALECTS] + [(dialect, 1) for dialect in DIALECTS if dialect != "1.7"],
)
def test_prometheus_client_reads_every_page_without_malformed_faults(new_fleet, dialect, mig_nodes):
    fleet = new_fleet(
        dialect=dialect,
        nodes=1,
        mig_nodes=mig_nodes,
        nvlink_rows=4,
        optional_fields="ecc,throttle_reasons,xid_count",
    )
    for kind in (FaultKind.XID, FaultKind.OVERHEAT, FaultKind.SENTINELS, FaultKind.GPU_LOST, FaultKind.MEMORY_FULL):
        fleet.set_fault(kind, "node-1", 1 + list(FaultKind).index(kind) % 8 - 1, {})
    page = fleet.page("node-1").decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert len(samples) == sum(not line.startswith("#") for line in page.splitlines())


def test_the_default_families_are_there_with_a_row_for_each_gpu_and_nothing_else(new_fleet, rows_of):
    rows = rows_of(new_fleet().page("node-1"))
    assert len(DEFAULT) == 25
    expected = {(family.name, str(gpu)) for family in DEFAULT for gpu in range(8)}
    assert {(row.name, row.labels["gpu"]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_help_and_type_stand_once_above_each_block(new_fleet):
    lines = new_fleet().page("node-1").decode().splitlines()
    for family in DEFAULT:
        at = lines.index(f"# HELP {family.name} {family.help}")
        assert lines[at + 1] == f"# TYPE {family.name} {family.type}"
        assert all(line.startswith(f"{family.name}{{") for line in lines[at + 2 : at + 10])
    assert sum(line.startswith("#") for line in lines) == 2 * len(DEFAULT)


def test_doubles_have_six_decimals_and_integers_none(new_fleet, rows_of):
    real = {family.name: family.real for family in FAMILIES}
    for row in rows_of(new_fleet().page("node-1")):
        assert re.fullmatch(r"\d+\.\d{6}" if real[row.name] else r"\d+", row.value), row


def test_blocks_come_in_another_order_at_each_scrape(new_fleet):
    fleet = new_fleet()
    pages = [fleet.page("node-1").decode() for _ in range(3)]
    orders = [re.findall(r"^# TYPE (\w+)", page, re.MULTILINE) for page in pages]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    assert len({"".join(sorted(page)) for page in pages}) == 1


def test_a_split_gpu_has_instance_rows_only_and_repeats_whole_gpu_values(new_fleet, rows_of):
    rows = rows_of(new_fleet(nodes=2, mig_nodes=1).page("node-2"))
    of_first = [row for row in rows if row.labels["gpu"] == "0"]
    assert all(list(row.labels)[5:7] == ["GPU_I_PROFILE", "GPU_I_ID"] for row in of_first)
    instances = {(row.labels["GPU_I_PROFILE"], row.labels["GPU_I_ID"]) for row in of_first}
    assert instances == {("3g.40gb", "2"), ("2g.20gb", "3"), ("2g.20gb", "5")}
    for name, field in FIELD_BY_DCGM_NAME.items():
        of_name = [row for row in rows if row.name == name]
        if field.scope is Scope.GPU and of_name:
            assert len(of_name) == 3 * 8
            assert len({(row.labels["gpu"], row.value) for row in of_name}) == 8, name
    memory = {row.labels["GPU_I_ID"]: int(row.value) for row in of_first if row.name == "DCGM_FI_DEV_FB_FREE"}
    assert memory["2"] < 40448
    assert not [row for row in rows if row.name == "DCGM_FI_DEV_GPU_UTIL"]


def test_nvlink_rows_are_a_second_block_of_their_family(new_fleet, rows_of):
    page = new_fleet(nvlink_rows=18).page("node-1")
    name = "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"
    assert page.decode().count(f"# TYPE {name} counter") == 2
    rows = [row for row in rows_of(page) if row.name == name]
    links = [row for row in rows if "nvlink" in row.labels]
    assert (len(rows), len(links)) == (8 + 8 * 18, 8 * 18)
    assert list(links[0].labels) == [
        "nvlink",
        "gpu",
        "gpu_uuid",
        "pci_bus_id",
        "device",
        "model_name",
        "hostname",
        "DCGM_FI_DRIVER_VERSION",
    ]
    whole = next(int(row.value) for row in rows if row not in links and row.labels["gpu"] == "3")
    assert sum(int(row.value) for row in links if row.labels["gpu"] == "3") == pytest.approx(whole, abs=18)


@pytest.mark.parametrize("dialect", ["3.3", "4.4"])
def test_old_releases_name_the_switch_of_a_link(new_fleet, rows_of, dialect):
    rows = rows_of(new_fleet(dialect=dialect, nvlink_rows=2).page("node-1"))
    links = [row for row in rows if "nvlink" in row.labels]
    assert list(links[0].labels) == ["nvlink", "nvswitch", "Hostname", "DCGM_FI_DRIVER_VERSION"]
    assert len({tuple(row.labels.items()) for row in links}) == 16


@pytest.mark.parametrize(("dialect", "of_gpus"), [("4.4", "Hostname"), ("4.5", "Hostname"), ("4.6", "hostname")])
def test_hostname_is_spelled_both_ways_on_one_page_between_the_releases_that_changed_it(
    new_fleet, rows_of, dialect, of_gpus
):
    rows = rows_of(new_fleet(dialect=dialect, nvlink_rows=2).page("node-1"))
    spelled = {("nvlink" in row.labels, name) for row in rows for name in row.labels if name.lower() == "hostname"}
    assert spelled == {(False, of_gpus), (True, "Hostname" if dialect == "4.4" else "hostname")}


def test_a_gpu_without_nvlinks_has_no_nvlink_rows(new_fleet, rows_of):
    assert not [row for row in rows_of(new_fleet(models="t4", nvlink_rows=4).page("node-1")) if "nvlink" in row.labels]


def test_a_mixed_fleet_speaks_every_release(new_fleet):
    fleet = new_fleet(nodes=8, dialect="mixed")
    assert [node.exporter.dialect.first_tag for node in fleet.nodes.values()] == [
        d.first_tag for d in DIALECTS.values()
    ]


def test_optional_fields_come_only_when_asked_for(new_fleet, rows_of):
    usual = {row.name for row in rows_of(new_fleet().page("node-1"))}
    more = {row.name for row in rows_of(new_fleet(optional_fields="ecc,throttle_reasons,xid_count").page("node-1"))}
    assert more - usual == {
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",
        "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
        "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
        "DCGM_EXP_XID_ERRORS_COUNT",
    }
    old = {row.name for row in rows_of(new_fleet(dialect="3.3", optional_fields="throttle_reasons").page("node-1"))}
    assert old - usual == {"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"}


def test_a_page_changes_its_labels_with_its_jobs(new_fleet, clock, rows_of):
    fleet = new_fleet()
    for _ in range(30):
        clock.advance(300)
        node = fleet.node("node-1")
        running = {(str(gpu.index), job.workload.pod) for gpu in node.gpus for job in gpu.jobs}
        shown = {(row.labels["gpu"], row.labels["pod"]) for row in rows_of(fleet.page("node-1")) if "pod" in row.labels}
        assert shown == running


def test_families_agree_with_the_field_table(new_fleet, rows_of):
    known = [family for family in FAMILIES if family.name in FIELD_BY_DCGM_NAME]
    assert len(known) >= 26
    for family in known:
        field = FIELD_BY_DCGM_NAME[family.name]
        assert (family.type == "counter") is (field.behaviour is Behaviour.COUNTER), family.name
    for row in rows_of(new_fleet(optional_fields="ecc,throttle_reasons").page("node-1")):
        if row.name in FIELD_BY_DCGM_NAME:
            field = FIELD_BY_DCGM_NAME[row.name]
            assert field.low <= float(row.value) * field.multiply_by <= field.high
            assert float(row.value) not in SENTINELS


def test_the_page_shows_what_the_gpu_has_in_the_exporters_units(new_fleet, clock, rows_of):
    fleet = new_fleet()
    clock.advance(100)

    def shown():
        return {row.name: float(row.value) for row in rows_of(fleet.page("node-1")) if row.labels["gpu"] == "0"}

    before = shown()
    gpu = fleet.nodes["node-1"].gpus[0]
    assert before["DCGM_FI_DEV_GPU_TEMP"] == round(gpu.temperature(fleet.now()))
    assert before["DCGM_FI_DEV_POWER_USAGE"] == pytest.approx(gpu.power_watts, abs=1e-6)
    assert before["DCGM_FI_PROF_GR_ENGINE_ACTIVE"] == pytest.approx(gpu.load, abs=1e-6)
    assert before["DCGM_FI_DEV_GPU_UTIL"] == round(100 * gpu.load)
    # Between two ticks the draw is constant, and energy is counted in millijoules.
    clock.advance(4)
    rise = shown()["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] - before["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    assert rise == pytest.approx(gpu.power_watts * 4 * 1000, rel=1e-4)
