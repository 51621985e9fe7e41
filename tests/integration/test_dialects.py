"""Every dialect and option of the exporter, by its name, from the emulated page to the decoded records.

Two oracles: what the emulated GPUs are, and what prometheus_client reads on the same page.
"""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from emulator.attribution import tenants
from emulator.families import USED_BY_PODS
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME
from gpu_telemetry.records import Workload

OPTIONAL = {"optional_fields": "ecc,throttle_reasons,xid_count"}
# By the names under which people speak of them.
CASES = {
    "before 3.3: exporter 1.x": {"dialect": "1.7"},
    "before 3.3: exporter 1.x without Kubernetes": {"dialect": "1.7", "attribution": "none"},
    "before 3.3: exporter 2.x": {"dialect": "2.4"},
    "3.3": {"dialect": "3.3"},
    "3.4: err_code and err_msg on XID rows": {"dialect": "3.4"},
    "3.5: pci_bus_id": {"dialect": "3.5"},
    "4.4: pod_uid": {"dialect": "4.4"},
    "4.5": {"dialect": "4.5"},
    "after 4.5: lower-case hostname": {"dialect": "4.6"},
    "MIG": {"mig_nodes": 1},
    "MIG on 2.x": {"mig_nodes": 1, "dialect": "2.4"},
    "MIG, time-sliced": {"mig_nodes": 1, "attribution": "time_slicing"},
    "NVLink rows with gpu_uuid": {"nvlink_rows": 6},
    "NVLink rows without gpu_uuid, by NVSwitch": {"nvlink_rows": 6, "dialect": "3.5"},
    "NVLink rows on a split GPU": {"nvlink_rows": 2, "mig_nodes": 1},
    "NVSwitch rows": {"entities": "nvswitch"},
    "CPU and CPU core rows": {"entities": "cpu,cpu_core", "dialect": "4.6"},
    "Kubernetes": {"attribution": "pods"},
    "Kubernetes, old spelling": {"old_spelling": True, "dialect": "3.5"},
    "time-slicing": {"attribution": "time_slicing"},
    "time-slicing before 4.5": {"attribution": "time_slicing", "dialect": "4.4"},
    "vGPU": {"attribution": "vgpu"},
    "vGPU before 4.5": {"attribution": "vgpu", "dialect": "3.5"},
    "HPC jobs": {"attribution": "hpc_jobs"},
    "no workloads": {"attribution": "none", "dialect": "3.3"},
    "no hostname (-n)": {"hostname": "none"},
    "hostname localhost": {"hostname": "localhost", "dialect": "4.6"},
    "fields that are off by default": OPTIONAL,
    "fields that are off by default, HPC jobs": {"attribution": "hpc_jobs", **OPTIONAL},
    "all entities at once": {"entities": "nvswitch,cpu,cpu_core", "nvlink_rows": 18, "attribution": "vgpu", **OPTIONAL},
}
by_name = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())


def lines_of(body: bytes):
    return [line for line in body.decode().splitlines() if not line.startswith("#")]


def slots(reader):
    """Every GPU or instance that the page should have rows of, by the record's identity."""
    exporter = reader.node.exporter
    hides_idle = exporter.attribution.shared and not exporter.dialect.use_by_pod
    return {
        (gpu.uuid, str(slot.instance_id) if slot.profile else None): (gpu, slot)
        for gpu in reader.node.gpus
        for slot in gpu.slots
        if slot.job is not None or not hides_idle
    }


@by_name
def test_the_records_are_the_gpus_and_instances_of_the_page_and_no_others(read_node, options):
    reader = read_node(**options)
    for read in reader.scrapes():
        expected = slots(reader)
        assert expected
        assert read.records.keys() == expected.keys()
        # A GPU that has rows of its links alone is there as well.
        assert read.closing.gpu_uuids == [gpu.uuid for gpu in reader.node.gpus if gpu.uuid.encode() in read.body]
        assert not read.page.refused
        assert read.page.samples == len(lines_of(read.body))


@by_name
def test_each_record_says_which_gpu_it_is_about_as_far_as_the_page_does(read_node, options):
    reader = read_node(**options)
    exporter = reader.node.exporter
    dialect = exporter.dialect
    for read in reader.scrapes():
        for key, (gpu, slot) in slots(reader).items():
            record = read.records[key]
            assert record.gpu_index == gpu.index
            assert record.mig_profile == (slot.profile or None)
            assert record.model == (None if dialect.bare else gpu.model.name)
            # Rows of NVLinks make no record, and describe none.
            assert record.pci_bus_id == (gpu.pci_bus_id if dialect.pci_bus_id else None)
            assert record.driver_version == dialect.driver_version
            assert record.hostname == (None if dialect.bare else exporter.hostname)
        assert read.closing.hostname == (None if dialect.bare else exporter.hostname)


@by_name
def test_each_record_names_the_workloads_of_its_gpu_once(read_node, options):
    reader = read_node(**options)
    exporter = reader.node.exporter
    seen = 0
    for read in reader.scrapes():
        for key, (_, slot) in slots(reader).items():
            expected = []
            for tenant in tenants(slot, exporter.attribution):
                pod = tenant.workload
                if pod is not None:
                    expected.append(Workload(pod.namespace, pod.pod, pod.container))
                if tenant.hpc_job is not None:
                    expected.append(Workload(job=tenant.hpc_job))
            found = read.records[key].workloads
            # Which of a GPU's rows comes first is not told.
            assert sorted(found, key=str) == sorted(expected, key=str)
            seen += len(found)
    assert (seen > 0) is (exporter.attribution != "none")


@by_name
def test_temperature_power_energy_and_memory_are_the_gpus_own(read_node, options):
    reader = read_node(**options)
    dialect = reader.node.exporter.dialect
    for read in reader.scrapes():
        now = reader.fleet.now()
        for key, (gpu, slot) in slots(reader).items():
            record = read.records[key]
            assert record.temperature_celsius == round(gpu.temperature(now))
            assert record.power_watts == pytest.approx(gpu.power_watts, abs=0.5 * 10**-dialect.decimals)
            assert record.energy_joules == gpu.energy_millijoules(now) / 1000
            usable = slot.memory_mib - slot.reserved_mib
            assert record.memory_used_mib + record.memory_free_mib == usable
            assert record.memory_used_percent == 100 * record.memory_used_mib / usable
            knows_reserved = dialect.name_of("DCGM_FI_DEV_FB_RESERVED") is not None
            assert record.memory_total_mib == (slot.memory_mib if knows_reserved else usable)


@by_name
def test_every_value_is_the_one_that_prometheus_client_reads_and_none_is_rejected(read_node, options):
    reader = read_node(**options)
    exporter = reader.node.exporter
    tells_by_pod = exporter.attribution.shared and exporter.dialect.use_by_pod
    names = {new: old for old, new in (exporter.dialect.names or {}).items()}
    for read in reader.scrapes():
        assert not read.scrape.rejected
        expected: dict = {}
        rows_of_links = 0
        not_recorded = dict.fromkeys(("nvlink", "nvswitch", "cpu", "cpu_core"), 0)
        text = read.body.decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                name = sample.name if sample.name in text else sample.name.removesuffix("_total")
                name = names.get(name, name)
                uuid = labels.get("UUID") or labels.get("uuid")
                if uuid is None:
                    links_a_record = (labels.get("gpu_uuid"), None) in read.records
                    rows_of_links += links_a_record
                    if not links_a_record:
                        kinds = ("nvlink", "nvswitch", "cpucore", "cpu")
                        kind = next(kind for kind in kinds if kind in labels)
                        not_recorded[{"cpucore": "cpu_core"}.get(kind, kind)] += 1
                    continue
                own = {label: labels[label] for label in ("window_size_in_ms", "xid") if label in labels}
                key = uuid, labels.get("GPU_I_ID"), name, tuple(own.items())
                # Rows of several workloads say the same of the GPU, but for those that tell what each uses itself.
                first = expected.setdefault(key, sample.value)
                assert sample.value == first or (tells_by_pod and name in USED_BY_PODS and "pod" in labels)
        assert read.scrape.not_recorded == {entity: count for entity, count in not_recorded.items() if count}
        assert found_in(read.records) == expected
        links = [
            row
            for record in read.records.values()
            for row in record.fields.get("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", [])
            if "nvlink" in row.labels
        ]
        assert len(links) == rows_of_links


def found_in(records):
    """Every value of these records by whose it is, its DCGM name and labels of its own; links and sums aside."""
    found = {}
    for (uuid, instance), record in records.items():
        for name, field in FIELD_BY_DCGM_NAME.items():
            value = getattr(record, field.name)
            if value is not None and field.dcgm[0] == name and field.name != "memory_total_mib":
                shown = _shown_as(record, name)
                in_dcgms_unit = value if field.multiply_by == 1 else round(value / field.multiply_by)
                found[uuid, instance, shown, ()] = in_dcgms_unit
        for name, value in record.fields.items():
            if isinstance(value, list):
                for row in value:
                    if "nvlink" not in row.labels:
                        found[uuid, instance, name, tuple(row.labels.items())] = row.value
            else:
                found[uuid, instance, name, ()] = value
    return found


def _shown_as(record, name):
    # Renamed with 4.x; all releases before have the driver of theirs.
    if name == "DCGM_FI_DEV_CLOCKS_EVENT_REASONS" and not (record.driver_version or "").startswith("580"):
        return "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"
    return name


@by_name
def test_a_page_without_news_costs_no_slow_parsing(read_node, options):
    reader = read_node(**options)
    reader.scrape()
    parsed, laid_out = reader.exposition.label_texts_parsed, reader.exposition.blocks_laid_out
    reader.clock.advance(1)
    reader.scrape()
    assert (reader.exposition.label_texts_parsed, reader.exposition.blocks_laid_out) == (parsed, laid_out)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nvlink_rows": 6}, {}),
        ({"nvlink_rows": 6, "dialect": "3.5"}, {"nvlink": 24}),
        # The rows of a link name a GPU, but a split GPU has records of its instances alone.
        ({"nvlink_rows": 2, "mig_nodes": 1}, {"nvlink": 8}),
        ({"entities": "nvswitch"}, {"nvswitch": 8}),
        ({"entities": "cpu,cpu_core"}, {"cpu": 4, "cpu_core": 8}),
    ],
)
def test_what_no_gpu_record_holds_is_counted_by_entity(read_node, options, expected):
    assert read_node(**options).scrape().scrape.not_recorded == expected


def test_a_shared_gpu_draws_its_power_once_however_many_pods_share_it(read_node):
    reader = read_node(attribution="time_slicing")
    read = reader.scrape()
    rows = [line for line in lines_of(read.body) if line.startswith("DCGM_FI_DEV_POWER_USAGE{")]
    watts = sum(gpu.power_watts for gpu, _ in slots(reader).values())
    assert sum(float(row.rpartition(" ")[2]) for row in rows) > 1.5 * watts
    assert sum(record.power_watts for record in read.records.values()) == pytest.approx(watts)


def test_before_4_5_a_shared_gpu_without_a_pod_has_no_rows_so_the_closing_record_does_not_name_it(read_node):
    reader = read_node(attribution="vgpu", dialect="4.4")
    read = reader.scrape()
    idle = {gpu.uuid for gpu in reader.node.gpus if not gpu.jobs}
    assert idle
    assert idle.isdisjoint(read.closing.gpu_uuids)


@pytest.mark.parametrize("mig_nodes", [0, 1])
def test_what_a_pod_uses_itself_is_never_taken_for_what_the_gpu_uses(read_node, mig_nodes):
    reader = read_node(attribution="time_slicing", mig_nodes=mig_nodes)
    for read in reader.scrapes():
        for key, (gpu, slot) in slots(reader).items():
            record = read.records[key]
            assert record.memory_used_mib + record.memory_free_mib == slot.memory_mib - slot.reserved_mib
            assert record.gpu_utilization_percent == (None if mig_nodes else round(100 * gpu.load))


def test_a_vgpu_shows_its_licence_among_the_other_fields(read_node):
    records = read_node(attribution="vgpu").scrape().records.values()
    assert {record.fields["DCGM_FI_DEV_VGPU_LICENSE_STATUS"] for record in records} == {1}


def test_values_between_two_collections_count_as_unchanged(read_node):
    reader = read_node(collection_seconds=30)
    reader.clock.advance(60)
    first = reader.scrape()
    reader.clock.advance(10)
    second = reader.scrape()
    reader.clock.advance(20)
    third = reader.scrape()
    assert first.closing.changed_at == second.closing.changed_at == first.closing.collected_at
    assert third.closing.changed_at == third.closing.collected_at
