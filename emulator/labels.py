"""The label text of a row, in the order and spelling of the exporter's release; nothing is escaped, as there."""

from typing import Final

from emulator.attribution import Tenant
from emulator.exporter import Exporter
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


_Pairs = list[tuple[str, object]]


def _text(pairs: _Pairs) -> str:
    return ",".join(f'{name}="{value}"' for name, value in pairs)


def gpu_row(exporter: Exporter, gpu: Gpu, slot: Slot, tenant: Tenant, *, xid_row: bool = False) -> str:
    """The labels of a row of a GPU, or of a MIG instance; rows of the XID family say the code's meaning as well."""
    return _text(_identity(exporter, gpu, slot) + _attributes(exporter, gpu, tenant, xid_row=xid_row))


def xid_count_row(exporter: Exporter, gpu: Gpu, slot: Slot, tenant: Tenant, code: int | None) -> str:
    """The labels of a row that counts the XID errors of one code; None when there were none."""
    window: _Pairs = [("window_size_in_ms", round(XID_WINDOW_SECONDS * 1000))]
    if code is not None:
        window.append(("xid", code))
    return _text(_identity(exporter, gpu, slot) + window + _attributes(exporter, gpu, tenant, xid_row=False))


def link_row(exporter: Exporter, gpu: Gpu, link: int, links: int) -> str:
    """The labels of a row of one NVLink; older releases name the NVSwitch at its end in place of the GPU."""
    if exporter.dialect.links_name_gpu:
        pairs: _Pairs = [
            ("nvlink", link),
            ("gpu", gpu.index),
            ("gpu_uuid", gpu.uuid),
            ("pci_bus_id", gpu.pci_bus_id),
            ("device", f"nvidia{gpu.index}"),
            ("model_name", gpu.model.name),
        ]
        return _text(pairs + _host(exporter, "hostname"))
    return entity_row(exporter, [("nvlink", gpu.index * links + link), ("nvswitch", link % 4)])


def entity_row(exporter: Exporter, identity: _Pairs) -> str:
    """The labels of a row of something that is no GPU."""
    return _text(identity + _host(exporter, exporter.dialect.hostname_label))


def _identity(exporter: Exporter, gpu: Gpu, slot: Slot) -> _Pairs:
    dialect = exporter.dialect
    pairs: _Pairs = [("gpu", gpu.index), ("uuid" if exporter.old_spelling else "UUID", gpu.uuid)]
    if dialect.bare:
        return pairs
    if dialect.pci_bus_id:
        pairs.append(("pci_bus_id", gpu.pci_bus_id))
    pairs += [("device", f"nvidia{gpu.index}"), ("modelName", gpu.model.name)]
    if slot.profile:
        pairs += [("GPU_I_PROFILE", slot.profile), ("GPU_I_ID", slot.instance_id)]
    return pairs + _host(exporter, dialect.hostname_label)


def _host(exporter: Exporter, hostname_label: str) -> _Pairs:
    """What all rows of a page say of the host."""
    pairs: _Pairs = []
    if exporter.hostname is not None:
        pairs.append((hostname_label, exporter.hostname))
    if exporter.dialect.driver_version is not None:
        pairs.append(("DCGM_FI_DRIVER_VERSION", exporter.dialect.driver_version))
    return pairs


def _attributes(exporter: Exporter, gpu: Gpu, tenant: Tenant, *, xid_row: bool) -> _Pairs:
    pairs: _Pairs = []
    if xid_row and exporter.dialect.xid_meaning:
        pairs += [("err_code", gpu.xid.code), ("err_msg", _XID_MEANINGS.get(gpu.xid.code, "Unknown Error"))]
    hpc_job = _UNESCAPED_JOB_NAME if FaultKind.UNESCAPED_LABEL in gpu.faults else tenant.hpc_job
    if hpc_job is not None:
        pairs.append(("hpc_job", hpc_job))
    if tenant.vgpu is not None:
        pairs.append(("vgpu", tenant.vgpu))
    return sorted(pairs + _pod(exporter, tenant.workload))


def _pod(exporter: Exporter, workload: Workload | None) -> _Pairs:
    if not exporter.attribution.kubernetes or (workload is None and not exporter.dialect.empty_pod_labels):
        return []
    named = workload or _NO_WORKLOAD
    names = (
        ("container_name", "pod_namespace", "pod_name") if exporter.old_spelling else ("container", "namespace", "pod")
    )
    pairs: _Pairs = list(zip(names, (named.container, named.namespace, named.pod), strict=True))
    if exporter.dialect.pod_uid:
        pairs.append(("pod_uid", named.pod_uid))
    return pairs
