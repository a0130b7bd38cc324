//! What was accepted and what has arrived, by event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::events::Ids;
use crate::domain::clock::{Clock, Moment};

/// A load as its receiver sees it. Times are microseconds since the load began, from 1 on; 0 is "not yet".
pub(super) struct Tally {
    ids: Ids,
    events: u64,
    /// How many deliveries each event becomes.
    copies: usize,
    began: Moment,
    accepted: Vec<AtomicU32>,
    /// By event, then by copy.
    arrived: Vec<AtomicU32>,
    unique: AtomicU64,
    doubled: AtomicU64,
    unexpected: AtomicU64,
    verified: AtomicU64,
    bad_signatures: AtomicU64,
    last_arrival_us: AtomicU64,
    clock: Arc<dyn Clock>,
}

/// What came of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub lost: u64,
    pub doubled: u64,
    /// Requests about no event of this load.
    pub unexpected: u64,
    pub verified: u64,
    pub bad_signatures: u64,
}

impl Tally {
    pub fn new(ids: Ids, events: u64, copies: usize, clock: Arc<dyn Clock>) -> Self {
        let count = usize::try_from(events).unwrap_or(0);
        let empty = |count| std::iter::repeat_with(AtomicU32::default).take(count).collect();
        Self {
            ids,
            events,
            copies,
            began: clock.moment(),
            accepted: empty(count),
            arrived: empty(count * copies),
            unique: AtomicU64::default(),
            doubled: AtomicU64::default(),
            unexpected: AtomicU64::default(),
            verified: AtomicU64::default(),
            bad_signatures: AtomicU64::default(),
            last_arrival_us: AtomicU64::default(),
            clock,
        }
    }

    pub const fn ids(&self) -> Ids {
        self.ids
    }

    pub const fn events(&self) -> u64 {
        self.events
    }

    /// How many deliveries there should be.
    pub const fn expected(&self) -> u64 {
        self.events * self.copies as u64
    }

    /// How many have arrived, each counted once.
    pub fn unique(&self) -> u64 {
        self.unique.load(Ordering::Relaxed)
    }

    /// From the beginning to the last arrival.
    pub fn until_last_arrival(&self) -> Duration {
        Duration::from_micros(self.last_arrival_us.load(Ordering::Relaxed))
    }

    /// A 202 came for `count` events from number `first`.
    pub fn accepted(&self, first: u64, count: u64) {
        let now = self.now_us();
        let range = usize::try_from(first).unwrap_or(0)..usize::try_from(first + count).unwrap_or(0);
        for place in &self.accepted[range] {
            place.store(now, Ordering::Relaxed);
        }
    }

    /// A request came for the receiver number `copy`. One without an id is none of a load's and is not counted.
    pub fn arrived(&self, copy: usize, request: &[u8]) {
        let Some(index) = self.ids.find(request) else { return };
        if index >= self.events || copy >= self.copies {
            self.unexpected.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = self.now_us();
        let place = usize::try_from(index).unwrap_or(0) * self.copies + copy;
        if self.arrived[place].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.last_arrival_us.fetch_max(u64::from(now), Ordering::Relaxed);
            self.unique.fetch_add(1, Ordering::Relaxed);
        } else {
            self.doubled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A signature was looked at.
    pub fn looked_at(&self, good: bool) {
        self.verified.fetch_add(1, Ordering::Relaxed);
        if !good {
            self.bad_signatures.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn arrivals(&self) -> Arrivals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Arrivals {
            lost: self.expected() - self.unique(),
            doubled: get(&self.doubled),
            unexpected: get(&self.unexpected),
            verified: get(&self.verified),
            bad_signatures: get(&self.bad_signatures),
        }
    }

    /// From 202 to arrival, of each delivery that has arrived, in microseconds and in order of size. One that was there
    /// before the 202 was counts as 0.
    pub fn waits_us(&self) -> Vec<u32> {
        let mut waits = Vec::with_capacity(self.arrived.len());
        for (place, arrived) in self.arrived.iter().enumerate() {
            let (accepted, arrived) =
                (self.accepted[place / self.copies].load(Ordering::Relaxed), arrived.load(Ordering::Relaxed));
            if accepted > 0 && arrived > 0 {
                waits.push(arrived.saturating_sub(accepted));
            }
        }
        waits.sort_unstable();
        waits
    }

    fn now_us(&self) -> u32 {
        let since = self.began.until(self.clock.moment()).as_micros();
        u32::try_from(since).unwrap_or(u32::MAX).max(1)
    }
}

/// The value that `percent` of the values do not exceed; `None` of no values. `values` are in order of size.
pub(super) fn percentile(values: &[u32], percent: usize) -> Option<u32> {
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::SystemClock;
    use crate::cli::bench::events::{KeyOrder, Shape};

    #[test]
    fn what_is_lost_doubled_or_foreign_is_counted() {
        let shape = Shape { event_type: "bench.event", tenants: vec!["a".into()], bytes: 250 };
        let (ours, theirs) = (Ids::new(KeyOrder::Random, 1), Ids::new(KeyOrder::Random, 99));
        let tally = Tally::new(ours, 3, 2, Arc::new(SystemClock::new()));
        let event = |index| shape.body(ours, index, 1, 0);
        tally.accepted(0, 3);
        for (copy, index) in [(0, 0), (1, 0), (0, 1), (0, 1), (1, 2)] {
            tally.arrived(copy, &event(index));
        }
        tally.arrived(2, &event(2));
        tally.arrived(0, &shape.body(theirs, 2, 1, 0));
        tally.arrived(0, br#"{"id":"probe-1"}"#);
        let counted = Arrivals { lost: 2, doubled: 1, unexpected: 2, verified: 0, bad_signatures: 0 };
        assert_eq!(tally.arrivals(), counted);
        assert_eq!(tally.waits_us().len(), 4);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(100), Some(198)));
        assert_eq!((percentile(&[7], 99), percentile(&[], 50)), (Some(7), None));
    }
}
