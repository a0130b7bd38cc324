//! A partner's rate over all nodes: tokens are reserved in the ledger, in batches, and are good for a short while.
//!
//! Promise: in any window of `W` seconds no more than `burst + per_second × W` requests start, whatever the nodes do,
//! and however often they restart. Why it holds: a token reserved at `g` is used in `[g, g + validity]` or never. So
//! what is used in `[t, t + W]` was reserved in `[t - validity, t + W]`, and a budget that holds `capacity` and fills
//! at `per_second` gives out at most `capacity + per_second × (W + validity)` in that time. With `capacity = burst -
//! per_second × validity` that is the promise. A burst of one leaves no room for such a capacity: there the budget
//! fills a little slower instead, one token in `1 / per_second + validity`, so that two uses are never closer than
//! `1 / per_second`.

use std::time::Duration;

use super::clock::Timestamp;
use super::partner::RateLimit;

/// Longest time a reserved token is good for.
const LONGEST_VALIDITY_S: f64 = 1.0;
const MILLIONTHS: i64 = 1_000_000;
/// A clock that stands further behind the last reservation than this was set back.
const CLOCK_SET_BACK: Duration = Duration::from_secs(2);
/// Between two reservations of a partner: at least, where its budget is drained this part of the validity, at most.
const ASK_AGAIN_PART: u32 = 4;
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(125));

/// A limit as the budget keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    per_second: f64,
    capacity: i64,
    validity: Duration,
}

impl Pace {
    /// How `limit` is kept.
    #[expect(clippy::cast_possible_truncation, reason = "a burst has at most some millions")]
    pub fn of(limit: RateLimit) -> Self {
        let (rate, burst) = (limit.per_second, f64::from(limit.least_burst().max(limit.burst)));
        let (validity, capacity, per_second) = if burst >= 2.0 {
            let validity = ((burst - 1.0) / (2.0 * rate)).min(LONGEST_VALIDITY_S);
            (validity, burst - rate * validity, rate)
        } else {
            let validity = (0.1 / rate).min(LONGEST_VALIDITY_S);
            (validity, 1.0, rate / (1.0 + rate * validity))
        };
        let validity = Duration::try_from_secs_f64(validity).unwrap_or(Duration::ZERO);
        // Never more than promised: rounded down.
        Self { per_second, capacity: (capacity * 1e6) as i64, validity }
    }

    /// How long a token is good for after its reservation.
    pub const fn validity(&self) -> Duration {
        self.validity
    }

    /// How long to wait before asking again: where the budget is `drained`, until there is a batch's worth of it.
    pub fn ask_again_in(&self, until_next: Duration, drained: bool) -> Duration {
        let part = if drained { self.validity / ASK_AGAIN_PART } else { Duration::ZERO };
        until_next.max(part.clamp(ASK_AGAIN.0, ASK_AGAIN.1))
    }
}

/// What is left of a partner's budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Millionths of a token.
    pub millionths: i64,
    /// When that was so.
    pub at: Timestamp,
}

impl Budget {
    /// A full one.
    pub const fn full(pace: &Pace, now: Timestamp) -> Self {
        Self { millionths: pace.capacity, at: now }
    }

    /// Takes up to `wish` tokens out; how many there were.
    pub fn reserve(&mut self, pace: &Pace, wish: u32, now: Timestamp) -> u32 {
        self.fill(pace, now);
        let granted = wish.min(u32::try_from(self.millionths / MILLIONTHS).unwrap_or(0));
        self.millionths -= i64::from(granted) * MILLIONTHS;
        granted
    }

    /// How long until the next token is there.
    pub fn until_next(&self, pace: &Pace) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "at most one token's millionths")]
        let missing = (MILLIONTHS - self.millionths).max(0) as f64;
        // The clock has milliseconds: a hair later than asked too early.
        Duration::try_from_secs_f64(missing / 1e6 / pace.per_second).unwrap_or(Duration::MAX)
            + Duration::from_millis(1)
    }

    fn fill(&mut self, pace: &Pace, now: Timestamp) {
        if now < self.at {
            if self.at.since(now) > CLOCK_SET_BACK {
                self.at = now;
            }
        } else {
            let earned = now.since(self.at).as_secs_f64() * pace.per_second * 1e6;
            #[expect(clippy::cast_possible_truncation, reason = "saturates, and is cut to the capacity")]
            let earned = earned as i64;
            // A look too early to have earned anything does not cost what has been earned by then.
            if earned > 0 {
                self.millionths = self.millionths.saturating_add(earned);
                self.at = now;
            }
        }
        self.millionths = self.millionths.min(pace.capacity);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + ms)
    }

    #[test]
    fn a_steady_taker_gets_nearly_all_of_the_rate() {
        for (per_second, burst, most_lost) in
            [(10.0, 10, 0.01), (10.0, 1, 0.1), (0.5, 1, 0.1), (2_000.0, 2_000, 0.01)]
        {
            let pace = Pace::of(RateLimit { per_second, burst });
            let mut budget = Budget::full(&pace, at(0));
            let (mut taken, mut now) = (0_u32, 0_i64);
            while now < 600_000 {
                taken += budget.reserve(&pace, u32::MAX, at(now));
                let wait = pace.ask_again_in(budget.until_next(&pace), true);
                now += i64::try_from(wait.as_millis()).expect("short").max(1);
            }
            let promised = per_second * 600.0;
            assert!(
                f64::from(taken) >= promised * (1.0 - most_lost),
                "{per_second}/s: {taken} of {promised}"
            );
            assert!(f64::from(taken) <= promised + f64::from(burst), "{per_second}/s: {taken} of {promised}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_neither_stops_nor_floods() {
        let pace = Pace::of(RateLimit { per_second: 10.0, burst: 10 });
        let mut budget = Budget::full(&pace, at(3_600_000));
        assert_eq!(budget.reserve(&pace, 100, at(3_600_000)), 5);
        assert_eq!(budget.reserve(&pace, 100, at(0)), 0);
        assert_eq!(budget.reserve(&pace, 100, at(1_000)), 5, "it goes on at the new time");
        assert_eq!(budget.reserve(&pace, 100, at(10_000_000)), 5, "and a jump ahead fills it once");
    }

    proptest! {
        /// Several nodes reserve when they like and use their tokens as late as they may: no window holds more than
        /// promised.
        #[test]
        fn no_window_holds_more_than_promised(
            (rate, burst) in (prop_oneof![0.2_f64..20.0, 20.0_f64..3_000.0], 1_u32..200),
            asks in prop::collection::vec((0_i64..400, 1_u32..300, 0.0_f64..=1.0), 1..120),
        ) {
            let limit = RateLimit { per_second: rate, burst };
            let burst = f64::from(burst.max(limit.least_burst()));
            let pace = Pace::of(limit);
            let mut budget = Budget::full(&pace, at(0));
            let (mut now, mut uses) = (0, Vec::new());
            for (pause, wish, late) in asks {
                now += pause;
                let granted = budget.reserve(&pace, wish, at(now));
                #[expect(clippy::cast_precision_loss, reason = "small")]
                let used_at = now as f64 / 1e3 + pace.validity().as_secs_f64() * late;
                uses.extend(std::iter::repeat_n(used_at, granted as usize));
            }
            uses.sort_by(f64::total_cmp);
            for first in 0..uses.len() {
                for last in first..uses.len() {
                    #[expect(clippy::cast_precision_loss, reason = "small")]
                    let count = (last - first + 1) as f64;
                    let most = burst + rate * (uses[last] - uses[first]);
                    prop_assert!(count <= most + 1e-6, "{count} in {} s, {most} promised", uses[last] - uses[first]);
                }
            }
        }
    }
}
