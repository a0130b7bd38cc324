-- Who wanted it: the name of an API key. NULL of what was done before this was written down.
ALTER TABLE steering ADD COLUMN steered_by TEXT;
