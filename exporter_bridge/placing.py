"""Which sample of a page belongs to which GPU's record, and as what: found once for each shape of a node's page."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec
from xxhash import xxh3_128_digest

from exporter_bridge.blocks import Steps
from exporter_bridge.judging import Measure, measure_of
from exporter_bridge.layouts import BadValue, BlockLayout, LabelSet
from exporter_bridge.plans import Cell, Labels, Plan, RecordPlan
from exporter_bridge.rows import Row, row_of
from gpu_telemetry.fields import FIELD_BY_NAME, FIELDS
from gpu_telemetry.records import Workload

_SAMPLES_A_STEP: Final = 400
_RECORDS_A_STEP: Final = 10
_RANK: Final = {name.name: rank for rank, name in enumerate(FIELDS)}

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


class PlannedPage(NamedTuple):
    """A plan, and what is the node's own: whose the records are, which GPUs were seen, what no record holds.

    `unconvertible` says by what name, and in which record, a sample stands whose value is no number.
    """

    plan: Plan
    owners: list[Owner]
    gpu_uuids: list[str]
    not_recorded: dict[str, int]
    unconvertible: dict[tuple[str, LabelSet], tuple[int, str]]


# One plan for all nodes that have the same; as large as what is in use.
_plans: Final[WeakValueDictionary[bytes, Plan]] = WeakValueDictionary()


def plan_page(layouts: Sequence[BlockLayout], bad_values: Sequence[BadValue]) -> Steps[PlannedPage]:
    """How the samples of these blocks, in the page's order, fall into records; a step takes about 2 ms.

    `bad_values` are the page's samples whose value is no number; their text does not matter.
    """
    page = _Placement()
    for layout in layouts:
        yield from page.place(layout)
    page.place_links()
    for number, (name, labels, _) in enumerate(bad_values):
        if number % _SAMPLES_A_STEP == _SAMPLES_A_STEP - 1:
            yield
        page.refuse(name, labels)
    owners = page.owners
    keys = sorted(owners, key=lambda key: (owners[key].gpu_index, key[0], len(key[1] or ""), key[1] or ""))
    records = []
    unconvertible: dict[tuple[str, LabelSet], tuple[int, str]] = {}
    for number, key in enumerate(keys):
        if number % _RECORDS_A_STEP == 0:
            yield
        refused = page.refused.get(key, ())
        cells = _cells(page.placed[key], {bad.measure.dcgm for bad in refused if bad.is_the_gpus_own})
        records.append(cells)
        if refused:
            told = {cell.measure.name for cell in cells}
            unconvertible.update(((bad.name, bad.labels), (number, bad.name_beside(told))) for bad in refused)
    plan = yield from _shared_plan(layouts, page.size, records)
    return PlannedPage(
        plan,
        [owners[key] for key in keys],
        sorted(page.uuids, key=lambda uuid: (page.uuids[uuid], uuid)),
        page.not_recorded,
        unconvertible,
    )


class _Placed(NamedTuple):
    position: int
    row: Row
    measure: Measure


class _Refused(NamedTuple):
    """A sample of a GPU or MIG instance whose value is no number."""

    name: str
    labels: LabelSet
    row: Row
    measure: Measure

    @property
    def is_the_gpus_own(self) -> bool:
        """Whether it would have told a value of the GPU itself, where others may tell a workload's share of it."""
        return not self.row.own and self.row.workload is None

    def name_beside(self, told: Collection[str]) -> str:
        """What it goes by in a record with values of these names: where another row tells the field, by DCGM's."""
        return self.measure.dcgm if self.row.own or self.measure.name in told else self.measure.name


class _Placement:
    """A page's samples by the GPU or MIG instance that they belong to, and those that belong to none."""

    def __init__(self) -> None:
        self.size = 0
        self.owners: dict[Key, Owner] = {}
        self.placed: dict[Key, dict[str, list[_Placed]]] = {}
        self.refused: dict[Key, list[_Refused]] = {}
        self.uuids: dict[str, int] = {}
        self.not_recorded: dict[str, int] = {}
        self._rows: dict[LabelSet, Row | str] = {}
        self._links: list[_Placed] = []

    def place(self, layout: BlockLayout) -> Steps[None]:
        """Take in the samples of a block, but for those of NVLinks."""
        for name, label_set in zip(layout.names, layout.label_sets, strict=True):
            position = self.size
            self.size += 1
            if position % _SAMPLES_A_STEP == _SAMPLES_A_STEP - 1:
                yield
            row = self._row(label_set)
            measure = measure_of(name, layout.family.type)
            if isinstance(row, str) or measure is None:
                self._leave(row if isinstance(row, str) else "unknown")
            elif row.link:
                self._links.append(_Placed(position, row, measure))
            else:
                self._owned(row).setdefault(measure.dcgm, []).append(_Placed(position, row, measure))

    def place_links(self) -> None:
        """Take in the rows of NVLinks, each with the GPU that the page turned out to have."""
        for link in self._links:
            self.uuids.setdefault(link.row.gpu_uuid, link.row.gpu_index)
            placed = self.placed.get((link.row.gpu_uuid, link.row.mig_instance))
            if placed is None:
                self._leave("nvlink")
            else:
                placed.setdefault(link.measure.dcgm, []).append(link)

    def refuse(self, name: str, label_set: LabelSet) -> None:
        """Take in a sample whose value is no number, if it is of a GPU or instance that has good ones."""
        row, measure = self._row(label_set), measure_of(name, "untyped")
        if not isinstance(row, str) and measure is not None and (row.gpu_uuid, row.mig_instance) in self.placed:
            refused = self.refused.setdefault((row.gpu_uuid, row.mig_instance), [])
            refused.append(_Refused(name, label_set, row, measure))

    def _row(self, label_set: LabelSet) -> Row | str:
        row = self._rows.get(label_set)
        if row is None:
            row = self._rows[label_set] = row_of(label_set.labels)
        return row

    def _owned(self, row: Row) -> dict[str, list[_Placed]]:
        key = row.gpu_uuid, row.mig_instance
        if key not in self.owners:
            self.uuids.setdefault(row.gpu_uuid, row.gpu_index)
            self.owners[key] = Owner(*key, row.gpu_index)
            self.placed[key] = {}
        self.owners[key].take(row)
        return self.placed[key]

    def _leave(self, entity: str) -> None:
        self.not_recorded[entity] = self.not_recorded.get(entity, 0) + 1


def _cells(placed: Mapping[str, Sequence[_Placed]], refused: Collection[str]) -> list[Cell]:
    """The cells of one record: values of the field table in its order, then all others by name.

    `refused` are the DCGM names of which a row of the GPU itself is no number.
    """
    ours: dict[str, dict[str, _Placed]] = {}
    others: dict[str, dict[Labels | None, _Placed]] = {}
    for dcgm, rows in placed.items():
        known = rows[0].measure.field
        if len(rows) == 1 and not rows[0].row.own and known is not None and dcgm not in refused:
            ours.setdefault(known.name, {})[dcgm] = rows[0]
            continue
        plain = [place for place in rows if not place.row.own]
        labelled = _labelled(rows, plain)
        whole = _of_the_whole(plain, refused=dcgm in refused)
        if whole is not None:
            known = whole.measure.field
            if known is not None:
                ours.setdefault(known.name, {})[dcgm] = whole
            elif not _told_apart(plain):
                labelled[None] = whole
        if labelled:
            others[dcgm] = labelled
    cells = []
    for name in sorted(ours, key=_RANK.__getitem__):
        # Of two names of one field the current one counts; the other stays under its own name.
        current, *older = ours[name]
        if older:
            current, *older = sorted(ours[name], key=FIELD_BY_NAME[name].dcgm.index)
        cells.append(Cell(ours[name][current].position, ours[name][current].measure, None))
        for dcgm in older:
            others.setdefault(dcgm, {})[None] = ours[name][dcgm]
    return [*cells, *_other_cells(others)]


def _of_the_whole(plain: Sequence[_Placed], *, refused: bool) -> _Placed | None:
    """Which of several plain rows of one field tells the GPU's value: the one that names no workload.

    Where each names one they are the same value, once for each workload; unless the one without was `refused`, for then
    they may be what each workload has of it.
    """
    own = next((place for place in plain if place.row.workload is None), None)
    return own if own is not None or refused or not plain else plain[0]


def _other_cells(others: Mapping[str, Mapping[Labels | None, _Placed]]) -> Iterator[Cell]:
    for dcgm in sorted(others):
        alone = len(others[dcgm]) == 1
        for labels, place in others[dcgm].items():
            measure = Measure(dcgm, None, place.measure.counter)
            yield Cell(place.position, measure, () if labels is None and not alone else labels)


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


def _shared_plan(layouts: Sequence[BlockLayout], size: int, records: Sequence[Sequence[Cell]]) -> Steps[Plan]:
    names = [layout.family.name for layout in layouts]
    cells = [
        [
            (position, measure.dcgm, measure.field is None, measure.counter, labels)
            for position, measure, labels in record
        ]
        for record in records
    ]
    digest = xxh3_128_digest(msgspec.msgpack.encode((names, size, cells)))
    plan = _plans.get(digest)
    if plan is None:
        record_plans = []
        for number, record in enumerate(records):
            if number % _RECORDS_A_STEP == 0:
                yield
            record_plans.append(RecordPlan(record))
        plan = _plans[digest] = Plan(size, record_plans)
    return plan
