BEGIN;

-- Generated from gpu_telemetry/migrations by `gpu-telemetry db init-script`; do not edit.

CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- 0001_tables
-- The tables that people query, and those that the alert engine keeps its place in. All times are UTC.
-- Columns of gpu_metrics follow gpu_telemetry/fields.py; a test compares them.

CREATE SCHEMA parts;
COMMENT ON SCHEMA parts IS 'Daily partitions of gpu_metrics and scrapes, made ahead and dropped by housekeeping';

CREATE TABLE nodes (
    node_id     text PRIMARY KEY,
    hostname    text,
    datacenter  text,
    instance    text,
    status      text NOT NULL DEFAULT 'healthy' CHECK (status IN ('healthy', 'warning', 'critical', 'down')),
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz,
    last_heard  timestamptz NOT NULL,
    interval_ms integer NOT NULL CHECK (interval_ms > 0),
    removed_at  timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE nodes IS 'Every node that was ever heard of';
COMMENT ON COLUMN nodes.status IS 'As the alert engine sees it; the API alone says unknown, for a node unheard for three intervals';
COMMENT ON COLUMN nodes.last_seen IS 'When the newest scrape that was up ended';
COMMENT ON COLUMN nodes.last_heard IS 'When the newest turn of any outcome ended';
COMMENT ON COLUMN nodes.interval_ms IS 'Milliseconds between the turns, as the newest turn said';
COMMENT ON COLUMN nodes.removed_at IS 'When the node left the configuration; null while it is in it';

CREATE TABLE gpus (
    gpu_uuid         text PRIMARY KEY,
    model            text,
    driver_version   text,
    pci_bus_id       text,
    memory_total_mib integer,
    first_seen       timestamptz NOT NULL
);
COMMENT ON TABLE gpus IS 'Every GPU that was ever seen, wherever it stood';

CREATE TABLE placements (
    placement_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node_id      text NOT NULL REFERENCES nodes,
    gpu_index    integer NOT NULL CHECK (gpu_index >= 0),
    gpu_uuid     text NOT NULL REFERENCES gpus,
    mig_instance text,
    mig_profile  text,
    since        timestamptz NOT NULL,
    UNIQUE NULLS NOT DISTINCT (node_id, gpu_index, gpu_uuid, mig_instance)
);
CREATE INDEX placements_gpu ON placements (gpu_uuid, mig_instance);
COMMENT ON TABLE placements IS 'A GPU or MIG instance at an index of a node, since it was first seen there';

CREATE TABLE gpu_metrics (
    placement_id                    integer NOT NULL,
    node_id                         text NOT NULL,
    gpu_index                       integer NOT NULL,
    temperature_celsius             double precision,
    memory_temperature_celsius      double precision,
    power_watts                     double precision,
    energy_joules                   double precision,
    gpu_utilization_percent         double precision,
    memory_copy_utilization_percent double precision,
    encoder_utilization_percent     double precision,
    decoder_utilization_percent     double precision,
    memory_used_mib                 integer,
    memory_free_mib                 integer,
    memory_reserved_mib             integer,
    memory_total_mib                integer,
    memory_used_percent             double precision,
    sm_clock_mhz                    integer,
    memory_clock_mhz                integer,
    clock_throttle_reasons          bigint,
    xid_code                        integer,
    ecc_single_bit_volatile         bigint,
    ecc_double_bit_volatile         bigint,
    ecc_single_bit_aggregate        bigint,
    ecc_double_bit_aggregate        bigint,
    row_remap_failure               integer,
    row_remap_pending               integer,
    row_remap_uncorrectable_rows    bigint,
    row_remap_correctable_rows      bigint,
    retired_pages_single_bit        bigint,
    retired_pages_double_bit        bigint,
    retired_pages_pending           bigint,
    pcie_replay_count               bigint,
    nvlink_bandwidth_total          bigint,
    nvlink_crc_flit_errors          bigint,
    nvlink_crc_data_errors          bigint,
    nvlink_replay_errors            bigint,
    nvlink_recovery_errors          bigint,
    graphics_engine_active_ratio    double precision,
    sm_active_ratio                 double precision,
    sm_occupancy_ratio              double precision,
    tensor_active_ratio             double precision,
    dram_active_ratio               double precision,
    pcie_tx_bytes_per_second        double precision,
    pcie_rx_bytes_per_second        double precision,
    workloads                       jsonb,
    fields                          jsonb,
    rejected                        jsonb,
    collected_at                    timestamptz NOT NULL,
    UNIQUE (placement_id, collected_at)
) PARTITION BY RANGE (collected_at);
CREATE INDEX gpu_metrics_collected_at ON gpu_metrics (collected_at);
COMMENT ON TABLE gpu_metrics IS 'One row per GPU (or MIG instance) and scrape; a value that was not measured is null';
COMMENT ON COLUMN gpu_metrics.workloads IS 'Who used it: a list of namespace, pod, container, job; null when nobody did';
COMMENT ON COLUMN gpu_metrics.fields IS 'Every other DCGM field by its own name';
COMMENT ON COLUMN gpu_metrics.rejected IS 'Values that were read and not believed: name, text on the page, reason';

CREATE TABLE scrapes (
    node_id      text NOT NULL,
    bridge_id    text NOT NULL,
    boot_id      text NOT NULL,
    seq          bigint NOT NULL,
    collected_at timestamptz NOT NULL,
    up           boolean NOT NULL,
    reason       text,
    gpu_records  integer NOT NULL,
    gpu_uuids    text[] NOT NULL,
    duration_ms  double precision,
    interval_ms  integer NOT NULL,
    changed_at   timestamptz,
    drops        jsonb,
    trace        text,
    removed      boolean NOT NULL DEFAULT false,
    -- The key is (node_id, boot_id, seq): a turn's time is given with its seq, and a partitioned table's key must name it.
    UNIQUE (node_id, boot_id, seq, collected_at)
) PARTITION BY RANGE (collected_at);
CREATE INDEX scrapes_node ON scrapes (node_id, collected_at);
COMMENT ON TABLE scrapes IS 'The closing record of every turn: what was announced, seen and dropped';
COMMENT ON COLUMN scrapes.gpu_records IS 'How many GPU records this turn announced';
COMMENT ON COLUMN scrapes.gpu_uuids IS 'The GPUs on the page, also those whose lines were refused';
COMMENT ON COLUMN scrapes.drops IS 'By reason: whole scrapes and GPU records of this node dropped so far in this boot of the bridge';

CREATE TABLE alerts (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule            text NOT NULL,
    alert_type      text NOT NULL,
    node_id         text NOT NULL,
    gpu_index       integer,
    gpu_uuid        text,
    mig_instance    text,
    severity        text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    message         text NOT NULL,
    threshold_value double precision,
    actual_value    double precision,
    status          text NOT NULL CHECK (status IN ('active', 'resolved')),
    triggered_at    timestamptz NOT NULL,
    raised_at       timestamptz,
    resolved_at     timestamptz,
    resolved_reason text,
    resolved_by     text,
    recorded_at     timestamptz NOT NULL DEFAULT now(),
    CHECK ((status = 'resolved') = (resolved_at IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (rule, node_id, gpu_uuid, mig_instance, triggered_at)
);
CREATE UNIQUE INDEX alerts_one_active ON alerts (rule, node_id, gpu_uuid, mig_instance) NULLS NOT DISTINCT
    WHERE status = 'active';
CREATE INDEX alerts_triggered_at ON alerts (triggered_at DESC, id DESC);
CREATE INDEX alerts_node ON alerts (node_id, triggered_at DESC);
CREATE INDEX alerts_active ON alerts (node_id) WHERE status = 'active';
COMMENT ON TABLE alerts IS 'One row per firing, from its start to its end';
COMMENT ON COLUMN alerts.rule IS 'The rule in rules.yml; an alert belongs to (rule, node_id, gpu_uuid, mig_instance)';
COMMENT ON COLUMN alerts.threshold_value IS 'The lowest step of the rule''s ladder';
COMMENT ON COLUMN alerts.actual_value IS 'The value at the last rise of the severity';
COMMENT ON COLUMN alerts.triggered_at IS 'Event time of the record that fired it';
COMMENT ON COLUMN alerts.raised_at IS 'Event time of the last rise of the severity; null when it never rose';
COMMENT ON COLUMN alerts.resolved_reason IS 'cleared, manual, replaced, decommissioned, ...';
COMMENT ON COLUMN alerts.recorded_at IS 'Wall time of the row';

CREATE TABLE alert_events (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id        bigint REFERENCES alerts,
    rule            text NOT NULL,
    alert_type      text NOT NULL,
    node_id         text NOT NULL,
    gpu_index       integer,
    gpu_uuid        text,
    mig_instance    text,
    transition      text NOT NULL,
    severity        text NOT NULL,
    message         text NOT NULL,
    threshold_value double precision,
    actual_value    double precision,
    reason          text,
    actor           text,
    details         jsonb,
    started_at      timestamptz NOT NULL,
    at              timestamptz NOT NULL,
    recorded_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX alert_events_alert ON alert_events (alert_id, id);
CREATE INDEX alert_events_node ON alert_events (node_id, at);
COMMENT ON TABLE alert_events IS 'Every transition of every rule, in the order in which it was made';
COMMENT ON COLUMN alert_events.alert_id IS 'Null for what never became an alert: pending, inherited';
COMMENT ON COLUMN alert_events.started_at IS 'The start of the firing (or of the wait for it) that the transition belongs to';
COMMENT ON COLUMN alert_events.at IS 'Event time of the transition';

CREATE TABLE alert_actions (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id        bigint NOT NULL REFERENCES alerts,
    action_type     text NOT NULL,
    transition      text NOT NULL,
    -- (rule, node_id, gpu_uuid, mig_instance, firing start, transition, action) as one text: a decision is made once.
    key             text NOT NULL UNIQUE,
    status          text NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'running', 'succeeded', 'failed', 'unknown', 'skipped')),
    action_details  jsonb NOT NULL DEFAULT '{}',
    attempts        integer NOT NULL DEFAULT 0,
    event_time      timestamptz NOT NULL,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    lease_until     timestamptz,
    claimed_by      text,
    reason          text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz
);
CREATE INDEX alert_actions_alert ON alert_actions (alert_id);
CREATE INDEX alert_actions_due ON alert_actions (next_attempt_at) WHERE status IN ('pending', 'running', 'unknown');
CREATE INDEX alert_actions_started ON alert_actions (action_type, started_at) WHERE started_at IS NOT NULL;
COMMENT ON TABLE alert_actions IS 'The outbox: what was decided, and what became of it';
COMMENT ON COLUMN alert_actions.key IS 'The decision''s identity; receivers that honour it do nothing twice';
COMMENT ON COLUMN alert_actions.action_details IS 'What it is to do, and what the receiver answered';
COMMENT ON COLUMN alert_actions.event_time IS 'Event time of the transition that decided it';
COMMENT ON COLUMN alert_actions.reason IS 'Why it was skipped, failed, or is of unknown outcome';

CREATE TABLE alert_commands (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alert_id          bigint NOT NULL REFERENCES alerts,
    node_id           text NOT NULL,
    command           text NOT NULL CHECK (command IN ('resolve')),
    actor             text NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    applied_at        timestamptz,
    applied_partition integer,
    applied_offset    bigint
);
CREATE INDEX alert_commands_unapplied ON alert_commands (node_id, id) WHERE applied_at IS NULL;
COMMENT ON TABLE alert_commands IS 'What people asked of alerts; the worker takes it into its state at the start of a batch';
COMMENT ON COLUMN alert_commands.applied_offset IS 'The next offset of applied_partition when it was taken in';

CREATE TABLE consumer_offsets (
    topic       text NOT NULL,
    partition   integer NOT NULL,
    cluster_id  text NOT NULL,
    topic_id    text NOT NULL,
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE consumer_offsets IS 'Where each partition is read on; written in the transaction of the rows it stands for';

CREATE TABLE stream_gaps (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic       text NOT NULL,
    partition   integer NOT NULL,
    reason      text NOT NULL,
    from_offset bigint NOT NULL,
    to_offset   bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE stream_gaps IS 'Offsets that were gone before they could be read, and rebuilt topics';

CREATE TABLE stream_drops (
    node_id     text NOT NULL,
    hour        timestamptz NOT NULL,
    reason      text NOT NULL,
    gpu_records bigint NOT NULL DEFAULT 0,
    scrapes     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, node_id, reason)
);
COMMENT ON TABLE stream_drops IS 'Records that were read and not stored, by reason, per node and hour of their collected_at';

CREATE TABLE engine_state (
    scope      text NOT NULL,
    key        text NOT NULL,
    state      jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, key)
);
COMMENT ON TABLE engine_state IS 'What the alert engine cannot rebuild from the newest rows; written when it changes';

INSERT INTO schema_migrations (version, name, checksum)
VALUES (1, 'tables', '0e43a0ba7fcd8048c19cd986f79e79e14c93155a002225f3994818137914cef8');

-- 0002_functions_and_roles
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

INSERT INTO schema_migrations (version, name, checksum)
VALUES (2, 'functions_and_roles', 'bd707d893f17ee9c54569a6b0090d1b47c3551079724fa7d1aaea070c8878f7b');

COMMIT;
