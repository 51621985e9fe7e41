"""The app without a database: what it is made of, and what it says of itself."""

import subprocess
import sys

import msgspec
import pytest
from flask import Flask
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import REGISTRY
from pydantic import SecretStr

from api import instruments, queries
from api.app import create_app
from api.problems import BadParameter
from api.settings import ApiSettings
from api.shapes import Alert, MetricRow, shape
from gpu_telemetry.fields import FIELDS
from gpu_telemetry.settings import DatabaseSettings, SettingsError


@pytest.fixture
def app() -> Flask:
    return create_app(ApiSettings(), database=DatabaseSettings(url=SecretStr("postgresql://127.0.0.1:1/nowhere")))


def test_making_an_app_asks_no_database(app):
    assert app.test_client().get("/healthz").json == {"status": "ok"}


def test_the_document_is_valid_without_a_database(app):
    OpenAPIV31SpecValidator(app.test_client().get("/openapi.json").json).validate()


def test_every_call_has_a_summary_a_description_and_a_name_of_its_own(app):
    paths = app.test_client().get("/openapi.json").json["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_the_reference_takes_its_files_from_this_server(app):
    with app.test_client() as client:
        page = client.get("/docs").text
        assert "http" not in page
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            assert f'"/docs/files/{name}"' in page
            with client.get(f"/docs/files/{name}") as file:
                assert file.status_code == 200
                assert "max-age=86400" in file.headers["Cache-Control"]


def test_no_file_outside_the_reference_is_served(app):
    for path in ("../__init__.py", "..%2F__init__.py", "/etc/passwd", "%2e%2e/__init__.py"):
        assert app.test_client().get(f"/docs/files/{path}").status_code == 404


def test_both_policies_let_no_script_of_others_in(app):
    client = app.test_client()
    assert "script-src" not in client.get("/").headers["Content-Security-Policy"]
    assert "script-src 'self';" in client.get("/docs").headers["Content-Security-Policy"]


def test_requests_are_counted_by_route_method_and_status_never_by_path(app):
    def count(**labels):
        return REGISTRY.get_sample_value("gpu_telemetry_api_requests_total", labels) or 0

    labels = {"route": "/api/v1/alerts/<alert_id>", "method": "GET", "status": "400"}
    lost = {"route": "unmatched", "method": "other", "status": "404"}
    before, lost_before = count(**labels), count(**lost)
    for text in ("a", "b", "c"):
        app.test_client().get(f"/api/v1/alerts/{text}")
    app.test_client().open("/nope", method="BREW")
    assert count(**labels) == before + 3
    assert count(**lost) == lost_before + 1
    assert '"/api/v1/alerts/a"' not in app.test_client().get("/metrics").text


def test_the_connections_of_the_pool_are_shown(app):
    text = app.test_client().get("/metrics").text
    for name in ('connections{state="open"}', 'connections{state="idle"}', "waiting_requests"):
        assert f"\ngpu_telemetry_api_database_{name} " in text


def test_one_process_alone_gathers_nothing_from_files(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    assert instruments.registry() is REGISTRY


def test_a_log_line_stays_one_line_whatever_the_path(app, caplog):
    caplog.set_level("DEBUG")
    app.test_client().get("/api/v1/nodes/a%0Ab%1B?x=%0D%0Aforged")
    (record,) = [record for record in caplog.records if record.name == "api.requests"]
    assert record.getMessage().isprintable()


def test_queries_are_read_by_their_names():
    assert queries.parse("-- About.\n\n-- name: one\n-- Why.\nSELECT 1\n\n-- name: two\nSELECT 2\n") == {
        "one": b"-- Why.\nSELECT 1",
        "two": b"SELECT 2",
    }


def test_a_row_becomes_its_shape_and_what_the_shape_lacks_is_left_out():
    row = dict.fromkeys(Alert.__struct_fields__) | {"id": 7, "more": 1}
    shaped = msgspec.to_builtins(shape(Alert, row))
    assert shaped["id"] == 7
    assert "more" not in shaped


def test_a_metric_row_has_every_field_of_the_table():
    assert {field.name for field in FIELDS} < set(MetricRow.__struct_fields__)


def test_a_problem_repeats_only_the_start_of_a_long_text_and_any_character_of_it():
    problem = BadParameter("node", "a name", "\ud800" + "x" * 1000)
    assert problem.members["got"] == "\\ud800" + "x" * 199 + "…"
    assert msgspec.json.encode(problem.members)


def test_pool_sizes_that_contradict_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("API_POOL_MIN_SIZE", "9")
    with pytest.raises(SettingsError, match="API_POOL_MIN_SIZE may not be larger than API_POOL_MAX_SIZE"):
        ApiSettings.load()


def test_every_setting_is_described():
    assert [name for name, field in ApiSettings.model_fields.items() if not field.description] == []


def test_it_listens_on_loopback_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("API_LISTEN", raising=False)
    assert ApiSettings.load().listen == "127.0.0.1:8080"


def test_the_overview_of_commands_imports_neither_the_api_nor_flask():
    script = (
        "import sys, gpu_telemetry.cli; sys.exit(any(name in sys.modules for name in ('api', 'flask', 'gunicorn')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=20).returncode == 0


def test_the_server_sets_the_folder_of_the_metrics_before_prometheus_client_is_imported():
    script = "import sys, api.server; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=20).returncode == 0
