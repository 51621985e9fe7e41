"""The shapes of the answers: the structs that are encoded, and whose JSON schemas are the OpenAPI document's.

Keys are stable: what was not measured or does not apply is null. Times are RFC 3339 in UTC with milliseconds and `Z`.
"""

import functools
import types
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from gpu_telemetry.clock import rfc3339
from gpu_telemetry.fields import FIELDS, Field, ValueType
from gpu_telemetry.records import LabelledValue, Rejected, Workload

NodeStatus = Literal["healthy", "warning", "critical", "down", "unknown"]
AlertStatus = Literal["active", "resolved"]
Severity = Literal["info", "warning", "critical"]
ActionStatus = Literal["pending", "running", "succeeded", "failed", "unknown", "skipped"]
_WRITTEN_TIME: Final = Meta(
    description="RFC 3339, UTC, milliseconds",
    pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
    extra_json_schema={"format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]},
)
Timestamp = Annotated[str, _WRITTEN_TIME]
AnyStruct = TypeVar("AnyStruct", bound=Struct)


class NodeSummary(Struct):
    """A node in the list of nodes."""

    node_id: str
    hostname: str | None
    status: Annotated[
        NodeStatus,
        Meta(
            description="down while its exporter is, else its highest active severity, else healthy; "
            "unknown when nothing was heard of it for 3 of its intervals"
        ),
    ]
    datacenter: str | None
    last_seen: Annotated[Timestamp | None, Meta(description="When its newest good scrape ended")]
    active_alerts: Annotated[int, Meta(description="Alerts of the node that are active now")]


class Gpu(Struct):
    """A GPU or a MIG instance at an index of a node."""

    gpu_uuid: str
    gpu_index: int
    mig_instance: str | None
    mig_profile: str | None
    model: str | None
    driver_version: str | None
    pci_bus_id: str | None
    memory_total_mib: int | None
    since: Annotated[Timestamp, Meta(description="When it was first seen at this index of this node")]
    last_collected_at: Annotated[
        Timestamp | None, Meta(description="When its newest stored row was scraped; it lags where the GPU is gone")
    ]


class Node(NodeSummary):
    """A node with what stands at each of its GPU indexes."""

    instance: Annotated[str | None, Meta(description="The exporter's address")]
    first_seen: Timestamp
    last_heard: Annotated[Timestamp, Meta(description="When its newest scrape of any outcome ended")]
    interval_ms: Annotated[int, Meta(description="Milliseconds between its scrapes")]
    removed_at: Annotated[Timestamp | None, Meta(description="When it left the configuration")]
    gpu_count: Annotated[
        int, Meta(description="Physical GPUs that stand in it, as in `gpus`; one with MIG instances counts once")
    ]
    gpus: Annotated[
        list[Gpu],
        Meta(
            description="At each index the GPU with the newest row there; one that is lost stays until another stands "
            "in its place or it is seen at another. A MIG instance is gone when its GPU had rows for 3 intervals "
            "without it"
        ),
    ]


class AlertSummary(Struct):
    """An alert in the list of active alerts."""

    id: int
    node_id: str
    gpu_index: Annotated[int | None, Meta(description="null when the alert is the node's")]
    alert_type: str
    severity: Annotated[Severity, Meta(description="The highest it has had; it never falls")]
    message: str
    threshold_value: Annotated[float | None, Meta(description="The lowest step of the rule's ladder")]
    actual_value: Annotated[float | None, Meta(description="The value at the last rise of the severity")]
    status: AlertStatus
    triggered_at: Annotated[Timestamp, Meta(description="Event time of the record that fired it")]


class Alert(AlertSummary):
    """An alert with all that its row says."""

    rule: str
    gpu_uuid: str | None
    mig_instance: str | None
    raised_at: Annotated[Timestamp | None, Meta(description="Event time of the last rise of the severity")]
    resolved_at: Timestamp | None
    resolved_reason: Annotated[str | None, Meta(description="cleared, manual, replaced, decommissioned, ...")]
    resolved_by: str | None


class Transition(Struct):
    """One step in an alert's life."""

    id: int
    transition: str
    severity: Severity
    message: str
    threshold_value: float | None
    actual_value: float | None
    reason: str | None
    actor: Annotated[str | None, Meta(description="Who asked for it, when it was made by hand")]
    details: dict[str, Any] | None
    at: Annotated[Timestamp, Meta(description="Event time")]


class Action(Struct):
    """What was decided for an alert, and what became of it."""

    id: int
    action_type: str
    transition: str
    status: ActionStatus
    action_details: dict[str, Any]
    attempts: int
    reason: Annotated[str | None, Meta(description="Why it was skipped, failed, or is of unknown outcome")]
    event_time: Timestamp
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None


class GpuSummary(Struct):
    """A GPU, where it stands or last stood."""

    gpu_uuid: str
    model: str | None
    driver_version: str | None
    pci_bus_id: str | None
    memory_total_mib: int | None
    first_seen: Timestamp
    node_id: str
    gpu_index: int
    datacenter: str | None
    since: Annotated[Timestamp, Meta(description="When it was first seen at this index of this node")]
    last_collected_at: Annotated[
        Timestamp | None, Meta(description="When its newest stored row was scraped; it lags where the GPU is gone")
    ]
    active_alerts: int


class GpuPlacement(Struct):
    """Where a GPU or one of its MIG instances stood: from `since` to `last_collected_at`."""

    node_id: str
    gpu_index: int
    mig_instance: str | None
    mig_profile: str | None
    since: Timestamp
    last_collected_at: Timestamp | None


class GpuError(Struct):
    """A counter of errors that rose between two scrapes, or an XID that is another one than before."""

    at: Annotated[Timestamp, Meta(description="When the new value was scraped")]
    field: Annotated[str, Meta(description="As in a metric row: xid_code, ecc_..., row_remap_..., retired_pages_...")]
    before: int
    value: int
    node_id: str
    gpu_index: int


class GpuDetail(GpuSummary):
    """A GPU's life: its places oldest first, its alerts and errors newest first."""

    placements: list[GpuPlacement]
    alerts: list[Alert]
    errors: Annotated[list[GpuError], Meta(description="Since `since`, one day unless it says otherwise")]


class NodeCounts(Struct):
    """Nodes by status."""

    total: int = 0
    healthy: int = 0
    warning: int = 0
    critical: int = 0
    down: int = 0
    unknown: int = 0


class AlertCounts(Struct):
    """Active alerts by severity."""

    total: int = 0
    info: int = 0
    warning: int = 0
    critical: int = 0


class GpuTotals(Struct):
    """Physical GPUs that stand in the nodes, and what those that report do."""

    total: Annotated[
        int,
        Meta(
            description="As the nodes' `gpu_count`: one that is lost counts until another stands in its place, one "
            "that moved where it is now"
        ),
    ] = 0
    reporting: Annotated[int, Meta(description="With a row younger than 3 intervals of their node")] = 0
    allocated: Annotated[int, Meta(description="Of those reporting: with a workload")] = 0
    active: Annotated[int, Meta(description="Of those reporting: busy at the newest scrape")] = 0
    power_watts: Annotated[float | None, Meta(description="Sum over those reporting")] = None
    temperature_max_celsius: Annotated[float | None, Meta(description="Hottest of those reporting")] = None


class DatacenterSummary(Struct):
    """One datacenter; null is that of nodes without one."""

    datacenter: str | None
    nodes: NodeCounts
    gpus: GpuTotals
    alerts: AlertCounts


class ModelSummary(Struct):
    """One model of GPU; null is that of GPUs that do not say."""

    model: str | None
    gpus: GpuTotals


class FleetSummary(Struct):
    """The fleet at a glance: the nodes in the configuration, their GPUs and alerts."""

    at: Timestamp
    nodes: NodeCounts
    gpus: GpuTotals
    alerts: AlertCounts
    by_datacenter: list[DatacenterSummary]
    by_model: list[ModelSummary]


class LedgerSums(Struct):
    """GPU records: announced + unannounced + estimated = stored + dropped + missing."""

    announced: Annotated[int, Meta(description="What the closing records announced")]
    unannounced: Annotated[int, Meta(description="Dropped with the closing record that would have announced them")]
    estimated: Annotated[
        int,
        Meta(description="For turns without a closing record that no drop explains: as many as the turn before had"),
    ]
    stored: int
    dropped: Annotated[int, Meta(description="By the bridge, as dead letters, beyond retention")]
    missing: Annotated[int, Meta(description="What nothing explains")]
    dropped_by_reason: dict[str, int]
    scrapes: Annotated[int, Meta(description="Closing records")]
    missing_scrapes: Annotated[int, Meta(description="Gaps in `seq` that no drop explains")]
    unaccounted_seconds: Annotated[
        float, Meta(description="Between the boots of a bridge, in the hour in which the later one is first heard")
    ]


class LedgerEntry(LedgerSums):
    """What became of one node's GPU records of one hour."""

    node_id: str
    hour: Annotated[Timestamp, Meta(description="When the hour begins, UTC")]


class LedgerTotals(LedgerSums):
    """What became of all GPU records of a range."""

    nodes: int
    first_hour: Annotated[Timestamp | None, Meta(description="null when the range has no records")]
    last_hour: Timestamp | None


class AlertDetail(Alert):
    """An alert with its transitions and actions, oldest first."""

    transitions: list[Transition]
    actions: list[Action]


class State(Struct):
    """How the API itself is."""

    status: Literal["ok", "ready"]


class ProblemDocument(Struct):
    """An RFC 9457 problem; `parameter`, `expected` and `got` stand where a part of the request was wrong."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    parameter: str | msgspec.UnsetType = msgspec.UNSET
    expected: str | msgspec.UnsetType = msgspec.UNSET
    got: str | msgspec.UnsetType = msgspec.UNSET


def _measured(field: Field) -> tuple[str, Any]:
    number = int if field.type is ValueType.INTEGER else float
    source = f"; DCGM: {', '.join(field.dcgm)}" if field.dcgm else "; derived"
    description = f"{field.help} [{field.unit}]{source}"
    return field.name, Annotated[number | None, Meta(description=description, extra_json_schema={"x-unit": field.unit})]


# One GPU's or MIG instance's values at one scrape; the measured ones follow the field table.
MetricRow: Final[type[Struct]] = msgspec.defstruct(
    "MetricRow",
    [
        ("node_id", str),
        ("gpu_index", int),
        ("gpu_uuid", str),
        ("mig_instance", str | None),
        ("mig_profile", str | None),
        ("model", str | None),
        ("collected_at", Annotated[Timestamp, Meta(description="When the bridge scraped it")]),
        *map(_measured, FIELDS),
        ("workloads", Annotated[list[Workload], Meta(description="Who used it; empty when nobody did")]),
        (
            "fields",
            Annotated[
                dict[str, float | list[LabelledValue]],
                Meta(description="Every other DCGM field by its own name; one with labels of its own as its rows"),
            ],
        ),
        (
            "rejected",
            Annotated[
                dict[str, Rejected], Meta(description="Values that were read and not believed: the text, and why")
            ],
        ),
    ],
    namespace={"__doc__": "One GPU or MIG instance at one scrape; a value that was not measured is null."},
    gc=False,  # it holds nothing that could hold it, and 10,000 of them are a lot to look through
)

MetricRows: Final = types.GenericAlias(list, (MetricRow,))

# What stands for null where the shape promises a list or an object.
_EMPTY: Final[dict[str, Any]] = {"workloads": [], "fields": {}, "rejected": {}}


class _Layout(NamedTuple):
    """How a row becomes a struct: which columns in order, and which of these are times or never null."""

    columns: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    times: tuple[int, ...]
    promised: tuple[tuple[int, Any], ...]


def shape(struct: type[AnyStruct], row: Mapping[str, Any], **rest: object) -> AnyStruct:
    """A row of a query as one of the structs; `rest` are its last fields, those that are no columns."""
    layout = _layout(struct, len(rest))
    values = list(layout.columns(row))
    for place in layout.times:
        if (moment := values[place]) is not None:
            values[place] = rfc3339(moment)
    for place, empty in layout.promised:
        if values[place] is None:
            values[place] = empty
    return struct(*values, **rest)


@functools.cache
def _layout(struct: type[Struct], rest: int) -> _Layout:
    # Looked up once: an answer of 10,000 rows has half a million values.
    names = struct.__struct_fields__[: len(struct.__struct_fields__) - rest]
    hints = get_type_hints(struct, include_extras=True)
    return _Layout(
        columns=itemgetter(*names),
        times=tuple(place for place, name in enumerate(names) if _is_time(hints[name])),
        promised=tuple((place, _EMPTY[name]) for place, name in enumerate(names) if name in _EMPTY),
    )


def _is_time(hint: object) -> bool:
    """Whether a field's type is Timestamp, described or optional as it may be."""
    return any(part is _WRITTEN_TIME or _is_time(part) for part in get_args(hint))
