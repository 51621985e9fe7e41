"""An executor that is killed while its receivers work: what became of it is unknown, and nothing is done twice."""

import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest


class Effects:
    """What a receiver did: it answers only when told to, and honours the keys of migrations as the emulator does."""

    def __init__(self, receiver):
        self.begun = Counter()
        self.done = Counter()
        self.may_answer = threading.Event()
        self._receiver = receiver
        receiver.answers = {"/hook": self._notice, "/migrate": self._migration}

    def _notice(self, body):
        [alert] = body["alerts"]
        decision = "notice", alert["fingerprint"], alert["annotations"]["transition"]
        self.begun["notice"] += 1
        self.done[decision] += 1
        self.may_answer.wait(60)
        return 200, {}

    def _migration(self, body):
        key = next(
            headers["Idempotency-Key"]
            for path, headers, sent in reversed(self._receiver.requests)
            if path == "/migrate" and sent is body
        )
        self.begun["migration"] += 1
        if not self.done[key]:
            self.done[key] += 1
        self.may_answer.wait(60)
        return 200, {"moved": body["gpu_uuid"]}


@pytest.fixture
def effects(loopback_receiver):
    made = Effects(loopback_receiver)
    yield made
    made.may_answer.set()


def test_an_executor_killed_in_mid_action_leaves_unknown_and_nothing_is_done_twice(
    stream, make_fleet, engine_process, wait_for, loopback_receiver, effects
):
    fleet = make_fleet(nodes=2, gpus=2, start=datetime.now(UTC) - timedelta(seconds=30))
    variables = {
        "ALERTING_ACTIONS_DRY_RUN": "false",
        "ALERTING_WEBHOOK_URL": f"{loopback_receiver.url}/hook",
        "ALERTING_MIGRATION_URL": f"{loopback_receiver.url}/migrate",
        "ALERTING_ACTION_TIMEOUT_SECONDS": 60,
        "ALERTING_INSTANCE_ID": "the-one",
    }
    process = engine_process(**variables, ALERTING_WORKER_ID="first")
    stream.send(*fleet.round({("node-1", 0): 97.0, ("node-2", 1): 98.0}))
    stream.flush()
    decided = 2 * 2  # a notice and a migration for each
    wait_for(lambda: effects.begun.total() == decided, 90, lambda: f"{effects.begun}\n{''.join(process.lines)}")
    process.kill()
    process.wait()
    assert stream.query("SELECT DISTINCT status, claimed_by FROM alert_actions") == [("running", "first")]
    # The receivers go on: to them the requests were whole.
    effects.may_answer.set()
    stream.execute("UPDATE alert_actions SET lease_until = now() - interval '1 second'")
    process = engine_process(**variables, ALERTING_WORKER_ID="second")
    statuses = "SELECT action_type, status, count(*) FROM alert_actions GROUP BY 1, 2 ORDER BY 1"
    outcome = [("migrate_workload", "succeeded", 2), ("notify", "unknown", 2)]
    wait_for(
        lambda: stream.query(statuses) == outcome, 90, lambda: f"{stream.query(statuses)}\n{''.join(process.lines)}"
    )
    # Killed and started once more, with a notice that is new: by then everything due was done.
    process.kill()
    process.wait()
    engine_process(**variables, ALERTING_WORKER_ID="third")
    stream.send(*fleet.round({("node-1", 0): 97.0, ("node-2", 1): 60.0}))
    stream.flush()
    wait_for(lambda: stream.count("alert_actions", "transition = 'resolved' AND status = 'succeeded'") == 1, 90)
    assert set(effects.done.values()) == {1}
    assert sum(effects.done.values()) == decided + 1
    assert effects.begun == {"notice": 3, "migration": 4}, "a notice's receiver counts: it was asked once for each"
