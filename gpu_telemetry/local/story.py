"""The demo's story, told from what the API says: a GPU overheats, an alert rises, its job moves, it cools, it ends."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from gpu_telemetry.clock import rfc3339
from gpu_telemetry.local.supervisor import Event, Level, Report

NODE: Final = "node-2"
FAULT: Final = "overheat"
_TIMEOUT_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.5
# For people to look at the quiet fleet first.
_QUIET_SECONDS: Final = 20.0
_FLEET_DEADLINE_SECONDS: Final = 60.0
_BUSY_DEADLINE_SECONDS: Final = 60.0
_STORY_DEADLINE_SECONDS: Final = 180.0
_COOLING_LINE_EVERY_SECONDS: Final = 5.0
_BUSY_PERCENT: Final = 50.0
_LIMIT: Final = 10_000  # the API's most; a fleet that one machine emulates is smaller

# What must have happened, in the order in which it is told.
STEPS: Final = (
    "the fleet reports",
    "a busy GPU overheats",
    "a warning",
    "a critical alert",
    "the workload migrated",
    "the GPU cooled",
    "the alert resolved",
)


class Interrupted(Exception):
    """The stack is ending."""


class Story:
    """One telling of the story.

    Args:
        api: the API's address.
        emulator: the emulated fleet's address.
        report: told of every line.
        stopping: set when the stack ends.
        quiet_seconds: how long the healthy fleet is shown first.
    """

    def __init__(
        self,
        api: str,
        emulator: str,
        report: Report,
        stopping: threading.Event,
        *,
        quiet_seconds: float = _QUIET_SECONDS,
    ) -> None:
        self._api = f"{api}/api/v1"
        self._emulator = emulator
        self._report = report
        self._stopping = stopping
        self._quiet_seconds = quiet_seconds
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False)
        self._told: dict[str, float] = {}
        self._gpu: dict[str, Any] = {}
        self._peak = 0.0
        self._cooling_line = 0.0
        self._since = rfc3339(datetime.now(UTC))
        self.finished = threading.Event()

    @property
    def missing(self) -> list[str]:
        """The steps that did not happen (yet)."""
        return [step for step in STEPS if step not in self._told]

    def tell(self) -> None:
        """Make the story happen and report each step as it is seen; `missing` is empty if all went well."""
        try:
            self._wait(self._fleet_reports, _FLEET_DEADLINE_SECONDS)
            self._pause(self._quiet_seconds)
            self._wait(self._overheats, _BUSY_DEADLINE_SECONDS)
            try:
                self._wait(self._alert_has_ended, _STORY_DEADLINE_SECONDS)
            finally:
                self._clear()
        except Interrupted:
            return
        except TimeoutError as error:
            self._say(Level.BAD, f"The story stopped: not seen within {error} s: {', '.join(self.missing)}")
        finally:
            self.finished.set()
            self._client.close()

    def _fleet_reports(self) -> bool:
        """Whether every GPU that is emulated was stored since the story began, not only in an earlier run."""
        nodes = self._get(f"{self._emulator}/control/state")["nodes"]
        wanted = {gpu["gpu_uuid"] for node in nodes for gpu in node["gpus"]}
        latest = self._get(f"{self._api}/metrics/latest?limit={_LIMIT}")
        if not wanted <= {gpu["gpu_uuid"] for gpu in latest if gpu["collected_at"] >= self._since}:
            return False
        text = f"{len(wanted)} GPUs of {len(nodes)} nodes report; all is quiet"
        self._happened("the fleet reports", Level.GOOD, text)
        return True

    def _overheats(self) -> bool:
        """Let the cooling of a busy GPU fail, once there is one."""
        state = self._get(f"{self._emulator}/control/state?node={NODE}")
        gpus = state["nodes"][0]["gpus"]
        busy = [gpu for gpu in gpus if gpu["workload"] and gpu["gpu_utilization_percent"] >= _BUSY_PERCENT]
        if not busy:
            return False
        self._gpu = max(busy, key=lambda gpu: float(gpu["gpu_utilization_percent"]))
        self._since = rfc3339(datetime.now(UTC))
        body = {"kind": FAULT, "node": NODE, "gpu": self._gpu["gpu_index"]}
        self._client.post(f"{self._emulator}/control/faults", json=body).raise_for_status()
        job, load = _workload(self._gpu["workload"]), self._gpu["gpu_utilization_percent"]
        self._happened(
            "a busy GPU overheats",
            Level.NOTICE,
            f"Fault {FAULT} put in: the cooling of {self._where} fails. It runs {job} at {load:.0f} % "
            f"and {self._gpu['temperature_celsius']:.0f} °C",
        )
        return True

    def _alert_has_ended(self) -> bool:
        alert = self._alert()
        if alert is None:
            return False
        for step in alert["transitions"]:
            if step["transition"] in {"fired", "raised"}:
                self._rose(alert["id"], step)
        for action in alert["actions"]:
            if action["action_type"] == "migrate_workload":
                self._acted(action)
        self._cools()
        if alert["status"] != "resolved":
            return False
        lasted = _seconds_between(alert["triggered_at"], alert["resolved_at"])
        text = f"Alert {alert['id']} resolved ({alert['resolved_reason']}) after {lasted:.0f} s"
        self._happened("the alert resolved", Level.GOOD, text)
        # Its action's outcome is written by another process than its end, and may be seen a moment later.
        return not self.missing

    def _alert(self) -> dict[str, Any] | None:
        """The alert of our GPU with its transitions and actions, if it has fired."""
        query = {"node": NODE, "since": self._since, "limit": "100"}
        alerts = self._get(f"{self._api}/alerts?{httpx.QueryParams(query)}")
        for alert in alerts:
            if alert["alert_type"] == "high_temperature" and alert["gpu_index"] == self._gpu["gpu_index"]:
                detail: dict[str, Any] = self._get(f"{self._api}/alerts/{alert['id']}")
                return detail
        return None

    def _rose(self, alert: int, step: dict[str, Any]) -> None:
        severity = step["severity"]
        text = f"Alert {alert} [{severity}] on {self._where}: {step['message']}"
        if severity == "critical":
            self._happened("a critical alert", Level.BAD, text)
        else:
            self._happened("a warning", Level.NOTICE, text)

    def _acted(self, action: dict[str, Any]) -> None:
        status, details = action["status"], action["action_details"]
        if status == "succeeded":
            self._happened("the workload migrated", Level.GOOD, f"Workload migrated: {_move(details)}")
        elif status in {"failed", "skipped", "unknown"}:
            self._happened("the action ended otherwise", Level.BAD, f"Migration {status}: {action['reason']}")
        else:
            self._happened("the action is decided", Level.NOTICE, f"Action migrate_workload is {status}")

    def _cools(self) -> None:
        for gpu in self._get(f"{self._api}/metrics/latest?node={NODE}"):
            if gpu["gpu_uuid"] != self._gpu["gpu_uuid"] or gpu["temperature_celsius"] is None:
                continue
            now = gpu["temperature_celsius"]
            self._peak = max(self._peak, now)
            if "a critical alert" not in self._told or self._peak - now < 1:
                return
            text = f"{self._where} cools: {now:.1f} °C, its peak was {self._peak:.1f} °C"
            if self._happened("the GPU cooled", Level.GOOD, text):
                self._cooling_line = time.monotonic()
            elif "the alert resolved" not in self._told and self._due_for_a_cooling_line():
                self._say(Level.PROGRESS, f"{self._where}: {now:.1f} °C")

    def _due_for_a_cooling_line(self) -> bool:
        now = time.monotonic()
        if now - self._cooling_line < _COOLING_LINE_EVERY_SECONDS:
            return False
        self._cooling_line = now
        return True

    def _clear(self) -> None:
        query = {"kind": FAULT, "node": NODE, "gpu": str(self._gpu["gpu_index"])}
        try:
            self._client.delete(f"{self._emulator}/control/faults", params=query).raise_for_status()
        except httpx.HTTPError as error:
            if not self._stopping.is_set():
                self._say(Level.BAD, f"The fault {FAULT} on {self._where} could not be taken out: {error}")
        else:
            self._say(Level.PROGRESS, f"Fault {FAULT} taken out: {self._where} has its cooling back")

    @property
    def _where(self) -> str:
        return f"{NODE} GPU {self._gpu['gpu_index']}"

    def _get(self, url: str) -> Any:  # noqa: ANN401 - JSON of the API, whose shapes the API's own tests hold
        return self._client.get(url).raise_for_status().json()

    def _happened(self, step: str, level: Level, text: str) -> bool:
        """Tell a step once; whether it was new."""
        if step in self._told:
            return False
        self._told[step] = time.monotonic()
        self._say(level, text)
        return True

    def _say(self, level: Level, text: str) -> None:
        self._report(Event(level, text))

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Interrupted

    def _wait(self, condition: Callable[[], bool], deadline_seconds: float) -> None:
        """Ask until the condition holds; a service that is just being restarted is asked again."""
        deadline = time.monotonic() + deadline_seconds
        while True:
            try:
                if condition():
                    return
            except httpx.HTTPError:
                if self._stopping.is_set():
                    raise Interrupted from None
            if time.monotonic() > deadline:
                raise TimeoutError(f"{deadline_seconds:g}")
            self._pause(_POLL_SECONDS)


def _workload(workload: dict[str, Any]) -> str:
    return "/".join(str(workload[key]) for key in ("namespace", "pod") if workload.get(key)) or "its job"


def _move(details: dict[str, Any]) -> str:
    """From where to where, as the action's details tell it."""
    answer = details.get("response", details)
    origin, target = answer.get("from", {}), answer.get("to", {})
    workload = answer.get("workload") or {}
    return f"{_workload(workload)} from {_place(origin)} to {_place(target)}"


def _place(place: dict[str, Any]) -> str:
    return f"{place.get('node_id', '?')} GPU {place.get('gpu_index', '?')}"


def _seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
