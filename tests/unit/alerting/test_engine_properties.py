"""Same stream, same alerts: wherever the stream is cut and restored, and whichever path a record takes."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerting.engine import Engine
from alerting.node_state import NodeState
from alerting.rules import SHIPPED_RULES, Rules, load_rules, parse_rules
from alerting.transitions import SEVERITIES, ResolveCommand, Transition
from gpu_telemetry.records import SCHEMA_VERSION, AnyRecord, GpuRecord, LabelledValue, ScrapeRecord, SilenceRecord

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
NODE = "node-1"
_OURS = {"schema_version": SCHEMA_VERSION, "node_id": NODE}

_MORE_RULES = """
rules:
  - name: warm
    field: temperature_celsius
    above: {warning: 80, critical: 90}
    clear_below: 70
    for: 60s
    keep_firing_for: 60s
    message: "{value}"
    actions: [{action: notify, when: [fired]}]
  - name: hungry
    field: power_watts
    above: {warning: 300}
    keep_firing_for: 60s
    message: "{value}"
    actions: [{action: notify, when: [resolved]}]
  - {name: idle, field: power_watts, below: {warning: 60}, message: m, actions: []}
"""
RULES = Rules(load_rules(SHIPPED_RULES).rules + parse_rules(_MORE_RULES).rules)
# Without a falling ladder records can take the fast path.
RISING_RULES = Rules(tuple(rule for rule in RULES.rules if rule.name != "idle"))


def _fields(counts: dict[int, int] | None) -> dict[str, Any]:
    window = {"window_size_in_ms": "300000"}
    rows = [LabelledValue({**window, "xid": str(code)}, float(count)) for code, count in (counts or {}).items()]
    return {} if counts is None else {"DCGM_EXP_XID_ERRORS_COUNT": rows or [LabelledValue(window, 0.0)]}


_COUNTS = st.sampled_from([None, None, None, {}, {31: 1}, {31: 2}, {31: 1, 79: 1}, {119: 1}])


_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "temperature_celsius": st.sampled_from([None, 50.0, 50.0, 72.0, 84.0, 86.0, 91.0, 96.0]),
    "power_watts": st.sampled_from([None, 100.0, 100.0, 50.0, 340.0, 800.0]),
    "memory_used_percent": st.sampled_from([None, 50.0, 50.0, 94.0, 96.0]),
    "xid_code": st.sampled_from([None, 0, 0, 0, 31, 43, 79]),
    "ecc_double_bit_volatile": st.sampled_from([None, 0, 0, 1, 2]),
    "energy_joules": st.sampled_from([None, 1.0, 1.0, 2.0, 3.0]),
    "model": st.sampled_from([None, "NVIDIA H100 80GB HBM3"]),
    "fields": _COUNTS.map(_fields),
}


_ROW = st.tuples(
    st.sampled_from(["GPU-a", "GPU-a", "GPU-b", "GPU-c"]),
    st.sampled_from([0, 1]),
    st.sampled_from([None, None, "1", "2"]),
    st.fixed_dictionaries(_VALUES),
)
_TURN = st.fixed_dictionaries(
    {
        "after": st.sampled_from([0, 1, 5, 30, 30, 30, 30, 60, 150, 301, 1000, -20, -60]),
        "bridge": st.sampled_from(["bridge-1", "bridge-1", "bridge-1", "bridge-2"]),
        "reboots": st.sampled_from([False] * 9 + [True]),
        "up": st.sampled_from([True, True, True, False]),
        "removed": st.sampled_from([False] * 19 + [True]),
        "interval": st.sampled_from([30_000, 30_000, 60_000]),
        "rows": st.lists(_ROW, max_size=4),
        "unseen_uuids": st.sets(st.sampled_from(["GPU-a", "GPU-b"]), max_size=1),
        "changed": st.sampled_from([None, 0, 301]),
        "silence": st.sampled_from([None, None, None, 0, 1]),
        "repeat": st.sampled_from([False] * 5 + [True]),
    }
)


@st.composite
def _streams(draw: st.DrawFn) -> list[AnyRecord]:
    """A node's records, turn by turn: now and then late, repeated, by a second bridge, silent or removed."""
    records: list[AnyRecord] = []
    clock = START
    boots: dict[str, int] = {}
    seqs: dict[str, int] = {}
    ended: dict[str, datetime] = {}
    taken: set[tuple[str, datetime]] = set()
    for turn in draw(st.lists(_TURN, min_size=1, max_size=14)):
        at = clock + timedelta(seconds=turn["after"])
        bridge = turn["bridge"]
        boots[bridge] = boots.get(bridge, 0) + turn["reboots"]
        boot = f"{bridge}/{boots[bridge]}"
        # Times strictly rise within a boot; a clock that was set back shows only after the bridge's restart.
        at = max(at, ended.get(boot, START - timedelta(days=1)) + timedelta(milliseconds=1))
        while (bridge, at) in taken:
            at += timedelta(milliseconds=1)
        taken.add((bridge, at))
        ended[boot] = at
        seqs[boot] = seqs.get(boot, 0) + 1
        origin = {**_OURS, "bridge_id": bridge, "boot_id": boot, "seq": seqs[boot]}
        ours: list[AnyRecord] = [
            GpuRecord(**origin, collected_at=at, gpu_uuid=uuid, gpu_index=index, mig_instance=mig, **values)
            for uuid, index, mig, values in (turn["rows"] if turn["up"] else [])
        ]
        uuids = {each.gpu_uuid for each in ours if isinstance(each, GpuRecord)} | turn["unseen_uuids"]
        ours.append(
            ScrapeRecord(
                **origin,
                collected_at=at,
                up=turn["up"],
                reason=None if turn["up"] else "timeout",
                gpu_records=len(ours),
                gpu_uuids=sorted(uuids) if turn["up"] else [],
                interval_ms=turn["interval"],
                changed_at=None if turn["changed"] is None else at - timedelta(seconds=turn["changed"]),
                removed=turn["removed"],
            )
        )
        records += ours * (2 if turn["repeat"] else 1)
        clock = max(clock, at)
        if turn["silence"] is not None:
            last = clock + timedelta(seconds=turn["silence"])
            records.append(
                SilenceRecord(
                    **_OURS,
                    last_collected_at=last,
                    interval_ms=30_000,
                    detected_at=last + timedelta(seconds=100),
                    worker_id="worker-1",
                )
            )
    return records


_QUIET = {
    "temperature_celsius": 50.0,
    "power_watts": 100.0,
    "memory_used_percent": 50.0,
    "xid_code": 0,
    "ecc_double_bit_volatile": 0,
    "model": "NVIDIA H100 80GB HBM3",
    "fields": _fields({}),
}


_VARIED = (*_VALUES, "up", "instances", "uuids", "bridges", "index")


@st.composite
def _calm_streams(draw: st.DrawFn, varied: str) -> list[AnyRecord]:
    """A node on which one thing alone goes on, so that nothing else makes its state due to be saved."""
    records: list[AnyRecord] = []
    at = START
    for seq in range(1, draw(st.integers(2, 20))):
        at += timedelta(seconds=draw(st.sampled_from([30, 30, 30, 150])))
        bridge = draw(st.sampled_from(["bridge-1", "bridge-2"])) if varied == "bridges" else "bridge-1"
        origin = {**_OURS, "bridge_id": bridge, "boot_id": f"{bridge}/1", "seq": seq, "collected_at": at}
        up = varied != "up" or draw(st.booleans())
        named = draw(st.sampled_from([["GPU-a"], []])) if varied == "uuids" else ["GPU-a"]
        values = {**_QUIET, "energy_joules": float(seq)}
        if varied in _VALUES:
            values[varied] = draw(_VALUES[varied])
        instances = (
            draw(st.sampled_from([[None], ["1", "2", "3"], ["3", "2", "1"]])) if varied == "instances" else [None]
        )
        for instance in instances if up and named else []:
            if varied == "instances":
                values |= {name: draw(_VALUES[name]) for name in ("temperature_celsius", "energy_joules", "fields")}
            index = draw(st.sampled_from([0, 1])) if varied == "index" else 0
            records.append(GpuRecord(**origin, gpu_uuid="GPU-a", gpu_index=index, mig_instance=instance, **values))
        records.append(
            ScrapeRecord(
                **origin, up=up, gpu_records=1, gpu_uuids=named if up else [], interval_ms=30_000, changed_at=at
            )
        )
    return records


_ALL_STREAMS = _streams() | st.sampled_from(_VARIED).flatmap(_calm_streams)


def _resolve_one(engine: Engine, state: NodeState, choice: int) -> Sequence[Transition]:
    active = engine.active(state)
    if not active:
        return []
    alert = active[choice % len(active)]
    command = ResolveCommand(
        key=alert.key, started_at=alert.started_at, severity=alert.severity, actor="ada", at=START + timedelta(days=1)
    )
    return engine.resolve(state, command)


def _fold_all(
    engine: Engine, records: Sequence[AnyRecord], resolves: dict[int, int]
) -> tuple[NodeState, list[Transition]]:
    state = engine.new_node(NODE)
    out: list[Transition] = []
    for position, record in enumerate(records):
        if position in resolves:
            out += _resolve_one(engine, state, resolves[position])
        out += engine.fold(state, record)
    return state, out


_RESOLVES = st.dictionaries(st.integers(0, 60), st.integers(0, 5), max_size=6)
_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def _stored(transitions: Sequence[Transition]) -> list[bytes]:
    """The transitions as they come to be stored: what is equal in Python (1 and 1.0) is told apart here."""
    return [msgspec.json.encode(each) for each in transitions]


def _fold_with_cuts(
    tables: Any, records: Sequence[AnyRecord], resolves: dict[int, int], cuts: set[int], beyond_retention: set[int]
) -> list[Transition]:
    """Fold as workers do of which each goes on, before the records at `cuts`, from what the last one committed."""
    engine = Engine(RULES)
    state = engine.new_node(NODE)
    saved: Any = None
    out: list[Transition] = []
    for position, record in enumerate(records):
        if position in cuts:
            engine = Engine(RULES)
            state = engine.restore(NODE, saved, tables.newest_gpus(), tables.newest_turns())
            assert not state.dirty
        if position in resolves:
            out += _resolve_one(engine, state, resolves[position])
        out += engine.fold(state, record)
        if position in beyond_retention:
            state.dirty = True
        else:
            tables.store(record)
        # A batch ends, and is committed, before each cut: in between, nothing is saved.
        if position + 1 in cuts and state.dirty:
            saved = json.loads(engine.save(state))
    return out


@_SETTINGS
@given(records=_streams(), resolves=_RESOLVES, data=st.data())
def test_a_stream_that_is_cut_and_restored_anywhere_gives_the_same_transitions(make_tables, records, resolves, data):
    everywhere = set(range(len(records)))
    cuts = data.draw(st.just(everywhere) | st.sets(st.sampled_from(sorted(everywhere))), label="cuts")
    beyond_retention = data.draw(st.sets(st.integers(0, len(records)), max_size=3), label="beyond retention")
    _, expected = _fold_all(Engine(RULES), records, resolves)

    found = _fold_with_cuts(make_tables(), records, resolves, cuts, beyond_retention)
    assert _stored(found) == _stored(expected)


@pytest.mark.parametrize("varied", _VARIED)
@settings(_SETTINGS, max_examples=40)
@given(data=st.data())
def test_a_calm_stream_that_is_cut_everywhere_gives_the_same_transitions(make_tables, varied, data):
    records = data.draw(_calm_streams(varied), label="records")
    resolves = data.draw(st.dictionaries(st.integers(0, 30), st.just(0), max_size=1), label="resolves")
    _, expected = _fold_all(Engine(RULES), records, resolves)

    found = _fold_with_cuts(make_tables(), records, resolves, set(range(len(records))), set())
    assert _stored(found) == _stored(expected)


@pytest.mark.parametrize("varied", ["everything", *_VARIED])
@settings(_SETTINGS, max_examples=40)
@given(data=st.data(), resolves=_RESOLVES)
def test_the_fast_path_gives_what_the_full_path_gives(varied, data, resolves):
    records = data.draw(_streams() if varied == "everything" else _calm_streams(varied), label="records")
    slow = Engine(RISING_RULES)
    slow._fold_gpu = slow._gpus.fold_in_full
    expected_state, expected = _fold_all(slow, records, resolves)

    engine = Engine(RISING_RULES)
    state, out = _fold_all(engine, records, resolves)
    assert _stored(out) == _stored(expected)
    assert engine.save(state) == slow.save(expected_state)
    assert engine.counts == slow.counts


@_SETTINGS
@given(records=_ALL_STREAMS, resolves=_RESOLVES)
def test_every_alert_lives_one_life(records, resolves):
    state, out = _fold_all(Engine(RULES), records, resolves)
    firing: dict[Any, Transition] = {}
    starts = set()
    for each in out:
        current = firing.get(each.key)
        if each.kind == "fired":
            assert current is None
            assert (each.key, each.started_at) not in starts
            assert each.started_at == each.at
            starts.add((each.key, each.started_at))
            firing[each.key] = each
        elif each.kind in ("raised", "noted", "resolved"):
            assert current is not None
            assert each.started_at == current.started_at
            assert each.at >= each.started_at or each.resolved_reason == "manual"
            if each.kind == "raised":
                assert SEVERITIES.index(each.severity) > SEVERITIES.index(current.severity)
                firing[each.key] = each
            else:
                assert each.severity == current.severity
                assert (each.message, each.actual_value) == (current.message, current.actual_value)
            if each.kind == "resolved":
                assert each.resolved_reason
                del firing[each.key]
        else:
            assert current is None or each.kind == "inherited"
            assert not each.actions
    assert {alert.key for alert in Engine(RULES).active(state)} == set(firing)
    for uuid, gpu in state.gpus.items():
        assert gpu.alerts == sum(key.gpu_uuid == uuid for key in state.alerts)


@_SETTINGS
@given(records=_ALL_STREAMS)
def test_a_stream_that_is_read_once_more_changes_nothing(records):
    records = [each for each in records if not isinstance(each, SilenceRecord) and not getattr(each, "removed", False)]
    engine = Engine(RULES)
    state, _ = _fold_all(engine, records, {})
    before = engine.save(state)

    assert not [each for record in records for each in engine.fold(state, record)]
    assert engine.save(state) == before
