//! Bytes: what survives, what is refused, and how much may come out.

use rstest::rstest;

use super::*;

const ODD: [&str; 14] = [
    "1.10",
    "12345678901234567890",
    "-12345678901234567890123456789012345678901234567890",
    "0.1000000000000000055511151231257827",
    "-0.0",
    "-0",
    "1e400",
    "1E+2",
    r#""\u00e9\/\ud83d\ude00\u0000""#,
    r#""\ud800 alone""#,
    "\"\u{2028}\u{feff}\"",
    r#"{"b":1,"a":2,"b":3}"#,
    "[ 1 ,\t2\r\n]",
    "{ }",
];

#[test]
fn values_survive_whatever_happens_around_them() {
    for value in ODD {
        let payload = format!(r#"{{"gone":1,"keep" : {value} ,"from":{value},"in":[{value} , 2]}}"#);
        let transform =
            format!(r#"{{"omit":["/gone","/in/1"],"rename":{{"/from":"/to"}},"set":{{"/set":{value}}}}}"#);
        let expected = format!(r#"{{"keep":{value},"to":{value},"in":[{value}],"set":{value}}}"#);
        assert_eq!(apply(&transform, &payload), expected);
        let map =
            r#"{"map":[{"$ptr":"/keep"},{"$ptr":"/in/0"},{"$ptr":"/q","default":VALUE},{"$literal":VALUE}]}"#;
        let expected = format!("[{value},{value},{value},{value}]");
        assert_eq!(apply(&map.replace("VALUE", value), &payload), expected);
    }
}

#[test]
fn keys_keep_order_and_spelling() {
    let payload = r#"{"z":1,"\u0061":2,"a\/b":3,"m":4,"\ud800":5,"":6}"#;
    assert_eq!(apply(r#"{"omit":["/m"]}"#, payload), r#"{"z":1,"\u0061":2,"a\/b":3,"\ud800":5,"":6}"#);
}

#[test]
fn what_no_rule_changes_keeps_its_whitespace() {
    let payload = "{ \"a\" : { \"x\" : 1 } , \"b\" : [ 1 , { \"y\" : 2 } ] }";
    // Looked into on the way, and unchanged.
    assert_eq!(apply(r#"{"omit":["/a/q","/b/1/q"]}"#, payload), payload);
    assert_eq!(apply(r#"{"omit":["/a/x","/b/1/q"]}"#, payload), r#"{"a":{},"b":[ 1 , { "y" : 2 } ]}"#);
    assert_eq!(apply(r#"{"set":{"/b/0":7}}"#, payload), r#"{"a":{ "x" : 1 },"b":[7,{ "y" : 2 }]}"#);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_value() {
    assert_eq!(apply(r#"{"omit":["/a"]}"#, "\u{feff}{\"a\":1}"), "{}");
}

#[rstest]
#[case::omit(r#"{"omit":["/a"]}"#)]
#[case::omit_below(r#"{"omit":["/a/b"]}"#)]
#[case::rename(r#"{"rename":{"/a":"/b"}}"#)]
#[case::rename_onto(r#"{"rename":{"/b":"/a"}}"#)]
#[case::set(r#"{"set":{"/a":1}}"#)]
#[case::ptr(r#"{"map":[{"$ptr":"/a","default":1}]}"#)]
#[case::text(r#"{"map":[{"$text":"{/a}"}]}"#)]
fn a_name_that_is_there_twice_is_nobodys(#[case] json: &str) {
    for payload in [r#"{"a":1,"b":2,"a":3}"#, r#"{"a":1,"b":2,"\u0061":3}"#] {
        assert_eq!(failure(json, payload), ("duplicate_key", "/a".to_owned()));
    }
}

#[test]
fn a_name_that_is_there_twice_and_not_asked_for_survives() {
    let payload = r#"{"a":1,"b":2,"a":{"c":1,"c":2}}"#;
    assert_eq!(apply(r#"{"omit":["/b"]}"#, payload), r#"{"a":1,"a":{"c":1,"c":2}}"#);
}

#[rstest]
#[case::empty(b"")]
#[case::cut(b"{\"a\":1")]
#[case::two(b"{} {}")]
#[case::trailing_comma(b"{\"a\":1,}")]
#[case::leading_zero(b"[01]")]
#[case::not_a_number(b"NaN")]
#[case::single_quotes(b"{'a':1}")]
#[case::control_in_a_string(b"\"\n\"")]
#[case::bad_escape(b"\"\\x\"")]
#[case::not_utf_8(b"\"\xff\"")]
#[case::inside(b"{\"a\":{\"b\":[1 2]}}")]
fn what_is_no_json_is_refused(#[case] payload: &[u8]) {
    for json in ["{}", r#"{"omit":["/a"]}"#, r#"{"map":1}"#] {
        let error = transform(json).apply(payload, &context(), LIMIT_BYTES).unwrap_err();
        assert_eq!((error.code(), error.pointer()), ("malformed_payload", ""));
    }
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

#[test]
fn depth_is_bounded_coming_and_going() {
    let deepest = nested(DEPTH_LIMIT);
    let steps = "/0".repeat(POINTER_TOKEN_LIMIT);
    assert_eq!(apply(&format!(r#"{{"omit":["{steps}"]}}"#), &deepest), nested(POINTER_TOKEN_LIMIT));
    assert_eq!(failure("{}", &nested(DEPTH_LIMIT + 1)).0, "too_deep");
    assert_eq!(failure(r#"{"map":[{"$ptr":""}]}"#, &deepest).0, "too_deep");
    assert_eq!(failure("{}", &nested(100_000)).0, "too_deep");
    assert_eq!(failure(r#"{"map":1}"#, &"[".repeat(100_000)).0, "malformed_payload");
}

#[rstest]
#[case::identity("{}", r#"{"a":"123456"}"#)]
#[case::omit(r#"{"omit":["/b"]}"#, r#"{"a":"123456","b":"1234567890"}"#)]
#[case::set(r#"{"set":{"/a":"123456"}}"#, "{}")]
#[case::map(r#"{"map":{"a":{"$ptr":""}}}"#, r#""123456""#)]
#[case::text(r#"{"map":{"a":{"$text":"{}1{/0}{/0}"}}}"#.replace("{}", ""), r#"["234",0]"#)]
#[case::absent_members_do_not_count(r#"{"map":{"a":"123456","a_long_name":{"$ptr":"/b"}}}"#, "{}")]
fn output_is_bounded_to_the_byte(#[case] json: String, #[case] payload: &str) {
    let transform = transform(&json);
    let out = transform.apply(payload.as_bytes(), &context(), LIMIT_BYTES).unwrap();
    let exactly = transform.apply(payload.as_bytes(), &context(), out.len()).unwrap();
    assert_eq!(out, exactly);
    for limit_bytes in 0..out.len() {
        let error = transform.apply(payload.as_bytes(), &context(), limit_bytes).unwrap_err();
        assert_eq!(error, TransformError::TooLarge { limit_bytes });
    }
}

#[test]
fn a_template_can_not_blow_a_payload_up() {
    let copies = vec![r#"{"$ptr":""}"#; RULE_LIMIT].join(",");
    let payload = format!("\"{}\"", "x".repeat(100_000));
    assert_eq!(failure(&format!(r#"{{"map":[{copies}]}}"#), &payload).0, "too_large");
    let text = "{/0}".repeat(RULE_LIMIT);
    let text = format!(r#"{{"map":{{"$text":"{text}"}}}}"#);
    assert_eq!(failure(&text, &format!("[{payload}]")).0, "too_large");
}
