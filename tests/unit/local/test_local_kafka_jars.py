"""Kafka's jars: downloaded once, checked, and a clear word where they cannot be had."""

import functools
import gc
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jgo.maven
import pytest

from gpu_telemetry.local import kafka_jars
from gpu_telemetry.local.kafka_jars import cached, default_cache, jars
from gpu_telemetry.local.process import StartFailed

# jgo leaves the connection of a refused download to the garbage collector, which warns of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

JAR = "/org/example/kafka/1.0/kafka-1.0.jar"


class Repository(BaseHTTPRequestHandler):
    """A Maven repository that holds `files`, by path, and remembers what was `asked` of it."""

    files: dict[str, bytes]
    asked: list[str]
    broken: list[None]  # as many requests for the jar are cut off

    def do_GET(self):
        self.asked.append(self.path)
        if self.broken and self.path == JAR:
            self.broken.pop()
            self.close_connection = True
            return
        body = self.files.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository on loopback that Kafka, one small jar here, is downloaded from."""
    pins = tmp_path / "pins.csv"
    pins.write_text(f"coordinate,sha256\norg.example:kafka:1.0,{hashlib.sha256(b'right').hexdigest()}\n")
    monkeypatch.setattr(kafka_jars, "_PINNED", pins)
    handler = type("Handler", (Repository,), {"files": {}, "asked": [], "broken": []})
    monkeypatch.setattr(kafka_jars, "_PAUSES_SECONDS", (0.0, 0.0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = functools.partial(
        jgo.maven.MavenContext, remote_repos={"here": f"http://127.0.0.1:{server.server_address[1]}"}
    )
    monkeypatch.setattr(jgo.maven, "MavenContext", context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()
    gc.collect()


def test_jars_are_downloaded_once(tmp_path, repository):
    repository.files[JAR] = b"right"
    first = jars(tmp_path / "cache")
    assert [jar.read_bytes() for jar in first] == [b"right"]
    assert jars(tmp_path / "cache") == first
    assert repository.asked.count(JAR) == 1
    assert cached(tmp_path / "cache")


def test_nothing_but_the_pinned_jars_is_asked_for(tmp_path, repository):
    repository.files[JAR] = b"right"
    jars(tmp_path / "cache")
    assert {path.removesuffix(".sha1") for path in repository.asked} == {JAR}


def test_a_jar_that_is_not_the_pinned_one_is_refused(tmp_path, repository):
    repository.files[JAR] = b"wrong"
    message = r"org\.example:kafka:1\.0 is not the pinned one: expected SHA-256 .*--kafka HOST:PORT"
    with pytest.raises(StartFailed, match=message):
        jars(tmp_path / "cache")
    assert not cached(tmp_path / "cache")


def test_a_download_that_fails_says_what_could_not_be_had_and_which_flag_does_without(tmp_path, repository):
    assert not repository.files
    with pytest.raises(StartFailed) as failure:
        jars(tmp_path / "cache")
    assert "Apache Kafka 4.3.1 could not be downloaded: org.example:kafka:1.0: " in str(failure.value)
    assert "--kafka HOST:PORT" in str(failure.value)


def test_a_connection_that_breaks_is_tried_again(tmp_path, repository):
    repository.files[JAR] = b"right"
    repository.broken.extend([None, None])
    assert jars(tmp_path / "cache")[0].read_bytes() == b"right"
    assert repository.asked.count(JAR) == 3


def test_a_download_that_failed_is_tried_anew(tmp_path, repository):
    with pytest.raises(StartFailed):
        jars(tmp_path / "cache")
    repository.files[JAR] = b"right"
    assert jars(tmp_path / "cache")[0].read_bytes() == b"right"


def test_every_jar_is_pinned_once_by_a_sha_256():
    pins = kafka_jars._pinned()
    assert f"org.apache.kafka:kafka_2.13:{kafka_jars.KAFKA_VERSION}" in pins
    assert f"org.apache.kafka:kafka-clients:{kafka_jars.KAFKA_VERSION}" in pins
    assert all(len(digest) == 64 for digest in pins.values())


def test_the_cache_is_the_users_own_unless_another_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("GPU_TELEMETRY_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "gpu-telemetry"
    monkeypatch.setenv("GPU_TELEMETRY_CACHE", str(tmp_path / "other"))
    assert default_cache() == tmp_path / "other"
