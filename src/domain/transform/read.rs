//! From the text of a transform to its rules, or to what is wrong with it and where.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::edit::{self, Conflict, Rename, Set};
use super::pointer::{Pointer, member};
use super::template::Template;
use super::{DOCUMENT_DEPTH_LIMIT, DOCUMENT_LIMIT_BYTES, InvalidTransform, RULE_LIMIT, Transform};
use crate::domain::parse::json;

/// Reads a transform.
pub(super) fn transform(text: &str) -> Result<Transform, InvalidTransform> {
    if text.len() > DOCUMENT_LIMIT_BYTES {
        let detail = format!("a transform has at most {DOCUMENT_LIMIT_BYTES} bytes, this has {}", text.len());
        return Err(InvalidTransform::new("", detail));
    }
    let source = match serde_json::from_str::<&RawValue>(text) {
        Ok(value) => value.get(),
        Err(error) => return Err(InvalidTransform::new("", format!("not valid JSON: {error}"))),
    };
    let mut transform = Transform { source: source.into(), ..Transform::default() };
    let mut reader = Reader { rules: 0 };
    for Member { name, value, place, .. } in members(source, "")? {
        match &*name {
            "omit" | "rename" | "set" | "map" if value == "null" => {}
            "omit" => transform.omit = reader.omit(value, &place)?,
            "rename" => transform.rename = reader.rename(value, &place)?,
            "set" => transform.set = reader.set(value, &place)?,
            "map" => {
                check_depth(value, 1, &place)?;
                transform.map = Some(Template::read(&mut reader, value, &place)?);
            }
            _ => {
                let detail = "a transform has no such member; it has `omit`, `rename`, `set` and `map`";
                return Err(InvalidTransform::new(place, detail));
            }
        }
    }
    let conflict =
        edit::rename_conflict(&transform.omit, &transform.rename).map(|conflict| ("/rename", conflict));
    let set_conflict =
        || edit::nested(transform.set.iter().map(|set| &set.at)).map(|conflict| ("/set", conflict));
    match conflict.or_else(set_conflict) {
        Some((place, conflict)) => Err(refusal(place, &conflict, &transform.rename)),
        None => Ok(transform),
    }
}

/// `conflict` among the members of what stands at `place`.
fn refusal(place: &str, conflict: &Conflict<'_>, renames: &[Rename]) -> InvalidTransform {
    let (pointer, detail) = match conflict {
        Conflict::Circular(rename) if rename.from == rename.to => {
            (&rename.from, "a value can't be renamed to itself".to_owned())
        }
        Conflict::Circular(rename) => {
            (&rename.from, format!("a value can't be moved into itself, to `{}`", rename.to))
        }
        Conflict::Omitted(rename, omitted) => {
            (&rename.from, format!("nothing is left there to rename: `{omitted}` is omitted first"))
        }
        Conflict::Nested(inner, outer) => {
            // A target is found under its source.
            let source = renames.iter().find(|rename| place == "/rename" && rename.to == **inner);
            (source.map_or(*inner, |rename| &rename.from), lies_in(inner, outer))
        }
    };
    InvalidTransform::new(member(place, &pointer.to_string()), detail)
}

fn lies_in(inner: &Pointer, outer: &Pointer) -> String {
    if inner == outer {
        format!("another value is put at `{inner}` too")
    } else {
        format!("`{inner}` lies in `{outer}`, where another value is put")
    }
}

/// Reads the parts of a transform, and counts its rules.
pub(super) struct Reader {
    rules: usize,
}

impl Reader {
    fn omit(&mut self, raw: &str, place: &str) -> Result<Vec<Pointer>, InvalidTransform> {
        let elements = elements(raw, place)?.into_iter();
        elements.map(|(pointer, place)| self.inner_pointer(&string(pointer, &place)?, &place)).collect()
    }

    fn rename(&mut self, raw: &str, place: &str) -> Result<Vec<Rename>, InvalidTransform> {
        let rename = |Member { name, value, place, .. }: Member<'_>| {
            let from = self.inner_pointer(&name, &place)?;
            let to = inner_pointer(&string(value, &place)?, &place)?;
            Ok(Rename { from, to })
        };
        members(raw, place)?.into_iter().map(rename).collect()
    }

    fn set(&mut self, raw: &str, place: &str) -> Result<Vec<Set>, InvalidTransform> {
        let set = |Member { name, value, place, .. }: Member<'_>| {
            check_depth(value, 2, &place)?;
            Ok(Set { at: self.inner_pointer(&name, &place)?, value: value.into() })
        };
        members(raw, place)?.into_iter().map(set).collect()
    }

    /// A pointer of a rule, which may not be the whole payload.
    fn inner_pointer(&mut self, text: &str, place: &str) -> Result<Pointer, InvalidTransform> {
        self.count(place)?;
        inner_pointer(text, place)
    }

    /// A pointer of a template.
    pub(super) fn pointer(&mut self, text: &str, place: &str) -> Result<Pointer, InvalidTransform> {
        self.count(place)?;
        Pointer::parse(text).map_err(|detail| InvalidTransform::new(place, detail))
    }

    /// Counts a rule: whatever makes work for every event.
    pub(super) fn count(&mut self, place: &str) -> Result<(), InvalidTransform> {
        self.rules += 1;
        if self.rules > RULE_LIMIT {
            let detail = format!(
                "a transform has at most {RULE_LIMIT} rules; each omit, rename and set is one, and each value that \
                 `map` takes"
            );
            return Err(InvalidTransform::new(place, detail));
        }
        Ok(())
    }
}

fn inner_pointer(text: &str, place: &str) -> Result<Pointer, InvalidTransform> {
    match Pointer::parse(text) {
        Ok(pointer) if pointer.tokens().is_empty() => {
            let detail = "the whole payload can't be omitted, renamed or set; `map` makes a new one";
            Err(InvalidTransform::new(place, detail))
        }
        Ok(pointer) => Ok(pointer),
        Err(detail) => Err(InvalidTransform::new(place, detail)),
    }
}

/// A member of an object in a transform.
pub(super) struct Member<'a> {
    /// Its name as it stands in the text.
    pub(super) key: &'a str,
    /// Its name.
    pub(super) name: Cow<'a, str>,
    /// Its value's text.
    pub(super) value: &'a str,
    /// The pointer to it.
    pub(super) place: String,
}

/// The members of the object `raw`, which stands at `place`; no name twice.
pub(super) fn members<'a>(raw: &'a str, place: &str) -> Result<Vec<Member<'a>>, InvalidTransform> {
    let mut pairs = Vec::new();
    if json::for_each_member(raw, |key, value| pairs.push((key, value))).is_err() {
        return Err(unexpected("an object", raw, place));
    }
    let mut names = HashSet::with_capacity(pairs.len());
    let mut members = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let Some(name) = json::unquote(key) else {
            return Err(InvalidTransform::new(place, format!("the name {key} is not valid Unicode")));
        };
        let place = member(place, &name);
        if !names.insert(name.clone()) {
            return Err(InvalidTransform::new(place, "appears twice"));
        }
        members.push(Member { key, name, value, place });
    }
    Ok(members)
}

/// The elements of the array `raw`, which stands at `place`, each with its own place.
pub(super) fn elements<'a>(raw: &'a str, place: &str) -> Result<Vec<(&'a str, String)>, InvalidTransform> {
    let elements: Vec<&'a RawValue> =
        serde_json::from_str(raw).map_err(|_| unexpected("an array", raw, place))?;
    let with_place = |(nth, element): (usize, &'a RawValue)| (element.get(), member(place, &nth.to_string()));
    Ok(elements.into_iter().enumerate().map(with_place).collect())
}

/// The text of the string `raw`, which stands at `place`.
pub(super) fn string<'a>(raw: &'a str, place: &str) -> Result<Cow<'a, str>, InvalidTransform> {
    json::unquote(raw).ok_or_else(|| {
        if raw.starts_with('"') {
            InvalidTransform::new(place, "the string is not valid Unicode")
        } else {
            unexpected("a string", raw, place)
        }
    })
}

/// `raw`, at `place`, is not what is `expected`.
pub(super) fn unexpected(expected: &str, raw: &str, place: &str) -> InvalidTransform {
    InvalidTransform::new(place, format!("expected {expected}, found {}", json::kind(raw)))
}

/// Fails where `raw`, around which the transform has `levels` already, makes it nest too deeply.
fn check_depth(raw: &str, levels: usize, place: &str) -> Result<(), InvalidTransform> {
    if json::is_deeper_than(raw, DOCUMENT_DEPTH_LIMIT - levels) {
        let detail = format!("a transform nests at most {DOCUMENT_DEPTH_LIMIT} levels deep");
        return Err(InvalidTransform::new(place, detail));
    }
    Ok(())
}
