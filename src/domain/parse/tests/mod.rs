//! The parser's rules, by table; its promises about bytes, by generated input.

mod binary_mode;
mod events;
mod message;
mod properties;
mod push;
mod refusals;
mod traces;
mod unwrapped;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

const JSON: &str = "application/json";

fn settings() -> ParseSettings {
    ParseSettings {
        tenant_attributes: ["tenant", "project", "accountId"].map(str::to_owned).to_vec(),
        default_tenant: Some("standard".into()),
        require_id: false,
        max_batch_events: 5,
        max_event_bytes: 4096,
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn parse_as(
    content_type: &str,
    body: impl Into<Bytes>,
    settings: &ParseSettings,
) -> Result<Batch, ParseError> {
    let incoming = Incoming {
        body: body.into(),
        content_type: Some(content_type),
        headers: &HeaderMap::new(),
        tenant: None,
    };
    parse(&incoming, settings)
}

fn parse_json(body: impl Into<Bytes>) -> Batch {
    parse_as(JSON, body, &settings()).unwrap()
}

/// The one event in `body`.
fn event(body: &str) -> Draft {
    only(parse_json(body.to_owned())).unwrap()
}

/// Why the one element in `body` is no event.
fn refusal(body: &str) -> Invalid {
    only(parse_json(body.to_owned())).unwrap_err()
}

fn only(batch: Batch) -> Result<Draft, Invalid> {
    let [item] = <[Item; 1]>::try_from(batch.items).unwrap();
    item.result
}

/// A draft's data as text.
fn data(draft: &Draft) -> Option<&str> {
    draft.data.clone().map(|range| std::str::from_utf8(&draft.body[range]).unwrap())
}

fn body(draft: &Draft) -> &str {
    std::str::from_utf8(&draft.body).unwrap()
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}
