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
}

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
}
