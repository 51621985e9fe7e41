"""The local PostgreSQL: who may come in, what it leaves lying about, how it ends."""

import os
import shutil
import stat
import time
from pathlib import Path

import psycopg
import pytest

from gpu_telemetry.local.postgres import PostgresServer
from gpu_telemetry.local.process import StartFailed

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path, free_ports):
    made = PostgresServer(tmp_path / "postgres", *free_ports(1), log=tmp_path / "postgres.log")
    yield made
    made.stop()


def command_lines():
    """Every command line on this machine that can be read, as one text."""
    texts = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(file.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(texts)


def test_only_who_has_the_password_comes_in_and_nobody_else_can_read_it(server, tmp_path):
    server.start()
    password = (tmp_path / "postgres" / "password").read_text().strip()
    assert stat.S_IMODE((tmp_path / "postgres" / "password").stat().st_mode) == 0o600
    with psycopg.connect(server.url) as connection:
        row = connection.execute("SELECT current_user, current_database(), current_setting('TimeZone')").fetchone()
    assert row == ("telemetry", "gpu_telemetry", "UTC")
    with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|no password supplied"):
        psycopg.connect(server.url.replace(password, "guess"))
    assert password not in command_lines()
    assert password not in (tmp_path / "postgres.log").read_text()


def test_it_listens_on_loopback_alone(server):
    server.start()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)


def test_data_survives_a_restart_and_a_kill(server):
    server.start()
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('first')")
    server.stop()
    server.start()
    with psycopg.connect(server.url) as connection:
        connection.execute("INSERT INTO kept VALUES ('second')")
    server.kill()
    server.stop()
    server.start()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchall() == [("first",), ("second",)]


def test_it_ends_at_once_although_clients_are_connected(server):
    server.start()
    connection = psycopg.connect(server.url)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    connection.close()
    assert server.pid is None


def test_a_creation_that_was_cut_short_is_begun_anew(server, tmp_path):
    partial = tmp_path / "postgres" / "data.partial"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("18\n")
    server.start()
    assert not partial.exists()


def test_data_of_another_version_is_refused_with_a_word(server, tmp_path):
    server.start()
    server.stop()
    (tmp_path / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(StartFailed, match=r"was written by PostgreSQL 17, this is PostgreSQL 18.*make clean"):
        server.start()


def test_a_password_that_is_gone_is_missed_with_a_word(server, tmp_path):
    server.start()
    server.stop()
    (tmp_path / "postgres" / "password").unlink()
    with pytest.raises(StartFailed, match=r"the password of the database .* is gone: put it back"):
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become someone else")
def test_as_root_it_runs_as_another_user_below_a_directory_that_only_root_can_read(server, tmp_path):
    tmp_path.chmod(0o700)
    before = tmp_path.stat()
    server.start()
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    after = tmp_path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    status = Path(f"/proc/{server.pid}/status").read_text()
    # CAP_DAC_OVERRIDE is bit 1, and nothing else is left to it.
    assert "CapPrm:\t0000000000000002\n" in status
    assert "CapBnd:\t0000000000000002\n" in status


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become someone else")
def test_without_setpriv_root_is_told_what_helps(server, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    with pytest.raises(StartFailed, match=r"setpriv .* not installed: run this as a plain user, install util-linux"):
        server.start()


def test_a_port_that_is_taken_fails_the_start_with_the_servers_own_words(server, tmp_path):
    server.start()
    second = PostgresServer(tmp_path / "second", server.port, log=tmp_path / "second.log")
    with pytest.raises(StartFailed, match="Address already in use"):
        second.start()
    assert second.pid is None
