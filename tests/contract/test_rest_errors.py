"""Errors of the REST API: RFC 9457 documents that name what was wrong, whatever a client sends."""

import logging
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from api.app import create_app
from api.metrics import LatestKey
from api.nodes import NodeKey
from api.parameters import encode_cursor
from api.problems import Unavailable
from api.resources import resources
from api.settings import ApiSettings
from gpu_telemetry.database import upgrade
from gpu_telemetry.settings import DatabaseSettings

LIMIT = "a whole number from 1 to 10000"
ID = "a whole number from 1 to 9223372036854775807"
TIME = "an RFC 3339 time with Z or an offset, as in 2026-01-31T12:00:00Z (a plus sign in a URL is written %2B)"
CURSOR = "a cursor as a Link header of this list gave it"


def problem(response, status):
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    body = response.json
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert set(body) >= {"title", "detail", "instance"}
    return body


@pytest.mark.parametrize(
    ("path", "parameter", "expected", "got"),
    [
        ("/api/v1/nodes?limit=abc", "limit", LIMIT, "abc"),
        ("/api/v1/nodes?limit=", "limit", LIMIT, ""),
        ("/api/v1/nodes?limit=0", "limit", LIMIT, "0"),
        ("/api/v1/nodes?limit=-1", "limit", LIMIT, "-1"),
        ("/api/v1/nodes?limit=10001", "limit", LIMIT, "10001"),
        ("/api/v1/nodes?limit=1.5", "limit", LIMIT, "1.5"),
        ("/api/v1/nodes?limit=1_0", "limit", LIMIT, "1_0"),
        ("/api/v1/nodes?limit=%D9%A1", "limit", LIMIT, "\u0661"),
        ("/api/v1/nodes?limit=1&limit=2", "limit", "one value", "1, 2"),
        ("/api/v1/nodes?status=ill", "status", "one of healthy, warning, critical, down, unknown", "ill"),
        ("/api/v1/nodes?removed=yes", "removed", "true or false", "yes"),
        ("/api/v1/nodes?datacenter=", "datacenter", "1 to 512 characters", ""),
        ("/api/v1/nodes?datacentre=x", "datacentre", "one of the parameters cursor, datacenter, limit, removed, status",
         "x"),
        ("/api/v1/nodes?cursor=x", "cursor", CURSOR, "x"),
        ("/api/v1/nodes?cursor=", "cursor", CURSOR, ""),
        ("/api/v1/nodes/node-1?limit=1", "limit", "no parameters", "1"),
        ("/api/v1/nodes/node-1/metrics?limit=none", "limit", LIMIT, "none"),
        ("/api/v1/metrics/latest?node=a%00b", "node", "1 to 512 characters", "a\0b"),
        ("/api/v1/alerts?status=open", "status", "one of active, resolved", "open"),
        ("/api/v1/alerts?severity=fatal", "severity", "one of info, warning, critical", "fatal"),
        ("/api/v1/alerts?since=yesterday", "since", TIME, "yesterday"),
        ("/api/v1/alerts?since=2026-01-31", "since", TIME, "2026-01-31"),
        ("/api/v1/alerts?since=2026-01-31T12:00:00", "since", TIME, "2026-01-31T12:00:00"),
        ("/api/v1/alerts?since=2026-01-31T12:00:00+02:00", "since", TIME, "2026-01-31T12:00:00 02:00"),
        ("/api/v1/alerts?since=2026-02-30T12:00:00Z", "since", TIME, "2026-02-30T12:00:00Z"),
        ("/api/v1/alerts?since=1769860800", "since", TIME, "1769860800"),
        ("/api/v1/alerts/abc", "alert_id", ID, "abc"),
        ("/api/v1/alerts/0", "alert_id", ID, "0"),
        ("/api/v1/alerts/9223372036854775808", "alert_id", ID, "9223372036854775808"),
        ("/api/v1/alerts/active?status=active", "status", "one of the parameters cursor, limit", "active"),
        ("/healthz?verbose=1", "verbose", "no parameters", "1"),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_be_used_is_named_with_what_was_expected_and_got(
    client, path, parameter, expected, got
):
    body = problem(client.get(path), 400)
    assert (body["parameter"], body["expected"], body["got"]) == (parameter, expected, got)
    assert body["detail"] == f"{parameter}: expected {expected}, got {got!r}"


def test_a_cursor_of_another_list_is_refused(client):
    cursor = encode_cursor(NodeKey("node-1"))
    assert client.get(f"/api/v1/nodes?cursor={cursor}").status_code == 200
    assert problem(client.get(f"/api/v1/metrics/latest?cursor={cursor}"), 400)["parameter"] == "cursor"


@pytest.mark.parametrize(
    "content",
    [
        b'{"type":"latest","gpu_uuid":"a"}',
        b'{"type":"latest","gpu_uuid":1,"mig_instance":null}',
        b'{"type":"latest","gpu_uuid":"a\\u0000","mig_instance":null}',
        b'{"type":"latest","gpu_uuid":"a","mig_instance":null,"more":1}',
        b'{"type": "latest","gpu_uuid":"a","mig_instance":null}',
        b'{"type":"latest","gpu_uuid":"\xff","mig_instance":null}',
        b"[" * 3000,
        b"",
    ],
)
def test_a_cursor_that_was_made_up_is_refused(client, content):
    cursor = msgspec.json.encode(content).decode().strip('"').rstrip("=").replace("+", "-").replace("/", "_")
    assert problem(client.get(f"/api/v1/metrics/latest?cursor={cursor}"), 400)["parameter"] == "cursor"


def test_a_cursor_with_a_character_more_is_refused(client):
    cursor = encode_cursor(LatestKey("GPU-0000", None))
    for wrong in (cursor + "=", cursor + "!", cursor + "\n", " " + cursor, cursor[:-1]):
        assert problem(client.get("/api/v1/metrics/latest", query_string={"cursor": wrong}), 400)


def test_a_long_wrong_value_is_not_echoed_whole(client):
    body = problem(client.get("/api/v1/nodes?limit=" + "9" * 5000), 400)
    assert body["got"] == "9" * 200 + "…"


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/api/v1/nodes/nowhere", "there is no node 'nowhere'"),
        ("/api/v1/nodes/nowhere/metrics", "there is no node 'nowhere'"),
        ("/api/v1/alerts/4711", "there is no alert 4711"),
    ],
)
def test_what_is_not_there_is_a_404_that_says_so(client, path, detail):
    assert problem(client.get(path), 404)["detail"] == detail


@pytest.mark.parametrize(
    "path", ["/nope", "/api/v1", "/api/v2/nodes", "/api/v1/nodes/", "/static/nope.css", "/docs/files/no"]
)
def test_a_path_that_leads_nowhere_is_a_problem_too(client, path):
    body = problem(client.get(path), 404)
    assert (body["instance"], body["detail"]) == (path, "there is nothing at this path; / leads to all that there is")


def test_a_method_that_is_not_allowed_is_a_405_that_lists_the_allowed_ones(client):
    response = client.post("/api/v1/nodes")
    problem(response, 405)
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    problem(client.get("/api/v1/alerts/1/resolve"), 405)
    problem(client.delete("/api/v1/alerts/1"), 405)


def test_head_answers_as_get_without_a_body(client):
    got, head = client.get("/api/v1/nodes"), client.head("/api/v1/nodes")
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


def test_options_lists_the_methods_and_lets_no_other_site_in(client):
    response = client.options("/api/v1/nodes", headers={"Origin": "http://elsewhere.example"})
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_every_answer_carries_the_security_headers(client):
    for path in ("/api/v1/nodes", "/nope", "/", "/docs", "/static/style.css", "/healthz"):
        with client.get(path) as response:
            headers = response.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def _client_of(url, **settings):
    return create_app(ApiSettings(**settings), database=DatabaseSettings(url=SecretStr(url)))


@pytest.fixture
def app_without_database(free_ports):
    url = f"postgresql://telemetry:hunter2@127.0.0.1:{free_ports(1)[0]}/nowhere"
    app = _client_of(url, pool_timeout_seconds=0.2)
    yield app
    resources(app).database.close()


@pytest.mark.parametrize("path", ["/api/v1/nodes", "/api/v1/alerts/1", "/readyz"])
def test_without_the_database_the_answer_is_503_and_when_to_come_again(app_without_database, path):
    response = app_without_database.test_client().get(path)
    assert problem(response, 503)["detail"].startswith("the database cannot be reached")
    assert int(response.headers["Retry-After"]) > 0


def test_without_the_database_the_front_page_says_so_and_still_leads_on(app_without_database):
    response = app_without_database.test_client().get("/")
    assert response.status_code == 503
    assert "the database cannot be reached" in response.text
    assert "hunter2" not in response.text
    assert 'href="/docs"' in response.text


def test_without_the_database_health_document_and_reference_are_served(app_without_database):
    for path in ("/healthz", "/openapi.json", "/docs", "/metrics"):
        assert app_without_database.test_client().get(path).status_code == 200


def test_the_databases_password_stands_in_no_log_line(app_without_database, caplog):
    caplog.set_level(logging.DEBUG)
    app_without_database.test_client().get("/readyz")
    assert caplog.records
    assert "hunter2" not in caplog.text


def test_an_empty_database_is_not_ready_and_becomes_so_when_its_schema_comes(postgres_url):
    app = _client_of(postgres_url)
    try:
        client = app.test_client()
        for path in ("/readyz", "/api/v1/nodes"):
            body = problem(client.get(path), 503)
            assert body["detail"] == "the database has no schema: run `gpu-telemetry db upgrade`"
        upgrade(DatabaseSettings(url=SecretStr(postgres_url)))
        assert client.get("/readyz").json == {"status": "ready"}
        assert client.get("/api/v1/nodes").json == []
    finally:
        resources(app).database.close()


def test_a_schema_from_the_future_is_not_ready(fleet_url):
    with psycopg.connect(fleet_url) as connection:
        connection.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'later', 'x')")
    app = _client_of(fleet_url)
    try:
        assert "schema version 9999" in problem(app.test_client().get("/readyz"), 503)["detail"]
    finally:
        resources(app).database.close()


def test_a_query_that_takes_too_long_is_cancelled_and_told(fleet_url):
    app = _client_of(fleet_url, statement_timeout_seconds=1)
    try:
        with psycopg.connect(fleet_url) as blocker:
            blocker.execute("LOCK TABLE nodes IN ACCESS EXCLUSIVE MODE")
            body = problem(app.test_client().get("/api/v1/nodes"), 503)
        assert body["detail"] == "the query took longer than 1 s: ask for less, or again later"
        assert app.test_client().get("/api/v1/nodes").status_code == 200
    finally:
        resources(app).database.close()


def test_a_deadlock_is_told_as_something_to_try_again(writing_client, fleet_url):
    database = resources(writing_client.application).database
    lock = "SELECT FROM alerts WHERE id = %s FOR UPDATE"
    with psycopg.connect(fleet_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SET deadlock_timeout = '1min'")  # so that the API's side notices first and gives up
        other.execute(lock, [42])

        def lock_in_the_other_order():
            with database.writing() as connection:
                connection.execute(lock, [41])
                waiting = pool.submit(other.execute, lock, [41])
                try:
                    connection.execute(lock, [42])
                finally:
                    connection.rollback()
                    waiting.result(10)

        with pytest.raises(Unavailable, match="others were changing the same rows"):
            lock_in_the_other_order()


def test_a_connection_that_is_lost_in_the_middle_is_told_and_the_next_request_is_answered(writing_client, fleet_url):
    assert writing_client.get("/api/v1/nodes").status_code == 200
    with psycopg.connect(fleet_url) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%api'")
    assert writing_client.get("/api/v1/nodes").status_code == 200


def test_a_defect_is_a_500_that_tells_the_log_everything_and_the_client_nothing(writing_client, fleet_url, caplog):
    with psycopg.connect(fleet_url) as connection:
        connection.execute("ALTER TABLE nodes RENAME COLUMN hostname TO secret_column")
    body = problem(writing_client.get("/api/v1/nodes"), 500)
    assert body["detail"] == "The server failed to answer; its log says why."
    assert "hostname" not in msgspec.json.encode(body).decode()
    (record,) = [record for record in caplog.records if record.name == "api.problems"]
    assert record.exc_info is not None
    assert "hostname" in str(record.exc_info[1])


PATHS = [
    "/api/v1/nodes",
    "/api/v1/nodes/node-1",
    "/api/v1/nodes/node-1/metrics",
    "/api/v1/metrics/latest",
    "/api/v1/alerts",
    "/api/v1/alerts/active",
    "/api/v1/alerts/41",
    "/api/v1/gpus",
    "/api/v1/gpus/GPU-0000",
    "/api/v1/fleet/summary",
    "/api/v1/ledger",
    "/api/v1/ledger/totals",
]
NAMES = [
    "limit",
    "cursor",
    "status",
    "severity",
    "node",
    "datacenter",
    "since",
    "type",
    "removed",
    "until",
    "model",
    "other",
]
PLAUSIBLE = ["1", "10000", "active", "healthy", "true", "node-1", "9999-12-31T23:59:59.999999-14:00",
             "0001-01-01T00:00:00+14:00", "2026-01-31T12:00:00Z", "null", "GPU-0001"]  # fmt: skip
KEYS = st.builds(
    lambda tag, members: encode_raw({"type": tag} | members),
    st.sampled_from(["nodes", "node_metrics", "latest", "alerts", "gpus", "ledger"]),
    st.fixed_dictionaries(
        {},
        optional={
            "node_id": st.text(max_size=4),
            "collected_at": st.datetimes().map(lambda at: at.isoformat() + "Z"),
            "triggered_at": st.datetimes().map(lambda at: at.isoformat() + "Z"),
            "placement_id": st.integers(-1, 2**32),
            "id": st.integers(-1, 2**64),
            "gpu_uuid": st.text(max_size=4),
            "mig_instance": st.none() | st.text(max_size=4),
        },
    ),
)


def encode_raw(content):
    return msgspec.json.encode(msgspec.json.encode(content)).decode().strip('"').rstrip("=")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(PATHS),
    arguments=st.lists(
        st.tuples(
            st.sampled_from(NAMES) | st.text(max_size=8),
            st.sampled_from(PLAUSIBLE) | KEYS | st.text() | st.binary().map(lambda raw: raw.decode("latin-1")),
        ),
        max_size=3,
    ),
)
def test_no_parameter_makes_the_server_fail(client, path, arguments):
    response = client.get(path, query_string=arguments)
    assert response.status_code in {200, 400}, response.text
    if response.status_code == 400:
        assert problem(response, 400)["parameter"] in {name for name, _ in arguments}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=40), prefix=st.sampled_from(["/api/v1/nodes/", "/api/v1/alerts/", "/", "/docs/files/"]))
def test_no_path_makes_the_server_fail(client, raw, prefix):
    path = prefix + "".join(f"%{byte:02X}" for byte in raw)
    assert client.get(path).status_code in {200, 308, 400, 404}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.binary(max_size=40))
def test_no_query_string_makes_the_server_fail(client, query):
    text = "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x23 else f"%{byte:02X}" for byte in query)
    assert client.get(f"/api/v1/alerts?{text}").status_code in {200, 400}
