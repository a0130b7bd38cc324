//! An event: what happened, to whom it belongs, and the bytes that say so.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// The ledger's own number of an event: 64-bit and time-ordered (see [`crate::domain::sequence`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventSeq(pub i64);

/// What makes two arrivals the same event: tenant, source and id. `source` is empty where the producer gave none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Whose event it is.
    pub tenant: Arc<str>,
    /// The CloudEvents `source`, or empty.
    pub source: String,
    /// The producer's id, or the one made for it.
    pub id: String,
}

/// SHA-256 over the type and the `data` text without insignificant whitespace.
///
/// Two arrivals under one [`Identity`] are duplicates when their fingerprints are equal and conflict otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of an event type and its `data` as JSON text; `None` where the event has no data.
    ///
    /// `data` must be valid JSON: whitespace outside of strings is dropped, everything else counts as it stands
    /// (`1.10` differs from `1.1`, and key order matters).
    pub fn of(event_type: &str, data: Option<&str>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update((event_type.len() as u64).to_be_bytes());
        hasher.update(event_type);
        // Presence is part of it: no data and an empty text must not meet.
        hasher.update([u8::from(data.is_some())]);
        for piece in significant(data.unwrap_or_default()) {
            hasher.update(piece);
        }
        Self(hasher.finalize().into())
    }
}

/// The runs of a JSON text between its insignificant whitespace (RFC 8259 §2).
fn significant(json: &str) -> impl Iterator<Item = &[u8]> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && is_space(bytes[at]) {
            at += 1;
        }
        let start = at;
        let mut in_string = false;
        while at < bytes.len() {
            match bytes[at] {
                b'\\' if in_string => at += 1,
                b'"' => in_string = !in_string,
                byte if !in_string && is_space(byte) => break,
                _ => {}
            }
            at += 1;
        }
        at = at.min(bytes.len());
        (start < at).then(|| &bytes[start..at])
    })
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// A well-formed event on its way into the ledger.
#[derive(Debug, Clone)]
pub struct Event {
    /// Tenant, source and id.
    pub identity: Identity,
    /// The event's type, e.g. `order.created`.
    pub event_type: String,
    /// What tells a duplicate from a conflict.
    pub fingerprint: Fingerprint,
    /// The whole event as it came, byte for byte: a JSON object.
    pub body: Bytes,
    /// Where in `body` the `data` stands; `None` where the event has none.
    pub data: Option<Range<usize>>,
}

/// What of an event goes out as the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relay {
    /// The whole event as received.
    #[default]
    Event,
    /// Its `data` only; the whole event where it has none.
    Data,
}

impl Relay {
    /// The bytes that go out for `body`, whose data stands at `data`. Always a slice: never rewritten.
    pub fn payload<'a>(self, body: &'a [u8], data: Option<&Range<usize>>) -> &'a [u8] {
        match (self, data) {
            (Self::Data, Some(range)) => body.get(range.clone()).unwrap_or(body),
            _ => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_between_tokens_does_not_count_and_inside_strings_does() {
        let plain = Fingerprint::of("t", Some(r#"{"a":[1,2],"b":"x y\" z"}"#));
        let spaced = Fingerprint::of("t", Some("{ \"a\" :\t[1,\r\n2 ],\"b\": \"x y\\\" z\" }\n"));
        assert_eq!(plain, spaced);
        assert_ne!(plain, Fingerprint::of("t", Some(r#"{"a":[1,2],"b":"xy\" z"}"#)));
        assert_ne!(plain, Fingerprint::of("u", Some(r#"{"a":[1,2],"b":"x y\" z"}"#)));
    }

    #[test]
    fn digits_and_key_order_count() {
        assert_ne!(Fingerprint::of("t", Some("1.10")), Fingerprint::of("t", Some("1.1")));
        assert_ne!(
            Fingerprint::of("t", Some(r#"{"a":1,"b":2}"#)),
            Fingerprint::of("t", Some(r#"{"b":2,"a":1}"#))
        );
        assert_ne!(Fingerprint::of("t", None), Fingerprint::of("t", Some("")));
    }

    #[test]
    fn the_payload_is_a_slice_of_what_came() {
        let body = br#"{"type":"t","data":{"n":1.10}}"#;
        let data = 19..29;
        assert_eq!(Relay::Data.payload(body, Some(&data)), br#"{"n":1.10}"#);
        assert_eq!(Relay::Event.payload(body, Some(&data)), body);
        assert_eq!(Relay::Data.payload(body, None), body);
    }
}
