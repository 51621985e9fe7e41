"""The alert engine as one process: its parts put together, started, and stopped in the order that loses nothing."""

import gc
import logging
import signal
import threading
from types import FrameType
from typing import Final

import psycopg
from confluent_kafka import KafkaException

from alerting.actions.guard import CircuitBreaker
from alerting.actions.http import make_client
from alerting.actions.migration import DryRun, EmulatorMigrator, WorkloadMigrator
from alerting.actions.notify import Notifier
from alerting.actions.webhook import Webhook
from alerting.consumer import LogEnds, RecordStream
from alerting.days import Days
from alerting.dead_letters import DeadLetterPublisher, make_producer
from alerting.engine import Engine
from alerting.housekeeping import Housekeeping
from alerting.intake import Intake
from alerting.lag import Lag
from alerting.log_watch import LogWatch
from alerting.lookout import Lookout
from alerting.metrics import Metrics, make_listener
from alerting.outbox import ANNOTATE, MIGRATE, NOTIFY, Annotator, Outbox, OutboxThreads
from alerting.retrying import delay_seconds
from alerting.rules import SHIPPED_RULES, load_rules, with_annotations
from alerting.session import APPLICATION, Session
from alerting.settings import AlertingSettings
from alerting.silence_publisher import SilencePublisher
from alerting.store import BatchTransaction
from alerting.worker import Worker
from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.kafka import verify_topics
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings, split_address

_log = logging.getLogger(__name__)

_ACTIONS_DEADLINE_SECONDS: Final = 8.0
# A full batch makes some fifty thousand that the collector counts.
_OBJECTS_BETWEEN_COLLECTIONS: Final = 100_000


class Stopped(Exception):
    """Told to stop before everything that is needed was there."""


class Service:
    """One alert engine: the worker in the calling thread; outbox, housekeeping and metrics in threads of their own."""

    def __init__(self, kafka: KafkaSettings, database_settings: DatabaseSettings, settings: AlertingSettings) -> None:
        self._kafka = kafka
        self._database_settings = database_settings
        self._settings = settings
        self._stop = threading.Event()
        self._decided = threading.Event()
        self._session: Session | None = None

    def stop(self) -> None:
        """Stop soon; may be called from a signal handler."""
        self._stop.set()
        self._decided.set()

    def run(self) -> None:
        """Run until told to stop.

        Raises:
            RulesError: the rules cannot be used.
            SchemaError, TopicError: the database or Kafka is not what this program needs; says what to run.
            OSError: the metrics' address cannot be listened on.
            ConsumerFailed, psycopg.Error: see `Worker.run`.
        """
        settings = self._settings
        clock = SystemClock()
        metrics = Metrics()
        rules = load_rules(settings.rules_file or SHIPPED_RULES)
        engine = Engine(rules if settings.grafana_url is None else with_annotations(rules))
        listener = make_listener(*split_address(settings.listen), metrics, self._problems)
        threading.Thread(target=listener.serve_forever, name="metrics", daemon=True).start()
        try:
            partitions = self._await_everything()
            producer = make_producer(self._kafka, settings.worker_id)
            session = Session(self._database_settings, metrics)
            stream = RecordStream(self._kafka, settings)
            lag = Lag(stream, LogEnds(self._kafka), metrics, clock)
            days = Days(clock, settings.retention_days)
            intake = Intake(
                session=session,
                stream=stream,
                transaction=BatchTransaction(engine, days, self._kafka.topic, partitions),
                dead_letters=DeadLetterPublisher(producer, self._kafka.dlq_topic),
                days=days,
                metrics=metrics,
                clock=clock,
                stop=self._stop,
                lag=lag,
            )
            lookout = Lookout(
                session=session,
                lag=lag,
                silences=SilencePublisher(producer, self._kafka.topic),
                engine=engine,
                worker_id=settings.worker_id,
                metrics=metrics,
                clock=clock,
            )
            worker = Worker(
                topic=self._kafka.topic,
                partitions=partitions,
                settings=settings,
                session=session,
                stream=stream,
                intake=intake,
                lookout=lookout,
                log_watch=LogWatch(self._kafka),
                metrics=metrics,
                clock=clock,
                stop=self._stop,
                decided=self._decided,
            )
            self._session = session
            self._run_beside(worker, metrics, clock)
            producer.flush(2.0)
        except Stopped:
            _log.info("Stopped before Kafka and the database were there")
        finally:
            listener.shutdown()
            listener.server_close()

    def _problems(self) -> list[str]:
        return ["waits for Kafka and the database"] if self._session is None else self._session.problems()

    def _run_beside(self, worker: Worker, metrics: Metrics, clock: SystemClock) -> None:
        settings = self._settings
        pool = database.make_pool(
            self._database_settings, f"{APPLICATION} outbox", min_size=1, max_size=settings.action_workers + 1
        )
        client = make_client(settings.action_timeout_seconds)
        webhook = None
        if settings.webhook_url is not None:
            webhook = Webhook(client, settings.webhook_url.get_secret_value(), settings.external_url)
        migrator: WorkloadMigrator = DryRun()
        if not settings.actions_dry_run and settings.migration_url is not None:
            migrator = EmulatorMigrator(client, settings.migration_url)
        annotator = self._annotator()

        def outbox(leaves: tuple[str, ...]) -> Outbox:
            return Outbox(
                pool=pool,
                notifier=Notifier(webhook),
                migrator=migrator,
                breaker=CircuitBreaker(settings.breaker_migrations, settings.breaker_minutes * 60),
                worker_id=settings.worker_id,
                action_timeout_seconds=settings.action_timeout_seconds,
                metrics=metrics,
                clock=clock,
                annotator=annotator,
                leaves=leaves,
            )

        # A Grafana that hangs holds up annotations alone: they have an outbox and a thread to themselves.
        own = [OutboxThreads(outbox((NOTIFY, MIGRATE)), 1, self._stop, self._decided, metrics)] if annotator else []
        others = outbox((ANNOTATE,) if annotator else ())
        threads = [OutboxThreads(others, settings.action_workers, self._stop, self._decided, metrics), *own]
        housekeeping = Housekeeping(self._database_settings, settings, metrics, clock)
        _settle_memory()
        pool.open()
        housekeeping.start()
        for group in threads:
            group.start()
        try:
            worker.run()
        finally:
            self.stop()
            housekeeping.stop()
            for group in threads:
                group.join(_ACTIONS_DEADLINE_SECONDS / len(threads))
            pool.close()
            client.close()
            if annotator is not None:
                annotator.close()
            _log.info("Alert engine stopped")

    def _annotator(self) -> Annotator | None:
        url, token = self._settings.grafana_url, self._settings.grafana_token
        if url is None or token is None:
            return None
        # Half a second and some 12 MB, spent only where it is used.
        from alerting.actions.annotations import GrafanaAnnotator  # noqa: PLC0415

        return GrafanaAnnotator(url, token.get_secret_value(), self._settings.action_timeout_seconds)

    def _await_everything(self) -> int:
        """Wait for the database and Kafka, check both, and give the number of the topic's partitions."""
        attempt = 0
        while not self._stop.is_set():
            try:
                with database.connect(self._database_settings, APPLICATION) as connection:
                    database.verify(connection)
                return verify_topics(self._kafka)
            except (psycopg.OperationalError, KafkaException) as error:
                attempt += 1
                delay = delay_seconds(attempt, longest=10.0)
                _log.warning("not there yet: %s; trying again in %.1f s", _in_words(error), delay)
                self._stop.wait(delay)
        raise Stopped


def _settle_memory() -> None:
    """Keep the garbage collector from walking over each batch several times: what a batch makes has no cycles.

    It took a tenth of the worker's time (measured); every so many objects it still looks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 10, 10)


def _in_words(error: psycopg.OperationalError | KafkaException) -> str:
    return error.args[0].str() if isinstance(error, KafkaException) else str(error).strip()


def run(kafka: KafkaSettings, database_settings: DatabaseSettings, settings: AlertingSettings) -> None:
    """Run an alert engine until SIGTERM or SIGINT."""
    service = Service(kafka, database_settings, settings)

    def told_to_stop(number: int, _frame: FrameType | None) -> None:
        _log.info("Got %s, stopping", signal.Signals(number).name)
        service.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told_to_stop)
    service.run()
