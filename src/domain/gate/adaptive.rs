//! What answers tell of a receiver's load: failures, and how long they take.
//!
//! Latency is looked at a window of answers at a time, by its mean: one lucky or unlucky answer is not the receiver's
//! pace. The lowest mean is what an idle receiver takes. It is only ever raised by what is measured at the lower
//! bound, where slowness is not of our making: raised with time instead, it would follow the queue that we ourselves
//! keep at the receiver, and the window would creep up for ever.

use std::time::Duration;

/// What is left of the window after a window of slow answers.
pub(super) const SLOW_FACTOR: f64 = 0.9;

/// How far an adaptive gate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveLimits {
    /// Failures and latency narrow the gate no further. A throttle does.
    pub min_in_flight: u32,
    /// Answers are slow where they take more than so many times the lowest latency …
    pub tolerance: u32,
    /// … and this.
    pub floor: Duration,
}

impl AdaptiveLimits {
    /// Twice the lowest latency and 50 ms.
    pub const fn new(min_in_flight: u32) -> Self {
        Self { min_in_flight, tolerance: 2, floor: Duration::from_millis(50) }
    }
}

/// The measuring of one gate.
#[derive(Debug, Default)]
pub(super) struct Measure {
    /// Answers still to come that tell of the time before the last change.
    old: u32,
    /// Answers of this window still to come; 0 where it has not begun.
    missing: u32,
    /// Its answers with a latency, and the sum of these.
    timed: u32,
    sum: Duration,
    lowest: Option<Duration>,
    /// The last window was slow.
    slow: bool,
}

impl Measure {
    /// Begins anew after the next `old` answers.
    pub(super) fn begin_after(&mut self, old: u32) {
        *self = Self { old, lowest: self.lowest, slow: self.slow, ..Self::default() };
    }

    /// Begins anew with a window that is as narrow as can be: only the lowest latency is still true.
    pub(super) fn restart(&mut self) {
        *self = Self { lowest: self.lowest, ..Self::default() };
    }

    /// Whether the last window of answers was slow: none to be widened for.
    pub(super) const fn is_slow(&self) -> bool {
        self.slow
    }

    /// Counts a failure; whether it is the first of its window.
    pub(super) fn fail(&mut self) -> bool {
        let first = self.old == 0;
        self.old = self.old.saturating_sub(1);
        first
    }

    /// Counts an answer. True where with it a window of answers is full, and was slow.
    ///
    /// `window` says how many that are, where this is the first of them; `at_least`, that it is as narrow as it gets.
    pub(super) fn answer(
        &mut self,
        latency: Option<Duration>,
        window: u32,
        limits: &AdaptiveLimits,
        at_least: bool,
    ) -> bool {
        if self.old > 0 {
            self.old -= 1;
            return false;
        }
        // As it was at the beginning: while it grows by one with every answer, the end would never come.
        self.missing = if self.missing == 0 { window } else { self.missing }.saturating_sub(1);
        if let Some(latency) = latency {
            self.timed += 1;
            self.sum += latency;
        }
        if self.missing > 0 || self.timed == 0 {
            return false;
        }
        let mean = self.sum / self.timed;
        let lowest = self.lowest.map_or(mean, |lowest| lowest.min(mean));
        let slow = mean > lowest * limits.tolerance + limits.floor;
        self.lowest = Some(if slow && at_least { mean } else { lowest });
        self.slow = slow && !at_least;
        self.begin_after(0);
        slow
    }
}
