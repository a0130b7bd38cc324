//! Verdicts and routes, as metrics tell them.

use std::sync::Arc;

use super::Status;
use crate::domain::tenant::{Destination, Lane};

impl Status {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Duplicate, Self::Conflict, Self::Invalid];

    /// The verdict as it stands in answers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Invalid => "invalid",
        }
    }
}

/// Where an event goes, as far as metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routed {
    /// Nobody knows: it is no event.
    #[default]
    Unknown,
    /// To Svix, and maybe to endpoints.
    Svix,
    /// To endpoints alone.
    Direct,
    /// Nobody wants it.
    Unrouted,
}

impl Routed {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Unknown, Self::Svix, Self::Direct, Self::Unrouted];

    /// The route as it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Svix => "svix",
            Self::Direct => "direct",
            Self::Unrouted => "unrouted",
        }
    }

    /// Of an event that goes to these lanes.
    pub(super) fn of(lanes: &[Arc<Lane>]) -> Self {
        // Svix stands first, where it is among them.
        match lanes.first().map(|lane| &*lane.destination) {
            None => Self::Unrouted,
            Some(Destination::Svix { .. }) => Self::Svix,
            Some(Destination::Endpoint { .. }) => Self::Direct,
        }
    }
}
