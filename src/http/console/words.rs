//! How figures and times are written.

use std::fmt::Write as _;

use chrono::{NaiveDate, NaiveTime};
use serde::{Deserialize, Deserializer, de};

use super::fields::wait;
use crate::domain::clock::Timestamp;

/// A time as the API tells it: RFC 3339, or milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At(pub Timestamp);

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Millis(i64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Millis(millis) => Ok(Self(Timestamp::from_millis(millis))),
            Written::Text(text) => {
                let at = parse_utc(&text).ok_or_else(|| de::Error::custom("a time is RFC 3339, in UTC"))?;
                Ok(Self(at))
            }
        }
    }
}

/// Reads `2026-01-31T23:59:59.007Z`, and what a browser's field for times has: `2026-01-31T23:59`, meant as UTC.
pub(super) fn parse_utc(text: &str) -> Option<Timestamp> {
    let text = text.trim().trim_end_matches(['Z', 'z']);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "0:0"));
    let mut date = date.splitn(3, '-');
    let year = date.next()?.parse().ok().filter(|year| (0..=9_999).contains(year))?;
    let (month, day) = (date.next()?.parse().ok()?, date.next()?.parse().ok()?);
    let midnight = NaiveDate::from_ymd_opt(year, month, day)?.and_time(NaiveTime::MIN).and_utc();
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute) = (clock.next()?.ok()?, clock.next()?.ok()?);
    let second = clock.next().unwrap_or(Ok(0)).ok()?;
    let millis = format!("{fraction:0<3}").get(..3)?.parse::<i64>().ok()?;
    if !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0..=60).contains(&second) {
        return None;
    }
    let seconds = midnight.timestamp() + (hour * 60 + minute) * 60 + second;
    Some(Timestamp::from_millis(seconds * 1_000 + millis))
}

/// A time as a filter may name it, for the API: as [`parse_utc`] reads it, or how long ago (`15 min`, `2 h`, `3 d`). Empty
/// for none; what can't be read is left to the API to refuse.
pub(super) fn moment_of(text: &str, now: Timestamp) -> String {
    let ago = wait(text.trim().trim_end_matches("ago").trim_end())
        .filter(|_| text.contains(|letter: char| letter.is_ascii_alphabetic()));
    let at = match ago {
        Some(millis) => {
            let millis = i64::try_from(millis).unwrap_or(i64::MAX);
            Some(Timestamp::from_millis(now.as_millis().saturating_sub(millis)))
        }
        None => parse_utc(text),
    };
    at.map_or_else(|| text.trim().to_owned(), Timestamp::to_rfc3339)
}

/// A time as a page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct When {
    /// For machines, and for the tooltip.
    pub utc: String,
    /// `3 min ago`, `in 20 s`.
    pub words: String,
}

impl When {
    /// `at` as seen from `now`.
    pub fn new(at: Timestamp, now: Timestamp) -> Self {
        let words = if at > now {
            format!("in {}", span(u64::try_from(at.since(now).as_millis()).unwrap_or(u64::MAX)))
        } else {
            match u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX) {
                0..1_000 => "just now".to_owned(),
                millis => format!("{} ago", span(millis)),
            }
        };
        Self { utc: at.to_rfc3339(), words }
    }
}

/// A span of time in the unit that reads best: `12 ms`, `3 s`, `5 min`, `2 h`, `4 d`.
pub(super) fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..10_000 => {
            let tenths = millis / 100;
            match tenths % 10 {
                0 => format!("{} s", tenths / 10),
                tenth => format!("{}.{tenth} s", tenths / 10),
            }
        }
        10_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} d", millis / 86_400_000),
    }
}

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 event`, `2 events`.
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A rate with as many digits as mean something: `0.03`, `4.2`, `130`, `12.3 k`.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "0".into(),
        rate if rate < 0.1 => format!("{rate:.2}"),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate if rate < 10_000.0 => format!("{rate:.0}"),
        rate => format!("{:.1} k", rate / 1_000.0),
    }
}

/// A share of one in per cent: `0 %`, `0.4 %`, `12 %`.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0 %".into(),
        percent if percent < 0.1 => "<0.1 %".into(),
        percent if percent < 9.95 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// Bytes in the unit that reads best.
#[expect(clippy::cast_precision_loss, reason = "a figure for the eye")]
pub(super) fn bytes(number: u64) -> String {
    match number {
        0..1_024 => format!("{number} B"),
        1_024..1_048_576 => format!("{:.1} KiB", number as f64 / 1_024.0),
        _ => format!("{:.1} MiB", number as f64 / 1_048_576.0),
    }
}

/// Bytes as text, where they are text; else in hex, 16 a line. At most `limit` of them.
pub(super) fn readable(body: &[u8], limit: usize) -> String {
    let shown = &body[..body.len().min(limit)];
    let cut = if shown.len() < body.len() { "\n…" } else { "" };
    if let Ok(text) = std::str::from_utf8(body) {
        let end = (0..=shown.len()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        return format!("{}{cut}", &text[..end]);
    }
    let mut text = String::new();
    for line in shown.chunks(16) {
        for byte in line {
            // Writing to a String can't fail.
            let _ = write!(text, "{byte:02x} ");
        }
        text.push('\n');
    }
    format!("{}{cut}", text.trim_end())
}

/// JSON with a line for each member, every digit and the order as they are; other text as it is.
pub(super) fn pretty(text: &str) -> String {
    let (mut out, mut depth, mut in_text, mut escaped) =
        (String::with_capacity(text.len() * 2), 0_usize, false, false);
    if serde_json::from_str::<&serde_json::value::RawValue>(text).is_err() {
        return text.to_owned();
    }
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        if in_text {
            out.push(letter);
            in_text = escaped || letter != '"';
            escaped = !escaped && letter == '\\';
            continue;
        }
        match letter {
            '"' => {
                in_text = true;
                out.push(letter);
            }
            '{' | '[' => {
                out.push(letter);
                while rest.peek().is_some_and(|next| next.is_ascii_whitespace()) {
                    rest.next();
                }
                if let Some(end) = rest.next_if(|next| matches!(next, '}' | ']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(letter);
            }
            ',' => {
                out.push(letter);
                new_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            letter if letter.is_ascii_whitespace() => {}
            letter => out.push(letter),
        }
    }
    out
}

fn new_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth.min(64)));
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2026-01-31T23:59:59.007Z", Some(1_769_903_999_007))]
    #[case("2024-02-29T00:00", Some(1_709_164_800_000))]
    #[case("1969-12-31T23:59:59.999Z", Some(-1))]
    #[case("2024-02-29", Some(1_709_164_800_000))]
    #[case("2024-13-01T00:00", None)]
    #[case("2023-02-29T00:00", None)]
    #[case("yesterday", None)]
    #[case("", None)]
    fn times_are_read(#[case] text: &str, #[case] millis: Option<i64>) {
        assert_eq!(parse_utc(text).map(Timestamp::as_millis), millis);
    }

    #[rstest]
    #[case("2 h", "2024-02-28T22:00:00.000Z")]
    #[case("15 min ago", "2024-02-28T23:45:00.000Z")]
    #[case("2024-02-01 12:00", "2024-02-01T12:00:00.000Z")]
    #[case("yesterday", "yesterday")]
    #[case("", "")]
    fn filters_name_times(#[case] text: &str, #[case] told: &str) {
        assert_eq!(moment_of(text, Timestamp::from_millis(1_709_164_800_000)), told);
    }

    #[rstest]
    #[case(1_000, 1_400, "just now")]
    #[case(1_000, 4_200, "3.2 s ago")]
    #[case(0, 300_000, "5 min ago")]
    #[case(20_000, 0, "in 20 s")]
    #[case(0, 259_200_000, "3 d ago")]
    fn times_are_told(#[case] at: i64, #[case] now: i64, #[case] words: &str) {
        let at = Timestamp::from_millis(at);
        assert_eq!(When::new(at, Timestamp::from_millis(now)).words, words);
    }

    #[test]
    fn figures() {
        assert_eq!((count(0), count(999), count(1_234_567)), ("0".into(), "999".into(), "1,234,567".into()));
        assert_eq!(
            ["0.03", "4.2", "130", "12.3 k"],
            [0.03, 4.2, 130.0, 12_345.0].map(rate).each_ref().map(String::as_str)
        );
        assert_eq!(["0 %", "0.4 %", "12 %"], [0.0, 0.004, 0.12].map(percent).each_ref().map(String::as_str));
    }

    #[test]
    fn json_is_laid_out_and_not_rewritten() {
        let text = r#"{"b":1.10,"a":[ ],"t":"x \" {,}","n":{"é":[1,2]}}"#;
        let expected = "{\n  \"b\": 1.10,\n  \"a\": [],\n  \"t\": \"x \\\" {,}\",\n  \"n\": {\n    \"é\": [\n      1,\n      2\n    ]\n  }\n}";
        assert_eq!(pretty(text), expected);
        assert_eq!(pretty("not {json"), "not {json");
    }

    #[test]
    fn what_is_no_text_is_shown_in_hex() {
        assert_eq!(readable(&[0xff, 0x00, 0x41], 10), "ff 00 41");
        assert_eq!(readable("né".as_bytes(), 2), "n\n…");
    }
}
