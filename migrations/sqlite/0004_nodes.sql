-- Closed gates are shared by all nodes: who wrote a row, so that a node does not act on its own word again. One process
-- owns this file, so it is always the same one; the column is here because both databases have one shape.
ALTER TABLE gate ADD COLUMN node INTEGER NOT NULL DEFAULT -1;
