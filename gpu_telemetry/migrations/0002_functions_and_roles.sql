-- What the database does by itself: partitions, the manual resolve, and who may read.

CREATE FUNCTION ensure_partition(parent text, day date) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name text := parent || '_' || to_char(day, 'YYYYMMDD');
BEGIN
    -- One maker at a time: two workers can want the same day at once.
    PERFORM pg_advisory_xact_lock(hashtextextended('gpu_telemetry.ensure_partition', 0));
    IF to_regclass('parts.' || quote_ident(name)) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Attached rather than created in place: neither readers nor writers of the parent wait, and none is waited for.
    EXECUTE format('CREATE TABLE parts.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, parent);
    EXECUTE format(
        'ALTER TABLE public.%I ATTACH PARTITION parts.%I FOR VALUES FROM (%L) TO (%L)',
        parent, name, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC'
    );
    RETURN true;
END
$$;
COMMENT ON FUNCTION ensure_partition IS 'Make the partition of a UTC day unless it stands; true when it was made';

CREATE FUNCTION resolve_alert(wanted bigint, resolver text) RETURNS SETOF alerts
LANGUAGE plpgsql AS $$
DECLARE
    alert alerts;
    moment timestamptz := date_trunc('milliseconds', clock_timestamp());
BEGIN
    SELECT * INTO alert FROM alerts WHERE id = wanted FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF alert.status = 'active' THEN
        UPDATE alerts
           SET status = 'resolved', resolved_at = moment, resolved_reason = 'manual', resolved_by = resolver
         WHERE id = wanted
        RETURNING * INTO alert;
        INSERT INTO alert_events (alert_id, rule, alert_type, node_id, gpu_index, gpu_uuid, mig_instance, transition,
                                  severity, message, threshold_value, actual_value, reason, actor, started_at, at)
        VALUES (alert.id, alert.rule, alert.alert_type, alert.node_id, alert.gpu_index, alert.gpu_uuid,
                alert.mig_instance, 'resolved', alert.severity, alert.message, alert.threshold_value,
                alert.actual_value, 'manual', resolver, alert.triggered_at, moment);
        INSERT INTO alert_commands (alert_id, node_id, command, actor)
        VALUES (alert.id, alert.node_id, 'resolve', resolver);
    END IF;
    RETURN NEXT alert;
END
$$;
COMMENT ON FUNCTION resolve_alert IS
    'Resolve an alert by hand and tell the worker; gives the alert (once resolved, unchanged), no row when there is none';

-- Roles belong to the whole server: another database of it may have made this one already.
DO $$
BEGIN
    CREATE ROLE telemetry_reader NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;
GRANT USAGE ON SCHEMA public, parts TO telemetry_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public, parts TO telemetry_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public, parts GRANT SELECT ON TABLES TO telemetry_reader;
