//! How much may wait, and how the database is reached.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ledger::{BacklogLimits, Connections, LedgerOptions, Pooler, is_sqlite};

/// `[ledger]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerConfig {
    /// Most deliveries of one tenant that may wait; beyond it 429.
    pub tenant_backlog_max: u64,
    /// Most deliveries that may wait; beyond it 503.
    pub backlog_max: u64,
    /// How many bytes of what was just recorded are kept in memory until it is sent; what isn't is read again.
    pub recent_max_bytes: usize,
    /// Longest time that a statement of a read through the API or the console may take, in milliseconds; beyond it 503.
    pub read_timeout_ms: u64,
    /// `transaction` where a pooler in transaction mode, such as pgbouncer, stands before Postgres; else `none`.
    pub pooler: Pooler,
    /// A Postgres URL past the pooler, to hear other nodes immediately; without it they are polled every second.
    pub listen_url: Option<String>,
    /// A Postgres URL of a read replica for lists and statistics, whose answers may lag behind.
    pub replica_url: Option<String>,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            tenant_backlog_max: 2_000_000,
            backlog_max: 10_000_000,
            recent_max_bytes: 128 << 20,
            read_timeout_ms: 10_000,
            pooler: Pooler::None,
            listen_url: None,
            replica_url: None,
        }
    }
}

impl LedgerConfig {
    /// How the ledger at `url` is opened.
    pub(super) fn options(&self, url: &str, lease: Duration) -> LedgerOptions {
        LedgerOptions {
            url: url.to_owned(),
            lease,
            backlog: BacklogLimits { tenant: self.tenant_backlog_max, total: self.backlog_max },
            recent_bytes: self.recent_max_bytes,
            connections: Connections {
                read_timeout: Duration::from_millis(self.read_timeout_ms),
                pooler: self.pooler,
                listen_url: self.listen_url.clone(),
                replica_url: self.replica_url.clone(),
            },
        }
    }

    /// What is wrong with the way to the database at `url`.
    pub(super) fn problem(&self, url: &str) -> Option<String> {
        let urls = [("listen_url", &self.listen_url), ("replica_url", &self.replica_url)];
        for (name, url) in urls {
            if url
                .as_ref()
                .is_some_and(|url| !url.starts_with("postgres://") && !url.starts_with("postgresql://"))
            {
                return Some(format!("ledger.{name} must begin with postgres://"));
            }
        }
        let for_postgres =
            self.listen_url.is_some() || self.replica_url.is_some() || self.pooler != Pooler::None;
        if is_sqlite(url) && for_postgres {
            return Some(
                "ledger.pooler, ledger.listen_url and ledger.replica_url are for Postgres; database_url names a SQLite file"
                    .into(),
            );
        }
        (self.read_timeout_ms == 0).then(|| "ledger.read_timeout_ms must be at least 1".into())
    }
}
