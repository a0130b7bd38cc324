-- Since when a lane has had no delivery, in the queue or done; NULL while it has some. A day later it is deleted.
ALTER TABLE lane ADD COLUMN unused_since INTEGER;
