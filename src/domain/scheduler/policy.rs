//! What the scheduler is told about receivers: gates, endpoints' bounds, partners' limits.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::gate::GateLimits;
use crate::domain::partner::RateLimit;
use crate::domain::tenant::Destination;

/// Which gate a destination stands behind. All of Svix is one receiver, whose applications get a gate each where it refuses
/// or throttles them alone; every endpoint is a receiver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GateId {
    /// The Svix API.
    Svix,
    /// A Svix application, beside the gate of all of Svix: the text of its [`Destination`].
    Application(Arc<str>),
    /// An endpoint.
    Endpoint(Arc<str>),
}

impl GateId {
    /// The gate before `destination`.
    pub fn of(destination: &Destination) -> Self {
        match destination {
            Destination::Svix { .. } => Self::Svix,
            Destination::Endpoint { id } => Self::Endpoint(id.clone()),
        }
    }

    /// The gate's name in the ledger, in logs and in answers: `svix`, `svix:` with the application, or the endpoint's id.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Svix => "svix",
            Self::Application(destination) => destination,
            Self::Endpoint(id) => id,
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "svix" => Some(Self::Svix),
            application if matches!(Destination::parse(application), Some(Destination::Svix { .. })) => {
                Some(Self::Application(application.into()))
            }
            id => id.starts_with(crate::domain::tenant::ENDPOINT_PREFIX).then(|| Self::Endpoint(id.into())),
        }
    }
}

/// Bounds of one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointPolicy {
    /// Whose endpoint it is.
    pub partner: Arc<str>,
    /// Bounds of its gate.
    pub gate: GateLimits,
}

/// Limits that all of a partner's endpoints share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartnerPolicy {
    /// Most requests in flight.
    pub max_in_flight: usize,
    /// Requests per second.
    pub rate_limit: Option<RateLimit>,
    /// Nothing is sent; what comes waits.
    pub paused: bool,
}

/// What is known of receivers now.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// By endpoint.
    pub endpoints: HashMap<Arc<str>, EndpointPolicy>,
    /// By partner.
    pub partners: HashMap<Arc<str>, PartnerPolicy>,
    /// Shares of tenants beside others at the same destination; 1 where a tenant is not in it.
    pub weights: HashMap<Arc<str>, u32>,
}

/// A wish to reserve up to `count` of a partner's tokens in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenWish {
    /// Whose.
    pub partner: Arc<str>,
    /// The limit they are reserved under.
    pub limit: RateLimit,
    /// At most this many.
    pub count: u32,
}

/// The ledger's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenGrant {
    /// What was wished for.
    pub wish: TokenWish,
    /// How many there were.
    pub count: u32,
    /// How long until the next is there.
    pub until_next: Duration,
}
