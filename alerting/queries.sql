-- Every statement of the alert engine, each under a name and a line that says what it is for.
-- Rows that several transactions may want are taken in the order of their keys.

-- name: lock_offsets
-- The places of the worker's own partitions, locked: whoever holds these rows alone writes for those partitions.
SELECT partition, next_offset, cluster_id, topic_id, generation
  FROM consumer_offsets
 WHERE topic = %(topic)s AND partition = ANY(%(partitions)s)
 ORDER BY partition
   FOR UPDATE;

-- name: put_offset
-- Where a partition is read from, for one that has no place yet or whose place no longer exists.
INSERT INTO consumer_offsets (topic, partition, cluster_id, topic_id, next_offset)
VALUES (%(topic)s, %(partition)s, %(cluster_id)s, %(topic_id)s, %(next_offset)s)
ON CONFLICT (topic, partition) DO UPDATE
   SET cluster_id = excluded.cluster_id, topic_id = excluded.topic_id, next_offset = excluded.next_offset,
       generation = consumer_offsets.generation + 1, updated_at = now()
RETURNING generation;

-- name: advance_offsets
-- The places after a batch; the rows are locked already.
UPDATE consumer_offsets AS o
   SET next_offset = v.next_offset, generation = o.generation + 1, updated_at = now()
  FROM unnest(%(partitions)s::integer[], %(next_offsets)s::bigint[]) AS v (partition, next_offset)
 WHERE o.topic = %(topic)s AND o.partition = v.partition;

-- name: record_gap
-- Offsets that cannot be read any more, or a topic that is another one.
INSERT INTO stream_gaps (topic, partition, reason, from_offset, to_offset)
VALUES (%(topic)s, %(partition)s, %(reason)s, %(from_offset)s, %(to_offset)s);

-- name: waiting_commands
-- What people asked for and no worker has taken in, oldest first.
SELECT c.id, c.alert_id, c.actor, a.rule, a.node_id, a.gpu_uuid, a.mig_instance, a.triggered_at, a.severity,
       coalesce(a.resolved_at, c.created_at)
  FROM alert_commands AS c
  JOIN alerts AS a ON a.id = c.alert_id
 WHERE c.applied_at IS NULL
 ORDER BY c.id;

-- name: commands_wait_for
-- Whether people asked for something about these nodes since the commands were read.
SELECT EXISTS (SELECT FROM alert_commands WHERE applied_at IS NULL AND node_id = ANY(%(nodes)s));

-- name: mark_commands_applied
-- The commands that were taken in, and before which offset of which partition.
UPDATE alert_commands AS c
   SET applied_at = now(), applied_partition = v.partition, applied_offset = v.next_offset
  FROM unnest(%(ids)s::bigint[], %(partitions)s::integer[], %(next_offsets)s::bigint[])
       AS v (id, partition, next_offset)
 WHERE c.id = v.id;

-- name: states_of_nodes
-- What the engine kept of these nodes.
SELECT n.node_id, n.first_seen, n.status, s.state::text
  FROM nodes AS n
  LEFT JOIN engine_state AS s ON s.scope = 'node' AND s.key = n.node_id
 WHERE n.node_id = ANY(%(nodes)s);

-- name: placements_of_nodes
-- Every placement of these nodes, with its newest row, and what is known of its GPU.
SELECT p.placement_id, p.node_id, p.gpu_index, p.gpu_uuid, p.mig_instance, p.mig_profile, p.since,
       g.model, g.driver_version, g.pci_bus_id, g.memory_total_mib AS gpu_memory_total_mib, m.*
  FROM placements AS p
  JOIN gpus AS g USING (gpu_uuid)
  LEFT JOIN LATERAL (
       SELECT {fields}, workloads, fields, rejected, collected_at
         FROM gpu_metrics
        WHERE placement_id = p.placement_id
        ORDER BY collected_at DESC
        LIMIT 1) AS m ON true
 WHERE p.node_id = ANY(%(nodes)s)
 ORDER BY p.node_id, p.placement_id;

-- name: scrapes_of_nodes
-- The newest closing record of each bridge among the last turns of these nodes.
SELECT DISTINCT ON (s.node_id, s.bridge_id) s.*
  FROM unnest(%(nodes)s::text[]) AS n (node_id)
 CROSS JOIN LATERAL (
       SELECT node_id, bridge_id, boot_id, seq, collected_at, up, reason, gpu_records, gpu_uuids, duration_ms,
              interval_ms, changed_at, drops, trace, removed
         FROM scrapes
        WHERE node_id = n.node_id
        ORDER BY collected_at DESC
        LIMIT 32) AS s
 ORDER BY s.node_id, s.bridge_id, s.collected_at DESC, s.seq DESC;

-- name: insert_nodes
-- Nodes that were never heard of, or not so early; until its first closing record a node has the default interval.
INSERT INTO nodes (node_id, hostname, datacenter, first_seen, last_heard, interval_ms)
SELECT v.node_id, v.hostname, v.datacenter, v.at, v.at, 30000
  FROM unnest(%(node_ids)s::text[], %(hostnames)s::text[], %(datacenters)s::text[], %(ats)s::timestamptz[])
       AS v (node_id, hostname, datacenter, at)
 ORDER BY v.node_id
ON CONFLICT (node_id) DO UPDATE SET first_seen = least(excluded.first_seen, nodes.first_seen);

-- name: update_nodes
-- What the newest closing records say of their nodes.
INSERT INTO nodes (node_id, hostname, datacenter, instance, status, first_seen, last_seen, last_heard, interval_ms,
                   removed_at)
SELECT v.node_id, v.hostname, v.datacenter, v.instance, v.status, v.last_heard, v.last_seen, v.last_heard,
       v.interval_ms, v.removed_at
  FROM unnest(%(node_ids)s::text[], %(hostnames)s::text[], %(datacenters)s::text[], %(instances)s::text[],
              %(statuses)s::text[], %(last_seens)s::timestamptz[], %(last_heards)s::timestamptz[],
              %(intervals)s::integer[], %(removed_ats)s::timestamptz[])
       AS v (node_id, hostname, datacenter, instance, status, last_seen, last_heard, interval_ms, removed_at)
 ORDER BY v.node_id
ON CONFLICT (node_id) DO UPDATE
   SET hostname = coalesce(excluded.hostname, nodes.hostname),
       datacenter = coalesce(excluded.datacenter, nodes.datacenter),
       instance = coalesce(excluded.instance, nodes.instance),
       status = excluded.status,
       last_seen = greatest(nodes.last_seen, excluded.last_seen),
       last_heard = greatest(nodes.last_heard, excluded.last_heard),
       interval_ms = excluded.interval_ms,
       removed_at = excluded.removed_at;

-- name: update_node_statuses
-- The status of nodes of which no closing record came.
UPDATE nodes AS n
   SET status = v.status
  FROM unnest(%(node_ids)s::text[], %(statuses)s::text[]) AS v (node_id, status)
 WHERE n.node_id = v.node_id AND n.status <> v.status;

-- name: watched_nodes
-- The nodes that are in the configuration, and their intervals.
SELECT node_id, interval_ms FROM nodes WHERE removed_at IS NULL;

-- name: upsert_gpus
-- GPUs that are new, or of which something changed: the newest word counts, and what it leaves out, an older one tells.
INSERT INTO gpus AS g (gpu_uuid, model, driver_version, pci_bus_id, memory_total_mib, first_seen, described_at)
SELECT v.gpu_uuid, v.model, v.driver_version, v.pci_bus_id, v.memory_total_mib, v.first_seen, v.described_at
  FROM unnest(%(gpu_uuids)s::text[], %(models)s::text[], %(driver_versions)s::text[], %(pci_bus_ids)s::text[],
              %(memory_totals)s::integer[], %(first_seens)s::timestamptz[], %(described_ats)s::timestamptz[])
       AS v (gpu_uuid, model, driver_version, pci_bus_id, memory_total_mib, first_seen, described_at)
 ORDER BY v.gpu_uuid
ON CONFLICT (gpu_uuid) DO UPDATE
   SET model = CASE WHEN excluded.described_at >= coalesce(g.described_at, '-infinity')
                    THEN coalesce(excluded.model, g.model) ELSE coalesce(g.model, excluded.model) END,
       driver_version = CASE WHEN excluded.described_at >= coalesce(g.described_at, '-infinity')
                             THEN coalesce(excluded.driver_version, g.driver_version)
                             ELSE coalesce(g.driver_version, excluded.driver_version) END,
       pci_bus_id = CASE WHEN excluded.described_at >= coalesce(g.described_at, '-infinity')
                         THEN coalesce(excluded.pci_bus_id, g.pci_bus_id)
                         ELSE coalesce(g.pci_bus_id, excluded.pci_bus_id) END,
       memory_total_mib = CASE WHEN excluded.described_at >= coalesce(g.described_at, '-infinity')
                               THEN coalesce(excluded.memory_total_mib, g.memory_total_mib)
                               ELSE coalesce(g.memory_total_mib, excluded.memory_total_mib) END,
       first_seen = least(excluded.first_seen, g.first_seen),
       described_at = greatest(excluded.described_at, g.described_at);

-- name: insert_placements
-- Placements that are new, or older than was known; gives their ids.
INSERT INTO placements (node_id, gpu_index, gpu_uuid, mig_instance, mig_profile, since)
SELECT v.node_id, v.gpu_index, v.gpu_uuid, v.mig_instance, v.mig_profile, v.since
  FROM unnest(%(node_ids)s::text[], %(gpu_indexes)s::integer[], %(gpu_uuids)s::text[], %(mig_instances)s::text[],
              %(mig_profiles)s::text[], %(sinces)s::timestamptz[])
       AS v (node_id, gpu_index, gpu_uuid, mig_instance, mig_profile, since)
 ORDER BY v.node_id, v.gpu_index, v.gpu_uuid, v.mig_instance
ON CONFLICT (node_id, gpu_index, gpu_uuid, mig_instance) DO UPDATE
   SET mig_profile = coalesce(excluded.mig_profile, placements.mig_profile),
       since = least(excluded.since, placements.since)
RETURNING placement_id, node_id, gpu_index, gpu_uuid, mig_instance;

-- name: lock_active_alerts
-- The alerts of these nodes that fire, locked in the order of their keys.
SELECT id, rule, node_id, gpu_uuid, mig_instance, triggered_at
  FROM alerts
 WHERE node_id = ANY(%(nodes)s) AND status = 'active'
 ORDER BY rule, node_id, coalesce(gpu_uuid, ''), coalesce(mig_instance, '')
   FOR UPDATE;

-- name: find_alert
-- The row of one firing, whatever its status.
SELECT id
  FROM alerts
 WHERE rule = %(rule)s AND node_id = %(node_id)s AND triggered_at = %(triggered_at)s
   AND gpu_uuid IS NOT DISTINCT FROM %(gpu_uuid)s AND mig_instance IS NOT DISTINCT FROM %(mig_instance)s;

-- name: update_alerts
-- What became of alerts that were firing before.
UPDATE alerts AS a
   SET severity = v.severity, message = v.message, actual_value = v.actual_value,
       raised_at = coalesce(v.raised_at, a.raised_at), status = v.status, resolved_at = v.resolved_at,
       resolved_reason = v.resolved_reason
  FROM unnest(%(ids)s::bigint[], %(severities)s::text[], %(messages)s::text[], %(actual_values)s::float8[],
              %(raised_ats)s::timestamptz[], %(statuses)s::text[], %(resolved_ats)s::timestamptz[],
              %(resolved_reasons)s::text[])
       AS v (id, severity, message, actual_value, raised_at, status, resolved_at, resolved_reason)
 WHERE a.id = v.id;

-- name: insert_alerts
-- Alerts that began, as they stand at the end of the batch; gives their ids.
INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, mig_instance, severity, message, threshold_value,
                    actual_value, status, triggered_at, raised_at, resolved_at, resolved_reason)
SELECT v.rule, v.alert_type, v.node_id, v.gpu_index, v.gpu_uuid, v.mig_instance, v.severity, v.message,
       v.threshold_value, v.actual_value, v.status, v.triggered_at, v.raised_at, v.resolved_at, v.resolved_reason
  FROM unnest(%(rules)s::text[], %(alert_types)s::text[], %(node_ids)s::text[], %(gpu_indexes)s::integer[],
              %(gpu_uuids)s::text[], %(mig_instances)s::text[], %(severities)s::text[], %(messages)s::text[],
              %(threshold_values)s::float8[], %(actual_values)s::float8[], %(statuses)s::text[],
              %(triggered_ats)s::timestamptz[], %(raised_ats)s::timestamptz[], %(resolved_ats)s::timestamptz[],
              %(resolved_reasons)s::text[])
       WITH ORDINALITY
       AS v (rule, alert_type, node_id, gpu_index, gpu_uuid, mig_instance, severity, message, threshold_value,
             actual_value, status, triggered_at, raised_at, resolved_at, resolved_reason, position)
 ORDER BY v.position
RETURNING id, rule, node_id, gpu_uuid, mig_instance, triggered_at;

-- name: insert_actions
-- Decisions, each once.
INSERT INTO alert_actions (alert_id, action_type, transition, key, action_details, event_time)
SELECT v.alert_id, v.action_type, v.transition, v.key, v.action_details::jsonb, v.event_time
  FROM unnest(%(alert_ids)s::bigint[], %(action_types)s::text[], %(transitions)s::text[], %(keys)s::text[],
              %(details)s::text[], %(event_times)s::timestamptz[])
       WITH ORDINALITY AS v (alert_id, action_type, transition, key, action_details, event_time, position)
 ORDER BY v.position
ON CONFLICT (key) DO NOTHING;

-- name: put_states
-- What the engine keeps of nodes that changed.
INSERT INTO engine_state (scope, key, state)
SELECT 'node', v.key, v.state::jsonb
  FROM unnest(%(keys)s::text[], %(states)s::text[]) AS v (key, state)
 ORDER BY v.key
ON CONFLICT (scope, key) DO UPDATE SET state = excluded.state, updated_at = now();

-- name: count_drops
-- Records that were read and not stored.
INSERT INTO stream_drops (node_id, hour, reason, gpu_records, scrapes)
SELECT v.node_id, v.hour, v.reason, v.gpu_records, v.scrapes
  FROM unnest(%(node_ids)s::text[], %(hours)s::timestamptz[], %(reasons)s::text[], %(gpu_records)s::bigint[],
              %(scrapes)s::bigint[])
       AS v (node_id, hour, reason, gpu_records, scrapes)
 ORDER BY v.hour, v.node_id, v.reason
ON CONFLICT (hour, node_id, reason) DO UPDATE
   SET gpu_records = stream_drops.gpu_records + excluded.gpu_records,
       scrapes = stream_drops.scrapes + excluded.scrapes;

-- name: daily_partitions
-- The partitions of a table, and whether one is half detached (a detaching that was cut short), which comes first:
-- until it is finished no other can be detached.
SELECT c.relname, i.inhdetachpending
  FROM pg_inherits AS i
  JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE i.inhparent = to_regclass('public.' || quote_ident(%(parent)s))
 ORDER BY i.inhdetachpending DESC, c.relname;

-- name: detached_partitions
-- Tables of the schema parts that belong to no partitioned table: detached, and not dropped yet.
SELECT c.relname
  FROM pg_class AS c
  LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
 WHERE c.relnamespace = 'parts'::regnamespace AND c.relkind = 'r' AND i.inhrelid IS NULL;

-- name: ledger_missing
-- GPU records of an hour that are neither stored nor dropped for a reason, of all nodes that were heard in it.
SELECT coalesce(sum(e.missing), 0)::bigint
  FROM nodes n
 CROSS JOIN LATERAL ledger_entry(n.node_id, %(hour)s) e
 WHERE n.first_seen < %(hour)s + interval '1 hour' AND n.last_heard >= %(hour)s;

-- name: ensure_partition
-- The partition of a day, made unless it stands.
SELECT ensure_partition(%(parent)s, %(day)s);

-- name: housekeeping_lock
-- One housekeeper at a time; freed when the connection ends.
SELECT pg_try_advisory_lock(hashtextextended('gpu_telemetry.housekeeping', 0));

-- name: expire_leases
-- Actions whose worker vanished: nobody knows what became of them. Asked again only where the receiver honours the key.
UPDATE alert_actions
   SET status = 'unknown', reason = 'lease expired', lease_until = NULL, finished_at = now(),
       next_attempt_at = CASE WHEN action_type = ANY(%(repeatable)s) AND attempts < %(most_attempts)s
                              THEN now() ELSE 'infinity' END
 WHERE id IN (SELECT id FROM alert_actions
               WHERE status = 'running' AND lease_until < now()
               ORDER BY id
                 FOR UPDATE SKIP LOCKED)
RETURNING id, action_type;

-- name: claim_action
-- The next action that is due, with all that decides whether it still should happen, but of types that are left to others.
-- Notices of one alert go in order.
SELECT a.id, a.alert_id, a.action_type, a.transition, a.key, a.action_details, a.attempts, a.event_time, a.reason,
       a.created_at, a.status = 'unknown' AS is_unknown, now() AS now,
       EXISTS (SELECT FROM alert_actions AS e
                WHERE e.alert_id = a.alert_id AND e.action_type = a.action_type AND e.id < a.id
                  AND e.attempts > 0 AND e.finished_at > a.created_at) AS has_waited,
       l.rule, l.alert_type, l.node_id, l.gpu_index, l.gpu_uuid, l.mig_instance, l.status = 'active' AS fires,
       l.triggered_at, l.resolved_at, n.interval_ms, n.last_heard, n.datacenter, n.hostname
  FROM alert_actions AS a
  JOIN alerts AS l ON l.id = a.alert_id
  JOIN nodes AS n ON n.node_id = l.node_id
 WHERE a.status IN ('pending', 'unknown') AND a.next_attempt_at <= now() AND a.action_type <> ALL(%(left)s)
   AND NOT EXISTS (SELECT FROM alert_actions AS e
                    WHERE e.alert_id = a.alert_id AND e.action_type = a.action_type AND e.id < a.id
                      AND e.status IN ('pending', 'running'))
 ORDER BY a.next_attempt_at, a.id
 LIMIT 1
   FOR UPDATE OF a SKIP LOCKED;

-- name: newest_gpu_record
-- When the node's newest GPU record was collected.
SELECT max(m.collected_at)
  FROM placements AS p
 CROSS JOIN LATERAL (SELECT collected_at FROM gpu_metrics
                      WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1) AS m
 WHERE p.node_id = %(node_id)s;

-- name: told_silence
-- When a worker noticed the silence that fired this alert; none for other alerts.
SELECT max((details ->> 'detected_at')::timestamptz)
  FROM alert_events
 WHERE alert_id = %(alert_id)s AND transition = 'fired' AND details ? 'detected_at';

-- name: workloads_of_gpu
-- The workloads on the GPU's newest record of that node, and whether that turn's closing record is stored.
SELECT m.collected_at, coalesce(m.workloads, '[]') AS workloads,
       EXISTS (SELECT FROM scrapes AS s WHERE s.node_id = p.node_id AND s.collected_at >= m.collected_at) AS closed
  FROM placements AS p
 CROSS JOIN LATERAL (SELECT collected_at, workloads FROM gpu_metrics
                      WHERE placement_id = p.placement_id ORDER BY collected_at DESC LIMIT 1) AS m
 WHERE p.node_id = %(node_id)s AND p.gpu_uuid = %(gpu_uuid)s
 ORDER BY m.collected_at DESC;

-- name: lock_breaker
-- The circuit breaker counts and claims alone, over all workers.
SELECT pg_advisory_xact_lock(hashtextextended('gpu_telemetry.migrations', 0));

-- name: count_migrations
-- Migrations begun in the window, this one aside.
SELECT count(*)
  FROM alert_actions
 WHERE action_type = 'migrate_workload' AND started_at > now() - make_interval(secs => %(window_seconds)s)
   AND status <> 'skipped' AND id <> %(id)s;

-- name: start_action
-- The claim: from here on the action is this worker's until the lease ends.
UPDATE alert_actions
   SET status = 'running', attempts = attempts + 1, started_at = now(), claimed_by = %(worker)s, finished_at = NULL,
       lease_until = now() + make_interval(secs => %(lease_seconds)s), reason = NULL
 WHERE id = %(id)s;

-- name: postpone_action
-- Not yet.
UPDATE alert_actions
   SET next_attempt_at = now() + make_interval(secs => %(seconds)s), reason = %(reason)s
 WHERE id = %(id)s;

-- name: close_action
-- An action that is not to be carried out, and why.
UPDATE alert_actions
   SET status = %(status)s, reason = %(reason)s, finished_at = now(), lease_until = NULL, next_attempt_at = 'infinity'
 WHERE id = %(id)s;

-- name: finish_action
-- What became of an action: only its claimant says so, and only while it holds the claim.
UPDATE alert_actions
   SET status = %(status)s, reason = %(reason)s, lease_until = NULL,
       finished_at = CASE WHEN %(status)s::text = 'pending' THEN NULL ELSE now() END,
       next_attempt_at = CASE WHEN %(retry_seconds)s::float8 IS NULL THEN 'infinity'
                              ELSE now() + make_interval(secs => %(retry_seconds)s) END,
       action_details = action_details || %(details)s
 WHERE id = %(id)s AND status = 'running' AND claimed_by = %(worker)s AND attempts = %(attempt)s;

-- name: outbox_backlog
-- How many actions wait, by type.
SELECT action_type, count(*)
  FROM alert_actions
 WHERE status IN ('pending', 'running', 'unknown') AND next_attempt_at <> 'infinity'
 GROUP BY action_type;

-- name: end_standing_sessions
-- Workers' sessions that have waited so long for their client in the middle of one statement: they stand still.
SELECT pid, coalesce(host(client_addr), 'this machine')
  FROM (
      SELECT pid, client_addr
        FROM pg_stat_activity
       WHERE datname = current_database() AND usename = current_user AND application_name = %(application)s
         AND pid <> pg_backend_pid() AND state = 'active' AND wait_event = 'ClientRead'
         AND query_start < clock_timestamp() - make_interval(secs => %(seconds)s)
      OFFSET 0
  ) standing
 WHERE pg_terminate_backend(pid);
