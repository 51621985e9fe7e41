"""Workloads: who has the GPUs, and what becomes of them there."""

from typing import Final

from grafana_foundation_sdk.builders import prometheus, table
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import Board
from grafana.colours import CRITICAL, WARNING, plain, steps
from grafana.expressions import SAMPLES_AN_HOUR
from grafana.panels import column, lines, organised, stat_panel, table_panel, transform
from grafana.sources import now_or_words, over_time, rows_or_words

_PICK: Final = 'datacenter=~"$datacenter",namespace=~"$namespace"'
_LABELS: Final = "datacenter, namespace, pod, hpc_job"
# In the time range: a rule's samples are 30 s apart, so their sum is hours.
_HOURS: Final = f"sum_over_time(workload:gpus:count{{{_PICK}}}[$__range]) / {SAMPLES_AN_HOUR}"
_IDLE_HOURS: Final = f"sum_over_time(workload:gpus_idle:count{{{_PICK}}}[$__range]) / {SAMPLES_AN_HOUR}"
_WATT_HOURS: Final = f"sum_over_time(workload:gpu_power_watts:sum{{{_PICK}}}[$__range]) / {SAMPLES_AN_HOUR}"
# Of the GPUs and the moments that tell it: what is not told is not 0.
_UTILISATION: Final = f"avg_over_time(workload:gpu_utilization_percent:avg{{{_PICK}}}[$__range])"
# There are GPUs, so that nobody's having one is 0 and not unknown: now, and at some time in the range.
_REPORTING: Final = 'sum(model:gpus:count{datacenter=~"$datacenter"})'
_REPORTED: Final = 'sum(sum_over_time(model:gpus:count{datacenter=~"$datacenter"}[$__range]))'
# Nobody has one of them.
_FREE: Final = f"({_REPORTING} unless sum(workload:gpus:count{{{_PICK}}}))"
_ALWAYS_FREE: Final = f"({_REPORTED} unless sum({_HOURS}))"
_COLUMNS: Final = {
    "GPU-hours": ("Value #A", _HOURS),
    "Utilisation": ("Value #B", _UTILISATION),
    "Idle": ("Value #C", _IDLE_HOURS),
    "Energy": ("Value #D", _WATT_HOURS),
}
_SILENT: Final = "No GPU reports"


def workloads() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.WORKLOADS,
        "For whoever shares the GPUs out: which pods and jobs have how many GPU-hours, how well they use them, what "
        "they hold idle (allocated and under 5 %), and what energy they take. A GPU that several share counts in part "
        "for each.",
        since="now-6h",
        refresh="1m",
    )
    built.variables(
        board.datacenters(),
        board.prometheus_variable(
            "namespace", "Namespace", 'label_values(workload:gpus:count{datacenter=~"$datacenter"}, namespace)'
        ),
        board.models(hidden=True),
    )
    _at_a_glance(built)
    _tables(built)
    _over_time(built)
    return built.build()


def _or_none(expression: str, when: str) -> prometheus.Dataquery:
    """A number, 0 where there is none though `when` gives one; the panel's `empty` has the words where it does not."""
    return now_or_words(f"{expression} or 0 * {when}")


def _at_a_glance(built: Board) -> None:
    # Of the workloads that tell it.
    idle_share = f"100 * sum({_IDLE_HOURS}) / sum({_HOURS} and on ({_LABELS}) {_IDLE_HOURS})"
    built.put(
        4,
        (
            stat_panel(
                "Workloads now",
                "How many pods and jobs have a GPU?",
                _or_none(f"count(workload:gpus:count{{{_PICK}}})", _REPORTING),
                thresholds=plain("blue"),
                empty=_SILENT,
            ),
            4,
        ),
        (
            stat_panel(
                "GPUs they have",
                "How many GPUs do they have together?",
                _or_none(f"sum(workload:gpus:count{{{_PICK}}})", _REPORTING),
                decimals=0,
                thresholds=plain("blue"),
                empty=_SILENT,
            ),
            4,
        ),
        (
            stat_panel(
                "Of these idle",
                "How many of them are at work for less than 5 % of the time, of those that tell?",
                _or_none(f"sum(workload:gpus_idle:count{{{_PICK}}})", _FREE),
                decimals=0,
                thresholds=steps("blue", (1, WARNING)),
                empty="not told",
            ),
            4,
        ),
        (
            stat_panel(
                "GPU-hours in this range",
                "How much was allocated?",
                _or_none(f"sum({_HOURS})", _REPORTED),
                unit="suffix: GPU-h",
                decimals=1,
                thresholds=plain("blue"),
                empty=_SILENT,
            ),
            4,
        ),
        (
            stat_panel(
                "Idle share of them",
                "Which share of what was allocated was not used, as far as it is told?",
                _or_none(idle_share, _ALWAYS_FREE),
                unit="percent",
                decimals=1,
                thresholds=steps("green", (10, WARNING), (30, CRITICAL)),
                empty="not told",
            ),
            4,
        ),
        (
            stat_panel(
                "Energy in this range",
                "What did the workloads' GPUs use?",
                _or_none(f"sum({_WATT_HOURS})", _ALWAYS_FREE),
                unit="watth",
                decimals=1,
                thresholds=plain("blue"),
                empty="not told",
            ),
            4,
        ),
    )


def _tables(built: Board) -> None:
    built.put(
        12,
        (
            _table(
                "Most GPU-hours",
                "Which ten workloads had the most of the GPUs in this range, how well did they use them on average, "
                "and for how many GPU-hours not at all?",
                f"topk(10, {_HOURS})",
                sort_by="GPU-hours",
                whole=True,
            ),
            24,
        ),
    )
    built.put(
        12,
        (
            _table(
                "Lowest utilisation",
                "Which ten workloads used least what they had, on average? Of those with 3 GPU-minutes or more in this "
                "range.",
                f"bottomk(10, {_UTILISATION} and on ({_LABELS}) ({_HOURS} >= 0.05))",
                sort_by="Utilisation",
                descending=False,
                words="none had 3 GPU-minutes in this range",
            ),
            12,
        ),
        (
            _table(
                "Most idle GPU-hours",
                "Which ten workloads held GPUs the longest without using them?",
                f"topk(10, {_IDLE_HOURS} > 0)",
                sort_by="Idle",
                judged=False,
            ),
            12,
        ),
    )


def _table(
    title: str,
    description: str,
    chosen: str,
    *,
    sort_by: str,
    descending: bool = True,
    whole: bool = False,
    judged: bool = True,
    words: str = "none in this range",
) -> table.Panel:
    """A row for each chosen workload, with every column; the choice is repeated, so that all columns have the same."""
    queries: list[prometheus.Dataquery] = [
        rows_or_words(
            f"{expression} and on ({_LABELS}) {chosen} or on ({_LABELS}) NaN * ({chosen})",
            label="pod",
            words=words,
        )
        for _, expression in _COLUMNS.values()
    ]
    shown = {value: name for name, (value, _) in _COLUMNS.items()}
    return table_panel(
        title,
        description,
        *queries,
        columns=[
            column("GPU-hours", unit="suffix: h", decimals=2, width=115),
            column(
                "Utilisation",
                unit="percent",
                decimals=0,
                width=130,
                gauge_to=100,
                thresholds=steps(CRITICAL, (5, WARNING), (30, "green")) if judged else None,
            ),
            column("Idle", unit="suffix: h", decimals=2, width=85),
            column("Energy", unit="watth", decimals=1, width=95),
            column("Datacenter", width=105),
            column("Namespace", width=110),
        ],
        transformations=[
            transform("merge"),
            organised(
                ("namespace", "pod", "hpc_job", "datacenter", *shown),
                {"namespace": "Namespace", "pod": "Pod", "hpc_job": "Job", "datacenter": "Datacenter"} | shown,
                ("Time",) if whole else ("Time", "datacenter", "Value #D"),
            ),
        ],
        sort_by=(sort_by, descending),
    )


def _over_time(built: Board) -> None:
    built.row("Over time")
    top = "topk(10, sum by (namespace) ({rule}{{" + _PICK + "}}))"
    panels = (
        (
            "GPUs by namespace",
            "Who has the GPUs? The ten largest.",
            "workload:gpus:count",
            "short",
            "No workload had a GPU in this range",
        ),
        (
            "Idle GPUs by namespace",
            "Who holds GPUs without using them? The ten largest.",
            "workload:gpus_idle:count",
            "short",
            "No workload's GPU told its utilisation in this range",
        ),
        (
            "Power by namespace",
            "Whose work takes the power? The ten largest.",
            "workload:gpu_power_watts:sum",
            "watt",
            "No workload's GPU told its power in this range",
        ),
    )
    built.put(
        9,
        *(
            (
                lines(
                    title,
                    description,
                    over_time(top.format(rule=rule), "{{namespace}}"),
                    unit=unit,
                    low=0,
                    fill=25,
                    stacked=True,
                    soft_high=4,
                    calcs=["lastNotNull", "mean"],
                    empty=empty,
                ),
                8,
            )
            for title, description, rule, unit, empty in panels
        ),
    )
