//! Claims of the one process that owns the file, in memory.

use crate::domain::clock::Moment;
use crate::domain::delivery::{Class, DeliveryId};
use crate::domain::hash::{FastMap, FastSet};
use crate::domain::tenant::LaneId;
use crate::ledger::Held;

/// One of a lane's two queues.
pub(super) type Queue = (LaneId, Class);

/// Who holds what, in memory.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By delivery: number and end of the last claim. Released ones stay, for their number.
    pub held: FastMap<DeliveryId, Claim>,
    /// Claimed deliveries in each queue, released ones included: rows a claim has to pass over.
    pub in_queue: FastMap<Queue, usize>,
    /// Where in a queue the next claim goes on.
    pub cursors: FastMap<Queue, Cursor>,
    /// What has changed while a claim reads: its rows may be older than that.
    pub reading: Option<Meanwhile>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub class: Class,
    pub attempt: i64,
    /// Free from then on. `None`: released.
    pub leased_until: Option<Moment>,
}

/// A place in a queue that a claim has come to. All before it is claimed, until the first of those leases ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// `due_at` and event of the last row passed.
    pub place: (i64, i64),
    pub until: Moment,
}

#[derive(Debug, Default)]
pub(super) struct Meanwhile {
    pub settled: FastSet<DeliveryId>,
    /// Queues whose cursor must start over.
    pub disturbed: FastSet<Queue>,
}

impl Claims {
    /// Notes a claim of `id` with this number.
    pub fn hold(&mut self, id: DeliveryId, class: Class, attempt: i64, leased_until: Moment) {
        let claim = Claim { class, attempt, leased_until: Some(leased_until) };
        if self.held.insert(id, claim).is_none() {
            *self.in_queue.entry((id.lane, class)).or_default() += 1;
        }
    }

    pub fn drop_hold(&mut self, id: DeliveryId) {
        if let Some(claim) = self.held.remove(&id)
            && let Some(count) = self.in_queue.get_mut(&(id.lane, claim.class))
        {
            *count -= 1;
            if *count == 0 {
                self.in_queue.remove(&(id.lane, claim.class));
            }
        }
    }

    /// Takes a claim of this number back as if it had never been made; `before` is what was known of the delivery then.
    pub fn restore(&mut self, id: DeliveryId, attempt: i64, before: Option<Claim>) {
        if self.held.get(&id).is_none_or(|claim| claim.attempt != attempt) {
            return;
        }
        match before {
            Some(before) => {
                self.held.insert(id, before);
            }
            None => self.drop_hold(id),
        }
    }

    /// A free row has appeared in `queue` at `place`: where the cursor has passed it, it must start over.
    pub fn appeared(&mut self, queue: Queue, place: (i64, i64)) {
        if self.cursors.get(&queue).is_some_and(|cursor| place <= cursor.place) {
            self.cursors.remove(&queue);
        }
        if let Some(meanwhile) = &mut self.reading {
            meanwhile.disturbed.insert(queue);
        }
    }

    /// Gives a claim back, where it still holds: its row is free, its number stays in memory.
    pub fn release(&mut self, held: &Held) {
        if let Some(claim) = self.held.get_mut(&held.id)
            && claim.attempt == held.attempt
        {
            claim.leased_until = None;
            self.appeared((held.id.lane, held.class), (held.due_at.as_millis(), held.id.event.0));
        }
    }

    /// The number of the next claim of a row that has `stored` settled attempts; `None` while another claim holds.
    pub fn next_attempt(&self, id: DeliveryId, stored: i64, now: Moment) -> Option<i64> {
        let Some(claim) = self.held.get(&id) else { return Some(stored + 1) };
        let free = claim.leased_until.is_none_or(|leased_until| leased_until <= now);
        free.then(|| claim.attempt.max(stored) + 1)
    }
}
