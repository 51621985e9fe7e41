"""The action `annotate`: an alert's start and end as annotations in Grafana, for dashboards that ask for their tags.

Grafana has no key by which it would refuse a second one, so an attempt after the first looks for what is there.
Source: https://grafana.com/docs/grafana/latest/developers/http_api/annotations/
"""

from typing import Any, Final

from grafana_client.api import GrafanaApi
from grafana_client.client import (
    GrafanaBadInputError,
    GrafanaClientError,
    GrafanaException,
    GrafanaTimeoutError,
    TokenAuth,
)

from alerting.actions.action import Action, Done, Result, TryAgain
from gpu_telemetry.clock import to_milliseconds

TAG: Final = "gpu-telemetry"
_RETRIED_STATUSES: Final = frozenset((408, 425, 429))


def annotation_of(action: Action) -> dict[str, Any]:
    """What Grafana is told: the start as a moment, the end as the time over which it fired, in epoch milliseconds."""
    is_end = action.transition == "resolved"
    severity = str(action.details.get("severity", ""))
    ended = f" (ended: {action.details.get('resolved_reason')})" if is_end else ""
    tags = [
        TAG,
        action.alert_type,
        severity,
        action.transition,
        f"node:{action.node_id}",
        None if action.gpu_index is None else f"gpu:{action.gpu_index}",
        action.gpu_uuid,
        action.datacenter,
        _tag_of(action),
    ]
    return {
        "time_from": to_milliseconds(action.triggered_at if is_end else action.event_time),
        "time_to": to_milliseconds(action.event_time) if is_end else None,
        "tags": [tag for tag in tags if tag],
        "text": f"[{severity}] {action.alert_type} on {action.where}: {action.details.get('message', '')}{ended}",
    }


class GrafanaAnnotator:
    """A Grafana that is written to with a token, which nothing here tells."""

    def __init__(self, url: str, token: str, timeout_seconds: float) -> None:
        # Without a URL the library would write to admin:admin on this machine.
        assert url
        credential = TokenAuth(token)  # type: ignore[no-untyped-call]
        self._api = GrafanaApi.from_url(url.rstrip("/"), credential=credential, timeout=timeout_seconds)

    def annotate(self, action: Action) -> Result:
        """Write one annotation, unless an earlier attempt whose answer was lost has."""
        try:
            found = self._found(action) if action.attempt > 1 else []
            number = found[0]["id"] if found else self._api.annotations.add_annotation(**annotation_of(action))["id"]
        except GrafanaTimeoutError:
            return TryAgain("grafana: time-out", is_unknown=True)
        except GrafanaBadInputError:
            return Done("failed", "grafana: 400: it takes no such annotation")
        except GrafanaClientError as error:
            reason = f"grafana: HTTP status {error.status_code}"
            # Whoever set the token may mend it.
            retried = error.status_code in _RETRIED_STATUSES or error.status_code in {401, 403}
            return TryAgain(reason) if retried else Done("failed", reason)
        except GrafanaException as error:
            return TryAgain(f"grafana: HTTP status {error.status_code}", is_unknown=True)
        except (OSError, KeyError, TypeError, ValueError) as error:
            # A refused connection is the HTTP library's own OSError; an answer of another form is no Grafana's.
            return TryAgain(f"grafana: {type(error).__name__}", is_unknown=True)
        return Done("succeeded", details={"annotation": number})

    def close(self) -> None:
        """Close its connections."""
        self._api.client.s.close()

    def _found(self, action: Action) -> list[dict[str, Any]]:
        moment = annotation_of(action)["time_from"]
        found = self._api.annotations.find_annotations(
            time_from=moment - 1000, time_to=moment + 1000, tags=[_tag_of(action)], limit=1
        )
        return [each for each in found if _tag_of(action) in each.get("tags", [])]


def _tag_of(action: Action) -> str:
    # The decision's own number: it stays the same from attempt to attempt.
    return f"decision:{action.action_id}"
