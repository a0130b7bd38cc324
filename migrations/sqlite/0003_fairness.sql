-- Deliveries that have failed before wait apart from fresh ones, so that neither has to be read past to find the other.
CREATE TABLE queue_by_class (
    lane      INTEGER NOT NULL,
    retry     INTEGER NOT NULL,             -- 1: has failed before
    due_at    INTEGER NOT NULL,
    event     INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,             -- attempts settled so far
    failures  INTEGER NOT NULL,
    uncertain INTEGER NOT NULL,             -- 1: an attempt may have arrived unseen
    PRIMARY KEY (lane, retry, due_at, event)
) STRICT, WITHOUT ROWID;

INSERT INTO queue_by_class (lane, retry, due_at, event, attempt, failures, uncertain)
SELECT lane, failures > 0, due_at, event, attempt, failures, uncertain FROM queue;
DROP TABLE queue;
ALTER TABLE queue_by_class RENAME TO queue;

-- What is left of each rate-limited partner's budget. Without a row it is full.
CREATE TABLE partner_tokens (
    partner    TEXT    PRIMARY KEY,
    millionths INTEGER NOT NULL,            -- of a token
    at         INTEGER NOT NULL             -- when that was so
) STRICT, WITHOUT ROWID;
