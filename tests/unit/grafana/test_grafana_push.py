"""`grafana push` and `grafana check` against a stand-in that follows Grafana's published API."""

import json

import pytest
from click.testing import CliRunner

from gpu_telemetry.cli.grafana import command
from grafana import push
from grafana.settings import GrafanaSettings

SECRET = "a word that nobody may see"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, stand_in):
    monkeypatch.setenv("GRAFANA_URL", stand_in.url)
    monkeypatch.setenv("GRAFANA_TOKEN", stand_in.TOKEN)
    monkeypatch.setenv("GRAFANA_DATABASE_PASSWORD", SECRET)


def run(*arguments):
    return CliRunner().invoke(command, arguments)


def states(output):
    return dict(line.split(": ", 1) for line in output.splitlines())


def test_an_empty_grafana_gets_everything(stand_in, dashboards):
    done = run("push")

    assert done.exit_code == 0, done.output
    assert set(states(done.output).values()) == {"created"}
    assert stand_in.folders == {"gpu-telemetry": "GPU telemetry"}
    assert set(stand_in.datasources) == {"gpu-telemetry-prometheus", "gpu-telemetry-postgresql"}
    assert {uid: kept["dashboard"]["title"] for uid, kept in stand_in.dashboards.items()} == {
        dashboard["uid"]: dashboard["title"] for dashboard in dashboards.values()
    }
    assert {kept["meta"]["folderUid"] for kept in stand_in.dashboards.values()} == {"gpu-telemetry"}


def test_the_datasources_are_filled_from_the_environment(stand_in, monkeypatch):
    monkeypatch.setenv("GRAFANA_PROMETHEUS_URL", "https://prometheus.example/")
    run("push")

    source = stand_in.datasources["gpu-telemetry-postgresql"]
    assert source["jsonData"]["database"] == "gpu_telemetry"
    assert source["secureJsonData"] == {"password": SECRET}
    assert stand_in.datasources["gpu-telemetry-prometheus"]["url"] == "https://prometheus.example"
    assert "$" not in json.dumps(stand_in.datasources)


def test_what_was_pushed_is_the_same_to_a_check_and_a_second_push_changes_only_the_password(stand_in):
    run("push")
    checked = run("check")
    assert checked.exit_code == 0
    assert set(states(checked.output).values()) == {"same"}
    stand_in.asked.clear()

    again = run("push")

    assert [asked for asked in stand_in.asked if asked[0] != "GET"] == [
        ("PUT", "/api/datasources/uid/gpu-telemetry-postgresql")
    ]
    assert SECRET not in again.output


def test_what_is_there_already_keeps_its_name_and_stays_the_default(stand_in):
    theirs = [
        {"uid": "theirs", "name": "Prometheus", "type": "prometheus", "isDefault": True},
        {"uid": "their other", "name": "PostgreSQL", "type": "postgres", "isDefault": False},
    ]
    stand_in.datasources = {each["uid"]: dict(each) for each in theirs}

    done = run("push")

    assert done.exit_code == 0, done.output
    assert [stand_in.datasources[each["uid"]] for each in theirs] == theirs
    assert [uid for uid, kept in stand_in.datasources.items() if kept["isDefault"]] == ["theirs"]
    assert run("check").exit_code == 0


def test_ours_stays_the_default_where_somebody_made_it_that(stand_in):
    run("push")
    stand_in.datasources["gpu-telemetry-prometheus"] |= {"isDefault": True, "url": "http://elsewhere"}
    stand_in.datasources["gpu-telemetry-postgresql"] |= {"isDefault": False}

    assert states(run("check").output)["datasource gpu-telemetry-prometheus"] == "differs (url)"
    assert states(run("push").output)["datasource gpu-telemetry-prometheus"] == "updated (url)"

    assert stand_in.datasources["gpu-telemetry-prometheus"]["isDefault"] is True


def test_a_name_of_ours_that_another_has_is_said_and_the_other_left_alone(stand_in):
    another = {"uid": "another", "name": "GPU telemetry PostgreSQL", "type": "postgres", "isDefault": False}
    stand_in.datasources["another"] = dict(another)
    said = "its name, GPU telemetry PostgreSQL, is that of the datasource with uid another"

    checked, done = run("check"), run("push")

    assert states(checked.output)["datasource gpu-telemetry-postgresql"] == f"missing ({said})"
    assert (checked.exit_code, done.exit_code) == (1, 1)
    assert f"could not create datasource gpu-telemetry-postgresql: {said}" in done.output
    assert stand_in.datasources["another"] == another


def test_a_name_from_before_is_made_ours(stand_in):
    run("push")
    stand_in.datasources["gpu-telemetry-prometheus"]["name"] = "Prometheus"

    assert states(run("push").output)["datasource gpu-telemetry-prometheus"] == "updated (name)"
    assert run("check").exit_code == 0


def test_a_password_that_is_not_given_is_left_as_it_is(stand_in, monkeypatch):
    run("push")
    monkeypatch.delenv("GRAFANA_DATABASE_PASSWORD")
    stand_in.asked.clear()

    assert set(states(run("push").output).values()) == {"same"}
    assert {method for method, _ in stand_in.asked} == {"GET"}


def test_check_says_what_is_missing_and_what_differs_in_what_and_changes_nothing(stand_in):
    run("push")
    del stand_in.dashboards["gpu-node"]
    stand_in.dashboards["gpu-fleet"]["dashboard"]["title"] = "Mine"
    stand_in.dashboards["gpu-gpu"]["meta"]["folderUid"] = "elsewhere"
    stand_in.datasources["gpu-telemetry-prometheus"]["url"] = "http://elsewhere"
    stand_in.asked.clear()

    checked = run("check")

    assert checked.exit_code == 1
    said = states(checked.output)
    assert said["dashboard gpu-node"] == "missing"
    assert said["dashboard gpu-fleet"] == "differs (title)"
    assert said["dashboard gpu-gpu"] == "differs (folder)"
    assert said["datasource gpu-telemetry-prometheus"] == "differs (url)"
    assert {method for method, _ in stand_in.asked} == {"GET"}

    assert states(run("push").output)["dashboard gpu-fleet"] == "updated (title)"
    assert run("check").exit_code == 0


def test_a_grafana_from_before_the_new_name_of_the_postgresql_datasource_gets_the_old_one(stand_in):
    stand_in.plugins = ["prometheus", "postgres"]
    run("push")

    assert stand_in.datasources["gpu-telemetry-postgresql"]["type"] == "postgres"
    assert run("check").exit_code == 0


@pytest.mark.parametrize(
    ("refusal", "answer", "said"),
    [
        ("POST /api/dashboards/db", 403, "could not save dashboard gpu-alerts"),
        ("POST /api/dashboards/db", 412, "as told"),
        ("POST /api/datasources", 500, "could not create datasource gpu-telemetry-prometheus: Server Error 500"),
        ("GET /api/folders", 503, "could not read folder gpu-telemetry: Server Error 503"),
        ("GET /api/folders", b"<html>", "the answer is no JSON, so it is no Grafana's"),
    ],
)
def test_a_refusal_ends_it_with_what_was_tried_and_what_was_said(stand_in, refusal, answer, said):
    stand_in.refuse[refusal] = answer

    done = run("push")

    assert done.exit_code == 1
    assert said in done.output
    assert stand_in.TOKEN not in done.output
    assert SECRET not in done.output


def test_what_was_done_before_a_refusal_stands_and_a_later_push_goes_on(stand_in):
    stand_in.refuse["POST /api/dashboards/db"] = 500
    assert run("push").exit_code == 1
    assert len(stand_in.datasources) == 2
    stand_in.refuse.clear()

    said = states(run("push").output)

    assert said["folder gpu-telemetry"] == "same"
    assert said["dashboard gpu-fleet"] == "created"


def test_a_grafana_that_hangs_is_given_up(stand_in, monkeypatch):
    monkeypatch.setenv("GRAFANA_TIMEOUT_SECONDS", "0.2")
    stand_in.refuse["GET /api/folders"] = "hang"

    done = run("check")

    assert done.exit_code == 1
    assert "no answer within 0.2 s" in done.output


def test_a_wrong_token_is_said_and_not_shown(monkeypatch):
    monkeypatch.setenv("GRAFANA_TOKEN", "glsa_wrong")

    done = run("check")

    assert done.exit_code == 1
    assert "Unauthorized" in done.output
    assert "glsa_wrong" not in done.output


def test_nobody_at_the_address(free_ports):
    (nobody,) = free_ports(1)

    done = run("check", "--url", f"http://127.0.0.1:{nobody}")

    assert done.exit_code == 1
    assert f"http://127.0.0.1:{nobody}: could not read folder gpu-telemetry: ConnectionError" in done.output


def test_without_a_token_nothing_is_asked(stand_in, monkeypatch):
    monkeypatch.delenv("GRAFANA_TOKEN")

    done = run("push")

    assert done.exit_code == 1
    assert "GRAFANA_TOKEN: expected a token" in done.output
    assert stand_in.asked == []


def test_every_word_of_the_provisioning_has_a_setting():
    assert "$" not in json.dumps(push.datasources(GrafanaSettings()))
    assert SECRET not in repr(GrafanaSettings())
