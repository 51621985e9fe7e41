"""The list of targets over time: good versions, broken ones, and several sources."""

import asyncio
import json

import pytest

from exporter_bridge.discovery import Discovery, FileSource, HttpSource
from exporter_bridge.fetch import Fetcher
from exporter_bridge.targets import TargetError


def groups(*nodes):
    return json.dumps([{"targets": [f"{node}:9400"]} for node in nodes])


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "targets.json"
    file.write_text(groups("node-1", "node-2"))
    return file


def replace(file, text):
    """Write anew and put in place, as a careful editor does."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_the_same_list(on_loop, file):
    async def run():
        source = FileSource(file)
        first = await source.read()
        same = await source.read()
        replace(file, groups("node-1", "node-3"))
        return first, same, await source.read()

    first, same, changed = on_loop(run())
    assert first is same
    assert [target.node_id for target in changed] == ["node-1", "node-3"]


def test_a_broken_version_is_refused_with_its_error_while_the_old_one_stays(on_loop, file):
    async def run():
        discovery = Discovery([FileSource(file)])
        readings = [await discovery.read()]
        for text in ("[{", '[{"targets": ["node-9"]}]', groups("node-2")):
            replace(file, text)
            readings += [await discovery.read(), await discovery.read()]
        return readings

    good, broken, _, wrong, _, good_again, _ = on_loop(run())
    assert good.valid
    assert good_again.valid
    for reading in (broken, wrong):
        assert not reading.valid
        assert reading.targets is good.targets
    assert f"{file}: group 1: targets: expected HOST:PORT, got 'node-9'" in wrong.errors
    assert list(good_again.targets) == ["node-2"]


def test_a_file_that_goes_away_is_no_valid_read_and_empties_nothing(on_loop, file):
    async def run():
        discovery = Discovery([FileSource(file)])
        await discovery.read()
        file.unlink()
        return await discovery.read()

    reading = on_loop(run())
    assert not reading.valid
    assert len(reading.targets) == 2
    assert "No such file" in reading.errors[0]


def test_an_http_discovery_gives_targets_and_keeps_the_last_list_when_it_fails(on_loop, loopback):
    async def run():
        exporter = loopback.Exporter(loopback.http(groups("node-1")))
        async with loopback.serving(exporter):
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=1)
            discovery = Discovery([HttpSource(exporter.url("/sd?token=s3cret"), fetcher)])
            readings = [await discovery.read()]
            for answer in (
                loopback.http("gone", "503 Service Unavailable"),
                loopback.http("{"),
                loopback.http("[]"),
            ):
                exporter.answer = answer
                readings.append(await discovery.read())
            fetcher.close()
            return readings

    good, failing, invalid, empty = on_loop(run())
    assert (good.valid, list(good.targets)) == (True, ["node-1"])
    assert (failing.valid, list(failing.targets)) == (False, ["node-1"])
    assert "HTTP status 503" in failing.errors[0]
    assert "s3cret" not in failing.errors[0]
    assert (invalid.valid, list(invalid.targets)) == (False, ["node-1"])
    assert (empty.valid, list(empty.targets)) == (True, [])


def test_a_discovery_that_goes_on_failing_is_told_of_in_the_words_of_the_first_time(on_loop, loopback, monkeypatch):
    monkeypatch.setattr("exporter_bridge.discovery._HTTP_TIMEOUT_SECONDS", 0.05)

    async def late(_head, writer):
        # How much had come and how long it took stands in libcurl's text.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b" " * len(exporter.requests))
        await loopback.hang(_head, writer)

    exporter = loopback.Exporter(late)

    async def run():
        async with loopback.serving(exporter):
            fetcher = Fetcher(asyncio.get_running_loop(), body_limit_bytes=100_000, kept_connections=1)
            discovery = Discovery([HttpSource(exporter.url("/sd"), fetcher)])
            errors = [(await discovery.read()).errors for _ in range(3)]
            exporter.answer = loopback.http("no", "503 Service Unavailable")
            errors.append((await discovery.read()).errors)
            fetcher.close()
            return errors

    hanging, *still, other = on_loop(run())
    assert "timed out" in hanging[0]
    assert still == [hanging, hanging]
    assert "HTTP status 503" in other[0]


def test_another_order_is_no_change(on_loop, file):
    async def run():
        discovery = Discovery([FileSource(file)])
        first = await discovery.read()
        replace(file, groups("node-2", "node-1"))
        turned = await discovery.read()
        replace(file, groups("node-2", "node-3"))
        return first.targets, turned.targets, (await discovery.read()).targets

    first, turned, changed = on_loop(run())
    assert turned is first
    assert sorted(changed) == ["node-2", "node-3"]


def test_two_sources_are_joined_and_a_node_in_both_is_refused(on_loop, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(groups("node-1"))
    two.write_text(groups("node-2"))

    async def run():
        discovery = Discovery([FileSource(one), FileSource(two)])
        first = await discovery.read()
        replace(two, groups("node-1", "node-3"))
        return first, await discovery.read()

    first, second = on_loop(run())
    assert sorted(first.targets) == ["node-1", "node-2"]
    assert not second.valid
    assert "node_id 'node-1' is claimed by two targets" in second.errors[0]
    assert sorted(second.targets) == ["node-1", "node-2"]


def test_a_source_that_cannot_be_read_at_first_is_an_error_and_no_targets(on_loop, tmp_path):
    reading = on_loop(Discovery([FileSource(tmp_path / "none.json")]).read())
    assert (reading.valid, dict(reading.targets)) == (False, {})


def test_reading_a_missing_file_names_it(on_loop, tmp_path):
    with pytest.raises(TargetError, match=r"none\.json: No such file or directory"):
        on_loop(FileSource(tmp_path / "none.json").read())
