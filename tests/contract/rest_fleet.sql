-- A small fleet as alerting would have stored it. The clock of the tests stands at 2026-01-31 12:00:00 UTC.
SET timezone = 'UTC';

SELECT ensure_partition(parent, day::date)
FROM unnest(ARRAY['gpu_metrics', 'scrapes']) parent, generate_series('2026-01-28'::date, '2026-02-03', '1 day') day;

INSERT INTO nodes (node_id, hostname, datacenter, instance, status, first_seen, last_seen, last_heard, interval_ms,
                   removed_at) VALUES
    ('node-1', 'gpu-host-1', 'us-west-1', '10.0.0.1:9400', 'healthy', '2026-01-29', '2026-01-31 11:59:50.5',
     '2026-01-31 11:59:50.5', 30000, NULL),
    ('node-2', 'gpu-host-2', 'us-west-1', '10.0.0.2:9400', 'critical', '2026-01-29', '2026-01-31 11:59:50',
     '2026-01-31 11:59:50', 30000, NULL),
    ('node-3', 'gpu-host-3', 'us-east-1', '10.0.0.3:9400', 'down', '2026-01-29', '2026-01-31 11:50:00',
     '2026-01-31 11:59:50', 30000, NULL),
    -- Unheard for exactly three intervals, and for a millisecond less.
    ('node-4', NULL, 'us-east-1', NULL, 'healthy', '2026-01-29', '2026-01-31 11:58:30', '2026-01-31 11:58:30', 30000,
     NULL),
    ('node-5', NULL, 'us-east-1', NULL, 'warning', '2026-01-29', '2026-01-31 11:58:30.001', '2026-01-31 11:58:30.001',
     30000, NULL),
    ('node-6', 'gpu-host-6', 'us-west-1', NULL, 'healthy', '2026-01-29', '2026-01-30', '2026-01-30', 30000,
     '2026-01-30 00:10:00'),
    ('rack 7/ñode?&', NULL, NULL, NULL, 'down', '2026-01-31', NULL, '2026-01-31 11:59:59', 30000, NULL);

INSERT INTO gpus (gpu_uuid, model, driver_version, pci_bus_id, memory_total_mib, first_seen) VALUES
    ('GPU-0000', 'NVIDIA A100-SXM4-80GB', '550.54.15', '00000000:07:00.0', 81920, '2026-01-29'),
    ('GPU-0001', 'NVIDIA A100-SXM4-80GB', '550.54.15', '00000000:0A:00.0', 81920, '2026-01-29'),
    ('GPU-0002', 'NVIDIA A100-SXM4-80GB', '550.54.15', NULL, NULL, '2026-01-30'),
    ('GPU-0003', 'NVIDIA H100 80GB HBM3', '550.54.15', NULL, 81559, '2026-01-29'),
    ('GPU-0004', NULL, NULL, NULL, NULL, '2026-01-29'),
    ('GPU-0005', 'NVIDIA A100-SXM4-80GB', NULL, NULL, NULL, '2026-01-29');

-- node-1: GPU-0001 stood at index 1 until GPU-0002 took its place; it stands in node-3 now.
-- node-2: GPU-0003 is cut into two MIG instances. GPU-0004 has no stored row. GPU-0005 is in a removed node.
INSERT INTO placements (node_id, gpu_index, gpu_uuid, mig_instance, mig_profile, since) VALUES
    ('node-1', 0, 'GPU-0000', NULL, NULL, '2026-01-29'),
    ('node-1', 1, 'GPU-0001', NULL, NULL, '2026-01-29'),
    ('node-1', 1, 'GPU-0002', NULL, NULL, '2026-01-30 12:00:00'),
    ('node-2', 0, 'GPU-0003', '1', '3g.40gb', '2026-01-29'),
    ('node-2', 0, 'GPU-0003', '2', '4g.40gb', '2026-01-29'),
    ('node-2', 0, 'GPU-0003', NULL, NULL, '2026-01-29'),
    ('node-3', 0, 'GPU-0001', NULL, NULL, '2026-01-30 12:00:00'),
    ('node-4', 0, 'GPU-0004', NULL, NULL, '2026-01-29'),
    ('node-6', 0, 'GPU-0005', NULL, NULL, '2026-01-29');

-- One row every 6 hours of all that stand in the same node, at the same time.
INSERT INTO gpu_metrics (placement_id, node_id, gpu_index, temperature_celsius, power_watts, gpu_utilization_percent,
                         memory_used_mib, memory_total_mib, memory_used_percent, energy_joules, xid_code, collected_at)
SELECT p.placement_id, p.node_id, p.gpu_index, 96.3, 250 + p.placement_id / 3.0::double precision, 100, 4096, 81920,
       5.0, 1e9, 0, at
FROM placements p, generate_series('2026-01-29 00:00:00.125'::timestamptz, '2026-01-31 11:59:59', '6 hours') at
WHERE p.gpu_uuid <> 'GPU-0004'
  AND at >= p.since
  AND NOT (p.node_id = 'node-1' AND p.gpu_uuid = 'GPU-0001' AND at > '2026-01-30 12:00:00')
  AND NOT (p.node_id = 'node-6' AND at > '2026-01-30 00:00:00');

UPDATE gpu_metrics
SET workloads = '[{"namespace": "ml", "pod": "train-0", "container": "main"}, {"job": "4711"}]',
    fields = '{"DCGM_FI_DEV_FAN_SPEED": 40.0,
               "DCGM_EXP_XID_ERRORS_COUNT": [{"labels": {"xid": "31", "window_size_in_ms": "300000"}, "value": 2.0}]}',
    rejected = '{"memory_temperature_celsius": {"value": "9223372036854775794", "reason": "sentinel"}}',
    energy_joules = NULL
WHERE node_id = 'node-1' AND gpu_index = 0 AND collected_at = '2026-01-31 06:00:00.125';

-- Alerts 1 to 40 in groups of four at the same microsecond, the ids not in the order of the times.
INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, mig_instance, severity, message, threshold_value,
                    actual_value, status, triggered_at, raised_at, resolved_at, resolved_reason)
SELECT CASE n % 2 WHEN 0 THEN 'high_power' ELSE 'high_temperature' END,
       CASE n % 2 WHEN 0 THEN 'high_power' ELSE 'high_temperature' END,
       'node-' || 1 + n % 3, n % 8, 'GPU-' || to_char(n, 'FM0000'), NULL,
       CASE n % 4 WHEN 0 THEN 'critical' ELSE 'warning' END,
       'GPU temperature is 96.3°C', 90.0, 96.3, 'resolved',
       '2026-01-30 00:00:00.000123'::timestamptz + (n * 7 % 10) * interval '1 minute', NULL, '2026-01-30 01:00:00',
       'cleared'
FROM generate_series(1, 40) n;
INSERT INTO alerts (rule, alert_type, node_id, gpu_index, gpu_uuid, mig_instance, severity, message, threshold_value,
                    actual_value, status, triggered_at, raised_at) VALUES
    ('high_temperature', 'high_temperature', 'node-2', 0, 'GPU-0003', NULL, 'critical', 'GPU temperature is 96.3°C',
     90.0, 96.3, 'active', '2026-01-31 11:58:00', '2026-01-31 11:58:30'),
    ('high_memory', 'high_memory', 'node-2', 0, 'GPU-0003', '1', 'warning', 'GPU memory is 97.1 % used', 95.0, 97.1,
     'active', '2026-01-31 11:59:00', NULL),
    ('exporter_down', 'exporter_down', 'node-3', NULL, NULL, NULL, 'critical',
     'Exporter is down: 3 scrapes in a row failed (timeout)', NULL, NULL, 'active', '2026-01-31 11:51:30', NULL);

INSERT INTO alert_events (alert_id, rule, alert_type, node_id, gpu_index, gpu_uuid, transition, severity, message,
                          threshold_value, actual_value, details, started_at, at) VALUES
    (41, 'high_temperature', 'high_temperature', 'node-2', 0, 'GPU-0003', 'firing', 'warning',
     'GPU temperature is 91.0°C', 90.0, 91.0, NULL, '2026-01-31 11:58:00', '2026-01-31 11:58:00'),
    (41, 'high_temperature', 'high_temperature', 'node-2', 0, 'GPU-0003', 'raised', 'critical',
     'GPU temperature is 96.3°C', 90.0, 96.3, '{"step": 2}', '2026-01-31 11:58:00', '2026-01-31 11:58:30');
INSERT INTO alert_actions (alert_id, action_type, transition, key, status, action_details, attempts, event_time,
                           started_at, finished_at, reason) VALUES
    (41, 'notify', 'firing', 'k1', 'succeeded', '{"receiver": "log"}', 1, '2026-01-31 11:58:00', '2026-01-31 11:58:01',
     '2026-01-31 11:58:02', NULL),
    (41, 'migrate_workload', 'raised', 'k2', 'skipped', '{}', 0, '2026-01-31 11:58:30', NULL, NULL, 'dry_run');

-- node-1 closed each of its turns but that of 2026-01-30 06:00; the one after it tells of a scrape that was dropped.
INSERT INTO scrapes (node_id, bridge_id, boot_id, seq, collected_at, up, gpu_records, gpu_uuids, interval_ms, drops)
SELECT 'node-1', 'bridge', 'boot', 1 + extract(epoch FROM at - '2026-01-29 00:00:00.125')::integer / 21600
           + CASE WHEN at > '2026-01-30 06:01' THEN 1 ELSE 0 END, at, true, 2,
       '{}', 30000, CASE WHEN at > '2026-01-30 06:01' THEN '{"queue_full": {"scrapes": 1, "gpu_records": 2}}'::jsonb END
FROM generate_series('2026-01-29 00:00:00.125'::timestamptz, '2026-01-31 11:59:59', '6 hours') at
WHERE at <> '2026-01-30 06:00:00.125';
INSERT INTO stream_drops (node_id, hour, reason, gpu_records, scrapes) VALUES
    ('node-1', '2026-01-31 06:00', 'invalid', 3, 0);
