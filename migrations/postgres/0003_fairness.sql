-- Deliveries that have failed before wait apart from fresh ones, so that neither has to be read past to find the other.
ALTER TABLE queue ADD COLUMN retry BIGINT NOT NULL DEFAULT 0;       -- 1: has failed before
UPDATE queue SET retry = 1 WHERE failures > 0;
ALTER TABLE queue ALTER COLUMN retry DROP DEFAULT;
ALTER TABLE queue DROP CONSTRAINT queue_pkey;
ALTER TABLE queue ADD PRIMARY KEY (lane, retry, due_at, event);

-- What is left of each rate-limited partner's budget, on this database's clock. Without a row it is full.
CREATE TABLE partner_tokens (
    partner    TEXT   COLLATE "C" PRIMARY KEY,
    millionths BIGINT NOT NULL,             -- of a token
    at         BIGINT NOT NULL              -- when that was so
) WITH (fillfactor = 50);
