"""The emulator over real HTTP on loopback: pages, discovery, control, and the faults of the connection itself."""

import socket

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families


def problem(answer: httpx.Response, status: int) -> str:
    """The detail of a problem+json answer."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["type"], body["status"]) == ("about:blank", status)
    return body["detail"]


def test_a_page_is_served_as_the_exporter_serves_it(serve):
    client = serve()
    answer = client.get("/nodes/node-1/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "content-encoding" not in answer.headers
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    assert len(samples) == 200
    assert all(sample.timestamp is None for sample in samples)


def test_the_health_check_says_ok(serve):
    client = serve()
    assert client.get("/nodes/node-2/health").text == "OK"
    assert client.get("/healthz").status_code == 200


def test_discovery_lists_every_node_at_the_address_the_client_came_by(serve):
    answer = serve(nodes=3).get("/sd", headers={"Host": "emulator:9400"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == [
        {
            "targets": ["emulator:9400"],
            "labels": {
                "__metrics_path__": f"/nodes/node-{number}/metrics",
                "node_id": f"node-{number}",
                "datacenter": datacenter,
                "instance": f"node-{number}:9400",
            },
        }
        for number, datacenter in ((1, "us-west-1"), (2, "us-west-1"), (3, "us-east-1"))
    ]


def test_discovery_names_a_port_even_when_the_client_came_without(serve):
    assert serve().get("/sd", headers={"Host": "gpu.example"}).json()[0]["targets"] == ["gpu.example:80"]


def test_every_discovered_target_answers(serve):
    client = serve(nodes=4)
    for group in client.get("/sd").json():
        page = httpx.get(f"http://{group['targets'][0]}{group['labels']['__metrics_path__']}")
        assert f'"{group["labels"]["node_id"]}"' in page.text


def test_the_overview_leads_to_the_rest(serve):
    assert "/nodes/node-2/metrics" in serve().get("/").text


def test_state_tells_each_gpus_reading_and_work(serve):
    client = serve()
    client.post("/control/faults", json={"kind": "overheat", "node": "node-1", "gpu": 2})
    client.post("/control/faults", json={"kind": "frozen", "node": "node-1"})
    state = client.get("/control/state").json()
    assert [node["node_id"] for node in state["nodes"]] == ["node-1", "node-2"]
    node = state["nodes"][0]
    assert (node["datacenter"], node["faults"], len(node["gpus"])) == ("us-west-1", ["frozen"], 8)
    gpu = node["gpus"][2]
    assert (gpu["gpu_index"], gpu["model"], gpu["faults"]) == (2, "NVIDIA H100 80GB HBM3", ["overheat"])
    assert gpu["gpu_uuid"].startswith("GPU-")
    assert set(gpu["workload"]) == {"namespace", "pod", "container", "mig_instance"}
    assert 20 < gpu["temperature_celsius"] < 82
    assert 60 < gpu["power_watts"] < 700
    assert 0 < gpu["gpu_utilization_percent"] <= 100
    assert [node["node_id"] for node in client.get("/control/state?node=node-2").json()["nodes"]] == ["node-2"]
    assert "node-1" in problem(client.get("/control/state?node=nope"), 404)


def test_faults_are_set_listed_and_cleared(serve):
    client = serve()
    wanted = {"kind": "xid", "node": "node-2", "gpu": 5, "code": 48}
    first = client.post("/control/faults", json=wanted)
    again = client.post("/control/faults", json=wanted)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert client.get("/control/faults").json() == [
        {
            "kind": "xid",
            "node": "node-2",
            "gpu": 5,
            "parameters": {"code": 48, "count": 1},
            "since": "2026-01-01T00:00:00.000Z",
        }
    ]
    key = {"kind": "xid", "node": "node-2", "gpu": 5}
    assert client.request("DELETE", "/control/faults", json=key).json()["cleared"] is True
    assert client.delete("/control/faults", params=key).json()["cleared"] is False
    assert client.get("/control/faults").json() == []


@pytest.mark.parametrize("digits", ["9" * 9, "9" * 20, "9" * 5000, "\u0661"])
def test_a_gpu_that_is_named_by_an_absurd_number_is_not_there(serve, digits):
    client = serve()
    key = {"kind": "xid", "node": "node-1"}
    assert "indices 0 to 7" in problem(client.delete("/control/faults", params=key | {"gpu": digits}), 404)
    other = client.delete("/control/faults", params=key | {"gpu_index": digits})
    assert problem(other, 404 if digits == "9" * 9 else 422)


def test_the_kinds_of_faults_are_described(serve):
    kinds = {one["kind"]: one["description"] for one in serve().get("/control/kinds").json()}
    assert kinds["overheat"]["scope"] == "gpu"
    assert kinds["xid"]["parameters"]["code"]["default"] == 79
    assert all(description["help"] for description in kinds.values())


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"kind": "meltdown", "node": "node-1"}, 422, "accepted: overheat, power"),
        ({"node": "node-1"}, 422, "expected `kind`"),
        ({"kind": "xid", "node": "node-9", "gpu": 0}, 404, "accepted: node-1, node-2"),
        ({"kind": "xid", "node": "node-1", "gpu": 8}, 404, "indices 0 to 7"),
        ({"kind": "xid", "node": "node-1", "gpu": "GPU-none"}, 404, "indices 0 to 7"),
        ({"kind": "xid", "node": "node-1"}, 422, "expected its index"),
        ({"kind": "frozen", "node": "node-1", "gpu": 1}, 422, "expected no GPU"),
        ({"kind": "frozen"}, 422, "expected one of `node`, `node_id`"),
        ({"kind": "xid", "node": "node-1", "node_id": "node-1", "gpu": 1}, 422, "expected one of `node`"),
        ({"kind": "xid", "node": "node-1", "gpu": 1, "gpu_index": 1}, 422, "at most one of `gpu`"),
        ({"kind": "xid", "node": 1, "gpu": 1}, 422, "$.node"),
        ({"kind": "xid", "node": "node-1", "gpu": 1, "code": "x"}, 422, "expected a whole number"),
        ({"kind": "xid", "node": "node-1", "gpu": 1, "speed": 1}, 422, "accepted: code, count"),
        ({"kind": "xid", "node": "node-1", "gpu": 1, "code": 79.9}, 422, "expected a whole number from 1 to 10000"),
        ({"kind": "power", "node": "node-1", "gpu": 1, "watts": 5000}, 422, "expected a number from 1 to 1050"),
        ([1], 422, "expected a JSON object"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_what_is_accepted(serve, body, status, said):
    client = serve()
    assert said in problem(client.post("/control/faults", json=body), status)
    assert client.get("/control/faults").json() == []


def test_a_body_that_is_no_json_is_refused(serve):
    client = serve()
    assert "JSON" in problem(client.post("/control/faults", content=b"\xff{"), 422)
    assert "JSON" in problem(client.post("/control/migrate", content=b""), 422)
    assert problem(client.post("/control/faults", content=b" " * 100_000), 413)


def test_unknown_paths_nodes_and_methods_are_problems(serve):
    client = serve()
    assert "/nope" in problem(client.get("/nope"), 404)
    assert "accepted: node-1, node-2" in problem(client.get("/nodes/node-3/metrics"), 404)
    assert "accepted" in problem(client.get("/nodes/node-3/health"), 404)
    answer = client.put("/control/faults")
    assert problem(answer, 405)
    assert set(answer.headers["allow"].split(",")) == {"DELETE", "GET", "HEAD", "POST"}


def the_first_gpu(client: httpx.Client, *, busy: bool) -> dict:
    gpus = client.get("/control/state?node=node-1").json()["nodes"][0]["gpus"]
    return next(gpu for gpu in gpus if bool(gpu["workload"]) is busy)


def test_a_migration_moves_the_job_once_for_a_key(serve):
    client = serve()
    source = the_first_gpu(client, busy=True)
    body = {"node_id": "node-1", "gpu_uuid": source["gpu_uuid"]}
    first = client.post("/control/migrate", json=body, headers={"Idempotency-Key": "alert-1"})
    again = client.post("/control/migrate", json=body, headers={"Idempotency-Key": "alert-1"})
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    moved = first.json()
    assert moved["from"] == {
        "node_id": "node-1",
        "gpu_index": source["gpu_index"],
        "gpu_uuid": source["gpu_uuid"],
    }
    assert moved["workload"] == {name: source["workload"][name] for name in ("namespace", "pod", "container")}
    gpus = client.get(f"/control/state?node={moved['to']['node_id']}").json()["nodes"][0]["gpus"]
    assert gpus[moved["to"]["gpu_index"]]["workload"]["pod"] == source["workload"]["pod"]
    page = client.get("/nodes/node-1/metrics").text
    assert f'gpu="{moved["to"]["gpu_index"]}",UUID="{moved["to"]["gpu_uuid"]}"' in page
    other = client.post(
        "/control/migrate", json={"node_id": "node-2", "gpu": 0}, headers={"Idempotency-Key": "alert-1"}
    )
    assert "another migration" in problem(other, 422)


def test_a_migration_without_a_job_conflicts(serve):
    client = serve()
    idle = the_first_gpu(client, busy=False)
    answer = client.post("/control/migrate", json={"node_id": "node-1", "gpu_index": idle["gpu_index"]})
    assert "runs no job" in problem(answer, 409)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"node_id": "node-1"}, 422, "expected one of `gpu`"),
        ({"gpu": 1}, 422, "expected one of `node`"),
        ({"node_id": "node-7", "gpu": 1}, 404, "accepted: node-1, node-2"),
        ({"node_id": "node-1", "gpu": 1, "when": "now"}, 422, "when"),
        ({"node_id": "node-1", "gpu": 1, "target": {"node_id": "node-2"}}, 422, "expected one of `gpu`"),
    ],
)
def test_a_migration_that_cannot_be_is_refused(serve, body, status, said):
    assert said in problem(serve().post("/control/migrate", json=body), status)


def test_an_empty_idempotency_key_is_refused(serve):
    answer = serve().post("/control/migrate", json={"node_id": "node-1", "gpu": 1}, headers={"Idempotency-Key": ""})
    assert "Idempotency-Key" in problem(answer, 422)


def set_node_fault(client: httpx.Client, kind: str) -> None:
    assert client.post("/control/faults", json={"kind": kind, "node": "node-1"}).status_code == 201


def test_http_500_is_answered_with_status_500_while_health_is_ok(serve):
    client = serve()
    set_node_fault(client, "http_500")
    assert client.get("/nodes/node-1/metrics").status_code == 500
    assert client.get("/nodes/node-1/health").text == "OK"
    assert client.get("/nodes/node-2/metrics").status_code == 200


def test_empty_is_answered_with_status_200_and_no_body(serve):
    client = serve()
    set_node_fault(client, "empty")
    answer = client.get("/nodes/node-1/metrics")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_cut_short_ends_the_connection_in_the_middle_of_the_page(serve):
    client = serve()
    set_node_fault(client, "cut_short")
    with client.stream("GET", "/nodes/node-1/metrics") as answer:
        assert int(answer.headers["content-length"]) > 50_000
        received = []
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(answer.iter_bytes())
    assert sum(map(len, received)) == int(answer.headers["content-length"]) // 2


def test_down_drops_the_connection_for_page_and_health(serve):
    client = serve()
    set_node_fault(client, "down")
    for path in ("metrics", "health"):
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.get(f"/nodes/node-1/{path}")
    assert client.get("/nodes/node-2/health").text == "OK"


def test_hang_answers_nothing_and_costs_the_other_nodes_nothing(serve):
    client = serve()
    set_node_fault(client, "hang")
    with pytest.raises(httpx.ReadTimeout):
        client.get("/nodes/node-1/metrics", timeout=0.3)
    assert client.get("/nodes/node-2/metrics").status_code == 200


def test_a_client_that_goes_away_in_the_middle_harms_nobody(serve):
    client = serve()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"GET /nodes/node-1/metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.get("/nodes/node-1/metrics").status_code == 200


def test_pages_follow_the_clock(serve, clock, rows_of):
    client = serve()

    def energy() -> int:
        rows = rows_of(client.get("/nodes/node-1/metrics").content)
        return next(int(row.value) for row in rows if row.name == "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION")

    first = energy()
    assert energy() == first
    clock.advance(30)
    assert energy() > first
