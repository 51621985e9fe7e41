"""Resolving an alert by hand: what is answered, and what the database holds afterwards."""

import psycopg
import pytest

from api.resources import resources


def rows(url, query):
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def test_the_alert_comes_back_resolved_and_is_active_no_more(writing_client):
    response = writing_client.post("/api/v1/alerts/41/resolve")
    assert response.status_code == 200
    alert = response.json
    assert (alert["id"], alert["status"], alert["resolved_reason"], alert["resolved_by"]) == (
        41,
        "resolved",
        "manual",
        "api",
    )
    assert alert["resolved_at"] is not None
    assert [one["id"] for one in writing_client.get("/api/v1/alerts/active").json] == [42, 43]
    assert writing_client.get("/api/v1/alerts/41").json["transitions"][-1]["transition"] == "resolved"


def test_the_event_and_the_command_for_the_worker_are_written_with_it(writing_client, fleet_url):
    writing_client.post("/api/v1/alerts/41/resolve", json={"actor": "jane"})
    assert rows(fleet_url, "SELECT transition, reason, actor FROM alert_events WHERE alert_id = 41 ORDER BY id")[
        -1
    ] == (
        "resolved",
        "manual",
        "jane",
    )
    commands = rows(fleet_url, "SELECT alert_id, node_id, command, actor, applied_at FROM alert_commands")
    assert commands == [(41, "node-2", "resolve", "jane", None)]


def test_resolving_twice_is_no_error_and_changes_nothing(writing_client, fleet_url):
    first = writing_client.post("/api/v1/alerts/41/resolve", json={"actor": "jane"})
    second = writing_client.post("/api/v1/alerts/41/resolve", json={"actor": "john"})
    assert (second.status_code, second.json) == (200, first.json)
    assert rows(fleet_url, "SELECT count(*) FROM alert_commands") == [(1,)]
    assert rows(fleet_url, "SELECT count(*) FROM alert_events WHERE transition = 'resolved'") == [(1,)]


def test_an_alert_that_cleared_by_itself_comes_back_as_it_is(writing_client, fleet_url):
    alert = writing_client.post("/api/v1/alerts/1/resolve").json
    assert (alert["status"], alert["resolved_reason"], alert["resolved_by"]) == ("resolved", "cleared", None)
    assert rows(fleet_url, "SELECT count(*) FROM alert_commands") == [(0,)]


def test_an_alert_that_is_not_there_is_a_404(writing_client):
    response = writing_client.post("/api/v1/alerts/4711/resolve")
    assert (response.status_code, response.json["detail"]) == (404, "there is no alert 4711")


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"json": {"actor": ""}}, 400, "$.actor"),
        ({"json": {"actor": 7}}, 400, "$.actor"),
        ({"json": {"actor": "x" * 201}}, 400, "$.actor"),
        ({"json": {"actor": "a\0b"}}, 400, "$.actor"),
        ({"json": {"who": "jane"}}, 400, "who"),
        ({"json": ["jane"]}, 400, "expected"),
        ({"data": b"{", "content_type": "application/json"}, 400, "JSON"),
        ({"data": b'{"actor": "\xff"}', "content_type": "application/json"}, 400, "body"),
        ({"data": b"[" * 10_000, "content_type": "application/json"}, 400, "body"),
        ({"data": b"actor=jane", "content_type": "application/x-www-form-urlencoded"}, 415, "application/json"),
        ({"data": b"jane"}, 415, "a body without a type"),
        ({"data": b" " * 20_000, "content_type": "application/json"}, 413, "exceeds the capacity limit"),
        ({"query_string": {"actor": "jane"}}, 400, "actor"),
        ({"headers": {"Origin": "http://elsewhere.example"}}, 403, "another site"),
        ({"headers": {"Origin": "null"}}, 403, "another site"),
        ({"headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "another site"),
    ],
)
def test_a_request_that_cannot_be_used_says_why_and_resolves_nothing(writing_client, fleet_url, sent, status, said):
    response = writing_client.post("/api/v1/alerts/41/resolve", **sent)
    assert (response.status_code, response.mimetype) == (status, "application/problem+json")
    assert said in response.json["detail"]
    assert rows(fleet_url, "SELECT status FROM alerts WHERE id = 41") == [("active",)]


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}],
)
def test_the_reference_page_and_programs_may_resolve(writing_client, headers):
    assert writing_client.post("/api/v1/alerts/41/resolve", headers=headers, json={}).status_code == 200


def test_looking_never_writes(client):
    """The connections for reading are read-only, so a query cannot write whatever it says."""
    with (
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
        resources(client.application).database.reading() as connection,
    ):
        connection.execute("SELECT * FROM resolve_alert(41, 'nobody')")
