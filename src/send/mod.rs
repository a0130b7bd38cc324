//! Sending: one attempt of one delivery, and what it came to.
//!
//! A sender never touches the ledger and never retries: it says what happened, and the ledger's schedule does the rest.

pub mod address_guard;
pub mod svix;
pub mod tls;

use async_trait::async_trait;

use self::svix::SvixSender;
use crate::domain::delivery::{Delivery, Failure, Outcome};
use crate::domain::tenant::Destination;

/// Makes one attempt.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends `delivery` once and says what came of it. Bounded in time by the sender itself.
    async fn send(&self, delivery: &Delivery) -> Outcome;
}

/// The sender for each kind of destination.
#[derive(Debug)]
pub struct Senders {
    /// Present where a Svix token is configured.
    pub svix: Option<SvixSender>,
}

#[async_trait]
impl Sender for Senders {
    async fn send(&self, delivery: &Delivery) -> Outcome {
        match (&*delivery.lane.destination, &self.svix) {
            (Destination::Svix { app }, Some(svix)) => svix.send(delivery, app).await,
            (Destination::Svix { .. }, None) => Outcome::Unauthorized(Failure::transport(
                "not_configured",
                "no Svix token is configured",
                false,
            )),
        }
    }
}
