//! The rules of transforms, by table; their promises about bytes, by generated input.

mod bytes;
mod cost;
mod map;
mod properties;
mod refusals;
mod rules;

use super::*;

const LIMIT_BYTES: usize = DEFAULT_OUTPUT_LIMIT_BYTES;

fn context() -> Context<'static> {
    let received_at = Timestamp::from_millis(1_769_903_999_007);
    Context { id: "evt \"7\"", event_type: "order.paid", tenant: "acme", source: "/shop", received_at }
}

fn transform(json: &str) -> Transform {
    Transform::parse(json).unwrap_or_else(|invalid| panic!("{json}: {invalid}"))
}

fn try_apply(json: &str, payload: &str) -> Result<String, TransformError> {
    let out = transform(json).apply(payload.as_bytes(), &context(), LIMIT_BYTES)?;
    Ok(String::from_utf8(out.into_owned()).unwrap())
}

fn apply(json: &str, payload: &str) -> String {
    try_apply(json, payload).unwrap_or_else(|error| panic!("{json} on {payload}: {error}"))
}

/// The code and the pointer of what goes wrong.
fn failure(json: &str, payload: &str) -> (&'static str, String) {
    let error = try_apply(json, payload).unwrap_err();
    assert!(error.to_string().contains(error.pointer()));
    (error.code(), error.pointer().to_owned())
}

/// The blocks of JSON in the module's documentation.
fn examples() -> Vec<String> {
    let mut blocks = Vec::new();
    let mut is_inside = false;
    for line in include_str!("../mod.rs").lines().map_while(|line| line.strip_prefix("//!")) {
        match line.trim() {
            "```json" => {
                is_inside = true;
                blocks.push(String::new());
            }
            "```" => is_inside = false,
            text if is_inside => blocks.last_mut().unwrap().push_str(text),
            _ => {}
        }
    }
    blocks
}

#[test]
fn the_examples_do_what_they_say() {
    let examples = examples();
    let (payload, pairs) = examples.split_first().unwrap();
    assert_eq!(pairs.len(), 2 * 4);
    for pair in pairs.chunks(2) {
        assert_eq!(apply(&pair[0], payload), pair[1], "{}", pair[0]);
    }
}

#[test]
fn a_transform_keeps_its_text() {
    let text = "{\n  \"set\": {\"/n\": 1.10},\n  \"omit\": []\n}";
    let transform = transform(&format!(" {text}\n"));
    assert_eq!(transform.as_json(), text);
    assert_eq!(Transform::parse(transform.as_json()), Ok(transform.clone()));
    assert!(!transform.is_identity());

    let json = serde_json::to_string(&[&transform]).unwrap();
    assert_eq!(json, format!("[{text}]"));
    let [read] = serde_json::from_str::<[Transform; 1]>(&json).unwrap();
    assert_eq!(read, transform);
    let error = serde_json::from_str::<Transform>(r#"{"omit":["a"]}"#).unwrap_err();
    assert!(error.to_string().starts_with("/omit/0: a pointer begins with `/`"), "{error}");
}

#[test]
fn the_default_is_the_empty_one() {
    assert_eq!(Transform::default(), transform("{}"));
    assert!(Transform::default().is_identity());
}

#[test]
fn an_events_context_is_taken_from_its_identity() {
    let identity = Identity { tenant: "acme".into(), source: "/shop".into(), id: "evt \"7\"".into() };
    let received_at = Timestamp::from_millis(1_769_903_999_007);
    assert_eq!(Context::new(&identity, "order.paid", received_at), context());
}
