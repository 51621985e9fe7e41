"""Kafka's jars: downloaded once, checked, and a clear word where they cannot be had."""

import hashlib

import jgo
import pytest

from gpu_telemetry.local import kafka_jars
from gpu_telemetry.local.kafka_jars import cached, default_cache, jars
from gpu_telemetry.local.process import StartFailed


@pytest.fixture
def resolver(tmp_path, monkeypatch):
    """Kafka as one small jar; `resolver(content)` says what the download brings. Gives the endpoints asked for."""
    pins = tmp_path / "pins.csv"
    pins.write_text(f"jar,sha256\nkafka.jar,{hashlib.sha256(b'right').hexdigest()}\n")
    monkeypatch.setattr(kafka_jars, "_PINNED", pins)
    asked = []

    def brings(content):
        def build(endpoint, *, cache_dir):
            asked.append(endpoint)
            if isinstance(content, Exception):
                raise content
            cache_dir.mkdir(parents=True)
            (cache_dir / "kafka.jar").write_bytes(content)
            return type("Environment", (), {"all_jars": [cache_dir / "kafka.jar"]})

        monkeypatch.setattr(jgo, "build", build)
        return asked

    return brings


def test_jars_are_downloaded_once(tmp_path, resolver):
    asked = resolver(b"right")
    first = jars(tmp_path / "cache")
    assert [jar.read_bytes() for jar in first] == [b"right"]
    assert jars(tmp_path / "cache") == first
    assert len(asked) == 1
    assert cached(tmp_path / "cache")


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path, resolver):
    resolver(b"wrong")
    with pytest.raises(StartFailed, match=r"kafka\.jar is not the pinned one: expected SHA-256 .*--kafka HOST:PORT"):
        jars(tmp_path / "cache")
    assert not cached(tmp_path / "cache")


def test_a_download_that_fails_says_what_could_not_be_had_and_which_flag_does_without(tmp_path, resolver):
    resolver(ConnectionError("no route to host"))
    with pytest.raises(StartFailed) as failure:
        jars(tmp_path / "cache")
    assert "Apache Kafka 4.3.1 could not be downloaded: ConnectionError: no route to host" in str(failure.value)
    assert "--kafka HOST:PORT" in str(failure.value)


def test_a_download_that_failed_is_tried_anew(tmp_path, resolver):
    resolver(ConnectionError("no route to host"))
    with pytest.raises(StartFailed):
        jars(tmp_path / "cache")
    resolver(b"right")
    assert jars(tmp_path / "cache")[0].read_bytes() == b"right"


def test_every_jar_is_pinned_once_by_a_sha_256():
    pins = kafka_jars._pinned()
    assert "kafka_2.13-4.3.1.jar" in pins
    assert "kafka-clients-4.3.1.jar" in pins
    assert all(len(digest) == 64 for digest in pins.values())


def test_the_cache_is_the_users_own_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("GPU_TELEMETRY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gpu-telemetry"
    monkeypatch.setenv("GPU_TELEMETRY_CACHE", str(tmp_path / "other"))
    assert default_cache() == tmp_path / "other"
