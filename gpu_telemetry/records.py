"""The messages of the topic `gpu-telemetry`: their schema, and the codec that both sides use.

Every message is one JSON object with a `kind`; its key is the node's id. A value that was not measured is absent,
never 0. Readers ignore keys they do not know and accept the previous `schema_version`.
"""

from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

SCHEMA_VERSION: Final = 1
ACCEPTED_SCHEMA_VERSIONS: Final = frozenset((SCHEMA_VERSION, SCHEMA_VERSION - 1)) - {0}

# The longest identifier that is stored; host and pod names end at 253 characters (RFC 1035, Kubernetes).
MAX_IDENTIFIER_LENGTH: Final = 512
Identifier = Annotated[str, Meta(min_length=1, max_length=MAX_IDENTIFIER_LENGTH)]
Moment = Annotated[datetime, Meta(tz=True)]
# Counts and indexes fit PostgreSQL's integer.
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Sequence = Annotated[int, Meta(ge=1, le=2**53)]
# What the columns of `gpu_metrics` hold: a number beyond is refused here, by name, and never reaches the table.
Integer = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
BigInteger = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class Workload(Struct, frozen=True, omit_defaults=True):
    """Who uses a GPU or a MIG instance: a Kubernetes container, or an HPC job."""

    namespace: str | None = None
    pod: str | None = None
    container: str | None = None
    job: str | None = None


class LabelledValue(Struct, frozen=True):
    """One row of a DCGM field that has labels of its own, such as `xid` or `window_size_in_ms`."""

    labels: dict[str, str]
    value: float


class Rejected(Struct, frozen=True):
    """A value that was read and not believed: the text on the page, and why (`sentinel`, `out_of_range`, ...)."""

    value: str
    reason: str


class DropCount(Struct, frozen=True):
    """How many whole scrapes, and how many GPU records in them, were dropped for one reason."""

    scrapes: Count
    gpu_records: Count


class Record(Struct, kw_only=True, tag_field="kind", omit_defaults=True, gc=False):
    """What every message has."""

    schema_version: int
    node_id: Identifier


class GpuRecord(Record, tag="gpu"):
    """One GPU, or one MIG instance, in one scrape. Units are those of `gpu_telemetry.fields`."""

    bridge_id: Identifier
    boot_id: Identifier
    seq: Sequence
    collected_at: Moment
    gpu_index: Count
    gpu_uuid: Identifier
    hostname: str | None = None
    datacenter: str | None = None
    mig_instance: str | None = None
    mig_profile: str | None = None
    model: str | None = None
    pci_bus_id: str | None = None
    driver_version: str | None = None
    workloads: list[Workload] = []
    temperature_celsius: float | None = None
    memory_temperature_celsius: float | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    gpu_utilization_percent: float | None = None
    memory_copy_utilization_percent: float | None = None
    encoder_utilization_percent: float | None = None
    decoder_utilization_percent: float | None = None
    memory_used_mib: Integer | None = None
    memory_free_mib: Integer | None = None
    memory_reserved_mib: Integer | None = None
    memory_total_mib: Integer | None = None
    memory_used_percent: float | None = None
    sm_clock_mhz: Integer | None = None
    memory_clock_mhz: Integer | None = None
    clock_throttle_reasons: BigInteger | None = None
    xid_code: Integer | None = None
    ecc_single_bit_volatile: BigInteger | None = None
    ecc_double_bit_volatile: BigInteger | None = None
    ecc_single_bit_aggregate: BigInteger | None = None
    ecc_double_bit_aggregate: BigInteger | None = None
    row_remap_failure: Integer | None = None
    row_remap_pending: Integer | None = None
    row_remap_uncorrectable_rows: BigInteger | None = None
    row_remap_correctable_rows: BigInteger | None = None
    retired_pages_single_bit: BigInteger | None = None
    retired_pages_double_bit: BigInteger | None = None
    retired_pages_pending: BigInteger | None = None
    pcie_replay_count: BigInteger | None = None
    nvlink_bandwidth_total: BigInteger | None = None
    nvlink_crc_flit_errors: BigInteger | None = None
    nvlink_crc_data_errors: BigInteger | None = None
    nvlink_replay_errors: BigInteger | None = None
    nvlink_recovery_errors: BigInteger | None = None
    graphics_engine_active_ratio: float | None = None
    sm_active_ratio: float | None = None
    sm_occupancy_ratio: float | None = None
    tensor_active_ratio: float | None = None
    dram_active_ratio: float | None = None
    pcie_tx_bytes_per_second: float | None = None
    pcie_rx_bytes_per_second: float | None = None
    # Every other DCGM field by its own name; one with labels of its own as a list of its rows.
    fields: dict[str, float | list[LabelledValue]] = {}
    # By our name where the field table has one, else by DCGM's.
    rejected: dict[str, Rejected] = {}


class ScrapeRecord(Record, tag="scrape"):
    """The end of a node's turn: what was announced, what was seen, what was dropped so far.

    `reason` is absent when `up`; a turn that was not made is `overrun`. `gpu_uuids` also names GPUs whose lines were
    refused. `changed_at` is when any value on the page last changed. `drops` counts for this node since this boot.
    `removed` says that the node left the configuration.
    """

    bridge_id: Identifier
    boot_id: Identifier
    seq: Sequence
    collected_at: Moment
    up: bool
    gpu_records: Count
    interval_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    hostname: str | None = None
    datacenter: str | None = None
    instance: str | None = None
    reason: str | None = None
    gpu_uuids: list[Identifier] = []
    duration_ms: float | None = None
    changed_at: Moment | None = None
    drops: dict[str, DropCount] = {}
    trace: str | None = None
    removed: bool = False


class SilenceRecord(Record, tag="silence"):
    """Wall time as a record: no record of the node came for three of its intervals.

    It counts only while `last_collected_at` equals the node's own clock.
    """

    last_collected_at: Moment
    interval_ms: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    detected_at: Moment
    worker_id: Identifier


AnyRecord = GpuRecord | ScrapeRecord | SilenceRecord


class UndecodableRecord(ValueError):
    """A message that is no record: the text says what was expected and where. `reason` is a counter's label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(AnyRecord)


def encode(record: AnyRecord) -> bytes:
    """One record as the JSON bytes of a message."""
    return _encoder.encode(record)


def decode(message: bytes | None) -> AnyRecord:
    """The record in a message.

    Raises:
        UndecodableRecord: the message is empty (`empty`), is no JSON (`malformed`), is JSON of another shape
            (`invalid`) or has a schema version that this reader does not know (`schema_version`).
    """
    if message is None:
        raise UndecodableRecord("empty", "expected a JSON object, got a message without a value")
    try:
        record = _decoder.decode(message)
    except msgspec.ValidationError as error:
        raise UndecodableRecord("invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UndecodableRecord("malformed", str(error)) from error
    if record.schema_version not in ACCEPTED_SCHEMA_VERSIONS:
        expected = ", ".join(map(str, sorted(ACCEPTED_SCHEMA_VERSIONS)))
        raise UndecodableRecord(
            "schema_version", f"expected schema_version {expected}, got {record.schema_version} - at `$.schema_version`"
        )
    return record
