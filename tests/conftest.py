"""Real servers for the tests: one PostgreSQL and one Apache Kafka a session, a fresh database or topic a test."""

import json
import os
import random
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import psycopg
import pytest
from hypothesis import settings

from gpu_telemetry.kafka import ensure_topics
from gpu_telemetry.local.kafka import KafkaServer, prepare
from gpu_telemetry.local.ports import Ports, is_free
from gpu_telemetry.local.postgres import PostgresServer
from gpu_telemetry.local.process import StartFailed
from gpu_telemetry.settings import KafkaSettings

# The same examples each time, and as long for each as a busy machine takes; `--hypothesis-profile=anew` draws others.
settings.register_profile("anew", deadline=None)
settings.register_profile("the same", deadline=None, derandomize=True)
settings.load_profile("the same")

_SERVER_FIXTURES = {"postgres_server", "postgres_url", "kafka_server", "kafka_bootstrap"}


def pytest_collection_modifyitems(items):
    for item in items:
        if _SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.integration)


class TopicNames(NamedTuple):
    """Names of topics that no other test uses; nothing is created."""

    topic: str
    dlq_topic: str


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until the last is found, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]
    finally:
        for held in sockets:
            held.close()


def _start(server, prepare=lambda: None):
    """Start a server; where it cannot be had the test is skipped, but CI fails."""
    try:
        prepare()
        server.start()
    except StartFailed as failure:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(failure))


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """`free_ports(n)`: n different ports of 127.0.0.1 that are free now."""
    return _free_ports


@pytest.fixture(scope="session")
def free_port_offset() -> Callable[[], int]:
    """An offset under which every port of the local stack is free now, and outside the range of outgoing ones."""

    def offset():
        for candidate in range(1000 + os.getpid() % 50, 3600, 50):
            if all(is_free(port) for port in asdict(Ports.with_offset(candidate)).values()):
                return candidate
        return pytest.fail("no offset leaves all ports of the local stack free")

    return offset


@pytest.fixture(scope="session")
def wait_for() -> Callable[..., None]:
    """`wait_for(condition, deadline_seconds, message)`: wait until the condition holds, fail with the message if not.

    `message` may be a callable, asked at the end.
    """

    def wait(condition, deadline_seconds=10.0, message="the condition"):
        deadline = time.monotonic() + deadline_seconds
        while not condition():
            if time.monotonic() > deadline:
                said = message() if callable(message) else message
                pytest.fail(f"not within {deadline_seconds:g} s: {said}")
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session, without durability or password."""
    home = tmp_path_factory.mktemp("postgres")
    server = PostgresServer(home / "server", *_free_ports(1), log=home / "postgres.log", password=False, durable=False)
    _start(server)
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of this test alone."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    yield postgres_server.database_url(name)
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory) -> Iterator[KafkaServer]:
    """An Apache Kafka broker of this session."""
    home = tmp_path_factory.mktemp("kafka")
    server = KafkaServer(home / "server", *_free_ports(2), log=home / "kafka.log")
    _start(server, prepare)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_server: KafkaServer) -> str:
    """The session's broker as HOST:PORT."""
    return kafka_server.bootstrap


@pytest.fixture
def topic_names() -> TopicNames:
    """Names for this test's topic and its dead-letter topic, used by no other test."""
    name = f"gpu-telemetry-{uuid.uuid4().hex[:12]}"
    return TopicNames(name, f"{name}.dlq")


@pytest.fixture
def topics_in_environment(kafka_bootstrap, topic_names, monkeypatch) -> Callable[..., KafkaSettings]:
    """`topics_in_environment(partitions=n)`: create this test's topics and name them there; their settings."""

    def create(*, partitions: int) -> KafkaSettings:
        monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
        monkeypatch.setenv("KAFKA_TOPIC", topic_names.topic)
        monkeypatch.setenv("KAFKA_DLQ_TOPIC", topic_names.dlq_topic)
        monkeypatch.setenv("KAFKA_PARTITIONS", str(partitions))
        settings = KafkaSettings.load()
        ensure_topics(settings)
        return settings

    return create


@pytest.fixture
def fuzz_rounds(record_property) -> Iterator[Callable[[], Iterator[random.Random]]]:
    """`fuzz_rounds(seconds)`: sources of chance, one a round, until the time of this test is over.

    FUZZ_SECONDS is that time; where it is not set, `seconds` is. The rounds' seeds go up from FUZZ_SEED, else from 1;
    where only a time is set, from one drawn anew. What a failed test prints last is the seed of its round.
    """
    drawn = str(secrets.randbelow(10**9)) if "FUZZ_SECONDS" in os.environ else "1"
    first = int(os.environ.get("FUZZ_SEED", drawn))
    seed = first

    def rounds(seconds=2.0):
        nonlocal seed
        deadline = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", seconds))
        while True:
            yield random.Random(seed)
            if time.monotonic() >= deadline:
                return
            seed += 1

    yield rounds
    record_property("fuzz_rounds", seed - first + 1)
    print(  # noqa: T201 - pytest shows it with a failure, or with -rP
        f"{seed - first + 1} rounds, the last with FUZZ_SEED={seed}"
    )


class JsonServer:
    """A real HTTP server on loopback that speaks JSON: `answer(method, path, headers, body)` gives status and content.

    `body` is None where a request has none; content that is bytes is sent as it is.
    """

    def __init__(self, answer: Callable[..., tuple[int, object]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, content = answer(self.command, self.path, self.headers, body)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that the server calls

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def json_server() -> Iterator[Callable[[Callable[..., tuple[int, object]]], JsonServer]]:
    """`json_server(answer)`: a `JsonServer`, gone at the end of the test."""
    servers: list[JsonServer] = []

    def serve(answer):
        servers.append(JsonServer(answer))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
