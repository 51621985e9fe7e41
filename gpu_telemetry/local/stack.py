"""What a local stack is made of: which parts, in which order, where each listens, and what each is told."""

import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from psycopg import pq
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from gpu_telemetry.local.directory import DataDirectory, PartState, Rates, StackState
from gpu_telemetry.local.kafka import KafkaServer, is_prepared, prepare
from gpu_telemetry.local.kafka_jars import KAFKA_VERSION
from gpu_telemetry.local.parts import Command, Download, Part, Service, Task
from gpu_telemetry.local.ports import HOST, PortInUse, Ports, first_free, is_free
from gpu_telemetry.local.postgres import DATABASE, USER, PostgresServer
from gpu_telemetry.settings import SettingsError

_RETENTION: Final = "7d"
# Part of the repository, not of the package.
_RULES: Final = Path(__file__).parents[2] / "prometheus" / "rules"
# What suits one machine, unless the environment says otherwise.
_SUITED: Final = {
    # So that all parts together end within the time that is promised.
    "BRIDGE_FLUSH_SECONDS": "4",
    "API_GRACEFUL_TIMEOUT_SECONDS": "2",
    # A member of the consumer group that keeps its name: one that was killed and started again waits for no time-out.
    "ALERTING_INSTANCE_ID": "local-1",
}
# One of these says what the bridge scrapes: what this process was told would contradict the stack's own choice.
_EITHER_OR: Final = frozenset({"BRIDGE_TARGETS_FILE", "BRIDGE_HTTP_SD_URL"})


@dataclass(frozen=True, slots=True)
class Options:
    """What the user of `up` chose.

    `targets` is a file_sd file of real exporters instead of the emulated fleet; `kafka` (HOST:PORT) and `database`
    (a libpq URL or connection string) are servers that are there already; `interval_seconds` is the time between two
    scrapes of an exporter; with `demo`, actions are carried out rather than only noted.
    """

    data: Path
    port_offset: int = 0
    targets: Path | None = None
    kafka: str | None = None
    database: SecretStr | None = None
    demo: bool = False
    interval_seconds: float = 30.0
    prometheus: bool = True


class Stack:
    """The parts that the options ask for, and where they are found.

    `notes` are lines that its user should know before it starts.
    """

    def __init__(self, options: Options, directory: DataDirectory) -> None:
        self.options = options
        self.directory = directory
        self.notes: list[str] = []
        self.ports = Ports.with_offset(options.port_offset)
        self.prometheus = shutil.which("prometheus") if options.prometheus else None
        if options.prometheus and self.prometheus is None:
            self.notes.append("Prometheus is not on the PATH: the stack runs without it")
        self._postgres: PostgresServer | None = None
        if options.database is None:
            self._postgres = PostgresServer(directory.postgres, self._postgres_port(), log=directory.log("postgres"))
        self._kafka: KafkaServer | None = None
        if options.kafka is None:
            ports = self.ports.kafka, self.ports.kafka_controller
            self._kafka = KafkaServer(directory.kafka, *ports, log=directory.log("kafka"))

    @property
    def bootstrap(self) -> str:
        """Where Kafka is, as HOST:PORT."""
        if self._kafka is not None:
            return self._kafka.bootstrap
        assert self.options.kafka is not None
        return self.options.kafka

    @property
    def database_shown(self) -> str:
        """Where PostgreSQL is, for libpq, without a password."""
        if self._postgres is not None:
            return f"postgresql://{USER}@{HOST}:{self._postgres.port}/{DATABASE}"
        assert self.options.database is not None
        return without_password(self.options.database.get_secret_value())

    @property
    def emulator_url(self) -> str | None:
        """The emulated fleet, unless real exporters are scraped."""
        return None if self.options.targets else _url(self.ports.emulator)

    @property
    def urls(self) -> dict[str, str]:
        """Where to look: a name and an address."""
        found = {
            "api": _url(self.ports.api),
            "api docs": _url(self.ports.api, "/docs"),
            "bridge metrics": _url(self.ports.bridge, "/metrics"),
            "fleet metrics": _url(self.ports.bridge, "/fleet/metrics"),
            "alert engine metrics": _url(self.ports.alert_engine, "/metrics"),
        }
        if self.emulator_url:
            found["emulator"] = self.emulator_url
        if self.prometheus:
            found["prometheus"] = _url(self.ports.prometheus)
        return found

    def check_ports(self) -> None:
        """Make sure that every part can listen where it should.

        Raises:
            PortInUse: names each part and port that cannot be had, and what helps.
        """
        wanted = {"the API": self.ports.api, "the exporter bridge": self.ports.bridge}
        wanted["the alert engine"] = self.ports.alert_engine
        hints = ["--port-offset N moves all ports of the stack (see what listens with `ss -ltnp`)"]
        if self.emulator_url:
            wanted["the emulator"] = self.ports.emulator
        if self.prometheus:
            wanted["Prometheus"] = self.ports.prometheus
        if self._kafka is not None:
            wanted |= {"Apache Kafka": self.ports.kafka, "Kafka's controller": self.ports.kafka_controller}
        used = {part: port for part, port in wanted.items() if not is_free(port)}
        if not used:
            return
        if "Prometheus" in used:
            hints.append("--no-prometheus leaves Prometheus out")
        if "Apache Kafka" in used:
            hints.append(f"--kafka {HOST}:{self.ports.kafka} uses the Kafka that is there")
        lines = [f"port {port}, where {part} would listen, is in use" for part, port in used.items()]
        raise PortInUse("\n".join([*lines, *hints]))

    def plan(self) -> list[Part | Task]:
        """Everything to start, in order. Call it once the directory is held."""
        plan: list[Part | Task] = []
        if self._postgres is not None:
            plan.append(self._postgres)
        if self._kafka is not None and not is_prepared():
            plan.append(Download(f"Downloading Apache Kafka {KAFKA_VERSION} (55 MB, once)", prepare))
        if self._kafka is not None:
            plan.append(self._kafka)
        plan.append(self._command("Database schema", "db", "upgrade"))
        plan.append(self._command("Kafka topics", "topics", "ensure"))
        if self.emulator_url:
            plan.append(self._service("Emulator", "emulator", self.ports.emulator))
        plan.append(self._service("Alert engine", "alert-engine", self.ports.alert_engine))
        plan.append(self._service("Exporter bridge", "bridge", self.ports.bridge))
        plan.append(self._service("API", "api", self.ports.api))
        if self.prometheus:
            plan.append(self._prometheus_part(self.prometheus))
        return plan

    def environment(self) -> dict[str, str]:
        """What our own services are told, over what this process was told. It holds the database's password."""
        told = {
            "PYTHONUNBUFFERED": "1",
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap,
            "BRIDGE_LISTEN": f"{HOST}:{self.ports.bridge}",
            "BRIDGE_INTERVAL_SECONDS": f"{self.options.interval_seconds:g}",
            "ALERTING_LISTEN": f"{HOST}:{self.ports.alert_engine}",
            "ALERTING_EXTERNAL_URL": self.urls["api"],
            "API_LISTEN": f"{HOST}:{self.ports.api}",
            "EMULATOR_LISTEN": f"{HOST}:{self.ports.emulator}",
        }
        if self._postgres is not None:
            told["DATABASE_URL"] = self._postgres.url
        elif self.options.database is not None:
            told["DATABASE_URL"] = self.options.database.get_secret_value()
        if self.options.targets:
            told["BRIDGE_TARGETS_FILE"] = str(self.options.targets.resolve())
        else:
            told["BRIDGE_HTTP_SD_URL"] = f"{self.emulator_url}/sd"
        if self.options.demo and self.emulator_url:
            told["ALERTING_ACTIONS_DRY_RUN"] = "false"
            told["ALERTING_MIGRATION_URL"] = f"{self.emulator_url}/control/migrate"
        return _SUITED | {name: value for name, value in os.environ.items() if name not in _EITHER_OR} | told

    def state(self, started_at: str, parts: list[PartState], rates: Rates) -> StackState:
        """What the running stack says of itself."""
        return StackState(
            pid=os.getpid(),
            started_at=started_at,
            data=str(self.directory.path),
            demo=self.options.demo,
            urls=self.urls,
            database=self.database_shown,
            kafka=self.bootstrap,
            parts=parts,
            rates=rates,
        )

    def _postgres_port(self) -> int:
        """The port for PostgreSQL: the next free one if a server of the machine has the usual one, which is common."""
        usual = self.ports.postgres
        others = {port for name, port in asdict(self.ports).items() if name != "postgres"}
        port = first_free(usual, others)
        if port != usual:
            self.notes.append(
                f"port {usual}, where PostgreSQL would listen, is in use: it listens on {port} instead "
                "(--port-offset N moves all ports, --database URL uses the server that is there)"
            )
        return port

    def _service(self, name: str, verb: str, port: int) -> Service:
        return Service(name, _own(verb), port, log=self.directory.log(verb), environment=self.environment)

    def _command(self, name: str, *verb: str) -> Command:
        return Command(name, _own(*verb), log=self.directory.log("-".join(verb)), environment=self.environment)

    def _prometheus_part(self, program: str) -> Service:
        home = self.directory.prometheus
        home.mkdir(parents=True, exist_ok=True)
        configuration = home / "prometheus.yml"
        configuration.write_text(
            "# Written anew at each start of the local stack.\n"
            + yaml.safe_dump(prometheus_configuration(self.ports, self.options.interval_seconds), sort_keys=False)
        )
        command = [
            program,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--storage.tsdb.retention.time={_RETENTION}",
            f"--web.listen-address={HOST}:{self.ports.prometheus}",
        ]
        port, log = self.ports.prometheus, self.directory.log("prometheus")
        return Service("Prometheus", command, port, log=log, environment=lambda: os.environ)


def prometheus_configuration(ports: Ports, interval_seconds: float) -> dict[str, Any]:
    """What Prometheus scrapes of a local stack: each service's own metrics, and the fleet's pages with their labels.

    Its jobs are those of prometheus/prometheus.yml, and so are its rules where the repository's folder of them is.
    """
    interval = f"{max(1, round(interval_seconds))}s"
    own = {"bridge": ports.bridge, "alert-engine": ports.alert_engine, "api": ports.api, "prometheus": ports.prometheus}
    jobs: dict[str, dict[str, Any]] = {
        name: {"job_name": name, "static_configs": [{"targets": [f"{HOST}:{port}"]}]} for name, port in own.items()
    }
    # The fleet's job has it too.
    nodes_up = {"source_labels": ["__name__"], "regex": "gpu_exporter_up", "action": "drop"}
    jobs["bridge"]["metric_relabel_configs"] = [nodes_up]
    fleet = {"targets": [f"{HOST}:{ports.bridge}"]}
    jobs["gpu-fleet"] = {
        "job_name": "gpu-fleet",
        "metrics_path": "/fleet/metrics",
        "honor_labels": True,
        "static_configs": [fleet],
    }
    configuration: dict[str, Any] = {"global": {"scrape_interval": interval, "evaluation_interval": interval}}
    if _RULES.is_dir():
        configuration["rule_files"] = [str(_RULES / "*.yml")]
    return configuration | {"scrape_configs": list(jobs.values())}


def without_password(connection_string: str) -> str:
    """A database's libpq URL or connection string without what is secret in it, as libpq takes it again.

    Raises:
        psycopg.Error: it is none; the error's text may hold the secret.
    """
    parts = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.parse(connection_string.encode())
        # libpq says which are secret (*), and which only help to find its faults (D).
        if option.val is not None and not option.dispchar
    }
    return make_conninfo("", **parts)


def database_of(state: StackState, directory: DataDirectory) -> SecretStr:
    """How to connect to a running stack's database: its own has its password in the directory, another elsewhere.

    Raises:
        SettingsError: the password cannot be read.
    """
    if all(part.name != PostgresServer.name for part in state.parts):
        return SecretStr(state.database)
    file = directory.postgres / "password"
    try:
        password = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{file}, the password of the stack's database: {error.strerror}") from None
    return SecretStr(make_conninfo(state.database, password=password))


def _own(*verb: str) -> list[str]:
    # -P: what lies in the working directory is not imported.
    return [sys.executable, "-P", "-m", "gpu_telemetry.cli", *verb]


def _url(port: int, path: str = "") -> str:
    return f"http://{HOST}:{port}{path}"
