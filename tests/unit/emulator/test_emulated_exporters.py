"""The flags and the age of an exporter, by their names: what each does to the labels and rows of the page."""

import httpx
import pytest

from emulator.faults import FaultKind

TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP"


@pytest.fixture
def rows(new_fleet, rows_of):
    """`rows(**settings)`: the rows of node-1's page."""

    def read(**settings):
        return rows_of(new_fleet(**settings).page("node-1"))

    return read


def temperatures(rows, gpu=None):
    return [row for row in rows if row.name == TEMPERATURE and gpu in {None, row.labels["gpu"]}]


def busy_gpus(fleet):
    return {str(gpu.index) for gpu in fleet.node("node-1").gpus if gpu.jobs}


def test_exporter_1_7_has_lower_case_names_and_says_index_and_uuid_alone(rows):
    found = rows(dialect="1.7", attribution="none")
    assert {tuple(row.labels) for row in found} == {("gpu", "uuid")}
    assert {row.name for row in found} == {
        "dcgm_sm_clock",
        "dcgm_memory_clock",
        "dcgm_memory_temp",
        "dcgm_gpu_temp",
        "dcgm_power_usage",
        "dcgm_total_energy_consumption",
        "dcgm_pcie_replay_counter",
        "dcgm_gpu_utilization",
        "dcgm_mem_copy_utilization",
        "dcgm_enc_utilization",
        "dcgm_dec_utilization",
        "dcgm_xid_errors",
        "dcgm_fb_free",
        "dcgm_fb_used",
    }
    watts = next(row.value for row in found if row.name == "dcgm_power_usage")
    assert len(watts.partition(".")[2]) == 3


def test_exporter_1_7_spells_the_labels_of_pods_its_own_way(rows):
    labels = {tuple(row.labels) for row in rows(dialect="1.7")}
    assert labels == {("gpu", "uuid"), ("gpu", "uuid", "container_name", "pod_name", "pod_namespace")}


def test_exporter_2_4_knows_neither_bus_ids_nor_meanings_of_xids_nor_reserved_memory(rows):
    found = rows(dialect="2.4", attribution="none")
    assert {tuple(row.labels) for row in found} == {("gpu", "UUID", "device", "modelName", "Hostname")}
    assert "DCGM_FI_DEV_FB_RESERVED" not in {row.name for row in found}
    assert len({row.name for row in found}) == 24


def test_no_release_before_3_3_has_rows_of_other_entities_or_links(rows):
    for dialect in ("1.7", "2.4"):
        found = rows(dialect=dialect, entities="nvswitch,cpu,cpu_core", nvlink_rows=4)
        assert found
        assert all("gpu" in row.labels and "nvlink" not in row.labels for row in found)


def test_no_release_before_3_3_counts_xids(rows):
    for dialect, counts in (("1.7", False), ("2.4", False), ("3.3", True)):
        names = {row.name for row in rows(dialect=dialect, optional_fields="xid_count")}
        assert ("DCGM_EXP_XID_ERRORS_COUNT" in names) is counts


@pytest.mark.parametrize(("dialect", "label"), [("3.3", "Hostname"), ("4.5", "Hostname"), ("4.6", "hostname")])
@pytest.mark.parametrize(("hostname", "said"), [("node", "node-1"), ("localhost", "localhost"), ("none", None)])
def test_the_hostname_is_the_nodes_or_localhost_or_not_there(rows, dialect, label, hostname, said):
    found = rows(dialect=dialect, hostname=hostname, nvlink_rows=1, entities="nvswitch,cpu,cpu_core")
    gpu_rows = [row for row in found if "nvlink" not in row.labels]
    assert {row.labels.get(label) for row in gpu_rows} == {said}
    of_links = "Hostname" if dialect == "3.3" else "hostname"
    assert {row.labels.get(of_links) for row in found if "nvlink" in row.labels} == {said}
    if said is None:
        assert not any("ostname" in name for row in found for name in row.labels)


def test_the_old_spelling_is_in_place_of_todays(rows):
    found = temperatures(rows(dialect="4.4", old_spelling=True))
    labels = {name for row in found for name in row.labels}
    assert {"uuid", "container_name", "pod_name", "pod_namespace", "pod_uid"} <= labels
    assert labels.isdisjoint({"UUID", "container", "pod", "namespace"})


def test_without_attribution_no_row_names_anybody_even_where_empty_labels_are_usual(rows):
    for dialect in ("3.3", "4.5"):
        for row in rows(dialect=dialect, attribution="none"):
            assert row.labels.keys().isdisjoint({"container", "namespace", "pod", "pod_uid", "hpc_job", "vgpu"})


def test_time_slicing_before_4_5_has_a_row_for_each_pod_with_the_same_value_and_none_for_an_idle_gpu(
    new_fleet, rows_of
):
    fleet = new_fleet(attribution="time_slicing", dialect="4.4")
    found = rows_of(fleet.page("node-1"))
    assert {row.labels["gpu"] for row in found} == busy_gpus(fleet) < {str(gpu) for gpu in range(8)}
    for gpu in busy_gpus(fleet):
        of_gpu = temperatures(found, gpu)
        assert len(of_gpu) in {2, 3}
        assert (
            len({row.labels["pod"] for row in of_gpu}) == len({row.labels["pod_uid"] for row in of_gpu}) == len(of_gpu)
        )
        assert len({row.labels["namespace"] for row in of_gpu}) == len({row.value for row in of_gpu}) == 1
        assert "vgpu" not in of_gpu[0].labels


def test_time_slicing_since_4_5_keeps_an_idle_gpu_and_tells_use_for_the_gpu_and_then_for_each_pod(new_fleet, rows_of):
    fleet = new_fleet(attribution="time_slicing", dialect="4.5", mig_nodes=0)
    found = rows_of(fleet.page("node-1"))
    for gpu in range(8):
        used = [row for row in found if row.name == "DCGM_FI_DEV_FB_USED" and row.labels["gpu"] == str(gpu)]
        whole, *by_pod = used
        assert "pod" not in whole.labels
        if str(gpu) not in busy_gpus(fleet):
            assert by_pod == []
            assert len(temperatures(found, str(gpu))) == 1
            continue
        assert [row.labels["pod"] for row in by_pod] == [row.labels["pod"] for row in temperatures(found, str(gpu))]
        assert len({row.value for row in by_pod}) == len(by_pod)
        assert sum(int(row.value) for row in by_pod) == pytest.approx(int(whole.value), abs=len(by_pod))


def test_vgpu_numbers_the_rows_of_each_gpu_and_shows_the_licence(rows):
    found = rows(attribution="vgpu", dialect="4.4")
    for gpu in {row.labels["gpu"] for row in found}:
        of_gpu = temperatures(found, gpu)
        assert [row.labels["vgpu"] for row in of_gpu] == [str(number) for number in range(len(of_gpu))]
        assert list(of_gpu[0].labels)[-1] == "vgpu"
    assert {row.value for row in found if row.name == "DCGM_FI_DEV_VGPU_LICENSE_STATUS"} == {"1"}
    assert {row.value for row in rows() if row.name == "DCGM_FI_DEV_VGPU_LICENSE_STATUS"} == {"0"}


def test_hpc_jobs_have_a_row_each_with_the_same_value_and_an_idle_gpu_a_row_without(new_fleet, rows_of):
    fleet = new_fleet(attribution="hpc_jobs")
    found = rows_of(fleet.page("node-1"))
    counts = set()
    for gpu in range(8):
        of_gpu = temperatures(found, str(gpu))
        jobs = [row.labels.get("hpc_job") for row in of_gpu]
        if str(gpu) in busy_gpus(fleet):
            assert len(set(jobs)) == len(jobs)
            assert all(job.isdecimal() for job in jobs)
            counts.add(len(jobs))
        else:
            assert jobs == [None]
        assert len({row.value for row in of_gpu}) == 1
        assert "pod" not in of_gpu[0].labels
    assert counts == {1, 2}


def test_rows_name_the_same_sharers_at_every_scrape(new_fleet, clock, rows_of):
    for attribution in ("time_slicing", "vgpu", "hpc_jobs"):
        fleet = new_fleet(attribution=attribution)
        first = {tuple(row.labels.items()) for row in rows_of(fleet.page("node-1"))}
        clock.advance(1)
        assert {tuple(row.labels.items()) for row in rows_of(fleet.page("node-1"))} == first


def test_other_entities_have_rows_of_their_own_identity(rows):
    usual = rows()
    found = [row for row in rows(entities="nvswitch,cpu,cpu_core", dialect="4.6") if "gpu" not in row.labels]
    assert {tuple(row.labels)[:-2] for row in found} == {("nvswitch",), ("cpu",), ("cpucore", "cpu")}
    assert {tuple(row.labels)[-2:] for row in found} == {("hostname", "DCGM_FI_DRIVER_VERSION")}
    assert len(found) == 2 * 4 + 2 * 2 + 8
    assert not [row for row in usual if "gpu" not in row.labels]


def test_scrapes_between_two_collections_find_the_same_values(new_fleet, clock):
    fleet = new_fleet(collection_seconds=30)

    def page():
        return sorted(fleet.page("node-1").decode().splitlines())

    clock.advance(100)
    first = page()
    clock.advance(19)
    assert page() == first
    clock.advance(1)
    later = page()
    assert later != first
    fleet.set_fault(FaultKind.FROZEN, "node-1", None, {})
    clock.advance(3600)
    frozen = page()
    clock.advance(3600)
    assert page() == frozen
    fleet.clear_fault(FaultKind.FROZEN, "node-1", None)
    clock.advance(30)
    assert page() != frozen


def test_label_churn_names_another_pod_at_each_scrape_and_none_at_every_third(new_fleet, rows_of):
    fleet = new_fleet()
    fleet.set_fault(FaultKind.LABEL_CHURN, "node-1", 3, {})
    others, pods = [], []
    for _ in range(6):
        found = temperatures(rows_of(fleet.page("node-1")))
        others.append({tuple(row.labels.items()) for row in found if row.labels["gpu"] != "3"})
        pods += [row.labels.get("pod") for row in found if row.labels["gpu"] == "3"]
    assert pods == ["burst-1", "burst-2", None, "burst-4", "burst-5", None]
    assert all(seen == others[0] for seen in others)


def test_a_slow_page_comes_whole_in_its_time(serve):
    client = serve()
    whole = client.get("/nodes/node-1/metrics")
    fault = {"kind": "slow", "node": "node-1", "seconds": 0.3}
    assert client.post("/control/faults", json=fault).status_code == 201
    slow = client.get("/nodes/node-1/metrics")
    assert slow.elapsed.total_seconds() >= 0.3
    assert sorted(slow.text.splitlines()) == sorted(whole.text.splitlines())
    assert client.get("/nodes/node-2/metrics").status_code == 200


def test_a_page_that_takes_longer_than_the_exporters_time_out_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr("emulator.server._WRITE_TIMEOUT_SECONDS", 0.1)
    client = serve()
    assert client.post("/control/faults", json={"kind": "slow", "node": "node-1", "seconds": 1}).status_code == 201
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/nodes/node-1/metrics")
