"""The API asked whatever its OpenAPI document allows, and what it does not: every answer is one the document promises.

schemathesis makes the requests from the document and judges the answers: status, media type, headers, schema, and that
what the document allows is taken and what it forbids is refused.
"""

import contextlib
from urllib.parse import quote
from zlib import crc32

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from pydantic import SecretStr
from schemathesis import GenerationMode

from api.app import create_app
from api.settings import ApiSettings
from gpu_telemetry.settings import DatabaseSettings

# The warning is about schemathesis' own strategies; errors it must not become.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module inside strategies:hypothesis.errors.HypothesisDeprecationWarning"
)

# Of one operation in one round.
REQUESTS = 10
ONE_ROUND = 0.0


def operations():
    """The operations of the document, which takes no database to read."""
    nowhere = DatabaseSettings(url=SecretStr("postgresql://127.0.0.1:1/none"))
    document = schemathesis.openapi.from_wsgi("/openapi.json", create_app(ApiSettings(), database=nowhere))
    return [found.ok().label for found in document.get_all_operations()]


OPERATIONS = [label for label in operations() if "/api/" in label]


@pytest.fixture(params=OPERATIONS)
def label(request):
    return request.param


@pytest.fixture
def asked_client(request, label):
    """A client of the fleet that all tests read, or of one that an operation may write to."""
    return request.getfixturevalue("client" if label.startswith("GET ") else "writing_client")


@pytest.fixture
def operation(asked_client, label):
    return schemathesis.openapi.from_wsgi("/openapi.json", asked_client.application).find_operation_by_label(label)


@pytest.fixture
def at_home(asked_client):
    """`at_home(case)`: the request with about every second name one that is there, and a cursor that the API gave."""
    known = {
        "node_id": [quote(node["node_id"], safe="") for node in asked_client.get("/api/v1/nodes").json],
        "gpu_uuid": [row["gpu_uuid"] for row in asked_client.get("/api/v1/metrics/latest").json],
        "alert_id": [alert["id"] for alert in asked_client.get("/api/v1/alerts").json],
    }

    def make(case):
        for name, values in known.items():
            if name in (case.path_parameters or {}):
                # Of the request alone, so that it is the same when hypothesis makes it again.
                drawn = crc32(repr((case.path_parameters[name], case.query)).encode())
                if drawn % 2:
                    case.path_parameters[name] = values[drawn // 2 % len(values)]
        if "cursor" in (case.query or {}):
            # What a cursor is the document cannot say: it only says where one comes from.
            first = asked_client.get(case.formatted_path, query_string={"limit": 1})
            del case.query["cursor"]
            if "Link" in first.headers:
                case.query["cursor"] = first.headers["Link"].partition("cursor=")[2].partition(">")[0].partition("&")[0]
        return case

    return make


def asked(operation, mode, source, check):
    """Ask an operation as often as a round takes."""

    @seed(source.getrandbits(32))
    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case):
        check(case)

    # Where a path is all that a request holds, schemathesis may find none that the document forbids.
    with contextlib.suppress(Unsatisfiable):
        ask()


def test_there_is_something_to_ask():
    assert {"GET /api/v1/nodes", "POST /api/v1/alerts/{alert_id}/resolve"} <= set(OPERATIONS)


def test_what_the_document_allows_is_answered_as_it_says(operation, at_home, fuzz_rounds):
    statuses = set()
    for source in fuzz_rounds(ONE_ROUND):
        asked(
            operation,
            GenerationMode.POSITIVE,
            source,
            lambda case: statuses.add(at_home(case).call_and_validate().status_code),
        )
    assert 200 in statuses


def test_what_the_document_does_not_allow_is_refused_as_it_says(operation, fuzz_rounds):
    statuses = set()
    for source in fuzz_rounds(ONE_ROUND):
        asked(
            operation,
            GenerationMode.NEGATIVE,
            source,
            lambda case: statuses.add(case.call_and_validate().status_code),
        )
    # Now and then a spoilt request is a good one after all: schemathesis then asks for no refusal.
    assert not statuses or any(400 <= status < 500 for status in statuses)
    assert max(statuses, default=0) < 500
