"""Threshold rules: the ladder, its ends, waiting, muting, models and scopes."""

import pytest

HOT = "high_temperature"

WAITING = """
rules:
  - name: hot
    field: temperature_celsius
    above: {warning: 90, critical: 95}
    clear_below: 85
    for: 60s
    keep_firing_for: 90s
    message: "{value:.0f} of {threshold:.0f}"
    actions:
      - {action: notify, when: [fired, raised, resolved]}
"""


def test_a_temperature_above_90_fires_a_warning_on_that_very_record(node, told):
    (fired,) = node.gpu(0, temperature_celsius=90.1)

    assert told([fired]) == [(HOT, "fired", "warning", 0)]
    assert fired.message == "GPU temperature is 90.1°C"
    assert fired.key == (HOT, "node-1", "GPU-a", None)
    assert fired.alert_type == HOT
    assert fired.started_at == fired.at
    assert (fired.gpu_index, fired.threshold_value, fired.actual_value) == (0, 90.0, 90.1)
    assert fired.actions == ("notify",)


def test_90_itself_does_not_fire(node):
    assert not node.gpu(0, temperature_celsius=90.0)


def test_a_first_reading_above_95_is_one_critical_alert_with_the_lowest_step_as_its_threshold(node, told):
    (fired,) = node.gpu(0, temperature_celsius=96.3)

    assert told([fired]) == [(HOT, "fired", "critical", 0)]
    assert fired.threshold_value == 90.0
    assert fired.message == "GPU temperature is 96.3°C"
    assert fired.actions == ("notify", "migrate_workload")


def test_a_warning_that_passes_95_is_raised_within_the_same_alert_and_migrates_once(node, told):
    node.gpu(0, temperature_celsius=91.0)
    (raised,) = node.gpu(30, temperature_celsius=96.3)

    assert told([raised]) == [(HOT, "raised", "critical", 30)]
    assert (raised.started_at - raised.at).total_seconds() == -30
    assert (raised.message, raised.actual_value, raised.threshold_value) == ("GPU temperature is 96.3°C", 96.3, 90.0)
    assert raised.actions == ("notify", "migrate_workload")
    assert not node.gpu(60, temperature_celsius=99.0)


def test_severity_message_and_value_stay_those_of_the_last_rise(node):
    node.gpu(0, temperature_celsius=96.0)
    node.gpu(30, temperature_celsius=91.0)

    (active,) = node.engine.active(node.state)
    assert (active.severity, active.message, active.actual_value) == ("critical", "GPU temperature is 96.0°C", 96.0)

    (resolved,) = node.gpu(60, temperature_celsius=84.0)
    assert (resolved.severity, resolved.message, resolved.actual_value) == (
        "critical",
        "GPU temperature is 96.0°C",
        96.0,
    )


def test_it_ends_below_85_and_not_before(node, told):
    node.gpu(0, temperature_celsius=91.0)

    assert not node.gpu(30, temperature_celsius=89.0)
    assert not node.gpu(60, temperature_celsius=85.0)
    (resolved,) = node.gpu(90, temperature_celsius=84.9)
    assert told([resolved]) == [(HOT, "resolved", "warning", 90)]
    assert resolved.resolved_reason == "cleared"
    assert resolved.actions == ("notify",)
    assert not node.engine.active(node.state)


def test_an_absent_value_neither_fires_nor_resolves(node):
    assert not node.gpu(0)
    node.gpu(30, temperature_celsius=91.0)

    assert not node.gpu(60)
    assert len(node.engine.active(node.state)) == 1


def test_a_gpu_that_is_gone_resolves_nothing(node, told):
    node.gpu(0, temperature_celsius=96.0)
    node.turn(0)
    node.turn(30, [])
    lost = node.turn(60, [])

    assert told(lost) == [("gpu_lost", "fired", "critical", 60)]
    assert [alert.key.rule for alert in node.engine.active(node.state)] == ["gpu_lost", HOT]


def test_a_model_without_a_row_of_its_own_may_draw_330_watts(node, told):
    assert not node.gpu(0, model="NVIDIA Unheard-of", power_watts=330.0)
    (fired,) = node.gpu(30, model="NVIDIA Unheard-of", power_watts=331.0)

    assert told([fired]) == [("high_power", "fired", "warning", 30)]
    assert fired.threshold_value == 330.0
    assert not node.gpu(60, model="NVIDIA Unheard-of", power_watts=313.6)
    (resolved,) = node.gpu(90, model="NVIDIA Unheard-of", power_watts=313.4)  # 95 % of 330 is 313.5
    assert resolved.kind == "resolved"


def test_a_record_without_a_model_is_held_against_the_general_threshold(node):
    assert node.gpu(0, model=None, power_watts=331.0)


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("NVIDIA H100 80GB HBM3", 700),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100 80GB PCIe", 300),
        ("NVIDIA A800-SXM4-80GB", 400),
        ("NVIDIA B300 SXM6 AC", 1100),
        ("NVIDIA GB300", 1400),
        ("NVIDIA A2", 60),
        ("Tesla P100-PCIE-16GB", 250),
        ("Tesla P100-SXM2-16GB", 300),
        ("NVIDIA H200", 700),
        ("NVIDIA GH200 480GB", 1000),
        ("NVIDIA B200", 1000),
        ("NVIDIA GB200", 1200),
        ("NVIDIA L40S", 350),
        ("NVIDIA L4", 72),
        ("Tesla T4", 70),
        ("Tesla V100-SXM2-16GB", 300),
        ("Tesla V100-DGXS-32GB", 300),
        ("NVIDIA H20", 400),
        ("NVIDIA H20-3e", 500),
    ],
)
def test_a_model_may_draw_its_power_limit_and_not_a_tenth_more(node, model, limit):
    assert not node.gpu(0, model=model, power_watts=float(limit))
    assert node.gpu(30, model=model, power_watts=limit * 1.3)


def test_the_emulated_models_stay_under_their_thresholds_at_their_power_limits(make_node):
    from emulator.models import MODELS  # noqa: PLC0415 - only here

    for model in MODELS.values():
        assert not make_node().gpu(0, model=model.name, power_watts=float(model.tdp_watts)), model.name


def test_memory_above_95_percent_fires_and_ends_below_93(node, told):
    assert not node.gpu(0, memory_used_percent=95.0)
    (fired,) = node.gpu(30, memory_used_percent=95.1)
    assert told([fired]) == [("high_memory", "fired", "warning", 30)]

    assert not node.gpu(60, memory_used_percent=93.0)
    assert told(node.gpu(90, memory_used_percent=92.9)) == [("high_memory", "resolved", "warning", 90)]


def test_memory_belongs_to_the_mig_instance_and_temperature_to_the_gpu(node):
    first = node.gpu(0, mig="1", temperature_celsius=91.0, memory_used_percent=96.0)
    second = node.gpu(0, mig="2", temperature_celsius=91.0, memory_used_percent=97.0)

    assert [tuple(each.key) for each in first] == [
        (HOT, "node-1", "GPU-a", None),
        ("high_memory", "node-1", "GPU-a", "1"),
    ]
    assert [tuple(each.key) for each in second] == [("high_memory", "node-1", "GPU-a", "2")]


def test_only_the_first_valid_value_of_a_turn_counts_for_the_gpu(node):
    assert not node.gpu(0, mig="1")
    assert node.gpu(0, mig="2", temperature_celsius=91.0)
    assert not node.gpu(0, mig="3", temperature_celsius=20.0)
    assert not node.gpu(30, mig="1", temperature_celsius=91.0)
    assert not node.gpu(30, mig="2", temperature_celsius=20.0)


def test_the_same_row_once_more_is_not_evaluated_and_counted(node):
    node.gpu(0, temperature_celsius=50.0)

    assert not node.gpu(0, temperature_celsius=99.0)
    assert node.engine.counts.duplicate == 1


def test_a_record_older_than_the_nodes_clock_is_not_evaluated_and_counted_late(node):
    node.gpu(30, temperature_celsius=50.0)

    assert not node.gpu(29.999, uuid="GPU-b", index=1, temperature_celsius=99.0)
    assert not node.turn(29.999, up=False)
    assert node.engine.counts.late == 2
    assert (node.state.clock.second, "GPU-b" in node.state.gpus) == (30, False)


def test_a_record_as_old_as_the_clock_is_evaluated(node):
    node.gpu(30, temperature_celsius=50.0)

    assert node.gpu(30, uuid="GPU-b", index=1, temperature_celsius=99.0)


def test_row_remap_failure_fires_at_1_and_ends_at_0(node, told):
    assert not node.gpu(0, row_remap_failure=0)
    (fired,) = node.gpu(30, row_remap_failure=1)

    assert told([fired]) == [("row_remap_failure", "fired", "critical", 30)]
    assert fired.threshold_value == 1
    assert told(node.gpu(60, row_remap_failure=0)) == [("row_remap_failure", "resolved", "critical", 60)]


def test_after_a_manual_resolve_it_stays_quiet_until_it_has_cleared_once(node, told):
    node.gpu(0, temperature_celsius=91.0)
    (resolved,) = node.resolve(HOT, seconds=10, started=0)

    assert (resolved.resolved_reason, resolved.actor, resolved.actions) == ("manual", "ada", ("notify",))
    assert not node.engine.active(node.state)
    assert not node.gpu(30, temperature_celsius=92.0)
    assert not node.gpu(60, temperature_celsius=84.0)
    assert told(node.gpu(90, temperature_celsius=91.0)) == [(HOT, "fired", "warning", 90)]


def test_between_its_thresholds_a_muted_condition_has_not_cleared(node):
    node.gpu(0, temperature_celsius=91.0)
    node.resolve(HOT, seconds=10, started=0)

    assert not node.gpu(30, temperature_celsius=86.0)
    assert not node.gpu(60, temperature_celsius=91.0)


def test_a_higher_step_than_the_muted_one_opens_a_new_alert(node, told):
    node.gpu(0, temperature_celsius=91.0)
    node.resolve(HOT, seconds=10, started=0)
    (fired,) = node.gpu(30, temperature_celsius=96.0)

    assert told([fired]) == [(HOT, "fired", "critical", 30)]
    assert fired.started_at == fired.at


def test_a_resolve_given_at_warning_does_not_mute_a_rise_that_it_did_not_know(node, told):
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(30, temperature_celsius=96.0)
    (resolved,) = node.resolve(HOT, seconds=10, started=0, severity="warning")

    assert resolved.severity == "warning"
    assert told(node.gpu(60, temperature_celsius=96.0)) == [(HOT, "fired", "critical", 60)]


def test_a_resolve_of_a_firing_that_is_over_does_nothing(node):
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(30, temperature_celsius=80.0)
    assert not node.resolve(HOT, seconds=40, started=0)

    node.gpu(60, temperature_celsius=91.0)
    assert not node.resolve(HOT, seconds=70, started=0)
    assert len(node.engine.active(node.state)) == 1


def test_a_rule_with_for_waits_and_then_fires_with_the_reading_of_that_moment(make_node, told):
    node = make_node(WAITING)

    (pending,) = node.gpu(0, temperature_celsius=91.0)
    assert told([pending]) == [("hot", "pending", "warning", 0)]
    assert not pending.actions
    assert not node.engine.active(node.state)
    assert not node.gpu(30, temperature_celsius=92.0)
    (fired,) = node.gpu(60, temperature_celsius=93.0)
    assert told([fired]) == [("hot", "fired", "warning", 60)]
    assert fired.started_at == fired.at
    assert fired.message == "93 of 90"


def test_a_wait_is_cancelled_by_one_reading_below_the_step(make_node, told):
    node = make_node(WAITING)
    node.gpu(0, temperature_celsius=91.0)

    (cancelled,) = node.gpu(30, temperature_celsius=89.0)
    assert told([cancelled]) == [("hot", "cancelled", "warning", 30)]
    assert (cancelled.at - cancelled.started_at).total_seconds() == 30
    assert told(node.gpu(60, temperature_celsius=91.0)) == [("hot", "pending", "warning", 60)]


def test_each_step_of_a_ladder_waits_for_itself(make_node, told):
    node = make_node(WAITING)
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(30, temperature_celsius=96.0)

    assert told(node.gpu(60, temperature_celsius=96.0)) == [("hot", "fired", "warning", 60)]
    assert told(node.gpu(90, temperature_celsius=96.0)) == [("hot", "raised", "critical", 90)]


def test_an_absent_value_does_not_end_a_wait(make_node, told):
    node = make_node(WAITING)
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(30)

    assert told(node.gpu(60, temperature_celsius=91.0)) == [("hot", "fired", "warning", 60)]


def test_a_rule_with_keep_firing_for_ends_that_long_after_it_cleared(make_node, told):
    node = make_node(WAITING)
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(60, temperature_celsius=91.0)

    assert not node.gpu(90, temperature_celsius=80.0)
    assert not node.gpu(120, temperature_celsius=86.0)  # not clear: the time begins anew
    assert not node.gpu(150, temperature_celsius=80.0)
    assert not node.gpu(210, temperature_celsius=80.0)
    assert told(node.gpu(240, temperature_celsius=80.0)) == [("hot", "resolved", "warning", 240)]


def test_a_resolve_of_an_alert_that_only_keeps_firing_mutes_nothing(make_node, told):
    node = make_node(WAITING)
    node.gpu(0, temperature_celsius=91.0)
    node.gpu(60, temperature_celsius=91.0)
    node.gpu(90, temperature_celsius=80.0)
    node.resolve("hot", seconds=95, started=60)

    assert told(node.gpu(120, temperature_celsius=91.0)) == [("hot", "pending", "warning", 120)]


def test_a_rule_may_fall(make_node, told):
    node = make_node(
        """
rules:
  - name: slow
    field: sm_clock_mhz
    below: {warning: 1000, critical: 500}
    clear_above_percent: 120
    message: "{value:.0f} MHz"
    actions: []
"""
    )
    assert not node.gpu(0, sm_clock_mhz=1000)
    (fired,) = node.gpu(30, sm_clock_mhz=999)
    assert (told([fired]), fired.actions) == ([("slow", "fired", "warning", 30)], ())
    assert told(node.gpu(60, sm_clock_mhz=400)) == [("slow", "raised", "critical", 60)]
    assert not node.gpu(90, sm_clock_mhz=1200)
    assert told(node.gpu(120, sm_clock_mhz=1201)) == [("slow", "resolved", "critical", 120)]


def test_without_a_clear_threshold_the_step_itself_ends_the_alert(make_node):
    node = make_node("rules: [{name: hot, field: temperature_celsius, above: {warning: 90}, message: m, actions: []}]")
    node.gpu(0, temperature_celsius=91.0)

    (resolved,) = node.gpu(30, temperature_celsius=90.0)
    assert resolved.kind == "resolved"


def test_a_rule_that_is_switched_off_does_nothing(make_node):
    node = make_node(
        "rules: [{name: hot, enabled: false, field: power_watts, above: {warning: 90}, message: m, actions: []}]"
    )
    assert not node.gpu(0, power_watts=99.0)


def test_rules_on_a_field_that_nobody_sends_are_named(node):
    node.gpu(0, temperature_celsius=50.0, power_watts=100.0, memory_used_percent=5.0, xid_code=0)

    assert node.engine.unseen_fields() == {
        "row_remap_failure": "row_remap_failure",
        "ecc_double_bit": "ecc_double_bit_volatile",
    }
    node.gpu(30, uuid="GPU-b", index=1, row_remap_failure=0, ecc_double_bit_volatile=0)
    assert node.engine.unseen_fields() == {}


def test_a_field_that_a_known_gpu_sends_only_later_is_seen_within_64_turns(node):
    for turn in range(70):
        node.gpu(30 * turn, row_remap_failure=0 if turn > 3 else None)
        node.turn(30 * turn)

    assert "row_remap_failure" not in node.engine.unseen_fields()
