-- The last epoch that was given out, in one row. Every start of a node and every new number that a running node takes gets
-- the next one, and none is ever given out again. `node.epoch` holds it as text, so that a node of the version before can
-- share the ledger during an upgrade. Epochs begin above all node numbers: what such a node wrote as the holder of a
-- replay, a chore or a gate is a node number, and belongs to nobody now.
CREATE TABLE node_epoch (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    number BIGINT NOT NULL
);
INSERT INTO node_epoch VALUES (1, 1024);

-- 1: that replay sent the delivery to partners under a new id. A later retry sends it under the same one.
ALTER TABLE earlier_outcome ADD COLUMN new_id BIGINT NOT NULL DEFAULT 0;
UPDATE earlier_outcome SET new_id = 1 WHERE replay IN (SELECT id FROM replay WHERE new_ids = 1);
