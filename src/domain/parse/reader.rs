//! From text to drafts: what the events of one body share, and the order in which an event is checked.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::attributes::Attributes;
use super::message::Carrier;
use super::rules::{self, Fault};
use super::{DEPTH_LIMIT, Draft, Invalid, Item, ParseError, ParseSettings, json};
use crate::domain::event::Fingerprint;
use crate::domain::trace::TraceContext;

/// Reads the events of one body.
pub(super) struct Reader<'a> {
    pub(super) settings: &'a ParseSettings,
    /// The tenant named by the transport.
    header_tenant: Option<&'a str>,
    /// The message around the events.
    pub(super) carrier: Option<Carrier<'a>>,
    /// The one tenant that all events belong to, whatever they say.
    pub(super) only_tenant: Option<&'a str>,
    /// The trace that the transport or the message names.
    pub(super) trace: Option<Arc<TraceContext>>,
    /// What the event before had: most batches are one tenant's, and of one source and type.
    last_tenant: Shared,
    last_source: Shared,
    last_type: Shared,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a ParseSettings, header_tenant: Option<&'a str>) -> Self {
        Self {
            settings,
            header_tenant,
            carrier: None,
            only_tenant: None,
            trace: None,
            last_tenant: Shared::default(),
            last_source: Shared::default(),
            last_type: Shared::default(),
        }
    }

    /// The same for the events of a message that may not live as long.
    pub(super) fn carried<'c>(self, carrier: Carrier<'c>) -> Reader<'c>
    where
        'a: 'c,
    {
        Reader { carrier: Some(carrier), ..self }
    }

    /// The elements of an array that is `text`, a part of `body`.
    pub(super) fn elements(&mut self, body: &Bytes, text: &str) -> Result<Vec<Item>, ParseError> {
        let limit = self.settings.max_batch_events;
        let mut items = Vec::new();
        let mut elements = json::Elements::new(text);
        while let Some(start) = elements.next_start()? {
            if items.len() == limit {
                return Err(ParseError::TooManyEvents { limit });
            }
            let (element, attributes) = self.leading_element(start).map_err(|_| elements.malformed())?;
            let raw = body.slice_ref(element.as_bytes());
            // The array around it is one level.
            let is_too_deep = json::is_deeper_than(element, DEPTH_LIMIT - 1);
            items.push(match attributes {
                // Nobody would send a message's other events again.
                _ if is_too_deep && self.carrier.is_some() => {
                    self.refused(raw, Fault::whole(ParseError::TooDeep.to_string()))
                }
                _ if is_too_deep => return Err(ParseError::TooDeep),
                Some(attributes) => self.item(raw, &attributes, items.len()),
                None => {
                    let detail = format!("expected an object, found {}", json::kind(element));
                    self.refused(raw, Fault::whole(detail))
                }
            });
            elements.pass(start, element);
        }
        Ok(items)
    }

    /// The element that `text` begins with, and its attributes where it is an object.
    fn leading_element<'t>(
        &self,
        text: &'t str,
    ) -> Result<(&'t str, Option<Attributes<'t>>), serde_json::Error> {
        if text.starts_with('{') {
            let (attributes, element) = Attributes::read_leading(text, &self.settings.tenant_attributes)?;
            Ok((element, Some(attributes)))
        } else {
            Ok((json::leading_value(text)?, None))
        }
    }

    /// The attributes of the one event that is `text`.
    pub(super) fn attributes<'t>(&self, text: &'t str) -> Result<Attributes<'t>, ParseError> {
        Attributes::read(text, &self.settings.tenant_attributes)
            .map_err(|error| json::malformed(text, &error))
    }

    /// The one event that is `text`, a part of `body`.
    pub(super) fn event(
        &mut self,
        body: &Bytes,
        text: &str,
        attributes: &Attributes<'_>,
    ) -> Result<Item, ParseError> {
        if json::is_deeper_than(text, DEPTH_LIMIT) {
            return Err(ParseError::TooDeep);
        }
        Ok(self.item(body.slice_ref(json::trim(text).as_bytes()), attributes, 0))
    }

    /// An element of which nothing is known but why it is no event.
    pub(super) fn refused(&mut self, raw: Bytes, fault: Fault) -> Item {
        Item { raw, result: Err(self.invalid(fault, &Attributes::default())) }
    }

    fn item(&mut self, raw: Bytes, attributes: &Attributes<'_>, index: usize) -> Item {
        let result = self.draft(&raw, attributes, index);
        Item { raw, result: result.map_err(|fault| self.invalid(fault, attributes)) }
    }

    /// The verdict on an element, with what is known of it all the same.
    fn invalid(&mut self, fault: Fault, attributes: &Attributes<'_>) -> Invalid {
        Invalid {
            pointer: fault.pointer,
            detail: fault.detail,
            id: attributes.id().ok().flatten().map(Cow::into_owned),
            tenant: self.tenant(attributes).ok().map(|tenant| tenant.as_ref().to_owned()),
        }
    }

    fn draft(&mut self, body: &Bytes, attributes: &Attributes<'_>, index: usize) -> Result<Draft, Fault> {
        let limit = self.settings.max_event_bytes;
        if body.len() > limit {
            let detail = format!("the event has {} bytes, more than the {limit} allowed", body.len());
            return Err(Fault::whole(detail));
        }
        attributes.check_once()?;
        let event_type = attributes.event_type()?;
        let id = match attributes.id()? {
            Some(id) => Some(Arc::from(id)),
            None if self.settings.require_id => return Err(Fault::at(attributes.id_name(), "is required")),
            None => self
                .carrier
                .as_ref()
                .map(|carrier| carrier.event_id(attributes.id_name(), index))
                .transpose()?
                .map(Into::into),
        };
        let source = attributes.source()?;
        attributes.check_context()?;
        let data = attributes.data()?;
        Ok(Draft {
            tenant: self.tenant(attributes)?,
            source: self.last_source.or(&source),
            id,
            fingerprint: Fingerprint::of(&event_type, data),
            event_type: self.last_type.or(&event_type),
            body: body.clone(),
            trace: attributes.trace().map(Arc::new).or_else(|| self.trace.clone()),
            data: data.map(|data| {
                let start = data.as_ptr().addr() - body.as_ptr().addr();
                start..start + data.len()
            }),
        })
    }

    /// Whose event it is: the one tenant there can be, else the event's own word, then the message's, then the transport's, then the default.
    fn tenant(&mut self, attributes: &Attributes<'_>) -> Result<Arc<str>, Fault> {
        let settings = self.settings;
        if let Some(tenant) = self.only_tenant {
            return Ok(self.last_tenant.or(tenant));
        }
        if let Some((place, raw)) = attributes.tenant() {
            let tenant = rules::name(&settings.tenant_attributes[place], raw)?;
            return Ok(self.last_tenant.or(&tenant));
        }
        if let Some(tenant) = self.carrier.as_ref().and_then(Carrier::tenant) {
            let tenant = tenant?.into_owned();
            return Ok(self.last_tenant.or(&tenant));
        }
        if let Some(tenant) = self.header_tenant {
            return match rules::why_not_a_name(tenant) {
                None => Ok(self.last_tenant.or(tenant)),
                Some(why) => Err(self.tenant_fault(format!("the header X-Tenant {why}"))),
            };
        }
        settings.default_tenant.clone().ok_or_else(|| self.no_tenant())
    }

    fn no_tenant(&self) -> Fault {
        let names: Vec<_> = self.settings.tenant_attributes.iter().map(|name| format!("`{name}`")).collect();
        let mut ways = vec!["the header X-Tenant".to_owned(), "a configured default tenant".to_owned()];
        if !names.is_empty() {
            ways.insert(0, format!("the attribute {}", names.join(" or ")));
        }
        self.tenant_fault(format!("no tenant: it comes from {}", ways.join(", ")))
    }

    /// A fault of the tenant, laid at the door of the attribute that should have named it.
    fn tenant_fault(&self, detail: String) -> Fault {
        let pointer = self.settings.tenant_attributes.first().map(|name| rules::pointer(name));
        Fault { pointer: pointer.unwrap_or_default(), detail }
    }
}

/// A text that mostly is the one before.
#[derive(Default)]
struct Shared(Arc<str>);

impl Shared {
    /// `text`, in the memory of the one before where it is the same.
    fn or(&mut self, text: &str) -> Arc<str> {
        if *self.0 != *text {
            self.0 = text.into();
        }
        Arc::clone(&self.0)
    }
}

impl Item {
    /// The same element with `fault` as its reason.
    pub(super) fn faulted(self, fault: Fault) -> Self {
        let (id, tenant) = match self.result {
            Ok(draft) => (draft.id.map(|id| id.to_string()), Some(draft.tenant.as_ref().to_owned())),
            Err(invalid) => (invalid.id, invalid.tenant),
        };
        let result = Err(Invalid { pointer: fault.pointer, detail: fault.detail, id, tenant });
        Self { raw: self.raw, result }
    }
}
