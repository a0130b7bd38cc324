-- One row: what is known of the ledger's clock from one start to the next.
CREATE TABLE ledger_clock (
    id           BIGINT PRIMARY KEY CHECK (id = 1),
    confirmed_at BIGINT,                    -- last heartbeat of a clock that was not in doubt; NULL: none yet
    last_at      BIGINT NOT NULL,           -- last heartbeat, whatever the clock
    lead_ms      BIGINT NOT NULL            -- how far an event's number may be ahead of `received_at`
);

INSERT INTO ledger_clock (id, confirmed_at, last_at, lead_ms)
SELECT 1,
       NULLIF((SELECT MAX(seen_at) FROM node), 0),
       GREATEST((SELECT MAX(seen_at) FROM node), MAX(received_at), 0),
       GREATEST(MAX((seq >> 22) + 1704067200000 - received_at), 0)
FROM event;

-- Deliveries that nobody has tried are due as soon as they are recorded. A node whose clock was ahead has recorded
-- later times.
UPDATE queue SET due_at = (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint)
WHERE retry = 0 AND attempt = 0 AND failures = 0
  AND due_at > (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint);
