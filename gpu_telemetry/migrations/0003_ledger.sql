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
