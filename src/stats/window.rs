//! The time that is looked back on, and the steps that its series have.

use super::MINUTE_MS;
use crate::domain::clock::Timestamp;

/// Minutes that a step may have; the smallest that leaves no more than [`POINTS_MAX`] of them.
const STEPS_MIN: [i64; 7] = [1, 2, 5, 10, 15, 30, 60];
const POINTS_MAX: i64 = 120;

/// How far back: a minute to two days, in whole minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    minutes: i64,
}

impl Window {
    /// An hour.
    pub const HOUR: Self = Self { minutes: 60 };

    /// Two days: so long a minute's figures are kept.
    pub const LONGEST: Self = Self { minutes: 48 * 60 };

    /// Reads `90m`, `1h`, `2d`.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("a window is 1m to 48h, as a number and m, h or d: `{text}` is not");
        let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
        let minutes_of_unit = match unit {
            "m" => 1,
            "h" => 60,
            "d" => 24 * 60,
            _ => return Err(wrong()),
        };
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let minutes = i64::from(number) * minutes_of_unit;
        if (1..=Self::LONGEST.minutes).contains(&minutes) { Ok(Self { minutes }) } else { Err(wrong()) }
    }

    /// The time between two points of a series, in milliseconds.
    pub(super) fn step_ms(self) -> i64 {
        let fits = |step: &i64| self.minutes <= step * POINTS_MAX;
        STEPS_MIN.into_iter().find(fits).unwrap_or(60) * MINUTE_MS
    }

    /// When its first step begins: the last is the one that holds `now`.
    pub(super) fn begins_at(self, now: Timestamp) -> Timestamp {
        let step = self.step_ms();
        let last = now.as_millis().div_euclid(step) * step;
        Timestamp::from_millis(last - (self.points() - 1) * step)
    }

    /// How many points a series has.
    pub(super) fn points(self) -> i64 {
        let step = self.step_ms() / MINUTE_MS;
        (self.minutes + step - 1) / step
    }

    /// How long it is, in milliseconds.
    pub(super) const fn length_ms(self) -> i64 {
        self.minutes * MINUTE_MS
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("1m", 1, 1)]
    #[case("90m", 1, 90)]
    #[case("2h", 1, 120)]
    #[case("6h", 5, 72)]
    #[case("1d", 15, 96)]
    #[case("48h", 30, 96)]
    fn windows_have_steps(#[case] text: &str, #[case] step_min: i64, #[case] points: i64) {
        let window = Window::parse(text).unwrap();
        assert_eq!((window.step_ms(), window.points()), (step_min * MINUTE_MS, points));
        let now = Timestamp::from_millis(1_769_903_999_007);
        let begins = window.begins_at(now).as_millis();
        assert!(begins % window.step_ms() == 0 && begins + points * window.step_ms() > now.as_millis());
        assert!(begins + (points - 1) * window.step_ms() <= now.as_millis());
    }

    #[rstest]
    #[case("")]
    #[case("h")]
    #[case("0m")]
    #[case("49h")]
    #[case("3d")]
    #[case("1w")]
    #[case("-1h")]
    #[case("1.5h")]
    #[case("10ü")]
    #[case("99999999999999999999m")]
    fn other_windows_are_refused(#[case] text: &str) {
        assert!(Window::parse(text).is_err());
    }
}
