"""PostgreSQL and Kafka die and come back, their connections break or stand still: nothing shows in the tables.

Records go on being published through every outage, as a bridge does it.
"""

import os
from urllib.parse import urlsplit, urlunsplit

import pytest
from pydantic import SecretStr

from gpu_telemetry.settings import DatabaseSettings


@pytest.fixture
def disturb(soak, record_stream, make_stream, trust, start, pause, own_postgres, own_kafka):
    """`disturb(trouble, times, via)`: publish a recorded stream in parts, and call `trouble(chance)` in each.

    The engine reaches the database at `via`, where given. At the end the stream is checked.
    """

    def through(stream, port):
        url = urlsplit(stream.database.url.get_secret_value())
        where = url._replace(netloc=f"{url.username}@127.0.0.1:{port}")
        return DatabaseSettings.load(url=SecretStr(urlunsplit(where)))

    def run(trouble, times, via=None):
        for chance in soak.rounds():
            messages = record_stream(chance).messages
            stream = make_stream(
                postgres=own_postgres, bootstrap_servers=f"127.0.0.1:{own_kafka.proxy.port}", **trust.new_topic()
            )
            direct = stream.database
            if via is not None:
                stream.database = through(stream, via.port)
            engine = start(on=stream, group_id=f"g-{os.urandom(6).hex()}", batch_records=5, batch_milliseconds=10)
            stream.database = direct
            trust.publish(stream, messages[:20])
            trust.await_all(stream)
            step = (len(messages) - 20) // (times + 1)
            for part in range(times):
                for key, value in messages[20 + part * step : 20 + (part + 1) * step]:
                    stream.send_raw(value, key)
                stream.producer.poll(0)
                pause(chance.uniform(0, 0.4))
                trouble(chance)
                soak.counts["troubles"] += 1
            trust.publish(stream, messages[20 + times * step :])
            trust.await_all(stream)
            engine.stop()
            trust.check(stream, trust.undisturbed(stream))
            soak.counts["records"] += trust.end(stream)

    return run


@pytest.fixture
def break_connections(pause):
    """`break_connections(proxy, chance)`: one outage of some kind and length, which is over when this returns."""

    def trouble(proxy, chance):
        kind = chance.choice(["cut", "refuse", "stall", "stall and cut"])
        if kind == "refuse":
            proxy.refuse()
        elif "stall" in kind:
            proxy.stall()
        if kind != "cut":
            pause(chance.uniform(0.2, 3))
        if "cut" in kind:
            proxy.cut()
        proxy.flow()

    return trouble


def test_postgresql_killed_and_restarted(soak, disturb, own_postgres):
    def trouble(_chance):
        own_postgres.kill_all()
        own_postgres.start()

    disturb(trouble, 10 if soak.is_long else 2)


def test_kafka_killed_and_restarted(soak, disturb, own_kafka):
    def trouble(_chance):
        own_kafka.kill()
        own_kafka.stop()
        own_kafka.start()

    disturb(trouble, 5 if soak.is_long else 1)


def test_the_connection_to_postgresql_is_cut_refused_and_stands_still(
    soak, disturb, own_postgres, make_proxy, break_connections
):
    proxy = make_proxy(own_postgres.port)
    disturb(lambda chance: break_connections(proxy, chance), 20 if soak.is_long else 3, via=proxy)


def test_the_connection_to_kafka_is_cut_refused_and_stands_still(soak, disturb, own_kafka, break_connections):
    disturb(lambda chance: break_connections(own_kafka.proxy, chance), 20 if soak.is_long else 2)
