"""What the engine remembers of one node.

Two kinds of things stand here. What moves slowly (alerts, GPUs, XIDs, counters, streaks) sets `dirty` when it changes
and is then saved, whole. What moves with every record (the clock, the newest turn and its readings, the newest turn of
each bridge) does not; restoring takes it from the newest stored rows (alerting/saved_state.py).
"""

from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from alerting.transitions import AlertKey, Severity

LONG_AGO: Final = datetime(1, 1, 1, tzinfo=UTC)
NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)

Phase = Literal["pending", "firing", "muted"]
Readings = tuple[float | None, ...]


class Gpu(msgspec.Struct, omit_defaults=True, gc=False):
    """One GPU that is known to stand in the node.

    `known_since` is the time of its first record; `moved` says that it changed its index since then.
    The newest turn: when it was, the rows it had (`instances`: MIG instances, None for the whole GPU), and the first
    valid value of each watched field; `counts_taken` says that the turn gave XID counts.
    `xid`, `xid_counts`, `counters` and `energy_joules` are the last valid values of any turn.
    """

    uuid: str
    index: int
    known_since: datetime
    moved: bool = False
    turn_at: datetime = LONG_AGO
    instances: tuple[str | None, ...] = ()
    readings: Readings = ()
    counts_taken: bool = False
    # (counters in the engine's order ..., XID): compared as one with each record's.
    steady: Readings = ()
    xid_counts: dict[int, float] | None = None
    energy_joules: float | None = None
    energy_missing: bool = False
    # Pages running, all of them read, that did not name it.
    absences: int = 0
    # How many alerts of it are pending, firing or muted.
    alerts: int = 0


class Alert(msgspec.Struct, omit_defaults=True):
    """One alert key that is not at rest.

    Pending: `since` has, for each severity whose step is passed, since when. Firing: `severity`, `message` and
    `actual_value` are of the last rise. Muted: the firing was resolved by hand, and nothing up to `severity` fires
    until the condition has cleared once.
    """

    key: AlertKey
    kind: str
    phase: Phase
    started_at: datetime
    severity: Severity
    message: str = ""
    gpu_index: int | None = None
    threshold_value: float | None = None
    actual_value: float | None = None
    since: dict[Severity, datetime] = {}
    clearing_since: datetime | None = None
    # XIDs: the codes seen in this firing, the most demanding class of them, and when it ends unless repeated.
    xid_codes: tuple[int, ...] = ()
    xid_class: str | None = None
    expires_at: datetime | None = None


class Bridge(msgspec.Struct, gc=False):
    """The newest turn that a bridge closed of this node."""

    boot_id: str
    seq: int
    at: datetime
    interval_ms: int


class NodeState(msgspec.Struct, omit_defaults=True):
    """One node. The worker reads `clock`, `interval_ms`, `removed` and `dirty`, and may set `dirty`; the rest is the
    engine's.

    `clock` is the newest `collected_at` of the node's own records (LONG_AGO before the first), `interval_ms` the
    newest turn's interval (None before the first turn), `removed` that the node left the configuration and was not
    heard since, so that its silence is no news.
    """  # noqa: D205 - one thought

    node_id: str
    clock: datetime = LONG_AGO
    interval_ms: int | None = None
    removed: bool = False
    dirty: bool = False
    gpus: dict[str, Gpu] = {}
    alerts: dict[AlertKey, Alert] = {}
    bridges: dict[str, Bridge] = {}
    # Turns running without a page, counted up to the rule's number.
    down_turns: int = 0
    # Since when every turn gave a page, and since when that was one boot of one bridge's.
    up_since: datetime | None = None
    page_since: datetime | None = None
    # The newest energy reading of any GPU, the newest that differed from its last, and whether the newest did not.
    energy_at: datetime = LONG_AGO
    moved_at: datetime = LONG_AGO
    still: bool = False
    # Starts, not before the clock, of firings that are over: a start identifies a firing and is not used again.
    recent_starts: dict[AlertKey, datetime] = {}
    # No later than this the node's next record needs a look at all its alerts.
    next_deadline: datetime = NEVER
    # Alerts of rules that are no more: they end at the next record.
    orphans: bool = False

    def put(self, alert: Alert) -> None:
        """Remember an alert that was at rest."""
        self.alerts[alert.key] = alert
        self._count(alert.key, 1)
        self.changed()

    def drop(self, alert: Alert) -> None:
        """Let an alert come to rest."""
        del self.alerts[alert.key]
        if alert.phase != "pending" and alert.started_at >= self.clock:
            self.recent_starts = {key: at for key, at in self.recent_starts.items() if at >= self.clock}
            self.recent_starts[alert.key] = alert.started_at
        self._count(alert.key, -1)
        self.changed()

    def changed(self) -> None:
        """Note that an alert changed."""
        self.dirty = True
        self.next_deadline = min(
            (alert.expires_at for alert in self.alerts.values() if alert.expires_at is not None), default=NEVER
        )
        if self.orphans or any(alert.kind == "node_silent" for alert in self.alerts.values()):
            self.next_deadline = LONG_AGO

    def _count(self, key: AlertKey, step: int) -> None:
        if key.gpu_uuid is not None and (gpu := self.gpus.get(key.gpu_uuid)) is not None:
            gpu.alerts += step
