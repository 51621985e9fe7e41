"""The schema of rules.yml: every kind of rule, its keys, and what their values may be. Rules are data, never code."""

import itertools
import re
import string
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from alerting.transitions import SEVERITIES, ActionType, Severity
from alerting.xid import XidClass
from gpu_telemetry.fields import FIELD_BY_NAME, Behaviour

Moment = Literal["fired", "raised", "resolved", "warning", "critical"]
Steps = dict[Severity, float]

_DURATION_PARTS: Final = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION: Final = re.compile(r"(?:(\d+)(ms|s|m|h|d))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"(\d+)(ms|s|m|h|d)", re.ASCII)
_LONGEST_DURATION: Final = timedelta(days=30)


def _duration(value: object) -> timedelta:
    if isinstance(value, str) and _DURATION.fullmatch(value):
        parts = _DURATION_PART.findall(value)
        duration = sum((timedelta(**{_DURATION_PARTS[unit]: int(n)}) for n, unit in parts), timedelta())
        if duration <= _LONGEST_DURATION:
            return duration
    raise ValueError("expected a duration such as 90s, 5m or 1h30m, at most 30d")


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Action(_Part):
    """An action, and when it is decided: at a transition, or when the alert reaches a severity."""

    action: ActionType
    when: list[Moment] = Field(min_length=1)


class _Rule(_Part):
    """What every rule has. `actions: []` makes a rule that is only stored."""

    # The names that `message` may hold in braces, each with a value to try it with.
    PLACEHOLDERS: ClassVar[dict[str, object]] = {"node_id": "node-1"}

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    enabled: bool = True
    message: str = Field(min_length=1, max_length=500)
    actions: list[Action]

    @field_validator("message")
    @classmethod
    def _only_known_placeholders(cls, message: str) -> str:
        expected = f"expected only {', '.join(f'{{{name}}}' for name in cls.PLACEHOLDERS)}"
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(message) if name is not None]
        except ValueError as error:
            raise ValueError(f"expected text with placeholders in braces: {error}") from None
        for name in names:
            # A dot or a bracket would reach into the value.
            if name not in cls.PLACEHOLDERS:
                raise ValueError(f"{expected}, got {{{name}}}")
        try:
            message.format(**cls.PLACEHOLDERS)
        except (ValueError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"expected a format that fits its value: {error}") from None
        return message

    @field_validator("actions")
    @classmethod
    def _each_action_once(cls, actions: list[Action]) -> list[Action]:
        names = [action.action for action in actions]
        if len(set(names)) < len(names):
            raise ValueError("expected each action once")
        return actions


class _GpuRule(_Rule):
    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "gpu_index": 3, "gpu_uuid": "GPU-5", "model": "NVIDIA H100"}


def _known_field(name: str) -> str:
    if name not in FIELD_BY_NAME:
        raise ValueError(f"expected a field of gpu_telemetry/fields.py, got {name!r}")
    return name


def _rising_in_severity(steps: Steps) -> Steps:
    if not steps:
        raise ValueError(f"expected a number for at least one of {', '.join(SEVERITIES)}")
    return {severity: steps[severity] for severity in SEVERITIES if severity in steps}


class ModelSteps(_Part):
    """The steps for the models whose name matches; `match` is a shell pattern (`*A100-SXM*`), case matters."""

    match: str = Field(min_length=1)
    warning: float | None = None
    critical: float | None = None

    @property
    def steps(self) -> Steps:
        """The steps that are given, in rising severity."""
        given: list[tuple[Severity, float | None]] = [("warning", self.warning), ("critical", self.critical)]
        return {severity: value for severity, value in given if value is not None}

    @model_validator(mode="after")
    def _at_least_one_step(self) -> Self:
        _rising_in_severity(self.steps)
        return self


class ThresholdRule(_GpuRule):
    """A value of the field table against a ladder of steps, one for each severity.

    Exactly one of `above` (>), `at_least` (>=) and `below` (<) gives the steps for every model without a row of its
    own in `models`, whose first matching row wins. A firing alert ends where the value passes the clear threshold,
    given as such or in percent of the lowest step; without one, where it is no longer past the lowest step.
    """

    PLACEHOLDERS = {**_GpuRule.PLACEHOLDERS, "value": 1.5, "threshold": 1.0}

    kind: Literal["threshold"] = "threshold"
    field: Annotated[str, BeforeValidator(lambda name: _known_field(name) if isinstance(name, str) else name)]
    above: Steps | None = None
    at_least: Steps | None = None
    below: Steps | None = None
    clear_below: float | None = None
    clear_below_percent: float | None = Field(None, gt=0, le=100)
    clear_above: float | None = None
    clear_above_percent: float | None = Field(None, ge=100)
    models: list[ModelSteps] = []
    for_: Duration = Field(timedelta(), alias="for")
    keep_firing_for: Duration = timedelta()

    @property
    def comparison(self) -> Literal["above", "at_least", "below"]:
        """Which way the steps go."""
        return "above" if self.above is not None else "at_least" if self.at_least is not None else "below"

    @property
    def steps(self) -> Steps:
        """The steps for models without a row of their own, in rising severity."""
        return _rising_in_severity(self.above or self.at_least or self.below or {})

    def clear_threshold(self, lowest_step: float) -> float | None:
        """The value past which an alert ends that began at `lowest_step`; None where the step itself decides."""
        if self.clear_below_percent is not None:
            return lowest_step * self.clear_below_percent / 100
        if self.clear_above_percent is not None:
            return lowest_step * self.clear_above_percent / 100
        return self.clear_below if self.clear_below is not None else self.clear_above

    @model_validator(mode="after")
    def _ladders_make_sense(self) -> Self:
        given = [name for name in ("above", "at_least", "below") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of the keys above, at_least, below, got {' and '.join(given) or 'none'}"
            )
        falling = given == ["below"]
        clears = [
            name for name in type(self).model_fields if name.startswith("clear_") and getattr(self, name) is not None
        ]
        if len(clears) > 1:
            raise ValueError(f"expected at most one clear threshold, got {' and '.join(clears)}")
        side = "clear_above" if falling else "clear_below"
        if clears and not clears[0].startswith(side):
            raise ValueError(f"key {clears[0]}: expected {side} with the key {given[0]}")
        for where, steps in self._ladders(given[0]):
            values = list(steps.values())
            if any(b <= a if not falling else b >= a for a, b in itertools.pairwise(values)):
                raise ValueError(f"key {where}: expected thresholds that {'fall' if falling else 'rise'} with severity")
            clear = self.clear_threshold(values[0])
            if clear is not None and (clear < values[0] if falling else clear > values[0]):
                beyond = "at or above" if falling else "at or below"
                raise ValueError(
                    f"key {clears[0]}: expected a value {beyond} the lowest threshold {values[0]:g} of {where}"
                )
        return self

    def _ladders(self, default: str) -> Iterator[tuple[str, Steps]]:
        if not getattr(self, default):
            raise ValueError(f"key {default}: expected a number for at least one of {', '.join(SEVERITIES)}")
        yield default, self.steps
        for row in self.models:
            yield f"models ({row.match})", row.steps


class IncreaseRule(_GpuRule):
    """A counter of the field table rises. Ends when the counter starts anew at 0, or by hand."""

    PLACEHOLDERS = {**_GpuRule.PLACEHOLDERS, "value": 2.0, "increase": 1.0}

    kind: Literal["increase"]
    field: str
    severity: Severity

    @field_validator("field")
    @classmethod
    def _is_a_counter(cls, name: str) -> str:
        if FIELD_BY_NAME[_known_field(name)].behaviour is not Behaviour.COUNTER:
            raise ValueError(f"expected a counter, got {name}, which is a gauge")
        return name


def _xid_class(text: str) -> XidClass:
    try:
        return XidClass(text)
    except ValueError:
        raise ValueError(f"expected one of {', '.join(XidClass)}") from None


class XidRule(_GpuRule):
    """XID errors by class (alerting/xid.csv). Class `ignore` never fires, so it has no severity."""

    PLACEHOLDERS = {**_GpuRule.PLACEHOLDERS, "code": 79, "name": "GPU has fallen off the bus", "action": "reset GPU"}

    kind: Literal["xid"]
    severities: dict[Annotated[XidClass, BeforeValidator(_xid_class)], Severity]
    restart_application_expires_after: Duration = timedelta(minutes=15)

    @model_validator(mode="after")
    def _every_class_but_ignore(self) -> Self:
        expected = set(XidClass) - {XidClass.IGNORE}
        if set(self.severities) != expected:
            raise ValueError(f"key severities: expected one for each of {', '.join(sorted(expected))}")
        return self


class GpuLostRule(_Rule):
    """A known GPU is missing from consecutive pages that were read."""

    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "gpu_index": 3, "gpu_uuid": "GPU-5"}

    kind: Literal["gpu_lost"]
    severity: Severity
    scrapes: int = Field(2, ge=1, le=100)


class ExporterDownRule(_Rule):
    """Consecutive turns gave no page, for whatever reason."""

    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "turns": 3, "reason": "timeout"}

    kind: Literal["exporter_down"]
    severity: Severity
    turns: int = Field(3, ge=1, le=100)


class NodeSilentRule(_Rule):
    """No record of the node at all, for three of its intervals."""

    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "seconds": 90.0}

    kind: Literal["node_silent"]
    severity: Severity


class ExporterFrozenRule(_Rule):
    """A page is read, and nothing on it moves: the energy counters, or where there are none, any value."""

    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "seconds": 300.0}

    kind: Literal["exporter_frozen"]
    severity: Severity
    after: Duration = timedelta(minutes=5)


class DuplicateScraperRule(_Rule):
    """Two bridges scrape the node within two of its intervals."""

    PLACEHOLDERS = {**_Rule.PLACEHOLDERS, "bridges": "bridge-a, bridge-b"}

    kind: Literal["duplicate_scraper"]
    severity: Severity


Rule = (
    ThresholdRule
    | IncreaseRule
    | XidRule
    | GpuLostRule
    | ExporterDownRule
    | NodeSilentRule
    | ExporterFrozenRule
    | DuplicateScraperRule
)
RULE_BY_KIND: Final[dict[str, type[Rule]]] = {
    "threshold": ThresholdRule,
    "increase": IncreaseRule,
    "xid": XidRule,
    "gpu_lost": GpuLostRule,
    "exporter_down": ExporterDownRule,
    "node_silent": NodeSilentRule,
    "exporter_frozen": ExporterFrozenRule,
    "duplicate_scraper": DuplicateScraperRule,
}
