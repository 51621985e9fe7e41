"""What a node's closing records tell, or their absence: down, lost, silent, frozen, scraped twice, removed."""

A, B, C = "GPU-a", "GPU-b", "GPU-c"


def scrape(node, seconds, *gpus, up=True, **turn):
    """A turn with a row of each GPU, given as (uuid, index) or as (uuid, index, values)."""
    out = []
    for uuid, index, *values in gpus:
        out += node.gpu(seconds, uuid=uuid, index=index, **(values[0] if values else {}))
    out += node.turn(seconds, [uuid for uuid, *_ in gpus], up=up, **turn)
    return out


def test_three_turns_running_that_failed_are_an_exporter_down(node, told):
    scrape(node, 0, (A, 0))
    assert not node.turn(30, up=False)
    assert not node.turn(60, up=False, reason="overrun")
    (fired,) = node.turn(90, up=False, reason="http_500")

    assert told([fired]) == [("exporter_down", "fired", "critical", 90)]
    assert fired.key == ("exporter_down", "node-1", None, None)
    assert "http_500" in fired.message
    assert fired.details == {"reason": "http_500"}
    assert node.engine.status(node.state) == "down"
    assert not node.turn(120, up=False)
    assert told(node.turn(150)) == [("exporter_down", "resolved", "critical", 150)]
    assert node.engine.status(node.state) == "healthy"


def test_a_turn_that_is_up_breaks_the_row_of_failures(node):
    for seconds, up in enumerate([False, False, True, False, False]):
        assert not node.turn(30 * seconds, up=up)


def test_a_node_is_as_bad_as_its_worst_alert(node):
    assert node.engine.status(node.state) == "healthy"
    node.gpu(0, memory_used_percent=96.0)
    assert node.engine.status(node.state) == "warning"
    node.gpu(30, temperature_celsius=96.0)
    assert node.engine.status(node.state) == "critical"
    node.resolve("high_temperature", seconds=40, started=30, severity="critical")
    assert node.engine.status(node.state) == "warning"


def test_a_gpu_that_two_pages_running_do_not_name_is_lost(node, told):
    scrape(node, 0, (A, 0), (B, 1))
    assert not scrape(node, 30, (A, 0))
    (fired,) = scrape(node, 60, (A, 0))

    assert told([fired]) == [("gpu_lost", "fired", "critical", 60)]
    assert (fired.key, fired.gpu_index) == (("gpu_lost", "node-1", B, None), 1)
    assert not scrape(node, 90, (A, 0))


def test_a_lost_gpu_that_returns_ends_its_alert(node, told):
    scrape(node, 0, (A, 0), (B, 1))
    scrape(node, 30, (A, 0))
    scrape(node, 60, (A, 0))

    assert told(scrape(node, 90, (A, 0), (B, 1))) == [("gpu_lost", "resolved", "critical", 90)]


def test_a_gpu_that_one_page_does_not_name_is_not_lost(node):
    scrape(node, 0, (A, 0), (B, 1))
    assert not scrape(node, 30, (A, 0))
    assert not scrape(node, 60, (A, 0), (B, 1))
    assert not scrape(node, 90, (A, 0))


def test_failed_turns_say_nothing_of_a_gpu(node, told):
    scrape(node, 0, (A, 0), (B, 1))
    scrape(node, 30, (A, 0))
    assert not node.turn(60, up=False)

    assert told(scrape(node, 90, (A, 0))) == [("gpu_lost", "fired", "critical", 90)]


def test_a_gpu_whose_line_was_refused_but_was_seen_is_not_lost(node):
    scrape(node, 0, (A, 0), (B, 1))
    for seconds in (30, 60, 90):
        node.gpu(seconds, uuid=A, index=0)
        assert not node.turn(seconds, [A, B])


def test_a_muted_loss_is_quiet_until_the_gpu_was_back_once(node, told):
    scrape(node, 0, (A, 0), (B, 1))
    scrape(node, 30, (A, 0))
    scrape(node, 60, (A, 0))
    node.resolve("gpu_lost", seconds=70, started=60, gpu=B, severity="critical")

    assert not scrape(node, 90, (A, 0))
    assert not scrape(node, 120, (A, 0), (B, 1))
    scrape(node, 150, (A, 0))
    assert told(scrape(node, 180, (A, 0))) == [("gpu_lost", "fired", "critical", 180)]


def test_a_new_gpu_at_the_absent_ones_index_replaces_it_and_ends_its_alerts(node, told):
    scrape(node, 0, (A, 0), (B, 1, {"xid_code": 79, "temperature_celsius": 91.0}))
    ended = scrape(node, 30, (A, 0), (C, 1))

    assert told(ended) == [
        ("high_temperature", "resolved", "warning", 30),
        ("xid_error", "resolved", "critical", 30),
    ]
    assert {(each.key.gpu_uuid, each.resolved_reason, each.details["new_gpu_uuid"]) for each in ended} == {
        (B, "replaced", C)
    }
    assert not scrape(node, 60, (A, 0), (C, 1))
    assert not scrape(node, 90, (A, 0), (C, 1))


def test_a_lost_gpu_that_is_replaced_later_ends_so(node):
    scrape(node, 0, (A, 0), (B, 1))
    scrape(node, 30, (A, 0))
    scrape(node, 60, (A, 0))
    for seconds in (90, 120, 150):
        node.turn(seconds, up=False)

    ended = scrape(node, 180, (A, 0), (C, 1))
    assert [(each.key.rule, each.resolved_reason) for each in ended] == [
        ("gpu_lost", "replaced"),
        ("exporter_down", "cleared"),
    ]


def test_a_known_gpu_that_moves_to_the_absent_ones_index_replaces_nothing(node, told):
    scrape(node, 0, (A, 0, {"temperature_celsius": 91.0}), (B, 1))
    assert not scrape(node, 30, (B, 0))

    assert told(scrape(node, 60, (B, 0))) == [("gpu_lost", "fired", "critical", 60)]
    assert len(node.engine.active(node.state)) == 2


def test_a_gpu_that_was_new_at_another_index_replaces_nothing(node, told):
    scrape(node, 0, (A, 0, {"temperature_celsius": 91.0}), (B, 1))
    assert not scrape(node, 30, (B, 1), (C, 2))

    assert told(scrape(node, 60, (B, 1), (C, 0))) == [("gpu_lost", "fired", "critical", 60)]


def test_known_gpus_that_swap_their_indexes_end_nothing(node):
    scrape(node, 0, (A, 0, {"temperature_celsius": 91.0}), (B, 1))

    assert not scrape(node, 30, (A, 1), (B, 0))
    assert len(node.engine.active(node.state)) == 1


def test_a_gpu_that_stood_beside_the_absent_one_at_its_index_does_not_replace_it(node):
    scrape(node, 0, (A, 0, {"temperature_celsius": 91.0}), (B, 0))

    assert not scrape(node, 30, (B, 0))


def test_silence_fires_three_intervals_after_the_last_record_and_does_not_move_the_clock(node, told):
    scrape(node, 0, (A, 0))
    (fired,) = node.silence(0)

    assert told([fired]) == [("node_silent", "fired", "warning", 90)]
    assert fired.message == "Nothing was heard of the node for 90 s"
    assert node.state.clock == fired.at.replace(minute=0, second=0)


def test_silence_that_contradicts_the_clock_is_ignored(node):
    scrape(node, 0, (A, 0))
    scrape(node, 30, (A, 0))

    assert not node.silence(0)
    assert not node.silence(60)
    assert node.engine.counts.silence_ignored == 2


def test_a_second_silence_changes_nothing(node):
    scrape(node, 0, (A, 0))
    node.silence(0)
    before = node.engine.save(node.state)

    assert not node.silence(0)
    assert node.engine.save(node.state) == before


def test_silence_of_a_node_that_was_never_heard_is_ignored(node):
    assert not node.silence(0)


def test_the_nodes_next_record_ends_its_silence(node, told):
    scrape(node, 0, (A, 0))
    node.silence(0)

    assert told(node.gpu(120, uuid=A)) == [("node_silent", "resolved", "warning", 120)]
    assert not node.turn(120)


def test_a_buffered_record_ends_the_silence_no_earlier_than_it_began(node, told):
    scrape(node, 0, (A, 0))
    node.silence(0)

    assert told(node.turn(30, up=False)) == [("node_silent", "resolved", "warning", 90)]


def test_a_late_record_does_not_end_a_silence(node):
    scrape(node, 30, (A, 0))
    node.silence(30)

    assert not node.gpu(29, uuid=A)
    assert len(node.engine.active(node.state)) == 1


def test_a_second_silence_after_one_record_has_a_start_of_its_own(node):
    node.gpu(0, uuid=A)
    (first,) = node.silence(0)
    node.turn(0)
    (second,) = node.silence(0)

    assert second.started_at > first.started_at


def test_a_muted_silence_is_quiet_until_the_node_was_heard(node, told):
    scrape(node, 0, (A, 0))
    node.silence(0)
    node.resolve("node_silent", seconds=100, started=90, gpu=None)

    assert not node.silence(0)
    assert not node.gpu(300, uuid=A)
    assert told(node.silence(300)) == [("node_silent", "fired", "warning", 390)]


def frozen(node, until, *, start=0, every=30):
    """Turns whose energy counter stands still; gives all that happened."""
    out = []
    for seconds in range(start, until + 1, every):
        out += scrape(node, seconds, (A, 0, {"energy_joules": 5.0, "temperature_celsius": 20.0 + seconds % 7}))
    return out


def test_an_energy_counter_that_stands_still_for_5_minutes_is_a_frozen_exporter(node, told):
    (fired,) = frozen(node, 300)

    assert told([fired]) == [("exporter_frozen", "fired", "warning", 300)]
    assert fired.message.endswith("for 300 s")
    assert not frozen(node, 390, start=330)
    assert told(scrape(node, 420, (A, 0, {"energy_joules": 6.0}))) == [("exporter_frozen", "resolved", "warning", 420)]


def test_a_counter_that_moves_more_slowly_than_the_turns_is_not_frozen(node):
    for seconds in range(0, 900, 5):
        assert not scrape(node, seconds, (A, 0, {"energy_joules": 5.0 + seconds // 30}), interval=5)


def test_one_gpu_that_moves_is_enough(node):
    for seconds in range(0, 600, 30):
        assert not scrape(node, seconds, (A, 0, {"energy_joules": 5.0}), (B, 1, {"energy_joules": float(seconds)}))


def test_only_time_while_up_counts_as_frozen(node, told):
    frozen(node, 240)
    node.turn(270, up=False)

    assert not frozen(node, 570, start=300)
    assert told(frozen(node, 600, start=600)) == [("exporter_frozen", "fired", "warning", 600)]


def test_a_failed_turn_does_not_end_a_frozen_exporter(node):
    frozen(node, 300)
    node.turn(330, up=False)

    assert not frozen(node, 360, start=360)
    assert [alert.key.rule for alert in node.engine.active(node.state)] == ["exporter_frozen"]


def test_a_bridge_that_takes_over_does_not_end_a_frozen_exporter(node):
    frozen(node, 300)
    node.turn(330, up=False)
    scrape(node, 600, (A, 0, {"energy_joules": 5.0}), bridge="bridge-2", boot="boot-9")

    assert [alert.key.rule for alert in node.engine.active(node.state)] == ["exporter_frozen"]


def test_without_an_energy_counter_every_value_counts(node, told):
    still = (A, 0, {"energy_joules": None})
    for seconds in range(0, 300, 30):
        assert not scrape(node, seconds, still, changed=0)
    assert told(scrape(node, 300, still, changed=0)) == [("exporter_frozen", "fired", "warning", 300)]
    assert told(scrape(node, 330, still, changed=330)) == [("exporter_frozen", "resolved", "warning", 330)]


def test_a_page_with_energy_counters_is_not_judged_by_its_other_values(node):
    for seconds in range(0, 600, 30):
        assert not scrape(node, seconds, (A, 0), changed=0)


def test_a_page_that_loses_its_energy_counter_is_judged_by_every_value_after_5_minutes(node, told):
    scrape(node, 0, (A, 0))
    gone = (A, 0, {"energy_joules": None})
    for seconds in range(30, 330, 30):
        assert not scrape(node, seconds, gone, changed=0)
    assert told(scrape(node, 330, gone, changed=0)) == [("exporter_frozen", "fired", "warning", 330)]


def test_a_bridge_that_starts_anew_does_not_end_a_page_that_stands_still(node):
    still = (A, 0, {"energy_joules": None})
    for seconds in range(0, 330, 30):
        scrape(node, seconds, still, changed=0)

    assert not scrape(node, 330, still, changed=330, boot="boot-2", seq=1)
    assert not scrape(node, 360, still, changed=330, boot="boot-2", seq=2)
    assert [alert.key.rule for alert in node.engine.active(node.state)] == ["exporter_frozen"]


def test_two_bridges_within_two_intervals_scrape_twice(node, told):
    node.turn(0)
    (fired,) = node.turn(10, bridge="bridge-2", boot="boot-2", seq=1)

    assert told([fired]) == [("duplicate_scraper", "fired", "warning", 10)]
    assert fired.details == {"bridges": ["bridge-1", "bridge-2"]}
    assert not node.turn(30)
    assert not node.turn(40, bridge="bridge-2", boot="boot-2", seq=2)
    assert not node.turn(70, bridge="bridge-2", boot="boot-2", seq=3)
    assert told(node.turn(100, bridge="bridge-2", boot="boot-2", seq=4)) == [
        ("duplicate_scraper", "resolved", "warning", 100)
    ]


def test_a_bridge_that_restarts_is_no_second_one(node):
    node.turn(0)
    assert not node.turn(10, boot="boot-2", seq=1)
    assert not node.turn(40, boot="boot-2", seq=2)


def test_a_bridge_that_takes_over_after_two_intervals_is_no_second_one(node):
    node.turn(0)
    assert not node.turn(61, bridge="bridge-2", boot="boot-2", seq=1)


def test_bridges_with_unlike_intervals_do_not_flap(node, told):
    node.turn(0, interval=60)
    assert told(node.turn(40, bridge="b2", boot="x", seq=1, interval=5)) == [
        ("duplicate_scraper", "fired", "warning", 40)
    ]
    assert not node.turn(45, bridge="b2", boot="x", seq=2, interval=5)
    assert not node.turn(60, interval=60)


def test_the_same_turn_once_more_counts_once(node):
    for seconds in (0, 30):
        node.turn(seconds, up=False, seq=seconds)
        assert not node.turn(seconds, up=False, seq=seconds)
    assert node.engine.counts.duplicate == 2
    assert node.state.down_turns == 2


def test_removal_ends_all_alerts_as_decommissioned_and_forgets_the_gpus(node, told):
    scrape(node, 0, (A, 0, {"temperature_celsius": 91.0}), (B, 1, {"memory_used_percent": 99.0}))
    for seconds in (30, 60, 90):
        node.turn(seconds, up=False)
    ended = node.turn(120, up=False, removed=True)

    assert told(ended) == [
        ("exporter_down", "resolved", "critical", 120),
        ("high_memory", "resolved", "warning", 120),
        ("high_temperature", "resolved", "warning", 120),
    ]
    assert {each.resolved_reason for each in ended} == {"decommissioned"}
    assert (node.state.removed, node.engine.status(node.state)) == (True, "healthy")
    assert not node.silence(120), "the silence of a node that left is no news"
    assert not node.turn(150, [])
    assert not node.turn(180, [])
    assert not node.state.removed


def test_a_removal_is_the_last_word_of_its_moment(node):
    scrape(node, 0, (A, 0))
    node.turn(30, up=False, removed=True, seq=9)

    assert not node.turn(30, up=False, removed=True, seq=9)
    assert not node.gpu(30, uuid=A, temperature_celsius=99.0)
    assert node.engine.counts.duplicate == 2
    assert (node.state.removed, node.state.gpus) == (True, {})


def test_removal_ends_a_silence_too(node):
    scrape(node, 0, (A, 0))
    node.silence(0)

    (ended,) = node.turn(700, up=False, removed=True)
    assert ended.key.rule == "node_silent"
