-- A batch of commands alone takes in no record and moves no offset, and yet a worker that stood still meanwhile must
-- not go on from what it knew: every batch raises the generation of the partitions that it wrote for.

ALTER TABLE consumer_offsets ADD COLUMN generation bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN consumer_offsets.generation IS 'How many batches were taken in for the partition';
