//! Sending: one attempt of one delivery, and what it came to.
//!
//! A sender never touches the ledger and never retries: it says what happened, and the ledger's schedule does the rest.

pub mod address_guard;
pub mod direct;
pub mod reshape;
pub mod signature;
pub mod svix;
pub mod svix_event_types;
pub mod tls;

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use axum::http::{HeaderMap, HeaderValue};

use self::direct::DirectSender;
use self::svix::SvixSender;
use crate::domain::delivery::{Delivery, Failure, Outcome};
use crate::domain::retry::RetrySchedule;
use crate::domain::tenant::Destination;
use crate::domain::trace::TraceContext;
use crate::traces::Tracer;

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

impl Senders {
    /// Each way in a box of its own size.
    fn send_on<'a>(
        &'a self,
        delivery: &'a Delivery,
        trace: Option<&'a TraceContext>,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>> {
        match (&*delivery.lane.destination, &self.svix) {
            (Destination::Svix { app }, Some(svix)) => Box::pin(svix.send(delivery, app, trace)),
            (Destination::Svix { .. }, None) => {
                let failure = Failure::transport("not_configured", "no Svix token is configured", false);
                Box::pin(std::future::ready(Outcome::Unauthorized(failure)))
            }
            (Destination::Endpoint { id }, _) => Box::pin(self.direct.send(delivery, id, trace)),
        }
    }

    /// An attempt as a span of the event's trace, which goes on to the receiver: as it came where it is not recorded.
    async fn send_traced(&self, delivery: &Delivery) -> Outcome {
        let mut span = self.tracer.attempt(delivery);
        let own = span.as_ref().and_then(|span| span.context()).cloned();
        let trace = own.as_ref().or(delivery.trace.as_deref()).filter(|_| self.forward_traces);
        let outcome = self.send_on(delivery, trace).await;
        if let Some(span) = &mut span {
            span.outcome(&outcome);
        }
        outcome
    }
}

/// Adds the headers of a trace (W3C Trace Context), but for those that are there.
fn add_trace(headers: &mut HeaderMap, trace: Option<&TraceContext>) {
    let Some(trace) = trace else { return };
    let texts =
        [("traceparent", Some(trace.traceparent())), ("tracestate", trace.state().map(str::to_owned))];
    if headers.contains_key("traceparent") {
        return;
    }
    for (name, text) in texts {
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
}

/// What it means that a connection stood and gave no answer that could be read: `connection_lost`, `answer_invalid` (what
/// came is not HTTP) or `answer_too_large` (a head of more than a hundred headers or [`direct::HEAD_LIMIT_BYTES`]; of Svix's
/// about 400 KiB).
fn without_answer(error: &(dyn Error + 'static)) -> &'static str {
    let mut chain = std::iter::successors(Some(error), |error| (*error).source());
    match chain.find_map(|error| error.downcast_ref::<hyper::Error>()) {
        Some(error) if error.is_parse_too_large() => "answer_too_large",
        Some(error) if error.is_parse() => "answer_invalid",
        _ => "connection_lost",
    }
}

/// The sender for each kind of destination.
pub struct Senders {
    /// Present where a Svix token is configured.
    pub svix: Option<SvixSender>,
    /// For endpoints.
    pub direct: Arc<DirectSender>,
    /// What records attempts.
    pub tracer: Tracer,
    /// The trace goes on to receivers.
    pub forward_traces: bool,
}

// By hand, so that what sends to Svix is the one box and not a box in a box.
impl Sender for Senders {
    fn send<'s, 'd, 'f>(
        &'s self,
        delivery: &'d Delivery,
    ) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'f>>
    where
        's: 'f,
        'd: 'f,
    {
        if delivery.trace.is_some() {
            return Box::pin(self.send_traced(delivery));
        }
        self.send_on(delivery, None)
    }

    fn retry_schedule(&self, destination: &Destination) -> RetrySchedule {
        match (destination, &self.svix) {
            (Destination::Svix { .. }, Some(svix)) => svix.retry_schedule().clone(),
            (Destination::Svix { .. }, None) => RetrySchedule::new(Vec::new()),
            (Destination::Endpoint { id }, _) => self.direct.retry_schedule(id),
        }
    }
}
