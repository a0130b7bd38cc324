//! `Retry-After` as a receiver may write it. An input is the header's value.

use std::time::Duration;

use chrono::DateTime;
use posthaste::domain::clock::Timestamp;
use posthaste::domain::retry::retry_after;

const LIMIT: Duration = Duration::from_secs(3_600);
/// Sun, 06 Nov 1994 08:49:00 GMT.
const NOW_MS: i64 = 784_111_740_000;

pub fn check(input: &[u8]) {
    let Ok(header) = std::str::from_utf8(input) else { return };
    let at = |now_ms: i64, limit| retry_after(header, None, Timestamp::from_millis(now_ms), limit);
    for now_ms in [i64::MIN, -1, 0, NOW_MS, i64::MAX] {
        let (wait, whole) = (at(now_ms, LIMIT), at(now_ms, Duration::MAX));
        assert_eq!(wait, whole.map(|wait| wait.min(LIMIT)), "the limit only cuts");
        assert_eq!(at(now_ms, Duration::ZERO), wait.map(|_| Duration::ZERO));
        // Time goes by, and the wait gets no longer.
        let later = at(now_ms.saturating_add(1_000), LIMIT);
        assert_eq!(wait.is_some(), later.is_some());
        assert!(later <= wait);
    }
    let text = header.trim();
    let wait = at(NOW_MS, LIMIT);
    if let Some(expected) = decimal(text) {
        let wait = wait.expect("seconds");
        assert!(
            wait.abs_diff(expected.min(LIMIT)) < Duration::from_micros(1),
            "{text}: {wait:?}, not {expected:?}"
        );
    } else if let Some(expected) = date(text) {
        assert_eq!(wait, Some(expected.min(LIMIT)), "{text}");
    } else if !text.contains([' ', '-']) {
        assert_eq!(wait, None, "{text}");
    }
}

/// Digits, and behind a dot more of them.
fn decimal(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let seconds = whole
        .bytes()
        .fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(Duration::new(seconds, nanos))
}

/// An IMF-fixdate (RFC 9110 §5.6.7), read by another crate.
fn date(text: &str) -> Option<Duration> {
    let is_fixed = text.len() == "Sun, 06 Nov 1994 08:49:37 GMT".len() && text.ends_with(" GMT");
    let date = DateTime::parse_from_rfc2822(text).ok().filter(|_| is_fixed)?;
    // The one writing of it: the other reader takes more than the standard has, and any second for one that leaps.
    let is_written_so = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string() == text;
    if !is_written_so || text.ends_with(":60 GMT") || date.timestamp() < 0 {
        return None;
    }
    Some(Timestamp::from_millis(date.timestamp_millis()).since(Timestamp::from_millis(NOW_MS)))
}
