//! Pushes without their envelope.

use super::*;
use crate::domain::key::derived_event_id;

fn unwrapped(pairs: &[(&str, &str)], body: &'static str) -> Batch {
    let headers = headers(pairs);
    let settings = ParseSettings { default_tenant: None, ..settings() };
    let incoming = Incoming { body: body.into(), content_type: Some(JSON), headers: &headers, tenant: None };
    parse_unwrapped(&incoming, &settings)
}

const METADATA: [(&str, &str); 2] =
    [("x-goog-pubsub-message-id", "7"), ("x-goog-pubsub-subscription-name", "projects/p/subscriptions/s")];

#[test]
fn metadata_give_an_id_and_attributes_a_tenant() {
    let [id, subscription] = METADATA;
    let batch = unwrapped(&[id, subscription, ("tenant", "acme")], r#"{"type":"a"}"#);
    let draft = batch.items[0].result.as_ref().expect("an event");
    assert_eq!(&*draft.tenant, "acme");
    let expected = derived_event_id("pubsub", &["projects/p/subscriptions/s", "7"], 0);
    assert_eq!(draft.id.as_deref(), Some(&*expected));
    assert_eq!(batch.shape, Shape::PubSubPush);
}

#[test]
fn without_metadata_an_event_needs_an_id() {
    let batch = unwrapped(&[("tenant", "acme")], r#"[{"id":"1","type":"a"},{"type":"a"}]"#);
    assert!(batch.items[0].result.is_ok());
    let invalid = batch.items[1].result.as_ref().expect_err("no id");
    assert!(invalid.detail.contains("is missing"), "{invalid}");
}

#[test]
fn what_can_not_be_read_is_an_item_and_credentials_are_not_kept() {
    let batch = unwrapped(&[("authorization", "Bearer canary"), ("x-tenant", "acme")], "not json");
    assert_eq!(&*batch.items[0].raw, b"not json");
    assert!(batch.items[0].result.is_err());
    assert_eq!(batch.attributes.as_deref(), Some(br#"{"x-tenant":"acme"}"#.as_slice()));
}

#[test]
fn headers_may_be_the_events_attributes() {
    let batch = unwrapped(
        &[("ce-specversion", "1.0"), ("ce-type", "a%20b"), ("ce-id", "9"), ("x-tenant", "acme")],
        r#"{"total":1.10}"#,
    );
    let draft = batch.items[0].result.as_ref().expect("an event");
    assert_eq!((draft.id.as_deref(), &*draft.event_type), (Some("9"), "a b"));
}
