"""PromQL over DCGM's names, by GPU: values that no GPU can have are left out, and a GPU counts once.

DCGM repeats a whole GPU's value on each of its MIG instances and on each pod or job that shares it, so whole-GPU
values are `max by (UUID)`. `pick` is what selects series: matchers without braces.
"""

from typing import Final

from gpu_telemetry.fields import LARGEST_EXACT_INTEGER

# What names a GPU or a MIG instance in a legend, wherever the exporter's labels say less.
NAMES: Final = "{{node_id}} GPU {{gpu}}{{mig}}"
GPU_LABELS: Final = "datacenter, modelName, node_id, gpu, UUID"
SLICE_LABELS: Final = f"{GPU_LABELS}, GPU_I_ID, GPU_I_PROFILE"

# The recording rules of prometheus/rules/fleet.yml are evaluated every 30 s, so that a sum over time is hours.
SAMPLES_AN_HOUR: Final = 120

# Far above any GPU's memory, and far below DCGM's numbers for "no value".
_MOST_MEBIBYTES: Final = 2**24

FLEET: Final = 'datacenter=~"$datacenter",modelName=~"$model"'
ON_NODE: Final = 'node_id="$node",gpu=~"$gpu"'
OF_GPU: Final = 'UUID="$uuid"'


def device(name: str, pick: str = "", *, high: float | None = None) -> str:
    """A DCGM field of devices, only where it is not above what a GPU can have."""
    return f"DCGM_FI_DEV_{name}{{{pick}}}" if high is None else f"(DCGM_FI_DEV_{name}{{{pick}}} <= {high:g})"


def profiled(name: str, pick: str = "", *, high: float = 1) -> str:
    """A DCGM profiling field; ratios only up to 1."""
    return f"(DCGM_FI_PROF_{name}{{{pick}}} <= {high:g})"


def growth(function: str, counter: str, pick: str, over: str) -> str:
    """A DCGM counter's `rate` or `increase`, but not over what holds a number for "no value"."""
    series = f"{counter}{{{pick}}}[{over}]"
    return f"({function}({series}) and max_over_time({series}) <= {LARGEST_EXACT_INTEGER})"


def by_gpu(expression: str) -> str:
    """One series for each GPU."""
    return f"max by ({GPU_LABELS}) ({expression})"


def line_by_gpu(expression: str) -> str:
    """One series for each GPU, as legends name it."""
    return _ordered(by_gpu(expression))


def line_by_slice(expression: str) -> str:
    """One series for each GPU or MIG instance, as legends name it."""
    joined = f'label_join(max by ({SLICE_LABELS}) ({expression}), "slice", "/", "GPU_I_PROFILE", "GPU_I_ID")'
    return _ordered(f'label_replace({joined}, "mig", " MIG $1", "slice", "(.+/.+)")')


def kinds(**expressions: str) -> str:
    """The series of each expression with its name in the label `kind`, an underscore in it read as a space.

    In one query, as Grafana 9.4 shows nothing of a panel if one of its queries finds nothing.
    """
    return " or ".join(
        f'label_replace({expression}, "kind", "{name.replace("_", " ")}", "", "")'
        for name, expression in expressions.items()
    )


def _ordered(expression: str) -> str:
    """Prometheus orders series by their labels' names: without capital ones the index of the GPU comes first."""
    return f'max by (gpu, mig, node_id, uuid) (label_replace({expression}, "uuid", "$1", "UUID", "(.*)"))'


def temperature(pick: str) -> str:
    """Core temperature in °C."""
    return device("GPU_TEMP", pick, high=200)


def power(pick: str) -> str:
    """Draw in W."""
    return device("POWER_USAGE", pick, high=5000)


def of_workload(expression: str) -> str:
    """The series with their workload in `namespace` and `pod`, also where an older exporter spelt them otherwise."""
    pod = f'label_replace({expression}, "pod", "$1", "pod_name", "(.+)")'
    return f'label_replace({pod}, "namespace", "$1", "pod_namespace", "(.+)")'


def memory_percent(pick: str) -> str:
    """Framebuffer memory in use in %, of used and free, as the alert rule has it."""
    used, free = device("FB_USED", pick, high=_MOST_MEBIBYTES), device("FB_FREE", pick, high=_MOST_MEBIBYTES)
    return f"100 * {used} / ({used} + {free})"


def throttle_mask(pick: str) -> str:
    """The bits of why clocks are held down (NVML's), by either name that exporters have had for them.

    DCGM's numbers for "no value" begin where they end.
    """
    return f'{{__name__=~"DCGM_FI_DEV_CLOCK(S_EVENT|_THROTTLE)_REASONS",{pick}}} < 2147483632'
