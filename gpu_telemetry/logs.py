"""Log lines: plain words for people by default, one JSON object a line on request; always on standard error."""

import logging
import sys
from typing import Final

import msgspec

from gpu_telemetry.clock import from_milliseconds, rfc3339
from gpu_telemetry.settings import LogSettings

# What every LogRecord has; anything else came in by `extra=` and belongs in the JSON line.
_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _moment(record: logging.LogRecord) -> str:
    return rfc3339(from_milliseconds(int(record.created * 1000)))


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO exporter_bridge: Starting collector, polling 2 nodes every 30s`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with a traceback below it if there is one."""
        line = f"{_moment(record)} {record.levelname} {record.name.partition('.')[0]}: {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what `extra=` gave, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD_ATTRIBUTES}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry, enc_hook=str).decode()


def configure(settings: LogSettings) -> None:
    """Send the logs of this process to standard error in the form that the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(level=settings.level, handlers=[handler], force=True)
    # httpx and apscheduler tell of every call and job at INFO.
    for chatty in ("httpx", "httpcore", "apscheduler", "aiohttp.access", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
