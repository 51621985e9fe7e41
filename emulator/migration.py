"""Moves the jobs of a GPU to a free one, as a scheduler does when a GPU is drained; each request takes effect once."""

import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final

from emulator.fleet import Fleet
from emulator.gpu import Gpu
from emulator.node import Node

logger = logging.getLogger(__name__)

# How many answers are remembered for requests that come again.
_REMEMBERED_KEYS: Final = 10_000

_Place = tuple[Node, Gpu]
Answer = dict[str, Any]


class CannotMigrate(Exception):
    """Nothing was moved; the text says why."""


class KeyReused(Exception):
    """An idempotency key came back with another request."""


class Migrations:
    """Carries out migrations.

    A repeated idempotency key gets the first answer and moves nothing. A refusal moved nothing and is not remembered:
    the same request may succeed once a GPU is free.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._answers: OrderedDict[str, tuple[object, Answer]] = OrderedDict()

    def migrate(self, node_id: str, which: int | str, target: tuple[str, int | str] | None, key: str | None) -> Answer:
        """Move every job of a GPU to the target, else to the coolest free GPU: on the same node first, then elsewhere.

        Raises:
            NotInFleet: the GPU or the target is not there.
            CannotMigrate: there is no job to move, or no free GPU to move it to.
            KeyReused: the key was given before, with another request.
        """
        request = (node_id, which, target)
        if key is not None and key in self._answers:
            first, answer = self._answers[key]
            if first != request:
                raise KeyReused(f"the idempotency key {key!r} was used for another migration")
            return answer
        answer = self._carry_out(node_id, which, target)
        if key is not None:
            self._answers[key] = (request, answer)
            if len(self._answers) > _REMEMBERED_KEYS:
                self._answers.popitem(last=False)
        return answer

    def _carry_out(self, node_id: str, which: int | str, target: tuple[str, int | str] | None) -> Answer:
        now = self._fleet.now()
        node = self._fleet.node(node_id)
        gpu = self._fleet.gpu(node, which)
        if not gpu.jobs:
            raise CannotMigrate(f"GPU {gpu.index} on {node_id} runs no job")
        to_node, to_gpu = self._free_gpu(node, gpu, now) if target is None else self._target(gpu, target, now)
        jobs = [(number, slot.job) for number, slot in enumerate(gpu.slots) if slot.job is not None]
        node.withdraw_jobs(gpu, now)
        to_node.place_jobs(to_gpu, jobs, now)
        for _, job in jobs:
            logger.info(
                "Job %s/%s runs on %s GPU %d now, no longer on %s GPU %d",
                job.workload.namespace,
                job.workload.pod,
                to_node.node_id,
                to_gpu.index,
                node_id,
                gpu.index,
            )
        workloads = [
            {"namespace": job.workload.namespace, "pod": job.workload.pod, "container": job.workload.container}
            for _, job in jobs
        ]
        return {
            "from": _place(node, gpu),
            "to": _place(to_node, to_gpu),
            "workload": workloads[0],
            "workloads": workloads,
        }

    def _free_gpu(self, node: Node, gpu: Gpu, now: float) -> _Place:
        here = _coolest(((node, other) for other in node.gpus if _is_free_for(gpu, other, now)), now)
        if here is not None:
            return here
        elsewhere = _coolest(
            (
                (other_node, other)
                for other_node in self._fleet.advanced_nodes()
                for other in other_node.gpus
                if _is_free_for(gpu, other, now)
            ),
            now,
        )
        if elsewhere is None:
            raise CannotMigrate(f"no free GPU for the job of GPU {gpu.index} on {node.node_id}: all are busy or unfit")
        return elsewhere

    def _target(self, gpu: Gpu, target: tuple[str, int | str], now: float) -> _Place:
        node = self._fleet.node(target[0])
        other = self._fleet.gpu(node, target[1])
        if not _is_free_for(gpu, other, now):
            raise CannotMigrate(f"the target, GPU {other.index} on {node.node_id}, is busy, unfit or split otherwise")
        return node, other


def _is_free_for(gpu: Gpu, other: Gpu, now: float) -> bool:
    """Whether another GPU is healthy, split in the same way, and idle wherever this one has a job."""
    alike = [slot.profile for slot in gpu.slots] == [slot.profile for slot in other.slots]
    if other is gpu or not alike or not other.accepts_jobs(now):
        return False
    return all(slot.job is None or there.job is None for slot, there in zip(gpu.slots, other.slots, strict=True))


def _coolest(places: Iterable[_Place], now: float) -> _Place | None:
    return min(places, key=lambda place: place[1].temperature(now), default=None)


def _place(node: Node, gpu: Gpu) -> Answer:
    return {"node_id": node.node_id, "gpu_index": gpu.index, "gpu_uuid": gpu.uuid}
