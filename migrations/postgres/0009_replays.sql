-- Which replay of a delivery waits: twice its number, and 1 more where partners are to take it for another message.
ALTER TABLE queue ADD COLUMN replay BIGINT NOT NULL DEFAULT 0;

-- Deliveries that are put back into the queue, a few at a time.
CREATE TABLE replay (
    id           TEXT COLLATE "C" PRIMARY KEY,     -- rpl_… and the time, so that they sort by it
    tenant       TEXT,                      -- the one tenant whose events it replays
    filter       TEXT    NOT NULL,          -- JSON: as it was asked for
    selection    TEXT    NOT NULL,          -- JSON: what that came to when it began
    pace         BIGINT NOT NULL,          -- deliveries a second
    new_ids      BIGINT NOT NULL,          -- 1: partners get them under new ids
    state        TEXT    NOT NULL,          -- running, paused, completed, canceled
    started_by   TEXT    NOT NULL,
    created_at   BIGINT NOT NULL,
    ended_at     BIGINT,
    total        BIGINT,                   -- as counted when it began; NULL where that was too many to count
    cursor_event BIGINT NOT NULL,          -- all up to here has been looked at
    cursor_lane  BIGINT NOT NULL,
    exhausted    BIGINT NOT NULL,          -- 1: nothing is left to be put back
    queued       BIGINT NOT NULL,          -- deliveries put back so far
    delivered    BIGINT NOT NULL,          -- of these: delivered
    failed       BIGINT NOT NULL,          -- whose first attempt failed: they wait for the next, or are dead
    canceled     BIGINT NOT NULL,
    unroutable   BIGINT NOT NULL,          -- unrouted events that no route wants today either
    waits_for    TEXT,                      -- what holds it up
    worker       BIGINT NOT NULL,          -- the node that works on it; -1: none
    worker_until BIGINT NOT NULL           -- how long, on the ledger's clock
);
CREATE INDEX replay_running ON replay (id) WHERE state = 'running';

-- What replays have put back and nobody has tried yet.
CREATE TABLE replay_waiting (
    replay TEXT   COLLATE "C" NOT NULL,
    event  BIGINT NOT NULL,
    lane   BIGINT NOT NULL,
    due_at BIGINT NOT NULL,                -- its place in the queue, while it has not been tried
    PRIMARY KEY (replay, event, lane)
);

CREATE INDEX replay_waiting_event ON replay_waiting (event);

-- How deliveries that were replayed had ended before.
CREATE TABLE earlier_outcome (
    event                BIGINT NOT NULL,
    lane                 BIGINT NOT NULL,
    number               BIGINT NOT NULL,  -- from 1: the replay that followed
    replay               TEXT    NOT NULL,  -- whose work that was
    replayed_at          BIGINT NOT NULL,
    state                TEXT    NOT NULL,
    at                   BIGINT NOT NULL,
    attempts             BIGINT NOT NULL,
    failures             BIGINT NOT NULL,
    latency_ms           BIGINT NOT NULL,
    status               BIGINT,
    remote_id            TEXT,
    dispatch_unconfirmed BIGINT NOT NULL,
    reason               TEXT,
    PRIMARY KEY (event, lane, number)
);

-- Events without a destination, for replays that route them anew.
CREATE INDEX event_unrouted ON event (seq) WHERE destinations = 0;

-- How long what a tenant's events leave behind is kept, as JSON; NULL: as configured.
ALTER TABLE tenant_limit ADD COLUMN retention TEXT;

-- Work that one node at a time does for all, and when it was last done, on the ledger's clock.
CREATE TABLE chore (
    name         TEXT   PRIMARY KEY,
    worker       BIGINT NOT NULL,
    worker_until BIGINT NOT NULL,
    done_at      BIGINT NOT NULL
);
