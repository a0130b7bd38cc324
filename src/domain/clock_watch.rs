//! Whether a clock can be trusted, and which of its jumps are adopted. Decides only; reads and writes nothing.

use std::time::Duration;

use super::clock::{Moment, Timestamp};

/// Differences up to this are ordinary: a clock that NTP corrects, an answer that was under way for a while.
pub const TOLERATED_MS: i64 = 5_000;
/// How far the ledger's time goes back with one heartbeat, where it is ahead by an ordinary difference.
const STEP_BACK_MS: i64 = 50;
/// How long a clock must run evenly before a time that nothing else speaks for is believed.
const CONFIRMED_AFTER: Duration = Duration::from_secs(3_600);
/// A clock at the start may be so far behind the last heartbeat, and so far ahead of it.
const BEHIND_MAX_MS: i64 = 60_000;
const AHEAD_MAX_MS: i64 = 3_600_000;

/// How far the ledger's clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    /// The process's wall clock agrees with it.
    Trusted,
    /// It does not follow on what is known from before, and nothing has confirmed it yet.
    Unconfirmed,
    /// The process's wall clock differs from it.
    Skewed,
}

impl ClockState {
    /// The state's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Unconfirmed => "unconfirmed",
            Self::Skewed => "skewed",
        }
    }
}

/// How the ledger's clock stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockStatus {
    /// How far it can be trusted.
    pub state: ClockState,
    /// How many milliseconds the process's wall clock is ahead of the ledger's; of an unconfirmed one, how many it is
    /// ahead of what the last confirmed heartbeat lets expect.
    pub skew_ms: i64,
    /// Whether anything may be pruned by it.
    pub may_prune: bool,
}

/// Two clocks, read together.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The clock that the ledger follows: the database's, or the process's.
    pub source: Timestamp,
    /// The process's.
    pub wall: Timestamp,
}

/// A time that is in doubt.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// Since when the clock has run evenly.
    since: Moment,
    /// What was expected instead, and when.
    expected: Timestamp,
    expected_at: Moment,
}

impl Doubt {
    fn expected(&self, moment: Moment) -> Timestamp {
        self.expected + self.expected_at.until(moment)
    }
}

/// A difference between two clocks that is more than ordinary.
#[derive(Debug, Clone, Copy)]
struct Apart {
    by_ms: i64,
    since: Moment,
}

impl Apart {
    /// The same difference as before where it has not changed, else a new one.
    fn of(before: Option<Self>, by_ms: i64, moment: Moment) -> Option<Self> {
        let same = before.filter(|before| (before.by_ms - by_ms).abs() <= TOLERATED_MS);
        let apart = same.unwrap_or(Self { by_ms, since: moment });
        (by_ms.abs() > TOLERATED_MS).then_some(apart)
    }

    fn has_lasted(&self, moment: Moment) -> bool {
        self.since.until(moment) >= CONFIRMED_AFTER
    }
}

/// What is known of the clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch {
    /// The ledger follows the database's clock.
    shared: bool,
    doubt: Option<Doubt>,
    apart: Option<Apart>,
    /// The last comparison.
    skew_ms: i64,
}

/// `one` less `other`, in milliseconds.
fn less(one: Timestamp, other: Timestamp) -> i64 {
    one.as_millis().saturating_sub(other.as_millis())
}

/// Whether a clock may be right that was expected to show `expected`, or later by the time that nobody was there.
fn is_plausible(source: Timestamp, expected: Timestamp) -> bool {
    (-BEHIND_MAX_MS..=AHEAD_MAX_MS).contains(&less(source, expected))
}

impl Watch {
    /// A watch that begins with this reading. `confirmed_at` is the last heartbeat of a clock that was not in doubt.
    pub fn start(shared: bool, reading: Reading, confirmed_at: Option<Timestamp>, moment: Moment) -> Self {
        let Reading { source, wall } = reading;
        let doubtful = confirmed_at.filter(|expected| !is_plausible(source, *expected));
        let doubt = doubtful.map(|expected| Doubt { since: moment, expected, expected_at: moment });
        let skew_ms = doubtful.map_or(less(wall, source), |expected| less(source, expected));
        Self { shared, doubt, apart: Apart::of(None, less(wall, source), moment), skew_ms }
    }

    /// Compares the clocks while the ledger's shows `ledger`; by how many milliseconds the ledger's is to be moved.
    pub fn beat(&mut self, ledger: Timestamp, reading: Reading, moment: Moment) -> i64 {
        let by_ms = less(reading.source, ledger);
        let jumped = by_ms.abs() > TOLERATED_MS;
        let mut adopt = true;
        if jumped {
            let expected = self.doubt.map(|doubt| doubt.expected(moment));
            if expected.is_some_and(|expected| is_plausible(reading.source, expected)) {
                // It has been put right.
                self.doubt = None;
            } else if let Some(doubt) = &mut self.doubt {
                doubt.since = moment;
            } else if self.shared {
                self.doubt = Some(Doubt { since: moment, expected: ledger, expected_at: moment });
            }
            // A process's own jump must last, unless it is what was expected.
            adopt = self.shared || expected.is_some() && self.doubt.is_none();
        }
        let apart_ms = if self.shared { less(reading.wall, reading.source) } else { by_ms };
        self.apart = Apart::of(self.apart, apart_ms, moment).filter(|_| self.shared || !adopt);
        if !self.shared && self.apart.is_some_and(|apart| apart.has_lasted(moment)) {
            (self.apart, self.doubt, adopt) = (None, None, true);
        }
        if self.doubt.is_some_and(|doubt| doubt.since.until(moment) >= CONFIRMED_AFTER) {
            self.doubt = None;
        }
        self.skew_ms = match (self.apart, self.doubt) {
            (Some(_), _) => apart_ms,
            (None, Some(doubt)) => less(reading.source, doubt.expected(moment)),
            (None, None) if adopt && jumped => 0,
            (None, None) => apart_ms,
        };
        match (adopt, jumped) {
            (false, _) => 0,
            (true, true) => by_ms,
            (true, false) => by_ms.max(-STEP_BACK_MS),
        }
    }

    /// Whether the ledger's time is not in doubt, whatever the process's wall clock says.
    pub const fn is_confirmed(&self) -> bool {
        self.doubt.is_none()
    }

    /// How the clock stands.
    pub fn status(&self, moment: Moment) -> ClockStatus {
        let state = match (&self.apart, &self.doubt) {
            (Some(_), _) => ClockState::Skewed,
            (None, Some(_)) => ClockState::Unconfirmed,
            (None, None) => ClockState::Trusted,
        };
        // A database's clock that has run evenly for so long is right, whatever this machine's says.
        let agrees = self.apart.is_none_or(|apart| self.shared && apart.has_lasted(moment));
        ClockStatus { state, skew_ms: self.skew_ms, may_prune: self.doubt.is_none() && agrees }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 86_400_000;
    const BEAT: Duration = Duration::from_secs(10);

    /// A ledger's clock with a wall clock that is wrong by some time.
    struct Bench {
        watch: Watch,
        ledger_ms: i64,
        true_ms: i64,
        moment: Moment,
        shared: bool,
    }

    impl Bench {
        fn start(shared: bool, wrong_ms: i64, confirmed_at: Option<i64>) -> Self {
            let true_ms = 1_000 * DAY_MS;
            let source = if shared { true_ms } else { true_ms + wrong_ms };
            let reading = Reading {
                source: Timestamp::from_millis(source),
                wall: Timestamp::from_millis(true_ms + wrong_ms),
            };
            let moment = Moment::default();
            let confirmed_at = confirmed_at.map(|ago| Timestamp::from_millis(true_ms - ago));
            let watch = Watch::start(shared, reading, confirmed_at, moment);
            Self { watch, ledger_ms: source, true_ms, moment, shared }
        }

        /// Ten seconds later, with the wall clock wrong by so much; how far the ledger's clock is wrong then.
        fn beat(&mut self, wrong_ms: i64) -> i64 {
            self.beat_with(wrong_ms, 0)
        }

        fn beat_with(&mut self, wrong_ms: i64, database_wrong_ms: i64) -> i64 {
            (self.true_ms, self.ledger_ms) = (self.true_ms + 10_000, self.ledger_ms + 10_000);
            self.moment = self.moment + BEAT;
            let wall = Timestamp::from_millis(self.true_ms + wrong_ms);
            let database = Timestamp::from_millis(self.true_ms + database_wrong_ms);
            let reading = Reading { source: if self.shared { database } else { wall }, wall };
            self.ledger_ms += self.watch.beat(Timestamp::from_millis(self.ledger_ms), reading, self.moment);
            self.ledger_ms - self.true_ms
        }

        fn state(&self) -> (ClockState, bool) {
            let status = self.watch.status(self.moment);
            (status.state, status.may_prune)
        }
    }

    #[test]
    fn a_jump_of_the_wall_clock_moves_nothing_until_it_has_lasted_for_an_hour() {
        for wrong_ms in [100 * DAY_MS, -100 * DAY_MS, 3_600_000, -3_600_000] {
            let mut bench = Bench::start(false, 0, Some(60_000));
            assert_eq!((bench.beat(0), bench.state()), (0, (ClockState::Trusted, true)));
            for beat in 0..360 {
                assert_eq!(bench.beat(wrong_ms), 0, "beat {beat}");
                assert_eq!(bench.state(), (ClockState::Skewed, false), "beat {beat}");
                assert_eq!(bench.watch.status(bench.moment).skew_ms, wrong_ms);
            }
            assert_eq!((bench.beat(wrong_ms), bench.state()), (wrong_ms, (ClockState::Trusted, true)));
        }
    }

    #[test]
    fn a_wall_clock_that_is_put_right_is_trusted_immediately() {
        let mut bench = Bench::start(false, 0, None);
        assert_eq!(bench.beat(5 * DAY_MS), 0);
        assert_eq!((bench.beat(100), bench.state()), (100, (ClockState::Trusted, true)));
    }

    #[test]
    fn small_differences_are_adopted_and_time_never_goes_back_noticeably() {
        let mut bench = Bench::start(false, 0, None);
        assert_eq!(bench.beat(4_000), 4_000);
        assert_eq!(bench.beat(0), 4_000 - STEP_BACK_MS);
        assert_eq!(bench.state(), (ClockState::Trusted, true));
    }

    #[test]
    fn a_start_that_does_not_follow_on_the_last_heartbeat_is_unconfirmed_for_an_hour() {
        let starts = [(100 * DAY_MS, 10_000), (-100 * DAY_MS, 10_000), (-120_000, 10_000), (0, 5_000_000)];
        for (wrong_ms, confirmed_ago_ms) in starts {
            let mut bench = Bench::start(false, wrong_ms, Some(confirmed_ago_ms));
            assert_eq!(bench.state(), (ClockState::Unconfirmed, false));
            assert_eq!(bench.watch.status(bench.moment).skew_ms, wrong_ms + confirmed_ago_ms);
            for _ in 0..359 {
                assert_eq!(bench.beat(wrong_ms), wrong_ms);
                assert_eq!(bench.state(), (ClockState::Unconfirmed, false));
            }
            assert_eq!((bench.beat(wrong_ms), bench.state()), (wrong_ms, (ClockState::Trusted, true)));
        }
    }

    #[test]
    fn an_unconfirmed_clock_that_is_put_right_is_adopted_and_trusted_immediately() {
        for wrong_ms in [100 * DAY_MS, -100 * DAY_MS] {
            let mut bench = Bench::start(false, wrong_ms, Some(30_000));
            assert_eq!(bench.beat(wrong_ms), wrong_ms);
            assert_eq!((bench.beat(0), bench.state()), (0, (ClockState::Trusted, true)));
        }
    }

    #[test]
    fn the_database_s_clock_is_followed_and_a_wrong_wall_clock_only_reported() {
        let mut bench = Bench::start(true, 20_000, Some(10_000));
        assert_eq!(bench.state(), (ClockState::Skewed, false));
        for _ in 0..359 {
            assert_eq!((bench.beat(20_000), bench.state()), (0, (ClockState::Skewed, false)));
        }
        // The database's clock has run evenly for an hour.
        assert_eq!((bench.beat(20_000), bench.state()), (0, (ClockState::Skewed, true)));
        assert_eq!((bench.beat(0), bench.state()), (0, (ClockState::Trusted, true)));
    }

    #[test]
    fn a_jump_of_the_database_s_clock_is_followed_and_nothing_is_pruned_by_it() {
        let mut bench = Bench::start(true, 0, Some(10_000));
        // Both on one machine.
        assert_eq!(bench.beat_with(100 * DAY_MS, 100 * DAY_MS), 100 * DAY_MS);
        assert_eq!(bench.state(), (ClockState::Unconfirmed, false));
        assert_eq!(bench.watch.status(bench.moment).skew_ms, 100 * DAY_MS);
        assert_eq!((bench.beat(0), bench.state()), (0, (ClockState::Trusted, true)));
    }
}
