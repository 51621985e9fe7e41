"""`gpu-telemetry dlq`: look at dead letters, and put them back."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from confluent_kafka import KafkaException

from gpu_telemetry.clock import SystemClock, rfc3339
from gpu_telemetry.dead_letters import DeadLetterTopic, Place, Replayer, StoredLetter, objection
from gpu_telemetry.kafka import TopicError
from gpu_telemetry.settings import KafkaSettings

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LAST_SECOND: Final = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_HEX_LINE_BYTES: Final = 16


class _Since(click.ParamType[datetime]):
    """A time in RFC 3339, or how long ago as in 90m."""

    name = "TIME|AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401, ARG002 - click's signature
        if isinstance(value, datetime):
            return value
        if (age := re.fullmatch(r"(\d{1,6})([smhd])", value)) is not None:
            return _since_epoch(SystemClock().now().timestamp() - int(age[1]) * _UNITS[age[2]])
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(f"expected an RFC 3339 time as in 2026-01-31T12:00:00Z or an age as in 90m, got {value!r}")
        return _since_epoch(moment.timestamp())


def _since_epoch(seconds: float) -> datetime:
    """A time as Kafka can be asked for it: nothing in Kafka is of before 1970, nor of a year beyond 9999."""
    return datetime.fromtimestamp(min(max(0.0, seconds), _LAST_SECOND), UTC)


class _PlaceType(click.ParamType[Place]):
    name = "PARTITION/OFFSET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:  # noqa: ANN401, ARG002 - click's signature
        if isinstance(value, Place):
            return value
        try:
            return Place.parse(value)
        except ValueError as error:
            self.fail(str(error))


_timeout = click.option(
    "--timeout", "timeout_seconds", default=15.0, show_default=True, help="Seconds the brokers may take."
)


@click.group()
def command() -> None:
    """Look at the dead letters (messages that could not be taken in), and put them back."""


@contextmanager
def _told(verb: str, kafka: KafkaSettings) -> Iterator[None]:
    """Tell what is wrong with Kafka in one line, and end with exit code 1."""
    try:
        yield
    except TopicError as error:
        print(f"dlq {verb}: {error}", file=sys.stderr)
        sys.exit(1)
    except KafkaException as error:
        print(f"dlq {verb}: {kafka.bootstrap_servers}: {error.args[0].str()}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _opened(kafka: KafkaSettings, timeout_seconds: float) -> Iterator[DeadLetterTopic]:
    topic = DeadLetterTopic(kafka, timeout_seconds=timeout_seconds)
    try:
        yield topic
    finally:
        topic.close()


@command.command("list")
@click.option("--reason", help="Only those of this reason, as in malformed.")
@click.option("--topic", help="Only those that came from this topic.")
@click.option("--since", type=_Since(), help="Only those since this time, or of so long ago as in 90m, 6h, 2d.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="The most to show.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_timeout
def list_(
    *,
    reason: str | None,
    topic: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
    timeout_seconds: float,
) -> None:
    """List dead letters, newest first: their place, when, why, where from, the node, the size and the error."""
    kafka = KafkaSettings.load()

    def wanted(letter: StoredLetter) -> bool:
        return (
            (reason is None or letter.reason == reason)
            and (topic is None or letter.topic == topic)
            and (since is None or letter.at >= since)
        )

    with _told("list", kafka), _opened(kafka, timeout_seconds) as letters:
        found = letters.newest_first(wanted, limit, since=since)
    for letter in found:
        about = _about(letter)
        if as_json:
            print(msgspec.json.encode(about).decode())
        else:
            print(
                f"{letter.place}  {about['at']}  {_printable(letter.reason)}  "
                f"{_printable(about['topic'] or '?')}[{_printable(about['partition'])}]@{_printable(about['offset'])}  "
                f"{_printable(about['key'] or '-')}  {about['bytes']} B  {_printable(about['error'])}"
            )
    if not found and not as_json:
        print("no dead letters", file=sys.stderr)


def _about(letter: StoredLetter) -> dict[str, Any]:
    return {
        "id": str(letter.place),
        "at": rfc3339(letter.at),
        "reason": letter.reason,
        "error": letter.headers.get("error", ""),
        "topic": letter.topic,
        "partition": letter.headers.get("partition", "?"),
        "offset": letter.headers.get("offset", "?"),
        "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
        "bytes": len(letter.value or b""),
    }


@command.command()
@click.argument("place", metavar="ID", type=_PlaceType())
@click.option(
    "--bytes", "limit", type=click.IntRange(min=1), default=16_384, show_default=True, help="How much of the value."
)
@_timeout
def show(place: Place, limit: int, timeout_seconds: float) -> None:
    """Show the dead letter ID (PARTITION/OFFSET, as `list` gives it): its headers, then its value."""
    kafka = KafkaSettings.load()
    with _told("show", kafka), _opened(kafka, timeout_seconds) as letters:
        letter = letters.get(place)
        if letter is None:
            raise TopicError(_nothing_at(place, letters))
    print(f"id: {letter.place}\nat: {rfc3339(letter.at)}")
    print(f"key: {'-' if letter.key is None else _printable(letter.key.decode('utf-8', 'backslashreplace'))}")
    for name, value in letter.headers.items():
        print(f"{_printable(name)}: {_printable(value)}")
    content = letter.value
    print(f"value: {'none' if content is None else f'{len(content)} bytes'}")
    if content:
        print()
        text = _indented(content)
        print(text[:limit] if text is not None else _hex_dump(content[:limit]))
        rest = len(text if text is not None else content) - limit
        if rest > 0:
            print(f"... {rest} more; --bytes shows more")


def _nothing_at(place: Place, letters: DeadLetterTopic) -> str:
    low, high = letters.bounds().get(place.partition, (0, 0))
    holds = f"{place.partition}/{low} to {place.partition}/{high - 1}" if high > low else "none"
    return f"there is no dead letter {place}: of this partition {letters.name} holds {holds}"


def _indented(value: bytes) -> str | None:
    """The value as indented JSON; None when it is none."""
    try:
        msgspec.json.decode(value)
        text = msgspec.json.format(value, indent=2).decode()
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None
    return "\n".join(map(_printable, text.split("\n")))


def _hex_dump(value: bytes) -> str:
    lines = []
    for start in range(0, len(value), _HEX_LINE_BYTES):
        part = value[start : start + _HEX_LINE_BYTES]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)  # noqa: PLR2004 - printable ASCII
        lines.append(f"{start:08x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """A text on one line that no terminal takes as a command; what came from elsewhere is not trusted."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@command.command()
@click.argument("places", metavar="[ID]...", nargs=-1, type=_PlaceType())
@click.option("--reason", help="Put back all of this reason.")
@click.option("--all", "everything", is_flag=True, help="Put back all.")
@click.option("--dry-run", is_flag=True, help="Only say what would be put back.")
@click.option("--force", is_flag=True, help="Put back also what would fail again.")
@_timeout
def replay(
    *,
    places: tuple[Place, ...],
    reason: str | None,
    everything: bool,
    dry_run: bool,
    force: bool,
    timeout_seconds: float,
) -> None:
    """Put dead letters back as they came, oldest first: to the topic they came from, under the same key.

    What would fail again is told and left. Putting back twice stores once. Exit code 1: something was left.
    """
    if sum((bool(places), reason is not None, everything)) != 1:
        raise click.UsageError("expected IDs, --reason or --all: one of them")
    kafka = KafkaSettings.load()
    clock = SystemClock()
    done = left = 0
    with _told("replay", kafka), _opened(kafka, timeout_seconds) as letters:
        replayer = Replayer(kafka, timeout_seconds=timeout_seconds)
        for letter in _chosen(letters, places, reason):
            if isinstance(letter, str):
                print(letter, file=sys.stderr)
                left += 1
                continue
            wrong = objection(letter, clock.now())
            if wrong is not None and (not force or letter.topic is None):
                print(f"{letter.place}: left, it would fail again: {_printable(wrong)}", file=sys.stderr)
                left += 1
                continue
            if dry_run:
                print(f"{letter.place}: would be put back to {_printable(letter.topic or '')}")
            else:
                print(f"{letter.place}: put back to {replayer.put_back(letter, clock.now())}", flush=True)
            done += 1
    print(f"{done} {'would be ' if dry_run else ''}put back, {left} left", file=sys.stderr)
    sys.exit(1 if left else 0)


def _chosen(letters: DeadLetterTopic, places: tuple[Place, ...], reason: str | None) -> Iterator[StoredLetter | str]:
    """What is to be put back, oldest first; a text where there is no such letter."""
    if places:
        for place in sorted(set(places)):
            yield letters.get(place) or _nothing_at(place, letters)
    else:
        yield from (letter for letter in letters.oldest_first() if reason in {None, letter.reason})
