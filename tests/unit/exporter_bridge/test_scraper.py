"""Turns against real exporters on loopback: each failure by its name, time that misbehaves, nodes that come and go."""

import asyncio
import gc
import itertools
import time
import weakref
from datetime import UTC, datetime, timedelta

import pytest

from exporter_bridge.records import RecordBuilder
from exporter_bridge.targets import Target, offset_of
from gpu_telemetry.clock import ManualClock, SystemClock
from gpu_telemetry.records import GpuRecord


def test_a_turn_gives_a_record_for_each_gpu_and_closes_with_what_it_announced(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            assert await bench.scraper.scrape_all_once() == 1
            return bench.records()

    *gpus, closing = on_loop(run())
    assert [(gpu.gpu_index, gpu.gpu_uuid, gpu.temperature_celsius) for gpu in gpus] == [
        (0, "GPU-1", 45),
        (1, "GPU-2", 46),
    ]
    assert {gpu.power_watts for gpu in gpus} == {300.5, 301.5}
    assert (closing.up, closing.reason, closing.gpu_records, closing.seq) == (True, None, 2, 1)
    assert set(closing.gpu_uuids) == {"GPU-1", "GPU-2"}
    assert (closing.bridge_id, closing.instance, closing.interval_ms) == ("bridge-1", "host:9400", 30_000)
    assert closing.duration_ms > 0
    assert {record.collected_at for record in gpus} == {closing.collected_at}


def failing(loopback):
    page = loopback.PAGE
    return {
        "http_401": loopback.http("no", "401 Unauthorized"),
        "http_500": loopback.http("no", "500 Internal Server Error"),
        "empty": loopback.http(""),
        "too_large": loopback.http(page * 10),
        "truncated": loopback.http(page, length=len(page) + 1),
        "timeout": loopback.hang,
        "unparseable": loopback.http("<html><body>Sign in</body></html>\n"),
        "connection_refused": None,
    }


REASONS = ("http_401", "http_500", "empty", "too_large", "truncated", "timeout", "unparseable", "connection_refused")


@pytest.mark.parametrize("reason", REASONS)
def test_a_failed_scrape_is_published_as_down_with_its_reason(reason, on_loop, loopback, free_ports, caplog):
    async def run():
        exporter = loopback.Exporter(failing(loopback)[reason])
        settings = {"body_limit_bytes": 2000, "timeout_seconds": 0.15 if reason == "timeout" else 5}
        async with loopback.serving(exporter), loopback.Bench(**settings) as bench:
            (closed,) = free_ports(1)
            url = f"http://127.0.0.1:{closed}/" if reason == "connection_refused" else exporter.url()
            bench.apply(node_1=url)
            assert await bench.scraper.scrape_all_once() == 0
            return bench.records(), bench.metrics.page().decode()

    (closing,), metrics = on_loop(run())
    assert (closing.up, closing.reason, closing.gpu_records, closing.seq) == (False, reason, 0, 1)
    assert f'gpu_bridge_scrape_failures_total{{reason="{reason}"}} 1.0' in metrics
    assert f"node-1: scrape failed: {reason} (" in caplog.text


def test_a_page_of_more_lines_than_any_node_prints_is_too_large(on_loop, loopback, caplog):
    async def run():
        exporter = loopback.Exporter(loopback.http(loopback.PAGE + "\n" * 50_000))
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.turns()

    assert on_loop(run())[0].reason == "too_large"
    assert "node-1: scrape failed: too_large (50,008 lines, and at most 50,000 are read)" in caplog.text


def test_a_page_of_comments_alone_is_empty(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(loopback.http("# nothing yet\n"))
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.turns()

    assert on_loop(run())[0].reason == "empty"


def test_every_failure_at_once_costs_the_good_nodes_nothing(on_loop, loopback):
    async def run():
        answers = {f"/{reason}": answer for reason, answer in failing(loopback).items() if answer}
        exporter = loopback.Exporter(answers=answers)
        async with loopback.serving(exporter), loopback.Bench(interval_seconds=0.5) as bench:
            urls = {f"bad_{path[1:]}": exporter.url(path) for path in answers} | {"good": exporter.url("/metrics")}
            targets = {name: Target(name, url, "host:9400", timeout_seconds=20) for name, url in urls.items()}
            bench.scraper.apply(targets)
            bench.scraper.start()
            await loopback.until(lambda: len(bench.turns("good")) >= 4)
            return bench.turns("good")

    turns = on_loop(run())
    assert all(turn.up for turn in turns)
    gaps = [later.collected_at - earlier.collected_at for earlier, later in itertools.pairwise(turns)]
    # The hanging one is given 20 seconds.
    assert max(gaps) < timedelta(seconds=5), gaps


def test_a_target_that_still_answers_at_its_next_turn_skips_that_turn(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(answers={"/slow": loopback.hang})
        async with loopback.serving(exporter), loopback.Bench(interval_seconds=0.5) as bench:
            slow = Target("slow", exporter.url("/slow"), "slow:9400", timeout_seconds=1.4)
            quick = Target("quick", exporter.url(), "quick:9400", timeout_seconds=20)
            bench.scraper.apply({"slow": slow, "quick": quick})
            bench.scraper.start()
            await loopback.until(lambda: {turn.reason for turn in bench.turns("slow")} == {"overrun", "timeout"})
            return bench.turns("slow"), bench.turns("quick"), len([r for r in exporter.requests if "/slow" in r])

    slow, quick, requests = on_loop(run())
    assert [turn.seq for turn in slow] == list(range(1, len(slow) + 1))
    assert slow[0].reason == "overrun"
    assert not any(turn.up for turn in slow)
    assert requests < len(slow)
    assert all(turn.up for turn in quick)


def test_a_target_that_hangs_for_whole_intervals_times_out_each_time_and_skips_nothing(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(loopback.hang)
        async with loopback.serving(exporter), loopback.Bench(interval_seconds=1) as bench:
            bench.apply(node_1=exporter.url())
            bench.scraper.start()
            await loopback.until(lambda: len(bench.turns()) >= 3)
            return {turn.reason for turn in bench.turns()}

    assert on_loop(run()) == {"timeout"}


def test_waiting_for_the_next_turn_costs_no_more_than_a_timer(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(interval_seconds=0.2) as bench:
            bench.apply(node_1=exporter.url())
            wakings = 0
            due = bench.scraper._timetable.due

            def counted(now):
                nonlocal wakings
                wakings += 1
                return due(now)

            bench.scraper._timetable.due = counted
            bench.scraper.start()
            await loopback.until(lambda: len(bench.turns()) >= 5)
            return wakings, len(bench.turns())

    wakings, turns = on_loop(run())
    assert wakings <= 2 * turns


def test_turns_come_at_their_nodes_offsets_again_after_a_restart(on_loop, loopback):
    async def lateness():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(interval_seconds=0.5) as bench:
            bench.apply(node_1=exporter.url(), node_4=exporter.url())
            bench.scraper.start()
            await loopback.until(lambda: len(bench.turns("node-1")) >= 5 and len(bench.turns("node-4")) >= 5)
            return [
                # A busy machine delays a turn now and then, and not all.
                min((turn.collected_at.timestamp() - offset_of(name, 0.5)) % 0.5 for turn in bench.turns(name))
                for name in ("node-1", "node-4")
            ]

    async def run():
        return [*await lateness(), *await lateness()]

    assert abs(offset_of("node-1", 0.5) - offset_of("node-4", 0.5)) > 0.1
    assert max(on_loop(run())) < 0.1


class SteppingClock(SystemClock):
    """A wall clock that steps as told while monotonic time goes on."""

    def __init__(self):
        self.step = timedelta()

    def now(self):
        return super().now() + self.step


def test_seq_and_collected_at_rise_strictly_though_the_wall_clock_steps_back(on_loop, loopback):
    clock = SteppingClock()

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(clock) as bench:
            bench.apply(node_1=exporter.url())
            for hours in (0, -1, -1, 1):
                clock.step = timedelta(hours=hours)
                await bench.scraper.scrape_all_once()
            return bench.turns()

    turns = on_loop(run())
    assert [turn.seq for turn in turns] == [1, 2, 3, 4]
    first, second, third, fourth = (turn.collected_at for turn in turns)
    assert second - first == third - second == timedelta(milliseconds=1)
    assert fourth - first > timedelta(minutes=59)
    assert len({turn.boot_id for turn in turns}) == 1


def test_another_start_is_another_boot(on_loop, loopback):
    async def boot():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.turns()[0]

    async def run():
        return await boot(), await boot()

    one, two = on_loop(run())
    assert one.boot_id != two.boot_id
    assert (one.seq, two.seq) == (1, 1)


def test_changed_at_is_when_a_value_last_changed(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            for page in (loopback.PAGE, loopback.PAGE, loopback.PAGE.replace(" 45", " 47")):
                exporter.answer = loopback.http(page)
                await bench.scraper.scrape_all_once()
            return bench.turns()

    first, second, third = on_loop(run())
    assert first.changed_at == second.changed_at == first.collected_at
    assert third.changed_at == third.collected_at


def test_a_failure_is_logged_when_it_begins_and_when_it_ends(on_loop, loopback, caplog):
    caplog.set_level("INFO")

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            for status in ("500 No", "500 No", "500 No", "200 OK", "200 OK"):
                exporter.answer = loopback.http(loopback.PAGE, status)
                await bench.scraper.scrape_all_once()

    on_loop(run())
    assert caplog.text.count("node-1: scrape failed: http_500 (HTTP status 500)") == 1
    assert caplog.text.count("node-1: scraped again, after http_500") == 1


def test_a_bad_line_costs_that_line_and_its_first_example_is_logged_once(on_loop, loopback, caplog):
    async def run():
        exporter = loopback.Exporter(loopback.http(loopback.PAGE + 'broken{pod="a"b"} 1\n'))
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            for _ in range(3):
                await bench.scraper.scrape_all_once()
            return bench.turns(), bench.metrics.page().decode()

    turns, metrics = on_loop(run())
    assert [(turn.up, turn.gpu_records) for turn in turns] == [(True, 2)] * 3
    assert caplog.text.count("node-1: lines not understood") == 1
    assert 'bad_labels: broken{pod="a"b"}' in caplog.text
    assert 'gpu_bridge_refused_lines_total{reason="bad_labels"} 3.0' in metrics


def test_a_sentinel_is_counted_under_the_name_of_its_field(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(loopback.http(loopback.PAGE.replace(" 45", " 2147483632")))
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.records()[0], bench.metrics.page().decode()

    gpu, metrics = on_loop(run())
    assert isinstance(gpu, GpuRecord)
    assert gpu.temperature_celsius is None
    assert 'gpu_bridge_rejected_values_total{field="temperature_celsius",reason="sentinel"} 1.0' in metrics


def test_names_that_an_exporter_makes_up_do_not_become_labels_of_our_metrics(on_loop, loopback):
    extra = "".join(f'made_up_{number}{{gpu="0",UUID="GPU-1"}} NaN\n' for number in range(50))

    async def run():
        exporter = loopback.Exporter(loopback.http(loopback.PAGE + extra))
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.metrics.page().decode()

    assert "made_up" not in on_loop(run())


class Broken(RecordBuilder):
    """What no page should bring about."""

    def build(self, _page, _turn):
        raise ZeroDivisionError


def test_an_error_of_our_own_on_a_page_costs_that_node_and_closes_its_turn(on_loop, loopback, caplog):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url(), node_2=exporter.url())
            bench.scraper.nodes["node-1"].builder = Broken()
            good = await bench.scraper.scrape_all_once()
            return good, bench.turns("node-1"), bench.turns("node-2")

    good, broken, whole = on_loop(run())
    assert good == 1
    assert [(turn.up, turn.reason, turn.seq) for turn in broken] == [(False, "internal_error", 1)]
    assert [turn.up for turn in whole] == [True]
    assert "node-1: the bridge failed on its page" in caplog.text


def test_a_node_that_leaves_and_returns_goes_on_with_its_sequence(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            bench.apply()
            assert not bench.scraper.nodes
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.turns()

    first, second = on_loop(run())
    assert (first.seq, second.seq) == (1, 2)
    assert first.boot_id == second.boot_id


def test_a_removed_node_says_so_in_a_last_record_and_begins_anew_when_it_returns(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            bench.apply()
            bench.scraper.remove(["node-1", "of-another-shard"])
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            return bench.turns(), bench.publisher._drops

    (before, removal, after), drops = on_loop(run())
    assert (removal.removed, removal.up, removal.gpu_records, removal.seq) == (True, False, 0, 2)
    assert removal.boot_id == before.boot_id
    assert (after.removed, after.seq) == (False, 1)
    assert after.boot_id != before.boot_id
    assert set(drops) == {"node-1"}


def test_nodes_that_come_and_go_for_ever_leave_nothing_behind(on_loop, loopback):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(queue_scrapes=5) as bench:
            for number in range(50):
                bench.apply(**{f"node_{number}": exporter.url()})
                await bench.scraper.scrape_all_once()
                bench.scraper.remove([f"node-{number - 1}"])
            kept = bench.scraper._departed, bench.publisher._drops, bench.scraper.exposition._families
            return [len(held) for held in kept], bench.scraper._boot_id

    (departed, drops, families), boot_id = on_loop(run())
    assert (departed, drops, families) == (0, 1, 2)
    assert len(boot_id) < 20


def test_a_changed_address_is_scraped_at_the_next_turn(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(answers={"/old": loopback.http("", "500 No")})
        async with loopback.serving(exporter), loopback.Bench() as bench:
            bench.apply(node_1=exporter.url("/old"))
            await bench.scraper.scrape_all_once()
            bench.apply(node_1=exporter.url("/new"))
            await bench.scraper.scrape_all_once()
            return bench.turns()

    assert [(turn.seq, turn.up) for turn in on_loop(run())] == [(1, False), (2, True)]


def test_a_page_is_fresh_for_two_intervals(on_loop, loopback):
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))

    async def run():
        async with (
            loopback.serving(loopback.Exporter()) as exporter,
            loopback.Bench(clock, interval_seconds=30) as bench,
        ):
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            node = bench.scraper.nodes["node-1"]
            fresh = [bench.scraper.is_fresh(node)]
            for seconds in (60, 1):
                clock.advance(seconds)
                fresh.append(bench.scraper.is_fresh(node))
            return fresh

    assert on_loop(run()) == [True, True, False]


def test_turns_beyond_the_limit_wait_for_a_connection_and_none_is_lost(on_loop, loopback):
    most = 0

    async def run():
        nonlocal most
        open_now = 0

        async def counting(head, writer):
            nonlocal most, open_now
            open_now += 1
            most = max(most, open_now)
            await asyncio.sleep(0)
            open_now -= 1
            await loopback.http()(head, writer)

        exporter = loopback.Exporter(counting)
        async with loopback.serving(exporter), loopback.Bench(max_in_flight=3) as bench:
            bench.apply(**{f"node_{number}": exporter.url() for number in range(20)})
            return await bench.scraper.scrape_all_once()

    assert on_loop(run()) == 20
    assert most <= 3


def test_new_pages_are_read_in_slices_between_what_is_due(on_loop, loopback):
    """A fleet of pages never seen costs the loop no long standstill."""

    def page(node):
        return "".join(
            f"# TYPE FAMILY_{family} gauge\n"
            + "".join(
                f'FAMILY_{family}{{gpu="{gpu}",UUID="GPU-{node}-{gpu}",pod="p-{node}-{family}-{gpu}"}} {gpu}\n'
                for gpu in range(8)
            )
            for family in range(40)
        )

    async def run():
        exporter = loopback.Exporter(answers={f"/{node}": loopback.http(page(node)) for node in range(40)})
        async with loopback.serving(exporter), loopback.Bench(interval_seconds=30) as bench:
            bench.apply(**{f"node_{node}": exporter.url(f"/{node}") for node in range(40)})
            longest = last = 0.0

            async def pulse():
                nonlocal longest, last
                last = time.thread_time()
                while True:
                    await asyncio.sleep(0)
                    now = time.thread_time()
                    longest, last = max(longest, now - last), now

            pulsing = asyncio.ensure_future(pulse())
            await asyncio.sleep(0)
            began = time.thread_time()
            good = await bench.scraper.scrape_all_once()
            took = time.thread_time() - began
            pulsing.cancel()
            return good, longest, took

    good, longest, took = on_loop(run())
    assert good == 40
    assert longest < took / 3, (longest, took)


def test_what_is_known_of_a_node_goes_with_it_without_the_garbage_collector(on_loop, loopback):
    """The bridge takes it out of the collector's sight, so a cycle in it would stay for ever."""

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench() as bench:
            bench.apply(node_1=exporter.url())
            await bench.scraper.scrape_all_once()
            await bench.scraper.scrape_all_once()
            family = weakref.ref(bench.scraper.nodes["node-1"].page.layouts[0].family)
            bench.apply()
            bench.scraper.remove(["node-1"])
            return family()

    gc.disable()
    try:
        assert on_loop(run()) is None
    finally:
        gc.enable()


def test_after_a_standstill_a_crowd_of_turns_begins_with_breaths_in_between(on_loop, loopback, monkeypatch):
    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(interval_seconds=0.5) as bench:
            bench.apply(**{f"node_{number}": exporter.url() for number in range(50)})
            began = []
            monkeypatch.setattr("exporter_bridge.scraper.SLICE_SECONDS", 0.0005)
            begin = bench.scraper._begin

            def slow_begin(node):
                began[-1] += 1
                time.sleep(0.0002)
                begin(node)

            begin_due = bench.scraper._begin_due

            def counted():
                began.append(0)
                begin_due()

            monkeypatch.setattr(bench.scraper, "_begin", slow_begin)
            monkeypatch.setattr(bench.scraper, "_begin_due", counted)
            bench.scraper.start()
            time.sleep(0.5)  # noqa: ASYNC251 - the standstill
            await loopback.until(lambda: sum(began) >= 50)
            return began

    began = on_loop(run())
    assert max(began) <= 4


def test_how_late_turns_begin_is_told(on_loop, loopback, monkeypatch):
    # A tenth of a second from now: whatever the time is, the turn comes while the loop stands still, and the next one
    # half a minute later.
    monkeypatch.setattr("exporter_bridge.scraper.offset_of", lambda _node, interval: (time.time() + 0.1) % interval)

    async def run():
        async with loopback.serving(loopback.Exporter()) as exporter, loopback.Bench(interval_seconds=30) as bench:
            bench.apply(node_1=exporter.url())
            bench.scraper.start()
            time.sleep(0.3)  # noqa: ASYNC251 - the loop stands still over the turn
            await loopback.until(bench.turns)
            return bench.metrics.page().decode()

    text = on_loop(run())
    assert 'gpu_bridge_turn_lateness_seconds_bucket{le="0.05"} 0.0' in text
    assert 'gpu_bridge_turn_lateness_seconds_bucket{le="+Inf"} 1.0' in text
