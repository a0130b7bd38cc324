//! Times in queries.

use super::paging::bad_query;
use crate::domain::clock::Timestamp;
use crate::http::problem::Problem;

/// A time: RFC 3339, or milliseconds since the Unix epoch.
pub(super) fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(millis) = text.parse() {
        return Ok(Some(Timestamp::from_millis(millis)));
    }
    // A `+` that was not encoded arrives as a space.
    let parsed = chrono::DateTime::parse_from_rfc3339(&text.replace(' ', "+"));
    let time = parsed.map_err(|_| {
        bad_query(format!("{name} must be a time as RFC 3339 has it, or milliseconds since the Unix epoch"))
    })?;
    Ok(Some(Timestamp::from_millis(time.timestamp_millis())))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2026-01-31T23:59:59.007Z", Some(1_769_903_999_007))]
    #[case("2026-02-01T00:59:59.007+01:00", Some(1_769_903_999_007))]
    #[case("2026-02-01T00:59:59.007 01:00", Some(1_769_903_999_007))]
    #[case("1769903999007", Some(1_769_903_999_007))]
    #[case("-1", Some(-1))]
    #[case("2026-01-31", None)]
    #[case("yesterday", None)]
    #[case("", None)]
    fn times_are_read_as_people_and_programs_write_them(#[case] text: &str, #[case] expected: Option<i64>) {
        let read = time("since", Some(text));
        assert_eq!(read.ok().flatten().map(Timestamp::as_millis), expected, "{text}");
    }
}
