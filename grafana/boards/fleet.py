"""Fleet, the home dashboard: how much of the fleet works, what is wrong with the rest, and where to look next."""

from typing import Final

from grafana_foundation_sdk.builders import bargauge, prometheus, stat
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import (
    GPU,
    IN_DATACENTER,
    NODE,
    OF_MODEL,
    Board,
    active_alerts,
    cell_link,
    no_alert_is_active,
    standing,
)
from grafana.colours import CRITICAL, WARNING, bad_from_one, plain, rule_steps, steps
from grafana.expressions import FLEET, SAMPLES_AN_HOUR, kinds
from grafana.panels import (
    bars,
    column,
    heat_map,
    lines,
    organised,
    properties,
    stat_panel,
    table_panel,
)
from grafana.severities import RANK, UNHEARD, severity_column, time_column
from grafana.sources import now, now_or_words, over_time, rows_or_words, sql, sql_or_words

# Of the configuration: their newest turn gave no page, or nothing is heard of them, whichever part is the cause.
_SILENT_NODES: Final = f"""
  FROM nodes n
  LEFT JOIN LATERAL (
      SELECT s.up, s.reason FROM scrapes s WHERE s.node_id = n.node_id
       ORDER BY s.collected_at DESC LIMIT 1
  ) s ON n.last_seen IS DISTINCT FROM n.last_heard
 WHERE n.removed_at IS NULL AND {IN_DATACENTER}
   AND (NOT s.up OR {UNHEARD})
"""
_ACTIVE_ALERTS: Final = f"""
  FROM alerts a JOIN nodes n USING (node_id) LEFT JOIN gpus g ON g.gpu_uuid = a.gpu_uuid
 WHERE a.status = 'active' AND {IN_DATACENTER} AND (a.gpu_uuid IS NULL OR {OF_MODEL})
"""
_ERRORS: Final = "('xid_error', 'ecc_double_bit', 'row_remap_failure')"
_GPU_COLUMNS: Final = ("node_id", "gpu", "modelName", "UUID")


def _sum(rule: str) -> str:
    return f"sum({rule}{{{FLEET}}})"


def _quantile(rule: str, quantile: float) -> str:
    return f"histogram_quantile({quantile:g}, sum by (le) ({rule}{{{FLEET}}}))"


def fleet() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.FLEET,
        "For whoever is on duty and whoever pays: how many of the GPUs do useful work, what keeps the others from it, "
        "and which node to open next. All of it is counts, quantiles and tops, however large the fleet is.",
        since="now-1h",
    )
    built.variables(board.datacenters(), board.models())
    built.annotations(board.fired_annotation(IN_DATACENTER))
    _at_a_glance(built)
    _over_time(built)
    _tops(built)
    _news(built)
    return built.build()


def _at_a_glance(built: Board) -> None:
    alerts = stat_panel(
        "Active alerts",
        "How many alerts fire now, by severity? Not evaluated: nothing is heard of any of these nodes, so no rule "
        "looks at them. Dashboard `Alerts and actions` lists them.",
        *(
            active_alerts(severity, f"{_ACTIVE_ALERTS} AND a.severity = '{severity}'", nodes=IN_DATACENTER)
            for severity in ("critical", "warning")
        ),
        empty="not evaluated",
        names=True,
        links=[board.plain_link(board.ALERTS, "Alerts and actions")],
    )
    alerts.thresholds(bad_from_one(WARNING))
    alerts.override_by_name("critical", properties(thresholds=bad_from_one(CRITICAL).build()))
    built.put(
        8,
        (_funnel(), 9),
        (alerts, 4),
        (_not_healthy(), 7),
        (
            stat_panel(
                "Power and energy",
                "What do these GPUs draw together now, and what have they used in the time range (as far back as "
                "there are records)?",
                now_or_words(_sum("model:gpu_power_watts:sum"), "now"),
                now_or_words(
                    f"sum(sum_over_time(model:gpu_power_watts:sum{{{FLEET}}}[$__range])) / {SAMPLES_AN_HOUR}",
                    "in this range",
                ),
                unit="watt",
                decimals=1,
                thresholds=plain("blue"),
                empty="not told",
                names=True,
            ).override_by_name("in this range", properties(unit="watth")),
            4,
        ),
    )


def _funnel() -> bargauge.Panel:
    known = f'SELECT count(*) AS "Total"\nFROM {standing()}\nWHERE {OF_MODEL}'
    return bars(
        "From GPUs owned to work done",
        "Where do GPUs get lost on the way to useful work? Total: in the inventory. Reporting: on a page now. "
        "Allocated: a pod or a job has it. Active: over 5 % utilisation. Effective: what all engines do together, in "
        "whole GPUs.",
        sql(known),
        now(f"{_sum('model:gpus:count')} or vector(0)", "Reporting"),
        now_or_words(_sum("model:gpus_allocated:count"), "Allocated"),
        now_or_words(_sum("model:gpus_active:count"), "Active"),
        now_or_words(_sum("model:gpus_effective:sum"), "Effective"),
        decimals=0,
        empty="not told",
    )


def _not_healthy() -> stat.Panel:
    return stat_panel(
        "Not healthy",
        "How many GPUs are lost (known, and missing from their node's page), have errors (an active alert of XID, "
        "ECC or row remapping) or are throttled by heat or hardware (where exporters tell), and how many nodes do not "
        "report: their exporter does not answer, or nothing of them arrives? Not told where nothing is heard of any.",
        *(
            active_alerts(name, f"{_ACTIVE_ALERTS} AND {kind}", nodes=IN_DATACENTER, counted="DISTINCT a.gpu_uuid")
            for name, kind in (
                ("GPUs lost", "a.alert_type = 'gpu_lost'"),
                ("GPUs with errors", f"a.alert_type IN {_ERRORS}"),
            )
        ),
        now_or_words(_sum("model:gpus_throttled:count"), "GPUs throttled"),
        sql(f'SELECT count(*) AS "Nodes not reporting" {_SILENT_NODES}'),
        thresholds=bad_from_one(WARNING),
        empty="not told",
        names=True,
    ).override_by_regexp("GPUs lost|GPUs with errors", properties(thresholds=bad_from_one(CRITICAL).build()))


def _over_time(built: Board) -> None:
    built.row("Over time")
    temperatures, utilisations = "model:gpu_temperature_celsius:bucket", "model:gpu_utilization_percent:bucket"
    hottest = f"max(model:gpu_temperature_celsius:max{{{FLEET}}})"
    built.put(
        8,
        (
            lines(
                "Temperature of the fleet",
                "Is the fleet as a whole getting warmer, or only a few GPUs? The hottest GPU, and the temperature "
                "under which 99, 90 and 50 % of the GPUs are. Dashed: where the alert rule warns and is critical.",
                over_time(hottest, "hottest"),
                *(
                    # A quantile of a histogram lies anywhere in its bucket, but not above the highest value.
                    over_time(f"clamp_max({_quantile(temperatures, q)}, scalar({hottest}))", f"{100 * q:g} %")
                    for q in (0.99, 0.9, 0.5)
                ),
                unit="celsius",
                thresholds=rule_steps("high_temperature"),
                soft_high=100,
                legend_right=True,
                calcs=["lastNotNull", "max"],
                decimals=0,
                colours={"hottest": "dark-purple", "99 %": "dark-blue", "90 %": "blue", "50 %": "light-blue"},
            ),
            12,
        ),
        (
            lines(
                "Utilisation of the fleet",
                "How evenly is the work spread? The utilisation under which 90, 50 and 10 % of the GPUs are, and the "
                "mean. A mean far above the 10 % line means that some GPUs do nothing.",
                # Of the GPUs that tell it.
                over_time(
                    f"{_sum('model:gpu_utilization_percent:sum')} / {_sum('node:gpu_utilization_percent:count')}",
                    "mean",
                ),
                *(over_time(_quantile(utilisations, q), f"{100 * q:g} %") for q in (0.9, 0.5, 0.1)),
                unit="percent",
                low=0,
                high=100,
                legend_right=True,
                calcs=["lastNotNull", "mean"],
                decimals=0,
                colours={"mean": "dark-purple", "90 %": "dark-blue", "50 %": "blue", "10 %": "light-blue"},
            ),
            12,
        ),
    )
    built.put(
        9,
        (
            heat_map(
                "How many GPUs at which temperature",
                "How is the heat spread, and does a group of GPUs leave the rest? Each row is a band of temperature; "
                "the scale below says how many GPUs a colour is.",
                over_time(f"sum by (le) ({temperatures}{{{FLEET}}})", "{{le}}", buckets=True),
                unit="celsius",
            ),
            12,
        ),
        (
            lines(
                "GPUs by what they do",
                "When did GPUs vanish, stand idle, or come to work? What exporters do not tell has no line.",
                over_time(
                    kinds(
                        reporting=_sum("model:gpus:count"),
                        allocated=_sum("model:gpus_allocated:count"),
                        active=_sum("model:gpus_active:count"),
                        effective=_sum("model:gpus_effective:sum"),
                        throttled=_sum("model:gpus_throttled:count"),
                    ),
                    "{{kind}}",
                ),
                unit="short",
                low=0,
                decimals=0,
                legend_right=True,
                calcs=["lastNotNull", "min", "max"],
                colours={
                    "reporting": "light-blue",
                    "allocated": "blue",
                    "active": "dark-blue",
                    "effective": "dark-green",
                    "throttled": WARNING,
                },
            ),
            12,
        ),
    )
    built.put(
        7,
        (
            lines(
                "Power by datacenter",
                "Where does the power go, and does a datacenter near its limit?",
                over_time(f"sum by (datacenter) (model:gpu_power_watts:sum{{{FLEET}}})", "{{datacenter}}"),
                unit="watt",
                low=0,
                fill=25,
                stacked=True,
                legend_right=True,
                calcs=["lastNotNull", "max"],
            ),
            12,
        ),
        (
            lines(
                "Nodes not reporting, by datacenter",
                "Does one site fall away, or single nodes? A gap: the bridge did not answer.",
                over_time(
                    'datacenter:nodes:count{datacenter=~"$datacenter"} - datacenter:nodes_up:count', "{{datacenter}}"
                ),
                unit="short",
                low=0,
                soft_high=2,
                decimals=0,
                stacked=True,
                fill=25,
                legend_right=True,
                calcs=["lastNotNull", "max"],
            ),
            12,
        ),
    )


def _top(expression: str, words: str, label: str = "GPUs") -> prometheus.Dataquery:
    """The ten highest; `label` has the words where there are none, and is not one that leads to a node."""
    return rows_or_words(f"topk(10, {expression})", label=label, words=words)


def _tops(built: Board) -> None:
    built.row("Where to look")
    gpu = [
        column("Node", link=cell_link(NODE, "Open the node", node="Node")),
        column("GPU", width=60, link=cell_link(GPU, "Open the GPU", node="Node", uuid="UUID")),
        column("UUID", hidden=True),
        column("Model", hidden=True),
    ]
    names = {"node_id": "Node", "gpu": "GPU", "modelName": "Model"}
    dropped = ("Time", "datacenter", "__name__")
    built.put(
        12,
        (
            table_panel(
                "Hottest GPUs now",
                "Which GPUs are nearest to trouble? Click a node or a GPU to open it.",
                _top(f"gpu:gpu_temperature_celsius:max{{{FLEET}}}", "no GPU reports"),
                columns=[
                    *gpu,
                    column(
                        "Temperature",
                        unit="celsius",
                        decimals=0,
                        thresholds=rule_steps("high_temperature"),
                        gauge_to=105,
                    ),
                ],
                transformations=[
                    organised((*_GPU_COLUMNS, "GPUs", "Value"), names | {"Value": "Temperature"}, dropped)
                ],
                sort_by=("Temperature", True),
            ),
            8,
        ),
        (
            table_panel(
                "Longest throttled in this range",
                "Which GPUs were slowed down by heat or hardware, and for how long? A slow GPU holds back every job "
                "that spans it. Exporters tell only where DCGM_FI_DEV_CLOCKS_EVENT_REASONS is in their list of fields.",
                _top(
                    f"60 / {SAMPLES_AN_HOUR} * count_over_time(gpu:throttled:bool{{{FLEET}}}[$__range])",
                    "none, or not told",
                ),
                columns=[*gpu, column("Throttled", unit="m", decimals=0, thresholds=steps("text", (5, WARNING)))],
                transformations=[organised((*_GPU_COLUMNS, "GPUs", "Value"), names | {"Value": "Throttled"}, dropped)],
                sort_by=("Throttled", True),
            ),
            8,
        ),
        (
            table_panel(
                "Longest idle while allocated in this range",
                "Which GPUs does somebody hold and not use (under 5 % utilisation)?",
                _top(
                    f"60 / {SAMPLES_AN_HOUR} * count_over_time(gpu:idle_allocated:bool{{{FLEET}}}[$__range])",
                    "nobody",
                    label="pod",
                ),
                columns=[
                    *gpu,
                    column("Held by"),
                    column("Idle", width=90, unit="m", decimals=0, thresholds=steps("text", (60, WARNING))),
                ],
                transformations=[
                    organised(
                        (*_GPU_COLUMNS, "pod", "Value"),
                        names | {"Value": "Idle", "pod": "Held by"},
                        (*dropped, "namespace", "hpc_job"),
                    )
                ],
                sort_by=("Idle", True),
            ),
            8,
        ),
    )


def _news(built: Board) -> None:
    alerts = ("Since", "Severity", "Alert", "Node", "GPU", "Message", "uuid")
    silent = ("Node", "Datacenter", "Reason", "Last seen")
    built.put(
        9,
        (
            table_panel(
                "Active alerts",
                "What is wrong now, the worst first (at most 50)?",
                sql_or_words(
                    alerts,
                    f"""
                    SELECT a.triggered_at AS "Since", a.severity AS "Severity", a.alert_type AS "Alert",
                           a.node_id AS "Node", a.gpu_index AS "GPU", a.message AS "Message", a.gpu_uuid AS uuid
                    {_ACTIVE_ALERTS}
                     ORDER BY {RANK}, a.triggered_at DESC
                     LIMIT 50
                    """,
                    column="Message",
                    **no_alert_is_active(IN_DATACENTER),
                ),
                columns=[
                    time_column("Since"),
                    severity_column(),
                    column("Alert", width=150),
                    column("Node", width=90, link=cell_link(NODE, "Open the node", node="Node")),
                    column("GPU", width=50, left=True, link=cell_link(GPU, "Open the GPU", node="Node", uuid="uuid")),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )
    built.put(
        6,
        (
            table_panel(
                "Nodes that do not report",
                "Which nodes are missing, since when, and why (at most 50)?",
                sql_or_words(
                    silent,
                    f"""
                    SELECT n.node_id AS "Node", n.datacenter AS "Datacenter",
                           CASE WHEN {UNHEARD}
                                THEN 'nothing is heard of it: its bridge does not scrape it, or its records wait'
                                ELSE coalesce(s.reason, 'unknown') END AS "Reason",
                           n.last_seen AS "Last seen"
                    {_SILENT_NODES}
                     ORDER BY n.last_seen DESC NULLS FIRST
                     LIMIT 50
                    """,
                    words="Every node reports",
                    column="Reason",
                ),
                columns=[
                    column("Node", width=90, link=cell_link(NODE, "Open the node", node="Node")),
                    column("Datacenter", width=110),
                    time_column("Last seen"),
                ],
            ),
            24,
        ),
    )
