//! CloudEvents binary mode: attributes beside the data, in HTTP headers or Pub/Sub attributes.
//!
//! The attributes are written around the data as one JSON object, which is then read like any other event.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::value::RawValue;

use super::media_type::MediaType;
use super::reader::Reader;
use super::rules::Fault;
use super::{Incoming, Item, ParseError, json};

/// What marks an attribute beside the data (CloudEvents HTTP binding §3.1.3.1).
pub(super) const PREFIX: &str = "ce-";

/// Most attributes beside the data: what Pub/Sub allows a message, and an HTTP server a request.
const ATTRIBUTE_LIMIT: usize = 100;

/// Whether the headers announce binary mode.
pub(super) fn is_announced(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion") || headers.contains_key("ce-type")
}

/// The event of an HTTP request in binary mode (CloudEvents HTTP binding §3.1).
pub(super) fn from_http(
    reader: &mut Reader<'_>,
    incoming: &Incoming<'_>,
    media_type: Option<&MediaType<'_>>,
) -> Result<Item, ParseError> {
    if !incoming.body.is_empty() && !media_type.is_some_and(MediaType::is_json) {
        return Err(not_json(incoming.content_type));
    }
    let data = data(json::text(&incoming.body)?)?;
    let mut composer = Composer::new(&reader.settings.tenant_attributes);
    for (name, value) in incoming.headers {
        if let Some(name) = name.as_str().strip_prefix(PREFIX) {
            let value = decode_header(value.as_bytes()).ok_or_else(|| Fault::at(name, "is not UTF-8"));
            composer.attribute(name, value);
        }
    }
    composer.finish(reader, incoming.body.clone(), incoming.content_type, data)
}

/// Data of a type that we don't relay.
pub(super) fn not_json(content_type: Option<&str>) -> ParseError {
    let found = content_type.map_or("no Content-Type".to_owned(), |found| format!("`{found}`"));
    let detail = format!("{found}: the data of an event must be JSON in UTF-8 (application/json or +json)");
    ParseError::UnsupportedType { detail }
}

/// The one JSON value in `text`; `None` where there is none.
pub(super) fn data(text: &str) -> Result<Option<&str>, ParseError> {
    if json::trim(text).is_empty() {
        return Ok(None);
    }
    match serde_json::from_str::<&RawValue>(text) {
        Ok(raw) => Ok(Some(raw.get())),
        Err(error) => Err(json::malformed(text, &error)),
    }
}

/// Writes an event's attributes around its data.
pub(super) struct Composer<'a> {
    tenant_attributes: &'a [String],
    attributes: Vec<(String, String)>,
    /// The first thing that was wrong. The rest is still read, so that the verdict can name id and tenant.
    fault: Option<Fault>,
}

impl<'a> Composer<'a> {
    pub(super) fn new(tenant_attributes: &'a [String]) -> Self {
        Self { tenant_attributes, attributes: Vec::new(), fault: None }
    }

    /// Adds an attribute, or what is wrong with its value.
    pub(super) fn attribute(&mut self, name: &str, value: Result<String, Fault>) {
        // Headers come in lower case, tenant attributes may be configured as `tenantId`.
        let mut configured = self.tenant_attributes.iter();
        let name =
            configured.find(|attribute| attribute.eq_ignore_ascii_case(name)).map_or(name, |found| found);
        let fault = match value {
            _ if matches!(name, "data" | "data_base64") => {
                Fault::at(name, "can't be an attribute: it stands in the body")
            }
            _ if self.attributes.len() == ATTRIBUTE_LIMIT => {
                Fault::whole(format!("more than {ATTRIBUTE_LIMIT} attributes beside the data"))
            }
            _ if self.attributes.iter().any(|(known, _)| known == name) => Fault::at(name, "appears twice"),
            Ok(value) => return self.attributes.push((name.to_owned(), value)),
            Err(fault) => fault,
        };
        self.fault.get_or_insert(fault);
    }

    /// The event: the attributes, and `data` of the type `content_type`. `raw` is what came.
    pub(super) fn finish(
        self,
        reader: &mut Reader<'_>,
        raw: Bytes,
        content_type: Option<&str>,
        data: Option<&str>,
    ) -> Result<Item, ParseError> {
        let body = Bytes::from(self.compose(content_type, data));
        let text = json::text(&body)?;
        let attributes = reader.attributes(text)?;
        let item = Item { raw, ..reader.event(&body, text, &attributes)? };
        Ok(match self.fault {
            Some(fault) => item.faulted(fault),
            None => item,
        })
    }

    fn compose(&self, content_type: Option<&str>, data: Option<&str>) -> String {
        let mut out = String::with_capacity(256 + data.map_or(0, str::len));
        out.push_str(r#"{"specversion":"#);
        let specversion = self.attributes.iter().find(|(name, _)| name == "specversion");
        json::quote(&mut out, specversion.map_or("1.0", |(_, value)| value));
        let mut member = |name: &str, value: &str| {
            out.push(',');
            json::quote(&mut out, name);
            out.push(':');
            json::quote(&mut out, value);
        };
        // HTTP binding §3.1.1: the content type is the datacontenttype, and no attribute may say otherwise.
        let content_type = content_type.filter(|_| data.is_some());
        for (name, value) in &self.attributes {
            let is_written = name == "specversion" || (name == "datacontenttype" && content_type.is_some());
            if !is_written {
                member(name, value);
            }
        }
        if let Some(content_type) = content_type {
            member("datacontenttype", content_type);
        }
        if let Some(data) = data {
            out.push_str(r#","data":"#);
            out.push_str(data);
        }
        out.push('}');
        out
    }
}

/// The value of a `ce-` header (CloudEvents HTTP binding §3.1.3.2): freed of double quotes, then of one round
/// of percent-encoding. A percent sign that encodes nothing stands for itself.
/// `None` where that is not UTF-8.
pub(super) fn decode_header(value: &[u8]) -> Option<String> {
    let encoded = match value.trim_ascii() {
        [b'"', quoted @ .., b'"'] => Cow::Owned(without_backslashes(quoted)),
        plain => Cow::Borrowed(plain),
    };
    String::from_utf8(percent_decode(&encoded)).ok()
}

/// The content of a quoted string (RFC 9110 §5.6.4).
fn without_backslashes(quoted: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        let byte = if *byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte };
        plain.push(*byte);
    }
    plain
}

fn percent_decode(encoded: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                decoded.push(hex(*high) << 4 | hex(*low));
                rest = after;
            }
            _ => {
                decoded.push(*byte);
                rest = tail;
            }
        }
    }
    decoded
}

/// The value of an ASCII hex digit.
const fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}
