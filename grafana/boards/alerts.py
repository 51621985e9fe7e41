"""Alerts and actions: what fired, what was done about it, and what was held back."""

from typing import Final

from grafana_foundation_sdk.builders import stat
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import (
    GPU,
    IN_DATACENTER,
    IN_NODE,
    NODE,
    OF_MODEL,
    Board,
    active_by_severity,
    cell_link,
    no_alert_is_active,
    workloads_of,
)
from grafana.colours import CRITICAL, INFO, WARNING, bad_from_one, plain
from grafana.panels import column, lines, stat_panel, table_panel
from grafana.severities import OUTCOME_MAPPING, RANK, severity_column, time_column
from grafana.sources import sql, sql_or_words, sql_series

_SOURCE: Final = "alerts a JOIN nodes n USING (node_id) LEFT JOIN gpus g ON g.gpu_uuid = a.gpu_uuid"
_NODES: Final = f"{IN_DATACENTER} AND {IN_NODE}"
_PICK: Final = f"{_NODES} AND (a.gpu_uuid IS NULL OR {OF_MODEL})"
_FIRED: Final = f"FROM {_SOURCE} WHERE $__timeFilter(a.triggered_at) AND {_PICK}"
_DECIDED: Final = (
    "FROM alert_actions c JOIN alerts a ON a.id = c.alert_id JOIN nodes n USING (node_id) "
    f"LEFT JOIN gpus g ON g.gpu_uuid = a.gpu_uuid WHERE $__timeFilter(c.event_time) AND {_PICK}"
)
_SECONDS: Final = "extract(epoch FROM a.resolved_at - a.triggered_at)"
_TO_NODE: Final = cell_link(NODE, "Open the node", node="Node")
_TO_GPU: Final = cell_link(GPU, "Open the GPU", node="Node", uuid="uuid")


def alerts() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.ALERTS,
        "For whoever is on duty and whoever reviews the week: what fires now, how long things took to end, what was "
        "done about them and how that ended, who talks the most, and what the circuit breaker held back.",
        since="now-24h",
    )
    built.variables(board.datacenters(), board.models(), board.nodes(whole=True, multiple=True))
    _at_a_glance(built)
    _active(built)
    _over_time(built)
    _actions(built)
    _history(built)
    return built.build()


def _at_a_glance(built: Board) -> None:
    active = f"FROM {_SOURCE} WHERE a.status = 'active' AND {_PICK}"
    critical, lower = active_by_severity(active, nodes=_NODES)
    unheard = "Not evaluated: nothing is heard of any of these nodes, so no rule looks at them."
    built.put(
        4,
        (
            stat_panel(
                "Critical now",
                f"How many critical alerts fire? {unheard}",
                critical,
                thresholds=bad_from_one(CRITICAL),
                empty="not evaluated",
            ),
            4,
        ),
        (
            stat_panel(
                "Warnings now",
                f"How many alerts of lower severity fire? {unheard}",
                lower,
                thresholds=bad_from_one(WARNING),
                empty="not evaluated",
            ),
            4,
        ),
        (
            stat_panel(
                "Fired in this range",
                "How many alerts began?",
                sql(f'SELECT count(*) AS "fired" {_FIRED}'),
                thresholds=plain("blue"),
            ),
            4,
        ),
        (
            _time_to_resolve("Half ended within", "half", 0.5),
            4,
        ),
        (
            _time_to_resolve("Nine in ten within", "nine in ten", 0.9),
            4,
        ),
        (
            stat_panel(
                "Held back by the breaker",
                "How many migrations did the circuit breaker stop in this range?",
                sql(f"SELECT count(*) AS \"held back\" {_DECIDED} AND c.reason LIKE 'circuit_breaker%'"),
                thresholds=bad_from_one(WARNING),
            ),
            4,
        ),
    )


def _time_to_resolve(title: str, share: str, quantile: float) -> stat.Panel:
    return stat_panel(
        title,
        f"How long did the alerts of this range that ended last: {share} of them at most?",
        sql(
            f'SELECT percentile_cont({quantile}) WITHIN GROUP (ORDER BY {_SECONDS}) AS "within"\n'
            f"{_FIRED} AND a.resolved_at IS NOT NULL"
        ),
        unit="s",
        decimals=0,
        thresholds=plain("blue"),
        empty="none ended",
    )


def _active(built: Board) -> None:
    columns = ("Since", "Severity", "Alert", "Node", "GPU", "MIG", "Message", "Value", "Threshold", "uuid")
    built.put(
        10,
        (
            table_panel(
                "Active alerts",
                "What is wrong now, the worst first (at most 200)? Click a node or a GPU to open it.",
                sql_or_words(
                    columns,
                    f"""
                    SELECT a.triggered_at AS "Since", a.severity AS "Severity", a.alert_type AS "Alert",
                           a.node_id AS "Node", a.gpu_index AS "GPU", a.mig_instance AS "MIG", a.message AS "Message",
                           a.actual_value AS "Value", a.threshold_value AS "Threshold", a.gpu_uuid AS uuid
                      FROM {_SOURCE}
                     WHERE a.status = 'active' AND {_PICK}
                     ORDER BY {RANK}, a.triggered_at DESC
                     LIMIT 200
                    """,
                    column="Message",
                    **no_alert_is_active(_NODES),
                ),
                columns=[
                    time_column("Since"),
                    severity_column(),
                    column("Alert", width=150),
                    column("Node", width=90, link=_TO_NODE),
                    column("GPU", width=60, left=True, link=_TO_GPU),
                    column("MIG", width=60),
                    column("Value", width=80, decimals=1),
                    column("Threshold", width=90, decimals=1),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )


def _over_time(built: Board) -> None:
    built.row("In this range")
    built.put(
        9,
        (
            lines(
                "Alerts that fired",
                "When did alerts begin, by severity?",
                sql_series(
                    f"""
                    SELECT to_timestamp(step * $__interval_ms / 1000.0) AS time,
                           count(*) FILTER (WHERE severity = 'critical')::double precision AS "critical",
                           count(*) FILTER (WHERE severity = 'warning')::double precision AS "warning",
                           count(*) FILTER (WHERE severity = 'info')::double precision AS "info"
                      FROM generate_series($__unixEpochFrom()::bigint * 1000 / $__interval_ms,
                                           $__unixEpochTo()::bigint * 1000 / $__interval_ms) AS step
                      LEFT JOIN (
                          SELECT floor(extract(epoch FROM a.triggered_at) * 1000 / $__interval_ms)::bigint AS step,
                                 a.severity
                          {_FIRED}
                      ) fired USING (step)
                     GROUP BY step
                     ORDER BY step
                    """
                ),
                unit="short",
                low=0,
                soft_high=3,
                decimals=0,
                columns=True,
                stacked=True,
                colours={"critical": CRITICAL, "warning": WARNING, "info": INFO},
            ),
            8,
        ),
        (
            table_panel(
                "By kind",
                "Which rules fired the most, and how long did their alerts last?",
                sql_or_words(
                    ("Alert", "Fired", "Active", "Half within", "Longest"),
                    f"""
                    SELECT a.alert_type AS "Alert", count(*) AS "Fired",
                           count(*) FILTER (WHERE a.status = 'active') AS "Active",
                           percentile_cont(0.5) WITHIN GROUP (ORDER BY {_SECONDS}) AS "Half within",
                           max({_SECONDS}) AS "Longest"
                    {_FIRED}
                     GROUP BY 1
                     ORDER BY 2 DESC, 1
                    """,
                    words="none fired",
                    column="Alert",
                ),
                columns=[
                    column("Fired", width=65),
                    column("Active", width=65),
                    column("Half within", unit="s", decimals=0, width=100),
                    column("Longest", unit="s", decimals=0, width=75),
                ],
            ),
            9,
        ),
        (
            table_panel(
                "Top talkers",
                "Which ten nodes and GPUs fired the most?",
                sql_or_words(
                    ("Node", "GPU", "Fired", "Kinds", "uuid"),
                    f"""
                    SELECT a.node_id AS "Node", a.gpu_index AS "GPU", count(*) AS "Fired",
                           string_agg(DISTINCT a.alert_type, ', ') AS "Kinds", a.gpu_uuid AS uuid
                    {_FIRED}
                     GROUP BY a.node_id, a.gpu_index, a.gpu_uuid
                     ORDER BY 3 DESC, 1, 2
                     LIMIT 10
                    """,
                    words="none fired",
                    column="Kinds",
                ),
                columns=[
                    column("Node", width=130, link=_TO_NODE),
                    column("GPU", width=55, left=True, link=_TO_GPU),
                    column("Fired", width=65),
                    column("uuid", hidden=True),
                ],
            ),
            7,
        ),
    )


def _actions(built: Board) -> None:
    built.row("What was done")
    built.put(
        10,
        (
            table_panel(
                "Actions by outcome",
                "Do notices and migrations succeed? Skipped: decided, and rightly not carried out any more, or held "
                "back. Unknown: whoever carried it out vanished.",
                sql_or_words(
                    ("Action", "Outcome", "Count"),
                    f"""
                    SELECT c.action_type AS "Action", c.status AS "Outcome", count(*) AS "Count"
                    {_DECIDED}
                     GROUP BY 1, 2
                     ORDER BY 3 DESC
                    """,
                    words="none decided",
                    column="Action",
                ),
                columns=[
                    column("Outcome", width=95, mappings=OUTCOME_MAPPING),
                    column("Count", width=70, unit="locale"),
                ],
            ),
            6,
        ),
        (
            table_panel(
                "What failed, was skipped or held back",
                "Which actions did not happen, and why (at most 100)?",
                sql_or_words(
                    ("When", "Action", "Outcome", "Reason", "Alert", "Node", "GPU", "uuid"),
                    f"""
                    SELECT c.event_time AS "When", c.action_type AS "Action", c.status AS "Outcome",
                           c.reason AS "Reason", a.alert_type AS "Alert", a.node_id AS "Node", a.gpu_index AS "GPU",
                           a.gpu_uuid AS uuid
                    {_DECIDED} AND c.status <> 'succeeded'
                     ORDER BY c.event_time DESC
                     LIMIT 100
                    """,
                    words="nothing failed or was skipped",
                    column="Reason",
                ),
                columns=[
                    time_column("When"),
                    column("Action", width=145),
                    column("Outcome", width=90, mappings=OUTCOME_MAPPING),
                    column("Alert", width=140),
                    column("Node", width=100, link=_TO_NODE),
                    column("GPU", width=55, left=True, link=_TO_GPU),
                    column("uuid", hidden=True),
                ],
            ),
            18,
        ),
    )
    built.put(
        8,
        (
            table_panel(
                "Migrations",
                "Which workloads were moved away from which GPU, or would have been (at most 100)?",
                sql_or_words(
                    ("When", "Outcome", "Reason", "Workloads", "Node", "GPU", "Took", "uuid"),
                    f"""
                    SELECT c.event_time AS "When", c.status AS "Outcome", c.reason AS "Reason",
                           {workloads_of("c.action_details -> 'workloads'")} AS "Workloads",
                           a.node_id AS "Node", a.gpu_index AS "GPU",
                           extract(epoch FROM c.finished_at - c.event_time) AS "Took", a.gpu_uuid AS uuid
                    {_DECIDED} AND c.action_type = 'migrate_workload'
                     ORDER BY c.event_time DESC
                     LIMIT 100
                    """,
                    words="No migration was decided in this range",
                    column="Workloads",
                ),
                columns=[
                    time_column("When"),
                    column("Outcome", width=90, mappings=OUTCOME_MAPPING),
                    column("Node", width=100, link=_TO_NODE),
                    column("GPU", width=55, left=True, link=_TO_GPU),
                    column("Took", unit="s", decimals=1, width=80),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )


def _history(built: Board) -> None:
    built.row("History")
    built.put(
        12,
        (
            table_panel(
                "Alerts of this range",
                "What happened, the newest first (at most 500)?",
                sql_or_words(
                    ("Since", "Until", "Lasted", "Severity", "Alert", "Node", "GPU", "Message", "Ended by", "uuid"),
                    f"""
                    SELECT a.triggered_at AS "Since", a.resolved_at AS "Until", {_SECONDS} AS "Lasted",
                           a.severity AS "Severity", a.alert_type AS "Alert", a.node_id AS "Node",
                           a.gpu_index AS "GPU", a.message AS "Message",
                           coalesce(a.resolved_reason || coalesce(' by ' || a.resolved_by, ''), '') AS "Ended by",
                           a.gpu_uuid AS uuid
                    {_FIRED}
                     ORDER BY a.triggered_at DESC, a.id DESC
                     LIMIT 500
                    """,
                    words="No alert fired in this range",
                    column="Message",
                ),
                columns=[
                    time_column("Since"),
                    time_column("Until"),
                    column("Lasted", unit="s", decimals=0, width=85),
                    severity_column(),
                    column("Alert", width=150),
                    column("Node", width=90, link=_TO_NODE),
                    column("GPU", width=60, left=True, link=_TO_GPU),
                    column("Ended by", width=100),
                    column("uuid", hidden=True),
                ],
            ),
            24,
        ),
    )
