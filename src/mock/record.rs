//! What the mock remembers, and what it tells those who watch.

use std::sync::Arc;
use std::time::Instant;

use super::trouble::Trouble;

/// A message that the mock stored.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// The application it belongs to: its uid, or its id where it has none.
    pub app: String,
    /// Svix's own id, `msg_…`.
    pub id: String,
    /// The `eventId` it came with.
    pub event_id: Option<String>,
    /// The `eventType`.
    pub event_type: String,
    /// The payload, byte for byte as it was received (spaces around it dropped).
    pub payload: String,
    /// The `channels`, in the order they came.
    pub channels: Option<Vec<String>>,
    /// The `tags`, in the order they came.
    pub tags: Option<Vec<String>>,
    /// The `idempotency-key` header of the request that stored it.
    pub idempotency_key: Option<String>,
    /// When that request had arrived with its whole body.
    pub received_at: Instant,
    pub(super) application: usize,
    pub(super) created_at_micros: u64,
}

impl ReceivedMessage {
    /// The payload as JSON. A payload that was stored is always a JSON object; numbers that
    /// serde_json can't hold exactly are rounded, so compare `payload` where that matters.
    pub fn payload_json(&self) -> serde_json::Value {
        serde_json::from_str(&self.payload).unwrap_or_default()
    }
}

/// A POST of a message, whether it stored one or was refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedRequest {
    /// The application as it is named in the path: an id or a uid.
    pub app: String,
    /// The `eventId` in the body, as far as there was one to read.
    pub event_id: Option<String>,
    /// The `idempotency-key` header.
    pub idempotency_key: Option<String>,
    /// When it had arrived with its whole body.
    pub received_at: Instant,
    /// The status it was answered with. `None`: the connection was closed instead.
    pub status: Option<u16>,
    /// When it was answered, or will be where the answer is delayed. `None`: never.
    pub answered_at: Option<Instant>,
    /// The `Retry-After` header it was answered with.
    pub retry_after: Option<String>,
    /// The id of the message that it stored, if it did.
    pub stored: Option<String>,
    /// The answer was the one kept under its idempotency key.
    pub replayed: bool,
    /// The trouble it met; [`Trouble::Pass`] when it met none.
    pub trouble: Trouble,
}

/// A message that was asked to be sent to an endpoint again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resent {
    /// The application's uid, or its id where it has none.
    pub app: String,
    /// Svix's own id of the message.
    pub message_id: String,
    /// The message's `eventId`.
    pub event_id: Option<String>,
    /// The endpoint.
    pub endpoint: String,
    /// The `idempotency-key` header.
    pub idempotency_key: Option<String>,
}

/// What just happened, for those who watch. See [`MockSvix::subscribe`](super::MockSvix::subscribe).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MockEvent {
    /// An application was created, by a request.
    ApplicationCreated {
        /// Its uid, or its id where it has none.
        app: String,
    },
    /// A message was stored. When its answer was spoiled on purpose, the failure follows.
    Stored(Arc<ReceivedMessage>),
    /// A POST was answered from its idempotency key. Nothing new was stored.
    Replayed(Arc<ReceivedRequest>),
    /// A POST repeated an `eventId` and was answered 409.
    Conflict(Arc<ReceivedRequest>),
    /// A POST was answered 429.
    Throttled(Arc<ReceivedRequest>),
    /// A POST was answered anything else that is not Svix's own yes, or not at all.
    Failed(Arc<ReceivedRequest>),
}

impl MockEvent {
    /// What a POST that stored nothing new, or whose answer was spoiled, is told as. `None`: it
    /// was answered as its message deserves.
    pub(super) fn of_request(request: &Arc<ReceivedRequest>) -> Option<Self> {
        let request = Arc::clone(request);
        let honest = matches!(request.trouble, Trouble::Pass | Trouble::Slow(_));
        match request.status {
            Some(200..=299) if honest && request.replayed => Some(Self::Replayed(request)),
            Some(200..=299) if honest => None,
            Some(409) => Some(Self::Conflict(request)),
            Some(429) => Some(Self::Throttled(request)),
            _ => Some(Self::Failed(request)),
        }
    }
}
