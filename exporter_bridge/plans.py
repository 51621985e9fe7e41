"""How the GPU records of a page are written from its values: what a scrape needs, ready for use.

A `Plan` knows positions, not names of GPUs, so that nodes of one kind share it. `exporter_bridge.placing` makes it.
"""

from collections.abc import Callable, Iterable, Sequence
from operator import gt, itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from exporter_bridge.judging import Measure
from gpu_telemetry.fields import FIELD_BY_NAME, SENTINELS

_LEAST_SENTINEL: Final = min(SENTINELS)
MOST_MEMORY_MIB: Final = FIELD_BY_NAME["memory_total_mib"].high

Labels = tuple[tuple[str, str], ...]
Pick = Callable[[Sequence[Any]], tuple[Any, ...]]


class Cell(NamedTuple):
    """A value of a record and its position among the page's values.

    `labels` is None for a plain value; else the value is one of its field's list of labelled values.
    """

    position: int
    measure: Measure
    labels: Labels | None


class RecordPlan:
    """One record: its cells, and how its JSON is written when all of them are good.

    The JSON is `parts` with a value's text in every second place: those that `pick` gives, then the values of `scaled`
    (position, divisor), then memory_used_percent if there is `used`, then memory_total_mib if it must be `summed`.
    """

    __slots__ = ("cells", "free", "parts", "pick", "scaled", "summed", "used")

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = tuple(cells)
        ours = {cell.measure.field.name: cell for cell in cells if cell.measure.field is not None}
        direct = [cell for cell in ours.values() if FIELD_BY_NAME[cell.measure.name].multiply_by == 1]
        scaled = [cell for cell in ours.values() if FIELD_BY_NAME[cell.measure.name].multiply_by != 1]
        others = [cell for cell in cells if cell.measure.field is None]
        self.pick = picker([cell.position for cell in (*direct, *others)])
        self.scaled = tuple((cell.position, cell.measure.divisor) for cell in scaled)
        used, free = ours.get("memory_used_mib"), ours.get("memory_free_mib")
        self.used = self.free = None
        self.summed: tuple[int, ...] = ()
        derived = [cell.measure.name for cell in scaled]
        if used is not None and free is not None:
            self.used, self.free = used.position, free.position
            derived.append("memory_used_percent")
            if "memory_total_mib" not in ours:
                reserved = ours.get("memory_reserved_mib")
                self.summed = tuple(cell.position for cell in (used, free, reserved) if cell is not None)
                derived.append("memory_total_mib")
        self.parts = _parts([cell.measure.name for cell in direct], others, derived)


class Plan:
    """The records of a page, and what can be checked of all its values at once."""

    __slots__ = (
        "__weakref__",
        "_highest",
        "_integers",
        "_pick_integers",
        "_pick_wide",
        "_record_of",
        "_wide",
        "records",
    )

    def __init__(self, size: int, records: Iterable[RecordPlan]) -> None:
        self.records = tuple(records)
        self._highest = [float("inf")] * size
        self._record_of = [-1] * size
        for record, plan in enumerate(self.records):
            for position, measure, _ in plan.cells:
                # One told by strange labels stands twice: as its field's value, and as a labelled one of no range.
                self._highest[position] = min(self._highest[position], measure.surely_good_up_to)
                self._record_of[position] = record
        everything = [cell for plan in self.records for cell in plan.cells]
        self._integers = [cell.position for cell in everything if cell.measure.integer]
        self._wide = [cell.position for cell in everything if cell.measure.surely_good_up_to >= _LEAST_SENTINEL]
        self._pick_integers = picker(self._integers)
        self._pick_wide = picker(self._wide)

    def suspects(self, tokens: Sequence[bytes], values: Sequence[float], text: bytes) -> set[int]:
        """The records that may hold a value not to be believed, given a plain page.

        `text` is all tokens together. Every other record can be written as its parts say.
        """
        if (
            b"-" not in text
            and not any(map(gt, values, self._highest))
            and SENTINELS.isdisjoint(self._pick_wide(values))
            and (not self._integers or b"".join(self._pick_integers(tokens)).isdigit())
        ):
            return set()
        outside = [
            record
            for record, value, highest in zip(self._record_of, values, self._highest, strict=True)
            if not 0 <= value <= highest
        ]
        blank = [self._record_of[position] for position in self._wide if values[position] in SENTINELS]
        broken = [self._record_of[position] for position in self._integers if not tokens[position].isdigit()]
        return {*outside, *blank, *broken} - {-1}


def picker(positions: Sequence[int]) -> Pick:
    """What takes the elements at these positions out of a sequence, as a tuple."""
    if len(positions) > 1:
        return itemgetter(*positions)
    if not positions:
        return lambda _: ()
    position = positions[0]
    return lambda sequence: (sequence[position],)


def _parts(direct: Sequence[str], others: Sequence[Cell], derived: Sequence[str]) -> list[bytes]:
    """A record's JSON after its identity, with a gap for each value at the odd places."""
    parts = [b""]

    def gap(before: bytes) -> None:
        parts[-1] += before
        parts.extend((b"", b""))

    for name in direct:
        gap(b",%b:" % _json(name))
    opening = b',"fields":{'
    for number, (_, measure, labels) in enumerate(others):
        same_field = number > 0 and others[number - 1].measure.dcgm == measure.dcgm
        if labels is None:
            gap(b"%b%b:" % (opening, _json(measure.dcgm)))
        else:
            start = b"," if same_field else b"%b%b:[" % (opening, _json(measure.dcgm))
            gap(b'%b{"labels":%b,"value":' % (start, _json(dict(labels))))
            last = number + 1 == len(others) or others[number + 1].measure.dcgm != measure.dcgm
            parts[-1] += b"}]" if last else b"}"
        opening = b","
    if others:
        parts[-1] += b"}"
    for name in derived:
        gap(b",%b:" % _json(name))
    parts[-1] += b"}"
    return parts


def _json(thing: str | dict[str, str]) -> bytes:
    return msgspec.json.encode(thing)
