"""Node: the GPUs of one node side by side."""

from typing import Any, Final

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import GPU, Board, active_by_severity, cell_link, series_link, variable, workload_states
from grafana.colours import CRITICAL, GOOD, OF_GPUS, WARNING, bad_from_one, plain, rule_steps
from grafana.expressions import (
    NAMES,
    ON_NODE,
    by_gpu,
    device,
    growth,
    line_by_gpu,
    line_by_slice,
    memory_percent,
    of_workload,
    power,
    profiled,
    temperature,
    throttle_mask,
)
from grafana.panels import (
    PanelBuilder,
    column,
    lines,
    organised,
    properties,
    stat_panel,
    states,
    table_panel,
    transform,
    value_map,
)
from grafana.severities import NODE_STATE, NODE_STATUS_MAPPING, RANK, severity_column, time_column
from grafana.sources import now, now_or_words, over_time, rows_or_words, sql, sql_or_words

_HERE: Final = "node_id = '$node'"
_OPEN_GPU: Final = series_link(GPU, "Open this GPU", node="node_id", uuid="uuid")
_COLOURS: Final = {f"GPU {index}( |$)": colour for index, colour in enumerate(OF_GPUS)}
_ROW: Final = "gpu, modelName, UUID, GPU_I_PROFILE, GPU_I_ID, namespace, pod, hpc_job"
# Of a GPU's bits the gravest counts: hardware slowdown or power brake, heat, power cap, none; 1 is idle.
_THROTTLE: Final = value_map(
    {
        "0": ("full speed", GOOD),
        "1": ("idle", "semi-dark-blue"),
        "2": ("power cap", "light-yellow"),
        "3": ("hot: slowed down", WARNING),
        "4": ("hardware slowdown", CRITICAL),
    }
)


def _throttle_state(pick: str) -> str:
    mask = by_gpu(throttle_mask(pick))
    grave = f"4 * ((floor({mask} / 8) % 2 + floor({mask} / 128) % 2) > 0)"
    hot = f"3 * ((floor({mask} / 32) % 2 + floor({mask} / 64) % 2) > 0)"
    capped = f"2 * (floor({mask} / 4) % 2 > 0)"
    idle = f"({mask} % 2 > 0)"
    return f"clamp_max({grave}, 4) or clamp_max({hot}, 3) or {capped} or {idle} or 0 * {mask}"


def node() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.NODE,
        "For whoever was sent to one node: which GPU is unlike the others, since when, and whose work is on it? "
        "Each graph has a line for each GPU or MIG instance, in the same colour everywhere.",
    )
    built.variables(
        board.datacenters(),
        board.models(),
        board.nodes(),
        variable(
            "gpu",
            "GPU",
            f"SELECT DISTINCT p.gpu_index FROM placements p WHERE p.{_HERE} ORDER BY 1",
            multiple=True,
        ),
    )
    condition = f"a.{_HERE}"
    built.annotations(*board.alert_annotations(condition), board.action_annotations(condition))
    _at_a_glance(built)
    _heat_and_speed(built)
    _work(built)
    _traffic(built)
    _events(built)
    return built.build()


def _gpus_now(expression: str) -> prometheus.Dataquery:
    """A row for each GPU, MIG instance and workload on the page: with no number where this is not told or believed."""
    found, there = (f"max by ({_ROW}) ({of_workload(each)})" for each in (expression, device("GPU_TEMP", ON_NODE)))
    return rows_or_words(f"{found} or NaN * {there}", label="pod", words="No GPU of this node reports")


def _at_a_glance(built: Board) -> None:
    built.put(
        4,
        (
            stat_panel(
                "State",
                "What does the alert engine say of the node? Unknown: nothing was heard of it for three intervals.",
                sql(f'SELECT {NODE_STATE} AS "State" FROM nodes n WHERE n.{_HERE}'),
                mappings=NODE_STATUS_MAPPING,
                fields="/.*/",
                empty="Choose a node",
            ),
            4,
        ),
        (
            stat_panel(
                "GPUs reporting",
                "How many GPUs are on its page now?",
                now(f"count({by_gpu(device('GPU_TEMP', ON_NODE))}) or vector(0)"),
                thresholds=plain("blue"),
            ),
            3,
        ),
        (
            stat_panel(
                "Active alerts",
                "How many alerts of this node and its GPUs fire now, critical and of lower severity? Not evaluated: "
                "nothing is heard of it, so no rule looks at it.",
                *active_by_severity(
                    f"FROM alerts a WHERE a.status = 'active' AND a.{_HERE}",
                    nodes=f"n.{_HERE}",
                ),
                names=True,
                thresholds=bad_from_one(WARNING),
                empty="not evaluated",
                links=[board.plain_link(board.ALERTS, "Alerts and actions", node="$node")],
            ).override_by_name("critical", properties(thresholds=bad_from_one(CRITICAL).build())),
            5,
        ),
        (
            stat_panel(
                "Hottest GPU",
                "How warm is the hottest of these GPUs?",
                now_or_words(f"max({temperature(ON_NODE)})"),
                unit="celsius",
                thresholds=rule_steps("high_temperature"),
                empty="No GPU reports",
            ),
            4,
        ),
        (
            stat_panel(
                "Power",
                "What do these GPUs draw together?",
                now_or_words(f"sum({by_gpu(power(ON_NODE))})"),
                unit="watt",
                decimals=1,
                thresholds=plain("blue"),
                empty="No GPU reports",
            ),
            4,
        ),
        (
            stat_panel(
                "Last good scrape, ago",
                "How many seconds ago was its exporter's page last read and good?",
                sql(f'SELECT greatest(extract(epoch FROM now() - last_seen), 0) AS "ago" FROM nodes WHERE {_HERE}'),
                unit="s",
                decimals=0,
                thresholds=plain("blue"),
                empty="Never",
            ),
            4,
        ),
    )
    built.put(
        11,
        (
            table_panel(
                "Its GPUs now",
                "Which GPU is unlike the others, and who uses it? A MIG instance has a row of its own.",
                _gpus_now(temperature(ON_NODE)),
                _gpus_now(power(ON_NODE)),
                _gpus_now(f"{device('GPU_UTIL', ON_NODE, high=100)} or 100 * {profiled('GR_ENGINE_ACTIVE', ON_NODE)}"),
                _gpus_now(f"100 * {profiled('PIPE_TENSOR_ACTIVE', ON_NODE)}"),
                _gpus_now(memory_percent(ON_NODE)),
                _gpus_now(device("XID_ERRORS", ON_NODE, high=10000)),
                columns=[
                    column("GPU", width=65, left=True, link=cell_link(GPU, "Open this GPU", node="node", uuid="UUID")),
                    column("MIG profile", width=100),
                    column("MIG", width=50),
                    column(
                        "Temperature",
                        unit="celsius",
                        width=125,
                        decimals=0,
                        gauge_to=105,
                        thresholds=rule_steps("high_temperature"),
                    ),
                    column("Power", unit="watt", width=90, decimals=0),
                    column("Utilisation", unit="percent", width=125, decimals=0, gauge_to=100),
                    column("Tensor", unit="percent", width=125, decimals=0, gauge_to=100),
                    column(
                        "Memory",
                        unit="percent",
                        width=125,
                        decimals=0,
                        gauge_to=100,
                        thresholds=rule_steps("high_memory"),
                    ),
                    column("Last XID", width=80, thresholds=bad_from_one(CRITICAL)),
                    column("UUID", hidden=True),
                ],
                transformations=[
                    transform("merge"),
                    organised(
                        (
                            "gpu",
                            "GPU_I_PROFILE",
                            "GPU_I_ID",
                            "modelName",
                            "Value #A",
                            "Value #B",
                            "Value #C",
                            "Value #D",
                            "Value #E",
                            "Value #F",
                            "namespace",
                            "pod",
                            "hpc_job",
                            "UUID",
                        ),
                        {
                            "gpu": "GPU",
                            "GPU_I_PROFILE": "MIG profile",
                            "GPU_I_ID": "MIG",
                            "modelName": "Model",
                            "Value #A": "Temperature",
                            "Value #B": "Power",
                            "Value #C": "Utilisation",
                            "Value #D": "Tensor",
                            "Value #E": "Memory",
                            "Value #F": "Last XID",
                            "namespace": "Namespace",
                            "pod": "Pod",
                            "hpc_job": "Job",
                        },
                        ("Time", "modelName"),
                    ),
                ],
                sort_by=("GPU", False),
            ),
            24,
        ),
    )


def _line(
    title: str,
    description: str,
    expression: str,
    *,
    width: int = 12,
    **look: Any,  # noqa: ANN401 - as of lines()
) -> tuple[PanelBuilder, int]:
    panel = lines(
        title, description, over_time(expression, NAMES), links=[_OPEN_GPU], legend_right=True, colours=_COLOURS, **look
    )
    return panel, width


def _heat_and_speed(built: Board) -> None:
    built.row("Heat, power and speed")
    built.put(
        8,
        _line(
            "Temperature",
            "Which GPU is warmer than its neighbours? Dashed: where the alert rule warns and is critical.",
            line_by_gpu(temperature(ON_NODE)),
            unit="celsius",
            thresholds=rule_steps("high_temperature"),
            soft_high=100,
            empty="No GPU of this node reported a temperature in this range",
        ),
        _line(
            "Power",
            "Which GPU draws more or less than others at the same work? The alert rule's limit depends on the model.",
            line_by_gpu(power(ON_NODE)),
            unit="watt",
            low=0,
            empty="No GPU of this node reported its power in this range",
        ),
    )
    built.put(
        8,
        _line(
            "SM clock",
            "Which GPU runs slower than the others? The row below says what holds it.",
            "1e6 * " + line_by_gpu(device("SM_CLOCK", ON_NODE, high=10000)),
            unit="hertz",
            low=0,
            empty="No GPU of this node reported its clock in this range",
        ),
        (
            states(
                "What holds the clocks down",
                "Does heat or hardware slow a GPU down? A power cap is how a GPU under full load runs. Exporters tell "
                "only where DCGM_FI_DEV_CLOCKS_EVENT_REASONS is in their list of fields.",
                over_time(line_by_gpu(_throttle_state(ON_NODE)), NAMES),
                mappings=_THROTTLE,
                links=[_OPEN_GPU],
                empty="The exporter does not tell: DCGM_FI_DEV_CLOCKS_EVENT_REASONS is not in its list of fields",
            ),
            12,
        ),
    )


def _work(built: Board) -> None:
    built.row("Work")
    built.put(
        8,
        _line(
            "Utilisation",
            "Which GPU has no work while its neighbours do? Share of time with a kernel running; of a MIG instance, "
            "share of time with an engine busy.",
            f"({line_by_slice(device('GPU_UTIL', ON_NODE, high=100))} "
            f"or {line_by_slice('100 * ' + profiled('GR_ENGINE_ACTIVE', ON_NODE))})",
            unit="percent",
            low=0,
            high=100,
            empty="No GPU of this node reported its utilisation in this range",
        ),
        _line(
            "Tensor activity",
            "Does the work use the tensor cores? High utilisation with low tensor activity is a GPU that waits for "
            "data, or code that does not use them.",
            line_by_slice("100 * " + profiled("PIPE_TENSOR_ACTIVE", ON_NODE)),
            unit="percent",
            low=0,
            soft_high=100,
            empty="The exporter does not tell: DCGM_FI_PROF_PIPE_TENSOR_ACTIVE is not in its list of fields",
        ),
    )
    built.put(
        8,
        _line(
            "Memory in use",
            "Which GPU's memory is nearly full? Share of what is used and free. Dashed: where the alert rule warns.",
            line_by_slice(memory_percent(ON_NODE)),
            unit="percent",
            low=0,
            high=100,
            thresholds=rule_steps("high_memory"),
            empty="No GPU of this node reported its memory in this range",
        ),
        _line(
            "NVLink",
            "Do the GPUs of a job exchange as much as each other? DCGM's counter of all links' traffic, as it grows; "
            "its unit depends on the release (MiB in most).",
            line_by_gpu(growth("rate", "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", ON_NODE, "$__rate_interval")),
            unit="cps",
            low=0,
            empty="These GPUs have no NVLink, or the exporter does not tell",
        ),
    )
    built.put(
        14,
        (
            states(
                "Who used it",
                "Which pod or job had which GPU, and when was one free?",
                workload_states(
                    "'GPU ' || m.gpu_index || coalesce(' MIG ' || p.mig_profile || '/' || p.mig_instance, '')",
                    f"m.{_HERE} AND p.{_HERE} AND m.gpu_index::text ~ '^(${{gpu:regex}})$'",
                ),
                mappings=value_map({"free": ("free", "super-light-green")}),
                by_row="metric",
                empty="No record of this node in this range",
            ),
            24,
        ),
    )


def _traffic(built: Board) -> None:
    built.row("Traffic")
    built.put(
        8,
        _line(
            "PCIe received",
            "Which GPU is fed over PCIe, and how fast?",
            line_by_slice(profiled("PCIE_RX_BYTES", ON_NODE, high=1e13)),
            unit="Bps",
            low=0,
            empty="The exporter does not tell: DCGM_FI_PROF_PCIE_RX_BYTES is not in its list of fields",
        ),
        _line(
            "PCIe sent",
            "Which GPU sends over PCIe, and how fast?",
            line_by_slice(profiled("PCIE_TX_BYTES", ON_NODE, high=1e13)),
            unit="Bps",
            low=0,
            empty="The exporter does not tell: DCGM_FI_PROF_PCIE_TX_BYTES is not in its list of fields",
        ),
    )


def _events(built: Board) -> None:
    built.row("Errors and alerts")
    errors = "('xid_error', 'ecc_double_bit', 'row_remap_failure')"
    columns = ("Time", "GPU", "What", "Transition", "Severity", "Message", "uuid")
    alerts = ("Since", "Until", "Severity", "Alert", "GPU", "Message", "uuid")
    to_gpu = cell_link(GPU, "Open this GPU", node="node", uuid="uuid")
    built.put(
        8,
        (
            table_panel(
                "XID, ECC and row-remapping events in this range",
                "What did the driver report of these GPUs? An inherited event is a code that stood there when the "
                "GPU was first seen.",
                sql_or_words(
                    columns,
                    f"""
                    SELECT at AS "Time", gpu_index AS "GPU", alert_type AS "What", transition AS "Transition",
                           severity AS "Severity", message AS "Message", gpu_uuid AS uuid
                      FROM alert_events
                     WHERE {_HERE} AND alert_type IN {errors} AND $__timeFilter(at)
                     ORDER BY at DESC
                     LIMIT 100
                    """,
                    words="None in this range",
                    column="Message",
                ),
                columns=[
                    time_column("Time"),
                    column("GPU", width=55, left=True, link=to_gpu),
                    column("What", width=130),
                    column("Transition", width=95),
                    severity_column(),
                    column("uuid", hidden=True),
                ],
            ),
            16,
        ),
        _line(
            "Corrected ECC errors",
            "Does a GPU's memory wear? New single-bit errors in each interval; the driver corrected them.",
            line_by_gpu(growth("increase", "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", ON_NODE, "$__rate_interval")),
            unit="short",
            low=0,
            soft_high=5,
            decimals=0,
            width=8,
            empty="The exporter does not tell: DCGM_FI_DEV_ECC_SBE_VOL_TOTAL is not in its list of fields",
        ),
    )
    built.put(
        8,
        (
            table_panel(
                "Alerts in this range",
                "What was wrong with the node and its GPUs, and what still is (at most 100)?",
                sql_or_words(
                    alerts,
                    f"""
                    SELECT a.triggered_at AS "Since", a.resolved_at AS "Until", a.severity AS "Severity",
                           a.alert_type AS "Alert", a.gpu_index AS "GPU", a.message AS "Message", a.gpu_uuid AS uuid
                      FROM alerts a
                     WHERE a.{_HERE} AND a.triggered_at <= $__timeTo()
                       AND coalesce(a.resolved_at, now()) >= $__timeFrom()
                     ORDER BY a.status, {RANK}, a.triggered_at DESC
                     LIMIT 100
                    """,
                    words="No alert of this node in this range",
                    column="Message",
                ),
                columns=[
                    time_column("Since"),
                    time_column("Until"),
                    severity_column(),
                    column("Alert", width=140),
                    column("GPU", width=55, left=True, link=to_gpu),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )
