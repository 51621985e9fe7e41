"""How the exporter's releases differ on the page: which labels a row has, and how they are spelled.

Named by the DCGM version that the exporter's tags begin with; each says what changed with its first tag.
"""

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way to write a page; the defaults are those of the oldest."""

    first_tag: str
    # XID rows say the code and its meaning again as labels, so a new code is a new series.
    xid_meaning: bool = False
    pci_bus_id: bool = False
    pod_uid: bool = False
    # Whether a GPU without a pod has the pod labels, empty.
    empty_pod_labels: bool = True
    hostname_label: str = "Hostname"
    # Rows of NVLinks name their GPU; before, links were known by their NVSwitch.
    links_name_gpu: bool = False
    throttle_field: str = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"
    driver_version: str = "535.129.03"


_V3_3: Final = Dialect(first_tag="3.3.5-3.4.0")
_V3_4: Final = replace(_V3_3, first_tag="3.3.6-3.4.2", xid_meaning=True)
_V3_5: Final = replace(_V3_4, first_tag="3.3.7-3.5.0", pci_bus_id=True)
_V4_4: Final = replace(
    _V3_5,
    first_tag="4.4.0-4.5.0",
    pod_uid=True,
    empty_pod_labels=False,
    links_name_gpu=True,
    throttle_field="DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    driver_version="580.95.05",
)
_V4_5: Final = replace(_V4_4, first_tag="4.5.3-4.8.2")
_V4_6: Final = replace(_V4_5, first_tag="after 4.5.3-4.8.2", hostname_label="hostname")

DIALECTS: Final[dict[str, Dialect]] = {
    "3.3": _V3_3,
    "3.4": _V3_4,
    "3.5": _V3_5,
    "4.4": _V4_4,
    "4.5": _V4_5,
    "4.6": _V4_6,
}

MIXED: Final = "mixed"
