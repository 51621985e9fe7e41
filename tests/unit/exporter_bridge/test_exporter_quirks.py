"""Every way in which dcgm-exporter's page is known to lie or break, one test each."""

import gc
import itertools
import random
import weakref
from pathlib import Path

import pytest

from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.clock import from_milliseconds
from gpu_telemetry.records import DropCount, LabelledValue, Rejected, ScrapeRecord, Workload, decode

PAGES = Path(__file__).parents[2] / "data" / "pages"
TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP"
UNCONVERTED = "ERROR - FAILED TO CONVERT TO STRING"


def turn(seq=1):
    return Turn(
        node_id="node-1", bridge_id="b", boot_id="boot", seq=seq, collected_at_ms=1_000 * seq, interval_ms=30_000
    )


def block(name, *rows, kind="gauge"):
    """A block whose rows are (labels, value)."""
    lines = "".join(f"{name}{{{labels}}} {value}\n" for labels, value in rows)
    return f"# HELP {name} Text.\n# TYPE {name} {kind}\n{lines}"


def gpu(index, more=""):
    return f'gpu="{index}",UUID="GPU-{index}",device="nvidia{index}",modelName="NVIDIA H100",Hostname="host-1"{more}'


def read(*pages):
    """The last of a node's pages, and its scrape."""
    parser, builder = Exposition().parser(), RecordBuilder()
    for seq, text in enumerate(pages, start=1):
        page = parser.parse(text.encode())
        scrape = builder.build(page, turn(seq))
    return page, scrape


def records_of(*pages):
    _, scrape = read(*pages)
    return [decode(message) for message in scrape.messages[:-1]]


def corpus(name):
    return (PAGES / name).read_text()


@pytest.mark.parametrize(
    "text",
    [
        *(str(number) for number in range(2147483632, 2147483636)),
        *(str(number) for number in range(9223372036854775792, 9223372036854775796)),
        *(f"{number}.000000" for number in range(140737488355328, 140737488355332)),
        "4294967295",
    ],
)
@pytest.mark.parametrize(
    ("dcgm", "ours"),
    [
        (TEMPERATURE, "temperature_celsius"),
        ("DCGM_FI_DEV_FB_USED", "memory_used_mib"),
        ("DCGM_FI_PROF_PCIE_TX_BYTES", "pcie_tx_bytes_per_second"),
        ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "DCGM_FI_DEV_VGPU_LICENSE_STATUS"),
    ],
)
def test_a_sentinel_is_rejected_by_name_and_never_becomes_a_number(text, dcgm, ours):
    [record] = records_of(block(dcgm, (gpu(0), text)))
    assert record.rejected == {ours: Rejected(text, "sentinel")}
    assert getattr(record, ours, None) is None
    assert record.fields == {}


def test_a_wide_counter_passes_through_the_32_bit_sentinels():
    page = block("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (gpu(0), "4294967295"), kind="counter")
    [record] = records_of(page + block("DCGM_FI_DEV_SOMETHING", (gpu(0), "2147483632"), kind="counter"))
    assert record.pcie_replay_count == 4294967295
    assert record.fields == {"DCGM_FI_DEV_SOMETHING": 2147483632}
    [record] = records_of(block("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (gpu(0), "9223372036854775794"), kind="counter"))
    assert record.rejected["pcie_replay_count"].reason == "sentinel"


@pytest.mark.parametrize("text", ["9007199254740993", "9007199254740994"])
def test_a_counter_beyond_what_every_json_reader_keeps_exact_is_out_of_range(text):
    [record] = records_of(block("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (gpu(0), text), kind="counter"))
    assert record.rejected == {"pcie_replay_count": Rejected(text, "out_of_range")}
    [record] = records_of(block("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (gpu(0), "9007199254740992"), kind="counter"))
    assert record.pcie_replay_count == 2**53


@pytest.mark.parametrize("text", ["808334905", "127622", "2619", "-1", "100.5"])
def test_an_absurd_utilisation_is_out_of_range(text):
    [record] = records_of(block("DCGM_FI_DEV_GPU_UTIL", (gpu(0), text)))
    assert record.rejected == {"gpu_utilization_percent": Rejected(text, "out_of_range")}


def test_the_sentinels_of_an_old_page_cost_those_values_alone():
    first, second = records_of(corpus("dcgm-exporter-3.3.0.prom"))
    assert first.rejected == {
        "memory_temperature_celsius": Rejected("9223372036854775794", "sentinel"),
        "gpu_utilization_percent": Rejected("808334905", "out_of_range"),
        "energy_joules": Rejected("9223372036854775794", "sentinel"),
        "graphics_engine_active_ratio": Rejected("140737488355330.000000", "sentinel"),
    }
    assert set(second.rejected) == {"memory_temperature_celsius", "gpu_utilization_percent"}
    assert (first.temperature_celsius, second.energy_joules) == (61.0, 912345.678)


def test_a_value_printed_as_text_costs_that_line_and_is_named_in_the_record():
    sound = block(TEMPERATURE, (gpu(0), "45"), (gpu(1), "46"))
    page, scrape = read(sound + block("DCGM_FI_DEV_X", (gpu(0), UNCONVERTED)))
    first, second = (decode(message) for message in scrape.messages[:-1])
    assert first.rejected == {"DCGM_FI_DEV_X": Rejected(UNCONVERTED, "unconvertible")}
    assert (first.temperature_celsius, second.temperature_celsius, second.rejected) == (45, 46, {})
    assert page.refused == {"bad_value": 1}
    assert scrape.rejected == {("DCGM_FI_DEV_X", "unconvertible"): 1}
    assert [sample.name for sample in page] == [TEMPERATURE] * 2


@pytest.mark.parametrize("text", ["NaN", "+Inf", "-Inf"])
def test_what_is_not_finite_is_kept_for_prometheus_and_rejected_in_the_record(text):
    page, scrape = read(block(TEMPERATURE, (gpu(0), text)))
    assert [token for block_ in page.blocks for token in block_.tokens] == [text]
    assert decode(scrape.messages[0]).rejected == {"temperature_celsius": Rejected(text, "not_finite")}


def test_a_whole_number_printed_with_decimals_is_a_whole_number():
    [record] = records_of(block("DCGM_FI_DEV_FB_USED", (gpu(0), "5.000000")))
    assert record.memory_used_mib == 5
    [record] = records_of(block("DCGM_FI_DEV_FB_USED", (gpu(0), "5.500000")))
    assert record.rejected == {"memory_used_mib": Rejected("5.500000", "not_integer")}


def test_the_xid_gauge_is_handed_on_as_it_stands_and_its_explanation_makes_no_second_record():
    first, second = records_of(corpus("dcgm-exporter-3.4.2-kubernetes.prom"))
    assert (first.xid_code, second.xid_code) == (43, 0)
    assert first.workloads == [Workload(namespace="ml-training", pod="llama-worker-0", container="trainer")]


def test_counts_of_xids_in_a_window_are_labelled_values():
    first, second = records_of(corpus("dcgm-exporter-4.5.3-kubernetes.prom"))
    assert first.fields["DCGM_EXP_XID_ERRORS_COUNT"] == [
        LabelledValue({"window_size_in_ms": "300000", "xid": "31"}, 2),
        LabelledValue({"window_size_in_ms": "300000", "xid": "43"}, 1),
    ]
    # Without events the exporter prints one row of 0 without the label `xid`.
    assert second.fields["DCGM_EXP_XID_ERRORS_COUNT"] == [LabelledValue({"window_size_in_ms": "300000"}, 0)]
    assert {value.labels["health_watch"] for value in first.fields["DCGM_EXP_GPU_HEALTH_STATUS"]} == {"PCIE", "NVLINK"}
    assert second.fields["DCGM_EXP_P2P_STATUS"] == [LabelledValue({"link_status": "OK", "peer_gpu": "0"}, 0)]


def test_an_unescaped_quote_in_a_label_costs_that_line_alone():
    page, scrape = read(
        block(TEMPERATURE, (gpu(0, ',pod="a"b"'), "45"), (gpu(1, ',pod="ok"'), "46"), (gpu(2, ',hpc_job="x" y"'), "47"))
    )
    assert page.refused == {"bad_labels": 2}
    assert [sample.value for sample in page] == [46]
    assert page.examples[0].startswith('bad_labels: DCGM_FI_DEV_GPU_TEMP{gpu="0"')
    assert decode(scrape.messages[-1]).gpu_uuids == ["GPU-1", "GPU-0", "GPU-2"]


def test_a_refused_line_stays_refused_and_costs_no_new_layout_at_later_scrapes():
    exposition = Exposition()
    parser = exposition.parser()
    for value in range(5):
        page = parser.parse(block(TEMPERATURE, (gpu(0, ',pod="a"b"'), value), (gpu(1), value)).encode())
        assert (page.refused, [sample.value for sample in page]) == ({"bad_labels": 1}, [value])
    assert exposition.blocks_laid_out == 1


def test_a_pod_that_changes_parses_that_gpus_labels_anew_and_nothing_else():
    exposition = Exposition()
    parser = exposition.parser()
    names = [f"DCGM_FI_DEV_FIELD_{number}" for number in range(25)]

    def page(pod):
        return "".join(
            block(name, (gpu(0, f',pod="{pod}"'), 1), *((gpu(index), 2) for index in range(1, 8))) for name in names
        )

    parser.parse(page("a").encode())
    assert (exposition.label_texts_parsed, exposition.blocks_laid_out) == (8, 25)
    parser.parse(page("b").encode())
    assert (exposition.label_texts_parsed, exposition.blocks_laid_out) == (9, 50)
    parser.parse(page("b").encode())
    assert (exposition.label_texts_parsed, exposition.blocks_laid_out) == (9, 50)


@pytest.mark.parametrize("metadata", ["# HELP {0} Some.\n# TYPE {0} gauge\n", "# TYPE {0} gauge\n", ""])
def test_a_page_of_thousands_of_samples_is_read_and_planned_in_small_steps(metadata):
    names = [f"DCGM_FI_DEV_FIELD_{number}" for number in range(25)]
    text = "".join(
        metadata.format(name) + "".join(f"{name}{{{gpu(index)}}} 1\n" for index in range(200)) for name in names
    )
    exposition = Exposition()
    parser, builder = exposition.parser(), RecordBuilder()
    steps = parser.parse_steps(text.encode())
    read_steps = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            page = end.value
            break
        read_steps += 1
    planning_steps = len(list(builder.plan_steps(page, None, None)))
    assert page.samples == 5000
    # Blocks that differ in the name alone are so quick that the whole page of them is read in a few.
    assert read_steps >= (2 if metadata.startswith("# HELP") else 40)
    assert planning_steps >= 40
    assert list(builder.plan_steps(page, None, None)) == []


def test_pods_that_come_and_go_leave_nothing_behind():
    exposition = Exposition()
    parser, builder = exposition.parser(), RecordBuilder()
    seen = weakref.WeakSet()
    for pod in range(50):
        page = parser.parse(block(TEMPERATURE, (gpu(0, f',pod="{pod}"'), 1), (gpu(1), 2)).encode())
        builder.build(page, turn())
        assert parser.cached_layouts <= 2
        seen.add(page.layouts[0].family)
    assert len(seen) == 1
    del page, parser, builder
    gc.collect()
    assert len(seen) == 0


def test_an_empty_body_is_a_page_without_samples():
    page, scrape = read("")
    assert (page.samples, page.refused, scrape.gpu_records) == (0, {}, 0)


def test_a_frozen_page_is_seen_as_unchanged_in_whatever_order_its_blocks_come():
    parser, builder = Exposition().parser(), RecordBuilder()
    blocks = [block(name, (gpu(0), 1), (gpu(1), 2)) for name in (TEMPERATURE, "DCGM_FI_DEV_SM_CLOCK", "DCGM_FI_DEV_X")]
    changed = []
    for seq in range(1, 6):
        random.Random(seq).shuffle(blocks)
        scrape = builder.build(parser.parse("".join(blocks).encode()), turn(seq))
        changed.append(decode(scrape.messages[-1]).changed_at.timestamp())
    assert changed == [1] * 5
    blocks[0] = blocks[0].replace("} 2", "} 3")
    builder.build(parser.parse("".join(blocks).encode()), turn(6))
    assert builder.changed_at_ms == 6_000
    assert decode(builder.failed(turn(7)).messages[0]).changed_at.timestamp() == 6


def test_a_frozen_page_whose_pods_change_is_still_frozen():
    parser, builder = Exposition().parser(), RecordBuilder()
    for seq, pod in enumerate(("a", "b", "c"), start=1):
        builder.build(parser.parse(block(TEMPERATURE, (gpu(0, f',pod="{pod}"'), 40)).encode()), turn(seq))
    assert builder.changed_at_ms == 1_000
    builder.build(parser.parse(block(TEMPERATURE, (gpu(0), 40), (gpu(1), 40)).encode()), turn(4))
    assert builder.changed_at_ms == 4_000


def test_of_duplicate_rows_the_first_counts():
    page, scrape = read(corpus("dcgm-exporter-3.3.5-duplicate-rows.prom"))
    assert page.refused == {"duplicate": 2}
    assert [decode(message).gpu_utilization_percent for message in scrape.messages[:-1]] == [97, 96]
    page, _ = read(block(TEMPERATURE, (gpu(0), 1), (gpu(0), 2)))
    assert ([sample.value for sample in page], page.refused) == ([1], {"duplicate": 1})


def test_of_a_series_in_two_blocks_the_first_on_the_page_counts():
    first, second = block(TEMPERATURE, (gpu(0), 1), (gpu(1), 2)), block(TEMPERATURE, (gpu(1), 3), (gpu(2), 4))
    parser = Exposition().parser()
    for _ in range(2):
        page = parser.parse((first + second).encode())
        assert ([sample.value for sample in page], page.refused) == ([1, 2, 4], {"duplicate": 1})
        page = parser.parse((second + first).encode())
        assert ([sample.value for sample in page], page.refused) == ([1, 3, 4], {"duplicate": 1})


def test_a_memory_total_that_is_computed_and_too_large_is_counted_as_rejected():
    page = "".join(block(f"DCGM_FI_DEV_FB_{name}", (gpu(0), 10_000_000)) for name in ("USED", "FREE"))
    _, scrape = read(page)
    assert decode(scrape.messages[0]).rejected == {"memory_total_mib": Rejected("20000000", "out_of_range")}
    assert scrape.rejected == {("memory_total_mib", "out_of_range"): 1}


def test_a_counter_that_falls_is_handed_on_as_it_stands():
    pages = [block("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (gpu(0), value), kind="counter") for value in (9, 0)]
    assert [records_of(page)[0].pcie_replay_count for page in pages] == [9, 0]


def test_one_bad_line_costs_that_line_and_names_stay_as_they_came():
    good = block("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (gpu(0), 1234), kind="counter")
    page, scrape = read(good + "%%% garbage\n" + block(TEMPERATURE, (gpu(0), 45)))
    assert [sample.name for sample in page] == [TEMPERATURE, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"]
    assert page.refused == {"bad_name": 1}
    assert decode(scrape.messages[0]).energy_joules == 1.234


def test_bytes_that_are_no_utf8_cost_their_line():
    page = (
        Exposition()
        .parser()
        .parse(block(TEMPERATURE, (gpu(0, ',pod="\udcff"'), 1), (gpu(1), 2)).encode(errors="surrogateescape"))
    )
    assert ([sample.value for sample in page], page.refused) == ([2], {"not_utf8": 1})


def test_a_family_that_comes_once_for_each_entity_gives_the_gpu_its_value_and_its_links():
    page, scrape = read(corpus("dcgm-exporter-4.5.2-nvlink.prom"))
    first, second = (decode(message) for message in scrape.messages[:-1])
    assert page.refused == {}
    assert (first.nvlink_bandwidth_total, second.nvlink_bandwidth_total) == (912345678901, 912345678902)
    links = second.fields["DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"]
    assert links == [LabelledValue({"nvlink": str(link)}, 1000 * link + 1) for link in range(3)]
    assert first.hostname == "dgx-h100-03"
    assert scrape.not_recorded == {"nvlink": 1, "nvswitch": 1, "cpu": 1, "cpu_core": 1}


def test_a_link_belongs_to_the_gpu_whose_uuid_it_names_and_to_none_that_has_no_record():
    links = block(
        "DCGM_FI_DEV_NVLINK_X", ('nvlink="2",gpu_uuid="GPU-0"', 5), ('nvlink="3",gpu="9",gpu_uuid="GPU-9"', 6)
    )
    _, scrape = read(links + block(TEMPERATURE, (gpu(0), 40)))
    record, closing = (decode(message) for message in scrape.messages)
    assert record.fields == {"DCGM_FI_DEV_NVLINK_X": [LabelledValue({"nvlink": "2"}, 5)]}
    assert scrape.not_recorded == {"nvlink": 1}
    assert closing.gpu_uuids == ["GPU-0", "GPU-9"]


def test_either_spelling_of_hostname_is_the_hosts_name_and_the_targets_own_wins():
    for spelling in ("Hostname", "hostname"):
        page = (
            Exposition().parser().parse(block(TEMPERATURE, (f'gpu="0",UUID="GPU-0",{spelling}="host-9"', 1)).encode())
        )
        scrape = RecordBuilder().build(page, turn())
        assert [decode(message).hostname for message in scrape.messages] == ["host-9", "host-9"]
        named = Turn(node_id="n", bridge_id="b", boot_id="c", seq=1, collected_at_ms=1, interval_ms=1, hostname="own")
        scrape = RecordBuilder().build(page, named)
        assert [decode(message).hostname for message in scrape.messages] == ["own", "own"]


def test_a_gpu_without_a_pod_has_no_workload_whether_labels_are_absent_or_empty():
    _, second = records_of(corpus("dcgm-exporter-3.4.2-kubernetes.prom"))
    assert second.workloads == []
    _, second = records_of(corpus("dcgm-exporter-4.5.3-kubernetes.prom"))
    assert second.workloads == []


def test_the_old_spellings_of_pod_labels_are_read():
    [record] = records_of(block(TEMPERATURE, (gpu(0, ',container_name="c",pod_name="p",pod_namespace="n"'), 1)))
    assert record.workloads == [Workload(namespace="n", pod="p", container="c")]


def test_a_shared_gpu_is_one_record_with_several_workloads():
    [record] = records_of(corpus("dcgm-exporter-3.5.0-time-slicing.prom"))
    assert [workload.pod for workload in record.workloads] == [
        "infer-7c9d4-x2x8k",
        "infer-7c9d4-q9l2m",
        "infer-5b6f1-z0aaa",
    ]
    assert record.gpu_utilization_percent == 97
    assert record.fields == {}


POD_A, POD_B = ',namespace="n",pod="a"', ',namespace="n",pod="b"'


@pytest.mark.parametrize(
    "order", [*itertools.permutations(((gpu(0), 300), (gpu(0, POD_A), 100), (gpu(0, POD_B), 200)))]
)
def test_what_a_pod_uses_itself_is_not_what_the_gpu_uses_in_whatever_order_the_rows_come(order):
    [record] = records_of(block("DCGM_FI_DEV_FB_USED", *order) + block("DCGM_FI_DEV_FB_FREE", (gpu(0), 700)))
    assert (record.memory_used_mib, record.memory_used_percent, record.rejected) == (300, 30, {})
    assert {workload.pod for workload in record.workloads} == {"a", "b"}


def test_where_the_gpus_own_row_is_no_number_no_pods_share_takes_its_place():
    rows = (gpu(0), UNCONVERTED), (gpu(0, POD_A), 100), (gpu(0, POD_B), 200)
    sound = block("DCGM_FI_DEV_FB_USED", *((labels, 300) for labels, _ in rows))
    free = block("DCGM_FI_DEV_FB_FREE", (gpu(0), 700))
    for used in (rows, rows[:2]):
        [record] = records_of(block("DCGM_FI_DEV_FB_USED", *used) + free)
        assert (record.memory_used_mib, record.memory_free_mib, record.memory_total_mib) == (None, 700, None)
        assert record.rejected == {"memory_used_mib": Rejected(UNCONVERTED, "unconvertible")}
    # Each page of a node is judged by its own rows.
    [record] = records_of(block("DCGM_FI_DEV_FB_USED", *rows) + free, sound + free)
    assert (record.memory_used_mib, record.rejected) == (300, {})
    [record] = records_of(sound + free, free + block("DCGM_FI_DEV_FB_USED", *rows))
    assert (record.memory_used_mib, len(record.rejected)) == (None, 1)


def test_a_pods_row_that_is_no_number_does_not_accuse_the_value_that_another_row_tells():
    for sound in (gpu(0), gpu(0, POD_A)):
        [record] = records_of(block("DCGM_FI_DEV_FB_USED", (sound, 300), (gpu(0, POD_B), UNCONVERTED)))
        assert record.memory_used_mib == 300
        assert record.rejected == {"DCGM_FI_DEV_FB_USED": Rejected(UNCONVERTED, "unconvertible")}
    [record] = records_of(
        block("DCGM_FI_DEV_FB_USED", (gpu(0, POD_B), UNCONVERTED)) + block("DCGM_FI_DEV_FB_FREE", (gpu(0), 700))
    )
    assert record.rejected == {"memory_used_mib": Rejected(UNCONVERTED, "unconvertible")}


@pytest.mark.parametrize(("text", "reason"), [("9223372036854775794", "sentinel"), (UNCONVERTED, "unconvertible")])
def test_a_links_row_that_is_not_believed_does_not_accuse_the_gpus_own_value(text, reason):
    name = "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"
    links = block(name, ('nvlink="1",gpu="0",gpu_uuid="GPU-0"', 5), ('nvlink="2",gpu="0",gpu_uuid="GPU-0"', text))
    _, scrape = read(block(name, (gpu(0), 77), kind="counter") + links)
    record = decode(scrape.messages[0])
    assert record.nvlink_bandwidth_total == 77
    assert record.fields == {name: [LabelledValue({"nvlink": "1"}, 5)]}
    assert record.rejected == {name: Rejected(text, reason)}
    assert scrape.rejected == {(name, reason): 1}


def test_rows_for_each_hpc_job_are_one_value_and_never_summed():
    first, second = records_of(corpus("dcgm-exporter-4.2.3-hpc-jobs.prom"))
    assert first.workloads == [Workload(job="4711"), Workload(job="4712")]
    assert (first.gpu_utilization_percent, first.power_watts, second.workloads) == (97, 312.457, [])


def test_a_split_gpu_has_a_record_for_each_instance_with_the_whole_gpus_values_on_each():
    records = records_of(corpus("dcgm-exporter-4.1.1-mig.prom"))
    assert [(record.gpu_index, record.mig_instance, record.mig_profile) for record in records] == [
        (0, "1", "3g.40gb"),
        (0, "2", "3g.40gb"),
        (0, "7", "1g.10gb"),
        (1, None, None),
    ]
    assert [record.temperature_celsius for record in records] == [61, 61, 61, 62]
    assert len({record.memory_used_mib for record in records}) == 4
    assert [len(record.workloads) for record in records] == [1, 0, 1, 0]


def test_the_names_of_exporter_1x_are_read_where_they_mean_the_same():
    [record] = records_of(corpus("dcgm-exporter-1.7.2.prom"))
    assert (record.temperature_celsius, record.power_watts, record.energy_joules) == (38, 42.137, 154232.342)
    assert (record.memory_used_mib, record.memory_free_mib, record.xid_code) == (10, 16150, 0)
    assert record.fields == {"dcgm_pcie_tx_throughput": 1200}


def test_labels_that_nobody_told_us_of_tell_rows_of_one_workload_apart():
    [record] = records_of(block("DCGM_EXP_NEW", (gpu(0, ',lane="0"'), 1), (gpu(0, ',lane="1"'), 2)))
    assert record.fields == {"DCGM_EXP_NEW": [LabelledValue({"lane": "0"}, 1), LabelledValue({"lane": "1"}, 2)]}
    [record] = records_of(block(TEMPERATURE, (gpu(0, ',app="a",pod="a"'), 7), (gpu(0, ',app="b",pod="b"'), 7)))
    assert (record.temperature_celsius, record.fields, len(record.workloads)) == (7, {}, 2)


def test_of_two_names_of_one_field_the_current_one_counts_and_the_other_stays():
    pages = [
        block("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", (gpu(0), 1)),
        block("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", (gpu(0), 4)),
    ]
    [record] = records_of("".join(pages))
    assert (record.clock_throttle_reasons, record.fields) == (4, {"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": 1})
    [record] = records_of(pages[0])
    assert (record.clock_throttle_reasons, record.fields) == (1, {})


def test_rows_without_a_uuid_or_of_no_dcgm_field_are_counted_and_make_no_record():
    page = block(TEMPERATURE, ('gpu="0"', 1), ('UUID="GPU-1"', 1), ('gpu="x",UUID="GPU-1"', 1)) + block(
        "up", (gpu(0), 1)
    )
    _, scrape = read(page)
    assert (scrape.gpu_records, scrape.not_recorded) == (0, {"unknown": 4})


def test_a_gpu_all_of_whose_lines_are_refused_is_still_seen():
    _, scrape = read(block(TEMPERATURE, (gpu(0, ',pod="a"b"'), 1)))
    assert (scrape.gpu_records, decode(scrape.messages[-1]).gpu_uuids) == (0, ["GPU-0"])


def test_memory_in_use_is_a_share_of_used_and_free_and_reserved_memory_belongs_to_the_total_alone():
    used, free = block("DCGM_FI_DEV_FB_USED", (gpu(0), 30)), block("DCGM_FI_DEV_FB_FREE", (gpu(0), 90))
    reserved, total = block("DCGM_FI_DEV_FB_RESERVED", (gpu(0), 5)), block("DCGM_FI_DEV_FB_TOTAL", (gpu(0), 200))
    totals = []
    for page in (used + free, used + free + reserved, used + free + reserved + total, used):
        [record] = records_of(page)
        totals.append((record.memory_used_percent, record.memory_total_mib))
    assert totals == [(25, 120), (25, 125), (25, 200), (None, None)]


def test_a_failed_turn_is_its_closing_record_alone():
    failed = Turn(
        node_id="n", bridge_id="b", boot_id="c", seq=3, collected_at_ms=1_700_000_000_005, interval_ms=30_000, up=False,
        reason="timeout", duration_ms=0.0, datacenter="dc", instance="h:9400", trace="t",
    )  # fmt: skip
    scrape = RecordBuilder().failed(failed)
    [message] = scrape.messages
    record = decode(message)
    assert (record.up, record.reason, record.gpu_records, record.duration_ms) == (False, "timeout", 0, 0.0)
    assert b'"collected_at":"2023-11-14T22:13:20.005Z"' in message


def test_the_closing_record_says_what_the_bridge_knows_of_the_turn():
    told = Turn(
        node_id="n", bridge_id="b", boot_id="c", seq=3, collected_at_ms=5_000, interval_ms=30_000, removed=True,
        drops={"queue_full": DropCount(2, 16)}, duration_ms=12.5, datacenter="dc", instance="h:9400", trace="t",
    )  # fmt: skip
    builder = RecordBuilder()
    record = decode(
        builder.build(Exposition().parser().parse(block(TEMPERATURE, (gpu(0), 40)).encode()), told).messages[-1]
    )
    assert record == ScrapeRecord(
        schema_version=1,
        node_id="n",
        bridge_id="b",
        boot_id="c",
        seq=3,
        collected_at=from_milliseconds(5_000),
        up=True,
        gpu_records=1,
        interval_ms=30_000,
        hostname="host-1",
        datacenter="dc",
        instance="h:9400",
        gpu_uuids=["GPU-0"],
        duration_ms=12.5,
        changed_at=from_milliseconds(5_000),
        drops={"queue_full": DropCount(2, 16)},
        trace="t",
        removed=True,
    )


def test_a_page_kept_for_re_exposure_reads_the_same_after_its_numbers_are_dropped():
    parser = Exposition().parser()
    page = parser.parse(corpus("dcgm-exporter-4.5.2-nvlink.prom").encode())
    before = list(page)
    page.compact()
    assert list(page) == before
    assert page.values == [sample.value for sample in before]
    empty = parser.parse(b"")
    empty.compact()
    assert list(empty) == []
