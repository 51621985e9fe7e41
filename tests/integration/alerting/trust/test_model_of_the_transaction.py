"""The engine and the worker's transaction against a simple model, with kills between any two of their steps.

Two workers, each of which believes that all partitions are its own, take turns at a log in memory and a real
database. Records come late, twice and out of order, people resolve alerts, a worker dies or loses its connection
before any statement, before and after the commit. What is committed is what the model says of the offsets committed.
"""

import json
import os
from collections import defaultdict
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import msgspec
import psycopg
import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Message
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg.types.json import set_json_dumps
from pydantic import SecretStr

from alerting.batch import decode_batch
from alerting.days import Days
from alerting.engine import Engine
from alerting.partition import LogIdentity, OwnedPartition
from alerting.partitioner import partition_of
from alerting.placing import place
from alerting.rules import load_rules
from alerting.store import BatchTransaction, Fenced
from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock, rfc3339, to_milliseconds
from gpu_telemetry.records import GpuRecord, ScrapeRecord, SilenceRecord, decode, encode
from gpu_telemetry.settings import DatabaseSettings

TOPIC, PARTITIONS = "records", 2
NODES = ("node-1", "node-2", "node-3")
UUIDS = ("GPU-a", "GPU-b")
INTERVAL = timedelta(seconds=30)
RANK = {"warning": 1, "critical": 2}


class Killed(BaseException):
    """The process is no more."""


class MortalCursor(psycopg.Cursor):
    def execute(self, *arguments, **options):
        self.connection.step()
        return super().execute(*arguments, **options)

    def copy(self, *arguments, **options):
        self.connection.step()
        return super().copy(*arguments, **options)


class MortalConnection(psycopg.Connection):
    """A connection that is gone after so many steps: statements, the end of a transaction, the moment after it."""

    steps_left = None
    fate = Killed

    def step(self):
        if self.steps_left is None:
            return
        self.steps_left -= 1
        if self.steps_left < 0:
            self.steps_left = None
            self.close()
            raise self.fate

    @contextmanager
    def transaction(self, *arguments, **options):
        with super().transaction(*arguments, **options) as transaction:
            yield transaction
            self.step()
        self.step()


class Worker:
    """A worker's memory, and its connection."""

    def __init__(self, url, log):
        self._url = url
        self._log = log
        self.connection = None
        self.fenced = 0
        self.connect()
        self._days = Days(SystemClock(), 30)
        self._transaction = BatchTransaction(Engine(load_rules()), self._days, TOPIC, PARTITIONS)
        self.parts = [OwnedPartition(number) for number in range(PARTITIONS)]
        self.place()

    def connect(self):
        self.connection = MortalConnection.connect(
            self._url, autocommit=True, options="-c timezone=UTC", cursor_factory=MortalCursor
        )
        set_json_dumps(msgspec.json.encode, self.connection)

    def bounds(self, part):
        """Where the log of a partition begins and ends."""
        return 0, len(self._log[part.number])

    def place(self):
        """Lead the partitions that are not placed to their offsets."""
        stream = SimpleNamespace(
            log_identity=lambda: LogIdentity("cluster", "topic"),
            bounds=self.bounds,
            start=lambda _part, _offset: True,
        )
        place(self.connection, stream, TOPIC, [part for part in self.parts if part.position is None], PARTITIONS)

    def take(self, counts):
        """Take in so many messages of each partition, at most; with none at all, what people ask."""
        if self.connection.closed:
            self.connect()
        taken = []
        for part, count in zip(self.parts, counts, strict=True):
            if part.position is None:
                self.place()
            offset = part.position.next_offset
            if messages := self._log[part.number][offset : offset + count]:
                taken.append((part, messages))
        try:
            self._transaction.apply(self.connection, decode_batch(taken), self.parts)
        except Fenced:
            self.fenced += 1
            for part in self.parts:
                part.forget()
            self.place()


class ModelAlert:
    def __init__(self, started_at, severity, value):
        self.started_at = started_at
        self.severity = severity
        self.value = value
        self.muted = False


class ModelNode:
    """What SEMANTICS says of one node's records, for the rules that the test's records can meet."""

    def __init__(self, node_id):
        self.node_id = node_id
        self.clock = datetime.min.replace(tzinfo=UTC)
        self.turn_of = {}
        self.absences = {}
        self.closed = None
        self.down_turns = 0
        self.alerts = {}
        self.last_start = {}
        self.rows = set()
        self.turns = set()
        self.events = []
        self.decisions = set()
        self.history = {}

    def fold(self, record):
        if isinstance(record, SilenceRecord):
            key = ("node_silent", None)
            if record.last_collected_at == self.clock and key not in self.alerts:
                self._fire(key, self.clock + 3 * INTERVAL, "warning", None)
            return
        at = record.collected_at
        if isinstance(record, GpuRecord):
            self.rows.add((record.gpu_uuid, at, record.temperature_celsius))
            if at >= self.clock and self.turn_of.get(record.gpu_uuid) != at:
                self._hear(at)
                self.turn_of[record.gpu_uuid] = at
                self.absences.setdefault(record.gpu_uuid, 0)
                self._heat(record.gpu_uuid, at, record.temperature_celsius)
        else:
            self.turns.add((record.seq, at, record.up))
            if at >= self.clock and self.closed != (at, record.seq):
                self._hear(at)
                self.closed = (at, record.seq)
                self._close(record)

    def _hear(self, at):
        self.clock = at
        self._end(("node_silent", None), at)

    def _heat(self, uuid, at, value):
        key = ("high_temperature", uuid)
        alert = self.alerts.get(key)
        passed = "critical" if value > 95 else "warning" if value > 90 else None
        if alert is not None and value < 85:
            self._end(key, at)
        elif passed and alert is None:
            self._fire(key, at, passed, value)
        elif passed and RANK[passed] > RANK[alert.severity]:
            if alert.muted:
                self._fire(key, at, passed, value)
            else:
                alert.severity, alert.value = passed, value
                self._tell(key, alert, "raised", at)

    def _close(self, record):
        at = record.collected_at
        self.down_turns = 0 if record.up else self.down_turns + 1
        for uuid in sorted(self.absences) if record.up else ():
            self.absences[uuid] = 0 if uuid in record.gpu_uuids else self.absences[uuid] + 1
            key = ("gpu_lost", uuid)
            if self.absences[uuid] == 0:
                self._end(key, at)
            elif self.absences[uuid] == 2 and key not in self.alerts:
                self._fire(key, at, "critical", None)
        if record.up:
            self._end(("exporter_down", None), at)
        elif self.down_turns >= 3 and ("exporter_down", None) not in self.alerts:
            self._fire(("exporter_down", None), at, "critical", None)

    def _fire(self, key, at, severity, value):
        before = self.last_start.get(key)
        if before is not None and at <= before:
            at = before + timedelta(milliseconds=1)
        self.last_start[key] = at
        alert = self.alerts[key] = ModelAlert(at, severity, value)
        self._tell(key, alert, "fired", at)

    def _end(self, key, at):
        alert = self.alerts.pop(key, None)
        if alert is not None and not alert.muted:
            self._tell(key, alert, "resolved", max(at, alert.started_at), "cleared")

    def _tell(self, key, alert, kind, at, reason=None):
        self.events.append((*key, kind, alert.severity, alert.value, reason, alert.started_at, at))
        self._decide(key, alert, kind)
        self._show(key, alert, "resolved" if kind == "resolved" else "active", reason)

    def _show(self, key, alert, status, reason):
        self.history[(*key, alert.started_at)] = (alert.severity, alert.value, status, reason)

    def _decide(self, key, alert, kind):
        actions = ["notify"]
        if key[0] == "high_temperature" and alert.severity == "critical" and kind != "resolved":
            actions.append("migrate_workload")
        told = f"raised:{alert.severity}" if kind == "raised" else kind
        for action in actions:
            name = [key[0], self.node_id, key[1], None, rfc3339(alert.started_at), told, action]
            self.decisions.add(json.dumps(name, separators=(",", ":")))

    def asked(self, key, started_at):
        """A person resolved it; the worker does not know yet."""
        alert = self.alerts[key]
        assert alert.started_at == started_at
        self.events.append((*key, "resolved", alert.severity, alert.value, "manual", started_at, None))
        self._show(key, alert, "resolved", "manual")

    def obey(self, key):
        """The worker learns of it."""
        self._decide(key, self.alerts[key], "resolved")
        self.alerts[key].muted = True

    @property
    def status(self):
        firing = [(rule, alert.severity) for (rule, _), alert in self.alerts.items() if not alert.muted]
        if any(rule == "exporter_down" for rule, _ in firing):
            return "down"
        return max((severity for _, severity in firing), key=RANK.get, default="healthy")


class Machine(RuleBasedStateMachine):
    """What can happen, in any order."""

    url = ""
    counts = None

    @initialize()
    def begin(self):
        self.database = psycopg.connect(self.url, autocommit=True, options="-c timezone=UTC")
        self.database.execute(
            "TRUNCATE nodes, gpus, placements, gpu_metrics, scrapes, alerts, alert_events, alert_actions,"
            " alert_commands, consumer_offsets, stream_gaps, stream_drops, engine_state RESTART IDENTITY CASCADE"
        )
        self.log = [[] for _ in range(PARTITIONS)]
        self.held = []
        self.start = (datetime.now(UTC) - timedelta(hours=20)).replace(microsecond=0)
        self.seq = dict.fromkeys(NODES, 0)
        self.nodes = {}
        self.drops = defaultdict(int)
        self.positions = [0] * PARTITIONS
        self.commands = {}
        self.workers = [Worker(self.url, self.log) for _ in range(2)]

    # What the bridge does.

    _TEMPERATURES = st.tuples(*[st.sampled_from([None, 60.0, 60.0, 84.0, 88.0, 91.0, 96.0, 97.0])] * len(UUIDS))

    def _send(self, node, value):
        number = partition_of(node, PARTITIONS)
        self.log[number].append(
            Message(
                topic=TOPIC,
                partition=number,
                offset=len(self.log[number]),
                key=node.encode(),
                value=value,
                timestamp=(TIMESTAMP_LOG_APPEND_TIME, to_milliseconds(datetime.now(UTC))),
            )
        )

    @rule(
        node=st.sampled_from(NODES),
        up=st.sampled_from([True, True, True, False]),
        temperatures=_TEMPERATURES,
        order=st.sampled_from(["as it is", "as it is", "closing first", "backwards"]),
        held=st.sampled_from([0, 0, 0, 0, 1, 3]),
        times=st.sampled_from([1, 1, 1, 2]),
    )
    def odd_turn(self, node, up, temperatures, order, held, times):
        """One turn of a node; `held` of its messages come later, `times` says how often all others come."""
        self._turn(node, up, temperatures, order, held, times)

    @rule(
        node=st.sampled_from(NODES),
        turns=st.lists(st.tuples(st.sampled_from([True] * 4 + [False]), _TEMPERATURES), min_size=1, max_size=6),
    )
    def turns(self, node, turns):
        """Some turns of a node, one after another."""
        for up, temperatures in turns:
            self._turn(node, up, temperatures)

    def _turn(self, node, up, temperatures, order="as it is", held=0, times=1):
        self.seq[node] += 1
        at = self.start + self.seq[node] * INTERVAL
        shared = {
            "schema_version": 1,
            "node_id": node,
            "bridge_id": "bridge",
            "boot_id": "boot",
            "seq": self.seq[node],
            "collected_at": at,
        }
        records = [
            GpuRecord(
                **shared,
                gpu_index=index,
                gpu_uuid=f"{uuid}-{node}",
                temperature_celsius=temperature,
                energy_joules=float(self.seq[node]),
            )
            for index, (uuid, temperature) in enumerate(zip(UUIDS, temperatures, strict=True))
            if up and temperature is not None
        ]
        uuids = [record.gpu_uuid for record in records]
        records.append(
            ScrapeRecord(**shared, up=up, gpu_records=len(records), gpu_uuids=uuids, interval_ms=30_000, changed_at=at)
        )
        if order == "closing first":
            records.insert(0, records.pop())
        elif order == "backwards":
            records.reverse()
        values = [(node, encode(record)) for record in records]
        self.held += values[:held]
        for _ in range(times):
            for message in values[held:]:
                self._send(*message)

    @rule()
    def what_was_held_comes(self):
        for message in self.held:
            self._send(*message)
        self.held = []

    @rule(number=st.integers(0, PARTITIONS - 1), back=st.integers(1, 20))
    def an_old_message_comes_again(self, number, back):
        if self.log[number]:
            message = self.log[number][-min(back, len(self.log[number]))]
            self._send(message.key().decode(), message.value())

    @rule(node=st.sampled_from(NODES), behind=st.sampled_from([0, 0, 0, 1]))
    def silence(self, node, behind):
        self._send(
            node,
            encode(
                SilenceRecord(
                    schema_version=1,
                    node_id=node,
                    last_collected_at=self.start + (self.seq[node] - behind) * INTERVAL,
                    interval_ms=30_000,
                    detected_at=datetime.now(UTC),
                    worker_id="worker",
                )
            ),
        )

    @rule(node=st.sampled_from(NODES))
    def poison(self, node):
        self._send(node, b"\xff")
        content = {"kind": "gpu", "node_id": node, "collected_at": rfc3339(self.start), "seq": "x"}
        self._send(node, msgspec.json.encode(content))

    # What a person does.

    @rule(choice=st.integers(0, 20))
    def resolve(self, choice):
        active = self.database.execute(
            "SELECT id, node_id, rule, gpu_uuid, triggered_at FROM alerts WHERE status = 'active' ORDER BY id"
        ).fetchall()
        if active:
            alert_id, node, name, uuid, started_at = active[choice % len(active)]
            self.database.execute("SELECT resolve_alert(%s, 'ada')", [alert_id])
            (number,) = self.database.execute("SELECT max(id) FROM alert_commands").fetchone()
            self.nodes[node].asked((name, uuid), started_at)
            self.commands[number] = node, (name, uuid)

    # What the workers do.

    _WORKER = st.integers(0, 1)
    _COUNTS = st.tuples(*[st.sampled_from([0, 1, 3, 8, 20, 20])] * PARTITIONS)
    _STEPS = st.integers(0, 25)

    @rule(which=_WORKER, counts=_COUNTS)
    def take(self, which, counts):
        self.workers[which].take(counts)

    @rule(which=_WORKER, counts=_COUNTS, steps=_STEPS)
    def take_and_be_killed(self, which, counts, steps):
        worker = self.workers[which]
        if worker.connection.closed:
            worker.connect()
        worker.connection.steps_left, worker.connection.fate = steps, Killed
        try:
            worker.take(counts)
        except Killed:
            self.counts["kills inside"] += 1
        self.kill(which)

    @rule(which=_WORKER, counts=_COUNTS, steps=_STEPS)
    def take_and_lose_the_connection(self, which, counts, steps):
        worker = self.workers[which]
        if worker.connection.closed:
            worker.connect()
        worker.connection.steps_left, worker.connection.fate = steps, psycopg.OperationalError("lost")
        try:
            worker.take(counts)
        except psycopg.OperationalError:
            self.counts["connections lost inside"] += 1
        worker.connection.steps_left = None

    @rule(which=_WORKER)
    def kill(self, which):
        self.workers[which].connection.close()
        self.workers[which] = Worker(self.url, self.log)

    # What must hold.

    @invariant()
    def what_is_committed_is_what_the_model_says(self):
        if not hasattr(self, "workers"):
            return
        self._follow()
        rows = self.database.execute(
            "SELECT m.node_id, p.gpu_uuid, m.collected_at, m.temperature_celsius"
            " FROM gpu_metrics m JOIN placements p USING (placement_id)"
        ).fetchall()
        assert sorted(rows) == sorted((node, *row) for node, model in self.nodes.items() for row in model.rows)
        turns = self.database.execute("SELECT node_id, seq, collected_at, up FROM scrapes").fetchall()
        assert sorted(turns) == sorted((node, *turn) for node, model in self.nodes.items() for turn in model.turns)
        events = defaultdict(list)
        for node, *event in self.database.execute(
            "SELECT node_id, rule, gpu_uuid, transition, severity, actual_value, reason, started_at,"
            " CASE WHEN reason = 'manual' THEN NULL ELSE at END FROM alert_events ORDER BY id"
        ):
            events[node].append(tuple(event))
        assert events == {node: model.events for node, model in self.nodes.items() if model.events}
        decisions = [key for (key,) in self.database.execute("SELECT key FROM alert_actions")]
        assert sorted(decisions) == sorted(key for model in self.nodes.values() for key in model.decisions)
        alerts = {
            (node, *key): tuple(value)
            for node, *key, severity, actual, status, reason in self.database.execute(
                "SELECT node_id, rule, gpu_uuid, triggered_at, severity, actual_value, status, resolved_reason"
                " FROM alerts"
            )
            for value in [(severity, actual, status, reason)]
        }
        assert alerts == {
            (node, *key): value for node, model in self.nodes.items() for key, value in model.history.items()
        }
        assert dict(self.database.execute("SELECT node_id, status FROM nodes").fetchall()) == {
            node: model.status for node, model in self.nodes.items() if model.rows or model.turns
        }
        drops = dict(self.database.execute("SELECT node_id, sum(gpu_records)::int FROM stream_drops GROUP BY 1"))
        assert drops == self.drops

    def _follow(self):
        """Bring the model up to the commands and the offsets that are committed."""
        for (number,) in self.database.execute(
            "SELECT id FROM alert_commands WHERE applied_at IS NOT NULL ORDER BY id"
        ):
            if number in self.commands:
                node, key = self.commands.pop(number)
                self.nodes[node].obey(key)
        for number, offset in self.database.execute("SELECT partition, next_offset FROM consumer_offsets").fetchall():
            for message in self.log[number][self.positions[number] : offset]:
                node = message.key().decode()
                if b'"seq":"x"' in message.value():
                    self.drops[node] += 1
                if message.value() == b"\xff" or b'"seq":"x"' in message.value():
                    continue
                self.nodes.setdefault(node, ModelNode(node)).fold(decode(message.value()))
                self.counts["records"] += 1
            assert offset >= self.positions[number]
            self.positions[number] = offset

    def teardown(self):
        if not hasattr(self, "workers"):
            return
        for _ in range(1000):
            self.workers[0].take((5, 5))
            if self.positions == [len(log) for log in self.log] and not self.commands:
                break
            self.what_is_committed_is_what_the_model_says()
        self.what_is_committed_is_what_the_model_says()
        assert self.positions == [len(log) for log in self.log]
        assert not self.commands
        for node, model in self.nodes.items():
            (lines,) = self.database.execute(
                "SELECT count(*) FROM ledger WHERE node_id = %s"
                " AND announced + unannounced + estimated <> stored + dropped + missing",
                [node],
            ).fetchone()
            assert lines == 0
            self.counts["transitions"] += len(model.events)
            self.counts["decisions"] += len(model.decisions)
        self.counts["runs"] += 1
        for worker in self.workers:
            worker.connection.close()
        self.database.close()


@pytest.fixture
def machine(postgres_url, soak):
    """The machine over an empty database of the test's own."""
    database.upgrade(DatabaseSettings.load(url=SecretStr(postgres_url)))

    class Bound(Machine):
        url = postgres_url
        counts = soak.counts

    return Bound


def test_whatever_happens_in_whatever_order_the_tables_are_what_the_model_says(machine, soak):
    bounds = settings(
        max_examples=100 if soak.is_long else 25,
        stateful_step_count=50 if soak.is_long else 30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Making a failure small takes minutes of a real database: it is done for a seed that was asked for.
        phases=[Phase.generate, Phase.shrink] if "SOAK_SEED" in os.environ else [Phase.generate],
    )
    for _ in soak.rounds():
        run_state_machine_as_test(seed(soak.seed)(machine), settings=bounds)


@pytest.fixture
def story(postgres_url):
    """The machine as it begins, for what has to happen in one certain order."""
    database.upgrade(DatabaseSettings.load(url=SecretStr(postgres_url)))
    machine = Machine()
    machine.url, machine.counts = postgres_url, defaultdict(int)
    machine.begin()
    yield machine
    machine.teardown()


def test_a_worker_that_stood_still_while_another_obeyed_a_person_alone_is_fenced(story):
    worker, zombie = story.workers
    story.turns("node-1", [(True, (91.0, None))])
    zombie.take((20, 20))
    worker.take((20, 20))  # fenced, and reads where the other got to
    story.what_is_committed_is_what_the_model_says()
    story.resolve(0)
    worker.take((0, 0))  # no record, and no offset moves
    story.what_is_committed_is_what_the_model_says()
    story.turns("node-1", [(True, (96.0, None))])
    zombie.take((20, 20))
    assert (worker.fenced, zombie.fenced) == (1, 1)
    zombie.take((20, 20))
    # It is a new alert: what a person resolved is not raised.
    story.what_is_committed_is_what_the_model_says()
    assert story.database.execute("SELECT severity, resolved_reason FROM alerts ORDER BY id").fetchall() == [
        ("warning", "manual"),
        ("critical", None),
    ]


def test_records_that_another_worker_took_in_while_a_place_is_looked_for_are_no_cut_log(story):
    worker, other = story.workers
    story.turns("node-1", [(True, (60.0, 60.0))] * 2)
    other.take((20, 20))
    for part in worker.parts:
        part.forget()
    asked = worker.bounds

    def asked_too_early(part):
        answer = asked(part)
        if part is worker.parts[-1] and len(other.parts) == PARTITIONS and not story.held:
            story.held.append(None)
            story.turns("node-1", [(True, (60.0, 60.0))])
            other.take((20, 20))
        return answer

    worker.bounds = asked_too_early
    worker.place()
    story.held.clear()
    assert story.database.execute("SELECT count(*) FROM stream_gaps").fetchone() == (0,)
    assert [part.position for part in worker.parts] == [part.position for part in other.parts]


@pytest.mark.parametrize("steps", range(8))
def test_whose_connection_is_lost_while_it_is_placed_watches_its_nodes_all_the_same(story, steps):
    story.turns("node-1", [(True, (60.0, 60.0))])
    worker, _ = story.workers
    worker.take((20, 20))
    for part in worker.parts:
        part.forget()
    worker.connection.steps_left, worker.connection.fate = steps, psycopg.OperationalError("lost")
    with suppress(psycopg.OperationalError):
        worker.place()
    worker.connection.close()
    worker.connect()
    worker.place()
    assert sum(len(part.watch) for part in worker.parts) == 1
