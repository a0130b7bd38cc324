//! Pub/Sub push envelopes: always lenient, nothing refused as a whole.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rstest::rstest;

use super::*;
use crate::domain::key::derived_event_id;

const SUBSCRIPTION: &str = "projects/p/subscriptions/s";

fn envelope(attributes: &str, data: &[u8]) -> String {
    let data = STANDARD.encode(data);
    format!(
        r#"{{"message":{{"attributes":{attributes},"data":"{data}","messageId":"m-1","message_id":"m-1","publishTime":"2026-01-31T23:59:59Z"}},"subscription":"{SUBSCRIPTION}","deliveryAttempt":2}}"#
    )
}

fn push(text: impl Into<Bytes>) -> Batch {
    let batch = parse_json(text);
    assert_eq!(batch.shape, Shape::PubSubPush);
    batch
}

fn derived(index: usize) -> Option<Arc<str>> {
    Some(derived_event_id("pubsub", &[SUBSCRIPTION, "m-1"], index).into())
}

#[test]
fn one_event_inside() {
    let inner = r#"{"type":"t", "id":"e", "data":{"n":1.10}}"#;
    let batch = push(envelope(r#"{"a":"b"}"#, inner.as_bytes()));
    assert_eq!(batch.attributes.as_deref(), Some(&br#"{"a":"b"}"#[..]));
    assert_eq!(batch.items[0].raw, inner);
    let draft = only(batch).unwrap();
    assert_eq!((draft.id.as_deref(), data(&draft), body(&draft)), (Some("e"), Some(r#"{"n":1.10}"#), inner));
}

#[test]
fn ids_are_derived_from_message_and_place() {
    // holds: 48
    let inner = r#"[{"type":"a"},{"eventType":"b","eventId":"own"},{"type":"c"}]"#;
    let ids = |batch: Batch| batch.items.into_iter().map(|item| item.result.unwrap().id).collect::<Vec<_>>();
    let first = ids(push(envelope("{}", inner.as_bytes())));
    assert_eq!(first, [derived(0), Some("own".into()), derived(2)]);
    assert_eq!(first, ids(push(envelope("{}", inner.as_bytes()))));
    assert_eq!(ids(push(envelope("null", b"{\"type\":\"a\"}"))), [derived(0)]);
}

#[test]
fn either_spelling_of_the_message_id_will_do() {
    let with = |id: &str| {
        let data = STANDARD.encode(r#"{"type":"t"}"#);
        only(push(format!(r#"{{"message":{{"data":"{data}"{id}}},"subscription":"{SUBSCRIPTION}"}}"#)))
    };
    assert_eq!(with(r#","message_id":"m-1""#).unwrap().id, derived(0));
    assert_eq!(with(r#","messageId":"m-1""#).unwrap().id, derived(0));
    for missing in ["", r#","messageId":"""#, r#","messageId":7"#] {
        let invalid = with(missing).unwrap_err();
        assert_eq!(invalid.pointer, "/id");
        assert_eq!(invalid.detail, "`id` is missing, and so is the message's `messageId` to derive it from");
    }
}

#[test]
fn a_required_id_is_not_derived() {
    let settings = ParseSettings { require_id: true, ..settings() };
    let batch = parse_as(JSON, envelope("{}", br#"{"type":"t"}"#), &settings).unwrap();
    assert_eq!(only(batch).unwrap_err().pointer, "/id");
}

#[rstest]
#[case::own(r#"{"tenant":"message"}"#, r#"{"type":"t","accountId":"own"}"#, Some("header"), "own")]
#[case::message(r#"{"project":"message"}"#, r#"{"type":"t"}"#, Some("header"), "message")]
#[case::configured_order(r#"{"project":"second","tenant":"first"}"#, r#"{"type":"t"}"#, None, "first")]
#[case::header("{}", r#"{"type":"t"}"#, Some("header"), "header")]
#[case::standard("{}", r#"{"type":"t"}"#, None, "standard")]
#[case::binary(r#"{"tenant":"plain","ce-type":"t","ce-accountId":"ce"}"#, "1", None, "ce")]
#[case::binary_plain(r#"{"tenant":"plain","ce-type":"t"}"#, "1", None, "plain")]
fn where_the_tenant_comes_from(
    #[case] attributes: &str,
    #[case] inner: &str,
    #[case] header: Option<&str>,
    #[case] expected: &str,
) {
    let incoming = Incoming {
        body: envelope(attributes, inner.as_bytes()).into(),
        content_type: Some(JSON),
        headers: &HeaderMap::new(),
        tenant: header,
    };
    assert_eq!(&*only(parse(&incoming, &settings()).unwrap()).unwrap().tenant, expected);
}

#[test]
fn a_bad_tenant_attribute_is_said_to_be_the_messages() {
    let invalid = only(push(envelope(r#"{"tenant":""}"#, br#"{"type":"t"}"#))).unwrap_err();
    assert_eq!(invalid.pointer, "/tenant");
    assert_eq!(invalid.detail, "the message attribute `tenant` must not be empty");
}

#[test]
fn binary_mode_in_attributes() {
    let attributes = r#"{"ce-specversion":"1.0","ce-type":"t","ce-id":"e","ce-source":"100%25","ce-datacontenttype":"application/json","x":"y"}"#;
    let batch = push(envelope(attributes, b"{\"n\": 1.10}\n"));
    assert_eq!(batch.items[0].raw, "{\"n\": 1.10}\n");
    let draft = only(batch).unwrap();
    // Not a header: nothing is percent-decoded.
    assert_eq!(&*draft.source, "100%25");
    let expected = r#"{"specversion":"1.0","type":"t","id":"e","source":"100%25","datacontenttype":"application/json","data":{"n": 1.10}}"#;
    assert_eq!((body(&draft), data(&draft)), (expected, Some(r#"{"n": 1.10}"#)));

    let without_data = only(push(envelope(r#"{"ce-type":"t"}"#, b""))).unwrap();
    assert_eq!(body(&without_data), r#"{"specversion":"1.0","type":"t"}"#);
    assert_eq!(without_data.id, derived(0));
}

#[test]
fn a_structured_content_type_wins_over_the_attributes() {
    let attributes = r#"{"ce-type":"outer","content-type":"application/cloudevents+json"}"#;
    let draft = only(push(envelope(attributes, br#"{"type":"inner"}"#))).unwrap();
    assert_eq!(&*draft.event_type, "inner");
}

#[rstest]
#[case::no_padding(STANDARD_NO_PAD.encode(r#"{"type":"t"} "#))]
#[case::padding(STANDARD.encode(r#"{"type":"t"} "#))]
#[case::escaped_slashes(STANDARD.encode(r#"{"type":"t","x":"???"}"#).replace('/', "\\/"))]
fn spellings_of_base64(#[case] encoded: String) {
    let text = format!(r#"{{"message":{{"data":"{encoded}","messageId":"m"}},"subscription":"s"}}"#);
    assert_eq!(&*only(push(text)).unwrap().event_type, "t");
}

#[rstest]
#[case::no_data(r#"{"messageId":"m"}"#, "/message/data", "the message's `data` is missing")]
#[case::null_data(r#"{"data":null}"#, "/message/data", "the message's `data` is missing")]
#[case::empty_data(r#"{"data":""}"#, "/message/data", "the message's `data` is missing")]
#[case::number(r#"{"data":7}"#, "/message/data", "the message's `data` must be a string, not a number")]
#[case::not_base64(
    r#"{"data":"a_b!"}"#,
    "/message/data",
    "the message's `data` is not base64: Invalid symbol 95, offset 1."
)]
#[case::attributes(
    r#"{"data":"MQ==","attributes":["a"]}"#,
    "/message/attributes",
    "the message's `attributes` must be an object, not an array"
)]
fn broken_envelopes_are_kept_whole(#[case] message: &str, #[case] pointer: &str, #[case] detail: &str) {
    // holds: 49
    let text = format!(r#"{{"message":{message},"subscription":"s"}}"#);
    let batch = push(text.clone());
    assert_eq!(batch.items[0].raw, text);
    let invalid = only(batch).unwrap_err();
    assert_eq!((invalid.pointer.as_str(), invalid.detail.as_str()), (pointer, detail));
}

#[rstest]
#[case::broken("{}", b"{\"type\":".to_vec(), "EOF while parsing a value at line 1 column 8")]
#[case::number("{}", b"17".to_vec(), "expected an object or an array of objects at line 1 column 1")]
#[case::blank("{}", b"  ".to_vec(), "the body is empty at line 1 column 3")]
#[case::not_utf_8("{}", b"{\"type\":\"\xFF\"}".to_vec(), "not UTF-8 at line 1 column 10")]
#[case::deep("{}", format!(r#"{{"type":"t","x":{}}}"#, nested(200_000)).into_bytes(), "nested deeper than 128 levels")]
#[case::many("{}", format!("[{}1]", "1,".repeat(5)).into_bytes(), "more than 5 events")]
#[case::binary_broken(r#"{"ce-type":"t"}"#, b"nope".to_vec(), "expected ident at line 1 column 2")]
#[case::binary_deep(r#"{"ce-type":"t"}"#, nested(128).into_bytes(), "nested deeper than 128 levels")]
#[case::binary_type(r#"{"ce-type":"t","content-type":"text/plain"}"#, b"hello".to_vec(), "`text/plain`: the data of an event must be JSON in UTF-8 (application/json or +json)")]
fn broken_data_is_kept_decoded(#[case] attributes: &str, #[case] data: Vec<u8>, #[case] detail: &str) {
    // holds: 49
    let batch = push(envelope(attributes, &data));
    assert_eq!(batch.items[0].raw, data);
    assert!(batch.attributes.is_some());
    let invalid = only(batch).unwrap_err();
    assert_eq!(invalid.pointer, "");
    assert_eq!(invalid.detail, format!("the message's data: {detail}"));
}

#[test]
fn bad_elements_and_attributes_are_items_too() {
    // holds: 49
    let batch = push(envelope("{}", br#"[{"type":"a"},{"type":7,"id":"e"},[]]"#));
    let outcomes: Vec<_> = batch.items.iter().map(|item| item.result.is_ok()).collect();
    assert_eq!(outcomes, [true, false, false]);
    assert_eq!(batch.items[1].raw, r#"{"type":7,"id":"e"}"#);

    // Whose it was is known even where nothing else is.
    let invalid = only(push(envelope(r#"{"tenant":"acme"}"#, b"]"))).unwrap_err();
    assert_eq!(invalid.tenant.as_deref(), Some("acme"));

    let invalid = only(push(envelope(r#"{"ce-type":"t","ce-id":7,"tenant":"acme"}"#, b"1"))).unwrap_err();
    assert_eq!((invalid.pointer.as_str(), invalid.tenant.as_deref()), ("/id", Some("acme")));
}

#[test]
fn a_deep_element_leaves_the_others_alone() {
    // holds: 49
    let batch =
        push(envelope("{}", format!(r#"[{{"type":"a","x":{}}},{{"type":"b"}}]"#, nested(127)).as_bytes()));
    assert_eq!(batch.items[0].result.as_ref().unwrap_err().detail, "nested deeper than 128 levels");
    assert!(batch.items[1].result.is_ok());
}

#[test]
fn attributes_have_a_limit() {
    let with = |count: usize| {
        let extensions: Vec<_> = (1..count).map(|place| format!(r#""ce-x{place}":"""#)).collect();
        only(push(envelope(&format!(r#"{{"ce-type":"t",{}}}"#, extensions.join(",")), b"1")))
    };
    assert!(with(100).is_ok());
    assert_eq!(with(101).unwrap_err().detail, "more than 100 attributes beside the data");
}

#[test]
fn an_empty_array_inside_is_an_empty_batch() {
    assert!(push(envelope("{}", b"[]")).items.is_empty());
}

#[test]
fn depth_of_the_envelope_refuses_nothing() {
    // holds: 49
    let text = envelope(&format!(r#"{{"x":{}}}"#, nested(200_000)), br#"{"type":"t"}"#);
    assert!(only(push(text)).is_ok());
}

#[rstest]
#[case::typed(r#"{"type":"t","message":{},"subscription":"s"}"#)]
#[case::short(r#"{"eventType":"t","message":{},"subscription":"s"}"#)]
#[case::text_message(r#"{"message":"hello","subscription":"s"}"#)]
#[case::no_subscription(r#"{"message":{}}"#)]
#[case::in_an_array(r#"[{"message":{},"subscription":"s"}]"#)]
fn what_only_looks_like_an_envelope(#[case] text: &str) {
    assert_ne!(parse_json(text.to_owned()).shape, Shape::PubSubPush);
}

#[test]
fn a_cloudevents_type_holds_no_envelope() {
    let text = envelope("{}", br#"{"type":"t"}"#);
    let batch = parse_as("application/cloudevents+json", text, &settings()).unwrap();
    assert_eq!(only(batch).unwrap_err().pointer, "/type");
}
