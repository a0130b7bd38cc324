//! A broker's message: events, and what the broker says beside them.
//!
//! As with a push envelope, whatever is wrong becomes an item: a broker repeats what is not acknowledged.

use std::borrow::Cow;
use std::cell::OnceCell;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::media_type::MediaType;
use super::pubsub::{binary_event, structured_events};
use super::reader::Reader;
use super::rules::{self, Fault};
use super::{Item, ParseSettings, binary, trace_of};
use crate::domain::key::{derived_event_id, prefixed_hex};

/// What marks an attribute of the event among a message's: the bindings of CloudEvents for NATS (and HTTP), Kafka and
/// AMQP (with either separator). Redis and SQS have no binding; all of these may be used there.
const PREFIXES: [&str; 4] = ["ce-", "ce_", "cloudEvents:", "cloudEvents_"];

/// The attribute that names the tenant of events that name none, as `X-Tenant` does over HTTP.
const TENANT_ATTRIBUTE: &str = "x-tenant";

/// What no other message was ever or will be called, and what it is called again when it is delivered again. Ids of
/// events that have none are derived from it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct MessageIdentity(Vec<String>);

impl MessageIdentity {
    /// The message that `scope` (`nats`, `pubsub` …), where names may be used anew, calls by `names`.
    pub fn new(scope: &str, names: impl IntoIterator<Item = String>) -> Self {
        Self(std::iter::once(scope.to_owned()).chain(names).collect())
    }

    /// The same with its bytes counted in: a name that was given to another message all the same (a stream that was
    /// deleted and made anew, a producer that counts from 1 again) then does not make one event of two.
    #[must_use]
    pub fn sealed(mut self, body: &[u8]) -> Self {
        self.0.push(prefixed_hex("", &Sha256::digest(body)));
        self
    }

    /// The id of the event at `index` in it.
    pub fn event_id(&self, index: usize) -> String {
        let mut names = self.0.iter().map(String::as_str);
        let scope = names.next().unwrap_or_default();
        derived_event_id(scope, &names.collect::<Vec<_>>(), index)
    }
}

/// A broker's message on its way in.
#[derive(Debug, Clone)]
pub struct IncomingMessage<'a> {
    /// Its bytes: one event or an array of them, or the data of an event in binary mode.
    pub body: Bytes,
    /// What stands beside them: headers, properties, attributes or fields, each with its name.
    pub attributes: &'a [(String, String)],
    /// The content type, where the broker has a place of its own for it; else the attribute `content-type` counts.
    pub content_type: Option<&'a str>,
    /// What the message is called, sealed; `None` where nothing is known that only this message is called.
    pub identity: Option<&'a LazyIdentity<'a>>,
    /// The place of the first event in the message: 0, unless it is a part of one.
    pub first_index: usize,
    /// The one tenant that its events belong to, whatever they say.
    pub tenant: Option<&'a str>,
}

/// An identity that is sealed once somebody asks for it: most events bring an id of their own.
#[derive(Debug)]
pub struct LazyIdentity<'a> {
    name: &'a MessageIdentity,
    /// The bytes that are still to be counted in.
    body: Option<&'a [u8]>,
    sealed: OnceCell<MessageIdentity>,
}

impl<'a> LazyIdentity<'a> {
    /// `name`, to be sealed with `body`.
    pub fn of(name: &'a MessageIdentity, body: &'a [u8]) -> Self {
        Self { name, body: Some(body), sealed: OnceCell::new() }
    }

    /// `name` as it is: it was sealed before.
    pub fn known(name: &'a MessageIdentity) -> Self {
        Self { name, body: None, sealed: OnceCell::new() }
    }

    /// The identity.
    pub fn get(&self) -> &MessageIdentity {
        match self.body {
            None => self.name,
            Some(body) => self.sealed.get_or_init(|| self.name.clone().sealed(body)),
        }
    }
}

/// What the events of a message may fall back on.
pub(super) struct Carrier<'a> {
    pub(super) identity: Option<&'a LazyIdentity<'a>>,
    /// What is missing where there is no identity.
    pub(super) lacking: &'static str,
    /// The place of the first event.
    pub(super) first_index: usize,
    /// The first of the tenant attributes that the message has.
    pub(super) tenant: Option<Result<Cow<'a, str>, Fault>>,
}

impl Carrier<'_> {
    /// The id of the event at `index` that has none of its own, which it would have in the attribute `name`.
    pub(super) fn event_id(&self, name: &str, index: usize) -> Result<String, Fault> {
        match self.identity {
            Some(identity) => Ok(identity.get().event_id(self.first_index + index)),
            None => {
                Err(Fault::at(name, &format!("is missing, and so is {} to derive it from", self.lacking)))
            }
        }
    }

    /// The tenant that the message's attributes name.
    pub(super) fn tenant(&self) -> Option<Result<Cow<'_, str>, Fault>> {
        let tenant = self.tenant.as_ref()?;
        Some(match tenant {
            Ok(tenant) => Ok(Cow::Borrowed(tenant)),
            Err(fault) => {
                let detail = format!("the message attribute {}", fault.detail);
                Err(Fault { detail, pointer: fault.pointer.clone() })
            }
        })
    }
}

/// The events in a broker's message, or why there are none: at least one item, unless it is an empty array.
///
/// The media type decides whether the event's attributes stand beside its data (binary mode); otherwise the bytes
/// speak for themselves, since brokers' clients seldom say what they send.
pub fn parse_message(message: &IncomingMessage<'_>, settings: &ParseSettings) -> Vec<Item> {
    let find = |wanted: &str| {
        let mut attributes = message.attributes.iter();
        attributes.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
    };
    let mut reader = Reader::new(settings, find(TENANT_ATTRIBUTE));
    reader.only_tenant = message.tenant;
    // The second is what Google's clients call it.
    let named = |name: &str| find(name).or_else(|| find(&format!("googclient_{name}")));
    reader.trace = trace_of(named);
    let tenant = settings.tenant_attributes.iter().find_map(|name| Some((name, find(name)?)));
    reader.carrier = Some(Carrier {
        identity: message.identity,
        lacking: "a name of the message (`message_id` on RabbitMQ)",
        first_index: message.first_index,
        tenant: tenant.map(|(name, value)| match rules::why_not_a_name(value) {
            None => Ok(Cow::Borrowed(value)),
            Some(why) => Err(Fault::at(name, why)),
        }),
    });
    let content_type = message.content_type.or_else(|| find("content-type"));
    let event_attributes = || {
        let named =
            |(name, value): &'_ (String, String)| Some((event_attribute(name)?.to_owned(), value.clone()));
        message.attributes.iter().filter_map(named)
    };
    let is_structured = content_type.is_some_and(|found| MediaType::parse(found).is_cloudevents());
    let is_binary = !is_structured
        && message
            .attributes
            .iter()
            .any(|(name, _)| matches!(event_attribute(name), Some("specversion" | "type")));
    let items = if is_binary {
        let own = || event_attributes().find(|(name, _)| name == "datacontenttype").map(|(_, value)| value);
        let content_type = content_type.map(str::to_owned).or_else(own);
        let attributes = event_attributes().map(|(name, value)| (name, Ok(value)));
        binary_event(&mut reader, attributes, content_type.as_deref(), &message.body, &message.body)
            .map(|item| vec![item])
    } else {
        structured_events(&mut reader, &message.body)
    };
    items.unwrap_or_else(|error| vec![reader.refused(message.body.clone(), Fault::whole(error.to_string()))])
}

/// The event's attribute that a message's attribute stands for.
fn event_attribute(name: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| {
        let (start, rest) = name.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then_some(rest)
    })
}

/// The value of a `ce-` header as it is written over HTTP and NATS; `None` where it is not UTF-8.
pub fn header_value(encoded: &str) -> Option<String> {
    binary::decode_header(encoded.as_bytes())
}
