"""One emulated node: its GPUs, the jobs that come and go on them, and the faults that are active.

The node lives on a grid of ticks in virtual time: on a tick jobs start and end and every GPU is driven anew. So what a
page shows depends on the time at which it is asked for and on what was done to the node, not on how often it was asked.
"""

import math
from typing import Final

from emulator.chance import stream
from emulator.exporter import Exporter
from emulator.faults import Fault, FaultKind
from emulator.gpu import Gpu, Slot
from emulator.jobs import Job, new_job, pause_seconds
from emulator.models import GpuModel

TICK_SECONDS: Final = 5.0
# After a long silence the ticks are stretched, so that no page takes longer to catch up than these.
_MOST_TICKS_AT_ONCE: Final = 720
# Small nodes may be busy throughout; others keep a GPU free, for jobs that must be moved.
_SMALLEST_NODE_WITH_A_SPARE: Final = 4
_BUSY_AT_START: Final = 0.78
_CORDON_SECONDS: Final = 30 * 60.0
_OVERHEATED_JOB_SECONDS: Final = 15 * 60.0


class Node:
    """One node. Times are virtual seconds since the fleet began."""

    def __init__(
        self,
        node_id: str,
        datacenter: str,
        *,
        model: GpuModel,
        gpus: int,
        exporter: Exporter,
        mig: bool,
        seed: int,
    ) -> None:
        self.node_id = node_id
        self.datacenter = datacenter
        self.exporter = exporter
        self.faults: dict[tuple[FaultKind, int | None], Fault] = {}
        # Rises with whatever changes the labels or the rows of the page.
        self.layout_version = 0
        self._chance = stream(seed, node_id)
        identity = stream(seed, node_id, "identity")
        self.gpus = [Gpu(index, model, identity, mig=mig) for index in range(gpus)]
        self._inlet_celsius = identity.uniform(20.0, 23.5)
        self._inlet_phase = identity.uniform(0, 2 * math.pi)
        self._inlet_pace = 2 * math.pi / identity.uniform(2400, 5400)
        slots = gpus * len(self.gpus[0].slots)
        self._most_jobs = slots - len(self.gpus[0].slots) if gpus >= _SMALLEST_NODE_WITH_A_SPARE else slots
        self._ticked_at = 0.0
        self._begin()

    def _begin(self) -> None:
        """Start in the middle of things: jobs run already, and every GPU is as warm as its load makes it."""
        for gpu in self.gpus:
            for slot in gpu.slots:
                if self._chance.random() < _BUSY_AT_START and self._jobs() < self._most_jobs:
                    slot.job = new_job(self._chance, 0.0)
                else:
                    slot.next_job_at = pause_seconds(self._chance)
            inlet = self.inlet(0.0)
            gpu.retune(0.0, inlet, self._noise())
            gpu.begin(inlet)

    def inlet(self, now: float) -> float:
        """Temperature in °C of the air that the node takes in; it changes slowly."""
        return self._inlet_celsius + 1.5 * math.sin(now * self._inlet_pace + self._inlet_phase)

    def advance(self, now: float) -> None:
        """Carry out all ticks up to a time; going back does nothing."""
        due = int((now - self._ticked_at) // TICK_SECONDS)
        stride = max(1, math.ceil(due / _MOST_TICKS_AT_ONCE))
        while due > 0:
            taken = min(stride, due)
            self._tick(self._ticked_at + taken * TICK_SECONDS)
            due -= taken

    def _tick(self, now: float) -> None:
        self._ticked_at = now
        inlet = self.inlet(now)
        for gpu in self.gpus:
            for slot in gpu.slots:
                if slot.job is not None:
                    if now >= slot.job.ends_at:
                        self._take_job(slot, now)
                elif now >= slot.next_job_at:
                    self._offer_job(gpu, slot, now)
            gpu.settle(now)
            gpu.retune(now, inlet, self._noise())

    def _noise(self) -> float:
        return 2 * self._chance.random() - 1

    def _jobs(self) -> int:
        return sum(slot.job is not None for gpu in self.gpus for slot in gpu.slots)

    def _offer_job(self, gpu: Gpu, slot: Slot, now: float) -> None:
        if gpu.accepts_jobs(now) and self._jobs() < self._most_jobs:
            slot.job = new_job(self._chance, now)
            self.layout_version += 1
        else:
            slot.next_job_at = now + pause_seconds(self._chance)

    def _take_job(self, slot: Slot, now: float) -> None:
        slot.job = None
        slot.next_job_at = now + pause_seconds(self._chance)
        self.layout_version += 1

    def node_fault(self, kind: FaultKind) -> Fault | None:
        """The active fault of a kind that strikes the whole node."""
        return self.faults.get((kind, None))

    def set_fault(self, fault: Fault, now: float) -> bool:
        """Put a fault in; `advance` must have been called. False if the same one is active already."""
        key = (fault.kind, fault.gpu_index)
        before = self.faults.get(key)
        if before is not None and before.parameters == fault.parameters:
            return False
        self.faults[key] = fault
        self.layout_version += 1
        if fault.kind is FaultKind.COUNTER_RESET:
            for gpu in self.gpus:
                self.clear_fault(FaultKind.XID, gpu.index, now)
                gpu.reset_counters(now)
        if fault.gpu_index is not None:
            self._strike(self.gpus[fault.gpu_index], fault, before, now)
        return True

    def _strike(self, gpu: Gpu, fault: Fault, before: Fault | None, now: float) -> None:
        gpu.faults[fault.kind] = fault
        if fault.kind is FaultKind.XID:
            _add_xid(gpu, fault, before, now)
        if fault.kind is FaultKind.OVERHEAT:
            if not gpu.jobs:
                gpu.slots[0].job = new_job(self._chance, now)
                self._keep_a_spare(gpu, now)
            for job in gpu.jobs:
                job.ends_at = max(job.ends_at, now + _OVERHEATED_JOB_SECONDS)
        self._drive(gpu, now)

    def _keep_a_spare(self, loaded: Gpu, now: float) -> None:
        """A job out of turn may have taken the last free GPU: then the job that would end first ends now."""
        others = [slot for gpu in self.gpus if gpu is not loaded and not gpu.faults for slot in gpu.slots if slot.job]
        if self._jobs() > self._most_jobs and others:
            self._take_job(min(others, key=lambda slot: slot.job.ends_at if slot.job else math.inf), now)

    def clear_fault(self, kind: FaultKind, gpu_index: int | None, now: float) -> bool:
        """Take a fault out; `advance` must have been called. False if it was not active."""
        if self.faults.pop((kind, gpu_index), None) is None:
            return False
        self.layout_version += 1
        if gpu_index is not None:
            gpu = self.gpus[gpu_index]
            del gpu.faults[kind]
            if kind is FaultKind.XID:
                gpu.xid.code = 0
            if not gpu.faults:
                # Repaired: it may work again.
                gpu.cordoned_until = now
            self._drive(gpu, now)
        return True

    def withdraw_jobs(self, gpu: Gpu, now: float) -> None:
        """Take every job off a GPU, and place none there for a while."""
        for slot in gpu.slots:
            if slot.job is not None:
                self._take_job(slot, now)
        gpu.cordoned_until = now + _CORDON_SECONDS
        self._drive(gpu, now)

    def place_jobs(self, gpu: Gpu, jobs: list[tuple[int, Job]], now: float) -> None:
        """Give jobs to a GPU; each comes with the number of the slot that it takes."""
        for number, job in jobs:
            gpu.slots[number].job = job
        self.layout_version += 1
        self._drive(gpu, now)

    def _drive(self, gpu: Gpu, now: float) -> None:
        """Let what was just done to a GPU work at once, not at the next tick only."""
        gpu.settle(now)
        gpu.retune(now, self.inlet(now), self._noise())


def _add_xid(gpu: Gpu, fault: Fault, before: Fault | None, now: float) -> None:
    """An XID comes as often as its fault says; told again with a higher count, only the difference comes."""
    code, times = int(fault.parameters["code"]), int(fault.parameters["count"])
    if before is not None and before.parameters["code"] == code:
        times = max(0, times - int(before.parameters["count"]))
    gpu.xid.add(now, code, times)
