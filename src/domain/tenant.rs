//! Tenants, where their events go, and the lanes their deliveries wait in.

use std::fmt;
use std::sync::Arc;

/// Longest tenant, source, id and type, in bytes (Svix takes 256 characters).
pub const NAME_LIMIT_BYTES: usize = 256;

/// Where a tenant's events go. Routing, never failover: a tenant is on Svix or direct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// One message per event to this Svix application (its uid or id).
    Svix {
        /// The application.
        app: String,
    },
    /// Straight to the endpoints that subscribe.
    Direct,
}

/// The route of tenants that have none of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultRoute {
    /// Svix, with the tenant's own name as the application's uid.
    Svix,
    /// Direct.
    Direct,
}

/// Where a delivery goes: a Svix application or, later, an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A Svix application.
    Svix {
        /// Its uid or id.
        app: String,
    },
}

const SVIX_PREFIX: &str = "svix:";

impl Destination {
    /// Reads what [`fmt::Display`] wrote; `None` for a kind this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        text.strip_prefix(SVIX_PREFIX).map(|app| Self::Svix { app: app.to_owned() })
    }
}

/// The destination's id as it stands in the ledger and in idempotency keys, e.g. `svix:acme`.
impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svix { app } => write!(out, "{SVIX_PREFIX}{app}"),
        }
    }
}

/// The ledger's number of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub i64);

/// The queue of one tenant's deliveries for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The ledger's number.
    pub id: LaneId,
    /// Where its deliveries go.
    pub destination: Arc<Destination>,
    /// Whose they are.
    pub tenant: Arc<str>,
}

/// Whether Svix takes this as a uid or `eventId`: up to 256 of `[a-zA-Z0-9_.-]`.
pub fn svix_name_is_valid(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_LIMIT_BYTES && name.bytes().all(allowed)
}
