"""xid.csv: every code with its class and its source, and how a file that cannot be used is refused."""

import re

import pytest

from alerting.xid import XID_FILE, XidClass, read_xids, xid

HEADER = "code,name,class,nvidia_says,fleets_do,source\n"


@pytest.mark.parametrize(
    ("xid_class", "codes"),
    [
        (XidClass.IGNORE, {43, 44, 45, 63, 92, 121, 154, 157, 160, 161}),
        (XidClass.RESTART_APPLICATION, {13, 31, 32, 68, 69, 94}),
        (XidClass.RESET_GPU, {46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158}),
        (XidClass.RESTART_MACHINE, {79, 151}),
        (XidClass.INSPECT, {48, 54, 74, *range(144, 151)}),
    ],
)
def test_each_class_has_the_codes_for_which_nvidia_asks_for_it(xid_class, codes):
    assert {each.code for each in read_xids().values() if each.xid_class is xid_class} == codes


def test_a_code_that_no_source_lists_is_to_be_inspected():
    assert xid(9999) == (9999, "unlisted XID", XidClass.INSPECT)


def test_reset_or_worse_begins_at_reset():
    assert [each for each in XidClass if each.is_reset_or_worse] == [
        XidClass.RESET_GPU,
        XidClass.RESTART_MACHINE,
        XidClass.INSPECT,
    ]


def test_every_row_has_a_source():
    for line in XID_FILE.read_text(encoding="utf-8").splitlines()[1:]:
        assert re.search(r",https://docs\.nvidia\.com/\S+$", line), line


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("code,name\n", "line 1: expected the columns code, name, class, "),
        (HEADER + "13,a,ignore,b\n", "line 2: expected 6 columns"),
        (HEADER + "13,a,ignore,b,,\n", "line 2: column source: expected a value"),
        (HEADER + "x,a,ignore,b,c,d\n", "line 2: column code: expected a number above 0, got 'x'"),
        (HEADER + "0,a,ignore,b,c,d\n", "line 2: column code: expected a number above 0, got '0'"),
        (HEADER + "13,a,panic,b,c,d\n", "line 2: column class: expected one of ignore, restart_application, "),
        (HEADER + "13,a,ignore,b,c,d\n13,a,ignore,b,c,d\n", "line 3: expected each code once, got 13 again"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_column(tmp_path, text, error):
    file = tmp_path / "xid.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="^" + re.escape(f"xid.csv: {error}")):
        read_xids(file)
