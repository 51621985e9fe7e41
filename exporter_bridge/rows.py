"""Whose a row is: what a label set says about the GPU, the MIG instance and the workload that a sample belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gpu_telemetry.records import MAX_IDENTIFIER_LENGTH, Workload

_LARGEST_INDEX: Final = 2**31 - 1

# Labels that tell rows of one field on one GPU apart: such a field is a list of labelled values.
OWN_LABELS: Final = frozenset((
    "clock_event", "health_error_code", "health_watch", "link_status", "nvlink", "peer_gpu", "window_size_in_ms", "xid",
))  # fmt: skip
_IDENTITY_LABELS: Final = frozenset((
    "gpu", "UUID", "uuid", "gpu_uuid", "pci_bus_id", "device", "modelName", "model_name", "GPU_I_PROFILE", "GPU_I_ID",
    "Hostname", "hostname", "nvswitch",
))  # fmt: skip
# Each attribute of a workload with its spellings, the current one first.
_NAMESPACE: Final = ("namespace", "pod_namespace")
_POD: Final = ("pod", "pod_name")
_CONTAINER: Final = ("container", "container_name")
_JOB: Final = ("hpc_job",)
# Attributes that describe a workload or an XID further; they make no second record and no second value.
_ATTRIBUTES: Final = frozenset((
    *_NAMESPACE, *_POD, *_CONTAINER, *_JOB, "pod_uid", "vgpu", "err_code", "err_msg",
))  # fmt: skip
_ATTRIBUTE_PREFIXES: Final = ("dra_", "DCGM_FI_")


@dataclass(frozen=True, slots=True)
class Row:
    """A row that a GPU record can hold; `gpu_index` means nothing on an NVLink's row, which may lack it.

    `own` are the labels known to tell rows of one field apart, `others` those that this module knows nothing of.
    `link`: an NVLink's row, which belongs to a GPU's record but makes none.
    """

    gpu_uuid: str
    mig_instance: str | None
    gpu_index: int
    mig_profile: str | None
    model: str | None
    pci_bus_id: str | None
    driver_version: str | None
    hostname: str | None
    workload: Workload | None
    own: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...]
    link: bool = False


def row_of(labels: Mapping[str, str]) -> Row | str:
    """The row that these labels make, or the entity that they speak of if it is no GPU.

    Entities are nvlink, nvswitch, cpu_core, cpu, and unknown for what has no UUID or no index of a GPU.
    """
    link = "nvlink" in labels
    uuid = labels.get("UUID") or labels.get("uuid") or labels.get("gpu_uuid")
    index = _index(labels.get("gpu", ""))
    if not uuid or len(uuid) > MAX_IDENTIFIER_LENGTH or (index is None and not link):
        return _entity(labels)
    others = tuple(
        (name, value)
        for name, value in labels.items()
        if name not in _IDENTITY_LABELS
        and name not in _ATTRIBUTES
        and name not in OWN_LABELS
        and not name.startswith(_ATTRIBUTE_PREFIXES)
    )
    return Row(
        gpu_uuid=uuid,
        mig_instance=labels.get("GPU_I_ID") or None,
        gpu_index=index or 0,
        mig_profile=labels.get("GPU_I_PROFILE") or None,
        model=_first(labels, ("modelName", "model_name")),
        pci_bus_id=labels.get("pci_bus_id") or None,
        driver_version=labels.get("DCGM_FI_DRIVER_VERSION") or None,
        hostname=_first(labels, ("Hostname", "hostname")),
        workload=_workload(labels),
        own=tuple((name, value) for name, value in labels.items() if name in OWN_LABELS),
        others=others,
        link=link,
    )


def _index(text: str) -> int | None:
    good = text.isascii() and text.isdecimal() and len(text) <= len(str(_LARGEST_INDEX))
    return int(text) if good and int(text) <= _LARGEST_INDEX else None


def _entity(labels: Mapping[str, str]) -> str:
    if "nvlink" in labels:
        return "nvlink"
    if "nvswitch" in labels:
        return "nvswitch"
    if "cpucore" in labels:
        return "cpu_core"
    return "cpu" if "cpu" in labels else "unknown"


def _first(labels: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((labels[name] for name in names if labels.get(name)), None)


def _workload(labels: Mapping[str, str]) -> Workload | None:
    workload = Workload(
        namespace=_first(labels, _NAMESPACE),
        pod=_first(labels, _POD),
        container=_first(labels, _CONTAINER),
        job=_first(labels, _JOB),
    )
    return None if workload == Workload() else workload
