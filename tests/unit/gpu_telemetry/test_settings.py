"""Settings come from the environment, are checked at start-up, and keep their secrets."""

import logging

import pytest
from pydantic import SecretStr

from gpu_telemetry.kafka import client_configuration
from gpu_telemetry.settings import DatabaseSettings, KafkaSettings, LogSettings, SettingsError, split_address


def test_an_error_names_the_variable(monkeypatch):
    monkeypatch.setenv("KAFKA_PARTITIONS", "many")
    monkeypatch.setenv("KAFKA_TOPIC", "no spaces")
    with pytest.raises(SettingsError) as error:
        KafkaSettings.load()
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["KAFKA_TOPIC", "KAFKA_PARTITIONS"]


def test_an_error_does_not_repeat_the_value(monkeypatch):
    monkeypatch.setenv("DATABASE_CONNECT_TIMEOUT_SECONDS", "hunter2")
    with pytest.raises(SettingsError) as error:
        DatabaseSettings.load()
    assert "hunter2" not in str(error.value)


def test_a_flag_wins_over_the_environment_and_none_is_no_flag(monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    assert LogSettings.load(level=None).level == "DEBUG"
    assert LogSettings.load(level="ERROR").level == "ERROR"


def test_a_secret_stays_out_of_the_repr(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://telemetry:hunter2@localhost/gpu_telemetry")
    settings = DatabaseSettings.load()
    assert isinstance(settings.url, SecretStr)
    assert "hunter2" not in repr(settings) + str(settings)


def test_any_librdkafka_property_passes_by_its_prefix(monkeypatch):
    monkeypatch.setenv("KAFKA_OPT_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("KAFKA_OPT_SECURITY_PROTOCOL", "SASL_SSL")
    settings = KafkaSettings.load(bootstrap_servers="kafka:29092")
    assert client_configuration(settings, enable_idempotence=True) == {
        "enable.idempotence": True,
        "bootstrap.servers": "kafka:29092",
        "sasl.password": "hunter2",
        "security.protocol": "SASL_SSL",
    }
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9500", ("127.0.0.1", 9500)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_an_address_is_a_host_and_a_port(text, expected):
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", "9500", ":9500", "localhost:", "localhost:http", "localhost:65536"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        split_address(text)


def test_secrets_do_not_reach_the_log(monkeypatch, caplog):
    monkeypatch.setenv("DATABASE_URL", "postgresql://telemetry:hunter2@localhost/gpu_telemetry")
    logging.getLogger("test").warning("starting with %s", DatabaseSettings.load())
    assert "hunter2" not in caplog.text
