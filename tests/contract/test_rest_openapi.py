"""The OpenAPI document is valid, complete, and what the answers really are."""

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from gpu_telemetry.fields import FIELDS


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").json


def schema_of_answer(document, path, method="get", status="200"):
    response = document["paths"][path][method]["responses"][status]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    (content,) = response["content"].values()
    return {"components": document["components"]} | content["schema"]


def validate(document, schema, answer):
    """Validate with every object closed, so that a key which the document does not have is an error too."""
    closed = {
        name: {**one, "additionalProperties": False} if "properties" in one else one
        for name, one in document["components"]["schemas"].items()
    }
    jsonschema.Draft202012Validator(
        schema | {"components": {"schemas": closed}},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    ).validate(answer)


def test_the_document_is_valid_openapi_3_1(document):
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_every_route_of_the_api_stands_in_the_document(client, document):
    routes = {
        rule.rule.replace("<path:", "{").replace("<", "{").replace(">", "}")
        for rule in client.application.url_map.iter_rules()
        if rule.rule.startswith("/api/")
    }
    assert routes == {path for path in document["paths"] if path.startswith("/api/")}


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("/api/v1/nodes", "/api/v1/nodes"),
        ("/api/v1/nodes/{node_id}", "/api/v1/nodes/node-1"),
        ("/api/v1/nodes/{node_id}", "/api/v1/nodes/rack%207%2F%C3%B1ode%3F%26"),
        ("/api/v1/nodes/{node_id}/metrics", "/api/v1/nodes/node-1/metrics"),
        ("/api/v1/metrics/latest", "/api/v1/metrics/latest"),
        ("/api/v1/alerts", "/api/v1/alerts"),
        ("/api/v1/alerts/active", "/api/v1/alerts/active"),
        ("/api/v1/alerts/{alert_id}", "/api/v1/alerts/41"),
        ("/api/v1/gpus", "/api/v1/gpus"),
        ("/api/v1/gpus/{gpu_uuid}", "/api/v1/gpus/GPU-0003"),
        ("/api/v1/fleet/summary", "/api/v1/fleet/summary"),
        ("/api/v1/ledger", "/api/v1/ledger?since=2026-01-29T00:00:00Z"),
        ("/api/v1/ledger/totals", "/api/v1/ledger/totals"),
        ("/healthz", "/healthz"),
        ("/readyz", "/readyz"),
    ],
)
def test_answers_are_what_the_document_says(client, document, path, call):
    answer = client.get(call).json
    assert answer, "an empty answer would prove nothing"
    validate(document, schema_of_answer(document, path), answer)


def test_the_resolved_alert_is_what_the_document_says(writing_client, document):
    path = "/api/v1/alerts/{alert_id}/resolve"
    answer = writing_client.post("/api/v1/alerts/41/resolve", json={"actor": "jane"}).json
    validate(document, schema_of_answer(document, path, "post"), answer)


@pytest.mark.parametrize(
    ("path", "call", "status"),
    [
        ("/api/v1/nodes", "/api/v1/nodes?limit=x", "400"),
        ("/api/v1/nodes/{node_id}", "/api/v1/nodes/nowhere", "404"),
        ("/api/v1/alerts/{alert_id}", "/api/v1/alerts/4711", "404"),
    ],
)
def test_problems_are_what_the_document_says(client, document, path, call, status):
    validate(document, schema_of_answer(document, path, status=status), client.get(call).json)


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"status": "ill"}, {"last_seen": "yesterday"}, {"active_alerts": None}]
)
def test_a_wrong_answer_would_be_noticed(client, document, change):
    node = client.get("/api/v1/nodes?limit=1").json[0]
    with pytest.raises(jsonschema.ValidationError):
        validate(document, schema_of_answer(document, "/api/v1/nodes"), [node | change])


def test_metric_rows_are_described_from_the_field_table_with_units(document):
    row = document["components"]["schemas"]["MetricRow"]
    for field in FIELDS:
        described = row["properties"][field.name]
        assert f"[{field.unit}]" in described["description"]
        assert described["x-unit"] == field.unit
        assert {"type": "null"} in described["anyOf"]
    assert set(row["required"]) == set(row["properties"])


def test_every_parameter_that_the_document_names_is_taken(client, document):
    value = {
        "limit": "1",
        "status": None,
        "since": "2026-01-31T12:00:00Z",
        "removed": "false",
        "node": "x",
        "datacenter": "x",
        "type": "x",
        "severity": "info",
        "model": "x",
        "until": "2026-01-31T12:00:00Z",
    }
    for path, methods in document["paths"].items():
        for parameter in methods.get("get", {}).get("parameters", []):
            if parameter["in"] != "query" or parameter["name"] == "cursor":
                continue
            text = value[parameter["name"]] or parameter["schema"]["enum"][0]
            call = path.format(node_id="node-1", alert_id="41", gpu_uuid="GPU-0000")
            response = client.get(call, query_string={parameter["name"]: text})
            assert response.status_code == 200, (path, parameter["name"], response.text)
