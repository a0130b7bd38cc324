//! CloudEvents binary mode over HTTP.

use rstest::rstest;

use super::*;

const BASE: [(&str, &str); 2] = [("ce-specversion", "1.0"), ("ce-type", "t")];

fn parse_binary(content_type: Option<&str>, extra: &[(&str, &str)], body: &str) -> Result<Batch, ParseError> {
    let headers = headers(&[&BASE[..], extra].concat());
    let incoming = Incoming { body: body.to_owned().into(), content_type, headers: &headers, tenant: None };
    parse(&incoming, &settings())
}

fn binary_event(extra: &[(&str, &str)], body: &str) -> Draft {
    only(parse_binary(Some(JSON), extra, body).unwrap()).unwrap()
}

#[test]
fn attributes_are_written_around_the_data() {
    let batch = parse_binary(
        Some("application/vnd.shop+json; charset=utf-8"),
        &[
            ("host", "localhost"),
            ("ce-id", "e-1"),
            ("ce-source", "/shop"),
            ("ce-time", "2026-01-31T23:59:59Z"),
            ("ce-tenant", "acme"),
            ("ce-quote", "a%22b%5Cc%0A"),
        ],
        " {\"n\": 1.10,\n\"n\":\"\\ud800\"}\n",
    );
    let batch = batch.unwrap();
    assert_eq!(batch.shape, Shape::Single);
    assert_eq!(batch.items[0].raw, " {\"n\": 1.10,\n\"n\":\"\\ud800\"}\n");
    let draft = only(batch).unwrap();
    assert_eq!(
        body(&draft),
        concat!(
            r#"{"specversion":"1.0","type":"t","id":"e-1","source":"/shop","time":"2026-01-31T23:59:59Z","#,
            r#""tenant":"acme","quote":"a\"b\\c\u000a","datacontenttype":"application/vnd.shop+json; charset=utf-8","#,
            "\"data\":{\"n\": 1.10,\n\"n\":\"\\ud800\"}}"
        )
    );
    assert_eq!(data(&draft), Some("{\"n\": 1.10,\n\"n\":\"\\ud800\"}"));
    assert_eq!((&*draft.tenant, &*draft.source, draft.id.as_deref()), ("acme", "/shop", Some("e-1")));
    assert_eq!(draft.fingerprint, Fingerprint::of("t", data(&draft)));
}

#[test]
fn the_type_alone_announces_it_and_the_version_is_added() {
    let headers = headers(&[("ce-type", "t")]);
    let incoming =
        Incoming { body: "[1]".into(), content_type: Some(JSON), headers: &headers, tenant: Some("h") };
    let draft = only(parse(&incoming, &settings()).unwrap()).unwrap();
    let expected = r#"{"specversion":"1.0","type":"t","datacontenttype":"application/json","data":[1]}"#;
    assert_eq!((body(&draft), &*draft.tenant), (expected, "h"));
}

#[rstest]
#[case(None, "")]
#[case(Some("text/plain"), "")]
#[case(Some(JSON), " \n")]
fn an_empty_body_is_no_data(#[case] content_type: Option<&str>, #[case] text: &str) {
    let draft = only(parse_binary(content_type, &[("ce-id", "e")], text).unwrap()).unwrap();
    assert_eq!((body(&draft), data(&draft)), (r#"{"specversion":"1.0","type":"t","id":"e"}"#, None));
}

#[rstest]
#[case::none(None)]
#[case::text(Some("text/plain"))]
#[case::bytes(Some("application/octet-stream"))]
#[case::charset(Some("application/json; charset=latin1"))]
fn data_must_be_json(#[case] content_type: Option<&str>) {
    // holds: 5
    let error = parse_binary(content_type, &[], "{}").unwrap_err();
    assert!(matches!(error, ParseError::UnsupportedType { .. }), "{error:?}");
}

#[test]
fn broken_or_deep_data_is_refused() {
    // holds: 5
    let error = parse_binary(Some(JSON), &[], "{\n]").unwrap_err();
    assert!(matches!(error, ParseError::Malformed { line: 2, column: 1, .. }), "{error:?}");
    assert!(parse_binary(Some(JSON), &[], &nested(127)).is_ok());
    for levels in [128, 200_000] {
        assert_eq!(parse_binary(Some(JSON), &[], &nested(levels)).unwrap_err(), ParseError::TooDeep);
    }
}

#[test]
fn a_cloudevents_type_wins_over_the_headers() {
    let text = r#"{"type":"inner"}"#;
    let draft = only(parse_binary(Some("application/cloudevents+json"), &[], text).unwrap()).unwrap();
    assert_eq!((&*draft.event_type, body(&draft)), ("inner", text));
}

/// CloudEvents HTTP binding §3.1.3.2.
#[rstest]
#[case::plain("a-b", "a-b")]
#[case::binding_example("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀")]
#[case::lower_case("%e2%82%ac", "€")]
#[case::needless("%41%42", "AB")]
#[case::one_round("%2541", "%41")]
#[case::not_encoded("100%", "100%")]
#[case::not_hex("%zz%4", "%zz%4")]
#[case::raw_utf_8("é", "é")]
#[case::quoted("\"a b\"", "a b")]
#[case::quoted_escapes("\"a \\\"b\\\\ %43\"", "a \"b\\ C")]
#[case::half_quoted("\"a", "\"a")]
#[case::quote_inside("a\"b\"", "a\"b\"")]
fn header_values(#[case] value: &str, #[case] expected: &str) {
    let draft = binary_event(&[("ce-id", value), ("ce-subject", value)], "1");
    assert_eq!(draft.id.as_deref(), Some(expected));
    let relayed: serde_json::Value = serde_json::from_slice(&draft.body).unwrap();
    assert_eq!(relayed["subject"], expected);
}

#[rstest]
#[case::overlong(&[("ce-id", "%C0%A0")], "/id", "`id` is not UTF-8")]
#[case::extension(&[("ce-x", "%ff")], "/x", "`x` is not UTF-8")]
#[case::twice(&[("ce-x", "1"), ("ce-x", "2")], "/x", "`x` appears twice")]
#[case::nul(&[("ce-id", "%00")], "/id", "`id` holds a control character")]
#[case::data(&[("ce-data", "1")], "/data", "`data` can't be an attribute: it stands in the body")]
#[case::time(&[("ce-time", "now")], "/time", "`time` must be a timestamp by RFC 3339, e.g. 2026-01-31T23:59:59Z")]
#[case::empty_tenant(&[("ce-project", "")], "/project", "`project` must not be empty")]
fn invalid_attributes(#[case] extra: &[(&str, &str)], #[case] pointer: &str, #[case] detail: &str) {
    let invalid = only(parse_binary(Some(JSON), extra, "1").unwrap()).unwrap_err();
    assert_eq!((invalid.pointer.as_str(), invalid.detail.as_str()), (pointer, detail));
}

#[test]
fn an_invalid_attribute_leaves_id_and_tenant_known() {
    let extra = [("ce-x", "%ff"), ("ce-id", "e"), ("ce-tenant", "acme")];
    let invalid = only(parse_binary(Some(JSON), &extra, "1").unwrap()).unwrap_err();
    assert_eq!((invalid.id.as_deref(), invalid.tenant.as_deref()), (Some("e"), Some("acme")));
}

#[test]
fn versions_and_types_are_checked_as_in_json() {
    for (header, value, pointer) in [("ce-specversion", "0.3", "/specversion"), ("ce-type", "", "/type")] {
        let base = BASE.map(|(name, kept)| (name, if name == header { value } else { kept }));
        let headers = headers(&base);
        let incoming =
            Incoming { body: "1".into(), content_type: Some(JSON), headers: &headers, tenant: None };
        assert_eq!(only(parse(&incoming, &settings()).unwrap()).unwrap_err().pointer, pointer);
    }
}

#[test]
fn a_tenant_attribute_is_found_whatever_its_case() {
    // Configured as `accountId`; headers have no case.
    let draft = binary_event(&[("ce-accountid", "acme")], "1");
    assert_eq!(&*draft.tenant, "acme");
    assert!(body(&draft).contains(r#""accountId":"acme""#));
}

#[test]
fn the_content_type_is_the_datacontenttype() {
    let draft = binary_event(&[("ce-datacontenttype", "text/plain")], "1");
    let expected = r#"{"specversion":"1.0","type":"t","datacontenttype":"application/json","data":1}"#;
    assert_eq!(body(&draft), expected);
}

#[test]
fn the_written_event_keeps_to_the_size_limit() {
    let invalid =
        only(parse_binary(Some(JSON), &[], &format!("\"{}\"", "x".repeat(4090))).unwrap()).unwrap_err();
    assert_eq!(invalid.pointer, "");
}
