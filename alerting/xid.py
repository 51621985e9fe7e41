"""What each XID code means and asks for: the rows of alerting/xid.csv, one a code, with their sources.

The class is a decision, since sources disagree: NVIDIA's catalogue gives it, and the column `fleets_do` tells what
fleet tools do instead. A code without a row is of class `inspect`: NVIDIA's advice for it is to contact support.
"""

import csv
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

XID_FILE: Final = Path(__file__).with_name("xid.csv")
_COLUMNS: Final = ("code", "name", "class", "nvidia_says", "fleets_do", "source")


class XidClass(StrEnum):
    """What an XID asks for, from nothing to the most."""

    IGNORE = "ignore"
    RESTART_APPLICATION = "restart_application"
    RESET_GPU = "reset_gpu"
    RESTART_MACHINE = "restart_machine"
    INSPECT = "inspect"

    @property
    def action(self) -> str:
        """The class in words, as an imperative."""
        return _ACTIONS[self]

    @property
    def rank(self) -> int:
        """Its place in the order: a higher one asks for more."""
        return _RANKS[self]

    @property
    def is_reset_or_worse(self) -> bool:
        """Whether the GPU cannot be trusted before it was reset, or ever."""
        return self.rank >= _RANKS[XidClass.RESET_GPU]


_ACTIONS: Final = {
    XidClass.IGNORE: "nothing to do",
    XidClass.RESTART_APPLICATION: "restart the application",
    XidClass.RESET_GPU: "reset the GPU",
    XidClass.RESTART_MACHINE: "restart the machine",
    XidClass.INSPECT: "inspect the hardware or contact support",
}
_RANKS: Final = {xid_class: rank for rank, xid_class in enumerate(XidClass)}


class Xid(NamedTuple):
    """One code: its meaning and its class."""

    code: int
    name: str
    xid_class: XidClass


def read_xids(path: Path = XID_FILE) -> dict[int, Xid]:
    """The codes of a file by number.

    Raises:
        ValueError: a row that cannot be used, with the file, the line and what was expected.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != _COLUMNS:
            raise ValueError(f"{path.name}: line 1: expected the columns {', '.join(_COLUMNS)}")
        xids: dict[int, Xid] = {}
        for line, xid in _rows(path.name, reader):
            if xids.setdefault(xid.code, xid) is not xid:
                raise ValueError(f"{path.name}: line {line}: expected each code once, got {xid.code} again")
        return xids


def _rows(name: str, reader: "csv.DictReader[str]") -> Iterator[tuple[int, Xid]]:
    for row in reader:
        where = f"{name}: line {reader.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected {len(_COLUMNS)} columns")
        for column in ("code", "name", "class", "nvidia_says", "source"):
            if not row[column]:
                raise ValueError(f"{where}: column {column}: expected a value")
        if not row["code"].isdecimal() or int(row["code"]) == 0:
            raise ValueError(f"{where}: column code: expected a number above 0, got {row['code']!r}")
        if row["class"] not in set(XidClass):
            raise ValueError(f"{where}: column class: expected one of {', '.join(XidClass)}, got {row['class']!r}")
        yield reader.line_num, Xid(int(row["code"]), row["name"], XidClass(row["class"]))


@cache
def _shipped() -> dict[int, Xid]:
    return read_xids()


def xid(code: int) -> Xid:
    """What a code means; one that no source lists is of class `inspect`."""
    return _shipped().get(code) or Xid(code, "unlisted XID", XidClass.INSPECT)
