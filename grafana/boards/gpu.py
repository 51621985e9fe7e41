"""GPU: one GPU's history, wherever it stood."""

from typing import Any, Final

from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import (
    IN_DATACENTER,
    NODE,
    OF_MODEL,
    Board,
    active_by_severity,
    cell_link,
    newest_record,
    variable,
    workload_states,
)
from grafana.colours import CRITICAL, GOOD, WARNING, bad_from_one, rule_steps, steps
from grafana.expressions import (
    NAMES,
    OF_GPU,
    device,
    growth,
    kinds,
    line_by_gpu,
    line_by_slice,
    memory_percent,
    power,
    profiled,
    temperature,
)
from grafana.panels import (
    PanelBuilder,
    bars,
    column,
    from_one,
    lines,
    properties,
    stat_panel,
    states,
    table_panel,
    value_map,
)
from grafana.severities import OUTCOME_MAPPING, RANK, severity_column, time_column
from grafana.sources import Query, now, now_or_words, over_time, sql_or_words

_HERE: Final = "gpu_uuid = '$uuid'"
# The node `n` is the one that its newest record is of.
_STANDS_IN: Final = f"""
n.node_id = (
    SELECT p.node_id
      FROM placements p
      {newest_record("p", 6)}
     WHERE p.{_HERE}
     ORDER BY r.collected_at DESC NULLS LAST, p.placement_id DESC
     LIMIT 1
)
""".strip()
_COUNTERS: Final = {
    "ECC, corrected": "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
    "ECC, uncorrected": "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
    "Remapped, corrected": "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "Remapped, uncorrected": "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "PCIe replays": "DCGM_FI_DEV_PCIE_REPLAY_COUNTER",
    "NVLink CRC errors": "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
    "NVLink replays": "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
    "NVLink recoveries": "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
}


def gpu() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.GPU,
        "For whoever decides what becomes of one GPU: what happened to it on every node where it stood, which errors "
        "it had, what was done about them, and who used it. Alerts and actions are marked on each graph.",
        since="now-6h",
    )
    built.variables(
        board.datacenters(),
        board.models(),
        board.nodes(),
        variable(
            "uuid",
            "GPU",
            f"""
            SELECT p.gpu_uuid AS __value,
                   'GPU ' || min(p.gpu_index) || ', ' || p.gpu_uuid AS __text
              FROM placements p JOIN nodes n USING (node_id) JOIN gpus g USING (gpu_uuid)
             WHERE p.node_id = '$node' AND {IN_DATACENTER} AND {OF_MODEL}
             GROUP BY p.gpu_uuid
             ORDER BY min(p.gpu_index), p.gpu_uuid
            """,
            whole=False,
        ),
    )
    condition = f"a.{_HERE}"
    built.annotations(*board.alert_annotations(condition), board.action_annotations(condition))
    _who_it_is(built)
    _history(built)
    _errors(built)
    _use(built)
    return built.build()


def _who_it_is(built: Board) -> None:
    places = ("Node", "GPU", "MIG", "Since", "Newest record", "Datacenter")
    built.put(
        4,
        (
            table_panel(
                "What it is",
                "Which GPU is this, by model, driver and address?",
                sql_or_words(
                    ("Model", "UUID", "Driver", "PCI address", "Memory"),
                    f"""
                    SELECT model AS "Model", gpu_uuid AS "UUID", driver_version AS "Driver",
                           pci_bus_id AS "PCI address", memory_total_mib AS "Memory"
                      FROM gpus WHERE {_HERE}
                    """,
                    words="Choose a GPU",
                    column="UUID",
                ),
                columns=[
                    column("UUID", width=355),
                    column("Memory", unit="mbytes", width=80, decimals=1),
                    column("Driver", width=85),
                    column("PCI address", width=140),
                ],
            ),
            16,
        ),
        (
            stat_panel(
                "Now",
                "How warm is it, what does it draw, and how many of its alerts are active? Unknown: nothing is "
                "heard of its node.",
                now_or_words(f"max({temperature(OF_GPU)})", "temperature"),
                now_or_words(f"max({power(OF_GPU)})", "power"),
                *active_by_severity(
                    f"FROM alerts a WHERE a.status = 'active' AND a.{_HERE}",
                    nodes=_STANDS_IN,
                    names=("critical alerts", "warnings"),
                ),
                names=True,
                thresholds=rule_steps("high_temperature"),
                unit="celsius",
                empty="unknown",
            )
            .override_by_name("power", properties(unit="watt", decimals=0, thresholds=steps("blue").build()))
            .override_by_name("critical alerts", properties(unit="short", thresholds=bad_from_one(CRITICAL).build()))
            .override_by_name("warnings", properties(unit="short", thresholds=bad_from_one(WARNING).build())),
            8,
        ),
    )
    built.put(
        6,
        (
            table_panel(
                "Where it stood",
                "On which nodes, and at which index, was it seen?",
                sql_or_words(
                    places,
                    f"""
                    SELECT p.node_id AS "Node", p.gpu_index AS "GPU",
                           p.mig_profile || '/' || p.mig_instance AS "MIG", p.since AS "Since",
                           (SELECT max(m.collected_at) FROM gpu_metrics m WHERE m.placement_id = p.placement_id)
                               AS "Newest record",
                           n.datacenter AS "Datacenter"
                      FROM placements p JOIN nodes n USING (node_id)
                     WHERE p.{_HERE}
                     ORDER BY p.since DESC, p.mig_instance
                     LIMIT 100
                    """,
                    words="Choose a GPU",
                    column="Datacenter",
                ),
                columns=[
                    column("Node", link=cell_link(NODE, "Open the node", node="Node")),
                    column("GPU", width=60, left=True),
                    time_column("Since"),
                    time_column("Newest record"),
                ],
            ),
            16,
        ),
        (
            bars(
                "Errors in this range, by kind",
                "Which of its error counters moved, and by how much? Its exporter does not send what is not shown.",
                now(_errors_by_kind(), "{{kind}}"),
                decimals=0,
                thresholds=steps(GOOD, (0.5, WARNING)),
            ),
            8,
        ),
    )


def _errors_by_kind() -> str:
    # Kinds that the exporter does not send are missing, and all of them where it does not report.
    moved = [
        f"label_replace(sum(max by (node_id, UUID) ({growth('increase', name, OF_GPU, '$__range')})), "
        f'"kind", "{kind}", "", "")'
        for kind, name in _COUNTERS.items()
    ]
    return f'({" or ".join(moved)}) or on () label_replace(vector(0), "kind", "not reported", "", "")'


def _line(title: str, description: str, *queries: Query, **look: Any) -> tuple[PanelBuilder, int]:  # noqa: ANN401
    return lines(title, description, *queries, **look), 12


def _by_kind(**expressions: str) -> Query:
    return over_time(kinds(**expressions), f"{{{{kind}}}}, {NAMES}")


def _history(built: Board) -> None:
    built.row("History")
    silent = "It did not report in this range"
    built.put(
        8,
        _line(
            "Temperature",
            "When was it hot, and did what was done help? Dashed: where the alert rule warns and is critical.",
            _by_kind(
                core=line_by_gpu(temperature(OF_GPU)),
                memory=line_by_gpu(device("MEMORY_TEMP", OF_GPU, high=200) + " > 0"),
            ),
            unit="celsius",
            thresholds=rule_steps("high_temperature"),
            soft_high=100,
            colours={"core": "blue", "memory": "purple"},
            empty=silent,
        ),
        _line(
            "Power",
            "What did it draw? The alert rule's limit depends on the model.",
            over_time(line_by_gpu(power(OF_GPU)), NAMES),
            unit="watt",
            low=0,
            colours={".": "blue"},
            empty=silent,
        ),
    )
    built.put(
        8,
        _line(
            "Utilisation and what it does",
            "Was it at work, and with what: its tensor cores, or its memory?",
            _by_kind(
                utilisation=line_by_slice(device("GPU_UTIL", OF_GPU, high=100)),
                engines=line_by_slice(f"100 * {profiled('GR_ENGINE_ACTIVE', OF_GPU)}"),
                tensor_cores=line_by_slice(f"100 * {profiled('PIPE_TENSOR_ACTIVE', OF_GPU)}"),
                memory_traffic=line_by_slice(f"100 * {profiled('DRAM_ACTIVE', OF_GPU)}"),
            ),
            unit="percent",
            low=0,
            high=100,
            colours={"^utilisation": "blue", "^engines": "light-blue", "^tensor": "green", "^memory": "purple"},
            empty=silent,
        ),
        _line(
            "Memory in use",
            "Was its memory full? Share of what is used and free. Dashed: where the alert rule warns.",
            over_time(line_by_slice(memory_percent(OF_GPU)), NAMES),
            unit="percent",
            low=0,
            high=100,
            thresholds=rule_steps("high_memory"),
            empty=silent,
        ),
    )
    built.put(
        6,
        _line(
            "Clocks",
            "Did it run at full speed?",
            _by_kind(
                SM=f"1e6 * {line_by_gpu(device('SM_CLOCK', OF_GPU, high=10000))}",
                memory=f"1e6 * {line_by_gpu(device('MEM_CLOCK', OF_GPU, high=50000))}",
            ),
            unit="hertz",
            low=0,
            colours={"^SM": "blue", "^memory": "purple"},
            empty=silent,
        ),
        (
            states(
                "Last XID",
                "Which error code did the driver show, and since when? The code stays until the driver is loaded anew.",
                over_time(line_by_gpu(device("XID_ERRORS", OF_GPU, high=10000)), NAMES),
                mappings=[*value_map({"0": ("none", GOOD)}), from_one(CRITICAL)],
                row_height=0.5,
                empty=silent,
            ),
            12,
        ),
    )


def _errors(built: Board) -> None:
    built.row("What went wrong, and what was done")
    alerts = ("Since", "Until", "Severity", "Alert", "Node", "Message", "Ended by")
    actions = ("When", "Action", "Outcome", "Reason", "For")
    built.put(
        7,
        (
            table_panel(
                "Its alerts in this range",
                "What was wrong with it (at most 100)?",
                sql_or_words(
                    alerts,
                    f"""
                    SELECT a.triggered_at AS "Since", a.resolved_at AS "Until", a.severity AS "Severity",
                           a.alert_type AS "Alert", a.node_id AS "Node", a.message AS "Message",
                           a.resolved_reason AS "Ended by"
                      FROM alerts a
                     WHERE a.{_HERE} AND a.triggered_at <= $__timeTo()
                       AND coalesce(a.resolved_at, now()) >= $__timeFrom()
                     ORDER BY a.status, {RANK}, a.triggered_at DESC
                     LIMIT 100
                    """,
                    words="No alert of this GPU in this range",
                    column="Message",
                ),
                columns=[
                    time_column("Since"),
                    time_column("Until"),
                    severity_column(),
                    column("Alert", width=150),
                    column("Node", width=100, link=cell_link(NODE, "Open the node", node="Node")),
                    column("Ended by", width=90),
                ],
            ),
            24,
        ),
    )
    built.put(
        7,
        (
            table_panel(
                "What was done about them",
                "Which notices and migrations were decided for this GPU, and what became of them (at most 100)?",
                sql_or_words(
                    actions,
                    f"""
                    SELECT c.event_time AS "When", c.action_type AS "Action", c.status AS "Outcome",
                           c.reason AS "Reason", a.alert_type || ' ' || c.transition AS "For"
                      FROM alert_actions c JOIN alerts a ON a.id = c.alert_id
                     WHERE a.{_HERE} AND $__timeFilter(c.event_time)
                     ORDER BY c.event_time DESC
                     LIMIT 100
                    """,
                    words="Nothing was decided in this range",
                    column="Reason",
                ),
                columns=[
                    time_column("When"),
                    column("Action", width=150),
                    column("Outcome", width=95, mappings=OUTCOME_MAPPING),
                ],
            ),
            24,
        ),
    )


def _use(built: Board) -> None:
    built.row("Who used it")
    built.put(
        6,
        (
            states(
                "Workloads",
                "Which pod or job had it, and when was it free?",
                workload_states(
                    "p.node_id || ' GPU ' || p.gpu_index"
                    " || coalesce(' MIG ' || p.mig_profile || '/' || p.mig_instance, '')",
                    f"p.{_HERE}",
                ),
                mappings=value_map({"free": ("free", "super-light-green")}),
                by_row="metric",
                row_height=0.6,
                empty="No record of this GPU in this range",
            ),
            24,
        ),
    )
