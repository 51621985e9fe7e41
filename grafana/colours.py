"""Colours that mean the same everywhere, and the thresholds of the shipped alert rules in them."""

from pathlib import Path
from typing import Any, Final

import yaml
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.models.dashboard import FieldColorModeId, Threshold, ThresholdsMode

GOOD: Final = "green"
WARNING: Final = "orange"
CRITICAL: Final = "red"
INFO: Final = "blue"
NEUTRAL: Final = "text"
BY_SEVERITY: Final = {"info": INFO, "warning": WARNING, "critical": CRITICAL}

# Of the GPUs of a node by index, without the warning's orange and the critical red.
OF_GPUS: Final = (
    "blue", "green", "purple", "yellow", "super-light-blue", "dark-green", "super-light-purple", "dark-yellow",
    "dark-blue", "light-green", "dark-purple", "light-yellow", "light-blue", "semi-dark-green", "light-purple",
    "semi-dark-yellow",
)  # fmt: skip

_RULES: Final = Path(__file__).parents[1] / "alerting" / "rules.yml"


def steps(first: str, *above: tuple[float, str]) -> ThresholdsConfig:
    """The colour at the bottom, then each value from which another colour begins."""
    listed = [Threshold(value=None, color=first), *(Threshold(value=value, color=colour) for value, colour in above)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(listed)


def rule_steps(rule: str, first: str = GOOD) -> ThresholdsConfig:
    """The ladder of a shipped threshold rule, in the severities' colours."""
    ladder: dict[str, float] = _shipped(rule)["above"]
    return steps(first, *((value, BY_SEVERITY[severity]) for severity, value in ladder.items()))


def bad_from_one(colour: str) -> ThresholdsConfig:
    """For counts of which any is news."""
    return steps(GOOD, (1, colour))


def plain(colour: str = NEUTRAL) -> ThresholdsConfig:
    """For numbers that are neither good nor bad."""
    return steps(colour)


def by_thresholds() -> FieldColor:
    """Colour by the thresholds."""
    return FieldColor().mode(FieldColorModeId.THRESHOLDS)


def fixed(colour: str) -> FieldColor:
    """One colour for all."""
    return FieldColor().mode(FieldColorModeId.FIXED).fixed_color(colour)


def palette() -> FieldColor:
    """A colour for each series in their order, which is the same from panel to panel."""
    return FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC)


def _shipped(rule: str) -> dict[str, Any]:
    for entry in yaml.safe_load(_RULES.read_text())["rules"]:
        if entry["name"] == rule:
            found: dict[str, Any] = entry
            return found
    raise LookupError(f"{_RULES}: expected a rule {rule!r}")
