//! When to try again: the schedule of a destination and the wishes of its server.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::clock::Timestamp;

/// How far a delay is spread, in parts of itself to either side: failures of one moment must not come back as one.
const JITTER: f64 = 0.2;

/// The delays after the first, second … failure of a delivery. When they run out, it is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule(Arc<[Duration]>);

impl RetrySchedule {
    /// A schedule from its delays.
    pub fn new(delays: Vec<Duration>) -> Self {
        Self(delays.into())
    }

    /// How long to wait after `failures` failures (1 and up), spread by ±20 % with `chance` from `[0, 1)`;
    /// `None` once the schedule has run out.
    pub fn delay(&self, failures: u32, chance: f64) -> Option<Duration> {
        let nth = usize::try_from(failures.checked_sub(1)?).ok()?;
        self.0.get(nth).map(|delay| spread(*delay, chance))
    }
}

/// `delay` ±20 %, by `chance` from `[0, 1)`.
pub fn spread(delay: Duration, chance: f64) -> Duration {
    delay.mul_f64(1.0 - JITTER + 2.0 * JITTER * chance.clamp(0.0, 1.0))
}

/// The wait that a `Retry-After` header asks for: seconds, fractional seconds, or an HTTP-date (RFC 9110 §10.2.3).
///
/// A date is compared with `date`, the answer's own `Date` header (RFC 9110 §6.6.1), because the receiver's clock may
/// differ from ours; with `now` where there is no such header. A date in the past is no wait at all; a wait longer than
/// `limit` is cut to it; `None` where the text is neither form.
pub fn retry_after(header: &str, date: Option<&str>, now: Timestamp, limit: Duration) -> Option<Duration> {
    let text = header.trim();
    if text.starts_with(|first: char| first.is_ascii_digit()) && !text.contains(' ') {
        return seconds(text).map(|wait| wait.min(limit));
    }
    let until = http_date(text)?;
    let answered_at = date.and_then(http_date).unwrap_or(now);
    Some(until.since(answered_at).min(limit))
}

fn http_date(text: &str) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    let date_ms = i64::try_from(date.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis()).ok()?;
    Some(Timestamp::from_millis(date_ms))
}

/// Decimal seconds: digits, with a fraction or without. Numbers too large for a `Duration` are the largest one.
fn seconds(text: &str) -> Option<Duration> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = plain.then(|| text.parse().ok())??;
    Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(3_600);

    // holds: 25
    #[rstest]
    #[case::seconds("2", Some(2_000))]
    #[case::zero("0", Some(0))]
    #[case::fraction("1.5", Some(1_500))]
    #[case::padded(" 7 ", Some(7_000))]
    #[case::date("Sun, 06 Nov 1994 08:49:37 GMT", Some(37_000))]
    #[case::past("Sun, 06 Nov 1994 08:48:37 GMT", Some(0))]
    #[case::far_date("Sat, 06 Nov 2094 08:49:37 GMT", Some(3_600_000))]
    #[case::huge("99999999999999999999999999", Some(3_600_000))]
    #[case::negative("-1", None)]
    #[case::exponent("1e3", None)]
    #[case::infinite("inf", None)]
    #[case::words("soon", None)]
    #[case::empty("", None)]
    #[case::two_dots("1.2.3", None)]
    fn every_form_of_retry_after(#[case] header: &str, #[case] expected_ms: Option<u64>) {
        let now = Timestamp::from_millis(784_111_740_000); // Sun, 06 Nov 1994 08:49:00 GMT
        assert_eq!(retry_after(header, None, now, LIMIT), expected_ms.map(Duration::from_millis));
    }

    #[rstest]
    #[case::behind("Sun, 06 Nov 1994 08:39:00 GMT", "Sun, 06 Nov 1994 08:39:30 GMT", 30_000)]
    #[case::ahead("Sun, 06 Nov 1994 09:49:00 GMT", "Sun, 06 Nov 1994 09:49:05 GMT", 5_000)]
    #[case::unreadable("today", "Sun, 06 Nov 1994 08:49:37 GMT", 37_000)]
    #[case::seconds("Sun, 06 Nov 1994 09:49:00 GMT", "7", 7_000)]
    fn a_date_is_compared_with_the_answers_own(
        #[case] date: &str,
        #[case] header: &str,
        #[case] expected_ms: u64,
    ) {
        let now = Timestamp::from_millis(784_111_740_000); // Sun, 06 Nov 1994 08:49:00 GMT
        let expected = Some(Duration::from_millis(expected_ms));
        assert_eq!(retry_after(header, Some(date), now, LIMIT), expected);
    }

    #[test]
    fn the_schedule_is_spread_and_ends() {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(5), Duration::from_secs(300)]);
        assert_eq!(schedule.delay(1, 0.0), Some(Duration::from_secs(4)));
        assert_eq!(schedule.delay(1, 0.5), Some(Duration::from_secs(5)));
        assert_eq!(schedule.delay(2, 0.5), Some(Duration::from_secs(300)));
        assert_eq!(schedule.delay(3, 0.5), None);
        assert_eq!(schedule.delay(0, 0.5), None);
    }

    #[test]
    fn failures_of_one_moment_come_back_apart() {
        // holds: 41
        let schedule = RetrySchedule::new([5, 30, 120].map(Duration::from_secs).into());
        let mut drawn: u64 = 41;
        let mut chance = || {
            drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from(u32::try_from(drawn >> 32).unwrap()) / f64::from(u32::MAX)
        };
        for failures in 1..=3 {
            let mut bins = std::collections::HashMap::<_, u32>::new();
            for _ in 0..10_000 {
                let delay = schedule.delay(failures, chance()).unwrap();
                *bins.entry(delay.as_millis() / 100).or_default() += 1;
            }
            let fullest = f64::from(*bins.values().max().unwrap()) / 10_000.0;
            println!(
                "failure {failures}: {} bins of 100 ms, the fullest holds {:.2} %",
                bins.len(),
                100.0 * fullest
            );
            assert!(fullest <= 0.08, "{fullest}");
        }
    }
}
