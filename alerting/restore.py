"""What the worker knows of nodes, read from what is committed: when a partition comes, or a batch has failed."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from psycopg import Connection
from psycopg.rows import dict_row

from alerting.engine import Engine
from alerting.partition import OwnedNode, Placement, PlacementKey
from alerting.queries import SQL
from alerting.rows import gpu_record_of, scrape_record_of
from gpu_telemetry.records import GpuRecord, ScrapeRecord

# Each node brings a few dozen wide rows; so many nodes at a time keep what is in memory small.
_NODES_AT_A_TIME: Final = 500


def restore_nodes(connection: Connection[Any], engine: Engine, node_ids: Sequence[str]) -> dict[str, OwnedNode]:
    """The nodes, as they were after the last committed batch; one that was never stored begins anew."""
    restored: dict[str, OwnedNode] = {}
    ordered = sorted(node_ids)
    for start in range(0, len(ordered), _NODES_AT_A_TIME):
        restored |= _restore_some(connection, engine, ordered[start : start + _NODES_AT_A_TIME])
    return restored


def _restore_some(connection: Connection[Any], engine: Engine, node_ids: list[str]) -> dict[str, OwnedNode]:
    wanted = {"nodes": node_ids}
    saved: dict[str, tuple[datetime, str, str | None]] = {
        node_id: (first_seen, status, state)
        for node_id, first_seen, status, state in connection.execute(SQL["states_of_nodes"], wanted)
    }
    restored = {node_id: OwnedNode(engine.new_node(node_id)) for node_id in node_ids}
    if not saved:
        return restored
    placements: dict[str, dict[PlacementKey, Placement]] = defaultdict(dict)
    gpu_rows: dict[str, list[GpuRecord]] = defaultdict(list)
    scrape_rows: dict[str, list[ScrapeRecord]] = defaultdict(list)
    with connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(SQL["placements_of_nodes"], wanted):
            node_id = row["node_id"]
            memory = row.pop("gpu_memory_total_mib")
            if row["mig_instance"] is not None:
                memory = row["memory_total_mib"]  # what an instance says of memory is its own
            known = (row["model"], row["driver_version"], row["pci_bus_id"], memory)
            key = (row["gpu_index"], row["gpu_uuid"], row["mig_instance"])
            placements[node_id][key] = Placement(row["placement_id"], known, row.pop("since"))
            if row["collected_at"] is not None:
                gpu_rows[node_id].append(gpu_record_of(row))
        for row in cursor.execute(SQL["scrapes_of_nodes"], wanted):
            scrape_rows[row["node_id"]].append(scrape_record_of(row))
    for node_id, (first_seen, status, kept) in saved.items():
        state = engine.restore(node_id, kept, gpu_rows[node_id], scrape_rows[node_id])
        restored[node_id] = OwnedNode(state, first_seen, status, placements[node_id])
    return restored
