-- What a tenant may take beside others. Apart from its route, which it need not have: versions that know only routes
-- go on reading those.
CREATE TABLE tenant_limit (
    tenant       TEXT PRIMARY KEY,
    weight       BIGINT NOT NULL,           -- its share beside others at the same destination
    ingest_limit TEXT                       -- JSON: per_second, burst; NULL: the configured default
);
