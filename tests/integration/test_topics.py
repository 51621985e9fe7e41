"""The topics are created in one place and checked by those that use them."""

import pytest
from confluent_kafka.admin import ConfigResource, ResourceType

from gpu_telemetry.kafka import TopicError, admin_client, ensure_topics, verify_topics
from gpu_telemetry.settings import KafkaSettings


@pytest.fixture
def settings(kafka_bootstrap, request):
    name = f"topics-{abs(hash(request.node.name))}"
    return KafkaSettings.load(
        bootstrap_servers=kafka_bootstrap, topic=name, dlq_topic=f"{name}.dlq", partitions=3, retention_hours=2
    )


def test_missing_topics_are_created_once_and_as_the_settings_say(settings):
    assert sorted(ensure_topics(settings)) == [settings.topic, settings.dlq_topic]
    assert ensure_topics(settings) == []
    assert verify_topics(settings) == 3
    resource = ConfigResource(ResourceType.TOPIC, settings.topic)
    client = admin_client(settings)
    configuration = client.describe_configs([resource])[resource].result(timeout=10)
    assert configuration["message.timestamp.type"].value == "LogAppendTime"
    assert configuration["retention.ms"].value == "7200000"


def test_a_missing_topic_is_named_with_what_to_run(settings):
    with pytest.raises(TopicError, match=f"{settings.topic} does not exist: run `gpu-telemetry topics ensure`"):
        verify_topics(settings)


def test_a_topic_that_stamps_with_the_producers_time_is_refused(settings):
    ensure_topics(settings)
    wrong = settings.model_copy(update={"topic": settings.dlq_topic})
    with pytest.raises(TopicError, match=r"message\.timestamp\.type=CreateTime, expected LogAppendTime"):
        verify_topics(wrong)
