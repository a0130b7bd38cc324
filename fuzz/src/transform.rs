//! A receiver's transform and a payload for it. An input is the transform, a line with `--`, the payload.

use std::borrow::Cow;

use posthaste::domain::clock::Timestamp;
use posthaste::domain::parse::DEPTH_LIMIT;
use posthaste::domain::transform::{
    Context, DEFAULT_OUTPUT_LIMIT_BYTES, DOCUMENT_LIMIT_BYTES, Transform, TransformError,
};

use super::json;

/// What [`TransformError::code`] says of itself in the documentation of the API.
const CODES: [&str; 8] = [
    "malformed_payload",
    "duplicate_key",
    "not_a_container",
    "no_such_index",
    "missing",
    "not_text",
    "too_large",
    "too_deep",
];
const NARROW_LIMIT_BYTES: usize = 40;

pub fn check(input: &[u8]) {
    let at = input.windows(4).position(|part| part == b"\n--\n");
    let (rules, payload) = at.map_or((input, &b"{}"[..]), |at| (&input[..at], &input[at + 4..]));
    let Ok(rules) = std::str::from_utf8(rules) else { return };
    let transform = match Transform::parse(rules) {
        Ok(transform) => transform,
        Err(invalid) => {
            assert!(invalid.pointer.is_empty() || invalid.pointer.starts_with('/'), "{invalid:?}");
            assert!(!invalid.detail.is_empty());
            assert!(rules != "{}");
            return;
        }
    };
    let text = transform.as_json();
    assert!(json::is_valid(text) && text.len() <= DOCUMENT_LIMIT_BYTES);
    assert_eq!(Transform::parse(text).as_ref(), Ok(&transform));
    assert_eq!(serde_json::to_string(&transform).expect("JSON"), text);
    for limit_bytes in [DEFAULT_OUTPUT_LIMIT_BYTES, NARROW_LIMIT_BYTES, 0] {
        apply(&transform, payload, limit_bytes);
    }
}

fn apply(transform: &Transform, payload: &[u8], limit_bytes: usize) {
    let context = Context {
        id: "evt \"7\"",
        event_type: "order.paid",
        tenant: "acme\\é",
        source: "",
        received_at: Timestamp::from_millis(1_769_903_999_007),
    };
    let result = transform.apply(payload, &context, limit_bytes);
    assert_eq!(result, transform.apply(payload, &context, limit_bytes));
    let readable = std::str::from_utf8(payload).map(|text| text.strip_prefix('\u{feff}').unwrap_or(text));
    let readable = readable.ok().filter(|text| json::is_valid(text));
    let out = match result {
        Ok(out) => out,
        Err(error) => return check_error(&error, readable, limit_bytes),
    };
    let readable = readable.expect("nothing comes of what is no JSON");
    assert!(out.len() <= limit_bytes);
    if let Cow::Borrowed(out) = out {
        assert_eq!(out, payload, "what no rule changes goes out as it came");
        return;
    }
    assert!(!transform.is_identity());
    let out = std::str::from_utf8(&out).expect("text");
    assert!(json::is_valid(out), "{out}");
    assert!(json::depth(out) <= DEPTH_LIMIT);
    // A number is the payload's or the transform's, digit by digit.
    let (mine, mut known) = (json::numbers(out), json::numbers(readable));
    known.extend(json::numbers(transform.as_json()));
    assert!(mine.is_subset(&known), "{mine:?} of {known:?}");
}

fn check_error(error: &TransformError, readable: Option<&str>, limit_bytes: usize) {
    assert!(CODES.contains(&error.code()));
    assert!(!error.to_string().is_empty());
    let pointer = error.pointer();
    assert!(pointer.is_empty() || pointer.starts_with('/') || pointer.starts_with("$event."), "{pointer}");
    match error {
        TransformError::MalformedPayload { .. } => assert_eq!(readable, None),
        TransformError::TooLarge { limit_bytes: said } => assert_eq!(*said, limit_bytes),
        _ => assert!(readable.is_some()),
    }
}
