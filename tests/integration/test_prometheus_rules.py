"""prometheus/: promtool finds nothing wrong, every rule has an example and a counter-example, and a runbook."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from alerting.intake import ENGINE_FAILED
from gpu_telemetry.fields import FIELD_BY_DCGM_NAME
from gpu_telemetry.local.ports import Ports
from gpu_telemetry.local.stack import prometheus_configuration

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
EXAMPLES = sorted((PROMETHEUS / "tests").glob("*.yml"))
RUNBOOKS = REPOSITORY / "docs" / "prometheus.md"


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(kind):
    """All rules of a kind, `record` or `alert`, in the order of the files."""
    return [rule for path in RULES for group in loaded(path)["groups"] for rule in group["rules"] if kind in rule]


def names(kind):
    return {rule[kind] for rule in rules(kind)}


def examples(key):
    """What the example files expect, of all their tests: `promql_expr_test` or `alert_rule_test`."""
    return [expected for path in EXAMPLES for test in loaded(path)["tests"] for expected in test.get(key, [])]


@pytest.fixture(scope="module")
def promtool():
    """`promtool(*arguments)`: what it says; the test fails if it finds fault."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")

    def run(*arguments):
        command = [program, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_promtool_takes_the_configuration_and_the_rules(promtool):
    said = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"{len(RULES)} rule files found" in said
    promtool("check", "rules", *RULES)


def test_the_page_shows_an_existing_prometheus_the_same_jobs_but_its_own(promtool, tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    file = tmp_path / "prometheus.yml"
    file.write_text(block, encoding="utf-8")
    promtool("check", "config", "--syntax-only", file)
    shipped, shown = (
        {job["job_name"]: job for job in configuration["scrape_configs"]}
        for configuration in (loaded(PROMETHEUS / "prometheus.yml"), loaded(file))
    )
    assert shown.keys() == shipped.keys() - {"prometheus"}
    for name, job in shown.items():
        for key in ("honor_labels", "metric_relabel_configs"):
            assert job.get(key) == shipped[name].get(key), name
        discovered = [urlsplit(each["url"]).path for each in job.get("http_sd_configs", [])]
        assert discovered == [urlsplit(each["url"]).path for each in shipped[name].get("http_sd_configs", [])], name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_rules_do_what_the_examples_say(promtool, path):
    promtool("test", "rules", path)


def test_every_alert_has_an_example_that_fires_and_one_that_does_not():
    expected = examples("alert_rule_test")
    assert {each["alertname"] for each in expected if each["exp_alerts"]} == names("alert")
    assert {each["alertname"] for each in expected if not each["exp_alerts"]} == names("alert")


def test_every_recording_rule_has_an_example_with_a_value_and_one_without():
    expected = examples("promql_expr_test")
    # What an example with a value expects is the series itself, so that a rule for one `quantile` needs its own.
    given = [sample["labels"] for each in expected for sample in each["exp_samples"]]
    without = {re.match(r"[\w:]*", each["expr"]).group() for each in expected if not each["exp_samples"]}
    for rule in rules("record"):
        labels = [f'{name}="{value}"' for name, value in rule.get("labels", {}).items()]
        assert any(
            re.match(r"[\w:]*", series).group() == rule["record"] and all(label in series for label in labels)
            for series in given
        ), rule
        assert rule["record"] in without, rule


def test_a_series_is_recorded_by_one_rule():
    recorded = Counter((rule["record"], tuple(sorted(rule.get("labels", {}).items()))) for rule in rules("record"))
    assert [series for series, count in recorded.items() if count > 1] == []


def test_recorded_metrics_are_named_level_metric_operation():
    assert [name for name in names("record") if not re.fullmatch(r"[a-z]+:[a-z_]+:[a-z0-9]+", name)] == []


def test_every_alert_says_how_bad_it_is_what_it_means_and_where_its_runbook_is():
    headings = set(re.findall(r"^### (\w+)$", RUNBOOKS.read_text(encoding="utf-8"), re.MULTILINE))
    assert headings == names("alert")
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        annotations = rule["annotations"]
        assert annotations.keys() == {"summary", "description", "runbook"}, rule["alert"]
        assert annotations["runbook"] == f"docs/prometheus.md#{rule['alert'].lower()}"


def test_the_runbook_of_dead_letters_has_every_reason():
    modules = [REPOSITORY / "gpu_telemetry" / "records.py", *sorted((REPOSITORY / "alerting").glob("*.py"))]
    code = "".join(path.read_text(encoding="utf-8") for path in modules)
    given = set(re.findall(r'UndecodableRecord\(\s*"(\w+)"', code))
    given |= set(re.findall(r'batch\.refuse\(part, index, "(\w+)"', code)) | {ENGINE_FAILED}
    page = RUNBOOKS.read_text(encoding="utf-8")
    (section,) = re.findall(r"(?ms)^### DeadLetters$(.*?)^### ", page)
    told = {reason for row in re.findall(r"(?m)^\| (`[^|]*) \|", section) for reason in re.findall(r"`(\w+)`", row)}
    assert told == given
    assert len(given) > 9


def test_every_recorded_metric_stands_in_the_documentation():
    page = RUNBOOKS.read_text(encoding="utf-8")
    told = {
        f"{level}:{metric}"
        for row in re.findall(r"^\| `([a-z_]+:[a-z0-9]+)` \| ([^|]+) \|", page, re.MULTILINE)
        for metric, levels in [(row[0], row[1])]
        for level in re.findall(r"\w+", levels)
    }
    assert told == names("record")


def test_values_are_held_to_the_range_of_the_field_table():
    bounded = {
        (name, float(bound))
        for rule in rules("record")
        for name, bound in re.findall(r"(DCGM_FI_\w+) <= ([0-9.]+)", rule["expr"])
    }
    assert len(bounded) > 5
    for name, bound in bounded:
        field = FIELD_BY_DCGM_NAME[name]
        assert bound == field.high / field.multiply_by, name


def test_what_appears_is_new_within_the_window_in_which_a_rise_is():
    judged = [rule["expr"] for rule in rules("alert") if "unless on (job, instance" in rule["expr"]]
    assert len(judged) > 5
    for expression in judged:
        (began,) = set(re.findall(r"time\(\) - (\d+)", expression))
        windows = set(re.findall(r"(?:offset |\[)(\d+)m", expression))
        assert windows == {str(int(began) // 60)}, expression


def test_the_local_stack_has_the_jobs_and_rules_of_the_compose_stack():
    shipped, local = loaded(PROMETHEUS / "prometheus.yml"), prometheus_configuration(Ports(), 30)
    jobs = [{job["job_name"]: job for job in each["scrape_configs"]} for each in (shipped, local)]
    assert jobs[0].keys() == jobs[1].keys()
    for name, job in jobs[0].items():
        for key in ("honor_labels", "metric_relabel_configs"):
            assert job.get(key) == jobs[1][name].get(key), name
    assert local["rule_files"] == [str(PROMETHEUS / "rules" / "*.yml")]
