"""What is saved of a node, when, and what stands again after a restart, also under other rules."""

import json

import msgspec
import pytest

from alerting.engine import Engine
from alerting.rules import Rules, load_rules
from gpu_telemetry.records import SCHEMA_VERSION, GpuRecord, ScrapeRecord

HOT = "high_temperature"


@pytest.fixture
def gpu_row(node):
    """A stored row of GPU-a."""
    return lambda **values: GpuRecord(
        schema_version=SCHEMA_VERSION,
        node_id="node-1",
        bridge_id="?",
        boot_id="?",
        seq=1,
        gpu_index=0,
        gpu_uuid="GPU-a",
        collected_at=node.state.clock,
        **values,
    )


@pytest.fixture
def turn_row(node):
    """The stored closing record of bridge-1."""
    return lambda **values: ScrapeRecord(
        **{
            "schema_version": SCHEMA_VERSION,
            "node_id": "node-1",
            "bridge_id": "bridge-1",
            "boot_id": "boot-1",
            "seq": node.seq,
            "collected_at": node.state.clock,
            "up": True,
            "gpu_records": 1,
            "gpu_uuids": ["GPU-a"],
            "interval_ms": 30_000,
            **values,
        }
    )


def test_a_quiet_turn_makes_nothing_to_be_saved(node):
    node.gpu(0, temperature_celsius=50.0, xid_code=0)
    node.turn(0)
    assert node.state.dirty
    node.engine.save(node.state)

    for seconds in range(30, 3000, 30):
        node.gpu(seconds, temperature_celsius=50.0 + seconds % 30, xid_code=0)
        node.turn(seconds)
        assert not node.state.dirty, f"after {seconds} s"


@pytest.mark.parametrize("form", [lambda saved: saved, bytes.decode, json.loads])
def test_the_saved_form_is_taken_as_bytes_as_text_and_decoded(node, gpu_row, form):
    node.gpu(0, temperature_celsius=96.0, xid_counts={31: 1.0})
    expected = node.engine.active(node.state)
    saved = node.engine.save(node.state)

    state = node.engine.restore("node-1", form(saved), [gpu_row(temperature_celsius=96.0)], [])
    assert node.engine.active(state) == expected
    assert node.engine.save(state) == saved


def test_a_saved_form_of_another_version_is_refused(node):
    node.gpu(0)
    saved = json.loads(node.engine.save(node.state)) | {"version": 2}

    with pytest.raises(msgspec.ValidationError, match=r"expected version 1, got 2 - at `\$\.version`"):
        node.engine.restore("node-1", saved, [], [])


def test_a_node_without_rows_and_saved_form_is_a_new_one(node):
    assert node.engine.restore("node-1", None, [], []) == node.engine.new_node("node-1")


def test_without_a_saved_form_the_rows_tell_the_gpus_their_xids_and_counters(node, gpu_row, turn_row, told):
    node.gpu(0, xid_code=31, ecc_double_bit_volatile=2)
    node.turn(0)
    row = gpu_row(xid_code=31, ecc_double_bit_volatile=2, energy_joules=5.0)
    node.state = node.engine.restore("node-1", None, [row], [turn_row()])

    assert node.state.dirty
    assert node.state.interval_ms == 30_000
    assert not node.gpu(30, xid_code=31, ecc_double_bit_volatile=2)
    assert told(node.gpu(60, xid_code=79, ecc_double_bit_volatile=3)) == [
        ("xid_error", "fired", "critical", 60),
        ("ecc_double_bit", "fired", "critical", 60),
    ]
    node.turn(90, [])
    assert told(node.turn(120, [])) == [("gpu_lost", "fired", "critical", 120)]


def test_without_a_saved_form_a_node_that_was_removed_has_no_gpus(node, gpu_row, turn_row):
    node.gpu(0)
    node.turn(0)
    row = gpu_row()
    node.turn(30, removed=True)
    state = node.engine.restore("node-1", None, [row], [turn_row(removed=True, up=False)])

    assert (state.gpus, state.removed) == ({}, True)


def test_an_alert_of_a_rule_that_is_no_more_ends_at_the_next_record(node, gpu_row, told):
    node.gpu(0, temperature_celsius=96.0)
    saved = node.engine.save(node.state)
    node.engine = Engine(Rules(tuple(rule for rule in load_rules().rules if rule.name != HOT)))
    node.state = node.engine.restore("node-1", saved, [gpu_row(temperature_celsius=96.0)], [])

    assert [alert.key.rule for alert in node.engine.active(node.state)] == [HOT]
    (ended,) = node.gpu(30, temperature_celsius=96.0)
    assert told([ended]) == [(HOT, "resolved", "critical", 30)]
    assert (ended.resolved_reason, ended.actions) == ("rule_removed", ())
    assert not node.gpu(60, temperature_celsius=96.0)


def test_rules_in_another_order_find_their_readings(node, gpu_row):
    node.gpu(0, mig="1", temperature_celsius=50.0, xid_code=0)
    row = gpu_row(mig_instance="1", temperature_celsius=50.0, xid_code=0)
    saved = node.engine.save(node.state)
    node.engine = Engine(Rules(tuple(reversed(load_rules().rules))))
    node.state = node.engine.restore("node-1", saved, [row], [])

    assert not node.gpu(0, mig="2", temperature_celsius=99.0), "the turn had its temperature"
    assert node.gpu(0, mig="3", power_watts=9999.0), "but no power yet"


def test_restored_rows_tell_which_fields_are_sent(node, gpu_row):
    node.engine.restore("node-1", None, [gpu_row(row_remap_failure=0)], [])

    assert "row_remap_failure" not in node.engine.unseen_fields()
    assert HOT in node.engine.unseen_fields()


def test_a_row_that_came_late_is_not_taken_for_one_that_was_evaluated(committing_node, told):
    node = committing_node
    node.turn(0)
    node.turn(1, bridge="bridge-2", boot="boot-2", seq=1)
    node.turn(31)
    assert not node.turn(30, bridge="bridge-2", boot="boot-2", seq=2)
    node.restart()

    assert told(node.turn(62)) == [("duplicate_scraper", "resolved", "warning", 62)]


def frozen_at(node, start, energy):
    """When the exporter is found frozen, with an energy counter that stands still from `start` on."""
    for seconds in range(start, start + 900, 30):
        fired = [*node.gpu(seconds, energy_joules=energy), *node.turn(seconds)]
        if fired:
            assert [(each.key.rule, each.kind) for each in fired] == [("exporter_frozen", "fired")]
            return seconds
    return None


def test_a_last_energy_reading_that_the_newest_row_lacks_survives_a_restart(committing_node):
    node = committing_node
    for seconds, energy in ((0, 5.0), (30, 6.0), (60, None)):
        node.gpu(seconds, energy_joules=energy)
        node.turn(seconds)
    node.restart()

    assert frozen_at(node, 90, 6.0) == 330


def test_the_first_of_two_unlike_energy_readings_of_one_turn_survives_a_restart(committing_node):
    node = committing_node
    node.gpu(0, mig="2", energy_joules=5.0)
    node.turn(0)
    node.gpu(30, mig="2", energy_joules=6.0)
    node.gpu(30, mig="1", energy_joules=7.0)
    node.turn(30)
    node.restart()

    assert frozen_at(node, 60, 6.0) == 330


def test_the_time_since_nothing_moves_survives_a_restart(committing_node):
    node = committing_node
    for seconds, energy in ((0, 5.0), (30, 6.0), (60, 6.0), (90, 6.0)):
        node.gpu(seconds, energy_joules=energy)
        node.turn(seconds)
        node.restart()

    assert frozen_at(node, 120, 6.0) == 330


def test_a_restart_in_the_middle_of_a_turn_knows_what_the_turn_gave(committing_node):
    node = committing_node
    node.gpu(0, mig="1", temperature_celsius=50.0)
    node.turn(0)
    node.gpu(30, mig="1", temperature_celsius=50.0, xid_counts={})
    node.restart()

    assert not node.gpu(30, mig="2", temperature_celsius=99.0, xid_counts={79: 1}), "the turn had both"
    assert not node.gpu(30, mig="1", temperature_celsius=99.0)
    assert node.engine.counts.duplicate == 1


def test_a_turn_that_is_delivered_again_after_a_restart_counts_once(committing_node):
    node = committing_node
    node.turn(0, up=False, seq=1)
    node.turn(30, up=False, seq=2)
    node.restart()

    assert not node.turn(30, up=False, seq=2)
    assert node.state.down_turns == 2


def test_the_index_that_a_gpu_moved_to_survives_a_restart(committing_node):
    node = committing_node
    node.gpu(0, index=0)
    node.turn(0)
    node.gpu(30, index=1)
    node.turn(30)
    node.restart()
    node.turn(60, [])

    (lost,) = node.turn(90, [])
    assert lost.gpu_index == 1


def test_what_two_rows_of_a_turn_gave_together_survives_a_restart(committing_node):
    node = committing_node
    for mig in ("1", "2", "3"):
        node.gpu(0, mig=mig, temperature_celsius=50.0, energy_joules=1.0, xid_counts={})
    node.turn(0)
    node.gpu(30, mig="1", energy_joules=2.0)
    node.gpu(30, mig="2", energy_joules=2.0, temperature_celsius=50.0, xid_counts={})
    node.restart()

    assert not node.gpu(30, mig="3", energy_joules=2.0, temperature_celsius=99.0, xid_counts={79: 1})
