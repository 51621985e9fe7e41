"""A page split into blocks, and its lines into heads and tokens, without looking at any line by itself."""

import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import compress, repeat
from typing import Final, NamedTuple

import msgspec
from xxhash import xxh3_128_digest

from exporter_bridge.lines import is_sample_token

_METADATA: Final = re.compile(rb"(?<![^\n])# HELP [^\n]*\n# TYPE [^\n]*\n")
# From the first `} ` of a line on: the token, and a block's beginning if one follows.
_SPLIT: Final = re.compile(rb"\} ([^\n]*)\n(# HELP [^\n]*\n# TYPE [^\n]*\n)?")
_NUMBER_BYTES: Final = b"0123456789.eE+-"
_read_list: Final = msgspec.json.Decoder(list[float]).decode


class PlainPage(NamedTuple):
    """A page of blocks that each begin with HELP and TYPE, all of whose tokens are plain numbers, sorted by its blocks.

    `digest` is of the page without its tokens, as `digest_of` makes it; `text` has the tokens, a line each.
    """

    digest: bytes
    text: bytes
    values: list[float]


def split_plain(body: bytes) -> PlainPage | None:
    """The page if it is that plain, split at the last `} ` of each line; None if it takes `SplitPage`.

    This is what each page goes through at each scrape, so it is made of few calls that each do one thing to all lines.
    """
    lines = BytesIO(body if body.endswith(b"\n") else body + b"\n").readlines()
    heads, braces, tails = zip(*map(bytes.rpartition, lines, repeat(b"} ")), strict=True)
    metadata = [number for number, brace in enumerate(braces) if not brace]
    count = len(lines) - len(metadata)
    if not count or not metadata or metadata[-1] == len(lines) - 1:
        return None
    helps, types = metadata[0::2], metadata[1::2]
    ends = [*helps[1:], len(lines)]
    # Every sample stands behind a pair of lines that follow each other; an odd number of them ends here too.
    if sum(ends) - sum(types) - len(types) != count:
        return None
    blocks = sorted(
        [
            (tails[first], heads[second + 1], tails[second], second + 1, end)
            for first, second, end in zip(helps, types, ends)  # noqa: B905 - told by the sums above
        ]
    )
    skeleton: list[bytes] = []
    tokens: list[bytes] = []
    for help_line, _, type_line, start, end in blocks:
        skeleton += (help_line, type_line)
        skeleton += heads[start:end]
        tokens += tails[start:end]
    text = b"".join(tokens)[:-1]
    values = _read_lines(text, count)
    return None if values is None else PlainPage(digest_of(skeleton, count), text, values)


def digest_of(skeleton: Sequence[bytes], count: int) -> bytes:
    """What a page of `count` samples is known by, given its HELP and TYPE lines and the heads of its samples.

    Two differing pages have differing digests if one has no empty head: metadata ends with a newline, a head has none.
    """
    return xxh3_128_digest(b"\n".join(skeleton), count)


def digest_of_block(metadata: bytes, heads: Sequence[bytes]) -> bytes:
    """What a block is known by, given its metadata and the heads of its samples."""
    return xxh3_128_digest(metadata + b"\n".join(heads), len(heads))


class SplitPage:
    """A page as the heads and tokens of its lines; both are slices of the page, nothing is judged.

    The rest is what follows the last line that could be split.
    """

    __slots__ = ("_ends", "_heads", "_metadata", "_rest", "_starts", "_tokens")

    def __init__(self, body: bytes) -> None:
        if not body.endswith(b"\n"):
            body += b"\n"
        parts: list[bytes] = _SPLIT.split(body)
        self._heads = parts[0::3]
        self._tokens = parts[1::3]
        metadata = parts[2::3]
        self._rest = self._heads.pop()
        count = len(self._tokens)
        self._starts = [0, *compress(range(1, count + 1), metadata)]
        self._metadata = [b"", *filter(None, metadata)]
        if count and (first := _METADATA.match(self._heads[0])):
            self._metadata[0] = first.group()
            self._heads[0] = self._heads[0][first.end() :]
        self._ends = [*self._starts[1:], count]

    def blocks(self) -> Iterator["SplitBlock"]:
        """The page's blocks, in its order, each cut as it would be cut wherever it stood."""
        last = len(self._starts) - 1
        for number, (metadata, start, end) in enumerate(zip(self._metadata, self._starts, self._ends, strict=True)):
            heads = self._heads[start:end]
            first = 0
            for position, head in enumerate(heads):
                if b"# HELP " in head and (beginnings := list(_METADATA.finditer(head))):
                    # Lines that could not be split stand before the block's true beginning.
                    cut = beginnings[-1]
                    tokens = self._tokens[start + first : start + position]
                    yield SplitBlock(metadata, heads[first:position], tokens, head[: cut.start()])
                    metadata, heads[position], first = cut.group(), head[cut.end() :], position  # noqa: PLW2901
            rest = self._rest if number == last else b""
            yield SplitBlock(metadata, heads[first:], self._tokens[start + first : end], rest)


class SplitBlock:
    """One block, `regular` if every line could be split and every token is a sample's.

    `values` is None unless it is regular and all tokens are plain numbers.
    """

    __slots__ = ("_rest", "heads", "metadata", "regular", "tokens", "values")

    def __init__(self, metadata: bytes, heads: list[bytes], tokens: list[bytes], rest: bytes) -> None:
        self.metadata = metadata
        self.heads = heads
        self.tokens = tokens
        self._rest = rest
        split = bool(tokens) and not rest
        self.values = read_numbers(tokens) if split else None
        self.regular = split and (self.values is not None or all(map(is_sample_token, tokens)))

    @property
    def digest(self) -> bytes:
        """What the block is known by."""
        return digest_of_block(self.metadata, self.heads)

    def text(self) -> bytes:
        """The block as it stands on the page."""
        lines = [b"%b} %b\n" % line for line in zip(self.heads, self.tokens, strict=True)]
        return b"".join([self.metadata, *lines, self._rest])


def read_numbers(tokens: Sequence[bytes]) -> list[float] | None:
    """The tokens as numbers, or None if one is not a finite number as JSON writes it, with nothing around it."""
    return _read_lines(b"\n".join(tokens), len(tokens))


def _read_lines(text: bytes, count: int) -> list[float] | None:
    if text.translate(None, _NUMBER_BYTES + b"\n"):
        return None
    try:
        values: list[float] = _read_list(b"[%b]" % text.replace(b"\n", b","))
    except msgspec.DecodeError:
        return None
    return values if len(values) == count else None
