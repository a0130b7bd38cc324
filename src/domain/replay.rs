//! Replays: what they may pick, and how fast they go.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::Moment;

/// How a delivery has ended, or that an event had nowhere to go.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum EndState {
    /// The receiver has it.
    Delivered,
    /// Given up.
    Dead,
    /// Not wanted any more.
    Canceled,
    /// The event had no destination: it is routed anew.
    Unrouted,
}

impl EndState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Delivered, Self::Dead, Self::Canceled, Self::Unrouted];

    /// The state's name, as it stands in the ledger and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Canceled => "canceled",
            Self::Unrouted => "unrouted",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// The pace that may be asked for, in deliveries a second.
pub const PACES: std::ops::RangeInclusive<u32> = 1..=10_000;
/// The pace where none is asked for.
pub const DEFAULT_PACE: u32 = 100;
/// What a replay may put back at once after it was held up, as a part of a second of its pace.
const BURST: Duration = Duration::from_millis(200);
/// Most deliveries that are put back in one transaction: others wait for it, for about a millisecond.
const STEP_ROWS: usize = 20;

/// How many deliveries a step of a replay puts back. It costs others the same however few they are, so they are gathered: no
/// more than about ten steps a second, until these are full.
pub fn step_rows(pace: u32) -> usize {
    (pace as usize / 10).clamp(1, STEP_ROWS)
}

/// How many deliveries of a replay may wait untried: what its receivers take in a second, within bounds. So a replay
/// never builds a backlog, and stands still where they take nothing.
pub fn most_waiting(pace: u32) -> usize {
    (pace as usize).clamp(10, 500)
}

/// Keeps a pace.
#[derive(Debug, Clone)]
pub struct Pacer {
    pace: u32,
    /// All up to then is spent.
    spent_until: Moment,
}

impl Pacer {
    /// A pacer that begins now.
    pub const fn new(pace: u32, now: Moment) -> Self {
        Self { pace, spent_until: now }
    }

    /// How many may go now.
    pub fn allowance(&mut self, now: Moment) -> usize {
        // At least the time of two: a slow pace would never have a whole one, or lose a part of it at each look.
        let burst = BURST.max(self.spacing(2));
        let earliest = Moment::after_start(now.since_start().saturating_sub(burst));
        self.spent_until = self.spent_until.max(earliest);
        let saved = self.spent_until.until(now).as_nanos() * u128::from(self.pace);
        usize::try_from(saved / Duration::from_secs(1).as_nanos()).unwrap_or(usize::MAX)
    }

    /// So many have gone.
    pub fn spend(&mut self, count: usize) {
        self.spent_until = self.spent_until + self.spacing(count);
    }

    fn spacing(&self, count: usize) -> Duration {
        Duration::from_secs(1).mul_f64(count as f64 / f64::from(self.pace.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many go in `seconds` when somebody looks every `every` milliseconds.
    fn gone(pace: u32, seconds: u64, every: u64) -> usize {
        let mut pacer = Pacer::new(pace, Moment::default());
        let mut gone = 0;
        for millis in (0..=seconds * 1_000).step_by(usize::try_from(every).unwrap()) {
            let count = pacer.allowance(Moment::after_start(Duration::from_millis(millis)));
            pacer.spend(count);
            gone += count;
        }
        gone
    }

    #[test]
    fn a_pace_is_kept_however_often_one_looks() {
        for (pace, every) in [(1, 20), (7, 20), (100, 20), (100, 50), (10_000, 5)] {
            let expected = pace as usize * 20;
            let gone = gone(pace, 20, every);
            assert!(gone <= expected + 1 && gone + 2 + expected / 50 >= expected, "{pace}/{every}: {gone}");
        }
    }

    #[test]
    fn what_was_missed_is_not_made_up_for() {
        let mut pacer = Pacer::new(1_000, Moment::default());
        assert_eq!(pacer.allowance(Moment::after_start(Duration::from_secs(3_600))), 200);
    }

    #[test]
    fn steps_are_gathered_and_can_be_saved_up_for() {
        assert_eq!([1, 10, 100, 150, 1_000, 10_000].map(step_rows), [1, 1, 10, 15, 20, 20]);
        for pace in PACES {
            let mut pacer = Pacer::new(pace, Moment::default());
            assert!(
                pacer.allowance(Moment::after_start(Duration::from_secs(9))) >= step_rows(pace),
                "{pace}"
            );
        }
    }

    #[test]
    fn states_have_one_name() {
        for state in EndState::ALL {
            assert_eq!(EndState::parse(state.as_str()), Some(state));
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        assert_eq!(EndState::parse("pending"), None);
    }
}
