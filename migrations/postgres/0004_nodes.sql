-- Closed gates are shared by all nodes: who wrote a row, so that a node does not act on its own word again.
-- `closed_until` is on this database's clock from now on. Rows from before are nobody's: they are hints that end by
-- themselves.
ALTER TABLE gate ADD COLUMN node BIGINT NOT NULL DEFAULT -1;
