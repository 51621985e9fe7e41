"""A page split into blocks, and its lines into heads and tokens, without looking at any line by itself."""

import re
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Final

import msgspec
from xxhash import xxh3_128_digest

from exporter_bridge.lines import is_sample_token

_METADATA: Final = re.compile(rb"(?<![^\n])# HELP [^\n]*\n# TYPE [^\n]*\n")
# From the first `} ` of a line on: the token, and a block's beginning if one follows.
_SPLIT: Final = re.compile(rb"\} ([^\n]*)\n(# HELP [^\n]*\n# TYPE [^\n]*\n)?")
_NUMBER_BYTES: Final = b"0123456789.,eE+-"
_read_list: Final = msgspec.json.Decoder(list[float]).decode


class SplitPage:
    """A page as the heads and tokens of its lines; both are slices of the page, nothing is judged.

    `values` are the tokens as numbers, or None if one of them is no plain number. `rest` is what follows the last line
    that could be split.
    """

    __slots__ = ("_ends", "_heads", "_metadata", "_starts", "rest", "tokens", "values")

    def __init__(self, body: bytes) -> None:
        if not body.endswith(b"\n"):
            body += b"\n"
        parts: list[bytes] = _SPLIT.split(body)
        self._heads = parts[0::3]
        self.tokens = parts[1::3]
        metadata = parts[2::3]
        self.rest = self._heads.pop()
        count = len(self.tokens)
        self._starts = [0, *compress(range(1, count + 1), metadata)]
        self._metadata = [b"", *filter(None, metadata)]
        if count and (first := _METADATA.match(self._heads[0])):
            self._metadata[0] = first.group()
            self._heads[0] = self._heads[0][first.end() :]
        self._ends = [*self._starts[1:], count]
        self.values = read_numbers(self.tokens)

    def digests(self) -> list[bytes]:
        """What each block is known by."""
        heads, join = self._heads, b"\n".join
        return [
            xxh3_128_digest(metadata + join(heads[start:end]), end - start)
            for metadata, start, end in zip(self._metadata, self._starts, self._ends)  # noqa: B905 - one length, and time counts
        ]

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
                    tokens = self.tokens[start + first : start + position]
                    yield SplitBlock(metadata, heads[first:position], tokens, head[: cut.start()])
                    metadata, heads[position], first = cut.group(), head[cut.end() :], position  # noqa: PLW2901
            rest = self.rest if number == last else b""
            yield SplitBlock(metadata, heads[first:], self.tokens[start + first : end], rest)


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
        return xxh3_128_digest(self.metadata + b"\n".join(self.heads), len(self.heads))

    def text(self) -> bytes:
        """The block as it stands on the page."""
        lines = [b"%b} %b\n" % line for line in zip(self.heads, self.tokens, strict=True)]
        return b"".join([self.metadata, *lines, self._rest])


def read_numbers(tokens: Sequence[bytes]) -> list[float] | None:
    """The tokens as numbers, or None if one is not a finite number as JSON writes it, with nothing around it."""
    text = b",".join(tokens)
    if text.translate(None, _NUMBER_BYTES):
        return None
    try:
        values: list[float] = _read_list(b"[%b]" % text)
    except msgspec.DecodeError:
        return None
    return values if len(values) == len(tokens) else None
