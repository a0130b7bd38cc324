//! What is refused when a transform is saved, and the place that is named.

use rstest::rstest;

use super::*;

#[rstest]
#[case::no_json("{", "", "not valid JSON: EOF while parsing an object at line 1 column 1")]
#[case::empty("", "", "not valid JSON")]
#[case::two("{} {}", "", "not valid JSON: trailing characters")]
#[case::array("[]", "", "expected an object, found an array")]
#[case::null("null", "", "expected an object, found null")]
#[case::unknown_member(r#"{"omit":[],"remove":[]}"#, "/remove", "no such member")]
#[case::unknown_member_to_be_escaped(r#"{"a/b~c":1}"#, "/a~1b~0c", "no such member")]
#[case::case_matters(r#"{"Omit":[]}"#, "/Omit", "no such member")]
#[case::member_twice(r#"{"set":{},"set":{}}"#, "/set", "appears twice")]
#[case::member_twice_in_disguise(r#"{"set":{},"s\u0065t":{}}"#, "/set", "appears twice")]
#[case::name_is_no_unicode(r#"{"\ud800":1}"#, "", "not valid Unicode")]
#[case::omit_is_no_array(r#"{"omit":"/a"}"#, "/omit", "expected an array, found a string")]
#[case::omit_of_no_string(r#"{"omit":["/a",7]}"#, "/omit/1", "expected a string, found a number")]
#[case::omit_of_no_unicode(r#"{"omit":["/\ud800"]}"#, "/omit/0", "not valid Unicode")]
#[case::no_slash(r#"{"omit":["a"]}"#, "/omit/0", "a pointer begins with `/`")]
#[case::uri_fragment(r##"{"omit":["#/a"]}"##, "/omit/0", "a pointer begins with `/`")]
#[case::json_path(r#"{"omit":["$.a"]}"#, "/omit/0", "a pointer begins with `/`")]
#[case::bad_escape(r#"{"omit":["/a~2"]}"#, "/omit/0", "`~0`")]
#[case::escape_at_the_end(r#"{"omit":["/a","/b~"]}"#, "/omit/1", "`~0`")]
#[case::escape_before_a_letter_of_two_bytes(r#"{"omit":["/~é"]}"#, "/omit/0", "`~0`")]
#[case::omit_everything(r#"{"omit":[""]}"#, "/omit/0", "`map` makes a new one")]
#[case::rename_is_no_object(r#"{"rename":["/a"]}"#, "/rename", "expected an object, found an array")]
#[case::rename_from_nowhere(r#"{"rename":{"a":"/b"}}"#, "/rename/a", "a pointer begins with `/`")]
#[case::rename_to_no_string(r#"{"rename":{"/a":null}}"#, "/rename/~1a", "expected a string, found null")]
#[case::rename_to_nowhere(r#"{"rename":{"/a":"b"}}"#, "/rename/~1a", "a pointer begins with `/`")]
#[case::rename_everything(r#"{"rename":{"":"/a"}}"#, "/rename/", "`map` makes a new one")]
#[case::rename_to_everything(r#"{"rename":{"/a":""}}"#, "/rename/~1a", "`map` makes a new one")]
#[case::rename_twice(r#"{"rename":{"/a":"/b","/a":"/c"}}"#, "/rename/~1a", "appears twice")]
#[case::rename_to_itself(r#"{"rename":{"/a":"/\u0061"}}"#, "/rename/~1a", "can't be renamed to itself")]
#[case::rename_into_itself(r#"{"rename":{"/a/b":"/a/b/c"}}"#, "/rename/~1a~1b", "into itself, to `/a/b/c`")]
#[case::rename_to_one_place(
    r#"{"rename":{"/a":"/x","/b":"/x"}}"#,
    "/rename/~1a",
    "another value is put at `/x` too"
)]
#[case::rename_into_another(r#"{"rename":{"/a":"/x/y","/b":"/x"}}"#, "/rename/~1a", "`/x/y` lies in `/x`")]
#[case::rename_around_another(r#"{"rename":{"/b":"/x","/a":"/x/y"}}"#, "/rename/~1a", "`/x/y` lies in `/x`")]
#[case::rename_what_is_omitted(
    r#"{"omit":["/q","/a"],"rename":{"/a":"/b"}}"#,
    "/rename/~1a",
    "`/a` is omitted first"
)]
#[case::rename_out_of_what_is_omitted(
    r#"{"rename":{"/a/b":"/b"},"omit":["/a"]}"#,
    "/rename/~1a~1b",
    "`/a` is omitted first"
)]
#[case::set_is_no_object(r#"{"set":[1]}"#, "/set", "expected an object, found an array")]
#[case::set_nowhere(r#"{"set":{"a":1}}"#, "/set/a", "a pointer begins with `/`")]
#[case::set_everything(r#"{"set":{"":{}}}"#, "/set/", "`map` makes a new one")]
#[case::set_twice(r#"{"set":{"/a":1,"/b":2,"/a":3}}"#, "/set/~1a", "appears twice")]
#[case::set_into_another(r#"{"set":{"/a/b":1,"/a":{}}}"#, "/set/~1a~1b", "`/a/b` lies in `/a`")]
fn rules(#[case] json: &str, #[case] pointer: &str, #[case] detail: &str) {
    check(json, pointer, detail);
}

#[rstest]
#[case::ptr_of_no_string(r#"{"$ptr":1}"#, "/$ptr", "expected a string, found a number")]
#[case::ptr_to_nowhere(r#"{"a":[0,{"$ptr":"b"}]}"#, "/a/1/$ptr", "a pointer begins with `/`")]
#[case::unknown_directive(r#"{"a/b":{"$path":"/b"}}"#, "/a~1b/$path", "no such directive")]
#[case::dollar_alone(r#"{"$":"/b"}"#, "/$", "no such directive")]
#[case::name_with_a_dollar(r#"{"id":1,"$set":{}}"#, "/$set", "written with `$$`")]
#[case::two_directives(r#"{"$ptr":"/a","$text":""}"#, "/$text", "can't stand next to a directive")]
#[case::member_next_to_a_directive(r#"{"a":1,"$ptr":"/a"}"#, "/a", "can't stand next to a directive")]
#[case::member_next_to_a_literal(
    r#"{"$literal":1,"default":2}"#,
    "/default",
    "can't stand next to a directive"
)]
#[case::required_is_no_boolean(
    r#"{"$ptr":"/a","required":1}"#,
    "/required",
    "expected a boolean, found a number"
)]
#[case::required_and_default(
    r#"{"$ptr":"/a","required":true,"default":1}"#,
    "/default",
    "no use for a default"
)]
#[case::member_twice(r#"{"a":1,"a":2}"#, "/a", "appears twice")]
#[case::directive_twice(r#"{"$ptr":"/a","$ptr":"/b"}"#, "/$ptr", "appears twice")]
#[case::no_attribute(r#"{"$event":"time"}"#, "/$event", "an event has `id`")]
#[case::attribute_of_no_string(r#"{"$event":null}"#, "/$event", "expected a string, found null")]
#[case::text_of_no_string(r#"{"$text":["a"]}"#, "/$text", "expected a string, found an array")]
#[case::text_never_closed(r#"{"$text":"a {/b"}"#, "/$text", "written `{{`")]
#[case::text_never_opened(r#"{"$text":"a } b"}"#, "/$text", "written `}}`")]
#[case::text_of_nothing(r#"{"$text":"{}"}"#, "/$text", "between braces stands a pointer")]
#[case::text_of_a_name(r#"{"$text":"{name}"}"#, "/$text", "between braces stands a pointer")]
#[case::text_with_a_brace_inside(r#"{"$text":"{/a{b}"}"#, "/$text", "between braces stands a pointer")]
#[case::text_closed_twice(r#"{"$text":"{/a}}"}"#, "/$text", "written `}}`")]
#[case::text_with_a_bad_pointer(r#"{"$text":"{/a~}"}"#, "/$text", "`~0`")]
#[case::text_with_no_attribute(r#"{"$text":"{$event.name}"}"#, "/$text", "an event has `id`")]
#[case::text_with_a_space(r#"{"$text":"{ /a }"}"#, "/$text", "between braces stands a pointer")]
fn templates(#[case] template: &str, #[case] pointer: &str, #[case] detail: &str) {
    check(&format!(r#"{{"map":{template}}}"#), &format!("/map{pointer}"), detail);
}

fn check(json: &str, pointer: &str, detail: &str) {
    let invalid = Transform::parse(json).unwrap_err();
    assert_eq!(invalid.pointer, pointer, "{json}: {invalid}");
    assert!(invalid.detail.contains(detail), "{json}: {invalid}");
}

#[rstest]
#[case::omitted_element(r#"{"omit":["/items/0"],"rename":{"/items/0/a":"/a"}}"#)]
#[case::only_a_neighbour_is_omitted(r#"{"omit":["/a"],"rename":{"/ab":"/a"}}"#)]
#[case::two_appended(r#"{"rename":{"/a":"/l/-","/b":"/l/-"}}"#)]
#[case::targets_with_a_common_beginning(r#"{"set":{"/a":1,"/ab":2,"/b/a":3,"/b/c":4}}"#)]
fn what_only_looks_like_a_conflict(#[case] json: &str) {
    transform(json);
}

#[test]
fn the_text_is_bounded() {
    let with_bytes = |bytes: usize| {
        let json = r#"{"set":{"/a":""}}"#;
        json.replace(r#""""#, &format!("\"{}\"", "x".repeat(bytes - json.len())))
    };
    transform(&with_bytes(DOCUMENT_LIMIT_BYTES));
    let invalid = Transform::parse(&with_bytes(DOCUMENT_LIMIT_BYTES + 1)).unwrap_err();
    assert_eq!(invalid.to_string(), "a transform has at most 65536 bytes, this has 65537");
}

#[rstest]
#[case::omit(|n| list(n, |nth| format!(r#""/{nth}""#)), r#"{"omit":[LIST]}"#, "/omit/256")]
#[case::rename(|n| list(n, |nth| format!(r#""/{nth}":"/x{nth}""#)), r#"{"rename":{LIST}}"#, "/rename/~1256")]
#[case::set(|n| list(n, |nth| format!(r#""/{nth}":1"#)), r#"{"set":{LIST}}"#, "/set/~1256")]
#[case::map(|n| list(n, |_| r#"{"$ptr":"/a"}"#.to_owned()), r#"{"map":[LIST]}"#, "/map/256/$ptr")]
#[case::event(|n| list(n, |_| r#"{"$event":"id"}"#.to_owned()), r#"{"map":[LIST]}"#, "/map/256/$event")]
#[case::text(|n| "{/a}".repeat(n - 1) + "{$event.id}", r#"{"map":{"$text":"LIST"}}"#, "/map/$text")]
fn rules_are_bounded(#[case] rules: fn(usize) -> String, #[case] frame: &str, #[case] pointer: &str) {
    transform(&frame.replace("LIST", &rules(RULE_LIMIT)));
    check(&frame.replace("LIST", &rules(RULE_LIMIT + 1)), pointer, "at most 256 rules");
}

fn list(count: usize, each: impl Fn(usize) -> String) -> String {
    (0..count).map(each).collect::<Vec<_>>().join(",")
}

#[rstest]
#[case::set(r#"{"set":{"/a":DEEP}}"#, 2, "/set/~1a")]
#[case::map(r#"{"map":DEEP}"#, 1, "/map")]
#[case::literal(r#"{"map":[{"$literal":DEEP}]}"#, 3, "/map")]
fn depth_is_bounded(#[case] frame: &str, #[case] levels: usize, #[case] pointer: &str) {
    let nested = |levels: usize| frame.replace("DEEP", &("[".repeat(levels) + &"]".repeat(levels)));
    transform(&nested(DOCUMENT_DEPTH_LIMIT - levels));
    check(&nested(DOCUMENT_DEPTH_LIMIT - levels + 1), pointer, "at most 32 levels");
    check(&nested(30_000), pointer, "at most 32 levels");
}

#[test]
fn deep_nonsense_is_refused_where_it_stands() {
    let deep = "[".repeat(30_000) + &"]".repeat(30_000);
    check(&format!(r#"{{"omit":{deep}}}"#), "/omit/0", "expected a string, found an array");
    check(&format!(r#"{{"a":{deep}}}"#), "/a", "no such member");
}

#[test]
fn pointers_are_bounded() {
    let with_tokens = |tokens: usize| format!(r#"{{"omit":["{}"]}}"#, "/a".repeat(tokens));
    transform(&with_tokens(POINTER_TOKEN_LIMIT));
    check(&with_tokens(POINTER_TOKEN_LIMIT + 1), "/omit/0", "more than 64 tokens");
}
