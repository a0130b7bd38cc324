//! Brokers' messages: nothing refused as a whole, ids from what a message is called.

use rstest::rstest;

use super::*;

fn attributes(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// The items of a message from stream `s`, number 7.
fn message(pairs: &[(&str, &str)], body: &str) -> Vec<Item> {
    let name = named("7");
    let body = Bytes::from(body.to_owned());
    let identity = LazyIdentity::of(&name, &body);
    let incoming = IncomingMessage {
        body: body.clone(),
        attributes: &attributes(pairs),
        content_type: None,
        identity: Some(&identity),
        first_index: 0,
        tenant: None,
    };
    parse_message(&incoming, &settings())
}

fn named(number: &str) -> MessageIdentity {
    MessageIdentity::new("nats", ["source".to_owned(), "s".to_owned(), number.to_owned()])
}

fn one(items: Vec<Item>) -> Result<Draft, Invalid> {
    let [item] = <[Item; 1]>::try_from(items).unwrap();
    item.result
}

fn ids(items: &[Item]) -> Vec<String> {
    items.iter().map(|item| item.result.as_ref().unwrap().id.as_deref().unwrap().to_owned()).collect()
}

#[test]
fn ids_are_derived_from_name_bytes_and_place() {
    // holds: 48
    let body = r#"[{"type":"a"},{"type":"a"},{"eventType":"b","eventId":"own"}]"#;
    let first = ids(&message(&[], body));
    let sealed = named("7").sealed(body.as_bytes());
    assert_eq!(first, [sealed.event_id(0), sealed.event_id(1), "own".to_owned()]);
    assert_eq!(
        first,
        ids(&message(&[("delivered", "2")], body)),
        "the same again, whatever stands beside it"
    );
    // A stream that was made anew counts from the beginning.
    let other = ids(&message(&[], r#"[{"type":"a"},{"type":"c"}]"#));
    assert!(other.iter().all(|id| !first.contains(id)), "other bytes are another message");
    assert_ne!(named("7").sealed(b"x").event_id(0), named("8").sealed(b"x").event_id(0));
}

#[test]
fn a_part_of_a_message_has_the_id_that_it_had_in_it() {
    let whole = r#"[{"type":"a"},{"type":"b"}]"#;
    let sealed = named("7").sealed(whole.as_bytes());
    let known = LazyIdentity::known(&sealed);
    let incoming = IncomingMessage {
        body: Bytes::from_static(br#"{"type":"b"}"#),
        attributes: &[],
        content_type: None,
        identity: Some(&known),
        first_index: 1,
        tenant: None,
    };
    let part = parse_message(&incoming, &settings());
    assert_eq!(ids(&part), ids(&message(&[], whole))[1..]);
}

#[test]
fn without_a_name_an_event_needs_an_id() {
    let incoming = IncomingMessage {
        body: Bytes::from_static(br#"[{"type":"a"},{"type":"b","id":"1"}]"#),
        attributes: &[],
        content_type: None,
        identity: None,
        first_index: 0,
        tenant: None,
    };
    let items = parse_message(&incoming, &settings());
    let invalid = items[0].result.as_ref().unwrap_err();
    assert!(invalid.detail.contains("`message_id` on RabbitMQ"), "{invalid}");
    assert_eq!(items[1].result.as_ref().unwrap().id.as_deref(), Some("1"));
}

#[rstest]
#[case::nothing("", "the body is empty")]
#[case::no_json("not json", "expected")]
#[case::half("[{\"type\":\"a\"}", "EOF")]
#[case::no_type(r#"{"id":"1"}"#, "`type` is missing")]
#[case::push(r#"{"message":{"data":""},"subscription":"s"}"#, "`type` is missing")]
#[case::many(r"[1,2,3,4,5,6]", "more than 5 events")]
fn what_can_not_be_read_is_one_item(#[case] body: &str, #[case] expected: &str) {
    let items = message(&[], body);
    assert_eq!((items.len(), &items[0].raw[..]), (1, body.as_bytes()));
    let invalid = items[0].result.as_ref().unwrap_err();
    assert!(invalid.detail.contains(expected), "{invalid}");
}

#[rstest]
#[case("ce-", "ce-")]
#[case("Ce-", "CE-")]
#[case("ce_", "ce_")]
#[case("cloudEvents:", "cloudEvents_")]
fn attributes_beside_the_data_are_the_events(#[case] one_prefix: &str, #[case] other: &str) {
    let names: Vec<_> =
        [(one_prefix, "specversion"), (other, "type"), (other, "id"), (one_prefix, "comexampleext")]
            .iter()
            .map(|(prefix, name)| format!("{prefix}{name}"))
            .collect();
    let pairs: Vec<_> = names.iter().map(String::as_str).zip(["1.0", "t", "e", "50%25 ü"]).collect();
    let draft = one(message(&pairs, r#"{"n":1.10}"#)).unwrap();
    assert_eq!(
        (draft.id.as_deref(), &*draft.event_type, data(&draft)),
        (Some("e"), "t", Some(r#"{"n":1.10}"#))
    );
    assert!(body(&draft).contains(r#""comexampleext":"50%25 ü""#), "as it is: {}", body(&draft));
}

#[test]
fn a_structured_event_is_one_whatever_stands_beside_it() {
    let pairs = [("content-type", "application/cloudevents+json; charset=utf-8"), ("ce-type", "other")];
    let draft = one(message(&pairs, r#"{"type":"t","id":"e","specversion":"1.0","source":"/s"}"#)).unwrap();
    assert_eq!(&*draft.event_type, "t");
    // What clients write by default says nothing about JSON.
    assert!(one(message(&[("content-type", "application/octet-stream")], r#"{"type":"t"}"#)).is_ok());
    let pairs = [("ce-type", "t"), ("ce-id", "1"), ("content-type", "text/plain")];
    let invalid = one(message(&pairs, "hello")).unwrap_err();
    assert!(invalid.detail.contains("must be JSON"), "{invalid}");
}

#[rstest]
#[case::of_the_event(&[("tenant", "beside"), ("X-Tenant", "header")], r#"{"type":"t","tenant":"own"}"#, "own")]
#[case::beside(&[("Tenant", "beside"), ("X-Tenant", "header")], r#"{"type":"t"}"#, "beside")]
#[case::the_first(&[("project", "second"), ("tenant", "first")], r#"{"type":"t"}"#, "first")]
#[case::header(&[("x-tenant", "header")], r#"{"type":"t"}"#, "header")]
#[case::default(&[], r#"{"type":"t"}"#, "standard")]
fn the_tenant_is_the_nearest_one(#[case] pairs: &[(&str, &str)], #[case] body: &str, #[case] expected: &str) {
    assert_eq!(&*one(message(pairs, body)).unwrap().tenant, expected);
}

#[test]
fn a_sources_one_tenant_wins_and_a_bad_one_is_named() {
    let incoming = IncomingMessage {
        body: Bytes::from_static(br#"{"type":"t","id":"1","tenant":"own"}"#),
        attributes: &attributes(&[("tenant", "beside")]),
        content_type: None,
        identity: None,
        first_index: 0,
        tenant: Some("the source's"),
    };
    assert_eq!(&*one(parse_message(&incoming, &settings())).unwrap().tenant, "the source's");
    let invalid = one(message(&[("tenant", "")], r#"{"type":"t"}"#)).unwrap_err();
    assert!(invalid.detail.contains("message attribute `tenant` must not be empty"), "{invalid}");
}
