"""What a page is made of: families, label sets, the layout of a block, and a page as layouts plus values.

A layout is everything of a block but its numbers. It is shared by all scrapes that show the block, so a page costs
little more than the text of its numbers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Over label text that has already been found valid.
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"([^"\\]*(?:\\.[^"\\]*)*)"')
_ESCAPE: Final = re.compile(r'\\([\\n"])')
_UNESCAPED: Final = {"\\": "\\", "n": "\n", '"': '"'}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Family:
    """A family as it stands on the page: `help` is verbatim (still escaped), `type` is `untyped` without a TYPE line.

    One object per distinct family in the whole fleet while in use.
    """

    name: str
    type: str = "untyped"
    help: str = ""


class LabelSet:
    """The labels of a sample: `text` is what stands between the braces, verbatim; empty when there are none.

    One object per distinct text of a node while in use, so identity compares.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels by name, unescaped, in the page's order; read from the text at each call, so keep the result."""
        labels = dict(_LABEL.findall(self.text))
        if "\\" in self.text:
            return {name: _ESCAPE.sub(_unescape, value) for name, value in labels.items()}
        return labels

    def __repr__(self) -> str:
        return f"LabelSet({self.text!r})"


def _unescape(escape: re.Match[str]) -> str:
    return _UNESCAPED[escape.group(1)]


class BlockLayout:
    """Samples of one family that stand together on a page, without their values: one label set per sample line."""

    __slots__ = ("_names", "family", "label_sets")

    def __init__(self, family: Family, label_sets: tuple[LabelSet, ...], names: tuple[str, ...]) -> None:
        self.family = family
        self.label_sets = label_sets
        # The names are nearly always the family's: then they take no memory.
        self._names = None if all(name == family.name for name in names) else names

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each sample; all are the family's but for the suffixes of histograms and summaries."""
        return self._names or (self.family.name,) * len(self.label_sets)

    @property
    def has_one_name(self) -> bool:
        """Whether every sample has the family's name."""
        return self._names is None

    @property
    def order(self) -> tuple[bytes, bytes]:
        """What a page's blocks are sorted by: its HELP line and its first sample's name and labels, as printed."""
        name, text = self.names[0], self.label_sets[0].text
        return f"# HELP {self.family.name} {self.family.help}\n".encode(), f"{name}{{{text}".encode()

    def skeleton(self) -> Iterator[bytes]:
        """The block as an exporter prints it, without what follows the labels: HELP, TYPE, `name{labels` a sample."""
        family = self.family
        yield f"# HELP {family.name} {family.help}\n".encode()
        yield f"# TYPE {family.name} {family.type}\n".encode()
        for name, labels in zip(self.names, self.label_sets, strict=True):
            yield f"{name}{{{labels.text}".encode()

    def only(self, positions: Sequence[int]) -> "BlockLayout":
        """The samples at these positions alone."""
        names, label_sets = self.names, self.label_sets
        return BlockLayout(
            self.family,
            tuple(label_sets[position] for position in positions),
            tuple(names[position] for position in positions),
        )

    def __len__(self) -> int:
        return len(self.label_sets)

    def __repr__(self) -> str:
        return f"BlockLayout({self.family.name!r}, {len(self)} samples)"


class Block(NamedTuple):
    """One block of one scrape: `tokens` is the text after each line's labels (value, and timestamp if any)."""

    layout: BlockLayout
    tokens: list[str]

    @property
    def values(self) -> list[float]:
        """The value of each sample."""
        return [to_float(token.partition(" ")[0]) for token in self.tokens]


class Sample(NamedTuple):
    """One sample line, read: the slow and plain form of it."""

    name: str
    labels: LabelSet
    value: float
    timestamp_ms: int | None


class BadValue(NamedTuple):
    """A line with a good name and good labels whose value is no number; `token` is its text, at most 64 characters."""

    name: str
    labels: LabelSet
    token: str


class Page:
    """One scrape of one node; its blocks are sorted by `BlockLayout.order`, in whatever order they came.

    `text` is what follows the labels of every sample (value, and timestamp if any), a line each. `refused` counts the
    lines that were not understood, by reason, and `examples` shows the first few of them.
    `bad_values` are those among them whose labels are good, `refused_uuids` the GPUs that refused lines speak of.
    `shape` is the same object in two pages of a node if and only if both have the same blocks.
    """

    __slots__ = (
        "_values",
        "bad_values",
        "examples",
        "layouts",
        "plain",
        "refused",
        "refused_uuids",
        "samples",
        "shape",
        "text",
    )

    def __init__(
        self,
        layouts: tuple[BlockLayout, ...],
        text: bytes,
        samples: int,
        *,
        shape: object,
        values: list[float] | None = None,
        refused: Mapping[str, int],
        examples: tuple[str, ...] = (),
        bad_values: tuple[BadValue, ...] = (),
        refused_uuids: tuple[str, ...] = (),
    ) -> None:
        self.layouts = layouts
        self.shape = shape
        self.text = text
        self.samples = samples
        self.refused = refused
        self.examples = examples
        self.bad_values = bad_values
        self.refused_uuids = refused_uuids
        # True: every token is a number as JSON writes it (so finite, without a timestamp).
        self.plain = values is not None
        self._values = values

    @property
    def tokens(self) -> list[bytes]:
        """The text after the labels of every sample, block after block; split at each call, so keep the result."""
        return self.text.split(b"\n") if self.samples else []

    @property
    def values(self) -> list[float]:
        """The value of every sample, block after block."""
        if self._values is not None:
            return self._values
        return [to_float(token.partition(b" ")[0].decode()) for token in self.tokens]

    @property
    def blocks(self) -> Iterator[Block]:
        """The blocks in their order."""
        tokens = self.text.decode().split("\n")
        start = 0
        for layout in self.layouts:
            end = start + len(layout.label_sets)
            yield Block(layout, tokens[start:end])
            start = end

    def __iter__(self) -> Iterator[Sample]:
        for layout, tokens in self.blocks:
            for name, labels, token in zip(layout.names, layout.label_sets, tokens, strict=True):
                value, _, timestamp = token.partition(" ")
                yield Sample(name, labels, to_float(value), int(timestamp) if timestamp else None)

    def compact(self) -> None:
        """Keep the text of the numbers alone: a page that is kept for re-exposure takes a fifth of the memory so."""
        self._values = None


def to_float(token: str) -> float:
    """The number that a value token found valid stands for."""
    return float(token)
