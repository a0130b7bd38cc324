-- What was counted in a minute, for each destination: the whole as `*`, Svix as `svix`, endpoints by id. Each run of a
-- process writes rows of its own, so that restarts and nodes add up.
CREATE TABLE stat (
    minute  INTEGER NOT NULL,               -- when it began
    subject TEXT    NOT NULL,
    run     INTEGER NOT NULL,               -- tells runs apart; says nothing else
    partner TEXT    NOT NULL,               -- empty for the whole
    sums    TEXT    NOT NULL,               -- JSON: accepted, results, latencies by upper bound in µs …
    PRIMARY KEY (minute, subject, run)
) STRICT, WITHOUT ROWID;

-- The trace that an event belongs to: its `traceparent`, and after a space its `tracestate` (W3C Trace Context).
ALTER TABLE event ADD COLUMN trace TEXT;
