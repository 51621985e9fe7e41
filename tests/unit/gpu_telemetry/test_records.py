"""The codec gives back what it was given, and says what is wrong with the rest."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_telemetry.records import (
    SCHEMA_VERSION,
    AnyRecord,
    DropCount,
    GpuRecord,
    LabelledValue,
    Rejected,
    ScrapeRecord,
    SilenceRecord,
    UndecodableRecord,
    Workload,
    decode,
    encode,
)

MOMENT = datetime(2026, 1, 31, 12, 0, 0, 123000, UTC)

moments = st.integers(0, 4_000_000_000_000).map(
    lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
)
identifiers = st.text(min_size=1, max_size=40)
gpu_records = st.builds(
    GpuRecord,
    schema_version=st.just(SCHEMA_VERSION),
    node_id=identifiers,
    bridge_id=identifiers,
    boot_id=identifiers,
    seq=st.integers(1, 2**53),
    collected_at=moments,
    gpu_index=st.integers(0, 2**31 - 1),
    gpu_uuid=identifiers,
    hostname=st.none() | st.text(),
    workloads=st.lists(st.builds(Workload, namespace=st.none() | st.text(), pod=st.none() | st.text()), max_size=3),
    temperature_celsius=st.none() | st.floats(-50, 200),
    memory_used_mib=st.none() | st.integers(0, 2**20),
    fields=st.dictionaries(
        st.text(),
        st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(
            st.builds(
                LabelledValue,
                labels=st.dictionaries(st.text(), st.text(), max_size=2),
                value=st.floats(allow_nan=False, allow_infinity=False),
            ),
            max_size=2,
        ),
        max_size=3,
    ),
    rejected=st.dictionaries(st.text(), st.builds(Rejected, value=st.text(), reason=st.text()), max_size=2),
)
scrape_records = st.builds(
    ScrapeRecord,
    schema_version=st.just(SCHEMA_VERSION),
    node_id=identifiers,
    bridge_id=identifiers,
    boot_id=identifiers,
    seq=st.integers(1, 2**53),
    collected_at=moments,
    up=st.booleans(),
    gpu_records=st.integers(0, 2**31 - 1),
    interval_ms=st.integers(1, 2**31 - 1),
    gpu_uuids=st.lists(identifiers, max_size=3),
    drops=st.dictionaries(st.text(), st.builds(DropCount, scrapes=st.just(1), gpu_records=st.just(8)), max_size=2),
    removed=st.booleans(),
)
silence_records = st.builds(
    SilenceRecord,
    schema_version=st.just(SCHEMA_VERSION),
    node_id=identifiers,
    last_collected_at=moments,
    interval_ms=st.integers(1, 2**31 - 1),
    detected_at=moments,
    worker_id=identifiers,
)


@given(gpu_records | scrape_records | silence_records)
def test_what_is_encoded_is_decoded(record: AnyRecord):
    assert decode(encode(record)) == record


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_stated_error(message: bytes):
    with pytest.raises(UndecodableRecord) as error:
        decode(message)
    assert error.value.reason in {"malformed", "invalid", "schema_version"}
    assert str(error.value)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists))
def test_json_of_another_shape_is_invalid(value: object):
    with pytest.raises(UndecodableRecord) as error:
        decode(msgspec.json.encode(value))
    assert error.value.reason in {"invalid", "malformed"}


def minimal(**changes: object) -> bytes:
    record = {
        "kind": "gpu",
        "schema_version": SCHEMA_VERSION,
        "node_id": "node-1",
        "bridge_id": "bridge",
        "boot_id": "boot",
        "seq": 1,
        "collected_at": "2026-01-31T12:00:00.123Z",
        "gpu_index": 0,
        "gpu_uuid": "GPU-0",
    }
    return msgspec.json.encode({key: value for key, value in (record | changes).items() if value is not ...})


def test_a_minimal_record_has_no_value_that_was_not_measured():
    record = decode(minimal())
    assert isinstance(record, GpuRecord)
    assert record.collected_at == MOMENT
    assert record.temperature_celsius is None
    assert b"temperature" not in encode(record)


def test_unknown_keys_are_ignored():
    assert decode(minimal(colour="green")) == decode(minimal())


@pytest.mark.parametrize(
    ("changes", "reason", "named"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "schema_version", "$.schema_version"),
        ({"schema_version": 0}, "schema_version", "$.schema_version"),
        ({"kind": "cpu"}, "invalid", "$.kind"),
        ({"node_id": ""}, "invalid", "$.node_id"),
        ({"node_id": ...}, "invalid", "node_id"),
        ({"seq": 0}, "invalid", "$.seq"),
        ({"gpu_index": -1}, "invalid", "$.gpu_index"),
        ({"gpu_index": 2**31}, "invalid", "$.gpu_index"),
        ({"collected_at": "2026-01-31T12:00:00.123"}, "invalid", "$.collected_at"),
        ({"temperature_celsius": "hot"}, "invalid", "$.temperature_celsius"),
    ],
)
def test_an_error_names_the_key_and_its_reason(changes, reason, named):
    with pytest.raises(UndecodableRecord) as error:
        decode(minimal(**changes))
    assert error.value.reason == reason
    assert named in str(error.value)


def test_a_message_without_a_value_is_empty():
    with pytest.raises(UndecodableRecord) as error:
        decode(None)
    assert error.value.reason == "empty"


def test_ten_thousand_nested_lists_are_malformed_and_no_crash():
    with pytest.raises(UndecodableRecord):
        decode(b"[" * 10_000)
