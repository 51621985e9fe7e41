"""What the engine remembers of one node, and how that is saved and found again.

The saved form is whole: everything that is remembered. It is due (`dirty`) only when something slow changed: an alert,
a GPU, an XID, a counter, a streak. What changes with every record (the clock, the last readings, the last turn of
each bridge) is brought up to date on restoring from the newest stored rows.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from alerting.transitions import AlertKey, Severity
from gpu_telemetry.records import GpuRecord, ScrapeRecord

LONG_AGO: Final = datetime(1, 1, 1, tzinfo=UTC)
NEVER: Final = datetime(9999, 12, 31, tzinfo=UTC)
