"""The committed dashboards, as JSON, and a stand-in for a Grafana."""

import json
import threading
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import pytest

DASHBOARDS = Path(__file__).parents[3] / "grafana" / "dashboards"


@pytest.fixture(scope="session")
def dashboards():
    """Every committed dashboard by its file's name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


class StandIn:
    """A Grafana as its published HTTP API describes it, with what it was given kept to look at.

    `refuse` maps a method and path's beginning to a status, or to "hang"; it is asked before anything else.
    """

    TOKEN = "glsa_right"

    def __init__(self, json_server):
        self.folders, self.datasources, self.dashboards, self.annotations = {}, {}, {}, []
        self.plugins = ["prometheus", "grafana-postgresql-datasource"]
        self.refuse = {}
        self.asked = []
        self.released = threading.Event()
        self.url = json_server(self.answer).url

    def answer(self, method, path, headers, body):
        self.asked.append((method, path))
        told = next((told for start, told in self.refuse.items() if f"{method} {path}".startswith(start)), None)
        if told == "hang":
            self.released.wait(20)
            return 504, {}
        if told is not None:
            return (200, told) if isinstance(told, bytes) else (told, {"message": "as told"})
        if headers.get("Authorization") != f"Bearer {self.TOKEN}":
            return 401, {"message": "Invalid API key"}
        path, _, query = path.partition("?")
        *_, noun, last = path.split("/")
        return self._known(method, path, noun, last, query, body)

    def _known(self, method, path, noun, last, query, body):  # noqa: PLR0911 - an answer for each call
        match method, path:
            case "POST", "/api/folders":
                self.folders[body["uid"]] = body["title"]
                return 200, {"uid": body["uid"]}
            case "POST", "/api/dashboards/db":
                kept = body["dashboard"] | {"id": 7, "version": 1}
                self.dashboards[kept["uid"]] = {"dashboard": kept, "meta": {"folderUid": body["folderUid"]}}
                return 200, {"status": "success"}
            case "GET", "/api/plugins":
                return 200, [{"id": name} for name in self.plugins]
            case "POST", "/api/annotations":
                self.annotations.append(body | {"id": len(self.annotations) + 1})
                return 200, {"message": "Annotation added", "id": len(self.annotations)}
            case "GET", "/api/annotations":
                tags = {value for key, value in parse_qsl(query) if key == "tags"}
                return 200, [each for each in self.annotations if tags <= set(each["tags"])]
        if path.startswith("/api/datasources"):
            return self._datasource(method, noun, last, body)
        found = {"folders": self.folders, "uid": self.dashboards}[noun].get(last)
        if found is None:
            return 404, {"message": "not found"}
        return 200, found if isinstance(found, dict) else {"title": found}

    def _datasource(self, method, noun, last, body):
        by_name = {kept["name"]: uid for uid, kept in self.datasources.items()}
        if method == "GET":
            kept = self.datasources.get(by_name.get(unquote(last)) if noun == "name" else last)
            if kept is None:
                return 404, {"message": "Data source not found"}
            return 200, {key: value for key, value in kept.items() if key != "secureJsonData"} | {"id": 3}
        if method == "POST" and body["name"] in by_name:
            return 409, {"message": "data source with the same name already exists"}
        kept = {"isDefault": False} | body
        if kept["isDefault"]:
            # There is one at most.
            for other in self.datasources.values():
                other["isDefault"] = False
        self.datasources[kept["uid"]] = kept
        return 200, {"datasource": kept}


@pytest.fixture
def stand_in(json_server):
    """A Grafana's API on loopback."""
    stand_in = StandIn(json_server)
    yield stand_in
    stand_in.released.set()
