//! An event: what happened, to whom it belongs, and the bytes that say so.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::trace::TraceContext;

/// The ledger's own number of an event: 64-bit and time-ordered (see [`crate::domain::sequence`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventSeq(pub i64);

/// What makes two arrivals the same event: tenant, source and id. `source` is empty where the producer gave none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Whose event it is.
    pub tenant: Arc<str>,
    /// The CloudEvents `source`, or empty.
    pub source: Arc<str>,
    /// The producer's id, or the one made for it.
    pub id: Arc<str>,
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

/// The runs of a JSON text between its insignificant whitespace (RFC 8259 §2). Text without any is one run.
fn significant(json: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = json.as_bytes();
    std::iter::from_fn(move || {
        let start = rest.iter().position(|byte| !is_space(*byte))?;
        let (run, behind) = rest[start..].split_at(run_length(&rest[start..]));
        rest = behind;
        Some(run)
    })
}

/// How far `text`, which begins outside of strings, goes without insignificant whitespace.
fn run_length(text: &[u8]) -> usize {
    /// So many bytes are looked at in a few instructions, where the loop over them has no way out.
    const CHUNK: usize = 32;
    let mut state = Lexer::default();
    let mut at = 0;
    for chunk in text.chunks(CHUNK) {
        // Without whitespace and backslashes, each quote opens a string or closes it.
        let telling = |byte: &u8| *byte <= b' ' || *byte == b'\\';
        let is_plain = !chunk.iter().fold(state.escaped, |found, byte| found | telling(byte));
        if is_plain {
            let quotes: u8 = chunk.iter().map(|byte| u8::from(*byte == b'"')).sum();
            state.in_string ^= quotes % 2 == 1;
        } else if let Some(space) = chunk.iter().position(|byte| state.is_insignificant(*byte)) {
            return at + space;
        }
        at += chunk.len();
    }
    at
}

/// Where in a JSON text a byte stands.
#[derive(Default)]
struct Lexer {
    in_string: bool,
    /// Behind a backslash in a string.
    escaped: bool,
}

impl Lexer {
    /// Whether the next byte is whitespace outside of strings.
    const fn is_insignificant(&mut self, byte: u8) -> bool {
        if !self.in_string {
            self.in_string = byte == b'"';
            return is_space(byte);
        }
        if self.escaped {
            self.escaped = false;
        } else {
            self.escaped = byte == b'\\';
            self.in_string = byte != b'"';
        }
        false
    }
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
    pub event_type: Arc<str>,
    /// What tells a duplicate from a conflict.
    pub fingerprint: Fingerprint,
    /// The whole event as it came, byte for byte: a JSON object.
    pub body: Bytes,
    /// Where in `body` the `data` stands; `None` where the event has none.
    pub data: Option<Range<usize>>,
    /// The trace that it belongs to, where its producer said so or we record one.
    pub trace: Option<Arc<TraceContext>>,
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
    use proptest::prelude::*;

    use super::*;

    /// What [`significant`] yields, a byte at a time.
    fn without_space(json: &str) -> Vec<u8> {
        let (mut in_string, mut escaped) = (false, false);
        let is_kept = |byte: &u8| {
            let kept = in_string || !is_space(*byte);
            if *byte == b'"' && !escaped {
                in_string = !in_string;
            }
            escaped = in_string && !escaped && *byte == b'\\';
            kept
        };
        json.bytes().filter(is_kept).collect()
    }

    /// Any JSON value, with whitespace wherever it may stand.
    fn any_json() -> impl Strategy<Value = String> {
        let space = || "[ \t\r\n]{0,3}";
        let string =
            || r#"([ a-z\t"\\é]){0,60}"#.prop_map(|text| serde_json::to_string(&text).expect("JSON"));
        let scalar = prop_oneof!["-?[1-9][0-9]{0,8}(\\.[0-9]{1,4})?", Just("null".to_owned()), string()];
        scalar.prop_recursive(4, 32, 6, move |value| {
            let item =
                (space(), value, space()).prop_map(|(before, value, behind)| before + &value + &behind);
            let items = proptest::collection::vec(item.clone(), 1..6).prop_map(|items| items.join(","));
            let member = (space(), string(), space(), item)
                .prop_map(|(a, name, b, value)| a + &name + &b + ":" + &value);
            let members = proptest::collection::vec(member, 1..6).prop_map(|members| members.join(","));
            prop_oneof![
                items.prop_map(|text| format!("[{text}]")),
                members.prop_map(|text| format!("{{{text}}}"))
            ]
        })
    }

    proptest! {
        #[test]
        fn runs_are_what_a_byte_at_a_time_leaves(json in any_json()) {
            let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
            let runs: Vec<_> = significant(&json).collect();
            prop_assert!(runs.iter().all(|run| !run.is_empty()));
            prop_assert_eq!(runs.concat(), without_space(&json));
            let compact = runs.concat();
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&compact).expect("JSON"), value);
            let compact = std::str::from_utf8(&compact).expect("UTF-8");
            prop_assert_eq!(significant(compact).count(), 1);
            prop_assert_eq!(Fingerprint::of("t", Some(&json)), Fingerprint::of("t", Some(compact)));
        }

        #[test]
        fn text_that_is_no_json_is_cut_the_same_way(text in r#"[ \n"\\a{:é]{0,90}"#) {
            prop_assert_eq!(significant(&text).collect::<Vec<_>>().concat(), without_space(&text));
        }
    }

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
