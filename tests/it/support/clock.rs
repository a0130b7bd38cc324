//! A clock that stands still until a test moves it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use posthaste::domain::clock::{Clock, Moment, Timestamp};

/// 2026-01-01T00:00:00Z.
const START_MS: i64 = 1_767_225_600_000;

/// Wall and monotonic clock, which can be moved apart, and numbers that only look random.
#[derive(Debug)]
pub struct TestClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicU64,
    drawn: AtomicU64,
    /// The ledger watches it as it does a real clock.
    watched: bool,
}

impl TestClock {
    /// A clock at 2026-01-01, an hour after the process began.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::at_start(false))
    }

    /// The same, and the ledger does not follow where the test moves the wall clock, as it does not with a real one.
    pub fn watched() -> Arc<Self> {
        Arc::new(Self::at_start(true))
    }

    const fn at_start(watched: bool) -> Self {
        Self {
            wall_ms: AtomicI64::new(START_MS),
            monotonic_ms: AtomicU64::new(3_600_000),
            drawn: AtomicU64::new(0),
            watched,
        }
    }

    /// Sets the wall clock forward, or back.
    pub fn move_wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    /// Moves the monotonic clock.
    pub fn move_monotonic(&self, by: Duration) {
        self.monotonic_ms.fetch_add(by.as_millis().try_into().expect("a short time"), Ordering::SeqCst);
    }

    /// Time passes: both clocks move.
    pub fn pass(&self, time: Duration) {
        self.move_wall(time.as_millis().try_into().expect("a short time"));
        self.move_monotonic(time);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall_ms.load(Ordering::SeqCst))
    }

    fn moment(&self) -> Moment {
        Moment::after_start(Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst)))
    }

    fn random(&self) -> u128 {
        // SplitMix64 over a counter, twice.
        let half = || {
            let drawn = self.drawn.fetch_add(1, Ordering::SeqCst) + 1;
            let mut mixed = drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            u128::from(mixed ^ (mixed >> 31))
        };
        (half() << 64) | half()
    }

    fn drives_ledger(&self) -> bool {
        !self.watched
    }
}
