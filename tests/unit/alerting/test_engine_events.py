"""XIDs and counters: what a sticky gauge, a sliding window and a rising counter tell, and how it ends."""

import msgspec

XID = "xid_error"


def codes(transitions):
    return [(each.kind, each.details.get("xid_code")) for each in transitions]


def test_a_change_to_a_code_fires(node, told):
    node.gpu(0, xid_code=0)
    (fired,) = node.gpu(30, xid_code=79)

    assert told([fired]) == [(XID, "fired", "critical", 30)]
    assert fired.message == "XID 79: GPU has fallen off the bus; restart the machine"
    assert fired.details == {
        "xid_code": 79,
        "xid_name": "GPU has fallen off the bus",
        "xid_class": "restart_machine",
    }
    assert (fired.actual_value, fired.threshold_value) == (79, None)


def test_the_gauge_is_sticky_so_the_same_code_does_not_fire_again(node):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=79)

    assert not node.gpu(60, xid_code=79)
    assert not node.gpu(90)
    assert not node.gpu(120, xid_code=79)


def test_an_unlisted_code_fires_as_one_to_inspect(node):
    node.gpu(0, xid_code=0)
    (fired,) = node.gpu(30, xid_code=999)

    assert (fired.severity, fired.details["xid_class"]) == ("critical", "inspect")


def test_class_ignore_never_fires(node):
    node.gpu(0, xid_code=0)

    assert not node.gpu(30, xid_code=43)
    assert not node.gpu(60, xid_code=45, xid_counts={63: 1})
    assert not node.gpu(90, xid_code=45, xid_counts={63: 4})


def test_a_restart_application_code_in_the_first_record_is_inherited(node, told):
    (inherited,) = node.gpu(0, xid_code=31)

    assert told([inherited]) == [(XID, "inherited", "warning", 0)]
    assert (inherited.started_at, inherited.actions) == (inherited.at, ())
    assert inherited.details["xid_code"] == 31
    assert not node.engine.active(node.state)
    assert not node.gpu(30, xid_code=31)


def test_an_ignored_code_in_the_first_record_is_inherited(node):
    assert codes(node.gpu(0, xid_code=43)) == [("inherited", 43)]


def test_a_code_of_class_reset_or_worse_in_the_first_record_fires(node, make_node):
    assert codes(node.gpu(0, xid_code=119)) == [("fired", 119)]
    assert codes(make_node().gpu(0, xid_code=48)) == [("fired", 48)]


def test_a_code_that_comes_after_a_first_record_without_one_fires(node):
    node.gpu(0)

    assert codes(node.gpu(30, xid_code=31)) == [("fired", 31)]


def test_a_rise_of_the_count_fires_where_the_sticky_gauge_stands_still(node, told):
    node.gpu(0, xid_code=31, xid_counts={31: 1})

    (fired,) = node.gpu(30, xid_code=31, xid_counts={31: 2})
    assert told([fired]) == [(XID, "fired", "warning", 30)]
    assert not node.gpu(60, xid_code=31, xid_counts={31: 2})


def test_a_change_and_a_count_of_the_same_code_are_one_event(node):
    node.gpu(0, xid_code=0, xid_counts={})

    assert codes(node.gpu(30, xid_code=31, xid_counts={31: 1})) == [("fired", 31)]


def test_a_code_that_a_later_one_masks_in_the_gauge_is_found_by_its_count(node):
    node.gpu(0, xid_code=0, xid_counts={})

    assert codes(node.gpu(30, xid_code=45, xid_counts={45: 1, 79: 1})) == [("fired", 79)]


def test_a_count_that_falls_out_of_the_window_is_no_event_and_its_return_is_one(node):
    node.gpu(0, xid_code=0, xid_counts={})
    node.gpu(30, xid_code=31, xid_counts={31: 2})
    node.resolve(XID, seconds=40, started=30)

    assert not node.gpu(60, xid_code=31, xid_counts={31: 1})
    assert not node.gpu(90, xid_code=31, xid_counts={})
    assert codes(node.gpu(120, xid_code=31, xid_counts={31: 1})) == [("fired", 31)]


def test_counts_in_the_first_record_are_inherited(node):
    assert codes(node.gpu(0, xid_code=0, xid_counts={31: 3, 119: 1})) == [("inherited", 31), ("fired", 119)]


def test_mig_rows_repeat_the_gauge_and_fire_once(node):
    node.gpu(0, mig="1", xid_code=0)
    node.gpu(0, mig="2", xid_code=0)
    (fired,) = node.gpu(30, mig="1", xid_code=79)

    assert fired.key.mig_instance is None
    assert not node.gpu(30, mig="2", xid_code=79)


def test_a_worse_code_raises_the_alert_and_decides_how_it_ends(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=31)
    (raised,) = node.gpu(60, xid_code=79)

    assert told([raised]) == [(XID, "raised", "critical", 60)]
    assert (raised.message[:6], raised.actual_value, raised.details["xid_code"]) == ("XID 79", 79, 79)
    assert not node.gpu(2000, xid_code=79)
    assert told(node.gpu(2030, xid_code=0)) == [(XID, "resolved", "critical", 2030)]


def test_another_code_of_no_higher_severity_is_noted_and_changes_nothing(node):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=79)
    (noted,) = node.gpu(60, xid_code=31)

    assert (noted.kind, noted.severity, noted.message[:6]) == ("noted", "critical", "XID 79")
    assert noted.details["xid_code"] == 31
    assert not noted.actions
    assert not node.gpu(2000, xid_code=31), "the class of 79 still decides"


def test_a_restart_application_code_ends_after_15_minutes_without_a_repeat(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=31)

    assert not node.gpu(30 + 899, xid_code=31)
    (resolved,) = node.gpu(30 + 930, xid_code=31)
    assert told([resolved]) == [(XID, "resolved", "warning", 30 + 900)]
    assert resolved.resolved_reason == "expired"


def test_any_record_of_the_node_tells_that_15_minutes_are_over(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=31)

    assert told(node.turn(30 + 900, up=False)) == [(XID, "resolved", "warning", 30 + 900)]


def test_a_repeat_starts_the_15_minutes_anew(node, told):
    node.gpu(0, xid_code=0, xid_counts={})
    node.gpu(30, xid_code=31, xid_counts={31: 1})
    assert not node.gpu(630, xid_code=31, xid_counts={31: 2})

    assert not node.gpu(1500, xid_code=31, xid_counts={})
    assert told(node.gpu(1530, xid_code=31, xid_counts={})) == [(XID, "resolved", "warning", 1530)]


def test_a_repeat_after_15_minutes_is_a_new_alert(node, told):
    node.gpu(0, xid_code=0, xid_counts={})
    node.gpu(30, xid_code=31, xid_counts={31: 1})

    assert told(node.gpu(930, xid_code=31, xid_counts={31: 2})) == [
        (XID, "resolved", "warning", 930),
        (XID, "fired", "warning", 930),
    ]


def test_code_0_does_not_end_a_restart_application_alert(node):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=31)

    assert not node.gpu(60, xid_code=0)


def test_other_classes_end_at_code_0(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=119)
    (resolved,) = node.gpu(60, xid_code=0)

    assert told([resolved]) == [(XID, "resolved", "critical", 60)]
    assert resolved.resolved_reason == "cleared"


def test_an_alert_by_count_alone_is_not_ended_by_a_gauge_that_was_0_all_along(node):
    node.gpu(0, xid_code=0, xid_counts={})
    assert codes(node.gpu(30, xid_code=0, xid_counts={119: 1})) == [("fired", 119)]

    assert not node.gpu(60, xid_code=0, xid_counts={})


def test_after_a_manual_resolve_the_sticky_code_is_quiet_and_a_new_one_is_not(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=79)
    node.resolve(XID, seconds=40, started=30, severity="critical")

    assert not node.gpu(60, xid_code=79)
    assert told(node.gpu(90, xid_code=31)) == [(XID, "fired", "warning", 90)]


def test_after_a_manual_resolve_a_repeat_of_the_same_code_in_the_window_is_quiet(node):
    node.gpu(0, xid_code=0, xid_counts={})
    node.gpu(30, xid_code=119, xid_counts={119: 1})
    node.resolve(XID, seconds=40, started=30, severity="critical")

    assert not node.gpu(60, xid_code=119, xid_counts={119: 2})


def test_after_a_manual_resolve_and_code_0_the_same_code_fires_again(node, told):
    node.gpu(0, xid_code=0)
    node.gpu(30, xid_code=79)
    node.resolve(XID, seconds=40, started=30, severity="critical")
    node.gpu(60, xid_code=0)

    assert told(node.gpu(90, xid_code=79)) == [(XID, "fired", "critical", 90)]


def test_a_firing_that_follows_a_mute_at_the_same_moment_has_a_start_of_its_own(node):
    node.gpu(0, xid_code=0, xid_counts={})
    (first,) = node.gpu(30, mig="1", xid_code=79)
    node.resolve(XID, seconds=40, started=30, severity="critical")
    (second,) = node.gpu(30, mig="2", xid_counts={48: 1})

    assert second.started_at > first.started_at


def test_a_rise_of_double_bit_errors_fires(node, told):
    assert not node.gpu(0, ecc_double_bit_volatile=2), "what was there before is no rise"
    (fired,) = node.gpu(30, ecc_double_bit_volatile=5)

    assert told([fired]) == [("ecc_double_bit", "fired", "critical", 30)]
    assert fired.message.startswith("3 new uncorrected ECC errors, 5 since")
    assert (fired.actual_value, fired.details) == (5, {"increase": 3})
    assert not node.gpu(60, ecc_double_bit_volatile=6)


def test_a_rise_is_written_alike_before_and_after_a_restart(node, committing_node):
    """A counter is a whole number in a message and a float in the saved state; the stored details must not tell."""
    node.gpu(0, ecc_double_bit_volatile=0)
    committing_node.gpu(0, ecc_double_bit_volatile=0)
    committing_node.restart()
    (undisturbed,) = node.gpu(30, ecc_double_bit_volatile=1)
    (restarted,) = committing_node.gpu(30, ecc_double_bit_volatile=1)

    assert msgspec.json.encode(restarted) == msgspec.json.encode(undisturbed)


def test_double_bit_errors_end_when_the_counter_starts_anew(node, told):
    node.gpu(0, ecc_double_bit_volatile=0)
    node.gpu(30, ecc_double_bit_volatile=1)

    assert not node.gpu(60, ecc_double_bit_volatile=1)
    assert not node.gpu(90)
    assert told(node.gpu(120, ecc_double_bit_volatile=0)) == [("ecc_double_bit", "resolved", "critical", 120)]


def test_a_rise_across_absent_values_is_a_rise(node, told):
    node.gpu(0, ecc_double_bit_volatile=1)
    node.gpu(30)

    assert told(node.gpu(60, ecc_double_bit_volatile=2)) == [("ecc_double_bit", "fired", "critical", 60)]


def test_a_counter_that_starts_anew_above_0_has_risen(node, told):
    node.gpu(0, ecc_double_bit_volatile=5)

    assert told(node.gpu(30, ecc_double_bit_volatile=1)) == [("ecc_double_bit", "fired", "critical", 30)]


def test_after_a_manual_resolve_a_rise_is_news_once_the_counter_stood_still(node, told):
    node.gpu(0, ecc_double_bit_volatile=0)
    node.gpu(30, ecc_double_bit_volatile=1)
    node.resolve("ecc_double_bit", seconds=40, started=30, severity="critical")

    assert not node.gpu(60, ecc_double_bit_volatile=2)
    assert not node.gpu(90, ecc_double_bit_volatile=2)
    assert told(node.gpu(120, ecc_double_bit_volatile=3)) == [("ecc_double_bit", "fired", "critical", 120)]
