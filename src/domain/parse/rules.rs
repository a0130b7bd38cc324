//! What attributes must look like.

use std::borrow::Cow;
use std::ops::Range;

use super::json;
use crate::domain::tenant::NAME_LIMIT_BYTES;

/// What is wrong with an element, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// JSON Pointer relative to the element.
    pub(super) pointer: String,
    /// What is wrong.
    pub(super) detail: String,
}

impl Fault {
    /// A fault of the element as a whole.
    pub(super) fn whole(detail: impl Into<String>) -> Self {
        Self { pointer: String::new(), detail: detail.into() }
    }

    /// A fault of the attribute `name`; `why` goes on after its name.
    pub(super) fn at(name: &str, why: &str) -> Self {
        Self { pointer: pointer(name), detail: format!("`{name}` {why}") }
    }
}

/// The JSON Pointer (RFC 6901 §3) to a top-level attribute.
pub(in crate::domain) fn pointer(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// The attribute `name` as a string.
pub(super) fn string<'a>(name: &str, raw: &'a str) -> Result<Cow<'a, str>, Fault> {
    json::unquote(raw).ok_or_else(|| {
        if raw.starts_with('"') {
            Fault::at(name, "is not valid Unicode")
        } else {
            Fault::at(name, &format!("must be a string, not {}", json::kind(raw)))
        }
    })
}

/// The attribute `name` as a name: tenant, id and type are such.
pub(super) fn name<'a>(name: &str, raw: &'a str) -> Result<Cow<'a, str>, Fault> {
    let text = string(name, raw)?;
    match why_not_a_name(&text) {
        None => Ok(text),
        Some(why) => Err(Fault::at(name, why)),
    }
}

/// The attribute `name` as a name that may be empty: the source.
pub(super) fn name_or_empty<'a>(name: &str, raw: &'a str) -> Result<Cow<'a, str>, Fault> {
    let text = string(name, raw)?;
    match why_not_a_name(&text) {
        Some(why) if !text.is_empty() => Err(Fault::at(name, why)),
        _ => Ok(text),
    }
}

/// What keeps `text` from being a name: 1 to [`NAME_LIMIT_BYTES`] bytes without control characters
/// (CloudEvents 1.0 §3 forbids those, and Postgres can't store NUL).
pub(crate) fn why_not_a_name(text: &str) -> Option<&'static str> {
    // The message spells the limit out.
    const { assert!(NAME_LIMIT_BYTES == 256) };
    if text.is_empty() {
        Some("must not be empty")
    } else if text.len() > NAME_LIMIT_BYTES {
        Some("is longer than 256 bytes")
    } else if has_control(text) {
        Some("holds a control character")
    } else {
        None
    }
}

fn has_control(text: &str) -> bool {
    // The first test settles plain ASCII without decoding it.
    !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.chars().any(char::is_control)
}

/// Whether `text` is a timestamp by RFC 3339 §5.6.
pub(super) fn is_timestamp(text: &str) -> bool {
    let Some((head, rest)) = text.as_bytes().split_at_checked("2006-01-02T15:04:05".len()) else {
        return false;
    };
    let punctuated = head[4] == b'-'
        && head[7] == b'-'
        && matches!(head[10], b'T' | b't')
        && head[13] == b':'
        && head[16] == b':';
    let in_range = |at: Range<usize>, range: Range<u32>| number(&head[at]).filter(|n| range.contains(n));
    let (Some(year), Some(month), Some(day)) =
        (number(&head[..4]), in_range(5..7, 1..13), in_range(8..10, 1..32))
    else {
        return false;
    };
    punctuated
        && day <= days_in(year, month)
        && in_range(11..13, 0..24).is_some()
        && in_range(14..16, 0..60).is_some()
        // A leap second is 60.
        && in_range(17..19, 0..61).is_some()
        && is_offset(without_fraction(rest))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// `text` behind its fraction of a second; a dot without digits stays and fits nowhere.
fn without_fraction(text: &[u8]) -> &[u8] {
    let Some(fraction) = text.strip_prefix(b".") else { return text };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 { text } else { &fraction[digits..] }
}

fn is_offset(text: &[u8]) -> bool {
    match text {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', hours @ .., b':', tens, ones] if hours.len() == 2 => {
            number(hours).is_some_and(|hours| hours < 24)
                && number(&[*tens, *ones]).is_some_and(|minutes| minutes < 60)
        }
        _ => false,
    }
}
