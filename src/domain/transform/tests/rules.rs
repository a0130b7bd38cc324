//! `omit`, `rename` and `set`.

use rstest::rstest;

use super::*;

#[rstest]
#[case::member(r#"["/a"]"#, r#"{"a":1,"b":2}"#, r#"{"b":2}"#)]
#[case::last_member(r#"["/a"]"#, r#"{"a":1}"#, "{}")]
#[case::inner_member(r#"["/a/b"]"#, r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{"c":2}}"#)]
#[case::element(r#"["/a/1"]"#, r#"{"a":[1,2,3]}"#, r#"{"a":[1,3]}"#)]
#[case::indexes_mean_what_came(r#"["/0","/1","/3"]"#, "[0,1,2,3,4]", "[2,4]")]
#[case::order_says_nothing(r#"["/3","/0","/1"]"#, "[0,1,2,3,4]", "[2,4]")]
#[case::member_of_an_element(r#"["/1/a"]"#, r#"[{"a":1},{"a":2}]"#, r#"[{"a":1},{}]"#)]
#[case::whole_and_part(r#"["/a","/a/b"]"#, r#"{"a":{"b":1},"c":2}"#, r#"{"c":2}"#)]
#[case::part_and_whole(r#"["/a/b","/a"]"#, r#"{"a":{"b":1},"c":2}"#, r#"{"c":2}"#)]
#[case::twice_the_same(r#"["/a","/a"]"#, r#"{"a":1,"c":2}"#, r#"{"c":2}"#)]
#[case::digits_name_a_member_of_an_object(r#"["/01","/-"]"#, r#"{"01":1,"-":2,"1":3}"#, r#"{"1":3}"#)]
#[case::empty_name(r#"["/"]"#, r#"{"":1,"b":2}"#, r#"{"b":2}"#)]
#[case::empty_names(r#"["//"]"#, r#"{"":{"":1,"b":2}}"#, r#"{"":{"b":2}}"#)]
#[case::slash(r#"["/a~1b"]"#, r#"{"a/b":1,"b":2}"#, r#"{"b":2}"#)]
#[case::tilde(r#"["/a~0b"]"#, r#"{"a~b":1,"b":2}"#, r#"{"b":2}"#)]
#[case::tilde_and_one(r#"["/~01"]"#, r#"{"~1":1,"/":2}"#, r#"{"/":2}"#)]
#[case::no_uri(r#"["/a%20b"]"#, r#"{"a b":1,"a%20b":2}"#, r#"{"a b":1}"#)]
#[case::escaped_in_the_payload(r#"["/é/a"]"#, r#"{"\u00e9":{"\u0061":1,"b":2}}"#, r#"{"\u00e9":{"b":2}}"#)]
#[case::escaped_in_the_rule(r#"["/\u00e9"]"#, r#"{"é":1,"b":2}"#, r#"{"b":2}"#)]
#[case::quote_and_control(r#"["/\"\u0001"]"#, r#"{"\"\u0001":1,"b":2}"#, r#"{"b":2}"#)]
#[case::surrogate_pair(r#"["/😀"]"#, r#"{"\ud83d\ude00":1,"b":2}"#, r#"{"b":2}"#)]
fn omit(#[case] pointers: &str, #[case] payload: &str, #[case] expected: &str) {
    assert_eq!(apply(&format!(r#"{{"omit":{pointers}}}"#), payload), expected);
}

#[rstest]
#[case::no_such_member("/x")]
#[case::prefix_of_a_name("/obj")]
#[case::no_such_parent("/x/y/z")]
#[case::into_a_string("/string/0")]
#[case::into_null("/null/a")]
#[case::no_such_index("/array/2")]
#[case::leading_zero("/array/00")]
#[case::sign("/array/+0")]
#[case::append("/array/-")]
#[case::name_in_an_array("/array/length")]
#[case::huge_index("/array/99999999999999999999999")]
#[case::lone_surrogate("/\u{fffd}")]
#[case::what_a_lone_surrogate_looks_like(r"/\\ud800")]
fn what_is_not_there_is_left_alone(#[case] pointer: &str) {
    let payload = r#" { "string" : "s", "null": null, "array": [ 1, 2 ], "object": { }, "\ud800": 1 } "#;
    assert_eq!(apply(&format!(r#"{{"omit":["{pointer}"]}}"#), payload), payload);
    assert_eq!(apply(&format!(r#"{{"rename":{{"{pointer}":"/string/x"}}}}"#), payload), payload);
}

#[rstest]
#[case::keeps_its_place(r#"{"/a":"/x"}"#, r#"{"a":1,"b":2}"#, r#"{"x":1,"b":2}"#)]
#[case::to_another_object(r#"{"/a":"/b/x"}"#, r#"{"a":1,"b":{"c":2}}"#, r#"{"b":{"c":2,"x":1}}"#)]
#[case::out_of_an_object(r#"{"/a/b":"/b"}"#, r#"{"a":{"b":1},"c":2}"#, r#"{"a":{},"c":2,"b":1}"#)]
#[case::makes_parents(r#"{"/a":"/x/y/z"}"#, r#"{"a":1}"#, r#"{"x":{"y":{"z":1}}}"#)]
#[case::overwrites_in_place(r#"{"/a":"/c"}"#, r#"{"a":1,"b":2,"c":3}"#, r#"{"b":2,"c":1}"#)]
#[case::change_places(r#"{"/a":"/b","/b":"/a"}"#, r#"{"a":1,"b":2}"#, r#"{"b":1,"a":2}"#)]
#[case::chain(r#"{"/a":"/b","/b":"/c"}"#, r#"{"a":1,"b":2,"c":3}"#, r#"{"b":1,"c":2}"#)]
#[case::chain_backwards(r#"{"/b":"/c","/a":"/b"}"#, r#"{"a":1,"b":2,"c":3}"#, r#"{"b":1,"c":2}"#)]
#[case::unwrap(r#"{"/data/order":"/data"}"#, r#"{"data":{"order":{"n":1},"x":2}}"#, r#"{"data":{"n":1}}"#)]
#[case::inner_first(
    r#"{"/data":"/payload","/data/id":"/id"}"#,
    r#"{"data":{"id":7,"n":1}}"#,
    r#"{"payload":{"n":1},"id":7}"#
)]
#[case::into_what_has_left(r#"{"/a":"/x","/b":"/a/y"}"#, r#"{"a":1,"b":2}"#, r#"{"x":1,"a":{"y":2}}"#)]
#[case::back_into_what_has_left(
    r#"{"/a/b":"/a/c","/a":"/x"}"#,
    r#"{"a":{"b":1,"d":2}}"#,
    r#"{"x":{"d":2},"a":{"c":1}}"#
)]
#[case::out_of_an_array(r#"{"/a/0":"/first"}"#, r#"{"a":[1,2]}"#, r#"{"a":[2],"first":1}"#)]
#[case::elements_change_places(r#"{"/0":"/2","/2":"/0"}"#, "[0,1,2]", "[2,1,0]")]
#[case::over_an_element(r#"{"/0":"/2"}"#, "[0,1,2]", "[1,0]")]
#[case::append(r#"{"/x":"/a/-","/y":"/a/-"}"#, r#"{"a":[1],"x":2,"y":3}"#, r#"{"a":[1,2,3]}"#)]
#[case::append_within(r#"{"/0":"/-"}"#, "[0,1,2]", "[1,2,0]")]
#[case::dash_names_a_member(r#"{"/a":"/-"}"#, r#"{"a":1}"#, r#"{"-":1}"#)]
#[case::into_an_element(r#"{"/1":"/0/x"}"#, r#"[{"a":1},2]"#, r#"[{"a":1,"x":2}]"#)]
#[case::name_to_be_escaped(r#"{"/a":"/\"~1\u0001é"}"#, r#"{"a":1}"#, r#"{"\"/\u0001é":1}"#)]
#[case::absent(r#"{"/x":"/y/z"}"#, r#"{"a": 1}"#, r#"{"a": 1}"#)]
#[case::only_what_is_there(r#"{"/x":"/y","/a":"/b"}"#, r#"{"a": 1}"#, r#"{"b":1}"#)]
fn rename(#[case] pointers: &str, #[case] payload: &str, #[case] expected: &str) {
    assert_eq!(apply(&format!(r#"{{"rename":{pointers}}}"#), payload), expected);
}

#[rstest]
#[case::new(r#"{"/b":2}"#, r#"{"a":1}"#, r#"{"a":1,"b":2}"#)]
#[case::overwrites_in_place(r#"{"/a":[true]}"#, r#"{"a":{"x":1},"b":2}"#, r#"{"a":[true],"b":2}"#)]
#[case::makes_parents(r#"{"/x/0/y":1}"#, "{}", r#"{"x":{"0":{"y":1}}}"#)]
#[case::into_a_parent(r#"{"/a/c":2,"/a/d":3}"#, r#"{"a":{"b":1}}"#, r#"{"a":{"b":1,"c":2,"d":3}}"#)]
#[case::siblings_share_a_new_parent(r#"{"/x/a":1,"/x/b":2}"#, "{}", r#"{"x":{"a":1,"b":2}}"#)]
#[case::element(r#"{"/a/1":9}"#, r#"{"a":[1,2,3]}"#, r#"{"a":[1,9,3]}"#)]
#[case::append(r#"{"/a/-":9}"#, r#"{"a":[1]}"#, r#"{"a":[1,9]}"#)]
#[case::append_to_an_empty_one(r#"{"/-":9}"#, "[]", "[9]")]
#[case::element_member(r#"{"/0/x":9}"#, r#"[{}]"#, r#"[{"x":9}]"#)]
#[case::value_keeps_its_text(
    r#"{"/a": { "x" : 1.10, "x": "\u00e9" } }"#,
    "{}",
    r#"{"a":{ "x" : 1.10, "x": "\u00e9" }}"#
)]
#[case::looks_like_a_directive(r#"{"/a":{"$ptr":"/b"}}"#, "{}", r#"{"a":{"$ptr":"/b"}}"#)]
#[case::empty_name(r#"{"/":1}"#, "{}", r#"{"":1}"#)]
#[case::null_is_a_value(r#"{"/a":null}"#, r#"{"a":1}"#, r#"{"a":null}"#)]
fn set(#[case] values: &str, #[case] payload: &str, #[case] expected: &str) {
    assert_eq!(apply(&format!(r#"{{"set":{values}}}"#), payload), expected);
}

#[rstest]
#[case::into_a_string("/a/b", r#"{"a":"s"}"#, "not_a_container", "/a")]
#[case::into_null("/a/b/c", r#"{"a":null}"#, "not_a_container", "/a")]
#[case::into_a_scalar_payload("/a", "5", "not_a_container", "")]
#[case::behind_the_end("/a/1", r#"{"a":[1]}"#, "no_such_index", "/a/1")]
#[case::behind_the_end_on_the_way("/a/1/x", r#"{"a":[1]}"#, "no_such_index", "/a/1")]
#[case::leading_zero("/a/00", r#"{"a":[1]}"#, "no_such_index", "/a/00")]
#[case::name_in_an_array("/a/x", r#"{"a":[1]}"#, "no_such_index", "/a/x")]
#[case::append_on_the_way("/a/-/x", r#"{"a":[1]}"#, "no_such_index", "/a/-")]
#[case::twice("/a/b", r#"{"a":{"b":1,"c":2,"b":3}}"#, "duplicate_key", "/a/b")]
#[case::parent_twice("/a/b", r#"{"a":{},"a":{}}"#, "duplicate_key", "/a")]
fn what_can_not_be_put(
    #[case] target: &str,
    #[case] payload: &str,
    #[case] code: &'static str,
    #[case] place: &str,
) {
    assert_eq!(failure(&format!(r#"{{"set":{{"{target}":1}}}}"#), payload), (code, place.to_owned()));
    let Some(inside) = payload.strip_prefix('{') else { return };
    let payload = format!(r#"{{"from":1,{inside}"#);
    let rename = format!(r#"{{"rename":{{"/from":"{target}"}}}}"#);
    assert_eq!(failure(&rename, &payload), (code, place.to_owned()));
}

#[rstest]
#[case::omit_then_rename(r#"{"rename":{"/0":"/1"},"omit":["/0"]}"#, "[0,1,2]", "[1]")]
#[case::rename_then_set(r#"{"set":{"/b":2},"rename":{"/a":"/b"}}"#, r#"{"a":1}"#, r#"{"b":2}"#)]
#[case::rename_then_set_inside(
    r#"{"set":{"/b/y":2},"rename":{"/a":"/b"}}"#,
    r#"{"a":{"x":1}}"#,
    r#"{"b":{"x":1,"y":2}}"#
)]
#[case::omit_then_set(
    r#"{"set":{"/a/y":2},"omit":["/a"]}"#,
    r#"{"a":{"x":1},"b":2}"#,
    r#"{"b":2,"a":{"y":2}}"#
)]
#[case::rename_where_something_was_omitted(
    r#"{"omit":["/a"],"rename":{"/b":"/a"}}"#,
    r#"{"a":1,"b":2}"#,
    r#"{"a":2}"#
)]
#[case::map_comes_last(r#"{"map":{"$ptr":""},"set":{"/b":2},"omit":["/a"]}"#, r#"{"a":1}"#, r#"{"b":2}"#)]
fn the_order_is_omit_rename_set_map(#[case] json: &str, #[case] payload: &str, #[case] expected: &str) {
    assert_eq!(apply(json, payload), expected);
}

#[rstest]
#[case::nothing("{}")]
#[case::empty_rules(r#"{"omit":[],"rename":{},"set":{}}"#)]
#[case::null_is_nothing(r#"{"omit":null,"rename":null,"set":null,"map":null}"#)]
fn no_rules_change_nothing(#[case] json: &str) {
    assert!(transform(json).is_identity());
    let payload = " {\"a\" : [1.10 , 1.1e0],\"a\":{ }}\r\n";
    let transform = transform(json);
    let out = transform.apply(payload.as_bytes(), &context(), LIMIT_BYTES).unwrap();
    assert!(matches!(out, Cow::Borrowed(out) if std::ptr::eq(out, payload.as_bytes())));
}
