//! A token bucket: at most rate × time + burst.

use std::time::Duration;

use super::clock::Moment;
use super::partner::RateLimit;

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

    /// Another limit from now on. What has been saved up is kept, as far as the new burst goes.
    pub fn set_limit(&mut self, limit: RateLimit, now: Moment) {
        self.fill(now);
        self.limit = limit;
        self.tokens = self.tokens.min(f64::from(limit.burst));
    }

    /// Whole tokens there are at `now`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the burst")]
    pub fn available(&mut self, now: Moment) -> usize {
        self.fill(now);
        self.tokens as usize
    }

    /// Takes a token, where there is one.
    pub fn take(&mut self, now: Moment) -> bool {
        self.fill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// Gives a token back that was taken for nothing.
    pub fn put_back(&mut self) {
        self.tokens = (self.tokens + 1.0).min(f64::from(self.limit.burst));
    }

    /// When the next token is there.
    pub fn next_at(&mut self, now: Moment) -> Moment {
        self.fill(now);
        let missing = (1.0 - self.tokens).max(0.0) / self.limit.per_second;
        // A hair later, so that rounding does not make it a hair too early.
        now + Duration::try_from_secs_f64(missing + 1e-6).unwrap_or(Duration::MAX)
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

    #[test]
    fn never_more_than_rate_times_window_and_burst() {
        // holds: 40 (on one node)
        let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst: 5 }, at(0));
        let taken = (0..60_000).filter(|ms| bucket.take(at(*ms))).count();
        assert!((600..=605).contains(&taken), "{taken}");
        let mut bucket = TokenBucket::new(RateLimit { per_second: 10.0, burst: 5 }, at(0));
        let mut now = at(0);
        let mut taken = 0;
        while now < at(60_000) {
            while bucket.take(now) {
                taken += 1;
            }
            now = bucket.next_at(now);
        }
        assert!((600..=605).contains(&taken), "{taken} by waiting for each token");
    }

    #[test]
    fn a_changed_limit_holds_at_once() {
        let mut bucket = TokenBucket::new(RateLimit { per_second: 100.0, burst: 50 }, at(0));
        bucket.set_limit(RateLimit { per_second: 1.0, burst: 2 }, at(0));
        assert_eq!(bucket.available(at(0)), 2);
        assert!(bucket.take(at(0)) && bucket.take(at(0)) && !bucket.take(at(0)));
        bucket.put_back();
        assert!(bucket.take(at(0)));
        assert_eq!(bucket.available(at(2_500)), 2);
    }
}
