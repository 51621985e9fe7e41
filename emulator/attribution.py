"""Whose work a row shows: what the exporter maps GPUs to, and the rows that this makes of one GPU or MIG instance."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from emulator.chance import random_uuid, stream
from emulator.gpu import Slot
from emulator.jobs import Workload

_MOST_SHARERS: Final = 3
_FIRST_HPC_JOB: Final = 4_000_000


class Attribution(StrEnum):
    """What the exporter maps GPUs to.

    Where GPUs are shared (`time_slicing`, `vgpu`; the exporter's --kubernetes-virtual-gpus) each pod has a row of its
    own with the same value. Before 4.5.3-4.8.2 a GPU without a pod had none at all; since then utilisation and memory
    in use come once for the GPU, then for each pod what it uses itself.
    """

    NONE = "none"
    PODS = "pods"
    TIME_SLICING = "time_slicing"
    VGPU = "vgpu"
    HPC_JOBS = "hpc_jobs"

    @property
    def kubernetes(self) -> bool:
        """Whether rows have the labels of pods."""
        return self is Attribution.PODS or self.shared

    @property
    def shared(self) -> bool:
        """Whether several pods may use one GPU."""
        return self in {Attribution.TIME_SLICING, Attribution.VGPU}


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whom one row names: a pod, which may hold a share of the GPU by its number, or an HPC job, or nobody."""

    workload: Workload | None = None
    vgpu: int | None = None
    hpc_job: str | None = None


NOBODY: Final = Tenant()


def tenants(slot: Slot, attribution: Attribution) -> tuple[Tenant, ...]:
    """Whom the rows of a GPU or of one MIG instance name: a row for each."""
    if slot.job is None:
        return (NOBODY,)
    workload = slot.job.workload
    match attribution:
        case Attribution.NONE:
            return (NOBODY,)
        case Attribution.PODS:
            return (Tenant(workload),)
        case Attribution.TIME_SLICING:
            return tuple(Tenant(sharer) for sharer in _sharers(workload))
        case Attribution.VGPU:
            return tuple(Tenant(sharer, vgpu=number) for number, sharer in enumerate(_sharers(workload)))
        case Attribution.HPC_JOBS:
            return tuple(Tenant(hpc_job=number) for number in _hpc_jobs(workload))


def _sharers(workload: Workload) -> list[Workload]:
    """A job's pods, where several share a GPU: two or three of one deployment, the same at every call."""
    source = stream(0, workload.pod_uid, "sharers")
    others = [
        Workload(
            workload.namespace,
            f"{workload.pod.rpartition('-')[0]}-{source.getrandbits(20):05x}",
            workload.container,
            random_uuid(source),
        )
        for _ in range(source.randint(2, _MOST_SHARERS) - 1)
    ]
    return [workload, *others]


def _hpc_jobs(workload: Workload) -> list[str]:
    """The numbers of one or two HPC jobs in a job's place, the same at every call."""
    source = stream(0, workload.pod_uid, "hpc")
    first = _FIRST_HPC_JOB + source.randrange(10**6)
    return [str(first + number) for number in range(source.randint(1, 2))]


def shares(number: int) -> list[float]:
    """How so many pods divide the use of a GPU."""
    weights = range(number, 0, -1)
    return [weight / sum(weights) for weight in weights]


def passing_pod(scrape: int) -> Tenant:
    """Whom a GPU's rows name at one scrape where pods come and go: another pod each time, nobody every third time."""
    if scrape % 3 == 0:
        return NOBODY
    return Tenant(Workload("batch", f"burst-{scrape}", "main", random_uuid(stream(0, scrape, "passing"))))
