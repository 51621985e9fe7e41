"""Inventory: what there is."""

from typing import Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import GPU, IN_DATACENTER, NODE, NODE_ORDER, OF_MODEL, Board, cell_link, standing
from grafana.colours import CRITICAL, WARNING, plain, steps
from grafana.expressions import FLEET
from grafana.panels import column, organised, stat_panel, table_panel
from grafana.severities import NODE_STATE, NODE_STATUS_MAPPING, time_column
from grafana.sources import rows_or_words, sql, sql_or_words

# Of a GPU's newest records: one, or one for each of its MIG instances.
_ERRORS: Final = {
    "XID": "m.xid_code",
    "ECC corrected": "m.ecc_single_bit_aggregate",
    "ECC uncorrected": "m.ecc_double_bit_aggregate",
    "Remapped": "m.row_remap_uncorrectable_rows",
    "Remap failed": "m.row_remap_failure",
    "Retired": "m.retired_pages_double_bit",
    "PCIe replays": "m.pcie_replay_count",
}


def inventory() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.INVENTORY,
        "For whoever buys, upgrades and replaces: which models, drivers and VBIOS there are and where, and which GPUs "
        "carry errors that do not go away.",
        since="now-24h",
        refresh="5m",
    )
    built.variables(board.datacenters(), board.models())
    _counts(built)
    _errors(built)
    _nodes(built)
    return built.build()


def _counts(built: Board) -> None:
    places = f"FROM {standing()}\nWHERE {OF_MODEL}"
    built.put(
        4,
        *(
            (
                stat_panel(title, description, sql(query), thresholds=plain("blue"), unit=unit, decimals=decimals),
                6,
            )
            for title, description, query, unit, decimals in (
                (
                    "Nodes",
                    "How many nodes are in the configuration?",
                    f'SELECT count(*) AS "Nodes" FROM nodes n WHERE n.removed_at IS NULL AND {IN_DATACENTER}',
                    "short",
                    0,
                ),
                ("GPUs", "How many GPUs stand in them?", f'SELECT count(*) AS "GPUs"\n{places}', "short", 0),
                (
                    "GPU memory",
                    "How much memory have they together?",
                    f'SELECT coalesce(sum(g.memory_total_mib), 0)::double precision AS "Memory"\n{places}',
                    "mbytes",
                    1,
                ),
                (
                    "Drivers",
                    "How many driver versions are in use? One is easiest to support.",
                    f'SELECT count(DISTINCT g.driver_version) AS "Drivers"\n{places}',
                    "short",
                    0,
                ),
            )
        ),
    )
    built.put(
        7,
        *(
            (
                table_panel(
                    title,
                    description,
                    sql_or_words(
                        ("Name", "GPUs"),
                        f'SELECT coalesce({value}, \'{unknown}\') AS "Name", count(*) AS "GPUs"\n{places}\n'
                        "GROUP BY 1 ORDER BY 2 DESC LIMIT 20",
                        words="no GPU was seen yet",
                        column="Name",
                    ),
                    columns=[column("GPUs", width=80, unit="locale")],
                ),
                6,
            )
            for title, description, value, unknown in (
                ("GPUs by model", "Which models are there?", "g.model", "not told"),
                ("GPUs by driver", "Which driver versions run?", "g.driver_version", "not told"),
                ("GPUs by datacenter", "Where do the GPUs stand?", "place.datacenter", "none"),
            )
        ),
        (
            table_panel(
                "Nodes by datacenter",
                "Where do the nodes stand?",
                sql_or_words(
                    ("Name", "Nodes"),
                    f"""
                    SELECT coalesce(n.datacenter, 'none') AS "Name", count(*) AS "Nodes"
                      FROM nodes n
                     WHERE n.removed_at IS NULL AND {IN_DATACENTER}
                     GROUP BY 1 ORDER BY 2 DESC LIMIT 20
                    """,
                    words="no node was seen yet",
                    column="Name",
                ),
                columns=[column("Nodes", width=80, unit="locale")],
            ),
            6,
        ),
    )


def _errors(built: Board) -> None:
    built.row("GPUs that carry errors")
    measured = ", ".join(f'max({value}) AS "{name}"' for name, value in _ERRORS.items())
    worst = " OR ".join(f'"{name}" > 0' for name in _ERRORS if name != "PCIe replays")
    columns = ("Node", "GPU", "Model", *_ERRORS, "Newest record", "uuid")
    shown = ", ".join(f'"{name}"' for name in columns)
    built.put(
        12,
        (
            table_panel(
                "GPUs with a non-zero error count",
                "Which GPUs should be watched or replaced, the gravest first (at most 100)? Of their newest records: "
                "the last XID, ECC errors over its life, rows remapped for hard errors, pages retired. Empty: its "
                "exporter does not tell.",
                sql_or_words(
                    columns,
                    f"""
                    SELECT {shown}
                      FROM (
                          SELECT place.node_id AS "Node", place.gpu_index AS "GPU", g.model AS "Model", {measured},
                                 place.at AS "Newest record", place.gpu_uuid AS uuid
                            FROM {standing(28)}
                            JOIN placements p USING (node_id, gpu_index, gpu_uuid)
                            JOIN gpu_metrics m ON m.placement_id = p.placement_id AND m.collected_at = place.at
                           WHERE {OF_MODEL}
                           GROUP BY 1, 2, 3, place.at, place.gpu_uuid
                      ) gpu
                     WHERE {worst}
                     ORDER BY "Remap failed" DESC NULLS LAST, "ECC uncorrected" DESC NULLS LAST,
                              "XID" DESC NULLS LAST, "Remapped" DESC NULLS LAST, "ECC corrected" DESC NULLS LAST
                     LIMIT 100
                    """,
                    words="No GPU has a non-zero error count",
                    column="Model",
                ),
                columns=[
                    column("Node", width=120, link=cell_link(NODE, "Open the node", node="Node")),
                    column("GPU", width=55, left=True, link=cell_link(GPU, "Open the GPU", node="Node", uuid="uuid")),
                    column("XID", width=70, thresholds=steps("text", (1, CRITICAL))),
                    column("ECC corrected", width=120, thresholds=steps("text", (1000, WARNING))),
                    column("ECC uncorrected", width=140, thresholds=steps("text", (1, CRITICAL))),
                    column("Remapped", width=90, thresholds=steps("text", (1, WARNING))),
                    column("Remap failed", width=105, thresholds=steps("text", (1, CRITICAL))),
                    column("Retired", width=75, thresholds=steps("text", (1, WARNING))),
                    column("PCIe replays", width=105),
                    time_column("Newest record"),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )


def _nodes(built: Board) -> None:
    built.row("Nodes and firmware")
    built.put(
        10,
        (
            table_panel(
                "Nodes",
                "What is each node, the ones that are not healthy first (at most 200)?",
                sql_or_words(
                    ("Node", "State", "Datacenter", "Host name", "GPUs", "Models", "First seen", "Last seen"),
                    f"""
                    SELECT n.node_id AS "Node", {NODE_STATE} AS "State", n.datacenter AS "Datacenter",
                           n.hostname AS "Host name", count(g.gpu_uuid) AS "GPUs",
                           string_agg(DISTINCT g.model, ', ') AS "Models", n.first_seen AS "First seen",
                           n.last_seen AS "Last seen"
                      FROM nodes n LEFT JOIN ({standing(22)}) USING (node_id)
                     WHERE n.removed_at IS NULL AND {IN_DATACENTER} AND (g.gpu_uuid IS NULL OR {OF_MODEL})
                     GROUP BY n.node_id
                     ORDER BY array_position(ARRAY['down', 'unknown', 'critical', 'warning', 'healthy'], {NODE_STATE}),
                              {NODE_ORDER}
                     LIMIT 200
                    """,
                    words="No node was seen yet",
                    column="Models",
                ),
                columns=[
                    column("Node", width=100, link=cell_link(NODE, "Open the node", node="Node")),
                    column("State", width=75, mappings=NODE_STATUS_MAPPING),
                    column("Datacenter", width=100),
                    column("Host name", width=100),
                    column("GPUs", width=55),
                    time_column("First seen"),
                    time_column("Last seen"),
                ],
            ),
            17,
        ),
        (
            table_panel(
                "GPUs by VBIOS",
                "Which firmware do they run, where exporters tell (DCGM_FI_DEV_VBIOS_VERSION as a label)?",
                rows_or_words(
                    "count by (modelName, DCGM_FI_DEV_VBIOS_VERSION) ("
                    "max by (modelName, DCGM_FI_DEV_VBIOS_VERSION, UUID)"
                    f' (DCGM_FI_DEV_GPU_TEMP{{{FLEET},DCGM_FI_DEV_VBIOS_VERSION!=""}}))',
                    label="modelName",
                    words="no exporter tells",
                ),
                columns=[column("GPUs", width=65)],
                transformations=[
                    organised(
                        ("modelName", "DCGM_FI_DEV_VBIOS_VERSION", "Value"),
                        {"modelName": "Model", "DCGM_FI_DEV_VBIOS_VERSION": "VBIOS", "Value": "GPUs"},
                        ("Time",),
                    )
                ],
            ),
            7,
        ),
    )
