//! Time as a parameter.
//!
//! Two clocks, never mixed: [`Timestamp`] is the wall clock (it goes into the ledger and into answers, and may
//! jump), [`Moment`] is the monotonic one (leases, gates and deadlines of this process).

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// Milliseconds since the Unix epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A time from its milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// How long ago `earlier` was; zero where it lies in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0).max(0).unsigned_abs())
    }

    /// The time as RFC 3339 has it, in UTC with milliseconds: `2026-01-31T23:59:59.007Z`. What lies outside of the
    /// years 0 to 9999, which are all that it can say, is moved to their edge.
    pub fn to_rfc3339(self) -> String {
        const DAY_MS: i64 = 86_400_000;
        let millis = self.0.clamp(-62_167_219_200_000, 253_402_300_799_999);
        let (days, of_day) = (millis.div_euclid(DAY_MS), millis.rem_euclid(DAY_MS));
        // Days to civil date in eras of 400 years that begin on 1 March (Howard Hinnant, "chrono-compatible
        // low-level date algorithms").
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
        let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
    }
}

/// As [`Timestamp::to_rfc3339`] writes it.
impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_rfc3339())
    }
}

/// A text of format `date-time`.
impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::{KnownFormat, ObjectBuilder, SchemaFormat, Type};

        let text = ObjectBuilder::new().schema_type(Type::String);
        text.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
    }
}

impl utoipa::ToSchema for Timestamp {}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// A point on the monotonic clock: time since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The moment `since_start` after the process began.
    pub const fn after_start(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Time since the process began.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long until `later`; zero where it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// Where time and chance come from. The composition root hands one in; tests hand in their own.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock.
    fn now(&self) -> Timestamp;
    /// The monotonic clock.
    fn moment(&self) -> Moment;
    /// 128 random bits, good enough for a secret.
    fn random(&self) -> u128;

    /// A number drawn evenly from `[0, 1)`, for jitter.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    fn chance(&self) -> f64 {
        (self.random() >> 75) as f64 / (1_u64 << 53) as f64
    }

    /// How long the machine has been suspended since its start: time that the monotonic clock does not count.
    fn suspended(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether the ledger takes its time from this clock unchecked, jumps included. Only clocks that tests move by hand
    /// ask for that.
    fn drives_ledger(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::epoch(0, "1970-01-01T00:00:00.000Z")]
    #[case::before_it(-1, "1969-12-31T23:59:59.999Z")]
    #[case::leap_day(1_709_164_800_000, "2024-02-29T00:00:00.000Z")]
    #[case::last_of_a_leap_year(1_735_689_599_999, "2024-12-31T23:59:59.999Z")]
    #[case::no_leap_year(4_107_542_400_000, "2100-03-01T00:00:00.000Z")]
    #[case::every_field(1_769_903_999_007, "2026-01-31T23:59:59.007Z")]
    #[case::first_that_fits(i64::MIN, "0000-01-01T00:00:00.000Z")]
    #[case::last_that_fits(i64::MAX, "9999-12-31T23:59:59.999Z")]
    fn times_are_written_as_rfc_3339_has_them(#[case] millis: i64, #[case] expected: &str) {
        assert_eq!(Timestamp::from_millis(millis).to_rfc3339(), expected);
    }
}
