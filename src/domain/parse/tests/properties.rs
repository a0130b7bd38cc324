//! Generated input: payload bytes survive, and nothing makes the parser panic.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// Every way of arriving; whichever it is, the data must come out as it went in.
fn arrivals(value: &str) -> Vec<Draft> {
    let structured = format!("{{\"id\":\"e\", \"data\" :{value}\n,\"type\":\"t\"}}");
    let short = format!(r#"{{"eventType":"t","payload":{value}}}"#);
    let envelope = |attributes: &str, data: &str| {
        let data = STANDARD.encode(data);
        format!(
            r#"{{"message":{{"attributes":{attributes},"data":"{data}","messageId":"m"}},"subscription":"s"}}"#
        )
    };
    let mut drafts = vec![
        event(&structured),
        event(&short),
        event(&format!("[{structured}]")),
        event(&envelope("{}", &format!("[{structured}]"))),
        event(&envelope(r#"{"ce-type":"t"}"#, value)),
    ];
    let headers = headers(&[("ce-type", "t")]);
    let incoming =
        Incoming { body: value.to_owned().into(), content_type: Some(JSON), headers: &headers, tenant: None };
    drafts.push(only(parse(&incoming, &settings()).unwrap()).unwrap());
    drafts
}

#[rstest]
#[case::trailing_zero("1.10")]
#[case::twenty_digits("12345678901234567890123")]
#[case::huge_exponent("[1e400,-0,-0.0,1E+2]")]
#[case::key_order(r#"{"b":1,"a":2}"#)]
#[case::duplicate_keys(r#"{"a":1,"a":2,"type":"x","type":"y","id":1}"#)]
#[case::lone_surrogate(r#"{"\ud800":"\udfff \ud83d\ude00"}"#)]
#[case::escapes(r#""\u0000\u00e9\/\"\\""#)]
#[case::odd_unicode("\"\u{feff}\u{202e}é e\u{301} \u{10ffff}\"")]
#[case::whitespace("{ \"a\" :\r\n\t[ ] }")]
#[case::escape_at_the_end(r#""\\""#)]
fn payload_bytes_survive(#[case] value: &str) {
    for draft in arrivals(value) {
        assert_eq!(data(&draft), Some(value));
        assert_eq!(draft.fingerprint, Fingerprint::of("t", Some(value)));
    }
}

/// Insignificant whitespace.
fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

fn string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[^\"\\\\\u{0}-\u{1f}]{0,4}",
        r#"\\["\\/bfnrt]"#,
        r"\\u[0-9a-fA-F]{4}",
        Just("[{".to_owned()),
        Just("type".to_owned()),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

/// JSON text (RFC 8259), odd corners included.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,4})?",
        string(),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        let padded =
            (space(), inner, space()).prop_map(|(before, value, after)| before + &value + &after).boxed();
        let member = (space(), string(), space(), padded.clone())
            .prop_map(|(before, name, after, value)| format!("{before}{name}{after}:{value}"));
        prop_oneof![
            prop::collection::vec(padded, 0..5).prop_map(|elements| format!("[{}]", elements.join(","))),
            prop::collection::vec(member, 0..5).prop_map(|members| format!("{{{}}}", members.join(","))),
        ]
    })
}

/// Pieces that come near to being what the parser reads.
fn nearly_an_event() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => json_text(),
        4 => prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "\u{feff}", "\"type\":\"t\"", "\"eventType\":\"t\"",
            "\"id\":", "\"tenant\":", "\"data\":", "\"payload\":", "\"message\":{", "\"subscription\":\"s\"",
            "\"attributes\":{", "\"ce-type\":\"t\"", "\"messageId\":\"m\"", "\"data\":\"e30=\"",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Whatever `body` is, it is read or refused, and what is read is consistent.
fn check_any(body: &[u8], content_type: Option<&str>, ce_type: Option<&[u8]>) {
    let mut headers = HeaderMap::new();
    if let Some(value) = ce_type.and_then(|value| HeaderValue::from_bytes(value).ok()) {
        headers.insert("ce-type", value);
    }
    let incoming =
        Incoming { body: Bytes::copy_from_slice(body), content_type, headers: &headers, tenant: None };
    let Ok(batch) = parse(&incoming, &settings()) else { return };
    for item in batch.items {
        let Ok(draft) = item.result else { continue };
        assert!(draft.body.starts_with(b"{") && draft.body.ends_with(b"}"));
        assert_eq!(draft.fingerprint, Fingerprint::of(&draft.event_type, data(&draft)));
        // What was accepted is an event on its own as well, and the same one.
        let again = only(parse_as("application/cloudevents+json", draft.body.clone(), &settings()).unwrap());
        let again = again.unwrap();
        assert_eq!(
            (again.event_type, again.source, again.data),
            (draft.event_type, draft.source, draft.data)
        );
    }
}

proptest! {
    #[test]
    fn any_json_value_survives_as_data(value in json_text()) {
        for draft in arrivals(&value) {
            prop_assert_eq!(data(&draft), Some(value.as_str()));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        content_type in prop::option::of(prop_oneof![Just(JSON.to_owned()), any::<String>()]),
        ce_type in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
    ) {
        check_any(&body, content_type.as_deref(), ce_type.as_deref());
    }

    #[test]
    fn near_misses_never_panic(text in nearly_an_event(), is_binary in any::<bool>(), is_wrapped in any::<bool>()) {
        let ce_type = is_binary.then_some(&b"%74"[..]);
        check_any(text.as_bytes(), Some(JSON), ce_type);
        if is_wrapped {
            let data = STANDARD.encode(&text);
            let push = format!(r#"{{"message":{{"data":"{data}","messageId":"m"}},"subscription":"s"}}"#);
            check_any(push.as_bytes(), Some(JSON), None);
        }
    }

    #[test]
    fn broken_json_of_any_kind_is_malformed_or_whole(text in json_text(), cut in any::<prop::sample::Index>()) {
        // A prefix of valid text is never read as something else.
        let whole = format!(r#"{{"type":"t","data":{text}}}"#);
        let mut at = cut.index(whole.len());
        while !whole.is_char_boundary(at) {
            at -= 1;
        }
        prop_assert!(parse_as(JSON, whole[..at].to_owned(), &settings()).is_err());
    }
}
