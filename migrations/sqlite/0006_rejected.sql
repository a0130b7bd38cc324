-- What a rejected message needs to be taken in again as the event that it would have been.
ALTER TABLE rejected ADD COLUMN content_type TEXT;
-- The one tenant that its source is for.
ALTER TABLE rejected ADD COLUMN tenant TEXT;
-- What its broker calls it, as a JSON array: ids are derived from it.
ALTER TABLE rejected ADD COLUMN identity TEXT;
-- The event's place in the message, from 0.
ALTER TABLE rejected ADD COLUMN item INTEGER NOT NULL DEFAULT 0;
-- What of it is kept once, however often it is delivered; null where its broker has no name for it.
ALTER TABLE rejected ADD COLUMN message_key TEXT;
CREATE UNIQUE INDEX rejected_message_key ON rejected (message_key);
CREATE INDEX rejected_origin ON rejected (origin, id);
