"""Rows of what a node has beside GPUs: NVSwitches, CPUs and their cores, as the exporter prints them."""

import math
from typing import Final

from emulator import labels
from emulator.exporter import Exporter

NVSWITCH: Final = "nvswitch"
CPU: Final = "cpu"
CPU_CORE: Final = "cpu_core"
ENTITIES: Final = (NVSWITCH, CPU, CPU_CORE)

_Identity = list[tuple[str, object]]

_SWITCHES: Final = 4
_CPUS: Final = 2
_CORES_OF_CPU: Final = 4

_SWITCH_FAMILIES: Final = (
    ("DCGM_FI_DEV_NVSWITCH_TEMPERATURE_CURRENT", "gauge", "Current NVSwitch temperature (in C)."),
    ("DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS", "gauge", "NVSwitch fatal error information."),
)
_CPU_FAMILIES: Final = (
    ("DCGM_FI_DEV_CPU_TEMP_CURRENT", "gauge", "Current CPU temperature (in C)."),
    ("DCGM_FI_DEV_CPU_POWER_UTIL_CURRENT", "gauge", "Current CPU power draw (in W)."),
)
_CORE_FAMILIES: Final = (("DCGM_FI_DEV_CPU_UTIL_TOTAL", "gauge", "Total CPU core utilization (ratio)."),)


def blocks(exporter: Exporter, now: float) -> list[str]:
    """A block for each family of each entity that the exporter watches."""
    found = []
    if NVSWITCH in exporter.entities:
        rows: list[_Identity] = [[("nvswitch", switch)] for switch in range(_SWITCHES)]
        found += [_block(exporter, family, rows, now) for family in _SWITCH_FAMILIES]
    if CPU in exporter.entities:
        rows = [[("cpu", cpu)] for cpu in range(_CPUS)]
        found += [_block(exporter, family, rows, now) for family in _CPU_FAMILIES]
    if CPU_CORE in exporter.entities:
        rows = [[("cpucore", core), ("cpu", core // _CORES_OF_CPU)] for core in range(_CPUS * _CORES_OF_CPU)]
        found += [_block(exporter, family, rows, now) for family in _CORE_FAMILIES]
    return found


def _block(exporter: Exporter, family: tuple[str, str, str], rows: list[_Identity], now: float) -> str:
    name, kind, text = family
    lines = [f"# HELP {name} {text}\n# TYPE {name} {kind}\n"]
    for number, identity in enumerate(rows):
        value = _value(name, number, now)
        lines.append(f"{name}{{{labels.entity_row(exporter, identity)}}} {value}\n")
    return "".join(lines)


def _value(name: str, number: int, now: float) -> str:
    wave = math.sin(now / 300 + number)
    if name.endswith("FATAL_ERRORS"):
        return "0"
    if name.startswith("DCGM_FI_DEV_NVSWITCH"):
        return str(round(48 + 3 * wave))
    if name.endswith("UTIL_TOTAL"):
        return f"{0.3 + 0.1 * wave:.6f}"
    return f"{(60 if 'TEMP' in name else 180) + 5 * wave:.6f}"
