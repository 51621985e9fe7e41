-- Nodes whose records lie in different partitions can speak of one GPU, as when it was moved, and in which order they
-- are read is nobody's to say: the newest word has to be known by its time. Of the words before this one no time is known.

ALTER TABLE gpus ADD COLUMN described_at timestamptz;
COMMENT ON COLUMN gpus.described_at IS 'When the newest record was collected that said what stands here; null where none did yet';
