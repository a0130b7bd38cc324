//! Events in JSON: CloudEvents and the short form.

use rstest::rstest;

use super::*;

#[test]
fn one_event_is_taken_as_it_stands() {
    let text = r#"{"specversion":"1.0", "id":"e-1", "type":"order.created", "source":"/shop", "tenant":"acme",
        "time":"2026-01-31T23:59:59.5+01:00", "orderId": 7, "data" : {"n": 1.10}}"#;
    let batch = parse_json(format!("\n {text}\r\n"));
    assert_eq!(batch.shape, Shape::Single);
    assert_eq!(batch.items[0].raw, text);
    let draft = only(batch).unwrap();
    assert_eq!((&*draft.tenant, &*draft.source, &*draft.event_type), ("acme", "/shop", "order.created"));
    assert_eq!(draft.id.as_deref(), Some("e-1"));
    assert_eq!(body(&draft), text);
    assert_eq!(data(&draft), Some(r#"{"n": 1.10}"#));
    assert_eq!(draft.fingerprint, Fingerprint::of("order.created", Some(r#"{"n":1.10}"#)));
}

#[test]
fn elements_are_slices_of_the_body_in_order() {
    let body =
        Bytes::from_static(br#" [ {"type":"a","data":1} , {"type":"b"},{"eventType":"c","payload":[]} ] "#);
    let batch = parse_json(body.clone());
    assert_eq!(batch.shape, Shape::Array);
    let bounds = body.as_ptr_range();
    let types: Vec<_> = batch
        .items
        .into_iter()
        .map(|item| {
            let draft = item.result.unwrap();
            // Not a byte was copied.
            assert!(bounds.contains(&draft.body.as_ptr()) && bounds.contains(&item.raw.as_ptr()));
            (draft.event_type.to_string(), data(&draft).map(str::to_owned))
        })
        .collect();
    let expected = [("a", Some("1")), ("b", None), ("c", Some("[]"))];
    assert_eq!(types, expected.map(|(name, data)| (name.to_owned(), data.map(str::to_owned))));
}

#[test]
fn an_empty_array_is_an_empty_batch() {
    for content_type in [JSON, "application/cloudevents-batch+json"] {
        assert!(parse_as(content_type, "[]", &settings()).unwrap().items.is_empty());
    }
}

#[test]
fn a_bad_element_leaves_the_others_alone() {
    // holds: 5
    let batch = parse_json(r#"[{"type":"a"}, 7, {"id":"x","project":"p"}, null, {"type":"b"}]"#);
    let reasons: Vec<_> = batch
        .items
        .iter()
        .map(|item| item.result.as_ref().err().map(|invalid| invalid.pointer.as_str()))
        .collect();
    assert_eq!(reasons, [None, Some(""), Some("/type"), Some(""), None]);
    assert_eq!(batch.items[1].raw, "7");
    let invalid = batch.items[1].result.as_ref().unwrap_err();
    assert_eq!(invalid.detail, "expected an object, found a number");
    assert_eq!((invalid.id.as_deref(), invalid.tenant.as_deref()), (None, Some("standard")));
    let invalid = batch.items[2].result.as_ref().unwrap_err();
    assert_eq!((invalid.id.as_deref(), invalid.tenant.as_deref()), (Some("x"), Some("p")));
}

#[rstest]
#[case::data(r#"{"eventType":"t","data":{"a":1},"eventId":"e"}"#, Some("e"), Some(r#"{"a":1}"#))]
#[case::payload(r#"{"payload":[1],"eventType":"t"}"#, None, Some("[1]"))]
#[case::without_data(r#"{"eventType":"t"}"#, None, None)]
#[case::null_type(r#"{"eventType":"t","type":null,"data":0}"#, None, Some("0"))]
#[case::id_is_not_lost(r#"{"eventType":"t","id":"e"}"#, Some("e"), None)]
#[case::event_id_counts(r#"{"eventType":"t","id":7,"eventId":"e"}"#, Some("e"), None)]
#[case::time_is_free(r#"{"eventType":"t","time":1700000000,"specversion":2}"#, None, None)]
#[case::null_beside_payload(r#"{"eventType":"t","data":null,"payload":2}"#, None, Some("2"))]
#[case::null_payload(r#"{"eventType":"t","payload":null}"#, None, Some("null"))]
fn the_short_form(#[case] text: &str, #[case] id: Option<&str>, #[case] expected: Option<&str>) {
    let draft = event(text);
    assert_eq!((&*draft.event_type, draft.id.as_deref(), data(&draft)), ("t", id, expected));
}

#[rstest]
#[case::no_id(r#"{"type":"t"}"#)]
#[case::null_attributes(
    r#"{"type":"t","id":null,"source":null,"time":null,"specversion":null,"data_base64":null}"#
)]
#[case::short_names_are_extensions(r#"{"type":"t","eventType":7,"eventId":{},"payload":"x"}"#)]
#[case::envelope_names_are_extensions(r#"{"type":"t","message":{},"subscription":"s"}"#)]
#[case::repeated_extension(r#"{"type":"t","subject":"a","subject":"b","message":1,"message":2}"#)]
#[case::odd_name(r#"{"type":"t","\ud800":1}"#)]
#[case::escaped_names(r#"{"\u0074ype":"\u0074"}"#)]
#[case::empty_source(r#"{"type":"t","source":""}"#)]
fn lenient_cloudevents(#[case] text: &str) {
    let draft = event(text);
    assert_eq!((&*draft.event_type, &*draft.source, &draft.id, data(&draft)), ("t", "", &None, None));
    assert_eq!(body(&draft), text);
}

#[rstest]
#[case::null(r#"{"type":"t","data":null}"#, "null")]
#[case::base64(r#"{"type":"t","data_base64":"aGk="}"#, r#""aGk=""#)]
#[case::null_beside_base64(r#"{"type":"t","data":null,"data_base64":"aGk="}"#, r#""aGk=""#)]
#[case::null_base64(r#"{"type":"t","data":1,"data_base64":null}"#, "1")]
fn where_data_stands(#[case] text: &str, #[case] expected: &str) {
    let draft = event(text);
    assert_eq!(data(&draft), Some(expected));
    assert_eq!(draft.fingerprint, Fingerprint::of("t", Some(expected)));
}

#[rstest]
#[case::no_type(r#"{"data":1}"#, "/type", "`type` is missing (`eventType` in the short form)")]
#[case::empty_type(r#"{"type":""}"#, "/type", "`type` must not be empty")]
#[case::integer_type(r#"{"type":1}"#, "/type", "`type` must be a string, not a number")]
#[case::integer_id(r#"{"type":"t","id":12}"#, "/id", "`id` must be a string, not a number")]
#[case::empty_id(r#"{"type":"t","id":""}"#, "/id", "`id` must not be empty")]
#[case::nul(r#"{"type":"t","id":"a\u0000"}"#, "/id", "`id` holds a control character")]
#[case::c1(r#"{"type":"t","id":"a\u0085"}"#, "/id", "`id` holds a control character")]
#[case::surrogate(r#"{"type":"t","id":"\ud800"}"#, "/id", "`id` is not valid Unicode")]
#[case::source(r#"{"type":"t","source":["/a"]}"#, "/source", "`source` must be a string, not an array")]
#[case::source_newline(r#"{"type":"t","source":"\n"}"#, "/source", "`source` holds a control character")]
#[case::version(r#"{"type":"t","specversion":"0.3"}"#, "/specversion", "`specversion` must be 1.0")]
#[case::number_version(
    r#"{"type":"t","specversion":1.0}"#,
    "/specversion",
    "`specversion` must be a string, not a number"
)]
#[case::time(r#"{"type":"t","time":true}"#, "/time", "`time` must be a string, not a boolean")]
#[case::two_data(
    r#"{"type":"t","data":1,"data_base64":"aGk="}"#,
    "/data_base64",
    "`data_base64` can't stand next to `data`"
)]
#[case::base64_object(
    r#"{"type":"t","data_base64":{}}"#,
    "/data_base64",
    "`data_base64` must be a string, not an object"
)]
#[case::data_and_payload(
    r#"{"eventType":"t","payload":1,"data":2}"#,
    "/payload",
    "`payload` can't stand next to `data`"
)]
#[case::short_type(r#"{"eventType":[]}"#, "/eventType", "`eventType` must be a string, not an array")]
#[case::short_id(r#"{"eventType":"t","eventId":5}"#, "/eventId", "`eventId` must be a string, not a number")]
#[case::empty_tenant(r#"{"type":"t","tenant":""}"#, "/tenant", "`tenant` must not be empty")]
#[case::tenant_object(
    r#"{"type":"t","accountId":{}}"#,
    "/accountId",
    "`accountId` must be a string, not an object"
)]
fn invalid_events(#[case] text: &str, #[case] pointer: &str, #[case] detail: &str) {
    // holds: 5
    let invalid = refusal(text);
    assert_eq!((invalid.pointer.as_str(), invalid.detail.as_str()), (pointer, detail));
}

#[rstest]
#[case::id("id", r#""a""#)]
#[case::kind("type", r#""a""#)]
#[case::source("source", r#""a""#)]
#[case::tenant("tenant", r#""a""#)]
#[case::second_tenant("project", r#""a""#)]
#[case::null_first("project", "null")]
#[case::data("data", "1")]
#[case::event_type("eventType", r#""a""#)]
#[case::event_id("eventId", r#""a""#)]
#[case::payload("payload", "1")]
#[case::specversion("specversion", r#""1.0""#)]
fn what_we_act_upon_appears_once(#[case] name: &str, #[case] first: &str) {
    // However the second one is spelt.
    let escaped = format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..]);
    for second in [name, &escaped] {
        let invalid = refusal(&format!(r#"{{"{name}":{first},"x":1,"{second}":"b"}}"#));
        assert_eq!(invalid.pointer, format!("/{name}"));
        assert_eq!(invalid.detail, format!("`{name}` appears twice"));
    }
}

#[test]
fn names_have_256_bytes_at_most() {
    let (fits, long) = ("é".repeat(128), "x".repeat(257));
    for name in ["id", "type", "source", "tenant"] {
        let rest = if name == "type" { "" } else { r#","type":"t""# };
        event(&format!(r#"{{"{name}":"{fits}"{rest}}}"#));
        let invalid = refusal(&format!(r#"{{"{name}":"{long}"{rest}}}"#));
        assert_eq!(invalid.pointer, format!("/{name}"));
        assert_eq!(invalid.detail, format!("`{name}` is longer than 256 bytes"));
    }
}

#[rstest]
#[case("2026-01-31T23:59:59Z", true)]
#[case("2024-02-29t00:00:00.123456789z", true)]
#[case("2016-12-31T23:59:60Z", true)]
#[case("1990-12-31T15:59:59-08:00", true)]
#[case("2026-01-31 23:59:59Z", false)]
#[case("2026-01-31T23:59:59", false)]
#[case("2026-01-31T23:59:59.Z", false)]
#[case("2026-01-31T23:59:59+0100", false)]
#[case("2026-01-31T23:59:59+24:00", false)]
#[case("2026-01-31T24:00:00Z", false)]
#[case("2026-01-31T23:60:00Z", false)]
#[case("2026-13-01T00:00:00Z", false)]
#[case("2026-04-31T00:00:00Z", false)]
#[case("2100-02-29T00:00:00Z", false)]
#[case("2026-00-01T00:00:00Z", false)]
#[case("2026-01-00T00:00:00Z", false)]
#[case("+026-01-01T00:00:00Z", false)]
#[case("2026-01-01T00:00:00Zé", false)]
#[case("yesterday", false)]
#[case("", false)]
fn times_are_rfc_3339(#[case] time: &str, #[case] expected: bool) {
    let batch = parse_json(format!(r#"{{"type":"t","time":"{time}"}}"#));
    assert_eq!(only(batch).map_err(|invalid| invalid.pointer).is_ok(), expected);
}

#[rstest]
#[case::configured_order(r#"{"type":"t","project":"p","tenant":"t1"}"#, Some("h"), "t1")]
#[case::later_name(r#"{"type":"t","accountId":"a"}"#, Some("h"), "a")]
#[case::null_is_absent(r#"{"type":"t","tenant":null,"project":"p"}"#, Some("h"), "p")]
#[case::header(r#"{"type":"t"}"#, Some("h"), "h")]
#[case::standard(r#"{"type":"t"}"#, None, "standard")]
fn where_the_tenant_comes_from(#[case] text: &str, #[case] header: Option<&str>, #[case] expected: &str) {
    let incoming = Incoming {
        body: text.to_owned().into(),
        content_type: Some(JSON),
        headers: &HeaderMap::new(),
        tenant: header,
    };
    assert_eq!(&*only(parse(&incoming, &settings()).unwrap()).unwrap().tenant, expected);
}

#[test]
fn an_attribute_may_be_ours_and_the_tenant_as_well() {
    let settings = ParseSettings { tenant_attributes: vec!["source".into(), "a/b~c".into()], ..settings() };
    let draft = only(parse_as(JSON, r#"{"type":"t","source":"acme"}"#, &settings).unwrap()).unwrap();
    assert_eq!((&*draft.tenant, &*draft.source), ("acme", "acme"));
    let invalid = only(parse_as(JSON, r#"{"type":"t","a/b~c":1}"#, &settings).unwrap()).unwrap_err();
    assert_eq!(invalid.pointer, "/a~1b~0c");
}

#[test]
fn without_any_tenant_every_way_is_named() {
    let settings = ParseSettings { default_tenant: None, ..settings() };
    let invalid = only(parse_as(JSON, r#"{"type":"t","id":"e"}"#, &settings).unwrap()).unwrap_err();
    assert_eq!(invalid.pointer, "/tenant");
    assert_eq!(
        invalid.detail,
        "no tenant: it comes from the attribute `tenant` or `project` or `accountId`, the header X-Tenant, \
         a configured default tenant"
    );
    assert_eq!((invalid.id.as_deref(), invalid.tenant), (Some("e"), None));
}

#[rstest]
#[case("", "the header X-Tenant must not be empty")]
#[case("a\tb", "the header X-Tenant holds a control character")]
fn a_bad_tenant_header_is_no_tenant(#[case] header: &str, #[case] detail: &str) {
    let incoming = Incoming {
        body: r#"[{"type":"t"},{"type":"t","tenant":"fine"}]"#.into(),
        content_type: Some(JSON),
        headers: &HeaderMap::new(),
        tenant: Some(header),
    };
    let batch = parse(&incoming, &settings()).unwrap();
    assert_eq!(batch.items[0].result.as_ref().unwrap_err().detail, detail);
    assert!(batch.items[1].result.is_ok());
}

#[test]
fn an_id_can_be_required() {
    // holds: 5
    let settings = ParseSettings { require_id: true, ..settings() };
    for (text, pointer) in [(r#"{"type":"t"}"#, "/id"), (r#"{"eventType":"t","eventId":null}"#, "/eventId")] {
        let invalid = only(parse_as(JSON, text, &settings).unwrap()).unwrap_err();
        assert_eq!(invalid.pointer, pointer);
    }
    assert!(only(parse_as(JSON, r#"{"type":"t","id":"e"}"#, &settings).unwrap()).is_ok());
}

#[test]
fn an_event_has_its_own_size_limit() {
    // holds: 5
    let fill = "x".repeat(4096 - r#"{"type":"t","id":"e","data":""}"#.len());
    event(&format!(r#"{{"type":"t","id":"e","data":"{fill}"}}"#));
    let batch = parse_json(format!(r#"[{{"type":"t","id":"e","data":"x{fill}"}},{{"type":"t"}}]"#));
    let invalid = batch.items[0].result.as_ref().unwrap_err();
    assert_eq!(invalid.detail, "the event has 4097 bytes, more than the 4096 allowed");
    assert_eq!((invalid.pointer.as_str(), invalid.id.as_deref()), ("", Some("e")));
    assert!(batch.items[1].result.is_ok());
}

#[test]
fn a_missing_id_is_made_and_a_given_one_kept() {
    let made = event(r#"{"type":"t","source":"s"}"#).into_event(|| "evt_made".to_owned());
    assert_eq!(
        (&*made.identity.id, &*made.identity.source, &*made.identity.tenant),
        ("evt_made", "s", "standard")
    );
    let given = event(r#"{"type":"t","id":"e","data":1}"#).into_event(|| unreachable!());
    assert_eq!((&*given.identity.id, given.data), ("e", Some(28..29)));
}
