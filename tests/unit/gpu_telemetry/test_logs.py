"""Log lines are plain words for people, or one JSON object each."""

import json
import logging
import sys

from gpu_telemetry.logs import JsonFormatter, TextFormatter


def record(message: str, **extra: object) -> logging.LogRecord:
    entry = logging.makeLogRecord({"name": "exporter_bridge.scraper", "levelname": "INFO", "msg": message, "args": ()})
    entry.created = 1769860800.123
    vars(entry).update(extra)
    return entry


def test_a_text_line_says_when_who_and_what():
    line = TextFormatter().format(record("Published 16 GPU records to Kafka"))
    assert line == "2026-01-31T12:00:00.123Z INFO exporter_bridge: Published 16 GPU records to Kafka"


def test_a_json_line_is_one_object_with_what_extra_gave():
    line = JsonFormatter().format(record('say "hello"\nthere', node_id="node-1"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.123Z",
        "level": "INFO",
        "logger": "exporter_bridge.scraper",
        "message": 'say "hello"\nthere',
        "node_id": "node-1",
    }


def test_a_traceback_is_kept_in_both_forms():
    try:
        {}["gone"]
    except KeyError:
        entry = record("failed", exc_info=sys.exc_info())
    assert "KeyError: 'gone'" in TextFormatter().format(entry)
    assert "KeyError: 'gone'" in json.loads(JsonFormatter().format(entry))["traceback"]
