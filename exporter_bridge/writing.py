"""The JSON of a record: quickly from the plan's parts where every value is good, value by value where one is not."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from exporter_bridge.judging import OUT_OF_RANGE, UNCONVERTIBLE
from exporter_bridge.placing import Owner
from exporter_bridge.plans import MOST_MEMORY_MIB, RecordPlan
from gpu_telemetry.clock import from_milliseconds, rfc3339
from gpu_telemetry.records import SCHEMA_VERSION, DropCount

_encode: Final = msgspec.json.Encoder().encode

# What goes to `rejected`: by name, the text on the page and the reason.
Unbelieved = dict[str, dict[str, str]]


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What the bridge knows of one turn of one node when it ends.

    `reason` says why it failed (`up` is false) and is None otherwise. `hostname` and `datacenter` are the target's own
    labels; without a hostname the page's is taken. `drops` counts this node's dropped scrapes since this boot.
    """

    node_id: str
    bridge_id: str
    boot_id: str
    seq: int
    collected_at_ms: int
    interval_ms: int
    up: bool = True
    reason: str | None = None
    hostname: str | None = None
    datacenter: str | None = None
    instance: str | None = None
    duration_ms: float | None = None
    drops: Mapping[str, DropCount] = {}
    trace: str | None = None
    removed: bool = False


def prefix(turn: Turn) -> bytes:
    """What all records of a turn begin with."""
    record = {
        "kind": "gpu",
        "schema_version": SCHEMA_VERSION,
        "node_id": turn.node_id,
        "bridge_id": turn.bridge_id,
        "boot_id": turn.boot_id,
        "seq": turn.seq,
        "collected_at": _rfc3339(turn.collected_at_ms),
    }
    return _encode(record)[:-1]


def head(owner: Owner, hostname: str | None, datacenter: str | None) -> bytes:
    """What a GPU's record says of the GPU itself, given the target's own labels."""
    record = {
        "gpu_index": owner.gpu_index,
        "gpu_uuid": owner.gpu_uuid,
        "hostname": hostname or owner.hostname,
        "datacenter": datacenter,
        "mig_instance": owner.mig_instance,
        "mig_profile": owner.mig_profile,
        "model": owner.model,
        "pci_bus_id": owner.pci_bus_id,
        "driver_version": owner.driver_version,
        "workloads": owner.workloads or None,
    }
    return b"," + _encode({name: value for name, value in record.items() if value is not None})[1:-1]


def written(record: RecordPlan, start: bytes, tokens: Sequence[bytes], values: Sequence[float]) -> bytes | None:
    """The record that begins with `start` and whose values are all good, or None if it takes more care than that."""
    texts = [*record.pick(tokens)]
    for position, divisor in record.scaled:
        texts.append(_encode(values[position] / divisor))
    if record.used is not None and record.free is not None:
        used, free = values[record.used], values[record.free]
        if not used + free:
            return None
        texts.append(_encode(100 * used / (used + free)))
        if record.summed:
            total = sum([values[position] for position in record.summed])
            if total > MOST_MEMORY_MIB:
                return None
            texts.append(b"%d" % total)
    parts = record.parts.copy()
    parts[0] = start + parts[0]
    parts[1::2] = texts
    return b"".join(parts)


def judged(
    record: RecordPlan,
    tokens: Sequence[bytes],
    values: Sequence[float],
    unconvertible: Unbelieved,
    counts: dict[tuple[str, str], int],
) -> bytes:
    """The rest of a record, value by value; `counts` takes in what is rejected."""
    measured: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    rejected: Unbelieved = dict(unconvertible)
    for name in unconvertible:
        counts[name, UNCONVERTIBLE] = counts.get((name, UNCONVERTIBLE), 0) + 1
    for position, measure, labels in record.cells:
        token = tokens[position].partition(b" ")[0].decode()
        number, reason = measure.judge(token, values[position])
        if reason is not None:
            rejected[measure.name] = {"value": token, "reason": reason}
            counts[measure.name, reason] = counts.get((measure.name, reason), 0) + 1
        elif measure.field is not None:
            measured[measure.name] = number
        elif labels is None:
            fields[measure.dcgm] = number
        else:
            fields.setdefault(measure.dcgm, []).append({"labels": dict(labels), "value": number})
    _derive(measured, rejected, counts)
    if fields:
        measured["fields"] = fields
    if rejected:
        measured["rejected"] = rejected
    return (b"," if measured else b"") + _encode(measured)[1:]


def _derive(measured: dict[str, Any], rejected: Unbelieved, counts: dict[tuple[str, str], int]) -> None:
    """Add what is computed from other values, where those were believed."""
    used, free = measured.get("memory_used_mib"), measured.get("memory_free_mib")
    if used is None or free is None or not used + free:
        return
    measured["memory_used_percent"] = 100 * used / (used + free)
    if "memory_total_mib" in measured or "memory_reserved_mib" in rejected:
        return
    total = used + free + measured.get("memory_reserved_mib", 0)
    if total > MOST_MEMORY_MIB:
        rejected["memory_total_mib"] = {"value": str(total), "reason": OUT_OF_RANGE}
        counts["memory_total_mib", OUT_OF_RANGE] = counts.get(("memory_total_mib", OUT_OF_RANGE), 0) + 1
    else:
        measured["memory_total_mib"] = total


def closing(
    turn: Turn, *, gpu_records: int, gpu_uuids: list[str], hostname: str | None, changed_at_ms: int | None
) -> bytes:
    """The record that closes a turn; `hostname` is the page's, for a target that has none of its own."""
    record: dict[str, Any] = {
        "kind": "scrape",
        "schema_version": SCHEMA_VERSION,
        "node_id": turn.node_id,
        "bridge_id": turn.bridge_id,
        "boot_id": turn.boot_id,
        "seq": turn.seq,
        "collected_at": _rfc3339(turn.collected_at_ms),
        "up": turn.up,
        "gpu_records": gpu_records,
        "interval_ms": turn.interval_ms,
    }
    if changed_at_ms is not None:
        record["changed_at"] = _rfc3339(changed_at_ms)
    if turn.duration_ms is not None:
        record["duration_ms"] = turn.duration_ms
    optional = (
        ("hostname", turn.hostname or hostname),
        ("datacenter", turn.datacenter),
        ("instance", turn.instance),
        ("reason", turn.reason),
        ("gpu_uuids", gpu_uuids),
        ("drops", dict(turn.drops)),
        ("trace", turn.trace),
        ("removed", turn.removed),
    )
    record.update((name, value) for name, value in optional if value)
    return _encode(record)


def _rfc3339(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_to_the_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=128)
def _to_the_second(seconds: int) -> str:
    # All nodes of a fleet are scraped within the same few seconds.
    return rfc3339(from_milliseconds(seconds * 1000)).partition(".")[0]
