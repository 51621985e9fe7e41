"""The kinds of panel that the dashboards are made of, in the one look that they share.

Every panel says in its description which question it answers. `empty` is what a panel says instead of "No data": it
is for panels whose emptiness is news, or whose source is off by default.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog import builder as cogbuilder
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DashboardRangeMapOptions,
    DashboardSpecialValueMapOptions,
    DataTransformerConfig,
    DynamicConfigValue,
    Panel,
    RangeMap,
    SpecialValueMap,
    SpecialValueMatch,
    ValueMap,
    ValueMapping,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.text import TextMode

from grafana.colours import NEUTRAL, by_thresholds, fixed, palette, plain
from grafana.sources import MIXED, Query

PanelBuilder = cogbuilder.Builder[Panel]
# The SDK's builders of panels share methods, but no class that has them.
_P = TypeVar("_P", bound=Any)

_REF_IDS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _ask(panel: _P, queries: Sequence[Query]) -> _P:
    """Give the panel its queries, named A, B, C, and their datasource."""
    first = queries[0].build().datasource
    panel.datasource(first if all(query.build().datasource == first for query in queries) else MIXED)
    for ref_id, query in zip(_REF_IDS, queries, strict=False):
        panel.with_target(query.ref_id(ref_id))
    return panel


def stat_panel(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    thresholds: dashboard.ThresholdsConfig | None = None,
    decimals: int | None = None,
    links: Iterable[dashboard.DashboardLink] = (),
    mappings: list[ValueMapping] | None = None,
    empty: str | None = None,
    fields: str = "",
    background: bool = False,
    names: bool = False,
) -> stat.Panel:
    """Big numbers, the newest value of each series, coloured by thresholds."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .thresholds(thresholds or plain())
        .color_scheme(by_thresholds())
        .color_mode(shapes.BigValueColorMode.BACKGROUND if background else shapes.BigValueColorMode.VALUE)
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .justify_mode(shapes.BigValueJustifyMode.CENTER)
        .text_mode(shapes.BigValueTextMode.VALUE_AND_NAME if names else shapes.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields(fields))
    )
    if empty is not None:
        mappings = [*(mappings or []), _null(empty)]
    return _common(_ask(panel, queries), decimals=decimals, links=links, mappings=mappings, empty=empty)


def bars(
    title: str,
    description: str,
    *queries: Query,
    unit: str = "short",
    thresholds: dashboard.ThresholdsConfig | None = None,
    decimals: int | None = None,
    links: Iterable[dashboard.DashboardLink] = (),
    empty: str | None = None,
) -> bargauge.Panel:
    """A bar for each series."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .thresholds(thresholds or plain("blue"))
        .color_scheme(by_thresholds())
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .show_unfilled(True)
        # Grafana makes room for names of 12 pixels beside bars that are too low to have them above.
        .text(common.VizTextDisplayOptions().title_size(12).value_size(18))
        .sizing(shapes.BarGaugeSizing.MANUAL)
        .min_viz_height(16)
        .max_viz_height(36)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields(""))
    )
    return _common(_ask(panel, queries), decimals=decimals, links=links, empty=empty)


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str,
    thresholds: dashboard.ThresholdsConfig | None = None,
    low: float | None = None,
    high: float | None = None,
    soft_high: float | None = None,
    decimals: int | None = None,
    fill: int = 0,
    stacked: bool = False,
    columns: bool = False,
    legend_right: bool = False,
    calcs: Sequence[str] = (),
    colours: Mapping[str, str] | None = None,
    links: Iterable[dashboard.DashboardLink] = (),
    empty: str | None = None,
) -> timeseries.Panel:
    """Lines over time, or `columns`; thresholds are dashed lines, so that they colour nothing that is not over them.

    `colours` gives series by their names, as regular expressions, a colour.
    """
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(shapes.LegendDisplayMode.TABLE if calcs or legend_right else shapes.LegendDisplayMode.LIST)
        .placement(shapes.LegendPlacement.RIGHT if legend_right else shapes.LegendPlacement.BOTTOM)
        .calcs(list(calcs))
    )
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .color_scheme(palette())
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.MULTI).sort(shapes.SortOrder.DESCENDING))
        .draw_style(shapes.GraphDrawStyle.BARS if columns else shapes.GraphDrawStyle.LINE)
        .line_width(0 if columns else 1)
        .fill_opacity(80 if columns else fill)
        .show_points(shapes.VisibilityMode.AUTO if not columns else shapes.VisibilityMode.NEVER)
        .point_size(4)
        .axis_placement(shapes.AxisPlacement.AUTO)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if thresholds is not None:
        panel.thresholds(thresholds)
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(shapes.GraphThresholdsStyleMode.DASHED))
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    if soft_high is not None:
        panel.axis_soft_max(soft_high)
    for name, colour in (colours or {}).items():
        panel.override_by_regexp(f"/{name}/", coloured(colour))
    return _common(_ask(panel, queries), decimals=decimals, links=links, empty=empty)


def heat_map(title: str, description: str, query: Query, *, unit: str, empty: str | None = None) -> heatmap.Panel:
    """A cell for each bucket and moment: darker where more is in it on a light page, lighter on a dark one."""
    panel = (
        heatmap.Panel()
        .title(title)
        .description(description)
        .calculate(False)
        .cell_gap(1)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .fill("dark-orange")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .reverse(False)
        )
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(shapes.AxisPlacement.LEFT))
        .cell_values(heatmap.CellValues().unit("short").decimals(0))
        .tooltip(heatmap.HeatmapTooltip().mode(shapes.TooltipDisplayMode.SINGLE).show_color_scale(True))
        .show_legend()
    )
    return _common(_ask(panel, [query]), empty=empty)


def states(
    title: str,
    description: str,
    *queries: Query,
    mappings: list[ValueMapping] | None = None,
    per_page: int = 20,
    by_row: str | None = None,
    row_height: float = 0.85,
    links: Iterable[dashboard.DashboardLink] = (),
    empty: str | None = None,
) -> statetimeline.Panel:
    """A row for each series with its states over time, `per_page` rows a page where Grafana can turn pages.

    `by_row` is the column of a table that names the row of a state in the column `Value`.
    """
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .merge_values(True)
        .show_value(shapes.VisibilityMode.AUTO)
        .align_value(shapes.TimelineValueAlignment.LEFT)
        .row_height(row_height)
        .line_width(1)
        .fill_opacity(70)
        .per_page(per_page)
        .legend(
            common.VizLegendOptions()
            .show_legend(False)
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(shapes.TooltipDisplayMode.SINGLE))
    )
    if by_row is not None:
        panel.transformations(
            [
                transform("partitionByValues", fields=[by_row]),
                # Grafana before 10 leaves it in each part.
                transform("filterFieldsByName", exclude={"names": [by_row]}),
            ]
        )
    panel.color_scheme(fixed("semi-dark-blue"))
    return _common(_ask(panel, queries), mappings=mappings, links=links, empty=empty)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a column's cells look: unit, width in pixels, colours, and where a click leads (a title and an address)."""

    unit: str | None = None
    decimals: int | None = None
    width: int | None = None
    thresholds: dashboard.ThresholdsConfig | None = None
    gauge_to: float | None = None
    mappings: list[ValueMapping] | None = None
    link: tuple[str, str] | None = None
    hidden: bool = False
    left: bool = False

    def properties(self) -> list[DynamicConfigValue]:
        """The override that makes it so."""
        plain_ones = {
            "unit": self.unit,
            "decimals": self.decimals,
            "custom.width": self.width,
            "custom.align": "left" if self.left else None,
            "custom.hidden": self.hidden or None,
            "mappings": self.mappings,
            "links": None if self.link is None else [{"title": self.link[0], "url": self.link[1]}],
        }
        chosen = {name: value for name, value in plain_ones.items() if value is not None} | self._colours()
        return [DynamicConfigValue(id_val=name, value=value) for name, value in chosen.items()]

    def _colours(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {}
        if self.thresholds is not None:
            chosen |= {"thresholds": self.thresholds.build(), "color": by_thresholds().build()}
        if self.gauge_to is not None:
            chosen |= {"color": fixed("blue").build()} | chosen
            return chosen | {"min": 0, "max": self.gauge_to} | _cell("gauge", mode="basic")
        if chosen or self.mappings is not None:
            chosen |= _cell("color-text")
        return chosen


class Column(NamedTuple):
    """A column of a table by its name, and its look."""

    name: str
    look: Look


def column(name: str, **look: Any) -> Column:  # noqa: ANN401 - the fields of Look
    """A column that looks so."""
    return Column(name, Look(**look))


def _cell(kind: str, **more: str) -> dict[str, Any]:
    """How cells are drawn, in the words of Grafana before 9.5 and in those since."""
    before = {"gauge": "basic"}.get(kind, kind)
    return {"custom.displayMode": before, "custom.cellOptions": {"type": kind, **more}}


def table_panel(
    title: str,
    description: str,
    *queries: Query,
    columns: Sequence[Column] = (),
    transformations: Sequence[DataTransformerConfig] = (),
    sort_by: tuple[str, bool] | None = None,
    empty: str | None = None,
) -> table.Panel:
    """Rows; `sort_by` names a column and says whether it descends."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .show_header(True)
        .cell_height(shapes.TableCellHeight.SM)
        .color_scheme(fixed("text"))
        .transformations(list(transformations))
    )
    for name, look in columns:
        panel.override_by_name(name, look.properties())
    if sort_by is not None:
        panel.sort_by([common.TableSortByFieldState().display_name(sort_by[0]).desc(sort_by[1])])
    # The number beside the words of `rows_or_words`.
    return _common(_ask(panel, queries), mappings=[_no_number("-")], empty=empty)


def words(title: str, content: str) -> text.Panel:
    """Text in Markdown."""
    return text.Panel().title(title).mode(TextMode.MARKDOWN).content(content)


def _common(
    panel: _P,
    *,
    decimals: int | None = None,
    links: Iterable[dashboard.DashboardLink] = (),
    mappings: list[ValueMapping] | None = None,
    empty: str | None = None,
) -> _P:
    if decimals is not None:
        panel.decimals(decimals)
    if empty is not None:
        panel.no_value(empty)
        # What `now_or_words` gives.
        mappings = [*(mappings or []), _no_number(empty)]
    if mappings is not None:
        panel.mappings(mappings)
    listed = list(links)
    if listed:
        panel.data_links(listed)
    return panel


def value_map(shown: dict[str, tuple[str, str | None]]) -> list[ValueMapping]:
    """A mapping of values, as text, to what is shown and its colour."""
    options = {
        value: ValueMappingResult(text=text_shown, color=colour, index=index)
        for index, (value, (text_shown, colour)) in enumerate(shown.items())
    }
    return [ValueMap(options=options)]


def _no_number(shown: str) -> ValueMapping:
    """What stands for NaN; Grafana's own match for it takes every text for one."""
    return ValueMap(options={"NaN": ValueMappingResult(text=shown, color=NEUTRAL, index=0)})


def _null(shown: str) -> ValueMapping:
    """What stands for a null, which otherwise has the colour of the lowest values: green, most often."""
    result = ValueMappingResult(text=shown, color=NEUTRAL, index=1)
    return SpecialValueMap(options=DashboardSpecialValueMapOptions(match=SpecialValueMatch.NULL, result=result))


def from_one(colour: str) -> ValueMapping:
    """Values from 1 up in this colour, shown as they are."""
    return RangeMap(
        options=DashboardRangeMapOptions(from_val=1, to=1e9, result=ValueMappingResult(color=colour, index=9))
    )


def transform(kind: str, **options: Any) -> DataTransformerConfig:  # noqa: ANN401 - JSON
    """A transformation of a panel's data by its name in Grafana."""
    return DataTransformerConfig(id_val=kind, options=options)


def organised(order: Sequence[str], renamed: dict[str, str], hidden: Sequence[str] = ()) -> DataTransformerConfig:
    """Columns in this order and by these names, without the hidden ones."""
    return transform(
        "organize",
        excludeByName=dict.fromkeys(hidden, True),
        indexByName={name: index for index, name in enumerate(order)},
        renameByName=renamed,
    )


def properties(**values: Any) -> list[DynamicConfigValue]:  # noqa: ANN401 - JSON
    """What an override changes; a dot in a property's name is written as two underscores."""
    return [DynamicConfigValue(id_val=name.replace("__", "."), value=value) for name, value in values.items()]


def coloured(colour: str, **more: Any) -> list[DynamicConfigValue]:  # noqa: ANN401 - JSON
    """An override that gives a series one colour, and what else it changes."""
    return properties(color=fixed(colour).build(), **more)
