"""A dashboard: its rows of panels on the grid, the variables and links that all share, the alerts as annotations."""

from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    GridPos,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.colours import BY_SEVERITY
from grafana.panels import PanelBuilder
from grafana.severities import UNHEARD
from grafana.sources import POSTGRESQL, PROMETHEUS, SqlQuery, sql

TAG: Final = "gpu-telemetry"
# The newest that Grafana 9 reads; what is newer in it, later releases migrate to.
SCHEMA_VERSION: Final = 38
_GRID_WIDTH: Final = 24
_ALL: Final = ".*"

FLEET: Final = "gpu-fleet"
NODE: Final = "gpu-node"
GPU: Final = "gpu-gpu"
WORKLOADS: Final = "gpu-workloads"
ALERTS: Final = "gpu-alerts"
PIPELINE: Final = "gpu-pipeline"
INVENTORY: Final = "gpu-inventory"

# In the order of the links at the top of each dashboard.
TITLES: Final = {
    FLEET: "Fleet",
    NODE: "Node",
    GPU: "GPU",
    WORKLOADS: "Workloads",
    ALERTS: "Alerts and actions",
    PIPELINE: "Pipeline",
    INVENTORY: "Inventory",
}

# What a link at the top carries besides the time range. All dashboards have these, with several or all chosen ...
_CARRIED: Final = ("datacenter", "model")
# ... and these have a node: one, which each of the others can take, or any number, which only its like could.
_OF_ONE_NODE: Final = (NODE, GPU)
_OF_NODES: Final = (ALERTS,)

# As SQL and PromQL conditions; an unset choice is the regular expression for all.
IN_DATACENTER: Final = "coalesce(n.datacenter, '') ~ '^(${datacenter:regex})$'"
IN_NODE: Final = "n.node_id ~ '^(${node:regex})$'"
# Names with numbers in the order of the numbers.
NODE_ORDER: Final = (
    r"regexp_replace(n.node_id, '\d+', '', 'g'),"
    r" nullif(regexp_replace(n.node_id, '\D+', '', 'g'), '')::numeric NULLS FIRST, n.node_id"
)
OF_MODEL: Final = "coalesce(g.model, '') ~ '^(${model:regex})$'"


def newest_record(placement: str, margin: int) -> str:
    """The time of a placement's newest record as `r.collected_at`, if it has one; in SQL indented by so many blanks."""
    lines = (
        "LEFT JOIN LATERAL (",
        "    SELECT m.collected_at FROM gpu_metrics m",
        f"     WHERE m.placement_id = {placement}.placement_id",
        "     ORDER BY m.collected_at DESC LIMIT 1",
        ") r ON true",
    )
    return ("\n" + " " * margin).join(lines)


# A GPU stands where its newest record is, as the API has it, unless another took its place since: one that was not on
# the page with it. The records of a page share their time, so a neighbour whose index moved when it fell off the bus is
# told from one that was put in for it.
_STANDING: Final = f"""
(WITH newest AS MATERIALIZED (
     SELECT DISTINCT ON (p.gpu_uuid)
            p.gpu_uuid, p.node_id, p.gpu_index, coalesce(r.collected_at, p.since) AS at
       FROM placements p
       {newest_record("p", 7)}
      ORDER BY p.gpu_uuid, r.collected_at DESC NULLS LAST, p.placement_id DESC
 ), successors AS MATERIALIZED (
     SELECT newest.gpu_uuid, newest.node_id, newest.at, o.gpu_uuid AS by
       FROM newest JOIN placements o ON o.node_id = newest.node_id AND o.gpu_index = newest.gpu_index
       {newest_record("o", 7)}
      WHERE o.gpu_uuid <> newest.gpu_uuid AND coalesce(r.collected_at, o.since) > newest.at
 ), replaced AS MATERIALIZED (
     SELECT s.gpu_uuid
       FROM successors s
       LEFT JOIN LATERAL (
           SELECT true AS beside
             FROM placements q
            CROSS JOIN LATERAL (
                SELECT FROM gpu_metrics m WHERE m.placement_id = q.placement_id AND m.collected_at = s.at
                OFFSET 0  -- one probe a placement, not every record of that moment
            ) m
            WHERE q.node_id = s.node_id AND q.gpu_uuid = s.by
            LIMIT 1
       ) page ON true
      WHERE page.beside IS NULL
 ), standing AS MATERIALIZED (
     SELECT newest.gpu_uuid, newest.node_id, newest.gpu_index, newest.at, n.datacenter
       FROM newest JOIN nodes n USING (node_id)
      WHERE n.removed_at IS NULL AND {IN_DATACENTER} AND newest.gpu_uuid NOT IN (SELECT gpu_uuid FROM replaced)
 )
 SELECT * FROM standing) place
JOIN gpus g USING (gpu_uuid)
""".strip()


def standing(margin: int = 0) -> str:
    """Each GPU that stands in a node of these datacenters, as `place`, and what is known of it, as `g`.

    For a FROM that is indented by so many blanks.
    """
    return _STANDING.replace("\n", "\n" + " " * margin)


def unevaluated(condition: str) -> str:
    """That no rule looks at any of the nodes `n` of this condition, as nothing is heard of them."""
    return f"NOT EXISTS (SELECT FROM nodes n WHERE n.removed_at IS NULL AND NOT {UNHEARD} AND {condition})"


def active_alerts(name: str, alerts: str, *, nodes: str, counted: str = "*") -> SqlQuery:
    """How many there are of these alerts, a FROM with its WHERE; null where none is and no rule looks at their nodes.

    What is active stays so while nothing is heard, so it is counted then too.
    """
    count = f"count({counted})"
    return sql(
        f'SELECT CASE WHEN {count} > 0 OR NOT {unevaluated(nodes)} THEN {count} END AS "{name}"\n{alerts.strip()}'
    )


def active_by_severity(alerts: str, *, nodes: str, names: tuple[str, str] = ("critical", "warning")) -> list[SqlQuery]:
    """How many there are that are critical and not: two numbers, as one of both could have neither's colour."""
    return [
        active_alerts(name, f"{alerts.rstrip()} AND a.severity {which} 'critical'", nodes=nodes)
        for name, which in zip(names, ("=", "<>"), strict=True)
    ]


def no_alert_is_active(nodes: str) -> dict[str, Any]:
    """The words of a table of active alerts that is empty, for `sql_or_words`."""
    silent = "No alert is active, but no rule looks at these nodes: nothing is heard of them"
    return {"words": "No alert is active", "unless": (unevaluated(nodes), silent)}


def workloads_of(listed: str) -> str:
    """Who is in a list of workloads (jsonb), each once and always in the same order; null when nobody is."""
    name = "coalesce(w ->> 'job', concat_ws('/', w ->> 'namespace', w ->> 'pod'))"
    return f"(SELECT string_agg(DISTINCT {name}, ', ' ORDER BY {name}) FROM jsonb_array_elements({listed}) w)"


def variable(
    name: str,
    label: str,
    text: str,
    *,
    multiple: bool = False,
    whole: bool = True,
    description: str = "",
    hidden: bool = False,
) -> dashboard.QueryVariable:
    """A choice among what a SQL query finds; `whole` offers all of it, which is then the choice at first."""
    query = sql(text).build().sql
    built = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(POSTGRESQL)
        .query(query)
        .definition(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.DISABLED)
        .multi(multiple)
        .include_all(whole)
    )
    if whole:
        _whole(built, multiple=multiple)
    if hidden:
        built.hide(VariableHide.HIDE_VARIABLE)
    return built


def _whole(built: dashboard.QueryVariable, *, multiple: bool) -> dashboard.QueryVariable:
    chosen: Any = ["$__all"] if multiple else "$__all"
    shown: Any = ["All"] if multiple else "All"
    return built.all_value(_ALL).current(VariableOption(selected=True, text=shown, value=chosen))


def datacenters() -> dashboard.QueryVariable:
    """The choice of datacenters."""
    return variable(
        "datacenter",
        "Datacenter",
        "SELECT DISTINCT datacenter FROM nodes WHERE removed_at IS NULL AND datacenter IS NOT NULL ORDER BY 1",
        multiple=True,
    )


def models(*, hidden: bool = False) -> dashboard.QueryVariable:
    """The choice of models among the GPUs of these datacenters; `hidden` where it is only passed on by links."""
    return variable(
        "model",
        "Model",
        f"""
        SELECT DISTINCT g.model
          FROM gpus g JOIN placements p USING (gpu_uuid) JOIN nodes n USING (node_id)
         WHERE g.model IS NOT NULL AND n.removed_at IS NULL AND {IN_DATACENTER}
         ORDER BY 1
        """,
        multiple=True,
        hidden=hidden,
    )


def prometheus_variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """A choice among a label's values, several or all."""
    built = _whole(dashboard.QueryVariable(name).label(label).datasource(PROMETHEUS), multiple=True)
    return (
        built.query({"query": query, "refId": name})
        .definition(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
    )


def nodes(*, whole: bool = False, multiple: bool = False) -> dashboard.QueryVariable:
    """The choice of a node of these datacenters with these models; names with numbers in the order of the numbers."""
    return variable(
        "node",
        "Node",
        f"""
        SELECT n.node_id
          FROM nodes n
         WHERE {IN_DATACENTER}
           AND EXISTS (SELECT FROM placements p JOIN gpus g USING (gpu_uuid) WHERE p.node_id = n.node_id AND {OF_MODEL})
         ORDER BY n.removed_at IS NOT NULL, {NODE_ORDER}
        """,
        whole=whole,
        multiple=multiple,
    )


def link_to(uid: str, title: str, **variables: str) -> dict[str, str]:
    """The title and address of a link that keeps the time range and the choice of datacenter and model."""
    chosen = "".join(f"&var-{name}={value}" for name, value in variables.items())
    kept = "&${datacenter:queryparam}&${model:queryparam}"
    return {"title": title, "url": f"/d/{uid}?${{__url_time_range}}{kept}{chosen}"}


def cell_link(uid: str, title: str, **columns: str) -> tuple[str, str]:
    """A link from a table's cell, with variables from columns of its row."""
    link = link_to(uid, title, **{name: f'${{__data.fields["{column}"]}}' for name, column in columns.items()})
    return link["title"], link["url"]


def series_link(uid: str, title: str, **labels: str) -> dashboard.DashboardLink:
    """A link from a series or number, with variables from its labels."""
    link = link_to(uid, title, **{name: f"${{__field.labels.{label}}}" for name, label in labels.items()})
    return dashboard.DashboardLink(link["title"]).url(link["url"])


def plain_link(uid: str, title: str, **variables: str) -> dashboard.DashboardLink:
    """A link with variables of fixed values."""
    link = link_to(uid, title, **variables)
    return dashboard.DashboardLink(link["title"]).url(link["url"])


def fired_annotation(condition: str) -> dashboard.AnnotationQuery:
    """The moments at which critical alerts began; `condition` is on `a` and `n`."""
    return _annotation(
        "Critical alerts",
        BY_SEVERITY["critical"],
        f"""
        SELECT a.triggered_at AS time,
               a.message || ' (' || a.node_id || coalesce(' GPU ' || a.gpu_index, '') || ')' AS text,
               a.alert_type || ',' || a.severity || ',' || a.status AS tags
          FROM alerts a JOIN nodes n USING (node_id)
         WHERE a.severity = 'critical' AND $__timeFilter(a.triggered_at) AND {condition}
         ORDER BY a.triggered_at DESC
         LIMIT 50
        """,
    )


def alert_annotations(condition: str) -> list[dashboard.AnnotationQuery]:
    """Alerts of each severity as annotations, over the time in which they fired; `condition` is on `a` and `n`."""
    return [
        _annotation(
            f"Alerts: {severity}",
            colour,
            f"""
            SELECT a.triggered_at AS time,
                   coalesce(a.resolved_at, now()) AS timeend,
                   a.message || ' (' || a.node_id || coalesce(' GPU ' || a.gpu_index, '') || ')' AS text,
                   a.alert_type || ',' || a.severity || ',' || a.status AS tags
              FROM alerts a JOIN nodes n USING (node_id)
             WHERE a.severity = '{severity}' AND a.triggered_at <= $__timeTo()
               AND coalesce(a.resolved_at, now()) >= $__timeFrom() AND {condition}
             ORDER BY a.triggered_at DESC
             LIMIT 200
            """,
        )
        for severity, colour in reversed(BY_SEVERITY.items())
        if severity != "info"
    ]


def action_annotations(condition: str) -> dashboard.AnnotationQuery:
    """Remediations that were carried out, as annotations; `condition` is on `a` and `n`.

    Moments have an end too: Grafana 9.4 takes from all annotations only the fields that the first to arrive has.
    """
    return _annotation(
        "Actions",
        "purple",
        f"""
        SELECT coalesce(c.finished_at, c.started_at, c.created_at) AS time,
               coalesce(c.finished_at, c.started_at, c.created_at) AS timeend,
               c.action_type || ': ' || c.status || coalesce(', ' || c.reason, '') || ' (' || a.node_id
                   || coalesce(' GPU ' || a.gpu_index, '') || ')' AS text,
               c.action_type || ',' || c.status AS tags
          FROM alert_actions c JOIN alerts a ON a.id = c.alert_id JOIN nodes n USING (node_id)
         WHERE c.action_type NOT IN ('notify', 'annotate')
           AND coalesce(c.finished_at, c.started_at, c.created_at) BETWEEN $__timeFrom() AND $__timeTo()
           AND {condition}
         ORDER BY 1 DESC
         LIMIT 200
        """,
    )


def workload_states(place: str, condition: str) -> SqlQuery:
    """Who used GPUs, as a table of times, places (`metric`) and workloads (`Value`): a row where it changes.

    `place` names a row of a state timeline; it and `condition` are on `m` and `p`. A workload ends where the records
    of its GPU do, with a row of NULL.
    """
    return sql(
        f"""
        WITH used AS (
            SELECT m.collected_at AS at, {place} AS place, p.node_id, p.gpu_index, p.mig_instance,
                   coalesce({workloads_of("m.workloads")}, 'free') AS workload,
                   3 * n.interval_ms * interval '1 millisecond' AS silence
              FROM gpu_metrics m JOIN placements p USING (placement_id) JOIN nodes n ON n.node_id = p.node_id
             WHERE {condition} AND $__timeFilter(m.collected_at)
        ),
        neighbours AS (
            SELECT *, lag(at) OVER records AS before, lag(workload) OVER records AS workload_before,
                   coalesce(lead(at) OVER records, least(now(), $__timeTo())) AS next
              FROM used
            WINDOW records AS (PARTITION BY place ORDER BY at)
        ),
        changes AS (
            SELECT at AS time, place, node_id, gpu_index, mig_instance, workload FROM neighbours
             WHERE workload_before IS DISTINCT FROM workload OR before < at - silence
             UNION ALL
            SELECT at + silence / 3, place, node_id, gpu_index, mig_instance, NULL FROM neighbours
             WHERE next > at + silence
        )
        SELECT time, place AS metric, workload AS "Value"
          FROM changes
         ORDER BY time, node_id, gpu_index, mig_instance
        """
    )


class _AnnotationQuery(dashboard.AnnotationQuery):
    """The SDK's type of an annotation's target is for tags; datasources get the query itself there."""

    def __init__(self, query: SqlQuery) -> None:
        super().__init__()
        self._internal.target = query


def _annotation(name: str, colour: str, text: str) -> dashboard.AnnotationQuery:
    query = sql(text).ref_id("Anno")
    return _AnnotationQuery(query).name(name).datasource(POSTGRESQL).enable(True).icon_color(colour)


class Board:
    """A dashboard under construction: `row` begins a titled row, `put` lays panels side by side."""

    def __init__(self, uid: str, description: str, *, since: str = "now-3h", refresh: str = "30s") -> None:
        self.uid = uid
        self._dashboard = (
            dashboard.Dashboard(TITLES[uid])
            .uid(uid)
            .description(description)
            .tags([TAG])
            .timezone("browser")
            .readonly()
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .time(since, "now")
            .refresh(refresh)
        )
        self._panels: list[Any] = []
        self._y = 0
        self._link_all()

    def variables(self, *variables: dashboard.QueryVariable) -> None:
        """Set what can be chosen at the top."""
        self._dashboard.variables(list(variables))

    def annotations(self, *annotations: dashboard.AnnotationQuery) -> None:
        """Set what is marked on every graph."""
        self._dashboard.annotations(list(annotations))

    def row(self, title: str) -> None:
        """Begin a row with a title."""
        row = dashboard.Row(title).collapsed(False).grid_pos(GridPos(h=1, w=_GRID_WIDTH, x=0, y=self._y))
        self._add(row)
        self._y += 1

    def put(self, height: int, *placed: tuple[PanelBuilder, int]) -> None:
        """Lay panels of these widths side by side; the grid is 24 wide, and a unit of height is 30 pixels.

        Raises:
            ValueError: they are not as wide as the grid together.
        """
        if sum(width for _, width in placed) != _GRID_WIDTH:
            raise ValueError(f"{self.uid}: expected panels {_GRID_WIDTH} wide together at y={self._y}")
        x = 0
        for panel, width in placed:
            self._add(panel.grid_pos(GridPos(h=height, w=width, x=x, y=self._y)))  # type: ignore[attr-defined]
            x += width
        self._y += height

    def build(self) -> Dashboard:
        """The dashboard's model."""
        built = self._dashboard.build()
        built.schema_version = SCHEMA_VERSION
        built.panels = [panel.build() for panel in self._panels]
        return built

    def _add(self, panel: Any) -> None:  # noqa: ANN401 - a row or a panel
        self._panels.append(panel.id(len(self._panels) + 1))

    def _link_all(self) -> None:
        for uid, title in TITLES.items():
            if uid != self.uid:
                # Grafana's own way to carry variables would choose a node called All, too.
                node = self.uid in _OF_ONE_NODE and uid in (*_OF_ONE_NODE, *_OF_NODES)
                carried = (*_CARRIED, "node") if node else _CARRIED
                self._dashboard.link(
                    dashboard.DashboardLink(title)
                    .type(DashboardLinkType.LINK)
                    .url(f"/d/{uid}?" + "&".join(f"${{{name}:queryparam}}" for name in carried))
                    .icon("dashboard")
                    .include_vars(False)
                    .keep_time(True)
                )
