"""Every way in which a page lies or breaks, by its name: what it costs, and that it costs nothing else."""

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
import uvloop

from emulator.faults import FAULTS, FaultKind, FaultScope
from emulator.page import CONVERSION_ERROR
from emulator.service import serving
from emulator.settings import EmulatorSettings
from exporter_bridge.fetch import Fetcher
from exporter_bridge.targets import Access
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME
from gpu_telemetry.records import Rejected, Workload

GPU = 2
PROFILING = {
    "graphics_engine_active_ratio",
    "tensor_active_ratio",
    "dram_active_ratio",
    "pcie_tx_bytes_per_second",
    "pcie_rx_bytes_per_second",
}
TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP"


def content(record):
    """A record without what differs from scrape to scrape anyway."""
    return msgspec.structs.replace(record, seq=1, collected_at=datetime(2026, 1, 1, tzinfo=UTC))


def measured(record):
    """The names of what a record has a value of."""
    values = {
        name for name in (field.name for field in FIELD_BY_DCGM_NAME.values()) if getattr(record, name) is not None
    }
    return values | set(record.fields)


class Struck:
    """Two scrapes at one moment: before and after a fault came to GPU 2 (or to the node)."""

    def __init__(self, reader, kind, **parameters):
        self.reader = reader
        reader.clock.advance(100)
        self.uuid = reader.node.gpus[GPU].uuid
        self.before = reader.scrape()
        reader.set(kind, GPU if FAULTS[kind].scope is FaultScope.GPU else None, **parameters)
        self.after = reader.scrape()

    @property
    def record(self):
        return self.after.records[self.uuid, None]

    def others(self, read):
        return {key: content(record) for key, record in read.records.items() if key[0] != self.uuid}

    def costs_nothing_else(self):
        """All other GPUs' records are what they were, and nothing of them was rejected or refused."""
        assert len(self.others(self.before)) == 3
        assert self.others(self.after) == self.others(self.before)
        assert not self.before.page.refused
        assert not self.before.scrape.rejected
        ours = {(name, value.reason) for name, value in self.record.rejected.items()} if self.has_record else set()
        assert self.after.scrape.rejected == dict.fromkeys(ours, 1)

    @property
    def has_record(self):
        return (self.uuid, None) in self.after.records


@pytest.fixture
def strike(read_node):
    """`strike(kind, options={}, **parameters)`: a node before and after a fault."""

    def make(kind, options=None, **parameters):
        return Struck(read_node(**(options or {})), kind, **parameters)

    return make


# -- 1. no value ------------------------------------------------------------------------------------------------------


def test_sentinels_cost_every_value_of_their_gpu_by_name_and_not_its_record(strike):
    struck = strike(FaultKind.SENTINELS)
    struck.costs_nothing_else()
    everything = measured(struck.before.records[struck.uuid, None]) - {"memory_used_percent", "memory_total_mib"}
    assert set(struck.record.rejected) == everything
    assert {value.reason for value in struck.record.rejected.values()} == {"sentinel"}
    assert measured(struck.record) == set()
    assert struck.uuid in struck.after.closing.gpu_uuids


@pytest.mark.parametrize(
    ("field", "text"),
    [(TEMPERATURE, str(number)) for number in (*range(2147483632, 2147483636), 4294967295)]
    + [
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", str(number))
        for number in range(9223372036854775792, 9223372036854775796)
    ]
    + [("DCGM_FI_DEV_POWER_USAGE", f"{number}.000000") for number in range(140737488355328, 140737488355332)],
)
def test_each_sentinel_number_costs_the_one_value(read_node, field, text):
    reader = read_node()
    sound = reader.scrape()
    uuid = reader.node.gpus[GPU].uuid
    pattern = re.compile(rf'^({field}\{{gpu="{GPU}".*\}}) .*$', re.MULTILINE)
    read = reader.scrape(lambda body: pattern.sub(rf"\1 {text}", body.decode()).encode())
    name = FIELD_BY_DCGM_NAME[field].name
    was, now = (content(of.records[uuid, None]) for of in (sound, read))
    assert now == msgspec.structs.replace(was, **{name: None}, rejected={name: Rejected(text, "sentinel")})
    others = [key for key in sound.records if key[0] != uuid]
    assert all(content(read.records[key]) == content(sound.records[key]) for key in others)


def test_out_of_range_numbers_cost_themselves_with_their_reason(strike):
    struck = strike(FaultKind.OUT_OF_RANGE)
    struck.costs_nothing_else()
    assert struck.record.rejected == {
        "gpu_utilization_percent": Rejected("808334905", "out_of_range"),
        "memory_copy_utilization_percent": Rejected("127622", "out_of_range"),
        "encoder_utilization_percent": Rejected("2619", "out_of_range"),
        "temperature_celsius": Rejected("65535", "out_of_range"),
        "memory_temperature_celsius": Rejected("4294967295", "sentinel"),
    }
    assert measured(struck.record) == measured(struck.before.records[struck.uuid, None]) - set(struck.record.rejected)


def test_the_text_of_a_conversion_error_costs_its_lines_and_is_kept(strike):
    struck = strike(FaultKind.CONVERSION_ERROR)
    struck.costs_nothing_else()
    assert struck.record.rejected == dict.fromkeys(PROFILING, Rejected(CONVERSION_ERROR, "unconvertible"))
    assert struck.after.page.refused == {"bad_value": 5}
    assert measured(struck.record) == measured(struck.before.records[struck.uuid, None]) - PROFILING


# -- 2. XIDs ----------------------------------------------------------------------------------------------------------


def test_the_xid_gauge_keeps_a_code_while_its_count_leaves_the_window(strike):
    struck = strike(FaultKind.XID, {"optional_fields": "xid_count"}, code=31)
    struck.costs_nothing_else()
    reader = struck.reader

    def shown(read):
        rows = read.records[struck.uuid, None].fields["DCGM_EXP_XID_ERRORS_COUNT"]
        assert all(row.labels["window_size_in_ms"] == "300000" for row in rows)
        counts = {row.labels.get("xid"): row.value for row in rows}
        return read.records[struck.uuid, None].xid_code, counts

    assert shown(struck.before) == (0, {None: 0})
    assert shown(struck.after) == (31, {"31": 1})
    reader.set(FaultKind.XID, GPU, code=31, count=3)
    assert shown(reader.scrape()) == (31, {"31": 3})  # in the gauge a repeat is invisible
    reader.set(FaultKind.XID, GPU, code=43)
    assert shown(reader.scrape()) == (43, {"31": 3, "43": 1})  # and a later code masks an earlier one
    reader.clock.advance(301)
    assert shown(reader.scrape()) == (43, {None: 0})


# -- 3. labels --------------------------------------------------------------------------------------------------------


def test_an_unescaped_label_costs_its_lines_and_the_gpu_counts_as_seen(strike):
    struck = strike(FaultKind.UNESCAPED_LABEL)
    struck.costs_nothing_else()
    assert not struck.has_record
    assert struck.after.page.refused == {"bad_labels": 25}
    assert struck.after.page.samples == 3 * 25
    assert set(struck.after.closing.gpu_uuids) == {gpu.uuid for gpu in struck.reader.node.gpus}
    assert struck.after.closing.gpu_records == 3


def test_labels_that_are_escaped_are_read_unescaped(read_node):
    reader = read_node(attribution="hpc_jobs")
    reader.scrape()
    read = reader.scrape(lambda body: re.sub(rb'hpc_job="\d+"', rb'hpc_job="a \\"b\\" c:\\\\d\\ne"', body))
    jobs = {workload for record in read.records.values() for workload in record.workloads}
    assert jobs == {Workload(job='a "b" c:\\d\ne')}


@pytest.mark.parametrize("lines", [1, 100])
def test_a_garbage_line_costs_that_line(strike, lines):
    struck = strike(FaultKind.GARBAGE_LINE, lines=lines)
    struck.costs_nothing_else()
    assert content(struck.record) == content(struck.before.records[struck.uuid, None])
    assert sum(struck.after.page.refused.values()) == lines
    assert struck.after.page.samples == struck.before.page.samples
    assert len(struck.after.page.examples) == min(3, lines)


# -- 4. churn ---------------------------------------------------------------------------------------------------------


def test_labels_that_come_and_go_cost_their_own_parsing_and_no_memory(strike):
    struck = strike(FaultKind.LABEL_CHURN)
    struck.costs_nothing_else()
    reader = struck.reader
    remembered = set()
    seen = [struck.record.workloads]
    for _ in range(30):
        parsed = reader.exposition.label_texts_parsed
        read = reader.scrape()
        # A text for the XID row, one for all others.
        assert reader.exposition.label_texts_parsed - parsed == 2
        assert struck.others(read) == struck.others(struck.before)
        seen.append(read.records[struck.uuid, None].workloads)
        remembered.add(reader._parser.cached_layouts)
    assert seen[-3:] == [
        [],
        [Workload("batch", "burst-31", "main")],
        [Workload("batch", "burst-32", "main")],
    ]
    assert max(remembered) <= 2 * 25


# -- 5. the answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (FaultKind.EMPTY, "empty"),
        (FaultKind.HTTP_500, "http_500"),
        (FaultKind.CUT_SHORT, "truncated"),
        (FaultKind.HANG, "timeout"),
        (FaultKind.SLOW, "timeout"),
        (FaultKind.DOWN, "truncated"),
    ],
)
def test_a_page_that_does_not_come_fails_by_its_name_and_costs_that_node_alone(kind, reason):
    async def answers():
        async with serving(EmulatorSettings(listen="127.0.0.1:0", nodes=2), SystemClock()) as url:
            async with httpx.AsyncClient(base_url=url) as client:
                response = await client.post("/control/faults", json={"kind": kind, "node": "node-1"})
                assert response.status_code == 201
                if kind is not FaultKind.DOWN:
                    assert (await client.get("/nodes/node-1/health")).text == "OK"
            loop = asyncio.get_running_loop()
            fetcher = Fetcher(loop, body_limit_bytes=2**20, kept_connections=2)
            found = []
            for node, seconds in (("node-1", 0.5 if reason == "timeout" else 5), ("node-2", 5)):
                done = loop.create_future()
                fetcher.start(f"{url}/nodes/{node}/metrics", Access(), seconds, done.set_result)
                found.append(done)
            try:
                return await asyncio.wait_for(asyncio.gather(*found), 10)
            finally:
                fetcher.close()

    struck, sound = uvloop.run(answers())
    assert (struck.reason, struck.body) == (reason, b"")
    assert sound.reason is None
    assert sound.body.count(b"\nDCGM_FI_DEV_GPU_TEMP{") == 8


def test_a_gpu_off_the_page_costs_its_record_and_is_not_among_the_seen(strike):
    struck = strike(FaultKind.GPU_LOST)
    struck.costs_nothing_else()
    assert not struck.has_record
    assert struck.uuid not in struck.after.closing.gpu_uuids
    assert struck.after.closing.gpu_records == len(struck.after.closing.gpu_uuids) == 3


# -- 6. lies ----------------------------------------------------------------------------------------------------------


def test_a_frozen_page_has_records_and_the_moment_of_its_last_change(strike):
    struck = strike(FaultKind.FROZEN)
    reader = struck.reader
    changed = struck.after.closing.changed_at
    reader.clock.advance(600)
    later = reader.scrape()
    assert {key: content(record) for key, record in later.records.items()} == {
        key: content(record) for key, record in struck.after.records.items()
    }
    assert later.closing.changed_at == changed < later.closing.collected_at
    reader.fleet.clear_fault(FaultKind.FROZEN, "node-1", None)
    thawed = reader.scrape()
    assert thawed.closing.changed_at == thawed.closing.collected_at


def test_a_contradiction_is_told_as_it_stands(strike):
    struck = strike(FaultKind.CONTRADICTION)
    struck.costs_nothing_else()
    assert struck.record.gpu_utilization_percent == 99
    assert {getattr(struck.record, name) for name in PROFILING} == {0}


# -- 7. duplicates ----------------------------------------------------------------------------------------------------


def test_duplicate_rows_cost_the_second_of_each_and_are_counted(strike):
    struck = strike(FaultKind.DUPLICATE_ROWS)
    struck.costs_nothing_else()
    assert struck.after.page.refused == {"duplicate": 25}
    assert struck.after.page.samples == 4 * 25
    assert struck.record.rejected == {}
    assert measured(struck.record) == measured(struck.before.records[struck.uuid, None])


def test_of_duplicate_rows_that_differ_the_first_counts(read_node):
    reader = read_node()
    sound = reader.scrape()
    uuid = reader.node.gpus[GPU].uuid
    row = re.compile(rf'^({TEMPERATURE}\{{gpu="{GPU}".*\}}) (\d+)$', re.MULTILINE)
    read = reader.scrape(lambda body: row.sub(r"\1 \2\n\1 12", body.decode()).encode())
    assert read.page.refused == {"duplicate": 1}
    assert content(read.records[uuid, None]) == content(sound.records[uuid, None])
    read = reader.scrape(lambda body: row.sub(r"\1 12\n\1 \2", body.decode()).encode())
    assert read.records[uuid, None].temperature_celsius == 12


# -- 8. counters ------------------------------------------------------------------------------------------------------


def test_counters_that_begin_again_are_told_as_they_stand(strike):
    struck = strike(FaultKind.COUNTER_RESET)
    for key, record in struck.after.records.items():
        assert struck.before.records[key].energy_joules > 1000
        assert record.energy_joules == record.nvlink_bandwidth_total == record.pcie_replay_count == 0
        assert record.rejected == {}
    struck.reader.clock.advance(10)
    assert all(record.energy_joules > 0 for record in struck.reader.scrape().records.values())


# -- what the emulated GPU really has ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (FaultKind.OVERHEAT, lambda record: record.temperature_celsius > 95),
        (FaultKind.POWER, lambda record: record.power_watts > 700),
        (FaultKind.MEMORY_FULL, lambda record: 95 < record.memory_used_percent < 100),
    ],
)
def test_a_gpu_in_trouble_is_told_as_it_is(strike, kind, told):
    struck = strike(kind)
    assert not told(struck.before.records[struck.uuid, None])
    struck.reader.clock.advance(120)
    read = struck.reader.scrape()
    assert told(read.records[struck.uuid, None])
    assert not any(told(record) for key, record in read.records.items() if key[0] != struck.uuid)
    assert not read.page.refused
    assert not read.scrape.rejected


def test_every_fault_that_there_is_has_a_test_here_by_its_name():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind.name for kind in FaultKind if f"FaultKind.{kind.name}" not in text] == []
