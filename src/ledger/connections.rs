//! How the database is reached.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the database is reached, and how long operators' reads may take.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Longest time that a statement of an operator's read may take.
    pub read_timeout: Duration,
    /// What stands between this process and Postgres.
    pub pooler: Pooler,
    /// A URL of Postgres that leads past the pooler, to hear other nodes. Behind a pooler without one, work of other nodes
    /// is found by polling.
    pub listen_url: Option<String>,
    /// A URL of a read replica, for lists that may lag.
    pub replica_url: Option<String>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(10),
            pooler: Pooler::None,
            listen_url: None,
            replica_url: None,
        }
    }
}

/// What stands between this process and Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooler {
    /// Nothing that shares sessions: each connection has its own.
    None,
    /// A pooler that gives a session to a client for a transaction at a time, such as pgbouncer with
    /// `pool_mode = transaction`.
    Transaction,
}
