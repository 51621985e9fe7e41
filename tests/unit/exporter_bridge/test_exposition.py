"""What the parser remembers, shares and refuses."""

from itertools import permutations

import pytest

from exporter_bridge import exposition, lines
from exporter_bridge.exposition import Exposition, PageParser

HEAD = "# HELP a Text with \\\\ and \\n.\n# TYPE a gauge\n"


def parse(text):
    return Exposition().parser().parse(text.encode())


def test_a_family_is_as_it_stands_on_the_page():
    page = parse(HEAD + 'a{x="1"} 1\n# TYPE b counter\nb 2\n# HELP c Only help.\nc{x="1"} 3\nstray 4\n')
    assert [(one.family.name, one.family.type, one.family.help) for one in page.layouts] == [
        ("a", "gauge", "Text with \\\\ and \\n."),
        ("b", "counter", ""),
        ("c", "untyped", "Only help."),
        ("stray", "untyped", ""),
    ]


def test_the_samples_of_a_histogram_belong_to_its_family():
    page = parse(
        '# TYPE h histogram\nh_bucket{le="1"} 1\nh_sum 2\nh_count 3\n'
        '# TYPE s summary\ns{quantile="1"} 4\ns_count 5\nh_sum 6\n'
    )
    assert [(one.family.name, one.names) for one in page.layouts] == [
        ("h", ("h_bucket", "h_sum", "h_count")),
        ("s", ("s", "s_count")),
    ]
    assert page.refused == {"duplicate": 1}


def test_a_token_is_verbatim_and_its_white_space_single():
    page = parse(HEAD + 'a{x="1"} 1.50\na{x="2"}\t\t007 \t 1712345678000 \na{x="3"} +Inf\n')
    [block] = page.blocks
    assert block.tokens == ["1.50", "007 1712345678000", "+Inf"]
    assert block.values == [1.5, 7, float("inf")]
    assert [sample.timestamp_ms for sample in page] == [None, 1712345678000, None]


def test_nodes_share_families_and_a_nodes_blocks_share_label_sets():
    exposition = Exposition()
    body = HEAD + 'a{x="1"} 1\na{x="2"} 2\n# HELP b .\n# TYPE b gauge\nb{x="1"} 1\nb{x="2"} 2\n'
    one, other = (exposition.parser().parse(body.encode()) for _ in range(2))
    assert one.layouts[0].family is other.layouts[0].family
    assert one.layouts[0].label_sets is one.layouts[1].label_sets


@pytest.mark.parametrize(
    "tokens",
    [("1", "2"), ("NaN", "NaN"), ("+Inf", "1"), ("1e3", "1E+3"), ("1 1712345678000", "2 1712345679000"), ("007", ".5")],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_known_block_is_known_whatever_its_values_look_like(tokens, end):
    exposition = Exposition()
    parser = exposition.parser()
    first = parser.parse((HEAD + 'a{x="1"} 0\na{x="2"} 0\n').encode())
    text = (HEAD + f'a{{x="1"}} {tokens[0]}\na{{x="2"}} {tokens[1]}\n').replace("\n", end)
    page = parser.parse(text.encode())
    assert exposition.blocks_laid_out == 1
    assert page.layouts == first.layouts
    assert page.shape is first.shape
    assert [token.decode() for token in page.tokens] == list(tokens)


@pytest.mark.parametrize(
    "token",
    ["", "x", "1 2 3", "1  2x", "0x10", "1_0", "1e400", "-nan", "--1", "1,2", "٣", 'y"} 1', "1}", "[1]", "null"],
)
def test_a_known_block_believes_no_token_that_is_no_number(token):
    parser = Exposition().parser()
    parser.parse((HEAD + 'a{x="1"} 0\na{x="2"} 0\n').encode())
    page = parser.parse((HEAD + f'a{{x="1"}} {token}\na{{x="2"}} 5\n').encode())
    assert [(sample.labels.text, sample.value) for sample in page] == [('x="2"', 5)]
    assert sum(page.refused.values()) == 1


def test_lines_run_together_are_not_taken_for_a_known_block():
    parser = Exposition().parser()
    parser.parse((HEAD + 'a{x="1"} 1\na{x="2"} 2\n').encode())
    page = parser.parse((HEAD + 'a{x="1"\na{x="2"} 5\n').encode())
    assert ([sample.labels.text for sample in page], page.refused) == (['x="2"'], {"bad_labels": 1})


@pytest.mark.parametrize(
    "long",
    ["x" * 2**21, 'a{x="' + "x" * 2**21 + '"} 1', 'a{x="0"} ' + "1" * 2**21, 'a{x="0"} 1' + " " * 2**21 + "2 3"],
)
def test_a_line_too_long_to_be_one_costs_itself_and_no_time(long):
    parser = Exposition().parser()
    body = (HEAD + 'a{x="1"} 1\n' + long + '\na{x="2"} 2\n').encode()
    for _ in range(2):
        page = parser.parse(body)
        assert ([sample.value for sample in page], sum(page.refused.values())) == ([1, 2], 1)


def test_a_comment_too_long_is_still_a_comment():
    page = parse("# HELP a " + "x" * 2**21 + "\n# TYPE a gauge\na 1\n")
    assert ([sample.value for sample in page], page.refused, page.layouts[0].family.type) == ([1], {}, "gauge")


def test_a_page_much_longer_than_the_last_is_not_split_in_one_go(monkeypatch):
    parser = Exposition().parser()
    parser.parse((HEAD + 'a{x="1"} 1\n').encode())
    monkeypatch.setattr(exposition, "split_plain", lambda _body: pytest.fail("split"))
    assert parser.parse(b"\n" * 1000 + b"a 1\n").samples == 1


def test_what_was_found_line_by_line_is_not_taken_for_what_was_split_at_once():
    parser = Exposition().parser()
    assert [sample.name for sample in parser.parse(b'a{x="1"}\t5\n')] == ["a"]
    page = parser.parse(b'sa{x="1"}} 5\n')
    assert (page.samples, page.refused) == (0, {"bad_value": 1})


def test_a_known_block_in_place_of_another_is_a_duplicate_and_not_a_known_page():
    other = "# HELP b .\n# TYPE b gauge\nb{} 3\n"
    one = HEAD + 'a{x="1"} 1\na{x="2"} 2\n'
    parser = Exposition().parser()
    parser.parse((one + other).encode())
    page = parser.parse((one + one.replace("} 1", "} 7")).encode())
    assert ([sample.value for sample in page], page.refused) == ([1, 2], {"duplicate": 2})
    page = parser.parse((other + one).encode())
    assert ([sample.value for sample in page], page.refused) == ([1, 2, 3], {})


def test_a_block_that_comes_twice_is_a_duplicate_and_costs_nothing_later():
    one = HEAD + 'a{x="1"} 1\na{x="2"} 2\n'
    parser = Exposition().parser()
    for body, refused in ((one, {}), (one + one.replace("} 1", "} 7"), {"duplicate": 2}), (one, {})):
        page = parser.parse(body.encode())
        assert ([sample.value for sample in page], page.refused) == ([1, 2], refused)


def test_a_known_page_is_read_at_once_and_not_block_by_block(monkeypatch):
    parser = Exposition().parser()
    parser.parse((HEAD + 'a{x="1"} 1\na{x="2"} 2\n').encode())
    monkeypatch.delattr(PageParser, "_read")
    page = parser.parse((HEAD + 'a{x="1"} 3\na{x="2"} 4.5\n').encode())
    assert ([sample.value for sample in page], page.plain) == ([3, 4.5], True)


def test_blocks_come_in_one_order_however_the_page_had_them():
    blocks = [
        HEAD + 'a{x="1"} 1\na{x="2"} 2\n',
        "# HELP b .\n# TYPE b gauge\nb{} 3\n",
        "# HELP c .\n# TYPE c gauge\nc{} NaN\n",
    ]
    for some in (blocks, blocks[:2]):
        parser = Exposition().parser()
        pages = [parser.parse("".join(order).encode()) for order in permutations(some)]
        assert {page.text for page in pages} == {b"1\n2\n3" + b"\nNaN" * (len(some) - 2)}
        assert len({page.layouts for page in pages}) == len({page.shape for page in pages}) == 1


@pytest.mark.parametrize(
    "change",
    [
        ("a{", "aa{"),
        ('x="1"', 'x="11"'),
        ('x="1"', 'y="1"'),
        ("Text", "Next"),
        ("gauge", "counter"),
        ('a{x="2"} 2\n', ""),
        ('a{x="1"} 1\n', 'a{x="0"} 0\na{x="1"} 1\n'),
        ("# TYPE a gauge\n", ""),
        ("# HELP a", "# HELP b .\n# TYPE b gauge\n# HELP a"),
        ("# HELP a", "b 1\n# HELP a"),
        ("# TYPE b", "b{} 1\n# TYPE b"),
        ("\n", "\n\n"),
        ("} 1", "}1"),
        ("} 1", "}  1"),
        ("} 1", "}\t1"),
        ("} 1", "} 1 "),
        ("} 1\n", "} 1,2\n"),
    ],
)
def test_a_page_that_differs_in_more_than_numbers_is_read_as_if_no_other_had_come(change):
    body = HEAD + 'a{x="1"} 1\na{x="2"} 2\n# HELP b .\n# TYPE b gauge\nb{} 3\n'
    parser = Exposition().parser()
    parser.parse(body.encode())
    changed = body.replace(*change, 1)
    assert changed != body
    found, expected = parser.parse(changed.encode()), parse(changed)
    assert list(map(str, found)) == list(map(str, expected))
    assert [(one.family, one.names) for one in found.layouts] == [(one.family, one.names) for one in expected.layouts]
    assert found.refused == expected.refused


def test_a_page_that_came_twice_keeps_its_blocks_when_one_of_them_changes():
    exposition = Exposition()
    parser = exposition.parser()
    body = HEAD + 'a{x="1"} 1\n# HELP b .\n# TYPE b gauge\nb{} 3\n'
    first = [parser.parse(body.encode()) for _ in range(3)][-1]
    changed = parser.parse(body.replace("b{}", 'b{y="1"}').encode())
    assert (exposition.blocks_laid_out, parser.cached_layouts) == (3, 3)
    assert changed.layouts[0] is first.layouts[0]
    again = parser.parse(body.encode())
    assert (exposition.blocks_laid_out, again.layouts) == (3, first.layouts)


def test_a_node_remembers_two_differing_pages_and_no_more():
    exposition = Exposition()
    parser = exposition.parser()
    pages = [(HEAD + f'a{{pod="{pod}"}} 1\n').encode() for pod in range(3)]
    for body in (pages[0], pages[1], pages[0], pages[1]):
        parser.parse(body)
    assert (exposition.blocks_laid_out, parser.cached_layouts) == (2, 2)
    parser.parse(pages[1])
    assert parser.cached_layouts == 1
    parser.parse(pages[2])
    parser.parse(pages[0])
    assert (exposition.blocks_laid_out, parser.cached_layouts) == (4, 2)


@pytest.mark.parametrize("first_line", [HEAD, ""])
def test_much_slow_work_is_left_for_others_every_few_lines(first_line):
    body = first_line + "".join(f'a{{x="{number}"}}{" " if first_line else "	"}1\n' for number in range(5000))
    steps = sum(1 for _ in Exposition().parser().parse_steps(body.encode()))
    assert steps > 20


def test_a_label_text_of_absurd_length_is_refused_before_it_costs_time():
    quotes = '\\"' * (lines.LONGEST_LABEL_TEXT // 2)
    page = parse(HEAD + f'a{{x="{quotes}"}} 1\na{{x="2"}} 2\n')
    assert (page.refused, [sample.value for sample in page]) == ({"bad_labels": 1}, [2])


def test_metadata_that_is_no_good_is_counted_and_costs_no_sample():
    page = parse(
        "# HELP a Text.\n# TYPE a gouge\na{} 1\n# TYPE b\nb 2\n# HELP 1b x\nc 3\n# TYPE d gauge\n# TYPE e nothing\n"
    )
    assert ([sample.value for sample in page], page.refused) == ([1, 2, 3], {"bad_metadata": 4})
    assert {one.family.type for one in page.layouts} == {"untyped"}


def test_the_first_refused_lines_are_shown_and_no_more():
    page = parse("".join(f"{number} 1\n" for number in range(10)) + "x" * 500 + '{a="b}\n')
    assert page.refused == {"bad_name": 10, "bad_labels": 1}
    assert page.examples == ("bad_name: 0", "bad_name: 1", "bad_name: 2")
    assert len(parse("x" * 500 + "{ 1\n").examples[0]) < 250


def test_a_last_line_without_a_newline_is_a_line():
    assert [sample.value for sample in parse(HEAD + 'a{x="1"} 1\na{x="2"} 23')] == [1, 23]
