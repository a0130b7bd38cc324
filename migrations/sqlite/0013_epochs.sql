-- `node.epoch` holds the last epoch of the one node as text: every start takes the next one. Epochs begin above all node
-- numbers: what an earlier version wrote as the holder of a replay, a chore or a gate is a node number, and belongs to
-- nobody now.

-- 1: that replay sent the delivery to partners under a new id. A later retry sends it under the same one.
ALTER TABLE earlier_outcome ADD COLUMN new_id INTEGER NOT NULL DEFAULT 0;
UPDATE earlier_outcome SET new_id = 1 WHERE replay IN (SELECT id FROM replay WHERE new_ids = 1);
