"""A node's page, written as the exporter writes it.

All that seldom changes (names, help, labels) is kept as one `%` template for each block; a page is then the values put
into the templates, the blocks in an order drawn anew.
"""

import random
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final

from emulator import entities, labels
from emulator.attribution import NOBODY, Attribution, Tenant, passing_pod, shares, tenants
from emulator.chance import stream
from emulator.families import FAMILIES, NVLINK_BANDWIDTH, USED_BY_PODS, XID_COUNT, XID_ERRORS, Family, values
from emulator.faults import FaultKind
from emulator.gpu import Gpu, Slot
from emulator.node import Node

CONVERSION_ERROR: Final = "ERROR - FAILED TO CONVERT TO STRING"
# Each has four: blank, not found, not supported, not permissioned (dcgm_structs.h).
_INT32_BLANK: Final = 2147483632
_INT64_BLANK: Final = 9223372036854775792
_DOUBLE_BLANK: Final = 140737488355328
_ABSURD: Final = {
    "DCGM_FI_DEV_GPU_UTIL": 808334905,
    "DCGM_FI_DEV_MEM_COPY_UTIL": 127622,
    "DCGM_FI_DEV_ENC_UTIL": 2619,
    "DCGM_FI_DEV_GPU_TEMP": 65535,
    "DCGM_FI_DEV_MEMORY_TEMP": 4294967295,
}
_GARBAGE: Final = (
    'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-',
    'DCGM_FI_DEV_POWER_USAGE{gpu="0"} twelve',
    "DCGM_FI_DEV_GPU_UTIL{gpu=0,UUID=GPU-0} 17",
    "<<<<<<< \x01\x02 no metric at all",
    'DCGM_FI_DEV_FB_USED{gpu="0"}',
)
_BUSY_PERCENT: Final = 99

_Values = tuple[float | str, ...]
_Row = tuple[Gpu, Slot, Tenant]


class PageWriter:
    """Writes the pages of one node."""

    def __init__(self, node: Node, *, seed: int) -> None:
        self._node = node
        self._exporter = exporter = node.exporter
        self._order = stream(seed, node.node_id, "order")
        split = node.gpus[0].split
        self._columns = [
            (number, family, name)
            for number, family in enumerate(FAMILIES)
            if (family.on_mig or not split)
            and (not family.group or family.group in exporter.optional_groups)
            and (name := exporter.dialect.name_of(family.name)) is not None
        ]
        counts_xids = exporter.dialect.name_of(XID_COUNT.name) is not None
        self._counts_xids = XID_COUNT.group in exporter.optional_groups and counts_xids
        self._built_for = -1
        self._scrapes = 0
        self._rows: list[_Row] = []
        # The number of the family, whether pods have values of their own in it, and its template.
        self._templates: list[tuple[int, bool, str]] = []
        # Of the families that pods have values of their own in: each row, and its share of the GPU's value.
        self._pod_rows: list[tuple[_Row, float]] = []
        self._link_template = ""
        self._linked: list[Gpu] = []
        # The blocks of the last collection, where later scrapes may find them again.
        self._kept: list[str] | None = None
        self._frozen = False
        self._next_collection = 0.0

    def page(self, now: float) -> bytes:
        """The page at a time to which the node has been advanced."""
        blocks = self._blocks(now)
        self._order.shuffle(blocks)
        garbage = self._node.node_fault(FaultKind.GARBAGE_LINE)
        if garbage:
            _spoil(blocks, int(garbage.parameters["lines"]), self._order)
        return "".join(blocks).encode()

    def _blocks(self, now: float) -> list[str]:
        """The blocks of the page: until the next collection those of the last one, and while it is frozen for good."""
        frozen = self._node.node_fault(FaultKind.FROZEN) is not None
        repeats = self._frozen if frozen else now < self._next_collection
        self._frozen = frozen
        if self._kept is not None and repeats:
            return list(self._kept)
        blocks = self._written(now)
        interval = self._exporter.collection_seconds
        self._next_collection = (now // interval + 1) * interval if interval else now
        self._kept = list(blocks) if frozen or interval else None
        return blocks

    def _written(self, now: float) -> list[str]:
        self._scrapes += 1
        churns = any(FaultKind.LABEL_CHURN in gpu.faults for gpu in self._node.gpus)
        if churns or self._built_for != self._node.layout_version:
            self._build()
        blocks = entities.blocks(self._exporter, now)
        if not self._rows:
            return blocks
        columns = list(zip(*(self._row_values(gpu, slot, now) for gpu, slot, _ in self._rows), strict=True))
        blocks += [
            template % (self._used_by_pods(columns[number]) if by_pod else columns[number])
            for number, by_pod, template in self._templates
        ]
        if self._linked:
            blocks.append(self._link_template % self._link_values(now))
        if self._counts_xids:
            blocks.append(self._xid_counts(now))
        return blocks

    def _row_values(self, gpu: Gpu, slot: Slot, now: float) -> _Values:
        if not gpu.faults:
            return values(gpu, slot, now, None, licensed=self._licensed)
        memory_full = gpu.faults.get(FaultKind.MEMORY_FULL)
        percent = memory_full.parameters["percent"] if memory_full else None
        row: _Values = values(gpu, slot, now, percent, licensed=self._licensed)
        for kind, falsify in _FALSIFY.items():
            if kind in gpu.faults:
                row = tuple(
                    falsify(family, number, value)
                    for number, (family, value) in enumerate(zip(FAMILIES, row, strict=True))
                )
        return row

    def _used_by_pods(self, column: _Values) -> _Values:
        """A column's values for the GPU and then each of its pods, given them for each row of the usual families."""
        of_slot = {id(slot): value for (_, slot, _), value in zip(self._rows, column, strict=True)}
        values: list[float | str] = []
        for (_, slot, _), share in self._pod_rows:
            value = of_slot[id(slot)]
            values.append(value if isinstance(value, str) or share == 1 else int(value * share))
        return tuple(values)

    def _link_values(self, now: float) -> tuple[int, ...]:
        return tuple(
            gpu.nvlink_mib(now) // gpu.model.nvlinks for gpu in self._linked for _ in range(self._links_of(gpu))
        )

    def _links_of(self, gpu: Gpu) -> int:
        return min(self._exporter.nvlink_rows, gpu.model.nvlinks) if self._exporter.dialect.other_entities else 0

    @property
    def _licensed(self) -> bool:
        return self._exporter.attribution is Attribution.VGPU

    def _build(self) -> None:
        """Write the templates for what the node is now."""
        node, exporter = self._node, self._exporter
        self._built_for = node.layout_version
        present = [gpu for gpu in node.gpus if not gpu.lost]
        rows = [(gpu, slot, tenant) for gpu in present for slot in gpu.slots for tenant in self._tenants(gpu, slot)]
        self._rows = [row for row in rows for _ in range(_copies(row))]
        usual = [labels.gpu_row(exporter, *row) for row in self._rows]
        of_xids = [labels.gpu_row(exporter, *row, xid_row=True) for row in self._rows]
        self._pod_rows = [(row, share) for row, share in _told_by_pod(rows) for _ in range(_copies(row))]
        of_pods = [labels.gpu_row(exporter, *row) for row, _ in self._pod_rows]
        self._templates = []
        for number, family, name in self._columns:
            by_pod = exporter.attribution.shared and exporter.dialect.use_by_pod and family.name in USED_BY_PODS
            if by_pod:
                template = self._template(family, name, [row for row, _ in self._pod_rows], of_pods)
            else:
                template = self._template(family, name, self._rows, of_xids if family.name == XID_ERRORS else usual)
            self._templates.append((number, by_pod, template))
        self._linked = [gpu for gpu in present if self._links_of(gpu)]
        links = [
            labels.link_row(exporter, gpu, link, self._links_of(gpu))
            for gpu in self._linked
            for link in range(self._links_of(gpu))
        ]
        bandwidth = next(family for family in FAMILIES if family.name == NVLINK_BANDWIDTH)
        lines = [f"{NVLINK_BANDWIDTH}{{{_literal(text)}}} %d\n" for text in links]
        self._link_template = _literal(_header(bandwidth, NVLINK_BANDWIDTH)) + "".join(lines)

    def _tenants(self, gpu: Gpu, slot: Slot) -> tuple[Tenant, ...]:
        if FaultKind.LABEL_CHURN in gpu.faults:
            return (passing_pod(self._scrapes),)
        exporter = self._exporter
        if slot.job is None and exporter.attribution.shared and not exporter.dialect.use_by_pod:
            return ()
        return tenants(slot, exporter.attribution)

    def _template(self, family: Family, name: str, rows: list[_Row], label_texts: list[str]) -> str:
        decimals = self._exporter.dialect.decimals
        lines = [
            f"{name}{{{_literal(text)}}} {_placeholder(family, gpu, decimals)}\n"
            for (gpu, _, _), text in zip(rows, label_texts, strict=True)
        ]
        return _literal(_header(family, name)) + "".join(lines)

    def _xid_counts(self, now: float) -> str:
        lines = [_header(XID_COUNT, XID_COUNT.name)]
        for gpu, slot, tenant in self._rows:
            counts: dict[int, int] = gpu.xid.counts(now)
            for code, count in counts.items():
                text = labels.xid_count_row(self._exporter, gpu, slot, tenant, code)
                lines.append(f"{XID_COUNT.name}{{{text}}} {count}\n")
            if not counts:
                text = labels.xid_count_row(self._exporter, gpu, slot, tenant, None)
                lines.append(f"{XID_COUNT.name}{{{text}}} 0\n")
        return "".join(lines)


def _copies(row: _Row) -> int:
    """How often a row stands on the page."""
    return 2 if FaultKind.DUPLICATE_ROWS in row[0].faults else 1


def _told_by_pod(rows: list[_Row]) -> Iterator[tuple[_Row, float]]:
    """These rows, before those of each GPU or instance that has pods one that names nobody; with their shares."""
    for (gpu, slot), group in groupby(rows, key=lambda row: (row[0], row[1])):
        pods = [row for row in group if row[2] is not NOBODY]
        yield (gpu, slot, NOBODY), 1.0
        yield from zip(pods, shares(len(pods)), strict=True)


def _header(family: Family, name: str) -> str:
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n"


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def _placeholder(family: Family, gpu: Gpu, decimals: int) -> str:
    if _is_profiling(family) and FaultKind.CONVERSION_ERROR in gpu.faults:
        return "%s"
    return f"%.{decimals}f" if family.real else "%d"


def _is_profiling(family: Family) -> bool:
    return family.name.startswith("DCGM_FI_PROF_")


def _sentinel(family: Family, number: int, _value: float | str) -> float | str:
    if family.real:
        return _DOUBLE_BLANK + number % 4
    wide = family.type == "counter" or family.name.startswith("DCGM_FI_PROF_PCIE")
    return (_INT64_BLANK if wide else _INT32_BLANK) + number % 4


def _absurd(family: Family, _number: int, value: float | str) -> float | str:
    return _ABSURD.get(family.name, value)


def _unconverted(family: Family, _number: int, value: float | str) -> float | str:
    return CONVERSION_ERROR if _is_profiling(family) else value


def _contradictory(family: Family, _number: int, value: float | str) -> float | str:
    if family.name == "DCGM_FI_DEV_GPU_UTIL":
        return _BUSY_PERCENT
    return 0 if _is_profiling(family) else value


_FALSIFY: Final[dict[FaultKind, Callable[[Family, int, float | str], float | str]]] = {
    FaultKind.CONTRADICTION: _contradictory,
    FaultKind.OUT_OF_RANGE: _absurd,
    FaultKind.SENTINELS: _sentinel,
    FaultKind.CONVERSION_ERROR: _unconverted,
}


def _spoil(blocks: list[str], lines: int, source: random.Random) -> None:
    """Put malformed lines between the lines of blocks."""
    for _ in range(lines if blocks else 0):
        number = source.randrange(len(blocks))
        block = blocks[number].splitlines(keepends=True)
        block.insert(source.randrange(len(block) + 1), source.choice(_GARBAGE) + "\n")
        blocks[number] = "".join(block)
