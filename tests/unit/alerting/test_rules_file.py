"""rules.yml: what ships, and how a file that cannot be used is refused."""

from datetime import timedelta

import pytest
from click.testing import CliRunner

from alerting.engine import Engine
from alerting.rule_schema import RULE_BY_KIND
from alerting.rules import SHIPPED_RULES, Rules, RulesError, load_rules, parse_rules
from gpu_telemetry.cli.rules import command

GOOD = "name: r, field: power_watts, above: {warning: 330}, message: m, actions: []"


def problem(rule: str) -> str:
    """The one error of a file with one rule."""
    with pytest.raises(RulesError) as caught:
        parse_rules(f"rules: [{{{rule}}}]")
    (line,) = str(caught.value).splitlines()
    return line


def test_the_rules_that_ship_are_those_that_are_promised():
    assert [rule.name for rule in load_rules().enabled] == [
        "high_temperature",
        "high_power",
        "high_memory",
        "xid_error",
        "row_remap_failure",
        "ecc_double_bit",
        "gpu_lost",
        "exporter_down",
        "node_silent",
        "exporter_frozen",
        "duplicate_scraper",
    ]


def test_the_shipped_thresholds_are_those_that_are_promised():
    temperature, power, memory, *_ = load_rules().rules
    assert (temperature.above, temperature.clear_below) == ({"warning": 90, "critical": 95}, 85)
    assert (power.above, power.clear_below_percent) == ({"warning": 330}, 95)
    assert (memory.above, memory.clear_below) == ({"warning": 95}, 93)
    assert {rule.for_ for rule in (temperature, power, memory)} == {timedelta()}


def test_only_a_critical_temperature_migrates():
    migrating = [
        (rule.name, action.when)
        for rule in load_rules().rules
        for action in rule.actions
        if action.action == "migrate_workload"
    ]
    assert migrating == [("high_temperature", ["critical"])]


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (f"{GOOD}, clear_below_percent: x", "rule r: key clear_below_percent: expected a number, got 'x'"),
        (f"{GOOD}, clearbelow: 1", "rule r: key clearbelow: unknown key"),
        (f"{GOOD}, clear_below: 331", "rule r: key clear_below: expected a value at or below the lowest threshold 330"),
        (f"{GOOD}, clear_above: 1", "rule r: key clear_above: expected clear_below with the key above"),
        (f"{GOOD}, clear_below: 1, clear_below_percent: 5", "rule r: expected at most one clear threshold, got clear_"),
        (f"{GOOD}, clear_below_percent: 101", "rule r: key clear_below_percent: expected less than or equal to 100"),
        (
            f"{GOOD}, below: {{warning: 1}}",
            "rule r: expected exactly one of the keys above, at_least, below, got above",
        ),
        (f"{GOOD}, for: 5", "rule r: key for: expected a duration such as 90s, 5m or 1h30m, at most 30d, got 5"),
        (f"{GOOD}, for: 31d", "rule r: key for: expected a duration"),
        (f"{GOOD}, keep_firing_for: soon", "rule r: key keep_firing_for: expected a duration"),
        (f"{GOOD}, enabled: 1", "rule r: key enabled: expected true or false, got 1"),
        (f"{GOOD}, models: [{{match: T4}}]", "rule r: key models.0: expected a number for at least one of warning"),
        (
            f"{GOOD}, clear_below: 300, models: [{{match: T4, warning: 70}}]",
            "rule r: key clear_below: expected a value at or below the lowest threshold 70 of models (T4)",
        ),
        (GOOD.replace("warning: 330", "warning: 2, critical: 1"), "rule r: key above: expected thresholds that rise"),
        (GOOD.replace("warning: 330", "warning: 2, critical: 2"), "rule r: key above: expected thresholds that rise"),
        (
            GOOD.replace("above: {warning: 330}", "below: {warning: 1, critical: 2}"),
            "rule r: key below: expected thresholds that fall",
        ),
        (GOOD.replace("{warning: 330}", "{}"), "rule r: key above: expected a number for at least one of warning"),
        (GOOD.replace("330", ".nan"), "rule r: key above.warning: expected a finite number"),
        (GOOD.replace("warning:", "info:"), "rule r: key above.info: expected 'warning' or 'critical', got 'info'"),
        (GOOD.replace("power_watts", "power"), "rule r: key field: expected a field of gpu_telemetry/fields.py, got"),
        (GOOD.replace("name: r", "name: R 1"), "rule R 1: key name: expected"),
        (GOOD.replace("message: m", "message: '{value.real}'"), "rule r: key message: expected only {node_id}, "),
        (GOOD.replace("message: m", "message: '{value:d}'"), "rule r: key message: expected a format that fits"),
        (GOOD.replace("message: m", "message: '{value'"), "rule r: key message: expected text with placeholders"),
        (GOOD.replace("message: m, ", ""), "rule r: key message: missing"),
        (GOOD.replace("[]", "[{action: reboot, when: [fired]}]"), "rule r: key actions.0.action: expected 'notify', "),
        (GOOD.replace("[]", "[{action: notify, when: [now]}]"), "rule r: key actions.0.when.0: expected 'fired', "),
        (GOOD.replace("[]", "[{action: notify, when: []}]"), "rule r: key actions.0.when: expected at least 1"),
        (
            GOOD.replace("[]", "[{action: notify, when: [fired]}, {action: notify, when: [resolved]}]"),
            "rule r: key actions: expected each action once",
        ),
        (f"{GOOD}, kind: magic", "rule r: key kind: expected one of threshold, increase, xid, "),
        (
            "name: r, kind: increase, field: power_watts, severity: critical, message: m, actions: []",
            "rule r: key field: expected a counter, got power_watts, which is a gauge",
        ),
        (
            "name: r, kind: gpu_lost, severity: bad, message: m, actions: []",
            "rule r: key severity: expected 'warning' or 'critical', got 'bad'",
        ),
        (
            "name: r, kind: exporter_down, severity: critical, turns: 0, message: m, actions: []",
            "rule r: key turns: expected greater than or equal to 1, got 0",
        ),
        (
            "name: r, kind: xid, severities: {reset_gpu: critical}, message: m, actions: []",
            "rule r: key severities: expected one for each of inspect, reset_gpu, restart_application, restart_machine",
        ),
        (
            "name: r, kind: xid, severities: {explode: critical}, message: m, actions: []",
            "rule r: key severities.explode: expected one of ignore, restart_application, ",
        ),
    ],
)
def test_an_error_names_the_file_the_rule_and_the_key(rule, error):
    assert problem(rule).startswith(f"rules.yml: {error}")


def test_a_rule_without_a_name_is_named_by_its_place():
    assert problem(GOOD.replace("name: r, ", "")) == "rules.yml: rule 1 of the list: key name: missing"


def test_all_errors_of_a_file_are_told_together():
    with pytest.raises(RulesError) as caught:
        parse_rules(f"rules: [{{{GOOD}, a: 1}}, {{{GOOD}, b: 1}}, 7]\nmore: 1", "site.yml")
    assert str(caught.value).splitlines() == [
        "site.yml: key more: unknown key",
        "site.yml: rule r: key a: unknown key",
        "site.yml: rule r: key b: unknown key",
        "site.yml: rule 3 of the list: expected keys and values",
    ]


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(RulesError, match=r"^rules\.yml: rule r: key name: expected each name once$"):
        parse_rules(f"rules: [{{{GOOD}}}, {{{GOOD}}}]")


def test_two_enabled_rules_of_one_kind_about_the_node_are_refused():
    lost = "kind: gpu_lost, severity: warning, message: m, actions: []"
    with pytest.raises(RulesError, match="rule b: key kind: expected one enabled rule of a kind, a is gpu_lost too"):
        parse_rules(f"rules: [{{name: a, {lost}}}, {{name: b, {lost}}}]")
    assert len(parse_rules(f"rules: [{{name: a, {lost}}}, {{name: b, enabled: false, {lost}}}]").enabled) == 1


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(RulesError, match="key field is given twice"):
        parse_rules(f"rules: [{{{GOOD}, field: xid_code}}]")


@pytest.mark.parametrize("text", ["", "rules: 7", "[]", "rule: []"])
def test_a_file_without_a_list_of_rules_is_refused(text):
    with pytest.raises(RulesError, match=r"^rules\.yml: key rules: expected a list of rules$"):
        parse_rules(text)


def test_what_is_no_yaml_is_refused():
    with pytest.raises(RulesError, match=r"^rules\.yml: expected YAML: "):
        parse_rules("rules: [")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RulesError, match=r"^site\.yml: cannot be read: "):
        load_rules(tmp_path / "site.yml")


def test_durations_are_read_as_prometheus_writes_them():
    (rule,) = parse_rules(f"rules: [{{{GOOD}, for: 1h30m, keep_firing_for: 1500ms}}]").rules
    assert (rule.for_, rule.keep_firing_for) == (timedelta(minutes=90), timedelta(seconds=1.5))


def test_every_kind_of_rule_is_evaluated_by_the_engine():
    assert {rule.kind for rule in load_rules().rules} == set(RULE_BY_KIND)
    Engine(load_rules())
    Engine(Rules(()))


def test_the_command_says_that_a_file_is_valid():
    result = CliRunner().invoke(command, ["check", str(SHIPPED_RULES)])
    assert (result.exit_code, result.output) == (0, "rules.yml: 11 rules are valid\n")


def test_the_command_tells_each_error_and_fails(tmp_path):
    file = tmp_path / "site.yml"
    file.write_text(f"rules: [{{{GOOD}, a: 1}}]", encoding="utf-8")
    result = CliRunner().invoke(command, ["check", str(file)])
    assert (result.exit_code, result.output) == (1, "site.yml: rule r: key a: unknown key\n")
