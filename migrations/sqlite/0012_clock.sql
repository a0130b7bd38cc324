-- One row: what is known of the ledger's clock from one start to the next.
CREATE TABLE ledger_clock (
    id           INTEGER PRIMARY KEY CHECK (id = 1),
    confirmed_at INTEGER,                   -- last heartbeat of a clock that was not in doubt; NULL: none yet
    last_at      INTEGER NOT NULL,          -- last heartbeat, whatever the clock: due times were written by it
    lead_ms      INTEGER NOT NULL           -- how far an event's number may be ahead of `received_at`
) STRICT;

INSERT INTO ledger_clock (id, confirmed_at, last_at, lead_ms)
SELECT 1,
       NULLIF((SELECT MAX(seen_at) FROM node), 0),
       MAX(COALESCE((SELECT MAX(seen_at) FROM node), 0), COALESCE(MAX(received_at), 0)),
       MAX(COALESCE(MAX((seq >> 22) + 1704067200000 - received_at), 0), 0)
FROM event;
