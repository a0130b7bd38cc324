//! Sending: one attempt of one delivery, and what it came to.
//!
//! A sender never touches the ledger and never retries: it says what happened, and the ledger's schedule does the rest.

pub mod address_guard;
pub mod direct;
pub mod signature;
pub mod svix;
pub mod svix_event_types;
pub mod tls;

use std::sync::Arc;

use async_trait::async_trait;

use self::direct::DirectSender;
use self::svix::SvixSender;
use crate::domain::delivery::{Delivery, Failure, Outcome};
use crate::domain::retry::RetrySchedule;
use crate::domain::tenant::Destination;

/// Makes one attempt.
#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends `delivery` once and says what came of it. Bounded in time by the sender itself.
    async fn send(&self, delivery: &Delivery) -> Outcome;

    /// When a delivery to this destination is tried again.
    fn retry_schedule(&self, destination: &Destination) -> RetrySchedule;
}

/// Sends a test event to an endpoint and says what came back: the way round the ledger that an operator may ask for.
#[async_trait]
pub trait EndpointTester: Send + Sync {
    /// Sends a `posthaste.test` event to the endpoint now, signed and reshaped like any other. Bounded in time.
    async fn test(&self, id: &str) -> Result<TestResult, TestError>;
}

/// What came back from an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct TestResult {
    /// The HTTP status; null where there was no answer.
    pub status: Option<u16>,
    /// From the attempt's beginning to its end, in milliseconds.
    pub latency_ms: u64,
    /// The beginning of the answer's body.
    pub body_excerpt: String,
    /// Why it counts as failed; null where it was delivered.
    pub error: Option<String>,
}

/// Why no test event was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    /// There is no such endpoint.
    #[error("there is no such endpoint")]
    Unknown,
    /// It could not be sent now; the reason is for people.
    #[error("{0}")]
    Unavailable(String),
}

/// The sender for each kind of destination.
#[derive(Debug)]
pub struct Senders {
    /// Present where a Svix token is configured.
    pub svix: Option<SvixSender>,
    /// For endpoints.
    pub direct: Arc<DirectSender>,
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
            (Destination::Endpoint { id }, _) => self.direct.send(delivery, id).await,
        }
    }

    fn retry_schedule(&self, destination: &Destination) -> RetrySchedule {
        match (destination, &self.svix) {
            (Destination::Svix { .. }, Some(svix)) => svix.retry_schedule().clone(),
            (Destination::Svix { .. }, None) => RetrySchedule::new(Vec::new()),
            (Destination::Endpoint { id }, _) => self.direct.retry_schedule(id),
        }
    }
}
