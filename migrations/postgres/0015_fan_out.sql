-- Deliveries of large requests that are not in the queue yet: every event of a row goes to every lane of it. A step moves
-- some of the rows into the queue.
CREATE TABLE fan_out (
    tenant     TEXT COLLATE "C" NOT NULL,
    event      BIGINT NOT NULL,             -- the first of its events
    part       BIGINT NOT NULL,             -- from 0: an event with very many lanes has several rows
    last_event BIGINT NOT NULL,
    due_at     BIGINT NOT NULL,
    deliveries BIGINT NOT NULL,             -- how many they are
    events     TEXT   NOT NULL,             -- JSON array of their numbers, in order
    lanes      TEXT   NOT NULL,             -- JSON array of their numbers
    PRIMARY KEY (tenant, event, part)
);
