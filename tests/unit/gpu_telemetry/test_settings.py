"""Settings come from the environment, are checked at start-up, and keep their secrets."""

import logging

import psycopg
import pytest
from pydantic import SecretStr

from gpu_telemetry.database import connection_options
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


def test_a_password_comes_from_the_first_line_of_its_file_where_the_url_holds_none(monkeypatch, tmp_path):
    file = tmp_path / "password"
    file.write_text("hunter2 \nnot this\n")
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(file))
    monkeypatch.setenv("DATABASE_URL", "postgresql://telemetry@db/gpu_telemetry")
    settings = DatabaseSettings.load()
    assert connection_options(settings, "test")["password"] == "hunter2 "
    assert "hunter2" not in repr(settings)
    monkeypatch.setenv("DATABASE_URL", "postgresql://telemetry:own@db/gpu_telemetry")
    assert "password" not in connection_options(DatabaseSettings.load(), "test")


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), (b"\nx", "first line"), (b"\xff\n", "UTF-8")])
def test_a_file_without_a_password_is_refused_by_name(monkeypatch, tmp_path, content, said):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(file))
    with pytest.raises(SettingsError, match=r"^DATABASE_PASSWORD_FILE: ") as refused:
        DatabaseSettings.load()
    assert str(file) in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://u:se cret@h/db", "postgresql://u:secret@h/d?no=such", "host=h secret"])
def test_a_database_that_libpq_does_not_understand_is_refused_without_telling_it(monkeypatch, url):
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SettingsError, match=r"DATABASE_URL: .*expected a libpq URL or connection string") as refused:
        DatabaseSettings.load()
    assert "cret" not in str(refused.value)


def test_a_password_file_that_is_gone_later_reads_as_a_database_that_is_away(monkeypatch, tmp_path):
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(file))
    settings = DatabaseSettings.load()
    file.unlink()
    with pytest.raises(psycopg.OperationalError, match="DATABASE_PASSWORD_FILE"):
        connection_options(settings, "test")


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
