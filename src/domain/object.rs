//! JSON objects that are nothing else.
//!
//! Serde's own structs are read from arrays too, member by member in their order: `{"filter":[null,null]}` would be a
//! filter without a condition. Whoever sends an array where an object is meant has mistaken something, and is told.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// What an object says, and an array does not.
#[derive(Debug)]
pub struct JsonObject<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members(PhantomData))
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = JsonObject<T>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JsonObject<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(JsonObject)
    }
}

/// A member that is an object: for serde's `deserialize_with`.
///
/// # Errors
/// It is something else, or one that does not fit.
pub fn one<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    JsonObject::deserialize(deserializer).map(|JsonObject(value)| value)
}

/// A member that is an object or `null`: for serde's `deserialize_with`, beside `default`.
///
/// # Errors
/// As [`one`].
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Option::deserialize(deserializer).map(|object| object.map(|JsonObject(value)| value))
}

/// A member that is a list of objects: for serde's `deserialize_with`.
///
/// # Errors
/// As [`one`].
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let objects: Vec<JsonObject<T>> = Vec::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|JsonObject(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(deserialize_with = "one")]
        inner: Inner,
        #[serde(default, deserialize_with = "optional")]
        more: Option<Inner>,
        #[serde(default, deserialize_with = "list")]
        rest: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Inner {
        text: Option<Box<RawValue>>,
    }

    fn read(json: &str) -> Result<Outer, String> {
        serde_json::from_str::<JsonObject<Outer>>(json)
            .map(|JsonObject(outer)| outer)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_read_as_they_stand() {
        let outer = read(r#"{"inner":{"text":[1.10, 2]},"more":null,"rest":[{},{"text":null}]}"#).unwrap();
        assert_eq!(outer.inner.text.unwrap().get(), "[1.10, 2]");
        assert!(outer.more.is_none() && outer.rest.len() == 2);
        assert!(read(r#"{"inner":{},"more":{}}"#).unwrap().more.is_some());
    }

    #[test]
    fn arrays_are_no_objects_at_any_depth() {
        for json in [
            r#"[{"text":null}]"#,
            r#"{"inner":[null]}"#,
            r#"{"inner":{},"more":[null]}"#,
            r#"{"inner":{},"rest":[[null]]}"#,
        ] {
            let why = read(json).unwrap_err();
            assert!(why.contains("expected an object"), "{json}: {why}");
        }
        assert!(read(r#"{"inner":{},"else":{}}"#).unwrap_err().contains("unknown field"));
    }
}
