"""A recorded stream in which everything happens, servers and connections that can be broken, and rounds of chance."""

import os
import random
import secrets
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from alerting.session import APPLICATION
from gpu_telemetry.kafka import admin_client
from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.local.postgres import PostgresServer
from gpu_telemetry.records import DropCount, GpuRecord, SilenceRecord, encode

TURNS = 40
# The shortest that brokers allow by default: a member that was killed blocks its partitions no longer.
SESSION_TIMEOUT_MS = 6000
_figures: list[str] = []


@pytest.fixture
def soak(request):
    """How long and with which chance a test disturbs: see `Soak`."""
    rounds = Soak(request.node.name)
    yield rounds
    rounds.tell()


class Soak:
    """Rounds of chance for one test: one, or as many as SOAK_SECONDS allows; their seeds go up from SOAK_SEED.

    Without either the seed is 1; where only a time is set, it is drawn anew. `is_long` says whether SOAK_SECONDS is
    set, and a round is to be a long one. What is counted is printed with the seeds at the end of the session.
    """

    def __init__(self, name):
        self.name = name
        self.is_long = "SOAK_SECONDS" in os.environ
        self.seconds = float(os.environ.get("SOAK_SECONDS", "0"))
        drawn = secrets.randbelow(10**9) if self.is_long else 1
        self.first = self.seed = int(os.environ.get("SOAK_SEED", drawn))
        self.counts = Counter()
        self._began = time.monotonic()

    def rounds(self):
        """Sources of chance, one a round."""
        self._began = time.monotonic()
        while True:
            self.counts["rounds"] += 1
            print(f"SOAK_SEED={self.seed}")  # noqa: T201 - pytest shows it with a failure
            yield random.Random(self.seed)
            if time.monotonic() - self._began >= self.seconds:
                return
            self.seed += 1

    def tell(self):
        """Keep what was counted for the end of the session."""
        figures = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        seconds = time.monotonic() - self._began
        _figures.append(f"{self.name}: {figures}; {seconds:.0f} s, SOAK_SEED={self.first}")


def pytest_terminal_summary(terminalreporter):
    if _figures and "SOAK_SECONDS" in os.environ:
        terminalreporter.section("soak")
        for line in _figures:
            terminalreporter.write_line(line)


class Recording:
    """Messages of a bridge, key and value, over some hours of event time, in which all kinds of things happen.

    Each GPU record bears a number (`fields`). Records come late, twice and out of order, and between them what is no
    record at all. Five minutes lie between turns, so that the silence of a replay's pauses is none.
    """

    def __init__(self, make_fleet, chance, *, turns=TURNS, with_poison=True):
        self._chance = chance
        self._fleet = make_fleet(
            nodes=5, gpus=4, interval=300.0, start=datetime.now(UTC) - timedelta(seconds=300.0 * (turns + 2))
        )
        self._temperature = {(node, index): 75.0 for node in self._fleet.nodes for index in range(4)}
        self._numbers = 0
        self._other_bridge = 0
        self.messages = []
        self.gpu_records = 0
        for turn in range(turns):
            for node in self._fleet.nodes:
                self._add([self._numbered(record) for record in self._turn(node, turn)], with_poison=with_poison)
            self._fleet.at += self._fleet.interval

    def _numbered(self, record):
        if isinstance(record, GpuRecord):
            self._numbers += 1
            self.gpu_records += 1
            record.fields = {"NUMBER": float(self._numbers)}
        return record

    def _turn(self, node, turn):
        """One node's turn, with what goes wrong on that node then."""
        chance, fleet = self._chance, self._fleet
        for index in range(4):
            place = node, index
            self._temperature[place] = min(99.0, max(60.0, self._temperature[place] + chance.uniform(-11, 12)))
        if (node, turn) in {("node-3", 24), ("node-5", 29)}:  # just before it is replaced, and its node taken out
            self._temperature[node, 1] = 97.0
        temperatures = {index: self._temperature[node, index] for index in range(4)}
        shape = {"up": True, "without": ()}
        if node == "node-2":
            shape["up"] = not (8 <= turn < 13 or chance.random() < 0.05)
        if node == "node-3" and 12 <= turn < 20:
            shape["without"] = (2,)
        if node == "node-2" and turn == 20:
            last = fleet.at - fleet.interval
            yield SilenceRecord(
                schema_version=1,
                node_id=node,
                last_collected_at=last,
                interval_ms=300_000,
                detected_at=datetime.now(UTC),
                worker_id="worker-0",
            )
        records = fleet.turn(node, temperatures, **shape, workloads=[{"namespace": "ml", "pod": f"train-{turn % 3}"}])
        if node == "node-3" and turn >= 25:
            self._replace(records)
        if node == "node-4":
            self._afflict(records, turn)
        if node == "node-5":
            yield from self._node_5(records, turn)
        else:
            yield from records

    def _replace(self, records):
        """Another GPU stands at index 1."""
        *gpus, closing = records
        for record in gpus:
            if record.gpu_index == 1:
                record.gpu_uuid = "GPU-node-3-new"
        closing.gpu_uuids = [record.gpu_uuid for record in gpus]

    def _afflict(self, records, turn):
        """XIDs, uncorrected errors, a failed row remapping, full memory, too much power."""
        for record in records[:-1]:
            record.xid_code = self._chance.choice([0, 0, 0, 31, 43, 79])
            record.ecc_double_bit_volatile = turn // 9 if record.gpu_index == 1 else 0
            record.row_remap_failure = int(record.gpu_index == 3 and 20 <= turn < 30)
            record.memory_used_percent = self._chance.choice([40.0, 94.0, 97.5])
            record.power_watts = self._chance.choice([300.0, 300.0, 760.0])

    def _node_5(self, records, turn):
        """A second bridge for a while; a bridge that is started anew; a page that stands still; a node taken out."""
        *gpus, closing = records
        if turn >= 18:
            for record in records:
                record.boot_id, record.seq = "boot-2", turn - 17 if turn < 26 else turn - 16
            if turn >= 26:
                closing.drops = {"queue_full": DropCount(1, 4)}
        if 22 <= turn < 25:
            for record in gpus:
                record.energy_joules = 77.0
        if turn == 30:
            closing.removed, closing.up, closing.gpu_records, closing.gpu_uuids = True, False, 0, []
            yield closing
            return
        yield from records
        if 8 <= turn < 12:
            self._other_bridge += 1
            for record in records:
                second = msgspec.structs.replace(
                    record,
                    bridge_id="bridge-2",
                    boot_id="boot-other",
                    seq=self._other_bridge,
                    collected_at=record.collected_at + timedelta(seconds=1),
                )
                yield second

    def _add(self, records, *, with_poison):
        messages = [(record.node_id, encode(record)) for record in records]
        for place, (key, value) in enumerate(messages):
            self.messages.append((key, value))
            if self._chance.random() < 0.04:  # delivered twice, at once or a little later
                self.messages.insert(len(self.messages) - self._chance.randrange(2), (key, value))
            # Not after a silence: the record behind it would undo it before it is read, and node_silent never fire.
            follows = place and not isinstance(records[place - 1], SilenceRecord)
            if follows and self._chance.random() < 0.04:
                self.messages[-1], self.messages[-2] = self.messages[-2], self.messages[-1]
            if self._chance.random() < 0.02 and len(self.messages) > 60:  # an old one once more: it is late
                self.messages.append(self.messages[-self._chance.randrange(30, 60)])
            if with_poison and self._chance.random() < 0.02:
                self.messages.append((key, self._poison(value)))

    def _poison(self, value):
        content = msgspec.json.decode(value)
        return self._chance.choice(
            [
                b"\xff\x00 garbage",
                b'{"kind":"gpu"}',
                msgspec.json.encode(content | {"schema_version": 99}),
                msgspec.json.encode(content | {"hostname": "a\0b"}),
                msgspec.json.encode(content | {"node_id": "somebody-else"}),
            ]
        )


@pytest.fixture
def record_stream(make_fleet):
    """`record_stream(chance, **options)`: see `Recording`."""
    return lambda chance, **options: Recording(make_fleet, chance, **options)


class Trust:
    """What is asked of a stream after it was disturbed."""

    def __init__(self, make_stream, start, wait_for):
        self._make_stream = make_stream
        self._start = start
        self._wait_for = wait_for

    @staticmethod
    def new_topic():
        """Names for a topic that nothing was put into, as settings of Kafka."""
        name = f"trust-{uuid.uuid4().hex[:12]}"
        return {"topic": name, "dlq_topic": f"{name}.dlq"}

    def publish(self, stream, messages):
        """Put messages, (key, value), into the topic and wait until the broker has them."""
        for key, value in messages:
            stream.send_raw(value, key)
        stream.flush()

    def end(self, stream):
        """The sum of the offsets at which the topic's partitions end."""
        consumer = Consumer({"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused"})
        try:
            return sum(
                consumer.get_watermark_offsets(TopicPartition(stream.kafka.topic, number), timeout=30)[1]
                for number in range(stream.kafka.partitions)
            )
        finally:
            consumer.close()

    def taken_in(self, stream):
        """The sum of the offsets that are taken in; -1 while the database does not tell."""
        try:
            return stream.taken_in()
        except psycopg.OperationalError:
            return -1

    def await_all(self, stream, deadline=120, said=lambda: ""):
        """Wait until the whole topic is taken in."""
        end = self.end(stream)
        self._wait_for(
            lambda: self.taken_in(stream) == end,
            deadline,
            lambda: f"{self.taken_in(stream)} of {end} taken in\n{said()}",
        )

    def undisturbed(self, stream, **where):
        """The history that an engine which nothing disturbs makes of the same topic in a database of its own."""
        given = {"bootstrap_servers": stream.kafka.bootstrap_servers, "topic": stream.kafka.topic}
        alone = self._make_stream(dlq_topic=f"{stream.kafka.topic}.undisturbed", **(given | where))
        engine = self._start(on=alone)
        self.await_all(alone)
        engine.stop()
        return alone.history()

    def transactions(self, stream):
        """How many alert engines are in the middle of one on the stream's database."""
        return stream.query(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND application_name = %s",
            APPLICATION,
        )[0][0]

    def check(self, stream, expected):
        """The history is the expected one, number for number, and every line of the ledger balances."""
        found = stream.history()
        for name, rows in expected.items():
            assert found[name] == rows, name
        lines = stream.ledger()
        assert sum(line["stored"] for line in lines.values()) == len(expected["metrics"])
        return lines

    def dead_letters_of_undisturbed(self, stream):
        """Those of the engine that nothing disturbed."""
        return self._dead_letters(stream, f"{stream.kafka.topic}.undisturbed")

    def dead_letters(self, stream):
        """Where dead letters came from and why; more than once is legal, and shows as once."""
        return self._dead_letters(stream, stream.kafka.dlq_topic)

    def _dead_letters(self, stream, topic):
        consumer = Consumer({"bootstrap.servers": stream.kafka.bootstrap_servers, "group.id": "unused"})
        partition = TopicPartition(topic, 0, 0)
        found = set()
        try:
            _, high = consumer.get_watermark_offsets(partition, timeout=30)
            consumer.assign([partition])
            while high > 0:
                messages = consumer.consume(high, 10)
                assert messages, "the dead letters could not be read"
                for message in messages:
                    headers = {name: value.decode() for name, value in message.headers()}
                    found.add((int(headers["partition"]), int(headers["offset"]), headers["reason"]))
                if messages[-1].offset() + 1 >= high:
                    break
        finally:
            consumer.close()
        return found


@pytest.fixture
def trust(make_stream, start, wait_for):
    """See `Trust`."""
    return Trust(make_stream, start, wait_for)


@pytest.fixture
def pause(wait_for):
    """`pause(seconds)`: let a moment that chance chose come."""

    def wait(seconds):
        until = time.monotonic() + seconds
        wait_for(lambda: time.monotonic() >= until, seconds + 60)

    return wait


def _children(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def _is_gone(pid):
    """Whether a process has let go of its memory: there is none, or what is left of it waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_postgres(server, wait_for):
    """SIGKILL for every process of the server at once, as when the machine dies."""
    os.kill(server.pid, signal.SIGSTOP)  # it forks no more
    children = _children(server.pid)
    server.kill()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    server.stop()
    # A server does not start while one of them still holds the shared memory.
    wait_for(lambda: all(map(_is_gone, children)), 30)


@pytest.fixture(scope="session")
def own_postgres(tmp_path_factory, free_ports, wait_for):
    """A durable PostgreSQL server that may be killed: `own_postgres.kill_all()`."""
    home = tmp_path_factory.mktemp("trust-postgres")
    server = PostgresServer(home / "server", *free_ports(1), log=home / "postgres.log", password=False, durable=True)
    server.kill_all = lambda: kill_postgres(server, wait_for)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def own_kafka(tmp_path_factory, free_ports, kafka_server):
    """A Kafka broker that may be killed, and whose clients all go through a proxy: `own_kafka.proxy`."""
    assert kafka_server.pid  # the jars are there
    home = tmp_path_factory.mktemp("trust-kafka")
    port, controller_port = free_ports(2)
    proxy = Proxy(port)
    server = KafkaServer(home / "server", port, controller_port, log=home / "kafka.log", advertised_port=proxy.port)
    server.proxy = proxy
    server.start()
    yield server
    server.stop()
    proxy.close()


class Proxy:
    """Passes TCP connections on to a port of 127.0.0.1; can cut them all, refuse new ones, or let none get on."""

    def __init__(self, target):
        self._target = target
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._lock = threading.Lock()
        self._sockets = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """End every connection; new ones are taken."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def refuse(self):
        """End every connection, and new ones as soon as they come."""
        self._refusing = True
        self.cut()

    def stall(self):
        """Hold back every byte; the connections stand."""
        self._flowing.clear()

    def flow(self):
        """Let everything pass again."""
        self._refusing = False
        self._flowing.set()

    def close(self):
        self._listener.close()
        self.flow()
        self.cut()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client):
        with client:
            if self._refusing:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                return
            server.settimeout(None)
            with server:
                with self._lock:
                    self._sockets |= {client, server}
                back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                back.start()
                self._pass_on(client, server)
                back.join()
                with self._lock:
                    self._sockets -= {client, server}

    def _pass_on(self, source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def make_proxy():
    """`make_proxy(port)`: see `Proxy`."""
    made = []

    def make(port):
        made.append(Proxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def delete_before():
    """`delete_before(stream, partition, offset)`: the log of a partition begins there from now on."""

    def delete(stream, partition, offset):
        place = TopicPartition(stream.kafka.topic, partition, offset)
        client = admin_client(stream.kafka)
        client.delete_records([place])[place].result(30)

    return delete
