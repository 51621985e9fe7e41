"""Real pages and messages to begin with, and ways to damage bytes."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emulator.dialects import DIALECTS
from emulator.faults import FAULTS, FaultKind, FaultScope
from emulator.fleet import Fleet
from emulator.settings import EmulatorSettings
from gpu_telemetry.clock import ManualClock

_PAGES = Path(__file__).parents[1] / "data" / "pages"
_EMULATED = (
    *({"dialect": dialect} for dialect in DIALECTS),
    {"mig_nodes": 1},
    {"nvlink_rows": 3, "entities": "nvswitch,cpu,cpu_core", "optional_fields": "ecc,throttle_reasons,xid_count"},
    {"attribution": "time_slicing"},
    {"attribution": "vgpu"},
    {"attribution": "hpc_jobs", "hostname": "localhost"},
    {"old_spelling": True, "hostname": "none"},
)
_UNPLEASANT = (
    FaultKind.SENTINELS,
    FaultKind.OUT_OF_RANGE,
    FaultKind.CONVERSION_ERROR,
    FaultKind.UNESCAPED_LABEL,
    FaultKind.DUPLICATE_ROWS,
    FaultKind.GARBAGE_LINE,
)
# What means something to a reader of pages or of JSON, where it does not belong.
_WORDS = (
    b"\n", b"\r\n", b"\n\n", b" ", b"\t", b"} ", b"}", b"{", b'"', b"\\", b'\\"', b",", b"=", b"#", b"# ", b"# HELP ",
    b"# TYPE ", b"# TYPE x counter\n", b"# HELP x y\n# TYPE x gauge\n", b"# EOF\n", b"\x00", b"\xff", b"\xc3",
    b"\xef\xbb\xbf",
    b"NaN", b"+Inf", b"-Inf", b"1e999", b"-0", b"0x10", b"1_000", b"1 1700000000000", b"2147483632",
    b"9223372036854775794", b"140737488355328.000000", b"4294967295", b"-1", b"0.5", b"1e3", b'{a="b"} 1\n', b'gpu="0"',
    b'gpu="99999999999"', b'gpu="-1"', b'UUID=""', b'UUID="GPU-1"', b'uuid="GPU-1"', b'GPU_I_ID="1"', b'nvlink="0"',
    b'xid="79"', b"DCGM_FI_DEV_GPU_TEMP", b"_bucket", b"ERROR - FAILED TO CONVERT TO STRING", b"[", b"]", b"null", b":",
    b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80", b"a" * 600,
)  # fmt: skip


@pytest.fixture(scope="session")
def real_pages() -> list[bytes]:
    """Pages that users posted, and emulated ones of every dialect with and without faults."""
    pages = [path.read_bytes() for path in sorted(_PAGES.iterdir()) if path.suffix == ".prom"]
    for options in _EMULATED:
        fleet = Fleet(EmulatorSettings(nodes=1, gpus=2, **options), ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))
        pages.append(fleet.page("node-1"))
    for kind in _UNPLEASANT:
        fleet = Fleet(EmulatorSettings(nodes=1, gpus=2), ManualClock(datetime(2026, 1, 1, tzinfo=UTC)))
        fleet.set_fault(kind, "node-1", 1 if FAULTS[kind].scope is FaultScope.GPU else None, {})
        pages.append(fleet.page("node-1"))
    return pages


@pytest.fixture(scope="session")
def damaged() -> Callable[[random.Random, list[bytes]], bytes]:
    """`damaged(source, bodies)`: one of these bodies after one to six misfortunes."""

    def damage(source, bodies):
        body = source.choice(bodies)
        for _ in range(source.choice((1, 1, 2, 3, 6))):
            body = source.choice(_MISFORTUNES)(source, body, bodies)
        return body

    return damage


def _place(source, body):
    """Somewhere in a body, often where a line or a value begins."""
    where = source.randrange(len(body) + 1)
    if source.random() < 0.5:
        found = body.find(source.choice((b"\n", b" ", b'"', b",", b"}", b":")), where)
        where = found + source.randrange(2) if found >= 0 else where
    return where


def _insert(source, body, _bodies):
    where = _place(source, body)
    return body[:where] + source.choice(_WORDS) + body[where:]


def _overwrite(source, body, _bodies):
    where = _place(source, body)
    return body[:where] + source.randbytes(source.choice((1, 1, 1, 4))) + body[where + 1 :]


def _cut_out(source, body, _bodies):
    where = _place(source, body)
    return body[:where] + body[where + source.choice((1, 1, 2, 8, 60, 500)) :]


def _cut_off(source, body, _bodies):
    return body[: _place(source, body)]


def _repeat(source, body, _bodies):
    start = _place(source, body)
    piece = body[start : start + source.choice((1, 10, 100, 1000))]
    return body[:start] + piece * source.choice((2, 2, 5)) + body[start + len(piece) :]


def _repeat_line(source, body, _bodies):
    lines = body.splitlines(keepends=True) or [b"\n"]
    lines.insert(source.randrange(len(lines) + 1), source.choice(lines))
    return b"".join(lines)


def _swap_lines(source, body, _bodies):
    lines = body.splitlines(keepends=True) or [b"\n"]
    one, other = source.randrange(len(lines)), source.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def _splice(source, body, bodies):
    other = source.choice(bodies)
    return body[: _place(source, body)] + other[_place(source, other) :]


_MISFORTUNES = (
    _insert, _insert, _insert, _overwrite, _overwrite, _cut_out, _cut_out, _cut_off, _repeat, _repeat_line, _swap_lines,
    _splice,
)  # fmt: skip
