"""The stand that everything is measured on: a real Apache Kafka and PostgreSQL, and pages served from memory.

All that runs on it starts with a database and topics of its own, so that one run leaves nothing to the next.
"""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
from confluent_kafka import Consumer, TopicPartition

from benchmarks.pages import render_fleet
from benchmarks.processes import free_ports, running, wait_for
from gpu_telemetry.local.kafka import KafkaServer
from gpu_telemetry.local.postgres import PostgresServer

COMMAND: Final = str(Path(sys.executable).with_name("gpu-telemetry"))
_PAGE_VARIANTS: Final = 2
_LAST_LINES: Final = 15


class Stand:
    """Kafka and PostgreSQL on loopback while the block lasts, and exporters of a fleet when asked for.

    PostgreSQL is as durable as a user's: each commit waits for the disk.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._runs = 0

    def __enter__(self) -> Self:
        home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-telemetry-bench-")))
        home.chmod(0o755)
        self.home = home
        self.logs = home / "logs"
        self.logs.mkdir()
        pg_port, kafka_port, controller_port = free_ports(3)
        try:
            self.postgres = PostgresServer(home / "postgres", pg_port, log=self.logs / "postgres.log", password=False)
            self._stack.callback(self.postgres.stop)
            self.postgres.start()
            self.kafka = KafkaServer(home / "kafka", kafka_port, controller_port, log=self.logs / "kafka.log")
            self._stack.callback(self.kafka.stop)
            self.kafka.start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for log in sorted(self.logs.iterdir()):
                print(f"--- {log.name}", *_last_lines(log), sep="\n", file=sys.stderr)
        self._stack.close()

    @property
    def servers(self) -> dict[str, int]:
        """The process ids of the broker and of PostgreSQL's postmaster."""
        assert self.kafka.pid is not None
        assert self.postgres.pid is not None
        return {"broker": self.kafka.pid, "postgres": self.postgres.pid}

    @contextmanager
    def fresh(self) -> Iterator[dict[str, str]]:
        """The environment of services that find an empty database and empty topics; the database is dropped after."""
        self._runs += 1
        database = f"bench_{self._runs}"
        with psycopg.connect(self.postgres.database_url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}".encode())
            environment = {
                "KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
                "KAFKA_TOPIC": f"bench-{self._runs}",
                "KAFKA_DLQ_TOPIC": f"bench-{self._runs}.dlq",
                "DATABASE_URL": self.postgres.database_url(database),
                "LOG_LEVEL": "INFO",
            }
            for verb in (["db", "upgrade"], ["topics", "ensure"]):
                subprocess.run([COMMAND, *verb], env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
            try:
                yield environment
            finally:
                connection.execute(f"DROP DATABASE {database} WITH (FORCE)".encode())

    @contextmanager
    def exporters(self, nodes: int, gpus: int) -> Iterator[int]:
        """A process that serves `/nodes/<number>/metrics`, pages rendered ahead; gives its port."""
        (port,) = free_ports(1)
        pages = self.home / "pages.pickle"
        pages.write_bytes(pickle.dumps(render_fleet(nodes, gpus, _PAGE_VARIANTS)))
        command = [sys.executable, "-m", "benchmarks.page_server", str(port), str(pages)]
        with running(command, {}, self.logs / "pages.log"):
            wait_for(lambda: _listens(port), "the exporters", self.logs)
            yield port


def messages_in(consumer: Consumer, topic: str) -> int:
    """How many messages the topic has taken since it was made.

    Raises:
        KafkaException: the broker does not say, as while a partition has no leader yet.
    """
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10) for number in partitions]
    return sum(high for _, high in ends)


def _last_lines(log: Path) -> list[str]:
    """How a log ends; the logs go with the stand."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
