-- Every question that the API asks of the database, whole and by its name. `%(name)s` is a parameter; a filter that is
-- not given is null, and each statement is planned for its own parameters, so such a filter costs nothing.
-- Lists are paged by their sort key (the `after_` parameters), so that rows with equal times come exactly once.

-- name: nodes
-- Nodes by their ids; the status is unknown when nothing was heard for three intervals.
SELECT n.node_id, n.hostname, n.status, n.datacenter, n.last_seen, coalesce(a.active_alerts, 0) AS active_alerts
FROM (
    SELECT node_id, hostname, datacenter, last_seen, removed_at,
           CASE WHEN last_heard <= %(now)s - interval_ms * interval '3 milliseconds' THEN 'unknown' ELSE status END
               AS status
    FROM nodes
) n
LEFT JOIN (
    SELECT node_id, count(*) AS active_alerts FROM alerts WHERE status = 'active' GROUP BY node_id
) a USING (node_id)
WHERE (n.removed_at IS NOT NULL) = %(removed)s
  AND (%(datacenter)s::text IS NULL OR n.datacenter = %(datacenter)s)
  AND (%(status)s::text IS NULL OR n.status = %(status)s)
  AND (%(after_node)s::text IS NULL OR n.node_id > %(after_node)s)
ORDER BY n.node_id
LIMIT %(limit)s

-- name: node
-- One node, removed or not.
SELECT n.node_id, n.hostname, n.datacenter, n.instance, n.first_seen, n.last_seen, n.last_heard, n.interval_ms,
       n.removed_at,
       CASE WHEN n.last_heard <= %(now)s - n.interval_ms * interval '3 milliseconds' THEN 'unknown' ELSE n.status END
           AS status,
       (SELECT count(*) FROM alerts a WHERE a.node_id = n.node_id AND a.status = 'active') AS active_alerts
FROM nodes n
WHERE n.node_id = %(node)s

-- name: node_exists
SELECT 1 FROM nodes WHERE node_id = %(node)s

-- name: gpus
-- The GPUs that stand in a node: those whose newest row is of it, at the index of that row, unless another one took the
-- place since: one that was not on the page with it. The rows of a page share their time, so a neighbour that moved up
-- when a GPU fell off the bus is told from one that was put in for it; by a count, as EXISTS may be planned as a hash
-- of all rows. Of a GPU's MIG instances those are there that had a row within 3 intervals of its newest one. Looked at
-- are all places of the GPUs that ever stood in the node.
SELECT s.gpu_uuid, s.gpu_index, s.mig_instance, s.mig_profile, g.model, g.driver_version, g.pci_bus_id,
       g.memory_total_mib, s.since, s.last_collected_at
FROM (
    SELECT p.*, n.interval_ms, r.collected_at AS last_collected_at,
           first_value(p.node_id) OVER newest AS now_node_id,
           first_value(p.gpu_index) OVER newest AS now_gpu_index,
           first_value(coalesce(r.collected_at, p.since)) OVER newest AS at
    FROM placements p
    JOIN nodes n USING (node_id)
    LEFT JOIN LATERAL (
        SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r ON true
    WHERE p.gpu_uuid IN (SELECT gpu_uuid FROM placements WHERE node_id = %(node)s)
    WINDOW newest AS (PARTITION BY p.gpu_uuid ORDER BY r.collected_at DESC NULLS LAST, p.placement_id DESC)
) s
JOIN gpus g USING (gpu_uuid)
WHERE s.node_id = %(node)s
  AND (s.now_node_id, s.now_gpu_index) = (s.node_id, s.gpu_index)
  AND coalesce(s.last_collected_at, s.since) > s.at - s.interval_ms * interval '3 milliseconds'
  AND NOT EXISTS (
      SELECT
      FROM placements o
      WHERE o.node_id = s.node_id AND o.gpu_index = s.gpu_index AND o.gpu_uuid <> s.gpu_uuid
        AND greatest(o.since, (
            SELECT collected_at FROM gpu_metrics WHERE placement_id = o.placement_id ORDER BY collected_at DESC LIMIT 1
        )) > s.at
        AND 0 = (
            SELECT count(*)
            FROM placements q
            JOIN gpu_metrics m USING (placement_id)
            WHERE q.node_id = o.node_id AND q.gpu_uuid = o.gpu_uuid AND m.collected_at = s.at
        )
  )
ORDER BY s.gpu_index, s.at DESC, s.gpu_uuid, s.mig_instance NULLS FIRST

-- name: node_metrics
-- A node's rows, newest first, of one index probe a placement. No row older than `oldest` can be among them: n placements
-- are in the newest turn, and each of them has limit / n rows since then.
WITH newest AS (
    SELECT p.placement_id, r.collected_at
    FROM placements p
    CROSS JOIN LATERAL (
        SELECT collected_at
        FROM gpu_metrics
        WHERE placement_id = p.placement_id
          AND (%(after_time)s::timestamptz IS NULL
               OR (collected_at <= %(after_time)s
                   AND (collected_at < %(after_time)s OR placement_id > %(after_placement)s)))
        ORDER BY collected_at DESC
        LIMIT 1
    ) r
    WHERE p.node_id = %(node)s
), oldest AS (
    SELECT min(coalesce(r.collected_at, '-infinity')) AS at
    FROM (
        SELECT placement_id, count(*) OVER () AS placements
        FROM newest
        WHERE collected_at = (SELECT max(collected_at) FROM newest)
    ) c
    LEFT JOIN LATERAL (
        SELECT collected_at
        FROM gpu_metrics
        WHERE placement_id = c.placement_id
          AND (%(after_time)s::timestamptz IS NULL
               OR (collected_at <= %(after_time)s
                   AND (collected_at < %(after_time)s OR placement_id > %(after_placement)s)))
        ORDER BY collected_at DESC
        OFFSET (%(limit)s - 1) / c.placements
        LIMIT 1
    ) r ON true
)
SELECT m.*, p.gpu_uuid, p.mig_instance, p.mig_profile, g.model
FROM placements p
JOIN gpus g USING (gpu_uuid)
CROSS JOIN LATERAL (
    SELECT *
    FROM gpu_metrics
    WHERE placement_id = p.placement_id
      AND collected_at >= (SELECT at FROM oldest)
      AND (%(after_time)s::timestamptz IS NULL
           OR (collected_at <= %(after_time)s
               AND (collected_at < %(after_time)s OR placement_id > %(after_placement)s)))
    ORDER BY collected_at DESC
    LIMIT %(limit)s
) m
WHERE p.node_id = %(node)s
ORDER BY m.collected_at DESC, m.placement_id
LIMIT %(limit)s

-- name: latest_metrics
-- The newest row of every GPU and MIG instance, wherever in the fleet it stands: one probe of an index a placement.
-- The filters are of the newest row: a GPU that moved is not found where it was, even if it left with a removed node.
SELECT m.*, k.gpu_uuid, k.mig_instance, m.mig_profile, g.model
FROM (
    SELECT DISTINCT p.gpu_uuid, p.mig_instance
    FROM placements p
    JOIN nodes n USING (node_id)
    WHERE n.removed_at IS NULL
      AND (%(node)s::text IS NULL OR p.node_id = %(node)s)
      AND (%(datacenter)s::text IS NULL OR n.datacenter = %(datacenter)s)
      AND (%(after_gpu)s::text IS NULL
           OR (p.gpu_uuid >= %(after_gpu)s
               AND (p.gpu_uuid > %(after_gpu)s
                    OR (%(after_mig)s::text IS NOT NULL
                        AND (p.mig_instance > %(after_mig)s OR p.mig_instance IS NULL)))))
    ORDER BY p.gpu_uuid, p.mig_instance
) k
JOIN gpus g USING (gpu_uuid)
CROSS JOIN LATERAL (
    SELECT r.*, p.mig_profile, n.datacenter, n.removed_at
    FROM placements p
    JOIN nodes n USING (node_id)
    CROSS JOIN LATERAL (
        SELECT * FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r
    WHERE p.gpu_uuid = k.gpu_uuid
      AND p.mig_instance IS NOT DISTINCT FROM k.mig_instance
    ORDER BY r.collected_at DESC, r.placement_id DESC
    LIMIT 1
) m
WHERE m.removed_at IS NULL
  AND (%(node)s::text IS NULL OR m.node_id = %(node)s)
  AND (%(datacenter)s::text IS NULL OR m.datacenter = %(datacenter)s)
ORDER BY k.gpu_uuid, k.mig_instance
LIMIT %(limit)s

-- name: alerts
-- Alerts, newest first.
SELECT id, node_id, gpu_index, alert_type, severity, message, threshold_value, actual_value, status, triggered_at,
       rule, gpu_uuid, mig_instance, raised_at, resolved_at, resolved_reason, resolved_by
FROM alerts
WHERE (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(severity)s::text IS NULL OR severity = %(severity)s)
  AND (%(type)s::text IS NULL OR alert_type = %(type)s)
  AND (%(node)s::text IS NULL OR node_id = %(node)s)
  AND (%(since)s::timestamptz IS NULL OR triggered_at >= %(since)s)
  AND (%(after_time)s::timestamptz IS NULL OR (triggered_at, id) < (%(after_time)s, %(after_id)s))
ORDER BY triggered_at DESC, id DESC
LIMIT %(limit)s

-- name: alert
SELECT id, node_id, gpu_index, alert_type, severity, message, threshold_value, actual_value, status, triggered_at,
       rule, gpu_uuid, mig_instance, raised_at, resolved_at, resolved_reason, resolved_by
FROM alerts
WHERE id = %(id)s

-- name: transitions
-- An alert's transitions, in the order in which they were made.
SELECT id, transition, severity, message, threshold_value, actual_value, reason, actor, details, at
FROM alert_events
WHERE alert_id = %(id)s
ORDER BY id

-- name: actions
-- What was decided for an alert, in the order of the decisions.
SELECT id, action_type, transition, status, action_details, attempts, reason, event_time, created_at, started_at,
       finished_at
FROM alert_actions
WHERE alert_id = %(id)s
ORDER BY id

-- name: resolve
-- Resolve an alert by hand; no row when there is none.
SELECT id, node_id, gpu_index, alert_type, severity, message, threshold_value, actual_value, status, triggered_at,
       rule, gpu_uuid, mig_instance, raised_at, resolved_at, resolved_reason, resolved_by
FROM resolve_alert(%(id)s, %(actor)s)

-- name: status_counts
-- How many nodes there are of each status.
SELECT CASE WHEN last_heard <= %(now)s - interval_ms * interval '3 milliseconds' THEN 'unknown' ELSE status END
           AS status,
       count(*) AS nodes
FROM nodes
WHERE removed_at IS NULL
GROUP BY 1

-- name: active_alert_count
SELECT count(*) AS alerts FROM alerts WHERE status = 'active'

-- name: all_gpus
-- GPUs by their UUIDs, each where its newest row is; a node or a datacenter narrows them down first.
SELECT g.gpu_uuid, g.model, g.driver_version, g.pci_bus_id, g.memory_total_mib, g.first_seen, m.node_id, m.gpu_index,
       m.datacenter, m.since, m.last_collected_at, coalesce(a.active_alerts, 0) AS active_alerts
FROM gpus g
CROSS JOIN LATERAL (
    SELECT p.node_id, p.gpu_index, p.since, n.datacenter, n.removed_at, r.collected_at AS last_collected_at
    FROM placements p
    JOIN nodes n USING (node_id)
    LEFT JOIN LATERAL (
        SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r ON true
    WHERE p.gpu_uuid = g.gpu_uuid
    ORDER BY r.collected_at DESC NULLS LAST, p.placement_id DESC
    LIMIT 1
) m
LEFT JOIN (
    SELECT gpu_uuid, count(*) AS active_alerts FROM alerts WHERE status = 'active' GROUP BY gpu_uuid
) a USING (gpu_uuid)
WHERE (%(after_gpu)s::text IS NULL OR g.gpu_uuid > %(after_gpu)s)
  AND (%(model)s::text IS NULL OR g.model = %(model)s)
  AND (%(node)s::text IS NULL OR g.gpu_uuid IN (SELECT gpu_uuid FROM placements WHERE node_id = %(node)s))
  AND (%(datacenter)s::text IS NULL
       OR g.gpu_uuid IN (SELECT gpu_uuid FROM placements JOIN nodes USING (node_id) WHERE datacenter = %(datacenter)s))
  AND (m.removed_at IS NOT NULL) = %(removed)s
  AND (%(node)s::text IS NULL OR m.node_id = %(node)s)
  AND (%(datacenter)s::text IS NULL OR m.datacenter = %(datacenter)s)
ORDER BY g.gpu_uuid
LIMIT %(limit)s

-- name: gpu
-- One GPU where its newest row is, wherever that may be.
SELECT g.gpu_uuid, g.model, g.driver_version, g.pci_bus_id, g.memory_total_mib, g.first_seen, m.node_id, m.gpu_index,
       m.datacenter, m.since, m.last_collected_at,
       (SELECT count(*) FROM alerts WHERE status = 'active' AND gpu_uuid = g.gpu_uuid) AS active_alerts
FROM gpus g
CROSS JOIN LATERAL (
    SELECT p.node_id, p.gpu_index, p.since, n.datacenter, r.collected_at AS last_collected_at
    FROM placements p
    JOIN nodes n USING (node_id)
    LEFT JOIN LATERAL (
        SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r ON true
    WHERE p.gpu_uuid = g.gpu_uuid
    ORDER BY r.collected_at DESC NULLS LAST, p.placement_id DESC
    LIMIT 1
) m
WHERE g.gpu_uuid = %(gpu)s

-- name: gpu_placements
-- Where a GPU and its MIG instances stood, and until when, oldest first.
SELECT p.node_id, p.gpu_index, p.mig_instance, p.mig_profile, p.since, r.collected_at AS last_collected_at
FROM placements p
LEFT JOIN LATERAL (
    SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
) r ON true
WHERE p.gpu_uuid = %(gpu)s
ORDER BY p.since, p.placement_id

-- name: gpu_alerts
-- A GPU's alerts at all nodes where it stood, newest first.
SELECT a.id, a.node_id, a.gpu_index, a.alert_type, a.severity, a.message, a.threshold_value, a.actual_value, a.status,
       a.triggered_at, a.rule, a.gpu_uuid, a.mig_instance, a.raised_at, a.resolved_at, a.resolved_reason, a.resolved_by
FROM alerts a
WHERE a.node_id IN (SELECT node_id FROM placements WHERE gpu_uuid = %(gpu)s)
  AND a.gpu_uuid = %(gpu)s
ORDER BY a.triggered_at DESC, a.id DESC
LIMIT %(limit)s

-- name: gpu_errors
-- When a GPU's error counters rose and its XID changed, newest first. MIG instances repeat what is the whole GPU's.
-- What the first value of the time asked for is compared with lies before it: one search of an index, which a 0 spares,
-- since nothing rises to 0. The names of the fields are those of the columns.
SELECT DISTINCT at, field, before, value, node_id, gpu_index
FROM (
    SELECT at, field, value, node_id, gpu_index,
           coalesce(
               before,
               CASE WHEN value <> 0 THEN (
                   SELECT (to_jsonb(r) ->> field)::bigint
                   FROM gpu_metrics r
                   WHERE r.placement_id = measured.placement_id
                     AND r.collected_at < coalesce(%(since)s, %(now)s - interval '1 day')
                     AND to_jsonb(r) ->> field IS NOT NULL
                   ORDER BY r.collected_at DESC
                   LIMIT 1
               ) END
           ) AS before
    FROM (
        SELECT m.collected_at AS at, v.field, v.value, p.placement_id, p.node_id, p.gpu_index,
               lag(v.value) OVER (PARTITION BY p.placement_id, v.field ORDER BY m.collected_at) AS before
        FROM placements p
        JOIN gpu_metrics m USING (placement_id)
        CROSS JOIN LATERAL (VALUES
            ('xid_code', m.xid_code::bigint),
            ('ecc_single_bit_volatile', m.ecc_single_bit_volatile),
            ('ecc_double_bit_volatile', m.ecc_double_bit_volatile),
            ('ecc_single_bit_aggregate', m.ecc_single_bit_aggregate),
            ('ecc_double_bit_aggregate', m.ecc_double_bit_aggregate),
            ('row_remap_failure', m.row_remap_failure),
            ('row_remap_pending', m.row_remap_pending),
            ('row_remap_uncorrectable_rows', m.row_remap_uncorrectable_rows),
            ('row_remap_correctable_rows', m.row_remap_correctable_rows),
            ('retired_pages_single_bit', m.retired_pages_single_bit),
            ('retired_pages_double_bit', m.retired_pages_double_bit),
            ('retired_pages_pending', m.retired_pages_pending)
        ) v (field, value)
        WHERE p.gpu_uuid = %(gpu)s
          AND m.collected_at >= coalesce(%(since)s, %(now)s - interval '1 day')
          AND v.value IS NOT NULL
    ) measured
    OFFSET 0  -- so that the search is planned and made once, and not once more for each use of its result
) steps
WHERE CASE field WHEN 'xid_code' THEN value <> before AND value <> 0 ELSE value > before END
ORDER BY at DESC, field, node_id, gpu_index, before, value
LIMIT %(limit)s

-- name: ledger
-- The ledger's lines, newest hour first: those of the view `ledger`, which knows no limits. The keys of the page come
-- first; only their hours are then counted.
SELECT k.node_id, k.hour, e.*
FROM (
    SELECT node_id, hour
    FROM (
        SELECT n.node_id, h.hour
        FROM generate_series(
            greatest(date_trunc('hour', %(since)s, 'UTC'), ledger_start()),
            least(%(until)s, %(after_hour)s, (SELECT max(last_heard) FROM nodes)),
            interval '1 hour'
        ) h (hour)
        JOIN nodes n ON n.first_seen < h.hour + interval '1 hour' AND n.last_heard >= h.hour
        UNION
        SELECT node_id, hour
        FROM stream_drops
        WHERE hour >= greatest(date_trunc('hour', %(since)s, 'UTC'), ledger_start())
    ) keys
    WHERE (%(node)s::text IS NULL OR node_id = %(node)s)
      AND (%(until)s::timestamptz IS NULL OR hour < %(until)s)
      AND (%(after_hour)s::timestamptz IS NULL
           OR (hour <= %(after_hour)s AND (hour < %(after_hour)s OR node_id > %(after_node)s)))
    ORDER BY hour DESC, node_id
    LIMIT %(limit)s
) k
CROSS JOIN LATERAL ledger_entry(k.node_id, k.hour) e
ORDER BY k.hour DESC, k.node_id

-- name: ledger_totals
-- The sum of the ledger's lines; every hour of every node of the range is counted.
WITH lines AS MATERIALIZED (
    SELECT k.node_id, k.hour, e.*
    FROM (
        SELECT n.node_id, h.hour
        FROM generate_series(
            greatest(date_trunc('hour', %(since)s, 'UTC'), ledger_start()),
            least(%(until)s, (SELECT max(last_heard) FROM nodes)),
            interval '1 hour'
        ) h (hour)
        JOIN nodes n ON n.first_seen < h.hour + interval '1 hour' AND n.last_heard >= h.hour
        UNION
        SELECT node_id, hour
        FROM stream_drops
        WHERE hour >= greatest(date_trunc('hour', %(since)s, 'UTC'), ledger_start())
    ) k
    CROSS JOIN LATERAL ledger_entry(k.node_id, k.hour) e
    WHERE (%(node)s::text IS NULL OR k.node_id = %(node)s)
      AND (%(until)s::timestamptz IS NULL OR k.hour < %(until)s)
)
SELECT count(DISTINCT node_id) AS nodes, min(hour) AS first_hour, max(hour) AS last_hour,
       coalesce(sum(announced), 0)::bigint AS announced,
       coalesce(sum(unannounced), 0)::bigint AS unannounced,
       coalesce(sum(estimated), 0)::bigint AS estimated,
       coalesce(sum(stored), 0)::bigint AS stored,
       coalesce(sum(dropped), 0)::bigint AS dropped,
       coalesce(sum(missing), 0)::bigint AS missing,
       (SELECT coalesce(jsonb_object_agg(reason, gpu_records), '{}')
        FROM (
            SELECT d.key AS reason, sum(d.value::bigint) AS gpu_records
            FROM lines l CROSS JOIN LATERAL jsonb_each_text(l.dropped_by_reason) d
            GROUP BY d.key
        ) r) AS dropped_by_reason,
       coalesce(sum(scrapes), 0)::bigint AS scrapes,
       coalesce(sum(missing_scrapes), 0)::bigint AS missing_scrapes,
       coalesce(sum(unaccounted_seconds), 0) AS unaccounted_seconds
FROM lines

-- name: fleet_nodes
-- How many nodes of each status each datacenter has.
SELECT datacenter,
       CASE WHEN last_heard <= %(now)s - interval_ms * interval '3 milliseconds' THEN 'unknown' ELSE status END
           AS status,
       count(*) AS nodes
FROM nodes
WHERE removed_at IS NULL
GROUP BY 1, 2

-- name: fleet_alerts
-- How many alerts of each severity are active in each datacenter.
SELECT n.datacenter, a.severity, count(*) AS alerts
FROM alerts a
JOIN nodes n USING (node_id)
WHERE a.status = 'active' AND n.removed_at IS NULL
GROUP BY 1, 2

-- name: fleet_gpus
-- What the GPUs of each datacenter and model do, by the newest row of each: one probe of an index a placement. Power
-- and temperature stand on every MIG instance of a GPU and are the GPU's. A GPU counts once, where its newest row is,
-- unless another took its place: the same GPUs that stand in their nodes by the query `gpus`.
SELECT n.datacenter, gpu.model, count(*) AS total, count(*) FILTER (WHERE gpu.reporting) AS reporting,
       count(*) FILTER (WHERE gpu.allocated) AS allocated, count(*) FILTER (WHERE gpu.active) AS active,
       sum(gpu.power_watts) AS power_watts, max(gpu.temperature_celsius) AS temperature_max_celsius
FROM (
    SELECT i.gpu_uuid, g.model, max(i.at) AS at,
           (array_agg(i.placement_id ORDER BY i.at DESC NULLS LAST, i.placement_id DESC))[1] AS placement_id,
           bool_or(i.reporting) AS reporting,
           bool_or(i.reporting AND i.workloads IS NOT NULL) AS allocated,
           bool_or(i.reporting AND coalesce(i.gpu_utilization_percent, 100 * i.graphics_engine_active_ratio, 0) > 0)
               AS active,
           max(i.power_watts) FILTER (WHERE i.reporting) AS power_watts,
           max(i.temperature_celsius) FILTER (WHERE i.reporting) AS temperature_celsius
    FROM (
        SELECT DISTINCT ON (p.gpu_uuid, p.mig_instance)
               p.gpu_uuid, p.placement_id, r.collected_at AS at, r.workloads, r.gpu_utilization_percent,
               r.graphics_engine_active_ratio, r.power_watts, r.temperature_celsius,
               coalesce(r.collected_at > %(now)s - n.interval_ms * interval '3 milliseconds', false) AS reporting
        FROM placements p
        JOIN nodes n USING (node_id)
        LEFT JOIN LATERAL (
            SELECT * FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
        ) r ON true
        WHERE p.gpu_uuid IN (SELECT gpu_uuid FROM placements JOIN nodes USING (node_id) WHERE removed_at IS NULL)
        ORDER BY p.gpu_uuid, p.mig_instance, r.collected_at DESC NULLS LAST, p.placement_id DESC
    ) i
    JOIN gpus g USING (gpu_uuid)
    GROUP BY i.gpu_uuid, g.model
) gpu
JOIN placements p USING (placement_id)
JOIN nodes n USING (node_id)
WHERE n.removed_at IS NULL
  AND NOT EXISTS (
    SELECT
    FROM placements o
    WHERE o.node_id = p.node_id AND o.gpu_index = p.gpu_index AND o.gpu_uuid <> p.gpu_uuid
      AND greatest(o.since, (
          SELECT collected_at FROM gpu_metrics WHERE placement_id = o.placement_id ORDER BY collected_at DESC LIMIT 1
      )) > coalesce(gpu.at, p.since)
      AND 0 = (
          SELECT count(*)
          FROM placements q
          JOIN gpu_metrics m USING (placement_id)
          WHERE q.node_id = o.node_id AND q.gpu_uuid = o.gpu_uuid AND m.collected_at = coalesce(gpu.at, p.since)
      )
)
GROUP BY n.datacenter, gpu.model
