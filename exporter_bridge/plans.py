"""How the samples of a page fall into GPU records: found once for a shape of page, then used at every scrape.

A `Plan` knows places, not names of GPUs, so nodes of one kind share it; what is a node's own stands in its `Owner`s.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import gt, itemgetter
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec
from xxhash import xxh3_128_digest

from exporter_bridge.judging import Measure, measure_of
from exporter_bridge.layouts import BlockLayout, LabelSet
from exporter_bridge.rows import Row, row_of
from gpu_telemetry.fields import FIELD_BY_NAME, FIELDS, SENTINELS
from gpu_telemetry.records import Workload

_LEAST_SENTINEL: Final = min(SENTINELS)
MOST_MEMORY_MIB: Final = FIELD_BY_NAME["memory_total_mib"].high
_RANK: Final = {name.name: rank for rank, name in enumerate(FIELDS)}

Labels = tuple[tuple[str, str], ...]
Pick = Callable[[Sequence[Any]], tuple[Any, ...]]
Key = tuple[str, str | None]  # a GPU's UUID and the MIG instance's id


@dataclass(slots=True)
class Owner:
    """The GPU or MIG instance that a record is about, as all its rows together describe it."""

    gpu_uuid: str
    mig_instance: str | None
    gpu_index: int
    mig_profile: str | None = None
    model: str | None = None
    pci_bus_id: str | None = None
    driver_version: str | None = None
    hostname: str | None = None
    workloads: list[Workload] = field(default_factory=list)

    def take(self, row: Row) -> None:
        """Take in what a row says of it."""
        self.mig_profile = self.mig_profile or row.mig_profile
        self.model = self.model or row.model
        self.pci_bus_id = self.pci_bus_id or row.pci_bus_id
        self.driver_version = self.driver_version or row.driver_version
        self.hostname = self.hostname or row.hostname
        if row.workload is not None and row.workload not in self.workloads:
            self.workloads.append(row.workload)


class Cell(NamedTuple):
    """A value of a record and its position among the page's values, in the plan's order.

    `labels` is None for a plain value; else the value is one of its field's list of labelled values.
    """

    position: int
    measure: Measure
    labels: Labels | None


class RecordPlan:
    """One record: its cells, and how its JSON is written when all of them are good.

    The JSON is `parts` with a value's text in every second place: those that `pick` gives, then the values of `scaled`
    (position, divisor), then memory_used_percent if there is `used`, then memory_total_mib if it must be `summed`.
    """

    __slots__ = ("cells", "free", "parts", "pick", "scaled", "summed", "used")

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        ours = {cell.measure.field.name: cell for cell in cells if cell.measure.field is not None}
        direct = [cell for cell in ours.values() if FIELD_BY_NAME[cell.measure.name].multiply_by == 1]
        scaled = [cell for cell in ours.values() if FIELD_BY_NAME[cell.measure.name].multiply_by != 1]
        others = [cell for cell in cells if cell.measure.field is None]
        self.pick = picker([cell.position for cell in (*direct, *others)])
        self.scaled = tuple((cell.position, cell.measure.divisor) for cell in scaled)
        used, free = ours.get("memory_used_mib"), ours.get("memory_free_mib")
        self.used = self.free = None
        self.summed: tuple[int, ...] = ()
        derived = [cell.measure.name for cell in scaled]
        if used is not None and free is not None:
            self.used, self.free = used.position, free.position
            derived.append("memory_used_percent")
            if "memory_total_mib" not in ours:
                reserved = ours.get("memory_reserved_mib")
                self.summed = tuple(cell.position for cell in (used, free, reserved) if cell is not None)
                derived.append("memory_total_mib")
        self.parts = _parts([cell.measure.name for cell in direct], others, derived)


class Plan:
    """The records of a page, and what can be checked of all its values at once.

    `columns` says where each family's block comes in the plan's order; it is empty if a family has several blocks.
    """

    __slots__ = (
        "__weakref__",
        "_highest",
        "_integers",
        "_pick_integers",
        "_pick_wide",
        "_record_of",
        "_wide",
        "columns",
        "records",
    )

    def __init__(self, columns: Mapping[str, int], size: int, records: Sequence[Sequence[Cell]]) -> None:
        self.columns = columns
        self.records = tuple(RecordPlan(cells) for cells in records)
        self._highest = [float("inf")] * size
        self._record_of = [-1] * size
        for record, cells in enumerate(records):
            for position, measure, _ in cells:
                self._highest[position] = measure.surely_good_up_to
                self._record_of[position] = record
        everything = [cell for cells in records for cell in cells]
        self._integers = [cell.position for cell in everything if cell.measure.integer]
        self._wide = [cell.position for cell in everything if cell.measure.surely_good_up_to >= _LEAST_SENTINEL]
        self._pick_integers = picker(self._integers)
        self._pick_wide = picker(self._wide)

    def suspects(self, tokens: Sequence[bytes], values: Sequence[float], text: bytes) -> set[int]:
        """The records that may hold a value not to be believed, given a plain page in the plan's order.

        `text` is all tokens together. Every other record can be written as its parts say.
        """
        if (
            b"-" not in text
            and not any(map(gt, values, self._highest))
            and SENTINELS.isdisjoint(self._pick_wide(values))
            and (not self._integers or b"".join(self._pick_integers(tokens)).isdigit())
        ):
            return set()
        outside = [
            record
            for record, value, highest in zip(self._record_of, values, self._highest, strict=True)
            if not 0 <= value <= highest
        ]
        blank = [self._record_of[position] for position in self._wide if values[position] in SENTINELS]
        broken = [self._record_of[position] for position in self._integers if not tokens[position].isdigit()]
        return {*outside, *blank, *broken} - {-1}


class PlannedPage(NamedTuple):
    """A plan, and what is the node's own: whose the records are, which GPUs were seen, what no record holds.

    `columns` is the plan's order by block, where the plan itself cannot tell.
    """

    plan: Plan
    owners: list[Owner]
    gpu_uuids: list[str]
    not_recorded: dict[str, int]
    columns: dict[BlockLayout, int] | None


# One plan for all nodes that have the same; as large as what is in use.
_plans: Final[WeakValueDictionary[bytes, Plan]] = WeakValueDictionary()


def plan_page(layouts: Iterable[BlockLayout]) -> PlannedPage:
    """How the samples of these blocks fall into records, whatever the blocks' order."""
    ordered = sorted(layouts, key=lambda layout: (layout.family.name, [labels.text for labels in layout.label_sets]))
    rows: dict[LabelSet, Row | str] = {}
    owners: dict[Key, Owner] = {}
    placed: dict[Key, dict[str, list[_Placed]]] = {}
    links: list[_Placed] = []
    uuids: dict[str, int] = {}
    not_recorded: dict[str, int] = {}
    position = -1
    for layout in ordered:
        for name, label_set in zip(layout.names, layout.label_sets, strict=True):
            position += 1
            row = rows.get(label_set)
            if row is None:
                row = rows[label_set] = row_of(label_set.labels)
            measure = measure_of(name, layout.family.type)
            if isinstance(row, str) or measure is None:
                entity = row if isinstance(row, str) else "unknown"
                not_recorded[entity] = not_recorded.get(entity, 0) + 1
                continue
            uuids.setdefault(row.gpu_uuid, row.gpu_index)
            if row.link:
                links.append(_Placed(position, row, measure))
                continue
            key = row.gpu_uuid, row.mig_instance
            if key not in owners:
                owners[key] = Owner(*key, row.gpu_index)
                placed[key] = {}
            owners[key].take(row)
            placed[key].setdefault(measure.dcgm, []).append(_Placed(position, row, measure))
    for link in links:
        key = link.row.gpu_uuid, link.row.mig_instance
        if key in placed:
            placed[key].setdefault(link.measure.dcgm, []).append(link)
        else:
            not_recorded["nvlink"] = not_recorded.get("nvlink", 0) + 1
    keys = sorted(owners, key=lambda key: (owners[key].gpu_index, key[0], len(key[1] or ""), key[1] or ""))
    records = [_cells(placed[key]) for key in keys]
    plan = _shared_plan(ordered, position + 1, records)
    return PlannedPage(
        plan,
        [owners[key] for key in keys],
        sorted(uuids, key=lambda uuid: (uuids[uuid], uuid)),
        not_recorded,
        {layout: column for column, layout in enumerate(ordered)} if not plan.columns else None,
    )


class _Placed(NamedTuple):
    position: int
    row: Row
    measure: Measure


def _cells(placed: Mapping[str, Sequence[_Placed]]) -> list[Cell]:
    """The cells of one record: values of the field table in its order, then all others by name."""
    ours: dict[str, dict[str, _Placed]] = {}
    others: dict[str, dict[Labels | None, _Placed]] = {}
    for dcgm, rows in placed.items():
        plain = [place for place in rows if not place.row.own]
        labelled = _labelled(rows, plain)
        if plain:
            # Several plain rows of one field are the same value, once for each workload.
            known = plain[0].measure.field
            if known is not None:
                ours.setdefault(known.name, {})[dcgm] = plain[0]
            elif not _told_apart(plain):
                labelled[None] = plain[0]
        if labelled:
            others[dcgm] = labelled
    cells = []
    for name in sorted(ours, key=_RANK.__getitem__):
        # Of two names of one field the current one counts; the other stays under its own name.
        current, *older = sorted(ours[name], key=FIELD_BY_NAME[name].dcgm.index)
        cells.append(Cell(ours[name][current].position, ours[name][current].measure, None))
        for dcgm in older:
            others.setdefault(dcgm, {})[None] = ours[name][dcgm]
    for dcgm in sorted(others):
        alone = len(others[dcgm]) == 1
        for labels, place in others[dcgm].items():
            measure = Measure(dcgm, None, place.measure.counter)
            cells.append(Cell(place.position, measure, () if labels is None and not alone else labels))
    return cells


def _labelled(rows: Sequence[_Placed], plain: Sequence[_Placed]) -> dict[Labels | None, _Placed]:
    """The rows of one field that have labels of their own, by those."""
    labelled: dict[Labels | None, _Placed] = {}
    for place in rows:
        if place.row.own:
            labelled.setdefault(place.row.own, place)
    if _told_apart(plain):
        for place in plain:
            labelled.setdefault(place.row.others, place)
    return labelled


def _told_apart(rows: Sequence[_Placed]) -> bool:
    """Whether labels that nobody told us of make these rows different things, and not workloads of one thing."""
    labels_of: dict[Workload | None, Labels] = {}
    return any(labels_of.setdefault(place.row.workload, place.row.others) != place.row.others for place in rows)


def _shared_plan(layouts: Sequence[BlockLayout], size: int, records: Sequence[Sequence[Cell]]) -> Plan:
    names = [layout.family.name for layout in layouts]
    columns = {name: column for column, name in enumerate(names)} if len(set(names)) == len(names) else {}
    cells = [
        [
            (position, measure.dcgm, measure.field is None, measure.counter, labels)
            for position, measure, labels in record
        ]
        for record in records
    ]
    digest = xxh3_128_digest(repr((names, size, cells)).encode())
    plan = _plans.get(digest)
    if plan is None:
        plan = _plans[digest] = Plan(columns, size, records)
    return plan


def picker(positions: Sequence[int]) -> Pick:
    """What takes the elements at these positions out of a sequence, as a tuple."""
    if len(positions) > 1:
        return itemgetter(*positions)
    if not positions:
        return lambda _: ()
    position = positions[0]
    return lambda sequence: (sequence[position],)


def _parts(direct: Sequence[str], others: Sequence[Cell], derived: Sequence[str]) -> list[bytes]:
    """A record's JSON after its identity, with a gap for each value at the odd places."""
    parts = [b""]

    def gap(before: bytes) -> None:
        parts[-1] += before
        parts.extend((b"", b""))

    for name in direct:
        gap(b",%b:" % _json(name))
    opening = b',"fields":{'
    for number, (_, measure, labels) in enumerate(others):
        same_field = number > 0 and others[number - 1].measure.dcgm == measure.dcgm
        if labels is None:
            gap(b"%b%b:" % (opening, _json(measure.dcgm)))
        else:
            start = b"," if same_field else b"%b%b:[" % (opening, _json(measure.dcgm))
            gap(b'%b{"labels":%b,"value":' % (start, _json(dict(labels))))
            last = number + 1 == len(others) or others[number + 1].measure.dcgm != measure.dcgm
            parts[-1] += b"}]" if last else b"}"
        opening = b","
    if others:
        parts[-1] += b"}"
    for name in derived:
        gap(b",%b:" % _json(name))
    parts[-1] += b"}"
    return parts


def _json(thing: str | dict[str, str]) -> bytes:
    return msgspec.json.encode(thing)
