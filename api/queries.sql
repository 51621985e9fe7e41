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
-- What stands at each index of a node: the GPU or MIG instance with the newest row there. One that is lost stays until
-- another stands in its place; one that moved to another index shows there alone.
SELECT DISTINCT ON (s.gpu_index, s.mig_instance)
       s.gpu_uuid, s.gpu_index, s.mig_instance, s.mig_profile, g.model, g.driver_version, g.pci_bus_id,
       g.memory_total_mib, s.since, s.last_collected_at
FROM (
    SELECT DISTINCT ON (p.gpu_uuid, p.mig_instance) p.*, r.collected_at AS last_collected_at
    FROM placements p
    LEFT JOIN LATERAL (
        SELECT collected_at FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r ON true
    WHERE p.node_id = %(node)s
    ORDER BY p.gpu_uuid, p.mig_instance, r.collected_at DESC NULLS LAST, p.placement_id DESC
) s
JOIN gpus g USING (gpu_uuid)
ORDER BY s.gpu_index, s.mig_instance NULLS FIRST, s.last_collected_at DESC NULLS LAST, s.placement_id DESC

-- name: node_metrics
-- A node's rows, newest first. Each placement gives its newest by its own index; of those the newest are kept.
SELECT m.*, p.gpu_uuid, p.mig_instance, p.mig_profile, g.model
FROM placements p
JOIN gpus g USING (gpu_uuid)
CROSS JOIN LATERAL (
    SELECT *
    FROM gpu_metrics
    WHERE placement_id = p.placement_id
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
-- The filters are of the newest row: a GPU that moved is not found where it was.
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
    SELECT r.*, p.mig_profile, n.datacenter
    FROM placements p
    JOIN nodes n USING (node_id)
    CROSS JOIN LATERAL (
        SELECT * FROM gpu_metrics WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1
    ) r
    WHERE p.gpu_uuid = k.gpu_uuid
      AND p.mig_instance IS NOT DISTINCT FROM k.mig_instance
      AND n.removed_at IS NULL
    ORDER BY r.collected_at DESC, r.placement_id DESC
    LIMIT 1
) m
WHERE (%(node)s::text IS NULL OR m.node_id = %(node)s)
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
