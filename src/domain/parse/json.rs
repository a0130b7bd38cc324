//! JSON text at its surface: UTF-8, depth, the elements of an array, the members of an object, strings.
//!
//! Values are skipped, not built: what comes out are slices of the text.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{DEPTH_LIMIT, ParseError};

/// Insignificant whitespace (RFC 8259 §2).
pub(super) const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The value that stands for an absent one.
pub(super) const NULL: &str = "null";

/// `body` as text, without a byte order mark (RFC 8259 §8.1 lets a reader ignore one).
pub(in crate::domain) fn text(body: &[u8]) -> Result<&str, ParseError> {
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => Err(malformed_at("not UTF-8".to_owned(), &body[..error.valid_up_to()])),
    }
}

/// `text` without insignificant whitespace around it.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(SPACE)
}

/// A fault right after `before`.
pub(super) fn malformed_at(detail: String, before: &[u8]) -> ParseError {
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    ParseError::Malformed { detail, line, column: before.len() - line_start + 1 }
}

/// What `error` says about `text`; too deep where that is the more telling reason.
pub(in crate::domain) fn malformed(text: &str, error: &serde_json::Error) -> ParseError {
    if is_deeper_than(text, DEPTH_LIMIT) {
        return ParseError::TooDeep;
    }
    let said = error.to_string();
    let detail = said.rsplit_once(" at line ").map_or(said.as_str(), |(detail, _)| detail).to_owned();
    ParseError::Malformed { detail, line: error.line(), column: error.column() }
}

/// Whether arrays and objects in `text` are nested deeper than `limit`.
///
/// Skipping a value takes no stack, so nothing else bounds what partners' parsers would have to bear.
pub(in crate::domain) fn is_deeper_than(text: &str, limit: usize) -> bool {
    // Text with no more brackets than that can't be: one vectorised pass settles nearly every event.
    count_openings(text.as_bytes()) > limit && has_depth_over(text.as_bytes(), limit)
}

/// How many bytes are `[` or `{`, the two that differ from `{` in no more than bit 5.
fn count_openings(text: &[u8]) -> usize {
    // Counting in bytes, which 255 of them can't overflow, is what makes it one instruction for many.
    let in_chunk = |chunk: &[u8]| chunk.iter().map(|byte| u8::from(byte | 0x20 == b'{')).sum::<u8>();
    text.chunks(255).map(|chunk| usize::from(in_chunk(chunk))).sum()
}

fn has_depth_over(text: &[u8], limit: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if in_string => {
                bytes.next();
            }
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Goes through a JSON array element by element.
///
/// The caller reads each one where it begins, so that an event is passed over once and not twice.
pub(super) struct Elements<'a> {
    whole: &'a str,
    /// What comes behind the elements so far.
    rest: &'a str,
    is_first: bool,
}

impl<'a> Elements<'a> {
    /// The elements of `text`, an array that has only been seen to begin.
    pub(super) fn new(text: &'a str) -> Self {
        let start = text.trim_start_matches(SPACE);
        Self { whole: text, rest: start.strip_prefix('[').unwrap_or(start), is_first: true }
    }

    /// The text from the next element on; `None` once the array has ended, and `text` with it.
    pub(super) fn next_start(&mut self) -> Result<Option<&'a str>, ParseError> {
        let rest = self.rest.trim_start_matches(SPACE);
        if let Some(behind) = rest.strip_prefix(']') {
            return if trim(behind).is_empty() { Ok(None) } else { Err(self.malformed()) };
        }
        let start = if self.is_first { Some(rest) } else { rest.strip_prefix(',') };
        self.is_first = false;
        match start {
            Some(start) => Ok(Some(start.trim_start_matches(SPACE))),
            None => Err(self.malformed()),
        }
    }

    /// Goes on behind `element`, with which the text from [`Self::next_start`] begins.
    pub(super) fn pass(&mut self, start: &'a str, element: &str) {
        self.rest = &start[element.len()..];
    }

    /// What is wrong with the array, once something is: read as a whole, it has the right line and column.
    pub(super) fn malformed(&self) -> ParseError {
        match serde_json::from_str::<Vec<IgnoredAny>>(self.whole) {
            Err(error) => malformed(self.whole, &error),
            Ok(_) => malformed_at("not a JSON array".to_owned(), b""),
        }
    }
}

/// The JSON value that `text` begins with.
pub(super) fn leading_value(text: &str) -> Result<&str, serde_json::Error> {
    <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(text)).map(RawValue::get)
}

/// Calls `each` with every member of the JSON object that `text` begins with, as in [`for_each_member`].
/// Returns the object's text.
pub(super) fn for_each_leading_member<'a>(
    text: &'a str,
    each: impl FnMut(&'a str, &'a str),
) -> Result<&'a str, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Members(each).deserialize(&mut deserializer)?;
    Ok(&text[..deserializer.into_iter::<IgnoredAny>().byte_offset()])
}

/// Calls `each` with every member of the JSON object `text`: its name and its value, both as raw JSON text.
pub(in crate::domain) fn for_each_member<'a>(
    text: &'a str,
    each: impl FnMut(&'a str, &'a str),
) -> Result<(), serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Members(each).deserialize(&mut deserializer)?;
    deserializer.end()
}

struct Members<F>(F);

impl<'de, F: FnMut(&'de str, &'de str)> DeserializeSeed<'de> for Members<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&'de str, &'de str)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        // Names are taken raw too: one that is no valid Unicode (a lone surrogate) must not cost the event.
        while let Some(name) = map.next_key::<&RawValue>()? {
            let value = map.next_value::<&RawValue>()?;
            (self.0)(name.get(), value.get());
        }
        Ok(())
    }
}

/// The text of a JSON string; `None` for other values and for escapes that make no Unicode.
pub(in crate::domain) fn unquote(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.as_bytes().contains(&b'\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// Appends `text` to `out` as a JSON string.
pub(in crate::domain) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            // The rest of what RFC 8259 §7 wants escaped: U+0000 to U+001F.
            '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => out.push(character),
        }
    }
    out.push('"');
}

/// What kind of JSON value `raw` is, with its article.
pub(in crate::domain) fn kind(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}
