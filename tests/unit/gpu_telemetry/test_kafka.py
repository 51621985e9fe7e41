"""Requests to Kafka that are not answered end as an error of Kafka, whoever waits for them."""

import socket
from concurrent.futures import Future

import pytest
from confluent_kafka import KafkaError, KafkaException

from gpu_telemetry import kafka
from gpu_telemetry.settings import KafkaSettings


@pytest.fixture
def silent_broker():
    """HOST:PORT of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("call", [kafka.ensure_topics, kafka.verify_topics])
def test_a_broker_that_never_answers_is_an_error_of_kafka(call, silent_broker):
    with pytest.raises(KafkaException):
        call(KafkaSettings(bootstrap_servers=silent_broker), timeout_seconds=0.3)


def test_an_answer_that_never_comes_is_waited_for_longer_than_the_request_lasts(monkeypatch):
    monkeypatch.setattr(kafka, "_REQUEST_ENDS_WITHIN_SECONDS", 0.05)
    with pytest.raises(KafkaException) as caught:
        kafka.answer(Future(), 0.05)
    assert caught.value.args[0].code() == KafkaError._TIMED_OUT
