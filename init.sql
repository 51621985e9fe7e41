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

-- 0003_ledger
-- The ledger: for each node and hour, what was announced against what is stored, dropped for a reason, or missing.
--
--   announced + unannounced + estimated = stored + dropped + missing      (GPU records; duplicates stand outside)
--
-- Nothing is kept for it: it is counted from the rows when it is asked for, so that a row which vanishes shows.

CREATE FUNCTION ledger_start() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT coalesce(min(to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC'), 'infinity')
      FROM pg_inherits i
      JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = 'public.scrapes'::regclass
$$;
COMMENT ON FUNCTION ledger_start IS 'The beginning of the oldest day that is kept; before it there is nothing to count';

CREATE FUNCTION dropped_between(earlier jsonb, later jsonb)
RETURNS TABLE (reason text, scrapes bigint, gpu_records bigint)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT key,
           greatest((value ->> 'scrapes')::bigint - coalesce((earlier -> key ->> 'scrapes')::bigint, 0), 0),
           greatest((value ->> 'gpu_records')::bigint - coalesce((earlier -> key ->> 'gpu_records')::bigint, 0), 0)
      FROM jsonb_each(later)
$$;
COMMENT ON FUNCTION dropped_between IS 'By how much a boot''s `drops` grew from one closing record to a later one';

CREATE FUNCTION told_later(of_node text, of_boot text, after_seq bigint, before timestamptz, earlier jsonb)
RETURNS bigint
LANGUAGE sql STABLE AS $$
    -- Gaps that come later are explained first, so only what the drops exceed them by, at any time, reaches back.
    WITH later AS (
        SELECT seq, coalesce(drops, '{}') AS drops,
               lag(seq, 1, after_seq) OVER boot AS before_seq,
               lag(coalesce(drops, '{}'), 1, earlier) OVER boot AS before_drops
          FROM scrapes
         WHERE node_id = of_node AND boot_id = of_boot AND seq > after_seq
           AND collected_at >= before AND collected_at < before + interval '1 day'
        WINDOW boot AS (ORDER BY seq)
    ), steps AS (
        SELECT seq,
               seq - before_seq - 1
                   - (SELECT coalesce(sum(d.scrapes), 0) FROM dropped_between(before_drops, drops) d) AS change
          FROM later
    )
    SELECT greatest(-coalesce(min(total), 0), 0)::bigint
      FROM (SELECT sum(change) OVER (ORDER BY seq) AS total FROM steps) walk
$$;
COMMENT ON FUNCTION told_later IS
    'How many turns missing before an hour''s end the bridge told of as dropped after it, within a day';

CREATE FUNCTION ledger_entry(of_node text, of_hour timestamptz)
RETURNS TABLE (
    announced           bigint,
    unannounced         bigint,
    estimated           bigint,
    stored              bigint,
    dropped             bigint,
    missing             bigint,
    dropped_by_reason   jsonb,
    scrapes             bigint,
    missing_scrapes     bigint,
    unaccounted_seconds double precision
)
LANGUAGE sql STABLE AS $$
    WITH seen AS (
        -- The hour's closing records, and the node's last one before them.
        SELECT true AS inside, s.boot_id, s.seq, s.collected_at, s.gpu_records, s.interval_ms, s.removed,
               coalesce(s.drops, '{}') AS drops
          FROM scrapes s
         WHERE s.node_id = of_node AND s.collected_at >= of_hour AND s.collected_at < of_hour + interval '1 hour'
        UNION ALL
        (SELECT false, s.boot_id, s.seq, s.collected_at, s.gpu_records, s.interval_ms, s.removed,
                coalesce(s.drops, '{}')
           FROM scrapes s
          WHERE s.node_id = of_node AND s.collected_at < of_hour
          ORDER BY s.collected_at DESC
          LIMIT 1)
    ), turns AS (
        SELECT seen.*,
               lag(seq) OVER boot AS before_seq,
               lag(gpu_records) OVER boot AS before_gpu_records,
               lag(drops) OVER boot AS before_drops,
               lag(collected_at) OVER boot AS before_at
          FROM seen
        WINDOW boot AS (PARTITION BY boot_id ORDER BY seq)
    ), firsts AS (
        -- The first turn of each boot in the hour; the one before it may lie before another boot's, or nowhere.
        SELECT t.*, e.seq AS earlier_seq, e.gpu_records AS earlier_gpu_records, e.drops AS earlier_drops,
               e.collected_at AS earlier_at,
               (SELECT max(o.collected_at) FROM seen o WHERE o.collected_at < t.collected_at) AS heard_before
          FROM turns t
          LEFT JOIN LATERAL (
              SELECT s.seq, s.gpu_records, s.collected_at, coalesce(s.drops, '{}') AS drops
                FROM scrapes s
               WHERE t.seq > 1 AND s.node_id = of_node AND s.boot_id = t.boot_id AND s.seq < t.seq
               ORDER BY s.seq DESC
               LIMIT 1
          ) e ON true
         WHERE t.inside AND t.before_seq IS NULL
    ), notable AS (
        -- The turns before which some are missing, and those that tell of drops; most hours have none.
        SELECT boot_id, seq, before_at, collected_at, before_gpu_records, seq - before_seq - 1 AS gap, before_drops,
               CASE WHEN drops <> before_drops THEN drops END AS told_drops
          FROM turns
         WHERE inside AND before_seq IS NOT NULL AND (seq > before_seq + 1 OR drops <> before_drops)
        UNION ALL
        SELECT boot_id, seq, coalesce(earlier_at, heard_before, '-infinity'), collected_at,
               coalesce(earlier_gpu_records, gpu_records), gap, coalesce(earlier_drops, '{}'),
               -- What a boot tells of days that are not kept is not of this hour.
               CASE WHEN earlier_seq IS NOT NULL OR gap = seq - 1 THEN drops END
          FROM (
              SELECT f.*,
                     CASE
                         WHEN earlier_seq IS NOT NULL THEN seq - earlier_seq - 1
                         WHEN seq = 1 THEN 0
                         -- No more turns came before the first that is kept than the kept days can hold.
                         ELSE greatest(0, least(
                             seq - 1,
                             floor(extract(epoch FROM collected_at - ledger_start()) * 1000 / interval_ms)::bigint))
                     END AS gap
                FROM firsts f
          ) first
    ), walked AS (
        -- A drop explains a gap that came before it, the nearest first: as brackets close.
        SELECT n.*, sum(gap - told_scrapes) OVER boot AS level
          FROM (
              SELECT notable.*,
                     CASE WHEN told_drops IS NULL THEN 0
                          ELSE (SELECT coalesce(sum(d.scrapes), 0) FROM dropped_between(before_drops, told_drops) d)
                     END AS told_scrapes
                FROM notable
          ) n
        WINDOW boot AS (PARTITION BY boot_id ORDER BY seq)
    ), boots AS (
        SELECT w.boot_id,
               sum(w.gap - w.told_scrapes)
                   - told_later(of_node, w.boot_id, e.seq, of_hour + interval '1 hour', e.drops) AS low
          FROM walked w
         CROSS JOIN LATERAL (SELECT t.seq, t.drops FROM turns t WHERE t.boot_id = w.boot_id ORDER BY t.seq DESC LIMIT 1) e
         GROUP BY w.boot_id, e.seq, e.drops
        HAVING sum(w.gap) > 0
    ), gaps AS (
        SELECT w.before_at, w.collected_at, w.before_gpu_records,
               greatest(0, least(gap, least(
                   min(level) OVER (PARTITION BY w.boot_id ORDER BY seq
                                    ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING),
                   o.low) - (level - gap + told_scrapes))) AS unexplained
          FROM walked w
          JOIN boots o USING (boot_id)
    ), held AS (
        -- What is stored, turn by turn: the records of a turn share its time.
        SELECT m.collected_at, count(*) AS held
          FROM placements p
         CROSS JOIN LATERAL (
             SELECT g.collected_at
               FROM gpu_metrics g
              WHERE g.placement_id = p.placement_id
                AND g.collected_at >= of_hour AND g.collected_at < of_hour + interval '1 hour'
             OFFSET 0  -- one probe a placement: merged into a join, the whole fleet's hour could be read for each node
         ) m
         WHERE p.node_id = of_node
         GROUP BY m.collected_at
    ), compared AS (
        SELECT collected_at, coalesce(h.held, 0) AS held,
               greatest(coalesce(a.gpu_records, 0) - coalesce(h.held, 0), 0) AS short,
               greatest(coalesce(h.held, 0) - coalesce(a.gpu_records, 0), 0) AS over
          FROM held h
          FULL JOIN (SELECT collected_at, sum(gpu_records) AS gpu_records FROM turns WHERE inside GROUP BY collected_at) a
              USING (collected_at)
    ), estimates AS (
        -- As many records as the turn before had, but for those that came without their closing record.
        SELECT unexplained,
               greatest(0, unexplained * before_gpu_records
                   - (SELECT coalesce(sum(c.over), 0)
                        FROM compared c
                       WHERE c.collected_at > g.before_at AND c.collected_at < g.collected_at)
                   - (SELECT count(*)
                        FROM placements p
                       CROSS JOIN LATERAL (
                           SELECT m.collected_at
                             FROM gpu_metrics m
                            WHERE g.before_at < of_hour AND m.placement_id = p.placement_id
                              AND m.collected_at > g.before_at AND m.collected_at < of_hour
                           OFFSET 0
                       ) m
                       WHERE p.node_id = of_node
                         AND NOT EXISTS (SELECT FROM scrapes s
                                          WHERE s.node_id = of_node AND s.collected_at = m.collected_at))) AS lacking
          FROM gaps g
         WHERE unexplained > 0
    ), reasons AS (
        SELECT d.reason, sum(d.gpu_records) AS gpu_records,
               d.reason <> 'delivery_failed' AS whole  -- with their closing record, every time
          FROM notable t
         CROSS JOIN LATERAL dropped_between(t.before_drops, t.told_drops) d
         WHERE t.told_drops IS NOT NULL
         GROUP BY d.reason
        UNION ALL
        SELECT s.reason, s.gpu_records, false
          FROM stream_drops s
         WHERE s.hour = of_hour AND s.node_id = of_node
    ), losses AS (
        SELECT coalesce(sum(gpu_records) FILTER (WHERE whole), 0) AS whole,
               coalesce(sum(gpu_records) FILTER (WHERE NOT whole), 0) AS single,
               coalesce(jsonb_object_agg(reason, gpu_records) FILTER (WHERE gpu_records > 0), '{}') AS by_reason
          FROM (SELECT reason, whole, sum(gpu_records) AS gpu_records FROM reasons GROUP BY reason, whole) r
    ), sums AS (
        SELECT t.*, c.*, e.*, f.*, l.*, least(l.single, c.short) AS single_of_announced
          FROM (SELECT coalesce(sum(gpu_records), 0) AS announced, count(*) AS scrapes FROM turns WHERE inside) t,
               (SELECT coalesce(sum(held), 0) AS stored, coalesce(sum(short), 0) AS short,
                       coalesce(sum(over), 0) AS over FROM compared) c,
               (SELECT coalesce(sum(unexplained), 0) AS missing_scrapes,
                       coalesce(sum(lacking), 0) AS lacking FROM estimates) e,
               (SELECT coalesce(sum(extract(epoch FROM collected_at - heard_before)), 0) AS unaccounted_seconds
                  FROM firsts WHERE earlier_seq IS NULL AND NOT removed) f,
               losses l
    ), split AS (
        -- Single drops first explain what announced turns lack, then what estimated ones do; others were no turn's.
        SELECT s.*, least(lacking, single - single_of_announced) AS single_of_estimated FROM sums s
    )
    SELECT announced::bigint,
           (whole + single - single_of_announced - single_of_estimated)::bigint,
           (over + lacking)::bigint,
           stored::bigint,
           (whole + single)::bigint,
           (short - single_of_announced + lacking - single_of_estimated)::bigint,
           by_reason,
           scrapes,
           missing_scrapes::bigint,
           unaccounted_seconds::double precision
      FROM split
$$;
COMMENT ON FUNCTION ledger_entry IS 'The ledger of one node and one hour, which is a whole hour in UTC';

CREATE VIEW ledger AS
SELECT k.node_id, k.hour, e.*
  FROM (
      SELECT n.node_id, h.hour
        FROM nodes n
       CROSS JOIN LATERAL generate_series(
           date_trunc('hour', greatest(n.first_seen, ledger_start()), 'UTC'), n.last_heard, interval '1 hour'
       ) h (hour)
      UNION
      SELECT d.node_id, d.hour FROM stream_drops d WHERE d.hour >= ledger_start()
  ) k
 CROSS JOIN LATERAL ledger_entry(k.node_id, k.hour) e;
COMMENT ON VIEW ledger IS
    'GPU records by node and hour: announced + unannounced + estimated = stored + dropped + missing';
COMMENT ON COLUMN ledger.announced IS 'What the closing records of the hour announced';
COMMENT ON COLUMN ledger.unannounced IS 'Dropped records that no stored closing record announced: it went with them';
COMMENT ON COLUMN ledger.estimated IS
    'For turns without a closing record that no drop explains: as many records as the turn before had, or those stored';
COMMENT ON COLUMN ledger.stored IS 'Rows of gpu_metrics';
COMMENT ON COLUMN ledger.dropped IS 'Records known to be dropped: by the bridge, as dead letters, beyond retention';
COMMENT ON COLUMN ledger.missing IS 'Records that nothing explains';
COMMENT ON COLUMN ledger.missing_scrapes IS 'Gaps in seq that no drop explains';
COMMENT ON COLUMN ledger.unaccounted_seconds IS
    'From the last closing record before a boot of a bridge to that boot''s first one, in the hour of that one';

INSERT INTO schema_migrations (version, name, checksum)
VALUES (3, 'ledger', 'ff780da8248aa203c5118aa4fb26eec394cd1a1d7cc5cf253eec85a54444fbd4');

-- 0004_gpu_described_at
-- Nodes whose records lie in different partitions can speak of one GPU, as when it was moved, and in which order they
-- are read is nobody's to say: the newest word has to be known by its time. Of the words before this one no time is known.

ALTER TABLE gpus ADD COLUMN described_at timestamptz;
COMMENT ON COLUMN gpus.described_at IS 'When the newest record was collected that said what stands here; null where none did yet';

INSERT INTO schema_migrations (version, name, checksum)
VALUES (4, 'gpu_described_at', '7288822a47aeaeb6d95c3b4101bbbf1499da201467d9db5142129aa70285570e');

-- 0005_offset_generation
-- A batch of commands alone takes in no record and moves no offset, and yet a worker that stood still meanwhile must
-- not go on from what it knew: every batch raises the generation of the partitions that it wrote for.

ALTER TABLE consumer_offsets ADD COLUMN generation bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN consumer_offsets.generation IS 'How many batches were taken in for the partition';

INSERT INTO schema_migrations (version, name, checksum)
VALUES (5, 'offset_generation', 'e602e993b3b3b9dea647a0c5b34b8ed9dce553608da99826868521157dda00e5');

COMMIT;
