//! Generated input: what a transform promises whatever it is and whatever it meets.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A JSON value whose leaves are text.
#[derive(Debug, Clone, PartialEq)]
enum Model {
    Leaf(String),
    Array(Vec<Model>),
    /// Names as JSON strings.
    Object(Vec<(String, Model)>),
}

impl Model {
    fn read(text: &str) -> Self {
        if text.starts_with('{') {
            let mut members = Vec::new();
            let note = |key: &str, value: &str| members.push((key.to_owned(), Self::read(value)));
            json::for_each_member(text, note).unwrap();
            return Self::Object(members);
        }
        if text.starts_with('[') {
            let elements: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            return Self::Array(elements.into_iter().map(|element| Self::read(element.get())).collect());
        }
        Self::Leaf(text.to_owned())
    }

    /// Its text, with `space` wherever there may be some.
    fn text(&self, space: &str) -> String {
        let list = |open, children: Vec<String>, close| format!("{open}{space}{}{close}", children.join(","));
        match self {
            Self::Leaf(text) => text.clone(),
            Self::Array(elements) => {
                let element = |element: &Self| format!("{space}{}{space}", element.text(space));
                list("[", elements.iter().map(element).collect(), "]")
            }
            Self::Object(members) => {
                let member = |(key, value): &(String, Self)| {
                    format!("{space}{key}{space}:{space}{}", value.text(space))
                };
                list("{", members.iter().map(member).collect(), "}")
            }
        }
    }

    /// The pointers to everything in it.
    fn pointers(&self) -> Vec<String> {
        let children: Vec<(String, &Self)> = match self {
            Self::Leaf(_) => Vec::new(),
            Self::Array(elements) => {
                elements.iter().enumerate().map(|(nth, element)| (nth.to_string(), element)).collect()
            }
            Self::Object(members) => {
                members.iter().map(|(key, value)| (json::unquote(key).unwrap().into_owned(), value)).collect()
            }
        };
        let below = |(name, child): (String, &Self)| {
            let place = pointer::member("", &name);
            let inner = child.pointers().into_iter().map(|inner| place.clone() + &inner);
            std::iter::once(place.clone()).chain(inner).collect::<Vec<_>>()
        };
        children.into_iter().flat_map(below).collect()
    }

    /// Takes out what `pointer`, one of its own, leads to, and puts `new` in its place.
    fn replace(&mut self, pointer: &str, new: Option<Self>) -> Self {
        let (token, rest) = pointer[1..].split_once('/').unwrap_or((&pointer[1..], ""));
        let is_last = pointer[1..].len() == token.len();
        let name = token.replace("~1", "/").replace("~0", "~");
        let at = match self {
            Self::Leaf(_) => unreachable!(),
            Self::Array(_) => name.parse().unwrap(),
            Self::Object(members) => {
                members.iter().position(|(key, _)| json::unquote(key).unwrap() == name).unwrap()
            }
        };
        match (self, new) {
            (Self::Array(elements), new) if !is_last => elements[at].replace(&format!("/{rest}"), new),
            (Self::Object(members), new) if !is_last => members[at].1.replace(&format!("/{rest}"), new),
            (Self::Array(elements), Some(new)) => std::mem::replace(&mut elements[at], new),
            (Self::Object(members), Some(new)) => std::mem::replace(&mut members[at].1, new),
            (Self::Array(elements), None) => elements.remove(at),
            (Self::Object(members), None) => members.remove(at).1,
            (Self::Leaf(_), _) => unreachable!(),
        }
    }
}

/// Names as JSON strings, each of another name.
const KEYS: [&str; 7] = [r#""a""#, r#""b""#, r#""""#, r#""~\/""#, r#""\u00e9""#, r#""0""#, r#""-""#];

/// The tokens for them, and some for elements and for nothing.
const TOKENS: [&str; 10] = ["a", "b", "", "~0~1", "é", "0", "1", "-", "01", "q"];

fn leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec!["null", "true", "false", "1.10", "-0.0", "1e400", "12345678901234567890123"])
            .prop_map(str::to_owned),
        r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,4})?",
        r#""([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,5}""#,
    ]
}

fn model() -> impl Strategy<Value = Model> {
    leaf().prop_map(Model::Leaf).prop_recursive(4, 40, 5, |inner| {
        let keys = prop::sample::subsequence(KEYS.to_vec(), 0..=4).prop_shuffle();
        prop_oneof![
            2 => (keys, prop::collection::vec(inner.clone(), 4)).prop_map(|(keys, values)| {
                Model::Object(keys.into_iter().map(str::to_owned).zip(values).collect())
            }),
            1 => prop::collection::vec(inner, 0..4).prop_map(Model::Array),
        ]
    })
}

/// JSON text; with names that are there twice every other time.
fn payload() -> impl Strategy<Value = String> {
    (model(), space(), any::<bool>()).prop_map(|(model, space, is_repeating)| {
        let text = model.text(space);
        let text = if is_repeating { text.replace(r#""b""#, r#""\u0061""#) } else { text };
        format!("{space}{text}{space}")
    })
}

fn space() -> impl Strategy<Value = &'static str> {
    select(vec!["", " ", "\r\n\t"])
}

fn pointer() -> impl Strategy<Value = String> {
    prop::collection::vec(select(TOKENS.to_vec()), 1..4).prop_map(|tokens| format!("/{}", tokens.join("/")))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    json::quote(&mut quoted, text);
    quoted
}

fn template() -> impl Strategy<Value = String> {
    let directive = prop_oneof![
        4 => pointer().prop_map(|pointer| format!(r#""$ptr":{}"#, quoted(&pointer))),
        1 => Just(r#""$ptr":"""#.to_owned()),
        1 => select(vec!["id", "type", "source", "received_at"]).prop_map(|name| format!(r#""$event":"{name}""#)),
        2 => (pointer(), pointer()).prop_map(|(a, b)| format!(r#""$text":{}"#, quoted(&format!("é{{{a}}}{{{{\"{{{b}}}")))),
    ];
    let option = prop_oneof![
        4 => Just(String::new()),
        1 => leaf().prop_map(|value| format!(r#","default":{value}"#)),
        1 => Just(r#","required":true"#.to_owned()),
    ];
    let leaf = prop_oneof![
        1 => leaf(),
        3 => (directive, option).prop_map(|(directive, option)| format!("{{{directive}{option}}}")),
        1 => model().prop_map(|model| format!(r#"{{"$literal":{}}}"#, model.text(" "))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let keys = prop::sample::subsequence(KEYS.to_vec(), 3);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|elements| format!("[{}]", elements.join(","))),
            (keys, prop::collection::vec(inner, 3)).prop_map(|(keys, values)| {
                let member = |(key, value): (&str, String)| format!("{key}:{value}");
                format!("{{{}}}", keys.into_iter().zip(values).map(member).collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

/// The text of a transform, which may be at odds with itself.
fn any_transform() -> impl Strategy<Value = String> {
    let pairs = |value: BoxedStrategy<String>| {
        prop::collection::btree_map(pointer(), value, 0..4).prop_map(|pairs| {
            let pair = |(pointer, value): (String, String)| format!("{}:{value}", quoted(&pointer));
            pairs.into_iter().map(pair).collect::<Vec<_>>().join(",")
        })
    };
    let omit = prop::collection::vec(pointer().prop_map(|pointer| quoted(&pointer)), 0..4);
    let rename = pairs(pointer().prop_map(|pointer| quoted(&pointer)).boxed());
    let set = pairs(model().prop_map(|model| model.text("")).boxed());
    let map = prop::option::of(template());
    (omit, rename, set, map).prop_map(|(omit, rename, set, map)| {
        let map = map.map(|map| format!(r#","map":{map}"#)).unwrap_or_default();
        format!(r#"{{"omit":[{}],"rename":{{{rename}}},"set":{{{set}}}{map}}}"#, omit.join(","))
    })
}

/// Whatever comes of it, it is JSON within the limit, or an error.
fn check_any(json: &str, payload: &[u8], limit_bytes: usize) {
    let Ok(transform) = Transform::parse(json) else { return };
    match transform.apply(payload, &context(), limit_bytes) {
        Ok(out) => {
            assert!(out.len() <= limit_bytes);
            serde_json::from_slice::<&RawValue>(&out).unwrap();
        }
        Err(error) => assert!(!error.to_string().is_empty() && !error.code().is_empty()),
    }
}

proptest! {
    #[test]
    fn identity_is_byte_identical(payload in payload()) {
        let transform = Transform::default();
        prop_assert_eq!(&*transform.apply(payload.as_bytes(), &context(), LIMIT_BYTES).unwrap(), payload.as_bytes());
    }

    #[test]
    fn the_whole_mapped_is_byte_identical(payload in payload()) {
        prop_assert_eq!(apply(r#"{"map":{"$ptr":""}}"#, &payload), payload.trim_matches([' ', '\r', '\n', '\t']));
    }

    #[test]
    fn omit_leaves_everything_else_as_it_was(mut model in model(), nth: Index, space in space()) {
        let pointers = model.pointers();
        prop_assume!(!pointers.is_empty());
        let pointer: &String = nth.get(&pointers);
        let payload = model.text(space);
        model.replace(pointer, None);
        let out = apply(&format!(r#"{{"omit":[{}]}}"#, quoted(pointer)), &payload);
        prop_assert_eq!(Model::read(&out), model);
    }

    #[test]
    fn what_was_set_is_there_and_everything_else_as_it_was(
        mut model in model(), nth: Index, new in model(), space in space(),
    ) {
        let pointers = model.pointers();
        prop_assume!(!pointers.is_empty());
        let target: &String = nth.get(&pointers);
        let pointer = quoted(target);
        let (payload, value) = (model.text(space), new.text(space));
        let set = format!(r#""set":{{{pointer}:{value}}}"#);
        prop_assert_eq!(&apply(&format!(r#"{{{set},"map":{{"$ptr":{pointer}}}}}"#), &payload), &value);
        let out = apply(&format!("{{{set}}}"), &payload);
        model.replace(target, Some(new));
        prop_assert_eq!(Model::read(&out), model);
    }

    #[test]
    fn what_was_set_anywhere_is_there(payload in payload(), target in pointer(), new in model()) {
        let (pointer, value) = (quoted(&target), new.text(" "));
        let json = format!(r#"{{"set":{{{pointer}:{value}}},"map":{{"$ptr":{pointer}}}}}"#);
        match try_apply(&json, &payload) {
            Ok(out) => prop_assert_eq!(out, value),
            // Appended, it is not at `-` but behind the last.
            Err(TransformError::Missing { .. }) => prop_assert!(target.ends_with("/-")),
            Err(error) => prop_assert!(matches!(
                error.code(),
                "not_a_container" | "no_such_index" | "duplicate_key"
            )),
        }
    }

    #[test]
    fn renamed_there_and_back_nothing_has_changed(model in model(), nth: Index, space in space()) {
        let pointers = model.pointers();
        prop_assume!(!pointers.is_empty());
        let from: &String = nth.get(&pointers);
        let (parent, token) = from.rsplit_once('/').unwrap();
        let to = format!("{parent}/new");
        let there = format!(r#"{{"rename":{{{}:{}}}}}"#, quoted(from), quoted(&to));
        let payload = model.text(space);
        match try_apply(&there, &payload) {
            Ok(out) => {
                let back = apply(&format!(r#"{{"rename":{{{}:{}}}}}"#, quoted(&to), quoted(from)), &out);
                // Written anew, a name has no needless escapes.
                let spelled = |text: &str| text.replace(r"\u00e9", "é").replace(r"\/", "/");
                prop_assert_eq!(
                    spelled(&Model::read(&back).text("")),
                    spelled(&model.text(""))
                );
            }
            Err(error) => {
                prop_assert_eq!(error.code(), "no_such_index");
                prop_assert!(token.parse::<usize>().is_ok());
            }
        }
    }

    #[test]
    fn any_transform_of_any_json_is_json_within_the_limit(
        json in any_transform(), payload in payload(), limit_bytes in prop_oneof![0..200_usize, Just(LIMIT_BYTES)],
    ) {
        check_any(&json, payload.as_bytes(), limit_bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        json in any_transform(), cut: Index, payload in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        check_any(&json, &payload, LIMIT_BYTES);
        let cut = cut.index(json.len());
        if let Some(cut) = json.get(..cut) {
            prop_assert!(Transform::parse(cut).is_err());
        }
    }

    #[test]
    fn any_json_is_a_transform_or_refused_with_a_place(payload in payload()) {
        for json in [payload.clone(), format!(r#"{{"map":{payload}}}"#), format!(r#"{{"set":{payload}}}"#)] {
            if let Err(invalid) = Transform::parse(&json) {
                prop_assert!(invalid.pointer.is_empty() || invalid.pointer.starts_with('/'));
                prop_assert!(!invalid.detail.is_empty());
            }
        }
    }
}

#[test]
fn most_generated_transforms_are_good() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let good = (0..400).filter(|_| {
        let json = any_transform().new_tree(&mut runner).unwrap().current();
        Transform::parse(&json).is_ok()
    });
    assert!(good.count() > 200);
}
