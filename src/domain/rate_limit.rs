//! A token bucket: at most rate × time + burst.
//!
//! What comes in batches can be larger than the burst and must not be refused for ever: it needs a full bucket, and
//! leaves a debt behind that the next one waits for. So over time the rate holds all the same.

use std::time::Duration;

use super::clock::Moment;
use super::partner::RateLimit;

/// Parts of a token that rounding may have cost.
const ROUNDING: f64 = 1e-6;

/// See the module's own words.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    limit: RateLimit,
    tokens: f64,
    filled_at: Moment,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now: Moment) -> Self {
        Self { limit, tokens: f64::from(limit.burst), filled_at: now }
    }

    /// The limit it holds to.
    pub const fn limit(&self) -> RateLimit {
        self.limit
    }

    /// How long until `count` tokens may be spent at once; zero where they may be now. More than the burst may be
    /// once the bucket is full.
    pub fn wait_for(&mut self, count: u32, now: Moment) -> Duration {
        self.fill(now);
        let missing = f64::from(count.min(self.limit.burst)) - self.tokens;
        // A wait that was served to the letter is not refused for a rounding error.
        if missing <= ROUNDING {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(missing / self.limit.per_second).unwrap_or(Duration::MAX)
    }

    /// Spends `count` tokens, those that are not there as a debt. Ask [`Self::wait_for`] first.
    pub fn spend(&mut self, count: u32) {
        self.tokens -= f64::from(count);
    }

    /// Gives `count` tokens back that were spent for nothing.
    pub fn refund(&mut self, count: u32) {
        self.tokens = (self.tokens + f64::from(count)).min(f64::from(self.limit.burst));
    }

    /// Whether it is as good as new at `now`.
    pub fn is_full(&mut self, now: Moment) -> bool {
        self.fill(now);
        self.tokens >= f64::from(self.limit.burst)
    }

    fn fill(&mut self, now: Moment) {
        let earned = self.filled_at.until(now).as_secs_f64() * self.limit.per_second;
        self.tokens = (self.tokens + earned).min(f64::from(self.limit.burst));
        self.filled_at = self.filled_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::after_start(Duration::from_millis(ms))
    }

    /// Spends a token, where there is one.
    fn take(bucket: &mut TokenBucket, now: Moment) -> bool {
        let there = bucket.wait_for(1, now).is_zero();
        if there {
            bucket.spend(1);
        }
        there
    }

    /// Whole tokens there are.
    fn available(bucket: &mut TokenBucket, now: Moment) -> u32 {
        (1..=bucket.limit().burst).take_while(|count| bucket.wait_for(*count, now).is_zero()).count() as u32
    }

    #[test]
    fn never_more_than_rate_times_window_and_burst() {
        // holds: 40 (on one node)
        let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst: 5 }, at(0));
        let taken = (0..60_000).filter(|ms| take(&mut bucket, at(*ms))).count();
        assert!((600..=605).contains(&taken), "{taken}");
        let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst: 5 }, at(0));
        let mut now = at(0);
        let mut taken = 0;
        while now < at(60_000) {
            while take(&mut bucket, now) {
                taken += 1;
            }
            now = now + bucket.wait_for(1, now);
        }
        assert!((600..=605).contains(&taken), "{taken} by waiting for each token");
    }

    #[test]
    fn batches_of_any_size_pass_and_over_time_the_rate_holds() {
        for (batch, burst) in [(1, 5), (5, 5), (7, 20), (100, 5), (1_000, 50)] {
            let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst }, at(0));
            let (mut now, mut taken, mut batches) = (at(0), 0, 0);
            while batches < 50 {
                let wait = bucket.wait_for(batch, now);
                if wait.is_zero() {
                    bucket.spend(batch);
                    taken += batch;
                    batches += 1;
                    let allowed =
                        10.0 * now.since_start().as_secs_f64() + f64::from(burst.max(batch)) + 0.001;
                    assert!(f64::from(taken) <= allowed, "{batch} with {burst}: {taken} at {now:?}");
                    continue;
                }
                let early = now + wait.mul_f64(0.99);
                assert!(
                    bucket.clone().wait_for(batch, early) > Duration::ZERO,
                    "the wait is no longer than needed"
                );
                now = now + wait;
                assert_eq!(bucket.wait_for(batch, now), Duration::ZERO, "and not too short");
            }
        }
    }

    #[test]
    fn a_debt_is_waited_for_and_a_refund_is_no_gain() {
        let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst: 5 }, at(0));
        assert_eq!(bucket.wait_for(100, at(0)), Duration::ZERO);
        bucket.spend(100);
        assert_eq!((available(&mut bucket, at(0)), bucket.is_full(at(0))), (0, false));
        assert_eq!(bucket.wait_for(1, at(0)), Duration::from_millis(9_600));
        assert_eq!(bucket.wait_for(100, at(0)), Duration::from_secs(10), "a full bucket is enough");
        bucket.refund(100);
        assert!(bucket.is_full(at(0)));
        bucket.refund(100);
        assert_eq!(available(&mut bucket, at(0)), 5);
    }

    #[test]
    fn a_changed_limit_holds_at_once() {
        // Whose limit has changed gets a bucket of the new one.
        let mut bucket = TokenBucket::new(RateLimit { per_second: 100.0, burst: 50 }, at(0));
        assert_eq!(available(&mut bucket, at(0)), 50);
        bucket = TokenBucket::new(RateLimit { per_second: 1.0, burst: 2 }, at(0));
        assert_eq!(available(&mut bucket, at(0)), 2);
        assert!(take(&mut bucket, at(0)) && take(&mut bucket, at(0)) && !take(&mut bucket, at(0)));
        bucket.refund(1);
        assert!(take(&mut bucket, at(0)));
        assert_eq!(available(&mut bucket, at(2_500)), 2);
    }
}
