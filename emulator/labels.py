"""The label text of a row, in the order and spelling of the exporter's release; nothing is escaped, as there."""

from typing import Final

from emulator.dialects import Dialect
from emulator.faults import FaultKind
from emulator.gpu import XID_WINDOW_SECONDS, Gpu, Slot
from emulator.jobs import Workload

_NO_WORKLOAD: Final = Workload("", "", "", "")
_UNESCAPED_JOB_NAME: Final = 'nightly "large" run'
# As the driver words them; the exporter repeats it in `err_msg`.
_XID_MEANINGS: Final = {
    0: "No Error",
    13: "Graphics Engine Exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "Preemptive cleanup, due to previous errors -- Most likely to see when running multiple cuda applications and "
    "hitting a DBE",
    48: "Double Bit ECC Error",
    63: "ECC page retirement or row remapping recording event",
    64: "ECC page retirement or row remapper recording failure",
    74: "NVLINK Error",
    79: "GPU has fallen off the bus",
    94: "Contained ECC error",
    95: "Uncontained ECC error",
    119: "GSP RPC Timeout",
}


def _text(pairs: list[tuple[str, object]]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in pairs)


def gpu_row(dialect: Dialect, hostname: str, gpu: Gpu, slot: Slot, *, xid_row: bool = False) -> str:
    """The labels of a row of a GPU, or of a MIG instance; rows of the XID family say the code's meaning as well."""
    return _text(_identity(dialect, hostname, gpu, slot) + _attributes(dialect, gpu, slot, xid_row=xid_row))


def xid_count_row(dialect: Dialect, hostname: str, gpu: Gpu, slot: Slot, code: int | None) -> str:
    """The labels of a row that counts the XID errors of one code; None when there were none."""
    window: list[tuple[str, object]] = [("window_size_in_ms", round(XID_WINDOW_SECONDS * 1000))]
    if code is not None:
        window.append(("xid", code))
    return _text(_identity(dialect, hostname, gpu, slot) + window + _attributes(dialect, gpu, slot, xid_row=False))


def link_row(dialect: Dialect, hostname: str, gpu: Gpu, link: int, links: int) -> str:
    """The labels of a row of one NVLink; older releases name the NVSwitch at its end in place of the GPU."""
    pairs: list[tuple[str, object]]
    if dialect.links_name_gpu:
        pairs = [
            ("nvlink", link),
            ("gpu", gpu.index),
            ("gpu_uuid", gpu.uuid),
            ("pci_bus_id", gpu.pci_bus_id),
            ("device", f"nvidia{gpu.index}"),
            ("model_name", gpu.model.name),
        ]
    else:
        pairs = [("nvlink", gpu.index * links + link), ("nvswitch", link % 4)]
    return _text([*pairs, ("hostname", hostname), ("DCGM_FI_DRIVER_VERSION", dialect.driver_version)])


def _identity(dialect: Dialect, hostname: str, gpu: Gpu, slot: Slot) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = [("gpu", gpu.index), ("UUID", gpu.uuid)]
    if dialect.pci_bus_id:
        pairs.append(("pci_bus_id", gpu.pci_bus_id))
    pairs += [("device", f"nvidia{gpu.index}"), ("modelName", gpu.model.name)]
    if slot.profile:
        pairs += [("GPU_I_PROFILE", slot.profile), ("GPU_I_ID", slot.instance_id)]
    return [*pairs, (dialect.hostname_label, hostname), ("DCGM_FI_DRIVER_VERSION", dialect.driver_version)]


def _attributes(dialect: Dialect, gpu: Gpu, slot: Slot, *, xid_row: bool) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    if xid_row and dialect.xid_meaning:
        pairs += [("err_code", gpu.xid.code), ("err_msg", _XID_MEANINGS.get(gpu.xid.code, "Unknown Error"))]
    if FaultKind.UNESCAPED_LABEL in gpu.faults:
        pairs.append(("hpc_job", _UNESCAPED_JOB_NAME))
    workload = slot.job.workload if slot.job is not None else None
    if workload is not None or dialect.empty_pod_labels:
        named = workload or _NO_WORKLOAD
        pairs += [("container", named.container), ("namespace", named.namespace), ("pod", named.pod)]
        if dialect.pod_uid:
            pairs.append(("pod_uid", named.pod_uid))
    return sorted(pairs)
