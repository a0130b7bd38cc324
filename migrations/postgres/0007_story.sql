-- What is told of an event beside its deliveries. Written rarely: nothing here is part of taking an event in or sending it.

-- How often an event came again. Written apart from the commit that refused or passed over it, about a second later.
CREATE TABLE repeat (
    event             BIGINT  PRIMARY KEY,
    duplicates        BIGINT  NOT NULL,     -- times it came again as it is
    last_duplicate_at BIGINT,
    conflicts         BIGINT  NOT NULL,     -- times another one came under its identity
    last_conflict_at  BIGINT,
    conflict_type     TEXT                  -- the type of the last of those
);

-- What operators did to deliveries, with the outcome that a retry took back.
CREATE TABLE steering (
    event          BIGINT  NOT NULL,
    lane           BIGINT  NOT NULL,
    at             BIGINT  NOT NULL,
    action         TEXT    NOT NULL,        -- retry, cancel
    was_state      TEXT,                    -- the outcome before a retry; NULL where it still waited
    was_at         BIGINT,
    was_latency_ms BIGINT,
    was_status     BIGINT,
    was_remote_id  TEXT,
    was_reason     TEXT,
    PRIMARY KEY (event, lane, at, action)
);

-- A tenant's lanes are looked up by it; lanes are made rarely.
CREATE INDEX lane_tenant ON lane (tenant, id);
