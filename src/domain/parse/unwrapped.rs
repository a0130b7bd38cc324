//! The body of a Pub/Sub push without its envelope (payload unwrapping), or what should have been a push.
//!
//! A subscription that unwraps sends the message's data as the body and, where it writes metadata, the message's
//! attributes and its id as headers. As with an envelope, whatever is wrong becomes an item.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value};

use super::message::{IncomingMessage, LazyIdentity, MessageIdentity, parse_message};
use super::{Batch, Incoming, ParseSettings, Shape, binary};

/// What Google's headers begin with.
const PREFIX: &str = "x-goog-pubsub-";

/// The events in a push that has no envelope, or why there are none.
///
/// Events without an id need the metadata to have one derived: with a made one, each repetition would be a new event.
pub fn parse_unwrapped(incoming: &Incoming<'_>, settings: &ParseSettings) -> Batch {
    let attributes = attributes(incoming.headers, settings);
    let find = |wanted: &str| {
        let mut all = attributes.iter();
        all.find(|(name, _)| name.strip_prefix(PREFIX) == Some(wanted)).map(|(_, value)| value.clone())
    };
    let id = find("message-id").filter(|id| !id.is_empty());
    let identity =
        id.map(|id| MessageIdentity::new("pubsub", [find("subscription-name").unwrap_or_default(), id]));
    let lazy = identity.as_ref().map(LazyIdentity::known);
    let message = IncomingMessage {
        body: incoming.body.clone(),
        attributes: &attributes,
        content_type: incoming.content_type,
        identity: lazy.as_ref(),
        first_index: 0,
        tenant: None,
    };
    let items = parse_message(&message, settings);
    let object: Map<String, Value> =
        attributes.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    Batch {
        shape: Shape::PubSubPush,
        attributes: Some(Bytes::from(Value::Object(object).to_string())),
        identity,
        items,
    }
}

/// The headers that are the message's: Google's, the event's and its tenant's. Others may hold credentials, and these
/// are kept with what is rejected.
fn attributes(headers: &HeaderMap, settings: &ParseSettings) -> Vec<(String, String)> {
    let is_tenant = |name: &str| settings.tenant_attributes.iter().any(|of| of.eq_ignore_ascii_case(name));
    let is_messages = |name: &str| {
        name.starts_with(PREFIX)
            || name.starts_with(binary::PREFIX)
            || ["content-type", "x-tenant"].contains(&name)
            || is_tenant(name)
    };
    let mut attributes = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| is_messages(name.as_str())) {
        let text = match name.as_str().starts_with(binary::PREFIX) {
            true => binary::decode_header(value.as_bytes()),
            false => None,
        };
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(value.as_bytes()).into_owned());
        attributes.push((name.as_str().to_owned(), text));
    }
    attributes
}
