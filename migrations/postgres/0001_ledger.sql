-- The ledger, first shape. Times are milliseconds since the Unix epoch, UTC.

-- Events: written once, never updated. `seq` is time-ordered, so the table only grows at its end.
CREATE TABLE event (
    seq          BIGINT PRIMARY KEY,
    tenant       TEXT    NOT NULL,
    source       TEXT    NOT NULL,
    id           TEXT    NOT NULL,
    type         TEXT    NOT NULL,
    received_at  BIGINT  NOT NULL,
    destinations BIGINT  NOT NULL,          -- how many deliveries were created; 0 is an unrouted event
    body         BYTEA   NOT NULL,          -- the whole event as it came
    data_start   BIGINT,                    -- where in `body` its data stands
    data_end     BIGINT
);

-- What makes an event the same event. Outlives the payload.
CREATE TABLE event_key (
    tenant      TEXT COLLATE "C" NOT NULL,
    source      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA   NOT NULL,           -- SHA-256 of type and data
    event       BIGINT  NOT NULL,
    PRIMARY KEY (tenant, source, id)
);

-- Idempotency-Key request headers, remembered for a day.
CREATE TABLE request_key (
    scope       TEXT COLLATE "C" NOT NULL,
    key         TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA   NOT NULL,           -- SHA-256 of the request body
    created_at  BIGINT  NOT NULL,
    PRIMARY KEY (scope, key)
);

CREATE TABLE lane (
    id          BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    destination TEXT COLLATE "C" NOT NULL,
    tenant      TEXT COLLATE "C" NOT NULL,
    UNIQUE (destination, tenant)
);

-- Deliveries that wait: narrow rows, deleted when done. A claim changes only columns without an index, in a page with
-- room left, so that it is a heap-only update.
CREATE TABLE queue (
    lane        BIGINT NOT NULL,
    due_at      BIGINT NOT NULL,
    event       BIGINT NOT NULL,
    attempt     BIGINT NOT NULL,            -- claims so far: the fencing token
    failures    BIGINT NOT NULL,
    uncertain   BIGINT NOT NULL,            -- 1: an attempt may have arrived unseen
    lease_until BIGINT NOT NULL,            -- on this database's clock; 0: not claimed
    PRIMARY KEY (lane, due_at, event)
) WITH (fillfactor = 50);

-- Deliveries that are done.
CREATE TABLE outcome (
    event                BIGINT  NOT NULL,
    lane                 BIGINT  NOT NULL,
    state                TEXT    NOT NULL,  -- delivered, dead, canceled
    at                   BIGINT  NOT NULL,
    attempts             BIGINT  NOT NULL,
    failures             BIGINT  NOT NULL,
    latency_ms           BIGINT  NOT NULL,
    status               BIGINT,
    remote_id            TEXT,
    dispatch_unconfirmed BIGINT  NOT NULL,
    reason               TEXT,
    PRIMARY KEY (event, lane)
);

CREATE INDEX outcome_dead ON outcome (event) WHERE state = 'dead';
CREATE INDEX outcome_unconfirmed ON outcome (event) WHERE dispatch_unconfirmed = 1;

-- Attempts that did not deliver. `retry_at` is where the delivery went in the queue.
CREATE TABLE attempt_log (
    event      BIGINT  NOT NULL,
    lane       BIGINT  NOT NULL,
    attempt    BIGINT  NOT NULL,
    at         BIGINT  NOT NULL,
    latency_ms BIGINT  NOT NULL,
    status     BIGINT,
    code       TEXT    NOT NULL,
    detail     TEXT    NOT NULL,
    retry_at   BIGINT,
    PRIMARY KEY (event, lane, attempt)
);

-- What could never be accepted and was acknowledged all the same, with its bytes.
CREATE TABLE rejected (
    id          BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at BIGINT  NOT NULL,
    origin      TEXT    NOT NULL,           -- pubsub_push
    reason      TEXT    NOT NULL,
    attributes  TEXT    NOT NULL,           -- JSON object of the message's attributes
    body        BYTEA   NOT NULL
);

-- Tenants with a route of their own. An application belongs to one tenant.
CREATE TABLE tenant (
    id       TEXT PRIMARY KEY,
    route    TEXT NOT NULL,                 -- svix, direct
    svix_app TEXT UNIQUE
);

CREATE TABLE api_key (
    id         TEXT    PRIMARY KEY,
    name       TEXT    NOT NULL,
    hash       BYTEA   NOT NULL,            -- SHA-256 of the secret part
    scopes     TEXT    NOT NULL,            -- comma-separated: ingest, read, admin
    tenant     TEXT,
    created_at BIGINT  NOT NULL,
    revoked_at BIGINT
);

-- Gates that are closed, so that a restart does not go early.
CREATE TABLE gate (
    id           TEXT    PRIMARY KEY,
    reason       TEXT    NOT NULL,
    closed_until BIGINT  NOT NULL
);

-- One row: grows with every change of tenants and keys, so that every node knows when to read them again.
CREATE TABLE revision (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    number BIGINT  NOT NULL
);
INSERT INTO revision VALUES (1, 1);

-- Nodes that share this ledger: each holds a number, which its ids carry, as long as its heartbeat goes on.
CREATE TABLE node (
    number  BIGINT PRIMARY KEY,
    epoch   TEXT    NOT NULL,
    seen_at BIGINT  NOT NULL
);
