"""The slow and careful way: one line of the Prometheus text format at a time, each judged for itself.

A sample is accepted when Prometheus itself and prometheus_client both would: the grammar here is Prometheus' own
(model/textparse, as of 2.42), and each distinct label text goes through prometheus_client's parser once. What stands
here is a function of the line alone, so what was found once about a line's head holds as long as the head is the same.
"""

import re
from collections.abc import Sequence
from io import BytesIO
from math import isinf
from typing import Final, NamedTuple

from prometheus_client.parser import parse_labels

from exporter_bridge.layouts import LabelSet

# Reasons for which a line is refused.
MALFORMED_LINE: Final = "malformed_line"
BAD_NAME: Final = "bad_name"
BAD_LABELS: Final = "bad_labels"
BAD_VALUE: Final = "bad_value"
BAD_METADATA: Final = "bad_metadata"
NOT_UTF8: Final = "not_utf8"
DUPLICATE: Final = "duplicate"

_NAME: Final = rb"[a-zA-Z_:][a-zA-Z0-9_:]*"
_WHOLE_NAME: Final = re.compile(_NAME)
_HEAD: Final = re.compile(
    rb"[ \t]*(?:(" + _NAME + rb')[ \t]*\{([^"}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"}]*)*)\}|(' + _NAME + rb")(?=[ \t]))"
)
_STARTS_WITH_NAME: Final = re.compile(_NAME + rb"(?:[ \t]+|$|(?=\{))(\{)?")
_METADATA: Final = re.compile(rb"#[ \t]+(HELP|TYPE)(?:[ \t]+(" + _NAME + rb")(?![^ \t])[ \t]*(.*))?")
_KEYWORD: Final = re.compile(rb"#[ \t]+(?:HELP[ \t]|TYPE(?![^ \t]))")  # a bare HELP is a comment to both parsers
_LABELS: Final = re.compile(
    r'[ \t]*(?:[a-zA-Z_][a-zA-Z0-9_]*[ \t]*=[ \t]*"[^"\\]*(?:\\.[^"\\]*)*"[ \t]*(?:,[ \t]*|$))*'
)
# A value without escapes; one with them stays, so that its text's shape never is another's.
_VALUE: Final = re.compile(r'"[^"\\]*"')
# What Go's strconv.ParseFloat takes, without the hexadecimal form and the underscores that Prometheus refuses.
_NUMBER: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL: Final = re.compile(rb"[+-]?(?:inf|infinity)|nan", re.IGNORECASE)
_TIMESTAMP: Final = re.compile(rb"-?[0-9]{1,18}")
_TYPES: Final = frozenset(("counter", "gauge", "histogram", "summary", "untyped"))
_SUFFIXES: Final = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_GPU_UUID: Final = re.compile(rb'(?:UUID|uuid)="(GPU-[0-9A-Za-z-]{1,80})"')
_LONGEST_EXAMPLE: Final = 200
_KEPT_OF_LONG_LINE: Final = 1024


# Far longer than a line with the longest label text that is read; what is longer is not looked through.
LONGEST_LINE: Final = 64 * 1024
# The time that prometheus_client takes for a label grows with the square of its length.
LONGEST_LABEL_TEXT: Final = 16 * 1024
# Shapes of label texts that are remembered: far more than a fleet's exporters write.
_MOST_SHAPES: Final = 1000


class Refused(ValueError):
    """A line that is not understood: `args[0]` is the reason, as it is counted."""

    @property
    def reason(self) -> str:
        """One of this module's reasons."""
        return str(self.args[0])


# What a line is: a sample, a sample whose value is no number, a comment or metadata, or no sample for a reason.
SAMPLE: Final = b"s"
VALUELESS: Final = b"v"
COMMENT: Final = b"#"
REASONS: Final = {b"x": MALFORMED_LINE, b"n": BAD_NAME, b"l": BAD_LABELS}


class Line(NamedTuple):
    """A line in two: `kind` and `head` decide what the line is, `token` is what changes from scrape to scrape."""

    kind: bytes
    head: bytes
    token: bytes


def split_line(line: bytes) -> Line:
    """The kind, the head and the token of a line that is not blank; the words of a token have one space between."""
    line = line.strip(b" \t\r")
    if line.startswith(b"#"):
        return Line(COMMENT, line, b"")
    match = _HEAD.match(line)
    if match is None:
        # The last word is taken off, so that a broken line with a changing number keeps one and the same head.
        head, _, token = line.rpartition(b" ")
        start = _STARTS_WITH_NAME.match(line)
        return Line(b"n" if start is None else b"l" if start.group(1) else b"x", head, token)
    words = [word for word in line[match.end() :].replace(b"\t", b" ").split(b" ") if word]
    kind = SAMPLE if _are_samples(words) else b"x" if not words or _is_number(words[0]) else VALUELESS
    return Line(kind, match.group(), b" ".join(words))


def without_long_lines(page: bytes) -> bytes:
    """The page with what no reader could take for a sample in place of each line that is too long to be one.

    It keeps how the line begins, which tells a comment, and the GPU that it speaks of.
    """
    return b"".join([_cut(line) if len(line) > LONGEST_LINE else line for line in BytesIO(page).readlines()])


def _cut(line: bytes) -> bytes:
    return line[:_KEPT_OF_LONG_LINE].replace(b"\r", b" ") + b'" is the beginning of a line too long\n'


def is_sample_token(token: bytes) -> bool:
    """Whether it is a value, or a value, one space and a timestamp in milliseconds."""
    return _are_samples(token.split(b" "))


def _are_samples(words: Sequence[bytes]) -> bool:
    if len(words) == 2:  # noqa: PLR2004 - value and timestamp
        return _TIMESTAMP.fullmatch(words[1]) is not None and _is_number(words[0])
    return len(words) == 1 and _is_number(words[0])


def _is_number(token: bytes) -> bool:
    if _NUMBER.fullmatch(token):
        return not isinf(float(token))  # Go calls what overflows an error
    return _SPECIAL.fullmatch(token) is not None


def name_and_label_text(head: bytes) -> tuple[str, str]:
    """The name and what stands between the braces of a sample's head, as `split_line` gives it.

    Raises:
        Refused: the head is not UTF-8.
    """
    name, _, labels = head.partition(b"{")
    try:
        return name.strip(b" \t").decode(), labels[:-1].decode()
    except UnicodeDecodeError:
        raise Refused(NOT_UTF8) from None


def is_name(text: bytes) -> bool:
    """Whether a text is a metric's name."""
    return _WHOLE_NAME.fullmatch(text) is not None


def checked_label_set(text: str, good_shapes: set[str]) -> LabelSet:
    """A label set whose text both parsers read, and read alike.

    `good_shapes` remembers texts without their values. Where no value holds a backslash, whether a text is good does
    not depend on them, and prometheus_client's parser takes 60 us for a text.

    Raises:
        Refused: the text is not what stands between the braces of a sample.
    """
    if len(text) > LONGEST_LABEL_TEXT or not _LABELS.fullmatch(text):
        raise Refused(BAD_LABELS)
    labels = LabelSet(text)
    shape = _VALUE.sub('""', text)
    if shape in good_shapes:
        return labels
    try:
        expected = parse_labels(text)
    except ValueError:
        raise Refused(BAD_LABELS) from None
    if labels.labels != expected or "__name__" in expected:
        raise Refused(BAD_LABELS)
    if "\\" not in shape:
        if len(good_shapes) >= _MOST_SHAPES:
            good_shapes.clear()
        good_shapes.add(shape)
    return labels


class Metadata:
    """What HELP and TYPE lines of one block say, by family name."""

    def __init__(self) -> None:
        self._help: dict[str, str] = {}
        self._type: dict[str, str] = {}

    def read(self, line: bytes) -> None:
        """Take in a line that begins with `#`; a plain comment says nothing.

        Raises:
            Refused: it is a HELP or TYPE line and no good one.
        """
        match = _METADATA.fullmatch(line)
        if match is None or match.group(2) is None:
            if _KEYWORD.match(line):
                raise Refused(BAD_METADATA)
            return
        keyword, name, text = match.groups()
        try:
            about, said = name.decode(), text.decode()
        except UnicodeDecodeError:
            raise Refused(NOT_UTF8) from None
        if keyword == b"HELP":
            self._help[about] = said
        elif said in _TYPES:
            self._type[about] = said
        else:
            raise Refused(BAD_METADATA)

    def family_of(self, sample: str) -> tuple[str, str, str]:
        """Name, type and help of the family that a sample of this name belongs to."""
        for name, kind in self._type.items():
            if sample.startswith(name) and sample[len(name) :] in _SUFFIXES.get(kind, ()):
                return name, kind, self._help.get(name, "")
        return sample, self._type.get(sample, "untyped"), self._help.get(sample, "")


def is_metadata(comment: bytes) -> bool:
    """Whether a line that begins with `#` is meant as HELP or TYPE."""
    return _KEYWORD.match(comment) is not None


def is_good_metadata(comment: bytes) -> bool:
    """Whether a line that begins with `#` can be read as what it is meant as."""
    try:
        Metadata().read(comment)
    except Refused:
        return False
    return True


def subject(comment: bytes) -> bytes | None:
    """The family that a HELP or TYPE line is about; None if it is neither, or no good one."""
    match = _METADATA.fullmatch(comment)
    return match.group(2) if match else None


def example(reason: str, line: bytes) -> str:
    """A refused line as a log shows it."""
    shown = line[:_LONGEST_EXAMPLE].decode(errors="backslashreplace")
    return f"{reason}: {shown}{'…' if len(line) > _LONGEST_EXAMPLE else ''}"


def gpu_uuids(line: bytes) -> tuple[str, ...]:
    """The GPUs that a refused line speaks of, as far as its text shows them."""
    return tuple(match.decode() for match in _GPU_UUID.findall(line))
