//! Answers in the words of svix-server: statuses, error bodies, timestamps, payloads.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde_json::value::RawValue;

/// One answer, before it is HTTP.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) media_type: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) retry_after: Option<String>,
    pub(super) delay: Option<Duration>,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Reply {
    Send(Answer),
    /// The connection is closed without an answer.
    Close,
}

/// One entry of a 422 body.
#[derive(Debug, Serialize)]
pub(super) struct Invalid {
    loc: Vec<String>,
    msg: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

impl Invalid {
    pub(super) fn new(loc: &[&str], msg: impl Into<String>, kind: &'static str) -> Self {
        Self { loc: loc.iter().map(|part| (*part).to_owned()).collect(), msg: msg.into(), kind }
    }

    /// A value of the right type that breaks a rule.
    pub(super) fn value(loc: &[&str], msg: impl Into<String>) -> Self {
        Self::new(loc, msg, "value_error")
    }

    /// Not JSON, a missing field or a value of the wrong type.
    pub(super) fn json(loc: &[&str], msg: impl Into<String>) -> Self {
        Self::new(loc, msg, "value_error.jsondecode")
    }
}

impl Answer {
    pub(super) fn new(status: u16, media_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, media_type, body: body.into(), retry_after: None, delay: None }
    }

    pub(super) fn json(status: u16, body: &impl Serialize) -> Self {
        // Nothing that is answered has a map with keys other than strings.
        let body = serde_json::to_vec(body).unwrap_or_default();
        Self::new(status, "application/json", body)
    }

    /// An error as the server words it.
    pub(super) fn error(status: u16, code: &str, detail: &str) -> Self {
        Self::json(status, &BTreeMap::from([("code", code), ("detail", detail)]))
    }

    pub(super) fn invalid(problems: &[Invalid]) -> Self {
        Self::json(422, &BTreeMap::from([("detail", problems)]))
    }

    pub(super) fn not_found(detail: &str) -> Self {
        Self::error(404, "not_found", detail)
    }

    pub(super) fn conflict(detail: &str) -> Self {
        Self::error(409, "conflict", detail)
    }

    /// The answer for a path that leads nowhere: the server's router says no more than this.
    pub(super) fn no_such_route() -> Self {
        Self::new(404, "", "")
    }

    /// A bare status, with the body that the server has for it.
    pub(super) fn of_status(status: u16) -> Self {
        let status = answerable(status);
        match status {
            401 => Self::error(status, "authentication_failed", "Invalid token"),
            404 => Self::not_found("Entity not found"),
            409 => Self::conflict("A conflict has occurred"),
            413 => Self::error(status, "payload_too_large", "Request payload is too large."),
            422 => Self::invalid(&[Invalid::value(&["body"], "Validation error")]),
            429 => Self::error(status, "too_many_requests", "Too many requests."),
            500.. => Self::json(status, &BTreeMap::<(), ()>::new()),
            _ => Self::error(status, "generic_error", "Generic error"),
        }
    }

    /// Adds a `Retry-After`, unless no header can carry it.
    pub(super) fn retry_after(mut self, value: Option<&str>) -> Self {
        let fits = |value: &&str| HeaderValue::from_str(value).is_ok();
        self.retry_after = value.filter(fits).map(str::to_owned);
        self
    }

    pub(super) fn after(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }
}

/// A status that an HTTP/1.1 answer can end with; anything else becomes 500.
pub(super) fn answerable(status: u16) -> u16 {
    match StatusCode::from_u16(status) {
        Ok(code) if !code.is_informational() => status,
        _ => 500,
    }
}

/// RFC 3339 in UTC with microseconds, from microseconds since 1970.
pub(super) fn timestamp(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (mut days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut month) = (1970, 0);
    while days >= days_in_year(year) {
        days -= days_in_year(year);
        year += 1;
    }
    while days >= days_in_month(year, month) {
        days -= days_in_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z", month + 1, days + 1,)
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month_from_zero: usize) -> u64 {
    const DAYS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    DAYS[month_from_zero] + u64::from(month_from_zero == 1 && is_leap(year))
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// Deeper than this the server can't read its own content.
const MAX_DEPTH: usize = 127;

/// A stored payload as the server prints it: it reads the bytes into a JSON value first, so keys
/// come out sorted and once, spaces are gone and escapes are shortest; the digits of a number
/// stay as they were. What it can't read is given out as expired.
pub(super) fn printed(payload: &str) -> Box<RawValue> {
    let mut out = String::with_capacity(payload.len());
    let text = match print_into(&mut out, payload, MAX_DEPTH) {
        Some(()) => out,
        None => r#"{"expired":true}"#.to_owned(),
    };
    RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

fn print_into(out: &mut String, value: &str, depth_left: usize) -> Option<()> {
    match value.as_bytes().first()? {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(value).ok()?;
            let depth_left = depth_left.checked_sub(1)?;
            out.push('{');
            for (i, (key, member)) in members.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                write!(out, "{comma}{}:", serde_json::to_string(key).ok()?).ok()?;
                print_into(out, member.get(), depth_left)?;
            }
            out.push('}');
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(value).ok()?;
            let depth_left = depth_left.checked_sub(1)?;
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                print_into(out, item.get(), depth_left)?;
            }
            out.push(']');
        }
        b'"' => {
            let text: String = serde_json::from_str(value).ok()?;
            out.push_str(&serde_json::to_string(&text).ok()?);
        }
        _ => out.push_str(value),
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(timestamp(4_107_542_399_999_999), "2100-02-28T23:59:59.999999Z");
        assert_eq!(timestamp(4_107_542_400_000_000), "2100-03-01T00:00:00.000000Z");
    }

    #[test]
    fn payloads_are_printed_as_a_value_would_be() {
        let printed = |payload: &str| super::printed(payload).get().to_owned();
        assert_eq!(
            printed(r#"{ "b": 1.10, "a": [1, "\u00e9\/", {}], "b": 1E400 }"#),
            r#"{"a":[1,"é/",{}],"b":1E400}"#,
        );
        let nested = |depth: usize| {
            let array = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"a":{array}}}"#)
        };
        assert_eq!(printed(&nested(126)), nested(126));
        assert_eq!(printed(&nested(127)), r#"{"expired":true}"#);
        assert_eq!(printed(&nested(100_000)), r#"{"expired":true}"#);
    }
}
