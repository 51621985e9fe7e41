"""The work that GPUs do: what a job is called in Kubernetes, how hard it runs, how long it lasts."""

import math
import random
from dataclasses import dataclass
from typing import Final

from emulator.chance import random_uuid

# Mean length of a job and of the pause after it; together they keep about three of four GPUs busy.
_MEAN_PAUSE_SECONDS: Final = 14 * 60
_SHORTEST_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a job is to Kubernetes, as the exporter's labels name it."""

    namespace: str
    pod: str
    container: str
    pod_uid: str


@dataclass(slots=True)
class Job:
    """One job. Utilisation is `level` with a wave of `swing` around it; all ratios are 0..1, times in virtual seconds.

    `tensor` and `dram` are the activity of the tensor pipes and of memory at full utilisation.
    """

    workload: Workload
    level: float
    swing: float
    radians_per_second: float
    phase: float
    memory_ratio: float
    tensor: float
    dram: float
    ends_at: float

    def utilisation(self, now: float, noise: float) -> float:
        """Share of the GPU in use at a moment; `noise` in -1..1 roughens it."""
        wave = self.swing * math.sin(now * self.radians_per_second + self.phase)
        return min(1.0, max(0.02, self.level + wave + 0.02 * noise))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A sort of job: names, and ranges that its numbers are drawn from."""

    weight: float
    namespace: str
    container: str
    names: tuple[str, ...]
    level: tuple[float, float]
    swing: float
    memory_ratio: tuple[float, float]
    tensor: tuple[float, float]
    dram: tuple[float, float]
    mean_seconds: float


_KINDS: Final = (
    _Kind(
        weight=0.6,
        namespace="ml-training",
        container="trainer",
        names=("llama-finetune", "resnet-sweep", "diffusion-pretrain", "bert-distil", "gnn-train"),
        level=(0.82, 0.97),
        swing=0.05,
        memory_ratio=(0.55, 0.88),
        tensor=(0.45, 0.75),
        dram=(0.35, 0.60),
        mean_seconds=55 * 60,
    ),
    _Kind(
        weight=0.3,
        namespace="inference",
        container="server",
        names=("vllm-chat", "triton-vision", "embedding-api", "whisper-asr"),
        level=(0.35, 0.65),
        swing=0.18,
        memory_ratio=(0.60, 0.88),
        tensor=(0.20, 0.45),
        dram=(0.45, 0.75),
        mean_seconds=45 * 60,
    ),
    _Kind(
        weight=0.1,
        namespace="research",
        container="notebook",
        names=("jupyter-ana", "jupyter-ben", "jupyter-chi"),
        level=(0.25, 0.50),
        swing=0.12,
        memory_ratio=(0.08, 0.40),
        tensor=(0.05, 0.25),
        dram=(0.15, 0.40),
        mean_seconds=30 * 60,
    ),
)
_WEIGHTS: Final = tuple(kind.weight for kind in _KINDS)


def new_job(source: random.Random, now: float) -> Job:
    """A job that starts now."""
    kind = source.choices(_KINDS, _WEIGHTS)[0]
    workload = Workload(
        namespace=kind.namespace,
        pod=f"{source.choice(kind.names)}-{source.getrandbits(36):09x}-{source.randrange(4)}",
        container=kind.container,
        pod_uid=random_uuid(source),
    )
    return Job(
        workload=workload,
        level=source.uniform(*kind.level),
        swing=kind.swing * source.uniform(0.6, 1.0),
        radians_per_second=2 * math.pi / source.uniform(90, 600),
        phase=source.uniform(0, 2 * math.pi),
        memory_ratio=source.uniform(*kind.memory_ratio),
        tensor=source.uniform(*kind.tensor),
        dram=source.uniform(*kind.dram),
        ends_at=now + _duration(source, kind.mean_seconds),
    )


def pause_seconds(source: random.Random) -> float:
    """How long a GPU stands idle after a job."""
    return _duration(source, _MEAN_PAUSE_SECONDS)


def _duration(source: random.Random, mean: float) -> float:
    """Exponential, but neither too short to be seen by a scrape nor longer than four means."""
    return min(4 * mean, max(_SHORTEST_SECONDS, source.expovariate(1 / mean)))
