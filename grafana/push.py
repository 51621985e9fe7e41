"""Our folder, datasources and dashboards put into a Grafana that is there already, or compared with what it has."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import yaml
from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException, GrafanaTimeoutError, TokenAuth

from grafana.settings import GrafanaSettings

HERE: Final = Path(__file__).parent
FOLDER_UID: Final = "gpu-telemetry"
FOLDER_TITLE: Final = "GPU telemetry"
_NOT_FOUND: Final = 404
# What Grafana keeps of its own with a dashboard or a datasource.
_ITS_OWN: Final = frozenset(("id", "version", "iteration"))
# What is meant for a Grafana that is ours: one that has the datasources from files.
_OF_FILES: Final = frozenset(("editable", "isDefault"))
# Before 10.3 the PostgreSQL datasource goes by this name.
_NEW_NAME, _OLD_NAME = "grafana-postgresql-datasource", "postgres"

_T = TypeVar("_T")


class PushFailed(RuntimeError):
    """Grafana could not be asked, or refused: what was being done, and what it said."""


class Finding(NamedTuple):
    """What was found of one thing: `missing`, `differs` (in what), `same`; or what was done: `created`, `updated`."""

    what: str
    state: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.state}" + (f" ({self.detail})" if self.detail else "")


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards by uid."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((HERE / "dashboards").glob("*.json"))]
    return {dashboard["uid"]: dashboard for dashboard in read}


def datasources(settings: GrafanaSettings) -> list[dict[str, Any]]:
    """The provisioned datasources, filled from the settings; a password that is not given is left out."""
    given = {
        name.upper(): value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for name, value in settings
        if value is not None
    }
    text = (HERE / "provisioning" / "datasources" / "datasources.yml").read_text(encoding="utf-8")

    def filled(value: Any) -> Any:  # noqa: ANN401 - YAML
        if isinstance(value, dict):
            return {key: inner for key, each in value.items() if (inner := filled(each)) is not None}
        found = re.fullmatch(r"\$\{?GRAFANA_(\w+?)\}?", value) if isinstance(value, str) else None
        return given.get(found[1]) if found else value

    return [filled(source) for source in yaml.safe_load(text)["datasources"]]


class Target:
    """A Grafana."""

    def __init__(self, settings: GrafanaSettings) -> None:
        if settings.token is None:
            raise PushFailed("GRAFANA_TOKEN: expected a token of a service account there")
        self._settings = settings
        credential = TokenAuth(settings.token.get_secret_value())  # type: ignore[no-untyped-call]
        self._api = GrafanaApi.from_url(settings.url, credential=credential, timeout=settings.timeout_seconds)

    def push(self) -> Iterator[Finding]:
        """Create or update what is missing or differs; gives what was done, thing by thing.

        Raises:
            PushFailed: at the first thing that fails; what was given before it is done.
        """
        folder = self._folder()
        if folder.state == "missing":
            self._ask("create the folder", lambda: self._api.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID))
        yield _done(folder)
        for source in datasources(self._settings):
            yield self._push_datasource(source)
        for dashboard in dashboards().values():
            yield self._push_dashboard(dashboard)

    def check(self) -> Iterator[Finding]:
        """Compare, and change nothing.

        Raises:
            PushFailed: Grafana cannot be asked.
        """
        yield self._folder()
        for source in datasources(self._settings):
            yield self._datasource(source)[0]
        for dashboard in dashboards().values():
            yield self._dashboard(dashboard)

    def close(self) -> None:
        """Close its connections."""
        self._api.client.s.close()

    def _folder(self) -> Finding:
        what = f"folder {FOLDER_UID}"
        found = self._find(what, lambda: self._api.folder.get_folder(FOLDER_UID))
        return Finding(what, "missing" if found is None else "same")

    def _datasource(self, wanted: dict[str, Any]) -> tuple[Finding, dict[str, Any]]:
        what = f"datasource {wanted['uid']}"
        found = self._find(what, lambda: self._api.datasource.get_datasource_by_uid(wanted["uid"]))
        wanted = {key: value for key, value in wanted.items() if key not in _OF_FILES}
        if wanted["type"] == _NEW_NAME and self._knows_only_the_old_name():
            wanted["type"] = _OLD_NAME
        if found is None:
            return Finding(what, "missing", self._bearer_of(wanted["name"])), wanted
        # An update without it would say that ours is not the default, which somebody there may have made it.
        wanted["isDefault"] = bool(found.get("isDefault"))
        visible = {key: value for key, value in wanted.items() if key != "secureJsonData"}
        there = found | {"jsonData": {key: found.get("jsonData", {}).get(key) for key in visible["jsonData"]}}
        return _compared(what, visible, there), wanted

    def _bearer_of(self, name: str) -> str:
        """Who has the name that only one can have, in words, or nothing."""
        named = self._find(f"datasource {name}", lambda: self._api.datasource.get_datasource_by_name(name))
        return "" if named is None else f"its name, {name}, is that of the datasource with uid {named['uid']}"

    def _push_datasource(self, source: dict[str, Any]) -> Finding:
        finding, wanted = self._datasource(source)
        if finding.state == "missing" and finding.detail:
            raise PushFailed(f"{self._settings.url}: could not create {finding.what}: {finding.detail}")
        if finding.state == "missing":
            self._ask(f"create {finding.what}", lambda: self._api.datasource.create_datasource(wanted))
        elif finding.state == "differs" or wanted.get("secureJsonData"):
            # A password cannot be read back, so one that is given is set.
            uid = wanted["uid"]
            self._ask(f"update {finding.what}", lambda: self._api.datasource.update_datasource_by_uid(uid, wanted))
            finding = finding._replace(state="differs")
        return _done(finding)

    def _dashboard(self, wanted: dict[str, Any]) -> Finding:
        what = f"dashboard {wanted['uid']}"
        found = self._find(what, lambda: self._api.dashboard.get_dashboard(wanted["uid"]))
        if found is None:
            return Finding(what, "missing")
        finding = _compared(what, wanted, found["dashboard"])
        if finding.state == "same" and found.get("meta", {}).get("folderUid") != FOLDER_UID:
            return Finding(what, "differs", "folder")
        return finding

    def _push_dashboard(self, wanted: dict[str, Any]) -> Finding:
        finding = self._dashboard(wanted)
        if finding.state != "same":
            body = {"dashboard": wanted | {"id": None}, "folderUid": FOLDER_UID, "overwrite": True}
            self._ask(f"save {finding.what}", lambda: self._api.dashboard.update_dashboard(body))
        return _done(finding)

    def _knows_only_the_old_name(self) -> bool:
        plugins = self._ask("list the datasource plugins", lambda: self._api.client.GET("/plugins?type=datasource"))
        known = {plugin["id"] for plugin in plugins}
        return _OLD_NAME in known and _NEW_NAME not in known

    def _find(self, what: str, ask: Callable[[], _T]) -> _T | None:
        try:
            return self._ask(f"read {what}", ask)
        except PushFailed as failure:
            cause = failure.__cause__
            if isinstance(cause, GrafanaClientError) and cause.status_code == _NOT_FOUND:
                return None
            raise

    def _ask(self, doing: str, ask: Callable[[], _T]) -> _T:
        where = f"{self._settings.url}: could not {doing}"
        try:
            return ask()
        except GrafanaTimeoutError as error:
            raise PushFailed(f"{where}: no answer within {self._settings.timeout_seconds:g} s") from error
        except GrafanaException as error:
            raise PushFailed(f"{where}: {error.message}"[:500]) from error
        except ValueError as error:
            raise PushFailed(f"{where}: the answer is no JSON, so it is no Grafana's") from error
        except OSError as error:
            # The HTTP library's own, with no word of the token; what it could not read is both kinds.
            raise PushFailed(f"{where}: {type(error).__name__}") from error


def _compared(what: str, wanted: dict[str, Any], there: dict[str, Any]) -> Finding:
    differing = [key for key in sorted(set(wanted) - _ITS_OWN) if wanted[key] != there.get(key)]
    return Finding(what, "differs", ", ".join(differing)) if differing else Finding(what, "same")


def _done(finding: Finding) -> Finding:
    return finding._replace(state={"missing": "created", "differs": "updated"}.get(finding.state, "same"))
