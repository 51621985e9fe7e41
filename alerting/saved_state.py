"""A node's state, saved and found again: the saved form, and the newest stored rows that bring it up to date.

The saved form is whole, so rows older than its clock add nothing. Rows that are not older stand for records that were
folded after it was saved (or with it): they bring the clock, each GPU's newest turn and readings, and each bridge's
newest turn. A record that was folded as late lies before the clock of a save that came after it, so no row misleads.
Without a saved form the rows alone tell which GPUs stood where, their XIDs and counters; what no row holds is lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from alerting.gpu_events import XID_COUNTS, xid_counts
from alerting.node_state import LONG_AGO, Alert, Bridge, Gpu, NodeState, Readings
from alerting.transitions import AlertKey
from gpu_telemetry.records import GpuRecord, ScrapeRecord

_VERSION: Final = 1


class Saved(msgspec.Struct, omit_defaults=True):
    """What `engine_state` holds of a node. `watched` and `counters` name what the GPUs' readings are of."""

    version: int
    clock: datetime
    watched: tuple[str, ...]
    counters: tuple[str, ...]
    interval_ms: int | None = None
    removed: bool = False
    gpus: list[Gpu] = []
    alerts: list[Alert] = []
    bridges: dict[str, Bridge] = {}
    down_turns: int = 0
    up_since: datetime | None = None
    page_since: datetime | None = None
    energy_at: datetime = LONG_AGO
    moved_at: datetime = LONG_AGO
    still: bool = False
    recent_starts: list[tuple[AlertKey, datetime]] = []


_COPIED: Final = (
    "clock",
    "interval_ms",
    "removed",
    "bridges",
    "down_turns",
    "up_since",
    "page_since",
    "energy_at",
    "moved_at",
    "still",
)
_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Saved)


class StateCodec:
    """Saves and restores the nodes of one engine, whose watched fields and counters give the readings their order."""

    def __init__(self, watched: tuple[str, ...], counters: tuple[str, ...], kinds: Mapping[str, str]) -> None:
        self._watched = watched
        self._counters = counters
        self._kinds = kinds

    def save(self, state: NodeState) -> bytes:
        """The node's state as a JSON object."""
        saved = Saved(
            version=_VERSION,
            watched=self._watched,
            counters=self._counters,
            gpus=list(state.gpus.values()),
            alerts=list(state.alerts.values()),
            recent_starts=list(state.recent_starts.items()),
            **{name: getattr(state, name) for name in _COPIED},
        )
        return _encoder.encode(saved)

    def restore(
        self,
        node_id: str,
        saved: bytes | str | Mapping[str, Any] | None,
        gpu_rows: Iterable[GpuRecord],
        scrape_rows: Iterable[ScrapeRecord],
    ) -> NodeState:
        """The node's state as it was after the newest of the rows."""
        rows = sorted(gpu_rows, key=lambda row: (row.collected_at, row.gpu_index, row.gpu_uuid, row.mig_instance or ""))
        turns = sorted(scrape_rows, key=lambda row: row.collected_at)
        state = NodeState(node_id)
        if saved is None:
            left_at = max((turn.collected_at for turn in turns if turn.removed), default=LONG_AGO)
            _find_turns(state, turns, left_at)
            self._find_gpus(state, [row for row in rows if row.collected_at > left_at])
        else:
            self._load(state, saved)
        since = state.clock
        for row in rows:
            if row.collected_at >= since:
                self._take_row(state, row)
        for turn in turns:
            if turn.collected_at >= since:
                _take_turn(state, turn)
        if not state.still:
            state.moved_at = max(state.moved_at, state.energy_at)
        state.changed()
        state.dirty = saved is None and bool(rows or turns)
        return state

    def _load(self, state: NodeState, saved: bytes | str | Mapping[str, Any]) -> None:
        found = (
            _decoder.decode(saved) if isinstance(saved, bytes | str) else msgspec.convert(saved, Saved, str_keys=True)
        )
        if found.version != _VERSION:
            raise msgspec.ValidationError(f"expected version {_VERSION}, got {found.version} - at `$.version`")
        for name in _COPIED:
            setattr(state, name, getattr(found, name))
        for gpu in found.gpus:
            gpu.readings = _reordered(gpu.readings, found.watched, self._watched)
            names, wanted = (*found.counters, "xid_code"), (*self._counters, "xid_code")
            gpu.steady = _reordered(gpu.steady, names, wanted)
            state.gpus[gpu.uuid] = gpu
        state.recent_starts = dict(found.recent_starts)
        state.alerts = {alert.key: alert for alert in found.alerts}
        state.orphans = any(self._kinds.get(key.rule) != alert.kind for key, alert in state.alerts.items())

    def _find_gpus(self, state: NodeState, rows: Iterable[GpuRecord]) -> None:
        """Know the GPUs that the rows name, by what each row last said."""
        for row in rows:
            gpu = state.gpus.get(row.gpu_uuid)
            if gpu is None:
                gpu = Gpu(row.gpu_uuid, row.gpu_index, row.collected_at)
                gpu.steady = (None,) * (len(self._counters) + 1)
                state.gpus[gpu.uuid] = gpu
            gpu.index = row.gpu_index
            gpu.moved = True  # whether it was new at its index, no row tells
            gpu.steady = merged(tuple(getattr(row, name) for name in (*self._counters, "xid_code")), gpu.steady)
            counts = xid_counts(row)
            gpu.xid_counts = gpu.xid_counts if counts is None else counts

    def _take_row(self, state: NodeState, row: GpuRecord) -> None:
        """Bring a known GPU's newest turn up to date with a row that was folded."""
        gpu = state.gpus.get(row.gpu_uuid)
        state.clock = max(state.clock, row.collected_at)
        if gpu is None or row.gpu_index != gpu.index or row.collected_at < gpu.turn_at:
            return  # a GPU that was replaced or removed since, or stood elsewhere
        readings: Readings = tuple(getattr(row, name) for name in self._watched)
        if row.collected_at > gpu.turn_at:
            gpu.turn_at = row.collected_at
            gpu.instances = (row.mig_instance,)
            gpu.readings = readings
            gpu.counts_taken = XID_COUNTS in row.fields
            if readings[-1] is not None:
                gpu.energy_joules = readings[-1]
        elif row.mig_instance not in gpu.instances:
            gpu.instances += (row.mig_instance,)
            if gpu.readings[-1] is None and readings[-1] is not None:
                gpu.energy_joules = readings[-1]
            gpu.readings = merged(gpu.readings, readings)
            gpu.counts_taken = gpu.counts_taken or XID_COUNTS in row.fields
        if readings[-1] is not None:
            state.energy_at = max(state.energy_at, row.collected_at)


def merged(first: Readings, second: Readings) -> Readings:
    """The first valid value of each."""
    return tuple(b if a is None else a for a, b in zip(first, second, strict=True))


def _reordered(readings: Readings, names: Sequence[str], wanted: Sequence[str]) -> Readings:
    found = dict(zip(names, readings, strict=True)) if readings else {}
    return tuple(found.get(name) for name in wanted)


def _find_turns(state: NodeState, turns: Iterable[ScrapeRecord], left_at: datetime) -> None:
    """Know the bridges that the rows name, and since when the node has been up as far as they tell."""
    for turn in turns:
        state.interval_ms = turn.interval_ms
        state.removed = turn.collected_at == left_at
        if turn.collected_at > left_at:
            state.bridges[turn.bridge_id] = Bridge(turn.boot_id, turn.seq, LONG_AGO, turn.interval_ms)
            state.up_since = state.page_since = turn.collected_at if turn.up else None
            state.down_turns = 0 if turn.up else 1


def _take_turn(state: NodeState, turn: ScrapeRecord) -> None:
    """Bring a bridge's newest turn up to date with a row that was folded."""
    state.clock = max(state.clock, turn.collected_at)
    bridge = state.bridges.get(turn.bridge_id)
    if bridge is not None and turn.collected_at >= bridge.at and not turn.removed:
        state.bridges[turn.bridge_id] = Bridge(turn.boot_id, turn.seq, turn.collected_at, turn.interval_ms)
