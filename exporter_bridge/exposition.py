"""A page of the Prometheus text format as layouts and values: in a known block a scrape reads only the numbers.

A page is split into heads (`name{labels`) and tokens. If its blocks, sorted, are those of the node's last page, as the
hash of what stands between its tokens says, only the numbers are read. If not, the hash of a block's heads says whether
the block is known; if it is, and its tokens are plain numbers, its samples are known but for those. All else goes line
by line (`exporter_bridge.lines`), and what is found there is remembered under the hash: the fast way is the slow way's
result, used again. That is sound because, where a token is a plain number, what the slow way finds is a function of the
head alone.

`Exposition` is the fleet's: it shares what nodes have in common, and counts. A `PageParser` is one node's: it knows the
blocks of the node's last two differing pages, so memory is bounded by the fleet, whatever comes and goes in it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Final
from weakref import WeakValueDictionary

from xxhash import xxh3_128_digest

from exporter_bridge import lines
from exporter_bridge.blocks import MOST_EXAMPLES, BlockReader, Entry, PatchyBlock, Steps, line_by_line
from exporter_bridge.layouts import BadValue, BlockLayout, Family, Page
from exporter_bridge.splitting import SplitBlock, SplitPage, digest_of, digest_of_block, read_numbers, split_plain

_LINE_BY_LINE: Final = 2**63  # in the seed of a hash: what was split line by line never meets what was split at once
_LONGEST_BAD_TOKEN: Final = 64
_LONG_PAGE: Final = 1024**2  # of one that is shorter no line can take long
_NONE: Final[Mapping[str, int]] = MappingProxyType({})

_Known = BlockLayout | PatchyBlock  # what is remembered of a block


class Exposition:
    """What the parsers of a fleet share, and what they count.

    `label_texts_parsed` and `blocks_laid_out` count slow work since the start: a page of known blocks adds nothing.
    """

    def __init__(self) -> None:
        self.label_texts_parsed = 0
        self.blocks_laid_out = 0
        self.good_label_shapes: set[str] = set()
        self._families: WeakValueDictionary[tuple[str, str, str], Family] = WeakValueDictionary()

    def parser(self) -> "PageParser":
        """A parser for one node's pages; it is the node's memory of layouts, so keep it as long as the node."""
        return PageParser(self)

    def family(self, name: str, kind: str, text: str) -> Family:
        """The one object for a family while it is in use."""
        family = self._families.get((name, kind, text))
        if family is None:
            family = self._families[name, kind, text] = Family(name, kind, text)
        return family


class PageParser:
    """Reads one node's pages and remembers their blocks."""

    __slots__ = ("_digest", "_exposition", "_known", "_known_before", "_layouts", "_length", "_overlapping", "_shape")

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition
        self._known: dict[bytes, _Known] = {}
        self._known_before: dict[bytes, _Known] = {}
        # The last page's blocks in order and what such a page is known by, if each of them is without a flaw and no
        # two hold the same series.
        self._layouts: tuple[BlockLayout, ...] = ()
        self._digest: bytes | None = None
        self._length = 0
        self._overlapping = False
        self._shape = object()

    @property
    def known_bytes(self) -> int:
        """How long the last page was whose blocks are known whole; 0 if that is none."""
        return self._length if self._digest is not None else 0

    @property
    def cached_layouts(self) -> int:
        """How many blocks it remembers: at most those of two pages."""
        return len(self._known.keys() | self._known_before.keys()) or len(self._layouts)

    def parse(self, body: bytes) -> Page:
        """The page in a response's body; no body is so bad that it raises.

        A last line without a newline counts as a whole line, as Prometheus counts it.
        """
        steps = self.parse_steps(body)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                page: Page = end.value
                return page

    def parse_steps(self, body: bytes) -> Steps[Page]:
        """`parse` in steps: it yields after each block and each few lines of slow work, so that due work can go first.

        One page of a node must be read to its end, or given up, before the next is begun.
        """
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")
        if len(body) > _LONG_PAGE:
            body = lines.without_long_lines(body)
        # The numbers alone do not make a page twice as long, and a monstrous one must not be split in one go.
        plain = split_plain(body) if len(body) < 2 * self.known_bytes else None
        if plain is not None and plain.digest == self._digest:
            if self._known:
                # The page came again, so its blocks can be told from their layouts, should it change one day.
                self._known = self._known_before = {}
            return Page(
                self._layouts, plain.text, len(plain.values), values=plain.values, shape=self._shape, refused=_NONE
            )
        page = yield from self._read(SplitPage(body))
        self._length = len(body)
        return page

    def _read(self, split: SplitPage) -> Steps[Page]:
        """Block by block: what is known is taken, what is new is laid out."""
        self._know_blocks()
        draft = _Draft()
        used: dict[bytes, _Known] = {}
        repeated = False
        reader = BlockReader(self._exposition, self._known_layouts())
        for block in split.blocks():
            known = None
            if block.regular:
                repeated |= block.digest in used
                known = self._recall(block.digest, used)
                if known is None:
                    known = yield from self._lay_out_regular(reader, block)
                    if known is not None:
                        used[block.digest] = known
            if known is not None:
                draft.add(known, block.tokens, block.values)
                continue
            for found in line_by_line(block.text()):
                if found is None:
                    yield
                    continue
                lines_, tokens = found
                digest = xxh3_128_digest(
                    b"\n".join([kind + head for kind, head in lines_]), _LINE_BY_LINE + len(lines_)
                )
                repeated |= digest in used
                known = self._recall(digest, used)
                if known is None:
                    known = used[digest] = yield from self._lay_out(reader, lines_)
                draft.add(known, tokens, None)
        is_new = self._remember(used, reader, repeated=repeated)
        if self._overlapping:
            draft.drop_duplicates(reader)
        page = draft.page(object() if self._overlapping else self._shape)
        return self._know_whole(used, page) if is_new else page

    def _know_blocks(self) -> None:
        """Know the blocks of the last page again, if it was known whole and no more than that was kept."""
        if not self._known:
            self._known = dict(map(_known_by_its_layout, self._layouts))

    def _recall(self, digest: bytes, used: dict[bytes, _Known]) -> _Known | None:
        found = used.get(digest) or self._known.get(digest) or self._known_before.get(digest)
        if found is not None:
            used[digest] = found
        return found

    def _lay_out_regular(self, reader: BlockReader, block: SplitBlock) -> Steps[_Known | None]:
        """What a block is, or None if it was not split rightly."""
        alike = reader.lay_out_alike(block.metadata, block.heads)
        if alike is not None:
            self._exposition.blocks_laid_out += 1
            return alike
        entries = yield from reader.regular_entries(block.metadata, block.heads)
        return None if entries is None else (yield from self._lay_out(reader, entries))

    def _lay_out(self, reader: BlockReader, entries: Sequence[Entry]) -> Steps[_Known]:
        self._exposition.blocks_laid_out += 1
        known = yield from reader.lay_out(entries)
        yield
        return known

    def _known_layouts(self) -> Iterator[BlockLayout]:
        return _layouts_of(chain(self._known_before.values(), self._known.values()))

    def _remember(self, used: dict[bytes, _Known], reader: BlockReader, *, repeated: bool) -> bool:
        """Know the blocks of this page from now on, and those of the page before only if it had others.

        Whether that changes anything.
        """
        if used.keys() == self._known.keys():
            self._known_before = {}
            if repeated == self._overlapping:
                return False
        else:
            self._known_before = self._known
        self._known = used
        self._shape = object()
        self._overlapping = repeated or _overlap(list(_layouts_of(used.values())), reader)
        return True

    def _know_whole(self, used: dict[bytes, _Known], page: Page) -> Page:
        """Know the page itself, if each of its blocks is without a flaw and no two hold the same series."""
        self._layouts, self._digest = (), None
        if not self._overlapping and all(isinstance(found, BlockLayout) for found in used.values()):
            self._layouts = page.layouts
            skeleton = list(chain.from_iterable(layout.skeleton() for layout in page.layouts))
            self._digest = digest_of(skeleton, page.samples)
        return page


class _Draft:
    """A page as it is put together from blocks."""

    def __init__(self) -> None:
        self.layouts: list[BlockLayout] = []
        self.tokens: list[bytes] = []
        self.values: list[float] | None = []
        self.refused: dict[str, int] = {}
        self.examples: list[str] = []
        self.bad_values: list[BadValue] = []
        self.gpu_uuids: dict[str, None] = {}

    def add(self, found: _Known, tokens: list[bytes], values: list[float] | None) -> None:
        """Take in a block, given the token of each of its lines that is no comment."""
        if isinstance(found, PatchyBlock):
            for reason, count in found.refused.items():
                self.refused[reason] = self.refused.get(reason, 0) + count
            self.examples = [*self.examples, *found.examples][:MOST_EXAMPLES]
            self.gpu_uuids.update(dict.fromkeys(found.gpu_uuids))
            for position, name, labels in found.bad_values:
                token = tokens[position][:_LONGEST_BAD_TOKEN].decode(errors="backslashreplace")
                self.bad_values.append(BadValue(name, labels, token))
            tokens = [tokens[position] for position in found.kept]
            values = None if values is None else [values[position] for position in found.kept]
            self.layouts.extend(found.layouts)
        else:
            self.layouts.append(found)
        self.tokens.extend(tokens)
        if values is None:
            values = read_numbers(tokens)
        if values is None or self.values is None:
            self.values = None
        else:
            self.values.extend(values)

    def drop_duplicates(self, reader: BlockReader) -> None:
        """Of the samples of one series keep the first on the page."""
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        whole, tokens, values = self.layouts, self.tokens, self.values
        self.layouts, self.tokens, self.values = [], [], None if values is None else []
        start = 0
        for layout in whole:
            kept = []
            for position, (name, labels) in enumerate(zip(layout.names, layout.label_sets, strict=True)):
                series = name, reader.series(labels)
                if series in seen:
                    self.refused[lines.DUPLICATE] = self.refused.get(lines.DUPLICATE, 0) + 1
                    if len(self.examples) < MOST_EXAMPLES:
                        self.examples.append(lines.example(lines.DUPLICATE, f"{name}{{{labels.text}}}".encode()))
                else:
                    seen.add(series)
                    kept.append(position)
            if kept:
                self.layouts.append(layout if len(kept) == len(layout) else layout.only(kept))
                self.tokens.extend([tokens[start + position] for position in kept])
                if self.values is not None and values is not None:
                    self.values.extend([values[start + position] for position in kept])
            start += len(layout)

    def page(self, shape: object) -> Page:
        """The page."""
        values = self.values
        orders = [layout.order for layout in self.layouts]
        starts = [0, *accumulate(map(len, self.layouts))]
        tokens: list[bytes] = []
        sorted_values: list[float] = []
        by_order = sorted(range(len(orders)), key=orders.__getitem__)
        for number in by_order:
            span = slice(starts[number], starts[number + 1])
            tokens += self.tokens[span]
            sorted_values += [] if values is None else values[span]
        return Page(
            tuple([self.layouts[number] for number in by_order]),
            b"\n".join(tokens),
            len(tokens),
            shape=shape,
            values=None if values is None else sorted_values,
            refused=self.refused or _NONE,
            examples=tuple(self.examples),
            bad_values=tuple(self.bad_values),
            refused_uuids=tuple(self.gpu_uuids),
        )


def _known_by_its_layout(layout: BlockLayout) -> tuple[bytes, BlockLayout]:
    help_line, type_line, *heads = layout.skeleton()
    return digest_of_block(help_line + type_line, heads), layout


def _layouts_of(known: Iterable[_Known]) -> Iterator[BlockLayout]:
    for found in known:
        if isinstance(found, PatchyBlock):
            yield from found.layouts
        else:
            yield found


def _overlap(layouts: Sequence[BlockLayout], reader: BlockReader) -> bool:
    """Whether two blocks hold the same series; only blocks that share a name are compared sample by sample."""
    owner: dict[str, BlockLayout] = {}
    shared = {name for layout in layouts for name in set(layout.names) if owner.setdefault(name, layout) is not layout}
    series = [
        (name, reader.series(labels))
        for layout in layouts
        for name, labels in zip(layout.names, layout.label_sets, strict=True)
        if name in shared
    ]
    return len(set(series)) < len(series)
