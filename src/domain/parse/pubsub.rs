//! The envelope of a Pub/Sub push delivery.
//!
//! `{"message":{"data":base64,"attributes":{…},"messageId":…},"subscription":…}`, as Google's documentation of
//! push subscriptions has it. Whatever is wrong in it becomes an item: Pub/Sub repeats what is not
//! acknowledged for as long as it keeps the message.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::attributes::Envelope;
use super::binary::{self, Composer};
use super::media_type::{Expected, MediaType, Opening};
use super::message::{Carrier, LazyIdentity, MessageIdentity};
use super::reader::Reader;
use super::rules::{self, Fault};
use super::{Batch, Item, ParseError, Shape, json};
use crate::domain::trace::TraceContext;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A JSON object's members: name and raw value.
type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// The events in `envelope`, which came in `body`.
pub(super) fn unpack<'a>(reader: Reader<'a>, body: &'a Bytes, envelope: &Envelope<'a>) -> Batch {
    let message = members(envelope.message);
    let raw_attributes = find(&message, "attributes");
    let attributes = raw_attributes.map(members).unwrap_or_default();
    let mut tenant_attributes = reader.settings.tenant_attributes.iter();
    let tenant = tenant_attributes.find_map(|name| Some(rules::name(name, find(&attributes, name)?)));
    let identity = identity(&message, envelope);
    let lazy = identity.as_ref().map(LazyIdentity::known);
    let mut reader = reader.carried(Carrier {
        identity: lazy.as_ref(),
        lacking: "the message's `messageId`",
        first_index: 0,
        tenant,
    });
    let texts = |name: &str| find(&attributes, name).and_then(json::unquote);
    let named = |name: &str| texts(name).or_else(|| texts(&format!("googclient_{name}")));
    if let Some(parent) = named("traceparent") {
        let trace = TraceContext::parse(&parent, named("tracestate").as_deref());
        reader.trace = trace.map(Arc::new).or(reader.trace);
    }
    let items = match decode(raw_attributes, find(&message, "data")) {
        Ok(data) => events(&mut reader, &attributes, body, &data),
        Err(fault) => vec![reader.refused(body.clone(), fault)],
    };
    Batch {
        shape: Shape::PubSubPush,
        attributes: raw_attributes.map(|raw| body.slice_ref(raw.as_bytes())),
        identity,
        items,
    }
}

/// What the message is called: an id that is its subscription's own.
fn identity(message: &Members<'_>, envelope: &Envelope<'_>) -> Option<MessageIdentity> {
    let id = |name| find(message, name).and_then(json::unquote).filter(|id| !id.is_empty());
    let id = ["messageId", "message_id"].into_iter().find_map(id)?;
    let subscription = json::unquote(envelope.subscription);
    let subscription = subscription.unwrap_or(Cow::Borrowed(envelope.subscription));
    Some(MessageIdentity::new("pubsub", [subscription.into_owned(), id.into_owned()]))
}

/// The members of the JSON object `text`: name and raw value. None where it is no object.
fn members(text: &str) -> Members<'_> {
    let mut found = Vec::new();
    // It is JSON already, so it either is an object or not.
    let _ = json::for_each_member(text, |name, value| {
        found.push((json::unquote(name).unwrap_or(Cow::Borrowed(name)), value));
    });
    found
}

/// The member `name`; a `null` counts as absent.
fn find<'a>(members: &Members<'a>, name: &str) -> Option<&'a str> {
    members.iter().find(|(known, value)| known == name && *value != json::NULL).map(|(_, value)| *value)
}

/// The message's data; empty where it has none.
fn decode(attributes: Option<&str>, data: Option<&str>) -> Result<Bytes, Fault> {
    if let Some(raw) = attributes.filter(|raw| !raw.starts_with('{')) {
        return Err(fault("attributes", &format!("must be an object, not {}", json::kind(raw))));
    }
    let Some(raw) = data else { return Ok(Bytes::new()) };
    let Some(text) = json::unquote(raw) else {
        return Err(fault("data", &format!("must be a string, not {}", json::kind(raw))));
    };
    match BASE64.decode(text.as_bytes()) {
        Ok(decoded) => Ok(Bytes::from(decoded)),
        Err(error) => Err(fault("data", &format!("is not base64: {error}"))),
    }
}

/// A fault of the message's member `name`; `why` goes on after its name.
fn fault(name: &str, why: &str) -> Fault {
    Fault { pointer: format!("/message/{name}"), detail: format!("the message's `{name}` {why}") }
}

/// The events in a message's decoded data. `body` is the envelope.
fn events(reader: &mut Reader<'_>, attributes: &Members<'_>, body: &Bytes, data: &Bytes) -> Vec<Item> {
    let raw = if data.is_empty() { body } else { data };
    let content_type = |name| find(attributes, name).and_then(json::unquote);
    let content_type = content_type("content-type").or_else(|| content_type("ce-datacontenttype"));
    let content_type = content_type.as_deref();
    let items = if is_binary(attributes, content_type) {
        let named = |(name, raw): &(Cow<'_, str>, &str)| {
            let name = name.strip_prefix(binary::PREFIX)?.to_owned();
            let value = rules::string(&name, raw).map(Cow::into_owned);
            Some((name, value))
        };
        let attributes = attributes.iter().filter_map(named);
        binary_event(reader, attributes, content_type, raw, data).map(|item| vec![item])
    } else if data.is_empty() {
        return vec![reader.refused(body.clone(), fault("data", "is missing"))];
    } else {
        structured_events(reader, data)
    };
    items.unwrap_or_else(|error| {
        vec![reader.refused(raw.clone(), Fault::whole(format!("the message's data: {error}")))]
    })
}

/// Whether a message's attributes are those of its event (Google's Pub/Sub binding for CloudEvents §3).
fn is_binary(attributes: &Members<'_>, content_type: Option<&str>) -> bool {
    let is_structured = content_type.is_some_and(|found| MediaType::parse(found).is_cloudevents());
    !is_structured && ["ce-specversion", "ce-type"].iter().any(|name| find(attributes, name).is_some())
}

/// The event whose attributes stand beside its data.
pub(super) fn binary_event(
    reader: &mut Reader<'_>,
    attributes: impl Iterator<Item = (String, Result<String, Fault>)>,
    content_type: Option<&str>,
    raw: &Bytes,
    data: &Bytes,
) -> Result<Item, ParseError> {
    let is_json = content_type.is_none_or(|found| MediaType::parse(found).is_json());
    if !data.is_empty() && !is_json {
        return Err(binary::not_json(content_type));
    }
    let data = binary::data(json::text(data)?)?;
    let mut composer = Composer::new(&reader.settings.tenant_attributes);
    for (name, value) in attributes {
        composer.attribute(&name, value);
    }
    composer.finish(reader, raw.clone(), content_type, data)
}

/// One event or an array of them.
pub(super) fn structured_events(reader: &mut Reader<'_>, data: &Bytes) -> Result<Vec<Item>, ParseError> {
    let text = json::text(data)?;
    match Expected::Any.opening(text)? {
        Opening::Array => reader.elements(data, text),
        Opening::Object => {
            let attributes = reader.attributes(text)?;
            Ok(vec![reader.event(data, text, &attributes)?])
        }
    }
}
