"""A node whose records are written by hand, second by second, and folded at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from alerting.engine import Engine
from alerting.rules import Rules, load_rules, parse_rules
from alerting.transitions import AlertKey, ResolveCommand, Severity, Transition
from gpu_telemetry.records import SCHEMA_VERSION, AnyRecord, GpuRecord, LabelledValue, ScrapeRecord, SilenceRecord

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
GPU = "GPU-a"


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass
class Tables:
    """The stored rows, as far as restoring asks for them."""

    gpus: dict[tuple[Any, ...], GpuRecord] = field(default_factory=dict)
    turns: dict[tuple[Any, ...], ScrapeRecord] = field(default_factory=dict)

    def store(self, record: AnyRecord) -> None:
        if isinstance(record, GpuRecord):
            row = msgspec.structs.replace(record, bridge_id="?", boot_id="?", seq=1)
            key = (record.gpu_index, record.gpu_uuid, record.mig_instance, record.collected_at)
            self.gpus.setdefault(key, row)
        elif isinstance(record, ScrapeRecord):
            self.turns.setdefault((record.bridge_id, record.boot_id, record.seq, record.collected_at), record)

    def newest_gpus(self) -> Sequence[GpuRecord]:
        newest: dict[tuple[Any, ...], GpuRecord] = {}
        for (*placement, at), row in self.gpus.items():
            if tuple(placement) not in newest or newest[tuple(placement)].collected_at < at:
                newest[tuple(placement)] = row
        return list(newest.values())

    def newest_turns(self) -> Sequence[ScrapeRecord]:
        newest: dict[str, ScrapeRecord] = {}
        for turn in self.turns.values():
            best = newest.get(turn.bridge_id)
            if best is None or (best.collected_at, best.seq) < (turn.collected_at, turn.seq):
                newest[turn.bridge_id] = turn
        return list(newest.values())


class Node:
    """One node of one engine; times are seconds since the test began."""

    def __init__(self, rules: Rules, *, commits: bool = False) -> None:
        self.commits = commits
        self.engine = Engine(rules)
        self.state = self.engine.new_node("node-1")
        self.seq = 0
        self.energy = 0.0
        self.tables = Tables()
        self.saved: bytes | None = None

    def fold(self, record: AnyRecord) -> Sequence[Transition]:
        """Fold a record, and commit as after a batch of it alone."""
        out = self.engine.fold(self.state, record)
        self.tables.store(record)
        if self.state.dirty and self.commits:
            self.saved = self.engine.save(self.state)
        return out

    def restart(self) -> None:
        """Go on as another worker would, from what was committed."""
        self.engine = Engine(self.engine.rules)
        self.state = self.engine.restore("node-1", self.saved, self.tables.newest_gpus(), self.tables.newest_turns())

    def gpu(
        self,
        seconds: float,
        *,
        uuid: str = GPU,
        index: int = 0,
        mig: str | None = None,
        model: str | None = "NVIDIA H100 80GB HBM3",
        xid_counts: dict[int, float] | None = None,
        **values: float | None,
    ) -> Sequence[Transition]:
        """A GPU's row at a time; its energy moves by itself unless it is given."""
        self.energy += 100
        fields = {}
        if xid_counts is not None:
            window = {"window_size_in_ms": "300000"}
            rows = [LabelledValue({**window, "xid": str(code)}, count) for code, count in xid_counts.items()]
            fields["DCGM_EXP_XID_ERRORS_COUNT"] = rows or [LabelledValue(window, 0.0)]
        record = GpuRecord(
            schema_version=SCHEMA_VERSION,
            node_id="node-1",
            bridge_id="bridge-1",
            boot_id="boot-1",
            seq=self.seq + 1,
            collected_at=moment(seconds),
            gpu_index=index,
            gpu_uuid=uuid,
            mig_instance=mig,
            model=model,
            fields=fields,
            **{"energy_joules": self.energy, **values},
        )
        return self.fold(record)

    def turn(
        self,
        seconds: float,
        uuids: Sequence[str] = (GPU,),
        *,
        up: bool = True,
        reason: str | None = None,
        bridge: str = "bridge-1",
        boot: str = "boot-1",
        seq: int | None = None,
        interval: float = 30,
        changed: float | None = None,
        removed: bool = False,
    ) -> Sequence[Transition]:
        """The closing record of a turn; what is on the page changed then unless `changed` says when."""
        self.seq += 1
        record = ScrapeRecord(
            schema_version=SCHEMA_VERSION,
            node_id="node-1",
            bridge_id=bridge,
            boot_id=boot,
            seq=self.seq if seq is None else seq,
            collected_at=moment(seconds),
            up=up,
            reason=reason if up or reason else "timeout",
            gpu_records=len(uuids) if up else 0,
            gpu_uuids=list(uuids) if up else [],
            interval_ms=round(interval * 1000),
            changed_at=moment(seconds if changed is None else changed) if up else None,
            removed=removed,
        )
        return self.fold(record)

    def silence(self, last: float, *, interval: float = 30) -> Sequence[Transition]:
        """A worker says that nothing came since `last`."""
        record = SilenceRecord(
            schema_version=SCHEMA_VERSION,
            node_id="node-1",
            last_collected_at=moment(last),
            interval_ms=round(interval * 1000),
            detected_at=moment(last + 3 * interval + 7),
            worker_id="worker-1",
        )
        return self.fold(record)

    def resolve(
        self,
        rule: str,
        *,
        seconds: float,
        started: float,
        gpu: str | None = GPU,
        severity: Severity = "warning",
    ) -> Sequence[Transition]:
        """A person resolves the alert that started at a time."""
        command = ResolveCommand(
            key=AlertKey(rule, "node-1", gpu),
            started_at=moment(started),
            severity=severity,
            actor="ada",
            at=moment(seconds),
        )
        return self.engine.resolve(self.state, command)


@pytest.fixture
def make_node() -> Callable[[str | None], Node]:
    """Make a node for the rules of a text, or for those that ship."""
    return lambda text=None: Node(load_rules() if text is None else parse_rules(text))


@pytest.fixture
def node(make_node) -> Node:
    """A node under the rules that ship."""
    return make_node()


@pytest.fixture
def committing_node() -> Node:
    """A node under the rules that ship that is saved after each record that makes it due, and can restart."""
    return Node(load_rules(), commits=True)


@pytest.fixture(scope="session")
def make_tables() -> Callable[[], Tables]:
    """Make empty tables."""
    return Tables


@pytest.fixture
def told() -> Callable[[Sequence[Transition]], list[tuple[str, str, str, float]]]:
    """What happened in short: rule, kind, severity, and the second it happened at."""
    return lambda transitions: [
        (each.key.rule, each.kind, each.severity, (each.at - START).total_seconds()) for each in transitions
    ]
