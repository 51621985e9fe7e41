"""Pipeline: whether what the other dashboards show can be trusted."""

from pathlib import Path
from typing import Final

import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana import board
from grafana.board import Board
from grafana.colours import CRITICAL, WARNING, bad_from_one, plain, steps
from grafana.expressions import kinds
from grafana.panels import bars, column, lines, organised, stat_panel, table_panel
from grafana.severities import severity_column
from grafana.sources import now, now_or_words, over_time, rows_or_words, sql_or_words

_OWN: Final = 'job=~"bridge|alert-engine|api|prometheus"'
_RULES: Final = Path(__file__).parents[2] / "prometheus" / "rules" / "pipeline.yml"
_PER_SECOND: Final = "[$__rate_interval]"
# Prometheus answers if it is asked. It may watch other things too, and forgets a target that DNS no longer names.
_PARTS: Final = ("bridge", "gpu-fleet", "alert-engine", "api")
_UP: Final = f'up{{job=~"{"|".join(_PARTS)}"}}' + "".join(f' or absent(up{{job="{part}"}}) - 1' for part in _PARTS)


def _silence(part: str) -> str:
    """What a counter that has no series before its first event comes to: 0 while its part answers, and else unknown."""
    return f'0 * sum(up{{job="{part}"}} == 1)'


_OF_BRIDGE: Final = _silence("bridge")
_OF_ENGINE: Final = _silence("alert-engine")
_OF_API: Final = _silence("api")


def _rate(counter: str) -> str:
    return f"sum(rate({counter}{_PER_SECOND}))"


def _counted(counter: str, name: str, label: str, silence: str) -> str:
    """The events of a counter a second, all of them and by one of its labels, named in the label `kind` as in `kinds`.

    All of them, because a 0 that ends where the first event begins would stand beside it in the legend.
    """
    each = f"sum by ({label}) (rate({counter}{_PER_SECOND}))"
    return (
        f'label_replace({_rate(counter)} or {silence}, "kind", "{name}", "", "")'
        f' or label_replace({each}, "kind", "{name}, $1", "{label}", "(.+)")'
    )


def pipeline() -> Dashboard:
    """The dashboard."""
    built = Board(
        board.PIPELINE,
        "For whoever runs the pipeline: does every record get from the exporters' pages to the table, how long does it "
        "take, what is lost on the way and why, and what does each part cost?",
        since="now-1h",
    )
    built.variables(board.datacenters(), board.models(hidden=True))
    _at_a_glance(built)
    _scraping(built)
    _delivery(built)
    _ledger(built)
    _cost(built)
    return built.build()


def _alerts() -> str:
    """The shipped alerts about the pipeline, as a regular expression."""
    groups = yaml.safe_load(_RULES.read_text(encoding="utf-8"))["groups"]
    return "|".join(rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule)


def _at_a_glance(built: Board) -> None:
    ended = f"sum(rate(gpu_bridge_scrapes_total{_PER_SECOND}))"
    built.put(
        4,
        (
            stat_panel(
                "Scrapes that succeed",
                "Which share of the turns gave a page?",
                now_or_words(
                    f"100 * (1 - (sum(rate(gpu_bridge_scrape_failures_total{_PER_SECOND})) or vector(0)) / {ended})"
                ),
                unit="percent",
                decimals=1,
                thresholds=steps(CRITICAL, (90, WARNING), (99, "green")),
                empty="The bridge scrapes nothing",
            ),
            4,
        ),
        (
            stat_panel(
                "Samples a second",
                "How many values does the bridge read?",
                now_or_words(f"sum(rate(gpu_bridge_samples_total{_PER_SECOND}))"),
                unit="short",
                decimals=0,
                thresholds=plain("blue"),
                empty="The bridge does not answer",
            ),
            4,
        ),
        (
            stat_panel(
                "Records stored a second",
                "How many GPU records reach the table?",
                now_or_words(f'sum(rate(alert_engine_records_stored_total{{kind="gpu"}}{_PER_SECOND}))'),
                unit="short",
                decimals=1,
                thresholds=plain("blue"),
                empty="No alert engine answers",
            ),
            4,
        ),
        (
            stat_panel(
                "Behind by",
                "How long ago was all that Kafka then had taken in? The alert engine can be no more up to date.",
                now_or_words("max(alert_engine_lag_seconds)"),
                unit="s",
                decimals=1,
                thresholds=steps("green", (60, WARNING), (900, CRITICAL)),
                empty="No alert engine answers",
            ),
            4,
        ),
        (
            stat_panel(
                "Lost without a reason",
                "How many GPU records of the last whole hour can nothing account for? Anything but 0 is a fault.",
                now_or_words("max(alert_engine_ledger_missing_gpu_records)"),
                thresholds=bad_from_one(CRITICAL),
                empty="No alert engine answers",
            ),
            4,
        ),
        (
            stat_panel(
                "Parts that answer",
                "Which share of the bridge, its page of the fleet, the alert engines and the API is up? A part that "
                "Prometheus finds none of counts as down.",
                now(f"100 * avg(avg by (job) ({_UP}))"),
                unit="percent",
                decimals=0,
                thresholds=steps(CRITICAL, (100, "green")),
            ),
            4,
        ),
    )
    built.put(
        6,
        (
            table_panel(
                "Alerts about the pipeline itself",
                "What does Prometheus say is wrong with the parts? The alert engine cannot report its own death.",
                rows_or_words(
                    "sum by (alertname, severity, instance, reason) "
                    f'(ALERTS{{alertstate="firing",alertname=~"{_alerts()}"}})',
                    label="alertname",
                    words="none fires",
                ),
                columns=[column("Alert", width=260), severity_column(90)],
                transformations=[
                    organised(
                        ("alertname", "severity", "instance", "reason"),
                        {"alertname": "Alert", "severity": "Severity", "instance": "Instance", "reason": "Reason"},
                        ("Time", "Value"),
                    )
                ],
            ),
            12,
        ),
        (
            bars(
                "Parts",
                "Is each part scraped, and are all of it up? 1 is up, 0 is down or not there.",
                now(f"min by (job) ({_UP})", "{{job}}"),
                decimals=0,
                thresholds=steps(CRITICAL, (1, "green")),
            ).max(1),
            12,
        ),
    )


def _scraping(built: Board) -> None:
    failures = "gpu_bridge_scrape_failures_total"
    built.row("Scraping")
    built.put(
        9,
        (
            lines(
                "Turns a second, by outcome",
                "Do scrapes fail, and why?",
                over_time(f"{_rate('gpu_bridge_scrapes_total')} - ({_rate(failures)} or vector(0))", "good"),
                over_time(_counted(failures, "failed", "reason", _OF_BRIDGE), "{{kind}}"),
                unit="suffix:/s",
                low=0,
                fill=25,
                calcs=["lastNotNull", "max"],
                colours={"good": "green", "failed$": WARNING},
                empty="The bridge does not answer",
            ),
            8,
        ),
        (
            lines(
                "How long exporters take",
                "Do exporters answer in time? The time under which half, 90 % and 99 % of the pages came.",
                *(
                    over_time(
                        f"histogram_quantile({share}, sum by (le) "
                        f"(rate(gpu_bridge_scrape_duration_seconds_bucket{_PER_SECOND})))",
                        name,
                    )
                    for share, name in ((0.99, "99 %"), (0.9, "90 %"), (0.5, "half"))
                ),
                unit="s",
                low=0,
                calcs=["lastNotNull", "max"],
                colours={"99 %": "dark-blue", "90 %": "blue", "half": "light-blue"},
                empty="No page was read in this range",
            ),
            8,
        ),
        (
            lines(
                "Samples and records a second",
                "How much is read, and how much of it becomes records?",
                # In one query, as either part may be down.
                over_time(
                    kinds(
                        **{
                            "samples read": _rate("gpu_bridge_samples_total"),
                            "GPU records made": _rate("gpu_bridge_gpu_records_total"),
                            "GPU records stored": _rate('alert_engine_records_stored_total{kind="gpu"}'),
                        }
                    ),
                    "{{kind}}",
                ),
                unit="suffix:/s",
                low=0,
                calcs=["lastNotNull", "max"],
                empty="Nothing was read in this range",
            ),
            8,
        ),
    )
    built.put(
        9,
        (
            lines(
                "Values not believed, by field and reason",
                "Which fields do exporters report wrongly? Such values are kept apart, never stored as measured.",
                over_time(
                    f"topk(15, sum by (field, reason) (rate(gpu_bridge_rejected_values_total{_PER_SECOND})))"
                    f' or on () label_replace({_OF_BRIDGE}, "field", "none", "", "")',
                    "{{field}} {{reason}}",
                ),
                unit="suffix:/s",
                low=0,
                soft_high=1,
                legend_right=True,
                empty="The bridge does not answer",
            ),
            12,
        ),
        (
            lines(
                "Lines not understood and samples without a record, by reason",
                "What on the pages is no part of a record? NVSwitch, CPU and link rows are re-exposed, not recorded.",
                over_time(
                    _counted("gpu_bridge_refused_lines_total", "lines refused", "reason", _OF_BRIDGE), "{{kind}}"
                ),
                over_time(
                    _counted("gpu_bridge_not_recorded_samples_total", "not recorded", "entity", _OF_BRIDGE), "{{kind}}"
                ),
                unit="suffix:/s",
                low=0,
                soft_high=1,
                legend_right=True,
                empty="The bridge does not answer",
            ),
            12,
        ),
    )


def _delivery(built: Board) -> None:
    built.row("From the bridge to the table")
    built.put(
        9,
        (
            lines(
                "Messages to Kafka a second",
                "Does Kafka take what the bridge sends, and does it refuse any?",
                over_time(f"sum(rate(gpu_bridge_delivered_messages_total{_PER_SECOND}))", "delivered"),
                over_time(_counted("gpu_bridge_failed_deliveries_total", "refused", "error", _OF_BRIDGE), "{{kind}}"),
                over_time(
                    _counted("gpu_bridge_dropped_gpu_records_total", "records dropped", "reason", _OF_BRIDGE),
                    "{{kind}}",
                ),
                unit="suffix:/s",
                low=0,
                calcs=["lastNotNull", "max"],
                colours={"delivered": "green", "refused": CRITICAL, "dropped": WARNING},
                empty="The bridge does not answer",
            ),
            8,
        ),
        (
            lines(
                "What waits in the bridge",
                "Is Kafka slower than the scrapes? When this is full, whole scrapes are dropped, the oldest first.",
                over_time("sum(gpu_bridge_queue_bytes)", "bytes queued"),
                unit="bytes",
                low=0,
                soft_high=1e6,
                calcs=["lastNotNull", "max"],
                empty="The bridge does not answer",
            ),
            8,
        ),
        (
            lines(
                "Lag of the alert engine",
                "How far behind Kafka is the table, in time? Prometheus warns above a minute.",
                over_time("max by (instance) (alert_engine_lag_seconds)", "{{instance}}"),
                unit="s",
                low=0,
                soft_high=60,
                thresholds=steps("green", (60, WARNING), (900, CRITICAL)),
                calcs=["lastNotNull", "max"],
                empty="No alert engine answers",
            ),
            8,
        ),
    )
    built.put(
        9,
        (
            lines(
                "Store latency",
                "How long does a batch take from decoding to commit: half, 90 % and 99 % of them at most?",
                *(
                    over_time(
                        f"histogram_quantile({share}, "
                        f"sum by (le) (rate(alert_engine_batch_seconds_bucket{_PER_SECOND})))",
                        name,
                    )
                    for share, name in ((0.99, "99 %"), (0.9, "90 %"), (0.5, "half"))
                ),
                unit="s",
                low=0,
                calcs=["lastNotNull", "max"],
                colours={"99 %": "dark-blue", "90 %": "blue", "half": "light-blue"},
                empty="Nothing was stored in this range",
            ),
            8,
        ),
        (
            lines(
                "Records that were not stored as new, a second",
                "What happens to records besides being stored? Duplicates and late ones are normal after a restart.",
                over_time(f"sum(rate(alert_engine_records_duplicate_total{_PER_SECOND}))", "stored before"),
                over_time(f"sum(rate(alert_engine_records_late_total{_PER_SECOND}))", "late: stored, not evaluated"),
                over_time(f"sum(rate(alert_engine_records_beyond_retention_total{_PER_SECOND}))", "too old to keep"),
                over_time(
                    _counted("alert_engine_dead_letters_total", "dead letters", "reason", _OF_ENGINE), "{{kind}}"
                ),
                unit="suffix:/s",
                low=0,
                soft_high=1,
                colours={"dead letters": CRITICAL},
                empty="No alert engine answers",
            ),
            8,
        ),
        (
            lines(
                "Errors a second",
                "Does the database refuse, or do workers get in each other's way?",
                over_time(_errors(), "{{kind}}"),
                unit="suffix:/s",
                low=0,
                soft_high=1,
                colours={"database": CRITICAL, "5xx": "dark-red"},
                empty="Neither an alert engine nor the API answers",
            ),
            8,
        ),
    )


def _errors() -> str:
    """A line for each kind of error; all in one query, as either part may be down."""
    fenced, failed = "alert_engine_batches_fenced_total", 'gpu_telemetry_api_requests_total{status=~"5.."}'
    return " or ".join(
        (
            _counted("alert_engine_database_errors_total", "database errors", "part", _OF_ENGINE),
            _counted("alert_engine_batch_retries_total", "batches begun again", "cause", _OF_ENGINE),
            kinds(
                **{"batches another worker had": _rate(fenced), "API answers of 5xx": f"{_rate(failed)} or {_OF_API}"}
            ),
        )
    )


def _ledger(built: Board) -> None:
    built.row("Ledger")
    columns = ("Hour", "Announced", "Otherwise expected", "Stored", "Dropped", "Missing", "Dropped, by reason")
    built.put(
        5,
        (
            table_panel(
                "What became of every GPU record, by hour",
                "Is every record accounted for? Announced + otherwise expected = stored + dropped + missing. Counted "
                "from the rows, for this hour and the last; the API's /api/v1/ledger has it by node.",
                sql_or_words(
                    columns,
                    """
                    WITH hours AS (
                        SELECT date_trunc('hour', now(), 'UTC') - hours * interval '1 hour' AS hour
                          FROM generate_series(0, 1) hours
                    ),
                    lines AS MATERIALIZED (
                        SELECT k.node_id, k.hour, e.*
                          FROM (
                              SELECT n.node_id, h.hour
                                FROM hours h JOIN nodes n
                                  ON n.first_seen < h.hour + interval '1 hour' AND n.last_heard >= h.hour
                               UNION
                              SELECT d.node_id, d.hour FROM stream_drops d JOIN hours h USING (hour)
                          ) k
                         CROSS JOIN LATERAL ledger_entry(k.node_id, k.hour) e
                    )
                    SELECT to_char(l.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') AS "Hour",
                           sum(l.announced)::bigint AS "Announced",
                           sum(l.unannounced + l.estimated)::bigint AS "Otherwise expected",
                           sum(l.stored)::bigint AS "Stored", sum(l.dropped)::bigint AS "Dropped",
                           sum(l.missing)::bigint AS "Missing",
                           (SELECT string_agg(r.reason || ' ' || r.records, ', ' ORDER BY r.records DESC, r.reason)
                              FROM (SELECT d.key AS reason, sum(d.value::bigint) AS records
                                      FROM lines o CROSS JOIN LATERAL jsonb_each_text(o.dropped_by_reason) d
                                     WHERE o.hour = l.hour GROUP BY d.key) r) AS "Dropped, by reason"
                      FROM lines l
                     GROUP BY l.hour
                     ORDER BY l.hour DESC
                    """,
                    words="No hour is counted yet",
                    column="Hour",
                ),
                columns=[
                    column("Hour", width=180),
                    *(column(name, width=130, unit="locale") for name in ("Announced", "Stored", "Dropped")),
                    column("Otherwise expected", width=165, unit="locale"),
                    column("Missing", width=100, unit="locale", thresholds=steps("green", (1, CRITICAL))),
                ],
            ),
            24,
        ),
    )


def _cost(built: Board) -> None:
    built.row("What it costs")
    built.put(
        9,
        (
            lines(
                "CPU of each part",
                "Which part needs how much of a core? The API, being several processes, does not tell.",
                over_time(f"sum by (job) (rate(process_cpu_seconds_total{{{_OWN}}}{_PER_SECOND})) * 100", "{{job}}"),
                unit="percent",
                low=0,
                calcs=["lastNotNull", "max"],
                empty="No part tells its CPU",
            ),
            12,
        ),
        (
            lines(
                "Memory of each part",
                "Does a part grow?",
                over_time(f"sum by (job) (process_resident_memory_bytes{{{_OWN}}})", "{{job}}"),
                unit="bytes",
                low=0,
                calcs=["lastNotNull", "max"],
                empty="No part tells its memory",
            ),
            12,
        ),
    )
    built.put(
        9,
        (
            lines(
                "Requests to the API a second, by route",
                "Who asks for what? The ten busiest.",
                over_time(
                    f"topk(10, sum by (route) (rate(gpu_telemetry_api_requests_total{_PER_SECOND})))", "{{route}}"
                ),
                unit="suffix:/s",
                low=0,
                legend_right=True,
                empty="Nobody asked in this range",
            ),
            12,
        ),
        (
            lines(
                "Time to answer of the API",
                "Do people wait: half, 90 % and 99 % of the requests at most?",
                *(
                    over_time(
                        f"histogram_quantile({share}, sum by (le) "
                        f"(rate(gpu_telemetry_api_request_duration_seconds_bucket{_PER_SECOND})))",
                        name,
                    )
                    for share, name in ((0.99, "99 %"), (0.9, "90 %"), (0.5, "half"))
                ),
                unit="s",
                low=0,
                calcs=["lastNotNull", "max"],
                colours={"99 %": "dark-blue", "90 %": "blue", "half": "light-blue"},
                empty="Nobody asked in this range",
            ),
            12,
        ),
    )
