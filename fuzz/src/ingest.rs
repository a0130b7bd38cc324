//! The ingest parser, on everything that it is handed: a request, a broker's message, a push without its envelope.
//!
//! An input is written as a request is: lines of headers, an empty line, the body.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use posthaste::domain::event::{Fingerprint, Relay};
use posthaste::domain::parse::{
    DEPTH_LIMIT, Draft, Incoming, IncomingMessage, Invalid, Item, LazyIdentity, MessageIdentity, ParseError,
    ParseSettings, Shape, parse, parse_message, parse_unwrapped,
};
use posthaste::domain::trace::TraceContext;

use super::json;

/// Longest tenant, source, id and type, in bytes.
const NAME_LIMIT_BYTES: usize = 256;

pub fn check(input: &[u8]) {
    let (headers, body) = split(input);
    for settings in [usual(), narrow()] {
        request(&headers, &body, &settings);
        message(&headers, &body, &settings);
    }
}

fn usual() -> ParseSettings {
    ParseSettings {
        tenant_attributes: ["tenant", "projectId", "account"].map(str::to_owned).into(),
        default_tenant: Some(Arc::from("acme")),
        require_id: false,
        max_batch_events: 1_000,
        max_event_bytes: 1 << 20,
    }
}

/// Where every limit is near, and nothing is made up for an event.
fn narrow() -> ParseSettings {
    ParseSettings {
        tenant_attributes: vec!["tenant".to_owned()],
        default_tenant: None,
        require_id: true,
        max_batch_events: 2,
        max_event_bytes: 100,
    }
}

/// What `input` is as a request; lines that are no headers are left out, and all of it is the body where no line is empty.
fn split(input: &[u8]) -> (HeaderMap, Bytes) {
    let mut headers = HeaderMap::new();
    let Some(end) = input.windows(2).position(|pair| pair == b"\n\n") else {
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        return (headers, Bytes::copy_from_slice(input));
    };
    for line in input[..end].split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value)
            && headers.len() < 64
        {
            headers.append(name, value);
        }
    }
    (headers, Bytes::copy_from_slice(&input[end + 2..]))
}

fn request(headers: &HeaderMap, body: &Bytes, settings: &ParseSettings) {
    let find = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let incoming = Incoming {
        body: body.clone(),
        content_type: find("content-type"),
        headers,
        tenant: find("x-tenant"),
    };
    let (first, second) = (parse(&incoming, settings), parse(&incoming, settings));
    let is_beside = headers.contains_key("ce-specversion") || headers.contains_key("ce-type");
    match (&first, &second) {
        (Ok(batch), Ok(again)) => {
            assert!(batch.items.len() <= settings.max_batch_events);
            assert_eq!((batch.shape, &batch.identity), (again.shape, &again.identity));
            same_items(&batch.items, &again.items);
            if batch.shape == Shape::Single {
                assert_eq!(batch.items.len(), 1);
            }
            let structured =
                batch.shape != Shape::PubSubPush && batch.items.iter().all(|item| is_part(body, &item.raw));
            assert!(
                is_beside || structured || batch.shape == Shape::PubSubPush,
                "an element that did not come"
            );
            if let Some(attributes) = &batch.attributes {
                assert!(is_part(body, attributes) && json::is_valid(text(attributes)));
            }
            for item in &batch.items {
                check_item(item, settings);
                let is_slice = item.result.as_ref().is_ok_and(|draft| is_part(body, &draft.body));
                if structured && (is_slice || !is_beside) {
                    speaks_for_itself(item, settings);
                }
            }
            if !is_beside {
                assert!(json::is_valid(without_mark(text(body))), "an answer for what is no JSON");
            }
        }
        (Err(error), Err(again)) => {
            assert_eq!(error, again);
            check_error(error, find("content-type"), body, is_beside);
        }
        _ => panic!("two readings of one request differ"),
    }
    let unwrapped = parse_unwrapped(&incoming, settings);
    same_items(&unwrapped.items, &parse_unwrapped(&incoming, settings).items);
    for item in &unwrapped.items {
        assert!(is_part(body, &item.raw));
        check_item(item, settings);
    }
}

fn message(headers: &HeaderMap, body: &Bytes, settings: &ParseSettings) {
    let attributes: Vec<_> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    let name = MessageIdentity::new("nats", ["events".to_owned(), "7".to_owned()]);
    let identity = LazyIdentity::of(&name, body);
    for identity in [Some(&identity), None] {
        let message = IncomingMessage {
            body: body.clone(),
            attributes: &attributes,
            content_type: None,
            identity,
            first_index: 3,
            tenant: None,
        };
        let items = parse_message(&message, settings);
        same_items(&items, &parse_message(&message, settings));
        for item in &items {
            assert!(is_part(body, &item.raw));
            check_item(item, settings);
            // What a broker repeats must be the same event again, so nothing may be left to be made.
            assert!(item.result.as_ref().is_ok_and(|draft| draft.id.is_some()) || item.result.is_err());
        }
        let only = IncomingMessage { tenant: Some("only"), ..message };
        for item in parse_message(&only, settings) {
            assert!(item.result.is_err() || item.result.is_ok_and(|draft| &*draft.tenant == "only"));
        }
    }
}

fn check_item(item: &Item, settings: &ParseSettings) {
    match &item.result {
        Ok(draft) => check_draft(draft, settings),
        Err(Invalid { pointer, detail, id, tenant }) => {
            assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer}");
            assert!(!detail.is_empty());
            id.iter().chain(tenant).for_each(|name| check_name(name));
        }
    }
}

fn check_draft(draft: &Draft, settings: &ParseSettings) {
    let body = text(&draft.body);
    assert!(body.starts_with('{') && body.ends_with('}') && json::is_valid(body), "{body}");
    assert!(draft.body.len() <= settings.max_event_bytes);
    assert!(json::depth(body) <= DEPTH_LIMIT);
    check_name(&draft.tenant);
    check_name(&draft.event_type);
    draft.id.iter().for_each(|id| check_name(id));
    if !draft.source.is_empty() {
        check_name(&draft.source);
    }
    if settings.require_id {
        assert!(draft.id.is_some());
    }
    let data = draft.data.clone().map(|range| body.get(range).expect("data on the edges of characters"));
    if let Some(data) = data {
        assert!(json::is_valid(data) && data.trim_matches([' ', '\t', '\n', '\r']) == data, "{data}");
        let compact = json::compact(data);
        assert_eq!(Fingerprint::of(&draft.event_type, Some(&compact)), draft.fingerprint);
        assert_eq!(Relay::Data.payload(&draft.body, draft.data.as_ref()), data.as_bytes());
    }
    assert_eq!(Fingerprint::of(&draft.event_type, data), draft.fingerprint);
    agrees_with_serde(draft, body, data);
    if let Some(trace) = &draft.trace {
        assert_eq!(TraceContext::read(&trace.to_string()).as_ref(), Some(&**trace));
    }
}

/// Another reader finds the same attributes.
fn agrees_with_serde(draft: &Draft, body: &str, data: Option<&str>) {
    // It refuses escapes that make no Unicode, which may stand in what we don't act upon, and what nests 128 levels.
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(body) else { return };
    let string = |name: &str| object.get(name).and_then(serde_json::Value::as_str);
    let event_type = string("type").or_else(|| string("eventType"));
    assert_eq!(event_type, Some(&*draft.event_type));
    assert_eq!(string("source").unwrap_or_default(), &*draft.source);
    let id = if string("type").is_some() { string("id") } else { string("eventId").or_else(|| string("id")) };
    if let Some(id) = id {
        assert_eq!(Some(id), draft.id.as_deref());
    }
    let names = ["data", "data_base64", "payload"];
    let value = data.map(|data| serde_json::from_str::<serde_json::Value>(data).expect("read as a part"));
    assert!(value.is_none_or(|value| names.iter().any(|name| object.get(*name) == Some(&value))));
}

/// An event that is sent by itself, as it was recorded, is the same event.
fn speaks_for_itself(item: &Item, settings: &ParseSettings) {
    let Ok(draft) = &item.result else { return };
    let alone = Incoming {
        body: draft.body.clone(),
        content_type: Some("application/cloudevents+json"),
        headers: &HeaderMap::new(),
        tenant: Some(&draft.tenant),
    };
    let batch = parse(&alone, settings).expect("what was read once");
    let again = batch.items[0].result.as_ref().expect("what was an event once");
    assert_eq!((&again.tenant, &again.source, &again.id), (&draft.tenant, &draft.source, &draft.id));
    assert_eq!((again.fingerprint, &again.body), (draft.fingerprint, &draft.body));
}

fn check_error(error: &ParseError, content_type: Option<&str>, body: &Bytes, is_beside: bool) {
    let is_plain = !is_beside && content_type == Some("application/json");
    match error {
        ParseError::Malformed { detail, line, .. } => {
            assert!(!detail.is_empty() && *line > 0);
            let is_good = std::str::from_utf8(body).is_ok_and(|text| {
                let text = without_mark(text);
                json::is_valid(text) && text.trim_start().starts_with(['[', '{'])
            });
            assert!(!is_plain || !is_good, "refused and good: {error}");
        }
        ParseError::UnsupportedType { detail } => {
            assert!(!detail.is_empty());
            assert!(!is_plain, "{error}");
        }
        ParseError::TooDeep | ParseError::TooManyEvents { .. } => {}
    }
}

fn check_name(name: &str) {
    assert!((1..=NAME_LIMIT_BYTES).contains(&name.len()), "{name:?}");
    assert!(!name.chars().any(char::is_control), "{name:?}");
}

fn same_items(items: &[Item], again: &[Item]) {
    assert_eq!(items.len(), again.len());
    for (one, other) in items.iter().zip(again) {
        assert_eq!(one.raw, other.raw);
        match (&one.result, &other.result) {
            (Ok(one), Ok(other)) => {
                assert_eq!((&one.tenant, &one.source, &one.id), (&other.tenant, &other.source, &other.id));
                assert_eq!(
                    (one.fingerprint, &one.body, &one.data),
                    (other.fingerprint, &other.body, &other.data)
                );
                assert_eq!((&one.event_type, &one.trace), (&other.event_type, &other.trace));
            }
            (Err(one), Err(other)) => assert_eq!(one, other),
            _ => panic!("two readings of one element differ"),
        }
    }
}

/// Whether `part` lies in the memory of `whole`: a slice, and no copy.
fn is_part(whole: &Bytes, part: &Bytes) -> bool {
    let (outer, inner) = (whole.as_ptr_range(), part.as_ptr_range());
    part.is_empty() || (outer.start <= inner.start && inner.end <= outer.end)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
