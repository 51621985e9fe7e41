"""The committed dashboards are what the generator writes, what Grafana reads, and what a person can find the way in."""

import copy
import json
import re
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import generate

REPOSITORY = Path(__file__).parents[3]
NAMES = ("alerts", "fleet", "gpu", "inventory", "node", "pipeline", "workloads")
# A number of these stands beside a word that says what it is.
TEXT_UNITS = {"short", "locale"}


def panels_of(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def walk(value):
    """Every object within a JSON document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def provisioned(kind):
    return yaml.safe_load((REPOSITORY / "grafana" / "provisioning" / kind / f"{kind}.yml").read_text())


def test_there_are_seven():
    assert tuple(path.stem for path in sorted((REPOSITORY / "grafana" / "dashboards").iterdir())) == NAMES


def test_the_committed_files_are_what_the_generator_writes():
    for path, text in generate.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run `python -m grafana.generate`"


def test_generating_twice_gives_the_same_bytes():
    assert generate.files() == generate.files()


@pytest.mark.parametrize("name", NAMES)
def test_the_sdks_model_reads_it_and_loses_nothing(name, dashboards):
    register_default_plugins()
    # The annotations' targets are queries, for which the model has a type of tags.
    dashboard = copy.deepcopy(dashboards[name])
    for annotation in dashboard["annotations"].get("list", []):
        assert annotation.pop("target")["rawSql"]

    model = Dashboard.from_json(dashboard)

    again = json.loads(json.dumps(model, cls=JSONEncoder))
    assert again == dashboard


@pytest.mark.parametrize("name", NAMES)
def test_it_says_whom_it_serves_and_so_does_each_panel_its_question(name, dashboards):
    dashboard = dashboards[name]
    assert dashboard["description"].startswith("For who")
    for panel in panels_of(dashboard):
        assert "?" in panel["description"], panel["title"]
        assert len(panel["title"]) <= 62, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_grafana_9_and_later_read_it(name, dashboards):
    dashboard = dashboards[name]
    assert dashboard["schemaVersion"] <= 38
    assert "__inputs" not in dashboard
    assert not dashboard.get("id")
    assert dashboard["editable"] is False


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_panels_neither_overlap_nor_leave_the_grid(name, dashboards):
    panels = dashboards[name]["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        place = panel["gridPos"]
        assert place["w"] > 0
        assert place["h"] > 0
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


def test_uids_are_unique(dashboards):
    uids = [dashboard["uid"] for dashboard in dashboards.values()]
    assert len(set(uids)) == len(uids)
    assert all(len(uid) <= 40 for uid in uids)


@pytest.mark.parametrize("name", NAMES)
def test_every_datasource_is_one_of_the_provisioned_by_its_uid(name, dashboards):
    known = {source["uid"]: source["type"] for source in provisioned("datasources")["datasources"]}
    used = [found["datasource"] for found in walk(dashboards[name]) if "datasource" in found]
    assert used
    for source in used:
        assert source == {"uid": "-- Mixed --"} or source == {"type": known[source["uid"]], "uid": source["uid"]}


@pytest.mark.parametrize("name", NAMES)
def test_every_query_goes_where_its_language_is_spoken(name, dashboards):
    for found in walk(dashboards[name]):
        if "expr" in found:
            assert found["datasource"]["uid"] == "gpu-telemetry-prometheus"
        if "rawSql" in found:
            assert found["datasource"]["uid"] == "gpu-telemetry-postgresql"


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_and_number_has_a_unit(name, dashboards):
    for panel in panels_of(dashboards[name]):
        unit = panel["fieldConfig"]["defaults"].get("unit")
        if panel["type"] in {"timeseries", "stat", "bargauge"}:
            assert unit, panel["title"]
        if panel["type"] == "heatmap":
            assert panel["options"]["yAxis"]["unit"], panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_of_temperature_and_memory_are_the_shipped_rules(name, dashboards):
    rules = {
        rule["name"]: rule for rule in yaml.safe_load((REPOSITORY / "alerting" / "rules.yml").read_text())["rules"]
    }
    colour = {"warning": "orange", "critical": "red"}
    expected = {
        rule: {colour[severity]: value for severity, value in rules[rule]["above"].items()}
        for rule in ("high_temperature", "high_memory")
    }
    for panel in panels_of(dashboards[name]):
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        ladder = {step["color"]: step["value"] for step in steps[1:]}
        if panel["fieldConfig"]["defaults"].get("unit") == "celsius" and ladder:
            assert ladder == expected["high_temperature"], panel["title"]
        if panel["title"] == "Memory in use":
            assert ladder == expected["high_memory"]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_leads_to_a_dashboard_that_has_its_variables_and_keeps_the_time_range(name, dashboards):
    variables = {
        dashboard["uid"]: {variable["name"] for variable in dashboard["templating"]["list"]}
        for dashboard in dashboards.values()
    }
    addresses = {found["url"] for found in walk(dashboards[name]) if str(found.get("url", "")).startswith("/d/")}
    assert all(link["keepTime"] for link in dashboards[name]["links"])
    for address in addresses - {link["url"] for link in dashboards[name]["links"]}:
        assert "${__url_time_range}" in address
    for address in addresses:
        parts = urlsplit(address)
        uid = parts.path.removeprefix("/d/")
        given = {key.removeprefix("var-") for key, _ in parse_qsl(parts.query) if key.startswith("var-")}
        assert given <= variables[uid], address
        for kept in re.findall(r"\$\{(\w+):queryparam\}", parts.query):
            assert kept in variables[dashboards[name]["uid"]], address
            assert kept in variables[uid], address


@pytest.mark.parametrize("name", NAMES)
def test_the_links_at_the_top_lead_to_all_others_and_carry_no_choice_of_many_to_where_one_is_chosen(name, dashboards):
    by_uid = {dashboard["uid"]: dashboard for dashboard in dashboards.values()}
    here = variables_of(dashboards[name])
    led_to = set()
    for link in dashboards[name]["links"]:
        # Grafana would carry every variable, also `node=All` to a dashboard of one node.
        assert not link["includeVars"]
        parts = urlsplit(link["url"])
        uid = parts.path.removeprefix("/d/")
        led_to.add(uid)
        carried = re.findall(r"\$\{(\w+):queryparam\}", parts.query)
        assert {"datacenter", "model"} <= set(carried)
        for variable in carried:
            assert takes_many(variables_of(by_uid[uid])[variable]) or not takes_many(here[variable]), (uid, variable)
    assert led_to == set(by_uid) - {dashboards[name]["uid"]}


def variables_of(dashboard):
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}


def takes_many(variable):
    return bool(variable["multi"] or variable["includeAll"])


def test_a_node_goes_along_to_the_dashboards_that_have_one_or_several(dashboards):
    for name in ("node", "gpu"):
        carrying = {link["title"] for link in dashboards[name]["links"] if "${node:queryparam}" in link["url"]}
        assert carrying == {"Node", "GPU", "Alerts and actions"} - {dashboards[name]["title"]}


def column_of_words(panel, target):
    """The column in which a table says that there is nothing, as it is shown."""
    if "rawSql" in target:
        select, nothing = re.findall(
            r"^SELECT (.+?)(?: FROM found| WHERE NOT EXISTS.*)$", target["rawSql"], re.MULTILINE
        )
        (place,) = (place for place, value in enumerate(nothing.split(", ")) if value != "NULL")
        return select.split(", ")[place].strip('"')
    (label,) = re.findall(r'label_replace\(vector\(NaN\), "(\w+)", "[^"]+", "", ""\)', target["expr"])
    (organised,) = (each["options"] for each in panel["transformations"] if each["id"] == "organize")
    assert label not in organised["excludeByName"]
    return organised["renameByName"].get(label, label)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_that_says_that_there_is_nothing_says_it_where_no_link_is(name, dashboards):
    for panel in panels_of(dashboards[name]):
        if panel["type"] != "table":
            continue
        linked = {
            override["matcher"]["options"]
            for override in panel["fieldConfig"]["overrides"]
            if any(each["id"] == "links" for each in override["properties"])
        }
        for target in panel["targets"]:
            assert column_of_words(panel, target) not in linked, panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_no_number_has_the_colour_of_a_good_one_where_there_is_none(name, dashboards):
    for panel in panels_of(dashboards[name]):
        words = panel.get("fieldConfig", {}).get("defaults", {}).get("noValue")
        if panel["type"] != "stat" or words is None:
            continue
        (null,) = (
            mapping["options"]["result"]
            for mapping in panel["fieldConfig"]["defaults"]["mappings"]
            if mapping["options"].get("match") == "null"
        )
        assert (null["text"], null["color"]) == (words, "text"), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_a_moment_does_not_take_the_ends_from_other_annotations(name, dashboards):
    # Of all annotations Grafana 9.4 shows only the fields that the first one to arrive has.
    texts = [annotation["target"]["rawSql"] for annotation in dashboards[name]["annotations"].get("list", [])]

    assert len({"AS timeend" in text for text in texts}) < 2


@pytest.mark.parametrize("name", NAMES)
def test_no_panel_shows_not_a_number(name, dashboards):
    for panel in panels_of(dashboards[name]):
        if any("vector(NaN)" in target.get("expr", "") for target in panel.get("targets", [])):
            mappings = panel["fieldConfig"]["defaults"]["mappings"]
            assert any("NaN" in mapping["options"] for mapping in mappings), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_that_is_used_is_there(name, dashboards):
    dashboard = dashboards[name]
    there = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps(dashboard)
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used <= there


@pytest.mark.parametrize("name", NAMES)
def test_each_line_of_a_gpu_is_named_by_its_node_its_index_and_its_mig_instance(name, dashboards):
    for found in walk(dashboards[name]):
        if "by (gpu, mig" in found.get("expr", ""):
            assert re.search(r"\{\{node_id\}\} GPU \{\{gpu\}\}\{\{mig\}\}$", found["legendFormat"])


def test_no_graph_of_a_gpu_is_empty_for_want_of_one_field(dashboards):
    # Grafana 9.4 shows nothing of a panel of which one query finds nothing; a MIG instance has no utilisation.
    for name in ("node", "gpu"):
        for panel in panels_of(dashboards[name]):
            if panel["type"] == "timeseries":
                assert len(panel["targets"]) == 1, panel["title"]


def test_no_line_of_a_fleet_is_a_gpu(dashboards):
    for name in ("fleet", "workloads", "alerts", "pipeline", "inventory"):
        for panel in panels_of(dashboards[name]):
            for target in panel.get("targets", []):
                if target.get("range"):
                    assert "{{gpu}}" not in target["legendFormat"], panel["title"]


def test_the_folder_is_read_only_and_the_home_dashboard_is_among_them(dashboards):
    (provider,) = provisioned("dashboards")["providers"]
    assert provider["allowUiUpdates"] is False
    assert dashboards["fleet"]["uid"] == "gpu-fleet"


def test_no_secret_stands_in_the_provisioning():
    for source in provisioned("datasources")["datasources"]:
        assert "database" not in source, "a database at the top level breaks from Grafana 12.2"
        for value in source.get("secureJsonData", {}).values():
            assert value.startswith("$")
