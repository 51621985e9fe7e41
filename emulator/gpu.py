"""One emulated GPU: work makes it draw power, power makes it warm, warmth and limits hold its clocks down.

Between two calls of `retune` everything that drives the GPU is constant, so its temperature and counters have a closed
form and can be read at any moment without being advanced. Times are virtual seconds since the fleet began.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Final

from emulator.chance import random_uuid
from emulator.faults import Fault, FaultKind
from emulator.jobs import Job
from emulator.models import GpuModel

THERMAL_SECONDS: Final = 30.0
# With failed cooling a loaded GPU heads for this much above the temperature at which the slowdown holds it.
# So it takes over 6 s from 90 to 95 °C, and a scrape every 5 s sees the warning before the critical reading.
_OVERHEAT_KELVIN: Final = 18.0
_SLOWDOWN_BAND_KELVIN: Final = 0.4
XID_WINDOW_SECONDS: Final = 300.0
_CLOCKS_FALL_FROM_CELSIUS: Final = 87.0
_POWER_FAULT_RATIO: Final = 1.15

_THROTTLE_IDLE: Final = 0x1
_THROTTLE_POWER_CAP: Final = 0x4
_THROTTLE_SOFTWARE_THERMAL: Final = 0x20
_THROTTLE_HARDWARE_THERMAL: Final = 0x40


@dataclass(slots=True)
class Slot:
    """What a job can be given: a whole GPU (`profile` empty) or one MIG instance of it."""

    profile: str
    instance_id: int
    share: float
    memory_mib: int
    reserved_mib: int
    job: Job | None = None
    next_job_at: float = 0.0
    utilisation: float = 0.0


@dataclass(slots=True)
class XidErrors:
    """The XID errors of a GPU: the last code, which stays, and the moment and code of those in the window."""

    code: int = 0
    recent: list[tuple[float, int]] = field(default_factory=list)

    def add(self, now: float, code: int, times: int) -> None:
        """Errors of one code come now."""
        self.code = code
        self.recent = [error for error in self.recent if error[0] > now - XID_WINDOW_SECONDS] + [(now, code)] * times

    def counts(self, now: float) -> dict[int, int]:
        """How many errors of each code fell in the window that ends now."""
        counts: dict[int, int] = {}
        for moment, code in self.recent:
            if moment > now - XID_WINDOW_SECONDS:
                counts[code] = counts.get(code, 0) + 1
        return counts


class Gpu:
    """One GPU and its state since the last `retune`."""

    def __init__(self, index: int, model: GpuModel, source: random.Random, *, mig: bool) -> None:
        self.index = index
        self.model = model
        self.uuid = f"GPU-{random_uuid(source)}"
        self.pci_bus_id = f"00000000:{0x1B + 0x12 * index & 0xFF:02X}:00.0"
        self.slots = _slots(model, mig=mig)
        self.faults: dict[FaultKind, Fault] = {}
        # No job is placed here before this time, because one was taken away for cause.
        self.cordoned_until = 0.0
        self.xid = XidErrors()
        self.correctable_rows = source.choice((0, 0, 0, 0, 1, 2))
        self.power_watts = model.idle_watts
        self.clock_ratio = 0.0
        self.throttle_reasons = _THROTTLE_IDLE
        self.load = 0.0
        # How busy its memory is, whatever part of it a MIG instance has.
        self.dram_load = 0.0
        self._resistance = model.kelvin_per_watt * source.uniform(0.96, 1.04)
        self._failed_resistance = self._resistance
        self._sbe_per_second = source.choice((0.0, 0.0, 0.0, 1 / 1800))
        self._replays_per_second = source.choice((0.0, 0.0, 1 / 3600))
        self._since = 0.0
        self._temperature = 0.0
        self._heading_for = 0.0
        self._ceiling = math.inf
        self._energy_joules = source.uniform(1e6, 5e9)
        self._nvlink_mib = source.uniform(0, 1e9) if model.nvlinks else 0.0
        self._replays = 0.0
        self._sbe_volatile = float(source.choice((0, 0, 1, 3)))
        self._sbe_before_load = source.choice((0, 2, 11))

    @property
    def split(self) -> bool:
        """Whether the GPU is split into MIG instances."""
        return bool(self.slots[0].profile)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that run on it."""
        return [slot.job for slot in self.slots if slot.job is not None]

    @property
    def lost(self) -> bool:
        """Whether it is gone from the page."""
        return FaultKind.GPU_LOST in self.faults

    def accepts_jobs(self, now: float) -> bool:
        """Whether a job may be placed here: nothing is wrong with it, and nothing was taken away from it lately."""
        return not self.faults and now >= self.cordoned_until

    def begin(self, inlet_celsius: float) -> None:
        """Start in balance: as warm as the present draw makes it. `retune` must have been called."""
        self._temperature = inlet_celsius + self._resistance * self.power_watts
        self._heading_for = self._temperature

    def settle(self, now: float) -> None:
        """Carry temperature and counters forward to a time."""
        seconds = now - self._since
        if seconds <= 0:
            return
        self._temperature = self.temperature(now)
        self._energy_joules = self._energy_joules + self.power_watts * seconds
        self._nvlink_mib += self.load * self.model.nvlink_mib_per_second * seconds
        self._replays += self._replays_per_second * seconds
        self._sbe_volatile += self._sbe_per_second * seconds
        self._since = now

    def retune(self, now: float, inlet_celsius: float, noise: float) -> None:
        """Set what drives the GPU from `now` on; `settle` must have been called. `noise` is in -1..1."""
        load = dram_load = 0.0
        for slot in self.slots:
            slot.utilisation = 0.0 if slot.job is None else slot.job.utilisation(now, noise)
            load += slot.share * slot.utilisation
            dram_load += 0.0 if slot.job is None else slot.share * slot.utilisation * slot.job.dram
        self.load, self.dram_load = load, dram_load
        model = self.model
        watts = model.idle_watts * (1 + 0.01 * noise)
        if load:
            watts += (model.sustained_watts - model.idle_watts) * load
        power_fault = self.faults.get(FaultKind.POWER)
        if power_fault:
            limit = power_fault.parameters.get("watts", model.tdp_watts * _POWER_FAULT_RATIO)
            watts = limit * (1 + 0.004 * noise)
        overheat = self.faults.get(FaultKind.OVERHEAT)
        if overheat:
            watts = self._overheat(overheat, watts, inlet_celsius, noise)
        else:
            self._ceiling = math.inf
            self._heading_for = inlet_celsius + self._resistance * watts
        self.power_watts = watts
        self._set_clocks()

    def _overheat(self, fault: Fault, watts: float, inlet_celsius: float, noise: float) -> float:
        """Failed cooling: steer for the ceiling, and give back the draw that the slowdown leaves there."""
        # No lower than what this draw makes of a GPU in order: a fault never cools.
        ceiling = max(fault.parameters["celsius"], inlet_celsius + self._resistance * watts)
        self._ceiling = ceiling + 0.2 * noise
        if self.jobs:
            # As bad as this load needs, so that a light job overheats as surely as a heavy one.
            self._failed_resistance = max(self._resistance, (ceiling + _OVERHEAT_KELVIN - inlet_celsius) / watts)
        if self._temperature >= ceiling - _SLOWDOWN_BAND_KELVIN:
            watts = min(watts, (ceiling - inlet_celsius) / self._failed_resistance)
        self._heading_for = inlet_celsius + self._failed_resistance * watts
        return watts

    def _set_clocks(self) -> None:
        if not self.load:
            self.clock_ratio = 0.0
            self.throttle_reasons = _THROTTLE_IDLE
            return
        too_warm = self._temperature - _CLOCKS_FALL_FROM_CELSIUS
        self.clock_ratio = 1 - min(0.45, max(0.0, too_warm) * 0.04)
        self.throttle_reasons = 0
        if too_warm > 0:
            self.throttle_reasons |= _THROTTLE_SOFTWARE_THERMAL
        if self._temperature >= self._ceiling - _SLOWDOWN_BAND_KELVIN:
            self.throttle_reasons |= _THROTTLE_HARDWARE_THERMAL
        if self.power_watts >= self.model.tdp_watts:
            self.throttle_reasons |= _THROTTLE_POWER_CAP

    def reset_counters(self, now: float) -> None:
        """The driver was reloaded: what it counts since its start begins again at 0, the sticky XID is gone.

        What the GPU itself keeps over its life stays.
        """
        self.settle(now)
        self._sbe_before_load += int(self._sbe_volatile)
        self._energy_joules = self._nvlink_mib = self._replays = self._sbe_volatile = 0.0
        self.xid = XidErrors()

    def temperature(self, now: float) -> float:
        """Core temperature in °C at a time not before the last `retune`."""
        decay = math.exp((self._since - now) / THERMAL_SECONDS)
        celsius = self._heading_for + (self._temperature - self._heading_for) * decay
        # One that was above the ceiling already cools down to it no faster than any other.
        return min(max(self._ceiling, self._temperature), celsius)

    def energy_millijoules(self, now: float) -> int:
        """Energy since the driver was loaded."""
        return int((self._energy_joules + self.power_watts * (now - self._since)) * 1000)

    def nvlink_mib(self, now: float) -> int:
        """NVLink traffic of all links."""
        return int(self._nvlink_mib + self.load * self.model.nvlink_mib_per_second * (now - self._since))

    def replays(self, now: float) -> int:
        """PCIe packets sent again."""
        return int(self._replays + self._replays_per_second * (now - self._since))

    def sbe_volatile(self, now: float) -> int:
        """Corrected ECC errors since the driver was loaded."""
        return int(self._sbe_volatile + self._sbe_per_second * (now - self._since))

    def sbe_aggregate(self, now: float) -> int:
        """Corrected ECC errors over the GPU's life."""
        return self._sbe_before_load + self.sbe_volatile(now)


def _slots(model: GpuModel, *, mig: bool) -> list[Slot]:
    if not mig:
        return [Slot("", 0, 1.0, model.memory_mib, model.reserved_mib)]
    reserved = model.reserved_mib // len(model.mig)
    return [
        Slot(piece.profile, piece.instance_id, piece.sevenths / 7, piece.memory_mib, reserved) for piece in model.mig
    ]
