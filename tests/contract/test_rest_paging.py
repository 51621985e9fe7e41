"""Paging: whatever the page's size, a walk along the Link headers meets every row once and in order."""

import re
from urllib.parse import parse_qs, quote, unquote, urlsplit

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LISTS = [
    "/api/v1/nodes",
    "/api/v1/nodes?datacenter=us-east-1",
    "/api/v1/nodes/node-1/metrics",
    "/api/v1/nodes/node-2/metrics",
    "/api/v1/metrics/latest",
    "/api/v1/metrics/latest?node=node-2",
    "/api/v1/alerts",
    "/api/v1/alerts?status=resolved&severity=warning",
    "/api/v1/alerts/active",
    "/api/v1/gpus",
    "/api/v1/gpus?datacenter=us-west-1",
    "/api/v1/ledger?since=2026-01-31T09:00:00Z",
    "/api/v1/ledger?since=2026-01-29T00:00:00Z&node=node-1",
]


def next_page(response):
    """The URL that the Link header names, None on the last page."""
    if "Link" not in response.headers:
        return None
    match = re.fullmatch(r'<(http://localhost/[^>]+)>; rel="next"', response.headers["Link"])
    assert match is not None, response.headers["Link"]
    return match[1]


def walk(client, path, limits):
    """The pages of a walk, each as large as the next of `limits` says; the last of them stays."""
    url = f"{path}{'&' if '?' in path else '?'}limit={limits[0]}"
    limits = limits[1:]
    while url is not None:
        response = client.get(url)
        assert response.status_code == 200, response.text
        yield response.json
        url = next_page(response)
        if url is not None and limits:
            url = re.sub(r"limit=\d+", f"limit={limits[0]}", url)
            limits = limits[1:]


@pytest.mark.parametrize("path", LISTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_a_walk_with_any_limits_meets_every_row_once_and_in_order(client, path, limits):
    whole = client.get(path).json
    assert [row for page in walk(client, path, limits) for row in page] == whole


@pytest.mark.parametrize("path", LISTS)
def test_a_page_that_holds_all_that_is_left_has_no_next_one(client, path):
    whole = client.get(path).json
    separator = "&" if "?" in path else "?"
    assert "Link" not in client.get(f"{path}{separator}limit={len(whole)}").headers
    assert "Link" in client.get(f"{path}{separator}limit={len(whole) - 1}").headers


def test_every_page_but_the_last_is_full(client):
    sizes = [len(page) for page in walk(client, "/api/v1/alerts", [10])]
    assert sizes == [10, 10, 10, 10, 3]


def test_the_link_is_absolute_and_keeps_the_other_parameters(client):
    url = next_page(client.get("/api/v1/alerts?status=resolved&node=node-2&since=2026-01-30T00:00:00%2B00:00&limit=2"))
    asked = parse_qs(urlsplit(url).query)
    assert asked.pop("cursor")
    assert asked == {"status": ["resolved"], "node": ["node-2"], "since": ["2026-01-30T00:00:00+00:00"], "limit": ["2"]}


def test_the_link_of_a_node_with_an_odd_id_leads_on(client):
    first = client.get("/api/v1/nodes?limit=5")
    assert [node["node_id"] for node in client.get(next_page(first)).json] == ["rack 7/ñode?&"]


@pytest.mark.parametrize(
    "node", ["rack 7/ñode?&", "a%41", "ä€", "a>b", 'a"b', "x#y", "a;b=c", "a\\b", "[x]", "a/../b", "100%", "\U0001f525"]
)
def test_a_link_over_an_odd_path_is_a_url_of_the_same_node(writing_client, fleet_url, node):
    with psycopg.connect(fleet_url) as connection:
        connection.execute(
            """
            WITH node AS (
                INSERT INTO nodes (node_id, status, first_seen, last_heard, interval_ms)
                VALUES (%(node)s, 'healthy', '2026-01-30', '2026-01-31', 30000) ON CONFLICT DO NOTHING
            ), placed AS (
                INSERT INTO placements (node_id, gpu_index, gpu_uuid, since)
                VALUES (%(node)s, 0, 'GPU-0000', '2026-01-30') RETURNING placement_id, node_id
            )
            INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, collected_at)
            SELECT placement_id, node_id, 0, at
            FROM placed, generate_series('2026-01-30'::timestamptz, '2026-01-31', '1 hour') at
            """,
            {"node": node},
        )
    path = f"/api/v1/nodes/{quote(node, safe='')}/metrics"
    link = next_page(writing_client.get(f"{path}?limit=10"))
    # What RFC 3986 lets stand in a path, and no dots that a client would take for steps up.
    assert re.fullmatch(r"/api/v1/nodes/([A-Za-z0-9._~-]|%[0-9A-F]{2})+/metrics", urlsplit(link).path)
    assert unquote(urlsplit(link).path) == f"/api/v1/nodes/{node}/metrics"
    pages = list(walk(writing_client, path, [10]))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert {row["node_id"] for page in pages for row in page} == {node}


def test_a_link_for_a_client_that_names_no_host_is_relative(client):
    environ = {"HTTP_HOST": "a b"}
    link = client.get("/api/v1/nodes?limit=1", environ_overrides=environ).headers["Link"]
    assert link.startswith("</api/v1/nodes?limit=1&cursor=")


def test_rows_that_come_while_someone_pages_do_not_shift_the_older_ones(writing_client, fleet_url):
    whole = writing_client.get("/api/v1/alerts").json
    pages = walk(writing_client, "/api/v1/alerts", [7])
    met = next(pages)
    with psycopg.connect(fleet_url) as connection:
        connection.execute(
            "INSERT INTO alerts (rule, alert_type, node_id, severity, message, status, triggered_at) "
            "VALUES ('node_silent', 'node_silent', 'node-1', 'critical', 'silent', 'active', '2026-01-31 12:00')"
        )
    for page in pages:
        met += page
    assert met == whole
