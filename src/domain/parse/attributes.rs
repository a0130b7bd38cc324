//! The attributes of one event, found in one pass over its text and still raw JSON.

use std::borrow::Cow;

use super::json;
use super::rules::{self, Fault};
use crate::domain::trace::TraceContext;

/// What an event says at its top level, as far as we act upon it.
#[derive(Debug, Default)]
pub(super) struct Attributes<'a> {
    id: Option<&'a str>,
    event_type: Option<&'a str>,
    source: Option<&'a str>,
    specversion: Option<&'a str>,
    time: Option<&'a str>,
    data: Option<&'a str>,
    data_base64: Option<&'a str>,
    /// The short form's `eventType`, `eventId` and `payload`.
    short_type: Option<&'a str>,
    short_id: Option<&'a str>,
    payload: Option<&'a str>,
    /// A push envelope's two members.
    message: Option<&'a str>,
    subscription: Option<&'a str>,
    /// CloudEvents' extension for distributed tracing.
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
    /// The tenant attribute that counts: its place among the configured ones, and its value.
    tenant: Option<(usize, &'a str)>,
    /// One bit for each tenant attribute that was there.
    tenants_seen: u64,
    /// An attribute that we act upon and that is there twice.
    twice: Option<Cow<'a, str>>,
}

/// A Pub/Sub push envelope, its two members still raw.
pub(super) struct Envelope<'a> {
    /// The message, an object.
    pub(super) message: &'a str,
    /// The subscription, a string.
    pub(super) subscription: &'a str,
}

impl<'a> Attributes<'a> {
    /// Reads the JSON object `text`. Fails where it is none.
    pub(super) fn read(text: &'a str, tenant_attributes: &[String]) -> Result<Self, serde_json::Error> {
        let mut attributes = Self::default();
        json::for_each_member(text, attributes.noting(tenant_attributes))?;
        Ok(attributes)
    }

    /// Reads the JSON object that `text` begins with, and returns its text too.
    pub(super) fn read_leading(
        text: &'a str,
        tenant_attributes: &[String],
    ) -> Result<(Self, &'a str), serde_json::Error> {
        let mut attributes = Self::default();
        let object = json::for_each_leading_member(text, attributes.noting(tenant_attributes))?;
        Ok((attributes, object))
    }

    fn noting<'s>(&'s mut self, tenant_attributes: &'s [String]) -> impl FnMut(&'a str, &'a str) + 's {
        |name, value| {
            // A name that is no Unicode is none of ours.
            if let Some(name) = json::unquote(name) {
                self.note(name, value, tenant_attributes);
            }
        }
    }

    fn note(&mut self, name: Cow<'a, str>, value: &'a str, tenant_attributes: &[String]) {
        let mut is_repeated = match self.slot(&name) {
            Some(slot) => slot.replace(value).is_some(),
            None => false,
        };
        if let Some(place) = tenant_attributes.iter().position(|attribute| *attribute == name) {
            let bit = u32::try_from(place).ok().and_then(|place| 1_u64.checked_shl(place)).unwrap_or(0);
            is_repeated |= self.tenants_seen & bit != 0;
            self.tenants_seen |= bit;
            if value != json::NULL && self.tenant.is_none_or(|(best, _)| place < best) {
                self.tenant = Some((place, value));
            }
        }
        match &*name {
            // Not acted upon in an event, where they may be anything.
            "message" => self.message = Some(value),
            "subscription" => self.subscription = Some(value),
            "traceparent" => self.traceparent = Some(value),
            "tracestate" => self.tracestate = Some(value),
            _ => {}
        }
        if is_repeated && self.twice.is_none() {
            self.twice = Some(name);
        }
    }

    fn slot(&mut self, name: &str) -> Option<&mut Option<&'a str>> {
        Some(match name {
            "id" => &mut self.id,
            "type" => &mut self.event_type,
            "source" => &mut self.source,
            "specversion" => &mut self.specversion,
            "time" => &mut self.time,
            "data" => &mut self.data,
            "data_base64" => &mut self.data_base64,
            "eventType" => &mut self.short_type,
            "eventId" => &mut self.short_id,
            "payload" => &mut self.payload,
            _ => return None,
        })
    }

    /// The envelope, where it is one: an object `message` and a string `subscription`, but no type.
    pub(super) fn envelope(&self) -> Option<Envelope<'a>> {
        let has_type = set(self.event_type).or(set(self.short_type)).is_some();
        let message = self.message.filter(|raw| raw.starts_with('{'))?;
        let subscription = self.subscription.filter(|raw| raw.starts_with('"'))?;
        (!has_type).then_some(Envelope { message, subscription })
    }

    /// Fails where an attribute is there twice: readers differ in which one counts.
    pub(super) fn check_once(&self) -> Result<(), Fault> {
        match &self.twice {
            Some(name) => Err(Fault::at(name, "appears twice")),
            None => Ok(()),
        }
    }

    /// Fails where `specversion` or `time` of a CloudEvent is not what CloudEvents 1.0 says.
    pub(super) fn check_context(&self) -> Result<(), Fault> {
        if self.is_short() {
            return Ok(());
        }
        if let Some(raw) = set(self.specversion)
            && !rules::string("specversion", raw)?.starts_with("1.")
        {
            return Err(Fault::at("specversion", "must be 1.0"));
        }
        if let Some(raw) = set(self.time)
            && !rules::is_timestamp(&rules::string("time", raw)?)
        {
            return Err(Fault::at("time", "must be a timestamp by RFC 3339, e.g. 2026-01-31T23:59:59Z"));
        }
        Ok(())
    }

    /// The type.
    pub(super) fn event_type(&self) -> Result<Cow<'a, str>, Fault> {
        let (name, raw) =
            if self.is_short() { ("eventType", self.short_type) } else { ("type", self.event_type) };
        match set(raw) {
            Some(raw) => rules::name(name, raw),
            None => Err(Fault::at(name, "is missing (`eventType` in the short form)")),
        }
    }

    /// The id, where there is one.
    pub(super) fn id(&self) -> Result<Option<Cow<'a, str>>, Fault> {
        let (name, raw) = self.raw_id();
        raw.map(|raw| rules::name(name, raw)).transpose()
    }

    /// The name of the attribute that has the id or should have it.
    pub(super) fn id_name(&self) -> &'static str {
        self.raw_id().0
    }

    /// Where the id stands. The short form takes `id` too: an id that is there must not be lost.
    fn raw_id(&self) -> (&'static str, Option<&'a str>) {
        match (set(self.short_id), set(self.id)) {
            (short, None) | (short @ Some(_), _) if self.is_short() => ("eventId", short),
            (_, id) => ("id", id),
        }
    }

    /// The source; empty where there is none.
    pub(super) fn source(&self) -> Result<Cow<'a, str>, Fault> {
        set(self.source).map_or(Ok(Cow::Borrowed("")), |raw| rules::name_or_empty("source", raw))
    }

    /// The tenant attribute that counts: its place among the configured ones, and its value.
    pub(super) fn tenant(&self) -> Option<(usize, &'a str)> {
        self.tenant
    }

    /// The trace that it names; one that can't be read is none.
    pub(super) fn trace(&self) -> Option<TraceContext> {
        let parent = json::unquote(self.traceparent?)?;
        let state = self.tracestate.and_then(json::unquote);
        TraceContext::parse(&parent, state.as_deref())
    }

    /// The data as it stands in the text.
    pub(super) fn data(&self) -> Result<Option<&'a str>, Fault> {
        let payload = self.payload.filter(|_| self.is_short());
        let mut given = [("data", self.data), ("data_base64", self.data_base64), ("payload", payload)]
            .into_iter()
            .filter_map(|(name, raw)| Some((name, set(raw)?)));
        let Some((name, raw)) = given.next() else {
            // `null` is data as well where nothing else is.
            return Ok(self.data.or(payload));
        };
        if let Some((other, _)) = given.next() {
            return Err(Fault::at(other, &format!("can't stand next to `{name}`")));
        }
        if name == "data_base64" && !raw.starts_with('"') {
            return Err(Fault::at(name, &format!("must be a string, not {}", json::kind(raw))));
        }
        Ok(Some(raw))
    }

    /// Whether it is the short form.
    fn is_short(&self) -> bool {
        set(self.event_type).is_none() && set(self.short_type).is_some()
    }
}

/// An attribute's value; `null` counts as absent (CloudEvents JSON format §2.2).
fn set(raw: Option<&str>) -> Option<&str> {
    raw.filter(|raw| *raw != json::NULL)
}
