//! The one ingest parser: what HTTP and the brokers hand in becomes events, or the reason why not.
//!
//! Pure: no I/O, no clock, no randomness; the caller makes the ids that are missing ([`Draft::into_event`])
//! and decides who may speak for which tenant. Three shapes are understood, by content type and content:
//! CloudEvents 1.0 (leniently; JSON, JSON batch and binary mode), the short form
//! `{"eventType","data"|"payload","eventId"?}`, and either of them in a Pub/Sub push envelope.
//!
//! Bytes are kept as they came: an event's body is a slice of what was received (or decoded), never text that
//! we wrote anew from a JSON value. Only binary mode, where no such text exists, has its attributes written
//! around the data, which is copied unchanged.

mod attributes;
mod binary;
pub(super) mod json;
mod media_type;
mod message;
mod pubsub;
mod reader;
mod rules;
#[cfg(test)]
mod tests;
mod unwrapped;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use self::media_type::{Expected, MediaType, Opening};
pub use self::message::{IncomingMessage, LazyIdentity, MessageIdentity, header_value, parse_message};
use self::reader::Reader;
pub(super) use self::rules::pointer;
pub(crate) use self::rules::why_not_a_name;
pub use self::unwrapped::parse_unwrapped;
use super::event::{Event, Fingerprint, Identity};
use super::trace::TraceContext;

/// How deep a body may be nested, the outermost array or object counted as one (`serde_json`'s own limit).
pub const DEPTH_LIMIT: usize = 128;

/// What the parser needs to know from the configuration.
#[derive(Debug, Clone)]
pub struct ParseSettings {
    /// Top-level attributes that may name the tenant, the most telling first. At most 64.
    pub tenant_attributes: Vec<String>,
    /// The tenant of events that name none.
    pub default_tenant: Option<Arc<str>>,
    /// Whether an event must bring its own id: one that could only be made or derived is invalid then.
    pub require_id: bool,
    /// Most events in one body.
    pub max_batch_events: usize,
    /// Longest event in bytes.
    pub max_event_bytes: usize,
}

/// A body on its way in, and what its transport said about it.
#[derive(Debug, Clone)]
pub struct Incoming<'a> {
    /// The body, decompressed.
    pub body: Bytes,
    /// Its `Content-Type`.
    pub content_type: Option<&'a str>,
    /// The headers; `ce-*` ones among them make it CloudEvents binary mode.
    pub headers: &'a HeaderMap,
    /// The tenant named by the transport (`X-Tenant`), for events that name none.
    pub tenant: Option<&'a str>,
}

/// What a body was, which decides how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One event.
    Single,
    /// An array of events: a pointer into the body begins with the element's index.
    Array,
    /// A Pub/Sub push envelope: always lenient, and acknowledged whatever it holds.
    PubSubPush,
}

/// What a body held.
#[derive(Debug, Clone)]
pub struct Batch {
    /// What the body was.
    pub shape: Shape,
    /// The attributes of a Pub/Sub message, as the JSON object they came in.
    pub attributes: Option<Bytes>,
    /// What a Pub/Sub message is called.
    pub identity: Option<MessageIdentity>,
    /// The elements in order. An empty array has none; a push envelope has at least one, unless it holds an
    /// empty array.
    pub items: Vec<Item>,
}

/// One element of a body: an event, or why it can never be one.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its bytes as they came: the element, the body in binary mode, the decoded data of a Pub/Sub message
    /// (the whole envelope where there was nothing to decode).
    pub raw: Bytes,
    /// The event or the reason.
    pub result: Result<Draft, Invalid>,
}

/// A well-formed event whose id may still have to be made.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Whose event it is. Not authorised yet.
    pub tenant: Arc<str>,
    /// The CloudEvents `source`, or empty.
    pub source: Arc<str>,
    /// The producer's id, or the one derived from a Pub/Sub message; `None` where one must be made.
    pub id: Option<Arc<str>>,
    /// The event's type.
    pub event_type: Arc<str>,
    /// What tells a duplicate from a conflict.
    pub fingerprint: Fingerprint,
    /// The whole event, a JSON object.
    pub body: Bytes,
    /// Where in `body` its data stands.
    pub data: Option<Range<usize>>,
    /// The trace it belongs to: its own word, else its message's or request's.
    pub trace: Option<Arc<TraceContext>>,
}

impl Draft {
    /// The event, with `make_id` asked for an id where it has none.
    pub fn into_event(self, make_id: impl FnOnce() -> String) -> Event {
        let id = self.id.unwrap_or_else(|| make_id().into());
        Event {
            identity: Identity { tenant: self.tenant, source: self.source, id },
            event_type: self.event_type,
            fingerprint: self.fingerprint,
            body: self.body,
            data: self.data,
            trace: self.trace,
        }
    }
}

/// Why an element can never be an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Invalid {
    /// JSON Pointer (RFC 6901) to what is wrong, relative to the element ([`Item::raw`]); empty for the element
    /// itself. In binary mode `/name` stands for the attribute of that name.
    pub pointer: String,
    /// What is wrong, in a sentence for the producer.
    pub detail: String,
    /// The element's id as far as it is known.
    pub id: Option<String>,
    /// The element's tenant as far as it is known.
    pub tenant: Option<String>,
}

/// Why a whole body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, not UTF-8, or neither an object nor an array where one is expected (400).
    #[error("{detail} at line {line} column {column}")]
    Malformed {
        /// What is wrong.
        detail: String,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault in bytes, from 1 (0 where a line ended too early).
        column: usize,
    },
    /// Nested deeper than [`DEPTH_LIMIT`] (400).
    #[error("nested deeper than {DEPTH_LIMIT} levels")]
    TooDeep,
    /// More events than [`ParseSettings::max_batch_events`] (413).
    #[error("more than {limit} events")]
    TooManyEvents {
        /// How many are allowed.
        limit: usize,
    },
    /// A content type that we don't read (415).
    #[error("{detail}")]
    UnsupportedType {
        /// What was found and what would do.
        detail: String,
    },
}

/// Reads a body.
///
/// Elements that can't be events come back as [`Item`]s with their reason: whether they spoil the batch is the
/// caller's business. Inside a Pub/Sub push envelope that goes for everything, since a refusal would only make
/// Pub/Sub send it again.
///
/// # Errors
///
/// [`ParseError`] where the body as a whole is beyond reading; never once it is known for a push envelope.
pub fn parse(incoming: &Incoming<'_>, settings: &ParseSettings) -> Result<Batch, ParseError> {
    let mut reader = Reader::new(settings, incoming.tenant);
    reader.trace = trace_of(|name| incoming.headers.get(name)?.to_str().ok());
    let media_type = incoming.content_type.map(MediaType::parse);
    // CloudEvents HTTP binding §3: a CloudEvents content type wins over ce- headers.
    let is_structured = media_type.as_ref().is_some_and(MediaType::is_cloudevents);
    if !is_structured && binary::is_announced(incoming.headers) {
        let item = binary::from_http(&mut reader, incoming, media_type.as_ref())?;
        return Ok(Batch::new(Shape::Single, vec![item]));
    }
    let expected = Expected::from_type(media_type.as_ref())?;
    let text = json::text(&incoming.body)?;
    match expected.opening(text)? {
        Opening::Array => Ok(Batch::new(Shape::Array, reader.elements(&incoming.body, text)?)),
        Opening::Object => {
            let attributes = reader.attributes(text)?;
            match attributes.envelope() {
                Some(envelope) if expected == Expected::Any => {
                    Ok(pubsub::unpack(reader, &incoming.body, &envelope))
                }
                _ => {
                    let item = reader.event(&incoming.body, text, &attributes)?;
                    Ok(Batch::new(Shape::Single, vec![item]))
                }
            }
        }
    }
}

/// The trace that a transport names in `traceparent` and `tracestate`.
fn trace_of<'a>(find: impl Fn(&str) -> Option<&'a str>) -> Option<Arc<TraceContext>> {
    TraceContext::parse(find("traceparent")?, find("tracestate")).map(Arc::new)
}

impl Batch {
    fn new(shape: Shape, items: Vec<Item>) -> Self {
        Self { shape, attributes: None, identity: None, items }
    }
}
