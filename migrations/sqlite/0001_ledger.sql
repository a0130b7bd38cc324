-- The ledger, first shape. Times are milliseconds since the Unix epoch, UTC.

-- Events: written once, never updated. `seq` is time-ordered, so the table only grows at its end.
CREATE TABLE event (
    seq          INTEGER PRIMARY KEY,
    tenant       TEXT    NOT NULL,
    source       TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    received_at  INTEGER NOT NULL,
    destinations INTEGER NOT NULL,          -- how many deliveries were created; 0 is an unrouted event
    body         BLOB    NOT NULL,          -- the whole event as it came
    data_start   INTEGER,                   -- where in `body` its data stands
    data_end     INTEGER
) STRICT;

-- What makes an event the same event. Outlives the payload.
CREATE TABLE event_key (
    tenant      TEXT    NOT NULL,
    source      TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,           -- SHA-256 of type and data
    event       INTEGER NOT NULL,
    PRIMARY KEY (tenant, source, id)
) STRICT, WITHOUT ROWID;

-- Idempotency-Key request headers, remembered for a day.
CREATE TABLE request_key (
    scope       TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,           -- SHA-256 of the request body
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE lane (
    id          INTEGER PRIMARY KEY,
    destination TEXT    NOT NULL,
    tenant      TEXT    NOT NULL,
    UNIQUE (destination, tenant)
) STRICT;

-- Deliveries that wait: narrow rows, deleted when done. Leases live in the memory of the one process that owns the file.
CREATE TABLE queue (
    lane      INTEGER NOT NULL,
    due_at    INTEGER NOT NULL,
    event     INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,             -- attempts settled so far
    failures  INTEGER NOT NULL,
    uncertain INTEGER NOT NULL,             -- 1: an attempt may have arrived unseen
    PRIMARY KEY (lane, due_at, event)
) STRICT, WITHOUT ROWID;

-- Deliveries that are done.
CREATE TABLE outcome (
    event                INTEGER NOT NULL,
    lane                 INTEGER NOT NULL,
    state                TEXT    NOT NULL,  -- delivered, dead, canceled
    at                   INTEGER NOT NULL,
    attempts             INTEGER NOT NULL,
    failures             INTEGER NOT NULL,
    latency_ms           INTEGER NOT NULL,
    status               INTEGER,
    remote_id            TEXT,
    dispatch_unconfirmed INTEGER NOT NULL,
    reason               TEXT,
    PRIMARY KEY (event, lane)
) STRICT, WITHOUT ROWID;

CREATE INDEX outcome_dead ON outcome (event) WHERE state = 'dead';
CREATE INDEX outcome_unconfirmed ON outcome (event) WHERE dispatch_unconfirmed = 1;

-- Attempts that did not deliver. `retry_at` is where the delivery went in the queue.
CREATE TABLE attempt_log (
    event      INTEGER NOT NULL,
    lane       INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    latency_ms INTEGER NOT NULL,
    status     INTEGER,
    code       TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    retry_at   INTEGER,
    PRIMARY KEY (event, lane, attempt)
) STRICT, WITHOUT ROWID;

-- What could never be accepted and was acknowledged all the same, with its bytes.
CREATE TABLE rejected (
    id          INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL,
    origin      TEXT    NOT NULL,           -- pubsub_push
    reason      TEXT    NOT NULL,
    attributes  TEXT    NOT NULL,           -- JSON object of the message's attributes
    body        BLOB    NOT NULL
) STRICT;

-- Tenants with a route of their own. An application belongs to one tenant.
CREATE TABLE tenant (
    id       TEXT PRIMARY KEY,
    route    TEXT NOT NULL,                 -- svix, direct
    svix_app TEXT UNIQUE
) STRICT, WITHOUT ROWID;

CREATE TABLE api_key (
    id         TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL,
    hash       BLOB    NOT NULL,            -- SHA-256 of the secret part
    scopes     TEXT    NOT NULL,            -- comma-separated: ingest, read, admin
    tenant     TEXT,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

-- Gates that are closed, so that a restart does not go early.
CREATE TABLE gate (
    id           TEXT    PRIMARY KEY,
    reason       TEXT    NOT NULL,
    closed_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: grows with every change of tenants and keys, so that every node knows when to read them again.
CREATE TABLE revision (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO revision VALUES (1, 1);

-- The process that owns this ledger, and the row its heartbeat writes.
CREATE TABLE node (
    number  INTEGER PRIMARY KEY,
    epoch   TEXT    NOT NULL,
    seen_at INTEGER NOT NULL
) STRICT;
