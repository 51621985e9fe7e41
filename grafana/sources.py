"""The two datasources by their fixed uids, and queries to them."""

from typing import Any, Final

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.cog import builder as cogbuilder
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="gpu-telemetry-prometheus")
POSTGRESQL: Final = DataSourceRef(type_val="grafana-postgresql-datasource", uid="gpu-telemetry-postgresql")
# Grafana's own: queries of one panel go to different datasources. Without a type, so that each query's own counts.
MIXED: Final = DataSourceRef(uid="-- Mixed --")


class SqlQuery(variants.Dataquery, cogbuilder.Builder["SqlQuery"]):
    """A query to PostgreSQL; the SDK has none. `time_series` makes a series of each text column's values."""

    def __init__(self, sql: str, *, time_series: bool = False) -> None:
        self.sql = sql
        self.datasource = POSTGRESQL
        self._format = "time_series" if time_series else "table"
        self._ref_id = "A"

    def ref_id(self, ref_id: str) -> "SqlQuery":
        """Set the query's name within its panel."""
        self._ref_id = ref_id
        return self

    def build(self) -> "SqlQuery":
        """It is its own model."""
        return self

    def to_json(self) -> dict[str, Any]:
        """As Grafana's SQL datasources have it."""
        return {
            "refId": self._ref_id,
            "datasource": self.datasource,
            "editorMode": "code",
            "format": self._format,
            "rawQuery": True,
            "rawSql": self.sql,
        }


Query = prometheus.Dataquery | SqlQuery


def over_time(expression: str, legend: str = "", *, buckets: bool = False) -> prometheus.Dataquery:
    """A PromQL query over the dashboard's time range; `buckets` if its series are the buckets of a histogram."""
    query = _prometheus(expression, legend).range()
    return query.format(PromQueryFormat.HEATMAP if buckets else PromQueryFormat.TIME_SERIES)


def now(expression: str, legend: str = "") -> prometheus.Dataquery:
    """A PromQL query at the end of the time range, a number for each series."""
    return _prometheus(expression, legend).instant().format(PromQueryFormat.TIME_SERIES)


def now_or_words(expression: str, legend: str = "") -> prometheus.Dataquery:
    """As `now`, but not without a series: Grafana 9.4 takes that for an error. The panel's `empty` has the words."""
    return now(f"({expression}) or on () vector(NaN)", legend)


def rows(expression: str) -> prometheus.Dataquery:
    """A PromQL query at the end of the time range, as rows of a table with a column for each label."""
    return _prometheus(expression, "").instant().format(PromQueryFormat.TABLE)


def rows_or_words(expression: str, *, label: str, words: str) -> prometheus.Dataquery:
    """As `rows`, with one row that has the words in a label, and no number, when there would be none.

    Grafana 9.4 takes an empty answer for an error.
    """
    return rows(f'{expression} or on () label_replace(vector(NaN), "{label}", "{words}", "", "")')


def _prometheus(expression: str, legend: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .datasource(PROMETHEUS)
        .editor_mode(QueryEditorMode.CODE)
        .expr(" ".join(expression.split()))
        .legend_format(legend)
    )


def sql(text: str) -> SqlQuery:
    """A SQL query whose rows are shown as a table or reduced to a number."""
    return SqlQuery(_dedented(text))


def sql_series(text: str) -> SqlQuery:
    """A SQL query with a column `time`, ordered by it; a text column `metric` names the series."""
    return SqlQuery(_dedented(text), time_series=True)


def sql_or_words(
    columns: tuple[str, ...], select: str, *, words: str, column: str, unless: tuple[str, str] | None = None
) -> SqlQuery:
    """A SQL query for a table that has one row, with `words` in `column`, when there would be none.

    `unless` is a condition, and the words in its case. A table without rows says "No data" in some releases of Grafana,
    whatever its panel would have it say.
    """
    listed = ", ".join(f'"{name}"' for name in columns)
    said, chosen = f"'{words}'", ""
    if unless is not None:
        condition, other = unless
        said = "(SELECT words FROM said)"
        chosen = (
            f",\nsaid AS (\n  SELECT CASE WHEN {condition}\n              THEN '{other}' ELSE '{words}' END AS words\n)"
        )
    nothing = ", ".join(said if name == column else "NULL" for name in columns)
    return SqlQuery(
        f"WITH found AS (\n{_indented(_dedented(select))}\n){chosen}\n"
        f"SELECT {listed} FROM found\nUNION ALL\nSELECT {nothing} WHERE NOT EXISTS (SELECT FROM found)"
    )


def _dedented(text: str) -> str:
    lines = text.strip("\n").rstrip().splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:].rstrip() for line in lines)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else line for line in text.splitlines())
