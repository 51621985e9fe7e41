"""kill -9, SIGSTOP and second workers at random moments: the tables are those of an undisturbed run."""

import os
import signal

import psycopg
import pytest

from alerting.metrics import Metrics
from alerting.session import Session

GROUP_TIMEOUT = {"KAFKA_OPT_SESSION_TIMEOUT_MS": 6000, "KAFKA_OPT_HEARTBEAT_INTERVAL_MS": 1000}


def said(*processes):
    """What they logged last."""
    return "".join("".join(process.lines[-30:]) + "\n" for process in processes)


@pytest.fixture
def two_workers(engine_process, wait_for):
    """`two_workers(stream)`: two processes in one group that each own a part of the topic; gives `begin` and both."""

    def begin(stream):
        variables = GROUP_TIMEOUT | {"ALERTING_GROUP_ID": f"two-{os.urandom(6).hex()}", "ALERTING_BATCH_RECORDS": 5}
        numbers = iter(range(1000))

        def one():
            process = engine_process(on=stream, ALERTING_WORKER_ID=f"worker-{next(numbers)}", **variables)
            wait_for(lambda: "Assigned partitions" in said(process), 120, lambda: said(process))
            return process

        return one, [one(), one()]

    return begin


def test_a_worker_killed_at_random_moments_leaves_what_an_undisturbed_one_leaves(
    soak, record_stream, make_stream, trust, engine_process, wait_for, pause
):
    kills = 30 if soak.is_long else 6
    for chance in soak.rounds():
        recording = record_stream(chance, turns=160 if soak.is_long else 40)
        stream = make_stream(**trust.new_topic())
        # Small batches, so that there is much to interrupt; a lasting place in the group, so that nobody waits.
        variables = GROUP_TIMEOUT | {
            "ALERTING_BATCH_RECORDS": 5,
            "ALERTING_GROUP_ID": f"killed-{os.urandom(6).hex()}",
            "ALERTING_INSTANCE_ID": "the-one",
        }
        portion = len(recording.messages) // (kills + 1)
        for life in range(kills):
            trust.publish(stream, recording.messages[life * portion : (life + 1) * portion])
            process = engine_process(on=stream, **variables)
            if chance.random() < 0.2:  # anywhere, also before it has begun
                pause(chance.uniform(0, 2))
            else:
                goal = min(trust.taken_in(stream) + chance.randrange(1, portion), trust.end(stream) - 1)
                wait_for(lambda s=stream, goal=goal: trust.taken_in(s) >= goal, 120, lambda p=process: said(p))
                pause(chance.uniform(0, 0.05))
            process.kill()
            process.wait()
            soak.counts["kills"] += 1
        trust.publish(stream, recording.messages[kills * portion :])
        process = engine_process(on=stream, **variables)
        trust.await_all(stream, said=lambda p=process: said(p))
        process.kill()
        process.wait()
        whole = trust.undisturbed(stream)
        trust.check(stream, whole)
        letters = trust.dead_letters(stream)
        assert letters == trust.dead_letters_of_undisturbed(stream)
        assert letters
        rules = {event[1] for event in whole["events"]}
        assert rules >= {
            "high_temperature", "high_power", "high_memory", "xid_error", "row_remap_failure", "ecc_double_bit",
            "gpu_lost", "exporter_down", "node_silent", "exporter_frozen", "duplicate_scraper",
        }  # fmt: skip
        assert {event[8] for event in whole["events"]} >= {"cleared", "replaced", "decommissioned"}
        assert len(whole["metrics"]) == recording.gpu_records
        soak.counts["records"] += len(recording.messages)
        soak.counts["transitions"] += len(whole["events"])
        soak.counts["decisions"] += len(whole["decisions"])


def test_of_two_workers_one_is_killed_and_comes_back(soak, record_stream, make_stream, trust, two_workers, pause):
    for chance in soak.rounds():
        messages = record_stream(chance).messages
        stream = make_stream(**trust.new_topic())
        trust.publish(stream, messages[:100])
        begin, workers = two_workers(stream)
        trust.await_all(stream, said=lambda: said(*workers))  # noqa: B023 - called in this round
        for part in range(3 if soak.is_long else 1):
            trust.publish(stream, messages[100 + 200 * part : 300 + 200 * part])
            pause(chance.uniform(0, 0.5))
            victim = workers.pop(chance.randrange(2))
            victim.kill()
            victim.wait()
            soak.counts["kills"] += 1
            workers.append(begin())
        trust.publish(stream, messages[300 + 200 * part :])
        trust.await_all(stream, said=lambda: said(*workers))  # noqa: B023
        for worker in workers:
            worker.kill()
            worker.wait()
        trust.check(stream, trust.undisturbed(stream))
        soak.counts["records"] += len(messages)


def test_a_worker_that_stood_still_while_another_took_over_writes_nothing_when_it_goes_on(
    soak, record_stream, make_stream, trust, two_workers, wait_for, pause
):
    for chance in soak.rounds():
        messages = record_stream(chance).messages
        half = len(messages) // 2
        stream = make_stream(**trust.new_topic())
        trust.publish(stream, messages[:50])
        _, workers = two_workers(stream)
        trust.await_all(stream, said=lambda: said(*workers))  # noqa: B023
        zombie, other = workers if chance.random() < 0.5 else reversed(workers)
        trust.publish(stream, messages[50:half])
        goal = chance.randrange(51, half - 20)
        wait_for(lambda s=stream, g=goal: trust.taken_in(s) >= g, 120, lambda: said(*workers))  # noqa: B023
        # In the middle of its work; in make soak often of a transaction, whose locks it loses half a minute later.
        zombie.send_signal(signal.SIGSTOP)
        while not soak.is_long and trust.transactions(stream) > 0:
            zombie.send_signal(signal.SIGCONT)
            pause(chance.uniform(0, 0.02))
            zombie.send_signal(signal.SIGSTOP)
        # The group takes it for dead, and the other goes on with all of the topic.
        given = "".join(other.lines).count("Assigned partitions")
        wait_for(lambda o=other, n=given: "".join(o.lines).count("Assigned partitions") > n, 60, lambda: said(other))  # noqa: B023
        trust.await_all(stream, said=lambda: said(other))  # noqa: B023
        trust.publish(stream, messages[half:])
        zombie.send_signal(signal.SIGCONT)
        trust.await_all(stream, said=lambda: said(*workers))  # noqa: B023
        for worker in workers:
            worker.kill()
            worker.wait()
        trust.check(stream, trust.undisturbed(stream))
        soak.counts["records"] += len(messages)
        soak.counts["fenced"] += "".join(zombie.lines).count("reading its state anew")


def test_a_session_that_stands_still_in_the_middle_of_a_copy_is_ended_by_whom_it_holds_up(stream, trust):
    """No time-out of PostgreSQL's own ends a session that waits for its client's next row."""
    lock = (
        "INSERT INTO consumer_offsets VALUES ('t', 0, 'c', 't', 0)"
        " ON CONFLICT (topic, partition) DO UPDATE SET next_offset = 1"
    )
    standing, working = (Session(stream.database, Metrics(), standing_seconds=0.5) for _ in range(2))
    try:
        standing.connection.execute("BEGIN")
        standing.connection.execute(lock)
        standing.connection.pgconn.exec_(b"COPY gpu_metrics FROM STDIN (FORMAT BINARY)")
        working.connection.execute("SET lock_timeout = '1s'")
        with pytest.raises(psycopg.errors.LockNotAvailable) as met:
            working.connection.execute(lock)
        working.trouble("batch", met.value, 0.0)
        working.connection.execute(lock)
    finally:
        standing.connection.pgconn.finish()
        working.close()
    assert trust.taken_in(stream) == 0
