//! What transforms cost, counted in members that are compared with a name.

use std::fmt::Write as _;

use super::super::RULE_LIMIT;
use super::super::tree::compared;
use super::apply;

/// An object with so many members, `m0` and up.
fn object(members: usize) -> String {
    let mut text = String::from("{");
    for nth in 0..members {
        let _ = write!(text, "{}\"m{nth}\":{nth}", if nth > 0 { "," } else { "" });
    }
    text + "}"
}

/// The rules of a kind, one for each of the last members.
fn rules(members: usize, rule: impl Fn(usize) -> String) -> String {
    let rules: Vec<_> = (members - (RULE_LIMIT - 6)..members).map(rule).collect();
    rules.join(",")
}

#[test]
fn rules_do_not_multiply_with_the_members_of_an_object() {
    const MEMBERS: usize = 40_000;
    let payload = object(MEMBERS);
    let omit = format!(r#"{{"omit":[{}]}}"#, rules(MEMBERS, |nth| format!(r#""/m{nth}""#)));
    let rename = format!(r#"{{"rename":{{{}}}}}"#, rules(MEMBERS, |nth| format!(r#""/m{nth}":"/r{nth}""#)));
    let set = format!(r#"{{"set":{{{}}}}}"#, rules(MEMBERS, |nth| format!(r#""/m{nth}":0"#)));
    let map =
        format!(r#"{{"map":{{{}}}}}"#, rules(MEMBERS, |nth| format!(r#""r{nth}":{{"$ptr":"/m{nth}"}}"#)));
    for transform in [omit, rename, set, map] {
        let before = compared();
        let out = apply(&transform, &payload);
        let compared = compared() - before;
        assert!(out.len() > 2 && compared <= 8 * MEMBERS, "{compared} comparisons: {}", &transform[..20]);
    }
}

/// An index finds what a look at each member finds: names taken, put again, moved, spelled with escapes, twice.
#[test]
fn large_objects_behave_as_small_ones() {
    let transform = r#"{"omit":["/a","/e\u0301","/tab\tname"],"rename":{"/b":"/c","/c":"/b","/d":"/a","/x":"/y"},
        "set":{"/a2":1,"/y":2,"/tab\tname":3,"/new/in":4}}"#;
    let members = r#""a":0,"b":1,"c":2,"d":3,"\u0061\u0032":4,"x":5,"tab\tname":6,"e\u0301":7"#;
    let small = apply(transform, &format!("{{{members}}}"));
    let filler = object(500).replace(['{', '}'], "");
    let large = apply(transform, &format!("{{{members},{filler}}}"));
    let read = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap();
    let mut rest = read(&large);
    rest.retain(|name, _| !(name.starts_with('m') && name[1..].parse::<u32>().is_ok()));
    assert_eq!(rest, read(&small));
    let twice = format!(r#"{{{members},{filler},"\u006d7":0}}"#);
    let many = r#"{"omit":["/a","/b","/c","/d","/x","/m8","/m7"]}"#;
    let error = super::try_apply(many, &twice).unwrap_err();
    assert_eq!((error.code(), error.pointer()), ("duplicate_key", "/m7"));
}
