//! Times as people write them: `2026-01-31T12:00:00Z`, or how long ago, as `90m`.

use std::time::Duration;

use super::clock::Timestamp;

/// Reads an RFC 3339 time, or a span before `now`: a whole number with `s`, `m`, `h`, `d` or `w`.
///
/// # Errors
/// What it should have been.
pub fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(span) = parse_span(text) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        return Ok(Timestamp::from_millis(now.as_millis().saturating_sub(millis)));
    }
    let time = chrono::DateTime::parse_from_rfc3339(text);
    let time = time.map_err(|_| {
        format!("`{text}` is neither a time as 2026-01-31T12:00:00Z (RFC 3339) nor a span as 90m, 24h, 7d")
    })?;
    Ok(Timestamp::from_millis(time.timestamp_millis()))
}

/// Reads a span: a whole number with `s`, `m`, `h`, `d` or `w`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_secs(number.checked_mul(seconds)?))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::time("1970-01-02T00:00:00Z", Some(86_400_000))]
    #[case::offset("1970-01-02T01:30:00.250+01:30", Some(86_400_250))]
    #[case::span("90m", Some(1_000_000_000 - 5_400_000))]
    #[case::week("1w", Some(1_000_000_000 - 604_800_000))]
    #[case::bare_number("90", None)]
    #[case::sign("-1h", None)]
    #[case::plus("+1h", None)]
    #[case::unit_alone("h", None)]
    #[case::empty("", None)]
    #[case::date("2026-01-31", None)]
    #[case::not_ascii("1ü", None)]
    #[case::too_long("99999999999999999999w", None)]
    fn times_and_spans_are_read(#[case] text: &str, #[case] expected: Option<i64>) {
        let now = Timestamp::from_millis(1_000_000_000);
        assert_eq!(parse_time(text, now).ok().map(Timestamp::as_millis), expected);
    }
}
