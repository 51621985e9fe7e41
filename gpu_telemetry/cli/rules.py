"""`gpu-telemetry rules`: check a file of alert rules."""

import sys
from pathlib import Path

import click


@click.group()
def command() -> None:
    """Check a file of alert rules."""


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Validate FILE; each error is one line with the file, the rule and the key, and the exit code is then 1."""
    from alerting.rules import RulesError, load_rules  # noqa: PLC0415 - a verb imports its service when it runs

    try:
        rules = load_rules(file)
    except RulesError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    off = len(rules.rules) - len(rules.enabled)
    print(f"{file.name}: {len(rules.rules)} rules are valid{f', {off} of them switched off' if off else ''}")
