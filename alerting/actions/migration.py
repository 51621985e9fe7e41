"""The action `migrate_workload`: whoever runs the workloads is asked to move those of a GPU elsewhere.

The emulator's control API is one such receiver; Kubernetes would be another.
"""

from typing import Any, Final, Protocol

import httpx

from alerting.actions.action import Action, Done, Result, TryAgain
from alerting.actions.http import answer_of, in_words, never_arrived, post, refusal_of

_SERVER_ERRORS: Final = 500
_RETRIED_STATUSES: Final = frozenset((408, 425, 429))


class WorkloadMigrator(Protocol):
    """Moves the workloads of one GPU."""

    # Whether asking twice with one key moves nothing twice.
    honours_keys: bool
    # Whether it moves anything at all, and so counts for the circuit breaker.
    acts: bool

    def migrate(self, action: Action) -> Result:
        """Move the workloads of the action's GPU; its key says which decision this is."""


def _from(action: Action) -> dict[str, Any]:
    return {"node_id": action.node_id, "gpu_index": action.gpu_index, "gpu_uuid": action.gpu_uuid}


class DryRun:
    """Moves nothing, and says what would have been moved."""

    honours_keys = True
    acts = False

    def migrate(self, action: Action) -> Result:
        """Say what would have been done."""
        return Done("skipped", "dry_run", {"would_migrate": action.workloads, "from": _from(action)})


class EmulatorMigrator:
    """Asks the emulator: POST with the GPU, the decision's key as Idempotency-Key."""

    honours_keys = True
    acts = True

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = url

    def migrate(self, action: Action) -> Result:
        """Ask once. What the receiver moved, from where and to where, stands in the details."""
        asked = {"from": _from(action), "workloads": action.workloads}
        body = {"node_id": action.node_id, "gpu_uuid": action.gpu_uuid}
        try:
            response = post(self._client, self._url, body, {"Idempotency-Key": action.key})
        except httpx.HTTPError as error:
            return TryAgain(in_words(error), is_unknown=not never_arrived(error), details=asked)
        if response.is_success:
            # What the decision says of the alert stays: an answer may use the same names.
            told = {name: value for name, value in answer_of(response).items() if name not in action.details}
            return Done("succeeded", details=asked | told)
        reason = refusal_of(response)
        if response.status_code >= _SERVER_ERRORS or response.status_code in _RETRIED_STATUSES:
            return TryAgain(reason, is_unknown=response.status_code >= _SERVER_ERRORS, details=asked)
        return Done("failed", reason, asked)
