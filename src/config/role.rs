//! What a node does of the work.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError};
use crate::ledger::is_sqlite;

/// What a node does of the work that several may share.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes events and sends them.
    #[default]
    All,
    /// Takes events and serves the API; what it takes in, others send
    Ingest,
    /// Sends; serves health and the API, and refuses events
    Worker,
}

impl Role {
    /// Whether the ingest paths take events.
    pub const fn takes_events(self) -> bool {
        matches!(self, Self::All | Self::Ingest)
    }

    /// Whether deliveries are sent, endpoints challenged, and event types told to Svix.
    pub const fn sends(self) -> bool {
        matches!(self, Self::All | Self::Worker)
    }

    /// The role as it stands in the configuration and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Ingest => "ingest",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl Config {
    /// Whether the ledger can be shared by nodes of this role. Apart from the other checks, because the command line
    /// has a word in it.
    ///
    /// # Errors
    /// A role other than `all` on SQLite.
    pub fn check_role(&self) -> Result<(), ConfigError> {
        if self.role == Role::All || !is_sqlite(&self.database_url) {
            return Ok(());
        }
        Err(ConfigError(format!(
            "role {} needs a ledger on Postgres: one process owns a SQLite file, so it must do all of the work",
            self.role
        )))
    }
}
