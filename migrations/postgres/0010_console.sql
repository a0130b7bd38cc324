-- Who is signed in to the console, on whichever node. A row says which key it stands for; the browser's half of it is
-- kept nowhere.
CREATE TABLE console_session (
    token_hash BYTEA  PRIMARY KEY,      -- SHA-256 of what the browser shows
    key_id     TEXT   NOT NULL,         -- of the API key that was shown; empty for the bootstrap key
    key_hash   BYTEA  NOT NULL,         -- the session ends with this very secret
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX console_session_key ON console_session (key_id, created_at);
