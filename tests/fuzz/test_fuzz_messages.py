"""Messages that were damaged on their way: a record, or an undecodable one with its reason, and nothing else."""

import copy
import json
from datetime import UTC, datetime

import pytest

from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.records import (
    ACCEPTED_SCHEMA_VERSIONS,
    GpuRecord,
    ScrapeRecord,
    SilenceRecord,
    UndecodableRecord,
    decode,
    encode,
)

REASONS = {"empty", "malformed", "invalid", "schema_version"}
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
UNEXPECTED = (
    None, True, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, "", "x", "\x00", "a" * 513,
    "2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59", "gpu", "scrape", "silence", "\u2028", "\ud83d\ude00", [], [None], ["x"], {},
    {"x": 1}, [[[[[[]]]]]], {"labels": {}, "value": 1}, [{"labels": {"a": "b"}, "value": 1}], [{"labels": 1}],
    {"a": {"scrapes": 1, "gpu_records": -1}}, [{"namespace": 1}], {"value": "1", "reason": "sentinel"},
)  # fmt: skip


@pytest.fixture(scope="module")
def messages(real_pages) -> list[bytes]:
    found = [
        encode(
            SilenceRecord(
                schema_version=1,
                node_id="node-1",
                last_collected_at=MOMENT,
                interval_ms=1000,
                detected_at=MOMENT,
                worker_id="worker-1",
            )
        )
    ]
    for page in real_pages:
        turn = Turn(
            node_id="node-1",
            bridge_id="bridge-1",
            boot_id="boot-1",
            seq=1,
            collected_at_ms=1_767_225_600_000,
            interval_ms=1000,
            datacenter="us-west-1",
        )
        found += RecordBuilder().build(Exposition().parser().parse(page), turn).messages
    return found


def judge(message):
    """Decode; whatever comes is a record that survives the codec, or has one of the reasons."""
    try:
        record = decode(message)
    except UndecodableRecord as undecodable:
        record, told = None, undecodable
    if record is None:
        assert told.reason in REASONS
        assert str(told)
        return None
    assert isinstance(record, GpuRecord | ScrapeRecord | SilenceRecord)
    assert record.schema_version in ACCEPTED_SCHEMA_VERSIONS
    assert decode(encode(record)) == record
    return record


def test_a_damaged_message_is_a_record_or_undecodable(fuzz_rounds, messages, damaged):
    outcomes = set()
    for source in fuzz_rounds():
        outcomes.add(judge(damaged(source, messages)) is None)
    assert outcomes == {True, False}


def test_noise_is_undecodable(fuzz_rounds):
    for source in fuzz_rounds():
        assert judge(source.randbytes(source.randrange(300))) is None


def places(value, path=()):
    """The path of everything in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(source, value):
    """A copy with something replaced, taken out, put in or named otherwise."""
    value = copy.deepcopy(value)
    path = source.choice([path for path in places(value) if path])
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    match source.randrange(4):
        case 0 | 1:
            holder[path[-1]] = copy.deepcopy(source.choice(UNEXPECTED))
        case 2:
            del holder[path[-1]]
        case 3 if isinstance(holder, dict):
            holder[source.choice(("kind", "seq", "removed", "workloads", "new", "", "\x00"))] = holder.pop(path[-1])
        case _:
            holder.insert(path[-1], copy.deepcopy(source.choice(UNEXPECTED)))
    return value


def test_valid_json_of_another_shape_is_a_record_or_undecodable(fuzz_rounds, messages):
    decoded = [json.loads(message) for message in messages]
    outcomes = set()
    for source in fuzz_rounds():
        value = source.choice(decoded)
        for _ in range(source.choice((1, 1, 2, 4))):
            value = changed(source, value)
        outcomes.add(judge(json.dumps(value).encode()) is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize("nesting", [b"[", b'{"a":', b'{"kind":"gpu","fields":{"a":[', b'{"x":['])
def test_nesting_without_end_is_undecodable(nesting):
    assert judge(nesting * 100_000) is None


def test_ten_megabytes_of_garbage_are_undecodable():
    assert judge(b"\x9b" * 10_000_000) is None
    assert judge(b'{"kind":"gpu","node_id":"' + b"a" * 10_000_000 + b'"}') is None
