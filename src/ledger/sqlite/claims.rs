//! Claims of the one process that owns the file, in memory.

use std::collections::{HashMap, HashSet};

use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::DeliveryId;
use crate::domain::tenant::LaneId;
use crate::ledger::ClaimId;

/// Who holds what, in memory.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By delivery: number and end of the last claim. Released ones stay, for their number.
    pub held: HashMap<DeliveryId, Claim>,
    /// Claimed deliveries in each lane, released ones included: rows a claim has to pass over.
    pub in_lane: HashMap<LaneId, usize>,
    /// Where in a lane the next claim goes on.
    pub cursors: HashMap<LaneId, Cursor>,
    /// What has changed while a claim reads: its rows may be older than that.
    pub reading: Option<Meanwhile>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub attempt: i64,
    /// Free from then on. `None`: released.
    pub leased_until: Option<Moment>,
}

/// A place in a lane that a claim has come to. All before it is claimed, until the first of those leases ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// `due_at` and event of the last row passed.
    pub place: (i64, i64),
    pub until: Moment,
}

#[derive(Debug, Default)]
pub(super) struct Meanwhile {
    pub settled: HashSet<DeliveryId>,
    /// Lanes whose cursor must start over.
    pub disturbed: HashSet<LaneId>,
}

impl Claims {
    /// Notes a claim of `id` with this number.
    pub fn hold(&mut self, id: DeliveryId, attempt: i64, leased_until: Moment) {
        let claim = Claim { attempt, leased_until: Some(leased_until) };
        if self.held.insert(id, claim).is_none() {
            *self.in_lane.entry(id.lane).or_default() += 1;
        }
    }

    pub fn drop_hold(&mut self, id: DeliveryId) {
        if self.held.remove(&id).is_some()
            && let Some(count) = self.in_lane.get_mut(&id.lane)
        {
            *count -= 1;
            if *count == 0 {
                self.in_lane.remove(&id.lane);
            }
        }
    }

    /// A free row has appeared in `lane` at `place`: where the cursor has passed it, it must start over.
    pub fn appeared(&mut self, lane: LaneId, place: (i64, i64)) {
        if self.cursors.get(&lane).is_some_and(|cursor| place <= cursor.place) {
            self.cursors.remove(&lane);
        }
        if let Some(meanwhile) = &mut self.reading {
            meanwhile.disturbed.insert(lane);
        }
    }

    /// Gives a claim back, where it still holds: its row is free, its number stays in memory.
    pub fn release(&mut self, (id, attempt): ClaimId, due_at: Timestamp) {
        if let Some(claim) = self.held.get_mut(&id)
            && claim.attempt == attempt
        {
            claim.leased_until = None;
            self.appeared(id.lane, (due_at.as_millis(), id.event.0));
        }
    }

    /// The number of the next claim of a row that has `stored` settled attempts; `None` while another claim holds.
    pub fn next_attempt(&self, id: DeliveryId, stored: i64, now: Moment) -> Option<i64> {
        let Some(claim) = self.held.get(&id) else { return Some(stored + 1) };
        let free = claim.leased_until.is_none_or(|leased_until| leased_until <= now);
        free.then(|| claim.attempt.max(stored) + 1)
    }
}
