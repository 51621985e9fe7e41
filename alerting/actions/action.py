"""An action under way, and what can become of an attempt to carry it out."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Action:
    """A claimed row of the outbox and the alert that it belongs to; `is_unknown` when an attempt may have done it."""

    action_id: int
    alert_id: int
    action_type: str
    transition: str
    key: str
    details: dict[str, Any]
    attempt: int
    event_time: datetime
    created_at: datetime
    alert_type: str
    node_id: str
    datacenter: str | None
    hostname: str | None
    gpu_index: int | None
    gpu_uuid: str | None
    mig_instance: str | None
    triggered_at: datetime
    workloads: list[dict[str, Any]] = field(default_factory=list)
    is_unknown: bool = False

    @property
    def where(self) -> str:
        """The node, or the GPU on it, for people."""
        return self.node_id if self.gpu_index is None else f"{self.node_id} GPU {self.gpu_index}"


@dataclass(frozen=True, slots=True)
class Done:
    """The action came to an end; `details` are what was done."""

    status: Literal["succeeded", "failed", "skipped"]
    reason: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TryAgain:
    """This attempt came to nothing, or nobody knows to what (`is_unknown`)."""

    reason: str
    is_unknown: bool = False
    details: dict[str, Any] = field(default_factory=dict)


Result = Done | TryAgain
