"""Pages that were damaged on their way: nothing raises, no line goes uncounted, and every record can be read."""

import math
from collections import Counter

import pytest

from exporter_bridge import lines
from exporter_bridge.exposition import Exposition
from exporter_bridge.records import RecordBuilder, Turn
from gpu_telemetry.fields import FIELDS
from gpu_telemetry.records import GpuRecord, ScrapeRecord, decode

COUNTED = {
    lines.MALFORMED_LINE,
    lines.BAD_NAME,
    lines.BAD_LABELS,
    lines.BAD_VALUE,
    lines.BAD_METADATA,
    lines.NOT_UTF8,
    lines.DUPLICATE,
}


def lines_to_account_for(body):
    """How many lines must be a sample or be refused: those that are neither blank nor a good comment."""
    count = 0
    for whole in body.split(b"\n"):
        line = whole.strip(b" \t\r")
        if line.startswith(b"#"):
            try:
                lines.Metadata().read(line)
            except lines.Refused:
                count += 1
        elif line:
            count += 1
    return count


def samples_of(page):
    """What a page says, whatever the order; NaN equals itself."""
    return Counter(
        (name, labels.text, "nan" if math.isnan(value) else value, timestamp) for name, labels, value, timestamp in page
    )


def a_turn(seq):
    return Turn(
        node_id="node-1",
        bridge_id="bridge-1",
        boot_id="boot-1",
        seq=seq,
        collected_at_ms=1_767_225_600_000 + seq,
        interval_ms=1000,
    )


def test_no_damaged_page_raises_and_each_line_of_it_is_a_sample_or_refused(fuzz_rounds, real_pages, damaged):
    for source in fuzz_rounds():
        body = damaged(source, real_pages)
        page = Exposition().parser().parse(body)
        assert page.samples + sum(page.refused.values()) == lines_to_account_for(body), body
        assert set(page.refused) <= COUNTED
        assert sum(samples_of(page).values()) == page.samples == len(page.values) == len(page.tokens)
        assert len(page.examples) == min(3, sum(page.refused.values()))


def test_noise_is_refused_line_by_line(fuzz_rounds):
    for source in fuzz_rounds():
        body = source.randbytes(source.randrange(2000))
        page = Exposition().parser().parse(body)
        assert page.samples + sum(page.refused.values()) == lines_to_account_for(body), body


def test_a_parser_that_has_seen_much_reads_what_a_new_one_reads(fuzz_rounds, real_pages, damaged):
    for source in fuzz_rounds():
        parser = Exposition().parser()
        sound = source.choice(real_pages)
        for body in (sound, damaged(source, [sound]), damaged(source, real_pages), sound):
            old, new = parser.parse(body), Exposition().parser().parse(body)
            assert samples_of(old) == samples_of(new), body
            assert old.refused == new.refused, body
            assert sorted(old.refused_uuids) == sorted(new.refused_uuids), body


def test_the_records_of_a_damaged_page_can_be_read_and_hold_believable_values_alone(fuzz_rounds, real_pages, damaged):
    for source in fuzz_rounds():
        body = damaged(source, real_pages)
        page = Exposition().parser().parse(body)
        if not page.samples:
            continue  # a failed turn
        scrape = RecordBuilder().build(page, a_turn(1))
        *records, closing = [decode(message) for message in scrape.messages]
        assert isinstance(closing, ScrapeRecord)
        assert closing.gpu_records == scrape.gpu_records == len(records)
        keys = set()
        for record in records:
            assert isinstance(record, GpuRecord)
            assert record.gpu_uuid in closing.gpu_uuids, body
            keys.add((record.gpu_uuid, record.mig_instance))
            for field in FIELDS:
                value = getattr(record, field.name)
                assert value is None or field.low <= value <= field.high, (field.name, value, body)
            # Of two lines of one value one may be no number; then both are told.
            both = {name for name in record.rejected if getattr(record, name, None) is not None}
            assert {record.rejected[name].reason for name in both} <= {"unconvertible"}, body
        assert len(keys) == len(records)
        rejected = Counter((name, value.reason) for record in records for name, value in record.rejected.items())
        told_twice = Counter(scrape.rejected) - rejected
        assert not rejected - Counter(scrape.rejected), body
        assert {reason for _, reason in told_twice} <= {"unconvertible"}, body


@pytest.mark.parametrize(
    "body", [b"", b"\n", b"\x00", b"{", b"} 1\n" * 1000, b"a" * 10**6, b'x{a="' * 10_000, b"x 1\n" * 10**5]
)
def test_a_monstrous_page_is_read(body):
    page = Exposition().parser().parse(body)
    assert page.samples + sum(page.refused.values()) == lines_to_account_for(body)
