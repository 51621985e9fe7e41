"""The parser against prometheus_client's, and against itself without a memory, on pages that hypothesis writes."""

import math
from collections import Counter
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from exporter_bridge import lines
from exporter_bridge.blocks import line_by_line
from exporter_bridge.exposition import Exposition
from exporter_bridge.layouts import Page

# No name here is another's with _total, so that the client's renaming can be undone.
NAMES = ("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "a:b", "x_total", "_y", "DCGM_FI_PROF_DRAM_ACTIVE")
LABEL_NAMES = ("gpu", "UUID", "pod", "_a", "le", "modelName")
TYPES = ("gauge", "counter", "untyped", "histogram", "summary")

spaces = st.sampled_from(("", "", "", " ", "  ", "\t", " \t"))
gaps = st.sampled_from((" ", " ", " ", " ", "  ", "\t", " \t "))
label_values = st.one_of(
    st.sampled_from(
        ("0", "GPU-0", "", "a} b", "} 1", "{", "}", ",", "#", "# HELP x y", 'q"', "\\", "\\n", "\n", "é", "日本", "a=b")
    ),
    st.text(max_size=8).filter(lambda text: not any(0xD800 <= ord(character) < 0xE000 for character in text)),
)
numbers = st.one_of(
    st.integers(0, 100).map(str),
    st.integers(0, 10**6).map(lambda n: f"{n / 7:.6f}"),
    st.floats().map(repr),
    st.integers(-(2**70), 2**70).map(str),
    st.sampled_from(
        ("NaN", "+Inf", "-Inf", "Inf", "1e3", "-1.5E-7", "+5", ".5", "5.", "007", "-0", "1e308", "infinity", "nan")
    ),
)
comments = st.sampled_from(("", "", "", "\n", "# a comment\n", "#\n", "# TYPO x y\n", " \t\n", "#HELP\n"))


@dataclass(frozen=True)
class Row:
    suffix: str
    labels: tuple[tuple[str, str], ...]
    token: str
    timestamp: str
    layout: tuple[str, ...]  # the white space of the line
    comma: str

    def text(self, name: str) -> str:
        before, after_name, in_braces, around, gap, end = self.layout
        inside = ",".join(f'{in_braces}{key}{around}={around}"{escaped(value)}"{around}' for key, value in self.labels)
        comma = self.comma if self.labels else ""
        braces = f"{{{inside}{comma}{in_braces}}}" if self.labels or self.comma else ""
        stamp = f"{gap}{self.timestamp}" if self.timestamp else ""
        return f"{before}{name}{self.suffix}{after_name}{braces}{gap}{self.token}{stamp}{end}\n"


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


@dataclass(frozen=True)
class Family:
    name: str
    type: str
    metadata: str
    rows: tuple[Row, ...]
    comment: str

    def text(self) -> str:
        return self.metadata + self.comment + "".join(row.text(self.name) for row in self.rows)


rows = st.builds(
    Row,
    suffix=st.just(""),
    labels=st.lists(
        st.tuples(st.sampled_from(LABEL_NAMES), label_values), max_size=4, unique_by=lambda pair: pair[0]
    ).map(tuple),
    token=numbers,
    timestamp=st.sampled_from(("", "", "", "", "1712345678000", "0")),
    layout=st.one_of(st.just(("", "", "", "", " ", "")), st.tuples(spaces, spaces, spaces, spaces, gaps, spaces)),
    comma=st.sampled_from(("", "", "", ",")),
)


@st.composite
def families(draw):
    name, kind = draw(st.sampled_from(NAMES)), draw(st.sampled_from(TYPES))
    help_text = draw(st.sampled_from(("Temperature (in C).", "", "a } b", 'quotes " and \\\\ and \\n', "é # HELP z")))
    metadata = draw(
        st.sampled_from((
            f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n",
            f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n",
            f"# HELP {name} {help_text}\n# TYPE {name} {kind}\n",
            f"# TYPE {name} {kind}\n# HELP {name} {help_text}\n",
            f"#  HELP\t{name} {help_text}\n# TYPE {name}  {kind}\n",
            f"# HELP {name} {help_text}\n",
            f"# TYPE {name} {kind}\n",
            "",
        ))
    )  # fmt: skip
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}.get(kind, ("",))
    drawn = [replace(row, suffix=draw(st.sampled_from(suffixes))) for row in draw(st.lists(rows, max_size=5))]
    return Family(name, kind, metadata, tuple(drawn), draw(comments))


pages = st.lists(families(), min_size=1, max_size=5)


@st.composite
def later_pages(draw, page):
    """The same page at a later scrape: other values, shuffled blocks, now and then another line or label."""
    changed = []
    for family in draw(st.permutations(page)):
        new_rows = [replace(row, token=draw(numbers)) for row in family.rows]
        what = draw(st.sampled_from(("values", "values", "values", "drop", "add", "label")))
        if what == "drop":
            new_rows = new_rows[1:]
        elif what == "add":
            new_rows.append(replace(draw(rows), suffix=""))
        elif what == "label" and new_rows:
            new_rows[0] = replace(new_rows[0], labels=(*new_rows[0].labels[:-1], ("pod", draw(label_values))))
            new_rows[0] = replace(new_rows[0], labels=tuple(dict(new_rows[0].labels).items()))
        changed.append(replace(family, rows=tuple(new_rows)))
    return changed


@st.composite
def scrapes(draw):
    page = draw(pages)
    history = [page]
    for _ in range(draw(st.integers(1, 4))):
        page = draw(later_pages(page))
        history.append(page)
    return history


def key(name, labels, value, timestamp):
    return name, tuple(sorted(labels.items())), "nan" if math.isnan(value) else float(value), timestamp


def series(sample):
    """What a sample is the same as: to Prometheus an empty label is no label."""
    return sample[0], tuple((name, value) for name, value in sample[1] if value)


def first_of_each(samples):
    """Of samples of one series the first."""
    kept = {}
    for sample in samples:
        kept.setdefault(series(sample), sample)
    return sorted(kept.values(), key=repr)


def ours(page: Page):
    return sorted(
        (
            key(name, labels.labels, value, None if timestamp is None else timestamp / 1000)
            for name, labels, value, timestamp in page
        ),
        key=repr,
    )


def theirs(text: str):
    samples = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name
            if family.type == "counter" and name not in NAMES:
                name = name.removesuffix("_total")
            samples.append(key(name, sample.labels, sample.value, sample.timestamp))
    return first_of_each(samples)


@given(scrapes())
def test_every_valid_page_gives_the_samples_that_prometheus_client_gives(history):
    parser = Exposition().parser()
    for page in history:
        text = "".join(family.text() for family in page)
        read = parser.parse(text.encode())
        assert ours(read) == theirs(text)
        assert set(read.refused) <= {lines.DUPLICATE}


@given(pages, st.randoms(use_true_random=False))
def test_a_page_shuffled_parses_nothing_anew(page, random):
    exposition = Exposition()
    parser = exposition.parser()
    # A family twice on a page may hold one series twice, of which the order decides.
    blocks = [
        replace(family, metadata=f"# HELP {n} h\n# TYPE {n} gauge\n", name=n)
        for family, n in zip(page, NAMES, strict=False)
    ]
    first = parser.parse("".join(family.text() for family in blocks).encode())
    counts = exposition.blocks_laid_out, exposition.label_texts_parsed
    random.shuffle(blocks)
    again = parser.parse("".join(family.text() for family in blocks).encode())
    assert (exposition.blocks_laid_out, exposition.label_texts_parsed) == counts
    assert again.shape is first.shape
    assert ours(again) == ours(first)


label_text = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "__name__", "9", "a b", ""]),
        st.sampled_from(["=", " = ", "=\t", "", "=="]),
        st.text(alphabet='xy\\"n,={} \n', max_size=4),
        st.sampled_from(['"', '"', '"', "", '""']),
    ),
    max_size=3,
).map(lambda labels: ",".join(f"{name}{equals}{quote}{value}{quote}" for name, equals, value, quote in labels))


@given(st.lists(label_text, min_size=2, max_size=12))
def test_what_is_remembered_of_a_label_texts_shape_changes_no_verdict(texts):
    def verdict(text, shapes):
        try:
            return lines.checked_label_set(text, shapes).labels
        except lines.Refused as refused:
            return refused.reason

    shapes = set()
    for text in texts:
        assert verdict(text, shapes) == verdict(text, set())


def read_slowly(kind, head, token):
    """A sample line's series and value; raises what the line is refused for."""
    if kind in lines.REASONS:
        raise lines.Refused(lines.REASONS[kind])
    name, text = lines.name_and_label_text(head)
    labels = lines.checked_label_set(text, set()).labels
    if kind == lines.VALUELESS:
        raise lines.Refused(lines.BAD_VALUE)
    value, _, timestamp = token.decode().partition(" ")
    return key(name, labels, float(value), int(timestamp) / 1000 if timestamp else None)


def line_after_line(body: bytes):
    """The samples of a page, and the lines refused by reason, by the slow way alone and without any cache."""
    samples, refused = {}, Counter()
    for entries, tokens in filter(None, line_by_line(body)):
        rest = iter(tokens)
        for kind, head in entries:
            try:
                if kind == lines.COMMENT:
                    lines.Metadata().read(head)
                    continue
                sample = read_slowly(kind, head, next(rest))
            except lines.Refused as refusal:
                refused[refusal.reason] += 1
                continue
            if samples.setdefault(series(sample), sample) is not sample:
                refused[lines.DUPLICATE] += 1
    return sorted(samples.values(), key=repr), refused


damage = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 3),
        st.one_of(
            st.sampled_from((b"} ", b"}", b"{", b'"', b"\\", b"\n", b" ", b",", b"=", b"#", b"0", b"e", b"-", b"\xff",
                             b"# HELP x y\n# TYPE x gauge\n", b'{a="b"} 1\n', b"\r\n", b"1,2", b"NaN")),
            st.binary(max_size=3),
        ),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def damaged(body: bytes, hits) -> bytes:
    for where, removed, inserted in hits:
        start = int(where * len(body))
        body = body[:start] + inserted + body[start + removed :]
    return body


@given(pages, damage, damage)
@settings(max_examples=300)
def test_a_damaged_page_gives_what_its_lines_give_one_by_one_whatever_was_seen_before(page, hits, more_hits):
    body = "".join(family.text() for family in page).encode()
    broken = damaged(body, hits)
    experienced = Exposition().parser()
    for earlier in (body, damaged(broken, more_hits), body):
        experienced.parse(earlier)
    with_memory, without = experienced.parse(broken), Exposition().parser().parse(broken)
    samples, refused = line_after_line(broken)
    assert ours(with_memory) == ours(without) == samples
    assert with_memory.refused == without.refused == refused
    assert bad(with_memory) == bad(without)
    assert sorted(with_memory.refused_uuids) == sorted(without.refused_uuids)


def bad(page: Page):
    return [(name, labels.text, token) for name, labels, token in page.bad_values]


@given(pages)
def test_a_page_in_steps_is_the_page(page):
    body = "".join(family.text() for family in page).encode()
    exposition = Exposition()
    steps = exposition.parser().parse_steps(body)
    count = 0
    while True:
        try:
            next(steps)
            count += 1
        except StopIteration as end:
            read = end.value
            break
    # One for each block, but for those that are another's under another name.
    assert min(1, exposition.blocks_laid_out) <= count <= exposition.blocks_laid_out
    assert ours(read) == ours(Exposition().parser().parse(body))
