"""Every node's last good page as one Prometheus page: names as they came, the node's labels added, in small slices.

A sample's own labels stay. Where the page has a label that the node brings too (`instance`, `node_id`, its target's
`datacenter` and further labels), the page's becomes `exported_NAME`, as when Prometheus scrapes the exporter itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from exporter_bridge.layouts import BlockLayout, Family, LabelSet, Page
from exporter_bridge.targets import Target

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Text is handed over in pieces of about this many characters, a few milliseconds' work each.
_SLICE_CHARACTERS: Final = 128 * 1024
# Pages whose numbers are taken apart in one slice.
_SLICE_PAGES: Final = 10
_UP: Final = Family("gpu_exporter_up", "gauge", "Whether the exporter's last scrape succeeded and is recent.")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Exposed(NamedTuple):
    """One node to show: its target, and its last page if that is good and fresh."""

    target: Target
    page: Page | None


@dataclass(slots=True)
class Conflicts:
    """Families whose TYPE or HELP differs between nodes, found while a page is written."""

    families: frozenset[str] = frozenset()


class _Part(NamedTuple):
    """One node's block of a family: `labels` gives each sample's labels in full."""

    layout: BlockLayout
    tokens: str
    labels: Mapping[LabelSet, str]


class _FamilyParts(NamedTuple):
    family: Family
    parts: list[_Part]


def exporters_up(nodes: Sequence[Exposed]) -> Iterator[str]:
    """`gpu_exporter_up` of every node, in slices."""
    lines = [_heading(_UP)]
    for index, node in enumerate(nodes, start=1):
        lines.append(f"{_UP.name}{{{_written(_labels_of(node.target))}}} {int(node.page is not None)}\n")
        if index % 500 == 0:
            yield "".join(lines)
            lines = []
    yield "".join(lines)


def fleet_page(nodes: Sequence[Exposed], conflicts: Conflicts) -> Iterator[str]:
    """The pages of the nodes as one, each family once, in slices; an empty slice is work without text yet.

    Where nodes differ in a family's HELP or TYPE the first node's stands, and `conflicts` names it.
    """
    families: dict[str, _FamilyParts] = {}
    conflicting: set[str] = set()
    for index, node in enumerate(nodes, start=1):
        if node.page is not None:
            _collect(node.target, node.page, families, conflicting)
        if index % _SLICE_PAGES == 0:
            yield ""
    conflicts.families = frozenset(conflicting)
    # Each family's parts are let go once written.
    for name in list(families):
        yield from _family_text(families.pop(name))
    yield from exporters_up(nodes)


def _collect(target: Target, page: Page, families: dict[str, _FamilyParts], conflicting: set[str]) -> None:
    labels = _LabelsInFull(target)
    tokens = page.tokens
    start = 0
    for layout in page.layouts:
        end = start + len(layout)
        family = layout.family
        known = families.get(family.name)
        if known is None:
            known = families[family.name] = _FamilyParts(family, [])
        elif known.family is not family and known.family != family:
            conflicting.add(family.name)
        if end > start:
            # One text a block, since a list of short texts would take five times the memory.
            known.parts.append(_Part(layout, b"\n".join(tokens[start:end]).decode(), labels))
        start = end


def _family_text(family_parts: _FamilyParts) -> Iterator[str]:
    if family_parts.family.name == _UP.name:
        return  # ours stands for it
    pieces = [_heading(family_parts.family)]
    size = 0
    for layout, tokens, labels in family_parts.parts:
        text = "".join(
            [
                f"{name}{{{labels[label_set]}}} {token}\n"
                for name, label_set, token in zip(layout.names, layout.label_sets, tokens.split("\n"), strict=True)
            ]
        )
        pieces.append(text)
        size += len(text)
        if size >= _SLICE_CHARACTERS:
            yield "".join(pieces)
            pieces, size = [], 0
    yield "".join(pieces)


def _heading(family: Family) -> str:
    text = f"# HELP {family.name} {family.help}\n" if family.help else ""
    return f"{text}# TYPE {family.name} {family.type}\n"


class _LabelsInFull(dict[LabelSet, str]):
    """The text of a node's label sets with the node's own labels added."""

    __slots__ = ("_names", "_node_labels")

    def __init__(self, target: Target) -> None:
        labels = _labels_of(target)
        self._names = [name for name, _ in labels]
        self._node_labels = _written(labels)

    def __missing__(self, label_set: LabelSet) -> str:
        text = label_set.text.strip(" \t").removesuffix(",")
        for name in self._names:
            # A value may hold the word too, so the cheap search only says where to look closely.
            if name in text:
                labels = label_set.labels
                renamed = {label: self._renamed(label, labels) for label in labels}
                text = _written((renamed[label], value) for label, value in labels.items())
                break
        full = self[label_set] = f"{text},{self._node_labels}" if text else self._node_labels
        return full

    def _renamed(self, name: str, labels: Mapping[str, str]) -> str:
        renamed = name
        while renamed in self._names or (renamed != name and renamed in labels):
            renamed = f"exported_{renamed}"
        return renamed


def _labels_of(target: Target) -> list[tuple[str, str]]:
    """What a node adds to each of its samples."""
    datacenter = [] if target.datacenter is None else [("datacenter", target.datacenter)]
    return [("node_id", target.node_id), ("instance", target.instance), *datacenter, *target.labels]


def _written(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f"{name}={_quoted(value)}" for name, value in labels)


def _quoted(value: str) -> str:
    return f'"{value.translate(_ESCAPES)}"'
