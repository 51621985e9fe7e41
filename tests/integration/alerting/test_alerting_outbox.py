"""Decisions carried out: once, in order, while they still make sense, within the breaker's limit."""

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import psycopg
import pytest
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from alerting.actions.guard import CircuitBreaker
from alerting.actions.migration import DryRun, EmulatorMigrator
from alerting.actions.notify import Notifier
from alerting.actions.webhook import Webhook
from alerting.metrics import Metrics
from alerting.outbox import Outbox, OutboxThreads
from gpu_telemetry import database
from gpu_telemetry.clock import SystemClock
from gpu_telemetry.settings import DatabaseSettings

WORKLOADS = [{"namespace": "ml", "pod": "train-1", "container": "main"}]


class Decisions:
    """An outbox table and what its decisions hang on, written as the worker writes it."""

    def __init__(self, connection):
        self.connection = connection
        self.alerts = 0

    def one(self, statement, *parameters):
        return self.connection.execute(statement, parameters).fetchone()

    def alert(self, *, status="active", age=timedelta(0), record_age=timedelta(0), closed=True, node="node-1"):
        """An alert of GPU 3 of a node whose newest record is of that age; gives its id."""
        self.alerts += 1
        uuid = f"GPU-{self.alerts}"
        now = datetime.now(UTC)
        self.connection.execute(
            "INSERT INTO nodes (node_id, first_seen, last_heard, interval_ms) VALUES (%s, %s, %s, 30000)"
            " ON CONFLICT DO NOTHING",
            (node, now - record_age, now - record_age),
        )
        self.connection.execute("INSERT INTO gpus (gpu_uuid, first_seen) VALUES (%s, now())", (uuid,))
        (placement,) = self.one(
            "INSERT INTO placements (node_id, gpu_index, gpu_uuid, since) VALUES (%s, %s, %s, now())"
            " RETURNING placement_id",
            node,
            self.alerts,
            uuid,
        )
        at = now - record_age
        for parent in ("gpu_metrics", "scrapes"):
            self.connection.execute("SELECT ensure_partition(%s, %s)", (parent, at.date()))
        self.connection.execute(
            "INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, workloads, collected_at)"
            " VALUES (%s, %s, %s, %s, %s)",
            (placement, node, self.alerts, Jsonb(WORKLOADS), at),
        )
        if closed:
            self.connection.execute(
                "INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids,"
                " interval_ms) VALUES (%s, 'b', 'b', %s, %s, true, 1, '{}', 30000)",
                (node, self.alerts, at),
            )
        (alert_id,) = self.one(
            "INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, severity, message, status,"
            " triggered_at, resolved_at) VALUES ('high_temperature', 'high_temperature', %s, %s, %s, 'critical',"
            " 'GPU temperature is 96.3°C', %s, %s, %s) RETURNING id",
            node,
            self.alerts,
            uuid,
            status,
            now - age,
            now if status == "resolved" else None,
        )
        return alert_id

    def decide(self, alert_id, action="notify", transition="fired", age=timedelta(0)):
        """A decision whose event is of that age; gives its id."""
        (action_id,) = self.one(
            "INSERT INTO alert_actions (alert_id, action_type, transition, key, action_details, event_time)"
            " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
            alert_id,
            action,
            transition,
            f'["{alert_id}","{transition}","{action}"]',
            Jsonb({"severity": "critical", "message": "GPU temperature is 96.3°C"}),
            datetime.now(UTC) - age,
        )
        return action_id

    def outcome(self, action_id):
        return self.one("SELECT status, reason FROM alert_actions WHERE id = %s", action_id)

    def details(self, action_id):
        return self.one("SELECT action_details FROM alert_actions WHERE id = %s", action_id)[0]

    def due(self, action_id=None):
        """Let the back-off of an action (or of all) pass."""
        self.connection.execute(
            "UPDATE alert_actions SET next_attempt_at = now() WHERE next_attempt_at <> 'infinity'"
            " AND (%s::bigint IS NULL OR id = %s)",
            (action_id, action_id),
        )


@pytest.fixture
def decisions(postgres_url):
    database.upgrade(DatabaseSettings.load(url=SecretStr(postgres_url)))
    with psycopg.connect(postgres_url, autocommit=True, options="-c timezone=UTC") as connection:
        yield Decisions(connection)


@pytest.fixture
def make_outbox(postgres_url, loopback_receiver):
    """`make_outbox(**parts)`: an outbox over the test's database that calls the loopback receiver."""
    opened = []

    def make(*, act=True, webhook=True, most=10, timeout=2.0, worker_id="worker-1", hook="/hook"):
        pool = database.make_pool(
            DatabaseSettings.load(url=SecretStr(postgres_url)), "test outbox", min_size=1, max_size=2
        )
        pool.open(wait=True)
        client = httpx.Client(timeout=timeout)
        opened.append((pool, client))
        url = loopback_receiver.url
        metrics = Metrics()
        return SimpleNamespace(
            metrics=metrics,
            outbox=Outbox(
                pool=pool,
                notifier=Notifier(Webhook(client, url + hook, "http://localhost:8080") if webhook else None),
                migrator=EmulatorMigrator(client, url + "/control/migrate") if act else DryRun(),
                breaker=CircuitBreaker(most, 600),
                worker_id=worker_id,
                action_timeout_seconds=timeout,
                metrics=metrics,
                clock=SystemClock(),
            ),
        )

    yield make
    for pool, client in opened:
        pool.close()
        client.close()


def drain(made):
    while made.outbox.step():
        pass


def test_a_notice_goes_to_the_log_and_the_webhook_in_alertmanagers_form(
    decisions, make_outbox, loopback_receiver, caplog
):
    caplog.set_level("INFO", logger="alerting")
    alert_id = decisions.alert()
    action = decisions.decide(alert_id)
    drain(make_outbox())
    assert decisions.outcome(action) == ("succeeded", None)
    assert decisions.details(action)["webhook"] == 200
    [body] = loopback_receiver.bodies("/hook")
    assert body["version"] == "4"
    assert body["status"] == "firing"
    assert body["groupLabels"] == {"alertname": "high_temperature", "node_id": "node-1", "gpu_uuid": "GPU-1"}
    [alert] = body["alerts"]
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "GPU temperature is 96.3°C"
    assert alert["endsAt"] == "0001-01-01T00:00:00Z"
    assert alert["generatorURL"] == f"http://localhost:8080/api/v1/alerts/{alert_id}"
    assert len(alert["fingerprint"]) == 16
    assert f"Notice for alert ID={alert_id}: [critical] high_temperature on node-1 GPU 1 fired" in caplog.text


def test_a_resolved_notice_waits_for_its_fired_one(decisions, make_outbox, loopback_receiver):
    alert_id = decisions.alert()
    fired = decisions.decide(alert_id)
    resolved = decisions.decide(alert_id, transition="resolved")
    loopback_receiver.answers["/hook"] = (503, {"detail": "not now"})
    made = make_outbox()
    drain(made)
    assert decisions.outcome(fired) == ("pending", "webhook: 503: not now")
    assert decisions.outcome(resolved) == ("pending", None)
    loopback_receiver.answers["/hook"] = (200, {})
    decisions.due(resolved)
    drain(made)
    assert decisions.outcome(resolved) == ("pending", None), "it overtook"
    decisions.due()
    drain(made)
    assert decisions.outcome(resolved) == ("succeeded", None)
    assert [body["status"] for body in loopback_receiver.bodies("/hook")] == ["firing", "firing", "resolved"]


def test_a_notice_is_tried_for_a_day_and_a_refusal_ends_it(decisions, make_outbox, loopback_receiver):
    tried = decisions.decide(decisions.alert())
    loopback_receiver.answers["/hook"] = (500, {})
    made = make_outbox()
    drain(made)
    assert decisions.outcome(tried)[0] == "pending"
    decisions.connection.execute("UPDATE alert_actions SET created_at = now() - interval '24 hours'")
    decisions.due()
    drain(made)
    assert decisions.outcome(tried) == ("failed", "webhook: HTTP status 500")
    loopback_receiver.answers["/hook"] = (404, {"detail": "no such hook"})
    refused = decisions.decide(decisions.alert())
    drain(made)
    assert decisions.outcome(refused) == ("failed", "webhook: 404: no such hook")


def test_old_news_is_not_told_unless_its_alert_fires_on_a_live_node(decisions, make_outbox):
    hour = timedelta(hours=1)
    old_on_live_node = decisions.decide(decisions.alert(age=hour), age=hour)
    old_on_dead_node = decisions.decide(decisions.alert(age=hour, record_age=hour, node="node-2"), age=hour)
    old_and_over = decisions.decide(decisions.alert(status="resolved"), transition="resolved", age=hour)
    new_on_dead_node = decisions.decide(decisions.alert(record_age=hour, node="node-2"))
    drain(make_outbox())
    assert decisions.outcome(old_on_live_node) == ("succeeded", None)
    assert decisions.outcome(old_on_dead_node) == ("skipped", "stale")
    assert decisions.outcome(old_and_over) == ("skipped", "stale")
    assert decisions.outcome(new_on_dead_node) == ("succeeded", None)


def test_the_silence_of_a_node_that_died_long_ago_is_news_when_it_is_noticed(decisions, make_outbox):
    # The alert engine was down for an hour, in which the node died.
    hour = timedelta(hours=1)
    outcomes = []
    for noticed in (datetime.now(UTC), datetime.now(UTC) - hour):
        alert_id = decisions.alert(age=hour, record_age=hour, node=f"node-{noticed.hour}")
        decisions.connection.execute(
            "INSERT INTO alert_events (alert_id, rule, alert_type, node_id, transition, severity, message, details,"
            " started_at, at) VALUES (%s, 'node_silent', 'node_silent', 'node-1', 'fired', 'warning', '', %s, now(),"
            " now())",
            (alert_id, Jsonb({"detected_at": noticed.isoformat()})),
        )
        action = decisions.decide(alert_id, age=hour)
        drain(make_outbox())
        outcomes.append(decisions.outcome(action))
    assert outcomes == [("succeeded", None), ("skipped", "stale")]


def test_a_migration_is_asked_for_with_the_decisions_key_and_keeps_what_was_done(
    decisions, make_outbox, loopback_receiver
):
    answer = {"workload": WORKLOADS[0], "from": {"gpu_index": 1}, "to": {"node_id": "node-2", "gpu_index": 5}}
    loopback_receiver.answers["/control/migrate"] = (200, answer)
    action = decisions.decide(decisions.alert(), "migrate_workload", "raised")
    drain(make_outbox())
    assert decisions.outcome(action) == ("succeeded", None)
    details = decisions.details(action)
    assert details["to"] == {"node_id": "node-2", "gpu_index": 5}
    assert details["workloads"] == WORKLOADS
    [(_, headers, body)] = loopback_receiver.requests
    assert headers["Idempotency-Key"] == decisions.one("SELECT key FROM alert_actions WHERE id = %s", action)[0]
    assert body == {"node_id": "node-1", "gpu_uuid": "GPU-1"}


def test_a_migration_is_skipped_when_its_alert_is_over_and_waits_for_a_fresh_closed_record(
    decisions, make_outbox, loopback_receiver
):
    over = decisions.decide(decisions.alert(status="resolved"), "migrate_workload")
    old = decisions.decide(decisions.alert(record_age=timedelta(minutes=3), node="old"), "migrate_workload")
    open_turn = decisions.decide(decisions.alert(closed=False, node="open"), "migrate_workload")
    made = make_outbox()
    drain(made)
    assert decisions.outcome(over) == ("skipped", "over")
    for waiting in (old, open_turn):
        assert decisions.outcome(waiting) == ("pending", "waits for a fresh record of the GPU")
    decisions.connection.execute("UPDATE alert_actions SET created_at = now() - interval '15 minutes'")
    decisions.due()
    drain(made)
    assert decisions.outcome(old) == ("skipped", "stale")
    assert decisions.outcome(open_turn) == ("skipped", "stale")
    assert loopback_receiver.requests == []


def test_a_refused_migration_fails_with_the_reason_and_a_broken_receiver_is_asked_again(
    decisions, make_outbox, loopback_receiver
):
    loopback_receiver.answers["/control/migrate"] = (409, {"detail": "GPU 3 on node-1 runs no job"})
    refused = decisions.decide(decisions.alert(), "migrate_workload")
    made = make_outbox()
    drain(made)
    assert decisions.outcome(refused) == ("failed", "409: GPU 3 on node-1 runs no job")
    loopback_receiver.answers["/control/migrate"] = (409, {"detail": "no\0job"})
    odd = decisions.decide(decisions.alert(), "migrate_workload")
    drain(made)
    assert decisions.outcome(odd) == ("failed", "409: no\ufffdjob")
    loopback_receiver.answers["/control/migrate"] = (502, {})
    broken = decisions.decide(decisions.alert(), "migrate_workload")
    for _ in range(4):
        drain(made)
        assert decisions.outcome(broken) == ("unknown", "HTTP status 502")
        decisions.due()
    drain(made)
    assert decisions.outcome(broken) == ("unknown", "HTTP status 502")


def test_a_dry_run_writes_down_what_it_would_have_done(decisions, make_outbox, loopback_receiver):
    action = decisions.decide(decisions.alert(), "migrate_workload")
    drain(make_outbox(act=False))
    assert decisions.outcome(action) == ("skipped", "dry_run")
    assert decisions.details(action)["would_migrate"] == WORKLOADS
    assert loopback_receiver.requests == []


def test_the_breaker_holds_over_two_workers_that_claim_at_once(decisions, make_outbox, loopback_receiver):
    actions = [decisions.decide(decisions.alert(), "migrate_workload") for _ in range(12)]
    made = [make_outbox(most=3, worker_id=f"worker-{number}") for number in range(2)]
    threads = [threading.Thread(target=drain, args=(each,)) for each in made for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = [decisions.outcome(action) for action in actions]
    assert sum(status == "succeeded" for status, _ in outcomes) == 3
    refused = {reason for status, reason in outcomes if status == "skipped"}
    assert refused == {"circuit_breaker: 3 migrations in 10 minutes, at most 3"}
    assert len(loopback_receiver.bodies("/control/migrate")) == 3


def test_many_workers_carry_out_each_decision_once(decisions, make_outbox, loopback_receiver):
    alert_ids = [decisions.alert() for _ in range(10)]
    for alert_id in alert_ids:
        decisions.decide(alert_id)
        decisions.decide(alert_id, transition="resolved")
    made = [make_outbox(worker_id=f"worker-{number}") for number in range(2)]
    threads = [threading.Thread(target=drain, args=(each,)) for each in made for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in made:
        drain(each)
    assert decisions.one("SELECT count(*) FROM alert_actions WHERE status = 'succeeded'") == (20,)
    told = [body["alerts"][0]["generatorURL"] + body["status"] for body in loopback_receiver.bodies("/hook")]
    assert len(told) == len(set(told)) == 20


def test_an_expired_lease_is_unknown_and_repeated_only_where_the_key_is_honoured(
    decisions, make_outbox, loopback_receiver
):
    notice = decisions.decide(decisions.alert())
    migration = decisions.decide(decisions.alert(), "migrate_workload")
    decisions.connection.execute(
        "UPDATE alert_actions SET status = 'running', attempts = 1, claimed_by = 'gone', started_at = now(),"
        " lease_until = now() - interval '1 second'"
    )
    made = make_outbox()
    made.outbox.expire_leases()
    assert decisions.outcome(notice) == ("unknown", "lease expired")
    assert decisions.outcome(migration) == ("unknown", "lease expired")
    drain(made)
    assert decisions.outcome(notice) == ("unknown", "lease expired")
    assert decisions.outcome(migration) == ("succeeded", None)
    assert [path for path, _, _ in loopback_receiver.requests] == ["/control/migrate"]


@pytest.mark.parametrize(
    ("how", "then"),
    [({"act": False}, "skipped: dry_run"), ({}, "failed: HTTP status 404")],
)
def test_what_may_have_been_done_stays_unknown_whatever_a_later_attempt_comes_to(
    decisions, make_outbox, loopback_receiver, how, then
):
    killed = decisions.decide(decisions.alert(), "migrate_workload")
    decisions.connection.execute(
        "UPDATE alert_actions SET status = 'running', attempts = 1, claimed_by = 'gone', started_at = now(),"
        " lease_until = now() - interval '1 second'"
    )
    loopback_receiver.answers["/control/migrate"] = (404, {})
    made = make_outbox(**how)
    made.outbox.expire_leases()
    drain(made)
    assert decisions.outcome(killed) == ("unknown", f"an earlier attempt may have done it; then {then}")


def test_what_may_have_been_done_is_not_told_as_skipped(decisions, make_outbox, loopback_receiver):
    # The worker was killed after it had asked; the move cooled the GPU, so the alert is over when its lease ends.
    killed = decisions.decide(decisions.alert(status="resolved"), "migrate_workload")
    decisions.connection.execute(
        "UPDATE alert_actions SET status = 'running', attempts = 1, claimed_by = 'gone', started_at = now(),"
        " lease_until = now() - interval '1 second'"
    )
    made = make_outbox(most=2)
    made.outbox.expire_leases()
    drain(made)
    assert decisions.outcome(killed) == ("unknown", "not asked again: over")
    # A receiver that answered with an error may have moved it too.
    loopback_receiver.answers["/control/migrate"] = (502, {})
    alert_id = decisions.alert()
    broken = decisions.decide(alert_id, "migrate_workload")
    drain(made)
    decisions.connection.execute(
        "UPDATE alerts SET status = 'resolved', resolved_at = now() WHERE id = %s", (alert_id,)
    )
    decisions.due()
    drain(made)
    assert decisions.outcome(broken) == ("unknown", "not asked again: over")
    # Both count for the breaker.
    third = decisions.decide(decisions.alert(), "migrate_workload")
    drain(made)
    assert decisions.outcome(third) == ("skipped", "circuit_breaker: 2 migrations in 10 minutes, at most 2")


def test_an_end_that_waited_behind_its_beginning_is_told_however_long_that_took(
    decisions, make_outbox, loopback_receiver
):
    # The receiver was away for an hour; the alert ended meanwhile, and people still have it as firing.
    hour = timedelta(hours=1)
    alert_id = decisions.alert(status="resolved", age=hour)
    fired = decisions.decide(alert_id, age=hour)
    resolved = decisions.decide(alert_id, transition="resolved", age=hour - timedelta(minutes=5))
    decisions.connection.execute(
        "UPDATE alert_actions SET created_at = event_time, attempts = 1 WHERE id = %s", (fired,)
    )
    decisions.connection.execute("UPDATE alert_actions SET created_at = event_time WHERE id = %s", (resolved,))
    drain(make_outbox())
    assert decisions.outcome(fired) == ("succeeded", None)
    assert decisions.outcome(resolved) == ("succeeded", None)
    assert [body["status"] for body in loopback_receiver.bodies("/hook")] == ["firing", "resolved"]


def test_an_end_whose_beginning_was_never_told_is_as_old_as_it_is(decisions, make_outbox, loopback_receiver):
    hour = timedelta(hours=1)
    alert_id = decisions.alert(status="resolved", age=hour)
    fired = decisions.decide(alert_id, age=hour)
    resolved = decisions.decide(alert_id, transition="resolved", age=hour - timedelta(minutes=5))
    decisions.connection.execute("UPDATE alert_actions SET created_at = event_time")
    drain(make_outbox())
    assert decisions.outcome(fired) == ("skipped", "stale")
    assert decisions.outcome(resolved) == ("skipped", "stale")
    assert loopback_receiver.requests == []


def test_an_error_that_nobody_foresaw_costs_its_action_and_no_thread(decisions, make_outbox, wait_for, caplog):
    broken = [decisions.decide(decisions.alert(), "migrate_workload") for _ in range(3)]
    notice = decisions.decide(decisions.alert())
    decisions.connection.execute("UPDATE alert_actions SET next_attempt_at = 'infinity' WHERE id = %s", (notice,))
    made = make_outbox()

    def fails(_action):
        raise RuntimeError("nobody foresaw this")

    made.outbox._migrator.migrate = fails
    stop, decided = threading.Event(), threading.Event()
    threads = OutboxThreads(made.outbox, 2, stop, decided, made.metrics)
    threads.start()
    try:
        wait_for(lambda: caplog.text.count("nobody foresaw this") >= 3, 20)
        decisions.connection.execute("UPDATE alert_actions SET next_attempt_at = now() WHERE id = %s", (notice,))
        wait_for(lambda: decisions.outcome(notice) == ("succeeded", None), 20)
    finally:
        stop.set()
        decided.set()
        threads.join(10)
    assert [decisions.outcome(action)[0] for action in broken] == ["unknown"] * 3


def test_a_worker_whose_lease_ended_changes_nothing(decisions, make_outbox, loopback_receiver):
    action = decisions.decide(decisions.alert(), "migrate_workload")

    def taken_over(_body):
        decisions.connection.execute("UPDATE alert_actions SET claimed_by = 'another', attempts = attempts + 1")
        return 409, {}

    loopback_receiver.answers["/control/migrate"] = taken_over
    drain(make_outbox())
    assert decisions.outcome(action) == ("running", None)


def test_an_unreachable_receiver_is_not_told_as_unknown_and_its_url_is_not_told_at_all(
    decisions, make_outbox, loopback_receiver, caplog
):
    action = decisions.decide(decisions.alert())
    made = make_outbox(hook="/secret-token")
    loopback_receiver.close()
    drain(made)
    status, reason = decisions.outcome(action)
    assert status == "pending"
    assert "ConnectError" in reason
    assert "secret-token" not in reason + caplog.text
