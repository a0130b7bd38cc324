//! The envelope of a Pub/Sub push delivery.
//!
//! `{"message":{"data":base64,"attributes":{…},"messageId":…},"subscription":…}`, as Google's documentation of
//! push subscriptions has it. Whatever is wrong in it becomes an item: Pub/Sub repeats what is not
//! acknowledged for as long as it keeps the message.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use super::attributes::Envelope;
use super::binary::{self, Composer};
use super::media_type::{Expected, MediaType, Opening};
use super::reader::Reader;
use super::rules::{self, Fault};
use super::{Batch, Item, ParseError, Shape, json};
use crate::domain::key::derived_event_id;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A JSON object's members: name and raw value.
type Members<'a> = Vec<(Cow<'a, str>, &'a str)>;

/// What the events of a message may fall back on.
pub(super) struct Push<'a> {
    subscription: Cow<'a, str>,
    message_id: Option<Cow<'a, str>>,
    /// The first of the tenant attributes that the message has: its name and its raw value.
    tenant: Option<(&'a str, &'a str)>,
}

impl<'a> Push<'a> {
    /// The id of the event at `index` that has none of its own, which it would have in the attribute `name`.
    pub(super) fn event_id(&self, name: &str, index: usize) -> Result<String, Fault> {
        match &self.message_id {
            Some(message_id) => Ok(derived_event_id("pubsub", &[&self.subscription, message_id], index)),
            None => Err(Fault::at(name, "is missing, and so is the message's `messageId` to derive it from")),
        }
    }

    /// The tenant that the message's attributes name.
    pub(super) fn tenant(&self) -> Option<Result<Cow<'a, str>, Fault>> {
        let (name, raw) = self.tenant?;
        let tenant = rules::name(name, raw);
        Some(tenant.map_err(|fault| {
            let detail = format!("the message attribute {}", fault.detail);
            Fault { detail, ..fault }
        }))
    }
}

/// The events in `envelope`, which came in `body`.
pub(super) fn unpack<'a>(mut reader: Reader<'a>, body: &'a Bytes, envelope: &Envelope<'a>) -> Batch {
    let message = members(envelope.message);
    let raw_attributes = find(&message, "attributes");
    let attributes = raw_attributes.map(members).unwrap_or_default();
    let mut tenant_attributes = reader.settings.tenant_attributes.iter();
    reader.push = Some(Push {
        subscription: json::unquote(envelope.subscription).unwrap_or(Cow::Borrowed(envelope.subscription)),
        message_id: ["messageId", "message_id"]
            .into_iter()
            .find_map(|name| find(&message, name).and_then(json::unquote).filter(|id| !id.is_empty())),
        tenant: tenant_attributes.find_map(|name| Some((name.as_str(), find(&attributes, name)?))),
    });
    let items = match decode(raw_attributes, find(&message, "data")) {
        Ok(data) => events(&mut reader, &attributes, body, &data),
        Err(fault) => vec![reader.refused(body.clone(), fault)],
    };
    Batch {
        shape: Shape::PubSubPush,
        attributes: raw_attributes.map(|raw| body.slice_ref(raw.as_bytes())),
        items,
    }
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
fn binary_event(
    reader: &mut Reader<'_>,
    attributes: &Members<'_>,
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
    for (name, raw) in attributes {
        if let Some(name) = name.strip_prefix(binary::PREFIX) {
            composer.attribute(name, rules::string(name, raw).map(Cow::into_owned));
        }
    }
    composer.finish(reader, raw.clone(), content_type, data)
}

/// One event or an array of them.
fn structured_events(reader: &mut Reader<'_>, data: &Bytes) -> Result<Vec<Item>, ParseError> {
    let text = json::text(data)?;
    match Expected::Any.opening(text)? {
        Opening::Array => reader.elements(data, text),
        Opening::Object => {
            let attributes = reader.attributes(text)?;
            Ok(vec![reader.event(data, text, &attributes)?])
        }
    }
}
