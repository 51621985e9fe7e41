"""What the worker knows of nodes, read from what is committed: when a partition comes, or a batch has failed."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

from alerting.engine import Engine
from alerting.partition import OwnedNode, Placement
from alerting.queries import SQL
from alerting.rows import gpu_record_of, scrape_record_of
from gpu_telemetry.records import GpuRecord, ScrapeRecord


def restore_nodes(connection: Connection[Any], engine: Engine, node_ids: Sequence[str]) -> dict[str, OwnedNode]:
    """The nodes, as they were after the last committed batch; one that was never stored begins anew."""
    wanted = {"nodes": sorted(node_ids)}
    saved: dict[str, str | None] = dict(connection.execute(SQL["states_of_nodes"], wanted).fetchall())
    restored: dict[str, OwnedNode] = {}
    placements: dict[str, dict[tuple[int, str, str | None], Placement]] = defaultdict(dict)
    gpu_rows: dict[str, list[GpuRecord]] = defaultdict(list)
    scrape_rows: dict[str, list[ScrapeRecord]] = defaultdict(list)
    if saved:
        with connection.cursor(row_factory=dict_row) as cursor:
            for row in cursor.execute(SQL["placements_of_nodes"], wanted):
                node_id = row["node_id"]
                known = (row["model"], row["driver_version"], row["pci_bus_id"], row.pop("gpu_memory_total_mib"))
                key = (row["gpu_index"], row["gpu_uuid"], row["mig_instance"])
                placements[node_id][key] = Placement(row["placement_id"], known)
                if row["collected_at"] is not None:
                    gpu_rows[node_id].append(gpu_record_of(row))
            for row in cursor.execute(SQL["scrapes_of_nodes"], wanted):
                scrape_rows[row["node_id"]].append(scrape_record_of(row))
    for node_id in node_ids:
        if node_id in saved:
            state = engine.restore(node_id, saved[node_id], gpu_rows[node_id], scrape_rows[node_id])
            restored[node_id] = OwnedNode(state, stored=True, placements=placements[node_id])
        else:
            restored[node_id] = OwnedNode(engine.new_node(node_id), stored=False)
    return restored
