//! Tenants, where their events go, and the lanes their deliveries wait in.

use std::fmt;
use std::sync::Arc;

/// Longest tenant, source, id and type, in bytes (Svix takes 256 characters).
pub const NAME_LIMIT_BYTES: usize = 256;

/// A tenant's share beside others at the same destination, as far as it may be set.
pub const WEIGHTS: std::ops::RangeInclusive<u32> = 1..=100;
/// The share of a tenant for which none was set.
pub const DEFAULT_WEIGHT: u32 = 1;

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

/// Where a delivery goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// A Svix application.
    Svix {
        /// Its uid or id.
        app: String,
    },
    /// One URL of a partner.
    Endpoint {
        /// Its id: `ep_` and more.
        id: Arc<str>,
    },
}

const SVIX_PREFIX: &str = "svix:";
/// What every endpoint's id begins with.
pub const ENDPOINT_PREFIX: &str = "ep_";

impl Destination {
    /// Reads what [`fmt::Display`] wrote; `None` for a kind this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with(ENDPOINT_PREFIX) {
            return Some(Self::Endpoint { id: text.into() });
        }
        text.strip_prefix(SVIX_PREFIX).map(|app| Self::Svix { app: app.to_owned() })
    }
}

/// The destination's id as it stands in the ledger and in idempotency keys: `svix:acme`, `ep_…`.
impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svix { app } => write!(out, "{SVIX_PREFIX}{app}"),
            Self::Endpoint { id } => out.write_str(id),
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
