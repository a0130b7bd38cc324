-- Partners, their endpoints, and the event types there are.

CREATE TABLE partner (
    id         TEXT    COLLATE "C" PRIMARY KEY,
    settings   TEXT    NOT NULL,            -- JSON: name, rate_limit, max_in_flight, paused …
    version    BIGINT  NOT NULL,           -- grows with every change: the ETag
    created_at BIGINT NOT NULL
);

CREATE TABLE endpoint (
    id              TEXT    COLLATE "C" PRIMARY KEY,    -- ep_…: part of every idempotency key, never used again
    partner         TEXT    COLLATE "C" NOT NULL,
    settings        TEXT    NOT NULL,       -- JSON: url, tenant, event_types, headers, transform, timeout_ms …
    headers         TEXT,                   -- values of its own headers, sealed; NULL where it has none
    secret          TEXT    NOT NULL,       -- sealed under the master key
    previous_secret TEXT,                   -- sealed; signs too until `previous_until`
    previous_until  BIGINT,
    disabled_reason TEXT,                   -- NULL while it is active
    disabled_at     BIGINT,
    failing_since   BIGINT,                -- the first failure after the last success
    proven_at       BIGINT,                -- answered its ownership challenge; NULL where none was asked or it waits
    version         BIGINT NOT NULL,
    created_at      BIGINT NOT NULL
);

CREATE INDEX endpoint_partner ON endpoint (partner, id);

CREATE TABLE event_type (
    name        TEXT    COLLATE "C" PRIMARY KEY,
    settings    TEXT    NOT NULL,           -- JSON: description, schema, example
    version     BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    synced      BIGINT NOT NULL            -- the version that Svix was told; 0: none
);

-- A tenant's Svix route may reshape what goes out.
ALTER TABLE tenant ADD COLUMN transform TEXT;
