"""The rules of a file: read, validated, and given as values.

An error names the file, the rule and the key: `rules.yml: rule high_power: key clear_below_percent: expected a number,
got 'x'`. All errors of a file are reported together.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from alerting.rule_schema import RULE_BY_KIND, Action, Rule

SHIPPED_RULES: Final = Path(__file__).with_name("rules.yml")

# Pydantic's "Input should be a valid number" reads as "expected a number" here.
_REWORDED: Final = {
    "missing": "missing",
    "bool_type": "expected true or false",
    "float_type": "expected a number",
    "int_type": "expected a whole number",
    "string_type": "expected text",
    "list_type": "expected a list",
    "dict_type": "expected keys and values",
    "model_type": "expected keys and values",
    "too_short": "expected at least 1 item",
    "finite_number": "expected a finite number",
}
# Kinds that speak of the node or of all its GPUs at once: a second rule of one would say everything twice.
_REPEATABLE_KINDS: Final = frozenset(("threshold", "increase"))


class RulesError(ValueError):
    """A rules file that cannot be used: one line for each error, with the file, the rule and the key."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one file, in its order, those that are switched off included."""

    rules: tuple[Rule, ...]

    @property
    def enabled(self) -> tuple[Rule, ...]:
        """The rules that are evaluated."""
        return tuple(rule for rule in self.rules if rule.enabled)


def with_annotations(rules: Rules) -> Rules:
    """The rules, each of which also annotates the start and the end of its alerts, unless it says when itself."""
    decided = Action(action="annotate", when=["fired", "resolved"])
    return Rules(
        tuple(
            rule
            if any(action.action == "annotate" for action in rule.actions)
            else rule.model_copy(update={"actions": [*rule.actions, decided]})
            for rule in rules.rules
        )
    )


def load_rules(path: Path = SHIPPED_RULES) -> Rules:
    """The rules of a file.

    Raises:
        RulesError: the file cannot be read, is no YAML, or holds a rule that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"{path.name}: cannot be read: {error}") from error
    return parse_rules(text, path.name)


def parse_rules(text: str, name: str = "rules.yml") -> Rules:
    """The rules of a text in YAML; `name` stands for the file in errors.

    Raises:
        RulesError: the text is no YAML, or holds a rule that cannot be used.
    """
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader that refuses repeated keys
    except yaml.YAMLError as error:
        raise RulesError(f"{name}: expected YAML: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("rules"), list):
        raise RulesError(f"{name}: key rules: expected a list of rules")
    errors = [f"{name}: key {key}: unknown key" for key in document if key != "rules"]
    rules: list[Rule] = []
    for position, entry in enumerate(document["rules"], start=1):
        rule, problems = _rule(entry)
        label = _label(entry, position)
        errors += [f"{name}: {label}: {problem}" for problem in problems]
        if rule is not None:
            rules.append(rule)
    errors += [f"{name}: {problem}" for problem in _conflicts(rules)]
    if errors:
        raise RulesError("\n".join(errors))
    return Rules(tuple(rules))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key that is given twice, where YAML would take the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key} is given twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _label(entry: object, position: int) -> str:
    named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
    return f"rule {entry['name']}" if named and isinstance(entry, dict) else f"rule {position} of the list"


def _rule(entry: object) -> tuple[Rule | None, list[str]]:
    if not isinstance(entry, dict):
        return None, ["expected keys and values"]
    kind = entry.get("kind", "threshold")
    schema = RULE_BY_KIND.get(kind) if isinstance(kind, str) else None
    if schema is None:
        return None, [f"key kind: expected one of {', '.join(RULE_BY_KIND)}, got {kind!r}"]
    try:
        return schema.model_validate(entry), []
    except ValidationError as error:
        return None, [_problem(details) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails) -> str:
    """One of pydantic's errors in the project's words."""
    where = ".".join(str(part) for part in details["loc"] if part != "[key]")
    prefix = f"key {where}: " if where else ""
    if details["type"] == "extra_forbidden":
        return f"{prefix}unknown key"
    if details["type"] in ("value_error", "assertion_error"):
        message = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return (
            f"{prefix}{message}" if ", got " in message or not where else f"{prefix}{message}, got {details['input']!r}"
        )
    message = _REWORDED.get(details["type"]) or details["msg"].replace("Input should be ", "expected ", 1).replace(
        "String should ", "expected text that should ", 1
    )
    return f"{prefix}{message}" if details["type"] == "missing" else f"{prefix}{message}, got {details['input']!r}"


def _conflicts(rules: list[Rule]) -> Iterator[str]:
    names: set[str] = set()
    kinds: dict[str, str] = {}
    for rule in rules:
        if rule.name in names:
            yield f"rule {rule.name}: key name: expected each name once"
        names.add(rule.name)
        if rule.enabled and rule.kind not in _REPEATABLE_KINDS:
            first = kinds.setdefault(rule.kind, rule.name)
            if first != rule.name:
                yield f"rule {rule.name}: key kind: expected one enabled rule of a kind, {first} is {rule.kind} too"
