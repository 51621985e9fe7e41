"""Parameters, paths, cursors and bodies that no client should send: a refusal or an answer, never a defect."""

import base64
import contextlib
import json
from urllib.parse import quote, quote_from_bytes

import pytest

# What each parameter may meet, whatever it is for.
TEXTS = (
    "", " ", "0", "1", "-1", "+1", "01", "1.0", "1e3", "0x1", "\uff11", "9223372036854775807",
    "9223372036854775808", "1" * 400,
    "10000", "10001", "true", "True", "null", "node-1", "node-1 ", "rack 7/ñode?&", "GPU-0000", "us-west-1", "critical",
    "active", "high_temperature", "'; DROP TABLE nodes; --", "%", "_", "\\", "\x00", "a\x00b", "\ud7ff", "\U0010ffff",
    "\u202e", "a" * 512, "a" * 513, "é" * 512, "..", ".", "/", "//", "%2F", "%00", "2026-01-31", "2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00", "2026-01-31t12:00:00z", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59", "0000-01-01T00:00:00Z", "-0001-01-01T00:00:00Z", "10000-01-01T00:00:00Z",
    "2026-01-31T12:00:00.123456789Z", "2026-01-31T24:00:00Z", "2026-01-31T23:59:60Z", "2026-01-31 12:00:00+00:00",
    "1970-01-01T00:00:00Z", "infinity", "now", "{}", "[]", "<script>",
)  # fmt: skip
# What the values of a cursor may be replaced with.
KEYS = (
    None, True, 0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 1.5, 1e300, "", "x", "\x00", "a\x00", "a" * 600, "nodes",
    "alerts",
    "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2026-01-31T12:00:00",
    [], {}, ["x"],
)  # fmt: skip
NAMES = (
    "limit",
    "cursor",
    "node",
    "datacenter",
    "status",
    "severity",
    "type",
    "since",
    "until",
    "removed",
    "zone",
    "",
    "\x00",
)
BODIES = (
    b"", b"{", b"{}", b"[]", b"null", b"1", b'{"actor":"jane"}', b'{"actor":""}', b'{"actor":1}',
    b'{"actor":"\\u0000"}',
    b'{"actor":"' + b"a" * 600 + b'"}', b'{"actor":"\xff"}', b'{"actor":"\\ud800"}', b'{"actor":"x","more":1}',
    b"[" * 50_000, b"\x00", b"a" * 70_000,
)  # fmt: skip
TYPES = (
    "application/json",
    "text/plain",
    "",
    "application/json; charset=latin-1",
    "multipart/form-data",
    "\x7f",
    "a/b",
)
METHODS = ("GET", "GET", "GET", "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")


@pytest.fixture
def document(writing_client):
    return writing_client.get("/openapi.json").json


@pytest.fixture
def cursors(writing_client, document):
    """A cursor of every list that gives one."""
    found = []
    for path, operations in document["paths"].items():
        if "cursor" in {parameter["name"] for parameter in operations.get("get", {}).get("parameters", ())}:
            call = path.format(node_id="node-1", gpu_uuid="GPU-0000", alert_id="41")
            link = writing_client.get(f"{call}?limit=1").headers.get("Link", "")
            with contextlib.suppress(IndexError):
                found.append(link.split("cursor=")[1].split(">")[0].split("&")[0])
    assert len(found) >= 3
    return found


def a_cursor(source, cursors):
    """One that was given, or one that was tampered with."""
    cursor = source.choice(cursors)
    what = source.randrange(4)
    if what == 0:
        return cursor
    if what == 1:
        where = source.randrange(len(cursor))
        return cursor[:where] + source.choice(("", "=", "-", "A", "é", "\x00")) + cursor[where + source.randrange(2) :]
    key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    name = source.choice(list(key))
    if what == 2 and source.randrange(4) == 0:
        del key[name]
    else:
        key[name] = source.choice(KEYS)
    text = json.dumps(key, separators=(",", ":"), ensure_ascii=source.random() < 0.5)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def a_text(source, cursors, name):
    if name == "cursor" and source.random() < 0.8:
        return quote(a_cursor(source, cursors), safe="")
    if source.random() < 0.1:
        return quote_from_bytes(source.randbytes(source.randrange(12)))
    text = source.choice(TEXTS)
    return text if source.random() < 0.1 and text.isascii() and text.isprintable() else quote(text, safe="")


def a_query(source, cursors, known):
    """Parameters, mostly ones that the operation takes, some twice, some that are none."""
    pairs = []
    for _ in range(source.choice((0, 1, 1, 2, 3))):
        name = source.choice(known) if known and source.random() < 0.85 else source.choice(NAMES)
        pairs.append(f"{quote(name)}={a_text(source, cursors, name)}")
    return "&".join(pairs)


def test_no_request_meets_a_defect(fuzz_rounds, writing_client, document, cursors):
    paths = [path for path in document["paths"] if path.startswith("/api/")]
    statuses = set()
    for source in fuzz_rounds(4.0):
        path = source.choice(paths)
        taken = document["paths"][path].get("get", {}).get("parameters", [])
        known = [parameter["name"] for parameter in taken if parameter["in"] == "query"]
        call = path
        while "{" in call:
            before, _, rest = call.partition("{")
            value = source.choice(
                ("node-1", "GPU-0000", "41", a_text(source, cursors, ""), a_text(source, cursors, ""))
            )
            call = before + value + rest.partition("}")[2]
        method = source.choice(METHODS)
        url = f"{call}?{a_query(source, cursors, known)}"
        response = writing_client.open(
            url,
            method=method,
            data=source.choice(BODIES) if method != "GET" else None,
            content_type=source.choice(TYPES) if method != "GET" else None,
        )
        said = f"{method} {url} answered {response.status_code}: {response.text[:300]}"
        statuses.add(response.status_code)
        assert response.status_code < 500, said
        if response.status_code >= 400 and method != "HEAD":
            assert response.mimetype == "application/problem+json", said
            assert response.json["status"] == response.status_code, said
        elif response.status_code == 200 and method == "GET":
            assert response.mimetype == "application/json", said
            response.get_json()
    assert {200, 400, 404, 405} <= statuses


def test_no_place_in_a_list_meets_a_defect(fuzz_rounds, writing_client, document, cursors):
    lists = [
        path
        for path, operations in document["paths"].items()
        if "cursor" in {parameter["name"] for parameter in operations.get("get", {}).get("parameters", ())}
    ]
    statuses = set()
    for source in fuzz_rounds():
        call = source.choice(lists).format(node_id="node-1", gpu_uuid="GPU-0000", alert_id="41")
        cursor = quote(a_cursor(source, cursors), safe="")
        response = writing_client.get(f"{call}?limit={source.choice((1, 2, 1000))}&cursor={cursor}")
        statuses.add(response.status_code)
        assert response.status_code in {200, 400}, f"{call} {cursor}: {response.status_code} {response.text[:300]}"
    assert statuses == {200, 400}
