"""Notices in the form that Alertmanager sends to its webhook receivers, version 4.

Source: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

import hashlib
import json
from datetime import datetime
from typing import Any, Final

import httpx

from alerting.actions.action import Action, Done, Result, TryAgain
from alerting.actions.http import in_words, post, refusal_of
from gpu_telemetry.clock import rfc3339

RECEIVER: Final = "gpu-telemetry"
_NO_END: Final = "0001-01-01T00:00:00Z"  # Go's zero time: what Alertmanager sends for an alert that fires
_RETRIED_STATUSES: Final = frozenset((408, 425, 429))
_SERVER_ERRORS: Final = 500
_GROUPED_BY: Final = ("alertname", "node_id", "gpu_uuid", "mig_instance")


def labels_of(action: Action) -> dict[str, str]:
    """What identifies and routes the alert; a severity that rises is another label set, as with Prometheus."""
    labels = {
        "alertname": action.alert_type,
        "severity": str(action.details.get("severity", "")),
        "node_id": action.node_id,
        "datacenter": action.datacenter,
        "hostname": action.hostname,
        "gpu": None if action.gpu_index is None else str(action.gpu_index),
        "gpu_uuid": action.gpu_uuid,
        "mig_instance": action.mig_instance,
    }
    return {name: value for name, value in labels.items() if value}


def fingerprint(action: Action) -> str:
    """16 hexadecimal digits that stay the alert's own through its whole firing."""
    identity = [action.alert_type, action.node_id, action.gpu_uuid, action.mig_instance, rfc3339(action.triggered_at)]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()


def payload_of(action: Action, external_url: str) -> dict[str, Any]:
    """The body of one notice: a group of one alert, whose labels name all that it is of, so that it stays alone."""
    is_resolved = action.transition == "resolved"
    status = "resolved" if is_resolved else "firing"
    labels = labels_of(action)
    annotations = {"summary": str(action.details.get("message", "")), "transition": action.transition}
    for name in ("actual_value", "threshold_value", "resolved_reason"):
        if action.details.get(name) is not None:
            annotations[name] = str(action.details[name])
    group_labels = {name: labels[name] for name in _GROUPED_BY if name in labels}
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": rfc3339(action.triggered_at),
        "endsAt": _ending(action.event_time) if is_resolved else _NO_END,
        "generatorURL": f"{external_url.rstrip('/')}/api/v1/alerts/{action.alert_id}",
        "fingerprint": fingerprint(action),
    }
    return {
        "version": "4",
        "receiver": RECEIVER,
        "status": status,
        "alerts": [alert],
        "groupLabels": group_labels,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": external_url,
        "groupKey": "{}:{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in group_labels.items()) + "}",
        "truncatedAlerts": 0,
    }


def _ending(moment: datetime) -> str:
    return rfc3339(moment)


class Webhook:
    """A webhook receiver. Its URL may hold a token, so nothing here tells it."""

    def __init__(self, client: httpx.Client, url: str, external_url: str) -> None:
        self._client = client
        self._url = url
        self._external_url = external_url

    def send(self, action: Action) -> Result:
        """Send one notice."""
        try:
            response = post(self._client, self._url, payload_of(action, self._external_url))
        except httpx.HTTPError as error:
            return TryAgain(f"webhook: {in_words(error)}", is_unknown=False)
        if response.is_success:
            return Done("succeeded", details={"webhook": response.status_code})
        reason = f"webhook: {refusal_of(response)}"
        if response.status_code >= _SERVER_ERRORS or response.status_code in _RETRIED_STATUSES:
            return TryAgain(reason)
        return Done("failed", reason, {"webhook": response.status_code})
