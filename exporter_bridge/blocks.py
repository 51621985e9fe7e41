"""How a block of a page is laid out the first time it is seen: what its lines are, apart from their numbers."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Final, Protocol, TypeVar

from exporter_bridge import lines
from exporter_bridge.layouts import BlockLayout, Family, LabelSet

_BLANKS: Final = b" \t\r"
MOST_EXAMPLES: Final = 3  # of refused lines, kept for a page
_LINES_A_STEP: Final = 200  # about a millisecond of slow work


Entry = tuple[bytes, bytes]  # a line's kind and head
Result = TypeVar("Result")
Steps = Generator[None, None, Result]  # work that can be left for a while between its steps


class PatchyBlock:
    """A block of which some lines give no sample, or that holds several families.

    `kept` are the positions, among the lines that are no comments, of those that give a sample: in the order of the
    label sets of `layouts`. `refused` counts the other lines by reason; `bad_values` are the positions, names and
    labels of those whose value alone is bad.
    """

    __slots__ = ("bad_values", "examples", "gpu_uuids", "kept", "layouts", "refused")

    def __init__(self) -> None:
        self.layouts: tuple[BlockLayout, ...] = ()
        self.kept: list[int] = []
        self.refused: dict[str, int] = {}
        self.examples: list[str] = []
        self.gpu_uuids: list[str] = []
        self.bad_values: list[tuple[int, str, LabelSet]] = []

    def refuse(self, reason: str, line: bytes) -> None:
        """Count a line that gives no sample."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(lines.example(reason, line))
        self.gpu_uuids.extend(lines.gpu_uuids(line))


class Registry(Protocol):
    """What the fleet's nodes have in common."""

    label_texts_parsed: int
    good_label_shapes: set[str]

    def family(self, name: str, kind: str, text: str) -> Family:
        """The one object for a family."""


class BlockReader:
    """Lays out the new blocks of one page; label sets that `layouts` or earlier blocks of the page hold are shared."""

    def __init__(self, registry: Registry, layouts: Iterable[BlockLayout]) -> None:
        self._registry = registry
        self._layouts = layouts
        self._tuples: dict[tuple[LabelSet, ...], tuple[LabelSet, ...]] = {}
        # The same by their texts, where they stood in a block of one name.
        self._by_texts: dict[tuple[bytes, ...], tuple[LabelSet, ...]] = {}
        self._series: dict[LabelSet, frozenset[tuple[str, str]]] = {}

    @cached_property
    def _label_sets(self) -> dict[str, LabelSet | lines.Refused]:
        """Label sets by their text, and texts that are none; gathered when the first new block comes."""
        found: dict[str, LabelSet | lines.Refused] = {}
        for layout in self._layouts:
            if layout.label_sets not in self._tuples:
                self._tuples[layout.label_sets] = layout.label_sets
                found.update((label_set.text, label_set) for label_set in layout.label_sets)
                self._know_by_texts(layout)
        return found

    def lay_out(self, entries: Sequence[Entry]) -> Steps[BlockLayout | PatchyBlock]:
        """The layout of a block whose lines have these kinds and heads, metadata before samples."""
        metadata = lines.Metadata()
        block = PatchyBlock()
        runs: list[tuple[Family, list[str], list[LabelSet]]] = []
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        position = -1
        for number, (kind, head) in enumerate(entries, start=1):
            if number % _LINES_A_STEP == 0:
                yield
            try:
                if kind == lines.COMMENT:
                    metadata.read(head)
                    continue
                position += 1
                if kind in lines.REASONS:
                    raise lines.Refused(lines.REASONS[kind])  # noqa: TRY301 - one place counts what is refused
                name, text = lines.name_and_label_text(head)
                label_set = self._label_set(text)
                if kind == lines.VALUELESS:
                    block.bad_values.append((position, name, label_set))
                    raise lines.Refused(lines.BAD_VALUE)  # noqa: TRY301
                series = name, self.series(label_set)
                if series in seen:
                    raise lines.Refused(lines.DUPLICATE)  # noqa: TRY301
            except lines.Refused as refused:
                block.refuse(refused.reason, head)
                continue
            seen.add(series)
            block.kept.append(position)
            family = self._registry.family(*metadata.family_of(name))
            if not runs or runs[-1][0] is not family:
                runs.append((family, [], []))
            runs[-1][1].append(name)
            runs[-1][2].append(label_set)
        block.layouts = tuple(
            BlockLayout(family, self._shared(tuple(label_sets)), tuple(names)) for family, names, label_sets in runs
        )
        if len(block.layouts) > 1 or block.refused or not block.layouts:
            return block
        self._know_by_texts(block.layouts[0])
        return block.layouts[0]

    def lay_out_alike(self, metadata: bytes, heads: Sequence[bytes]) -> BlockLayout | None:
        """The layout of a block with the very label texts of a known one, under another name; None if it has others.

        Nearly all blocks of a page are alike in this, and this way one costs a tenth. What makes it sound: each text is
        known to be valid, and no two of them are one series.
        """
        name, brace, _ = heads[0].partition(b"{")
        start = name + brace
        texts = tuple([head[len(start) :] for head in heads if head.startswith(start)])
        label_sets = self._by_texts.get(texts) if len(texts) == len(heads) else None
        if label_sets is None or not lines.is_name(name):
            return None
        known = lines.Metadata()
        try:
            for line in metadata.split(b"\n"):  # a carriage return within a line ends none
                known.read(line.strip(_BLANKS))
        except lines.Refused:
            return None
        text = name.decode()
        return BlockLayout(self._registry.family(*known.family_of(text)), label_sets, (text,) * len(label_sets))

    def regular_entries(self, metadata: bytes, heads: Sequence[bytes]) -> Steps[list[Entry] | None]:
        """Kinds and heads of a block split at the first `} ` of each line, or None if that split is not the right one.

        It holds for every later block with the same metadata and heads in which a sample's token follows each head.
        """
        entries = [(lines.COMMENT, line.strip(_BLANKS)) for line in metadata.split(b"\n") if line]
        for number, head in enumerate(heads, start=1):
            if number % _LINES_A_STEP == 0:
                yield
            name, brace, text = head.partition(b"{")
            if brace and self._is_valid(text) and lines.is_name(name):
                entries.append((lines.SAMPLE, head + b"}"))
                continue
            if b"\n" in head:
                return None
            line = lines.split_line(head + b"} 0")
            right = line.kind in lines.REASONS or (
                line.kind == lines.SAMPLE and line.head == head.lstrip(_BLANKS) + b"}"
            )
            if not right:
                return None
            entries.append((line.kind, line.head))
        return entries

    def _is_valid(self, text: bytes) -> bool:
        """Whether a label text was found valid before; no bytes but those of UTF-8 ever are."""
        return isinstance(self._label_sets.get(text.decode(errors="replace")), LabelSet)

    def series(self, label_set: LabelSet) -> frozenset[tuple[str, str]]:
        """What makes two samples of one name the same series, however written: an empty label is no label."""
        series = self._series.get(label_set)
        if series is None:
            series = self._series[label_set] = frozenset(
                (name, value) for name, value in label_set.labels.items() if value
            )
        return series

    def _label_set(self, text: str) -> LabelSet:
        found = self._label_sets.get(text)
        if found is None:
            self._registry.label_texts_parsed += 1
            try:
                found = lines.checked_label_set(text, self._registry.good_label_shapes)
            except lines.Refused as refused:
                found = refused
            self._label_sets[text] = found
        if isinstance(found, lines.Refused):
            raise lines.Refused(found.reason)
        return found

    def _know_by_texts(self, layout: BlockLayout) -> None:
        if layout.has_one_name:
            texts = tuple([label_set.text.encode() for label_set in layout.label_sets])
            self._by_texts.setdefault(texts, layout.label_sets)

    def _shared(self, label_sets: tuple[LabelSet, ...]) -> tuple[LabelSet, ...]:
        return self._tuples.setdefault(label_sets, label_sets)


def line_by_line(text: bytes) -> Iterator[tuple[list[Entry], list[bytes]] | None]:
    """The blocks of a text: for each the kinds and heads of its lines, and the tokens of those that are no comments.

    A block begins where metadata follows samples or metadata of another family. Blank lines and plain comments are
    passed over, and so is the metadata of a family without samples. None stands for a step done, where lines are many.
    """
    entries: list[Entry] = []
    tokens: list[bytes] = []
    for number, line in enumerate(text.split(b"\n"), start=1):
        if number % _LINES_A_STEP == 0:
            yield None
        if not line.strip(_BLANKS):
            continue
        kind, head, token = lines.split_line(line)
        if kind == lines.COMMENT:
            if not lines.is_metadata(head):
                continue
            if entries and (tokens or lines.subject(entries[-1][1]) != lines.subject(head)):
                if _says_anything(entries, tokens):
                    yield entries, tokens
                entries, tokens = [], []
        else:
            tokens.append(token)
        entries.append((kind, head))
    if _says_anything(entries, tokens):
        yield entries, tokens


def _says_anything(entries: Sequence[Entry], tokens: Sequence[bytes]) -> bool:
    return bool(tokens) or not all(lines.is_good_metadata(head) for _, head in entries)
