"""Which ports the stack uses, and what it says of one that it cannot have."""

import socket
from dataclasses import asdict

import pytest

from gpu_telemetry.local.directory import DataDirectory
from gpu_telemetry.local.ports import PortInUse, Ports, first_free, is_free
from gpu_telemetry.local.stack import Options, Stack

# Where nothing listens on a machine that only runs these tests; the offset keeps clear of the usual ports, and of those
# that connections and other tests' servers are given (from 32768 on).
OFFSET = 3620


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def stack(tmp_path):
    def _stack(**options):
        return Stack(Options(data=tmp_path, port_offset=OFFSET, **options), DataDirectory(tmp_path))

    return _stack


def test_the_default_ports_are_those_of_the_project():
    assert asdict(Ports()) == {
        "postgres": 5432,
        "kafka": 9092,
        "kafka_controller": 29093,
        "emulator": 9400,
        "bridge": 9500,
        "alert_engine": 9501,
        "api": 8080,
        "prometheus": 9090,
    }


def test_an_offset_moves_every_port():
    moved, usual = asdict(Ports.with_offset(100)), asdict(Ports())
    assert {name: moved[name] - usual[name] for name in usual} == dict.fromkeys(usual, 100)


def test_an_offset_that_leaves_no_port_is_refused_by_name():
    with pytest.raises(ValueError, match=r"offset 60000 moves the port of .* expected 1 to 65535"):
        Ports.with_offset(60000)


def test_a_port_with_a_listener_is_not_free(listener):
    assert not is_free(listener)


def test_the_first_free_port_is_neither_used_nor_meant_for_another_part(listener):
    assert first_free(listener, {listener + 1}) >= listener + 2


def test_a_used_port_is_named_with_its_part_and_what_helps(stack):
    with socket.create_server(("127.0.0.1", 8080 + OFFSET)), pytest.raises(PortInUse) as refusal:
        stack(prometheus=False).check_ports()
    assert f"port {8080 + OFFSET}, where the API would listen, is in use" in str(refusal.value)
    assert "--port-offset N" in str(refusal.value)
    assert "Kafka" not in str(refusal.value)


def test_a_used_kafka_port_says_how_to_use_the_kafka_that_is_there(stack):
    with socket.create_server(("127.0.0.1", 9092 + OFFSET)), pytest.raises(PortInUse) as refusal:
        stack(prometheus=False).check_ports()
    assert f"--kafka 127.0.0.1:{9092 + OFFSET}" in str(refusal.value)


def test_parts_that_are_left_out_need_no_port(stack, tmp_path):
    used = [socket.create_server(("127.0.0.1", port + OFFSET)) for port in (9092, 9400)]
    try:
        stack(prometheus=False, kafka="broker:9092", targets=tmp_path / "targets.yml").check_ports()
    finally:
        for server in used:
            server.close()


def test_postgresql_makes_way_for_one_that_is_there_and_says_so(stack):
    with socket.create_server(("127.0.0.1", 5432 + OFFSET)):
        made = stack(prometheus=False)
        made.check_ports()
    assert f"port {5432 + OFFSET}, where PostgreSQL would listen, is in use: it listens on" in made.notes[0]
    assert f":{5433 + OFFSET}/" in made.database_shown
