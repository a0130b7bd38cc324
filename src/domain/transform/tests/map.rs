//! `map`.

use rstest::rstest;

use super::*;

const PAYLOAD: &str =
    r#"{"n": 1.10, "s": "a\u00e9\"b", "t": true, "z": null, "o": { "x" : [ 1, {"y":2} ] }, "e": ""}"#;

fn map(template: &str) -> String {
    apply(&format!(r#"{{"map":{template}}}"#), PAYLOAD)
}

#[rstest]
#[case::scalar("5.0", "5.0")]
#[case::string(r#""{/n} is plain \u00e9""#, r#""{/n} is plain \u00e9""#)]
#[case::empty_object("{ }", "{}")]
#[case::empty_array("[ ]", "[]")]
#[case::nested(r#"{ "b" : [ 1, {"a":null} ], "a": 2 }"#, r#"{"b":[1,{"a":null}],"a":2}"#)]
#[case::number(r#"{"$ptr":"/n"}"#, "1.10")]
#[case::string_keeps_its_escapes(r#"{"$ptr":"/s"}"#, r#""a\u00e9\"b""#)]
#[case::object_keeps_its_text(r#"[{"$ptr":"/o"}]"#, r#"[{ "x" : [ 1, {"y":2} ] }]"#)]
#[case::inside(r#"{"$ptr":"/o/x/1/y"}"#, "2")]
#[case::looked_into_and_still_as_it_came(
    r#"[{"$ptr":"/o/x/1/y"},{"$ptr":"/o"}]"#,
    r#"[2,{ "x" : [ 1, {"y":2} ] }]"#
)]
#[case::null_is_there(r#"{"a":{"$ptr":"/z","default":1}}"#, r#"{"a":null}"#)]
#[case::absent_member(r#"{"a":{"$ptr":"/q"},"b":1}"#, r#"{"b":1}"#)]
#[case::absent_first_and_last(r#"{"a":{"$ptr":"/q"},"b":1,"c":{"$ptr":"/q"}}"#, r#"{"b":1}"#)]
#[case::absent_element(r#"[{"$ptr":"/q"},1,{"$ptr":"/q"},2]"#, "[1,2]")]
#[case::all_absent(r#"{"a":[{"$ptr":"/q"}],"b":{"c":{"$ptr":"/q"}}}"#, r#"{"a":[],"b":{}}"#)]
#[case::default(r#"{"$ptr":"/q","default": { "x" : 1.0 } }"#, r#"{ "x" : 1.0 }"#)]
#[case::default_is_no_template(r#"{"default":{"$ptr":"/n"},"$ptr":"/q"}"#, r#"{"$ptr":"/n"}"#)]
#[case::default_of_what_is_there(r#"{"$ptr":"/n","default":2}"#, "1.10")]
#[case::required(r#"{"$ptr":"/n","required":true}"#, "1.10")]
#[case::not_required(r#"[{"$ptr":"/q","required":false}]"#, "[]")]
#[case::literal(r#"{"a":{"$literal":{"$ptr":"/n"}}}"#, r#"{"a":{"$ptr":"/n"}}"#)]
#[case::literal_null(r#"{"$literal":null}"#, "null")]
#[case::dollar_names(r#"{"$$set":{"$ptr":"/n"},"$$$x":1,"a$":2}"#, r#"{"$set":1.10,"$$x":1,"a$":2}"#)]
#[case::option_names_without_a_directive(
    r#"{"default":1,"required":"x"}"#,
    r#"{"default":1,"required":"x"}"#
)]
#[case::escaped_directive(r#"{"\u0024ptr":"\/n"}"#, "1.10")]
#[case::id(r#"{"$event":"id"}"#, r#""evt \"7\"""#)]
#[case::event_type(r#"{"$event":"type"}"#, r#""order.paid""#)]
#[case::tenant(r#"{"$event":"tenant"}"#, r#""acme""#)]
#[case::source(r#"{"$event":"source"}"#, r#""/shop""#)]
#[case::received_at(r#"{"$event":"received_at"}"#, r#""2026-01-31T23:59:59.007Z""#)]
fn templates(#[case] template: &str, #[case] expected: &str) {
    assert_eq!(map(template), expected);
}

#[rstest]
#[case::plain("plain", "plain")]
#[case::empty("", "")]
#[case::number("{/n}", "1.10")]
#[case::string("<{/s}>", r#"<a\u00e9\"b>"#)]
#[case::empty_string("<{/e}>", "<>")]
#[case::boolean_and_null("{/t}{/z}", "truenull")]
#[case::inside("{/o/x/0}", "1")]
#[case::braces("{{{/n}}} {{}} {{/n}}", "{1.10} {} {/n}")]
#[case::attributes("{$event.type} of {$event.id}", r#"order.paid of evt \"7\""#)]
#[case::escapes(r#"\"\n\u0001é"#, r#"\"\u000a\u0001é"#)]
fn texts(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(map(&format!(r#"{{"$text":"{text}"}}"#)), format!(r#""{expected}""#));
}

#[rstest]
#[case::left_out(r#"{"a":{"$text":"x{/q}"},"b":1}"#, r#"{"b":1}"#)]
#[case::default(r#"{"$text":"x{/q}","default":null}"#, "null")]
fn a_text_is_absent_when_one_of_its_values_is(#[case] template: &str, #[case] expected: &str) {
    assert_eq!(map(template), expected);
}

#[rstest]
#[case::required(r#"{"a":{"$ptr":"/o/q","required":true}}"#, "missing", "/o/q")]
#[case::required_text(r#"{"a":{"$text":"{/n}{/o/q}","required":true}}"#, "missing", "/o/q")]
#[case::nothing_left(r#"{"$ptr":"/q"}"#, "missing", "/q")]
#[case::object_in_a_text(r#"{"$text":"{/o}"}"#, "not_text", "/o")]
#[case::opened_object_in_a_text(r#"{"$text":"{/o/x/0}{/o}"}"#, "not_text", "/o")]
#[case::array_in_a_text(r#"{"$text":"{/o/x}"}"#, "not_text", "/o/x")]
#[case::default_does_not_help_there(r#"{"$text":"{/o/x}","default":""}"#, "not_text", "/o/x")]
fn failures(#[case] template: &str, #[case] code: &'static str, #[case] pointer: &str) {
    assert_eq!(failure(&format!(r#"{{"map":{template}}}"#), PAYLOAD), (code, pointer.to_owned()));
}

#[test]
fn an_event_without_a_source_has_none() {
    let apply = |template: &str| {
        let context = Context { source: "", ..context() };
        let transform = transform(&format!(r#"{{"map":{template}}}"#));
        transform.apply(b"{}", &context, LIMIT_BYTES).map(|out| String::from_utf8(out.into_owned()).unwrap())
    };
    assert_eq!(apply(r#"{"a":{"$event":"source"}}"#).unwrap(), "{}");
    assert_eq!(apply(r#"{"$event":"source","default":"x"}"#).unwrap(), r#""x""#);
    let error = apply(r#"{"$text":"{$event.source}","required":true}"#).unwrap_err();
    assert_eq!((error.code(), error.pointer()), ("missing", "$event.source"));
}

#[test]
fn the_payload_may_be_any_json() {
    assert_eq!(apply(r#"{"map":{"v":{"$ptr":""}}}"#, " [ 1 ] "), r#"{"v":[ 1 ]}"#);
    assert_eq!(apply(r#"{"map":{"v":{"$ptr":"/0"}}}"#, "\"s\""), "{}");
}
