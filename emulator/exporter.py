"""How one node's exporter was started: its release, and the flags and fields that decide what its page holds."""

from dataclasses import dataclass

from emulator.attribution import Attribution
from emulator.dialects import Dialect


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """One exporter.

    `hostname` is what its rows say, None with its flag -n; `old_spelling` is its flag -o. `collection_seconds` is how
    often it asks the GPUs, between which scrapes find the same values; 0: at every scrape. `entities` are those beside
    GPUs that have rows.
    """

    dialect: Dialect
    hostname: str | None
    attribution: Attribution = Attribution.PODS
    old_spelling: bool = False
    optional_groups: frozenset[str] = frozenset()
    nvlink_rows: int = 0
    entities: frozenset[str] = frozenset()
    collection_seconds: float = 0.0
