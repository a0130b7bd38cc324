//! Claims of the one process that owns the file, in memory.

use std::time::Duration;

use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::{Class, DeliveryId};
use crate::domain::hash::{FastMap, FastSet};
use crate::domain::tenant::LaneId;
use crate::ledger::Held;

/// The end of a claim whose settlement waits to be written: it does not end by time.
const WHILE_SETTLING: Moment = Moment::after_start(Duration::MAX);

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
    /// How often the ledger's time has gone back, oldest first: rows that were due behind the first time have moved towards
    /// it by so many milliseconds.
    pub set_backs: Vec<(Timestamp, i64)>,
    /// What has changed while a claim reads: its rows may be older than that.
    pub reading: Option<Meanwhile>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub class: Class,
    pub attempt: i64,
    /// Free from then on. `None`: released.
    pub leased_until: Option<Moment>,
    /// How many of [`Claims::set_backs`] there were before it.
    set_backs: usize,
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
        let set_backs = self.set_backs.len();
        let claim = Claim { class, attempt, leased_until: Some(leased_until), set_backs };
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

    /// Keeps a claim that still holds until its settlement is written.
    pub fn keep_for_settling(&mut self, id: DeliveryId, attempt: i64) {
        if let Some(claim) = self.held.get_mut(&id)
            && claim.attempt == attempt
            && claim.leased_until.is_some()
        {
            claim.leased_until = Some(WHILE_SETTLING);
        }
    }

    /// Takes a claim back as if it had never been made; `before` is what was known of the delivery then.
    ///
    /// A claim of the lane's queue may have passed the row meanwhile, so the queue's cursor starts over.
    pub fn restore(&mut self, place: &Held, attempt: i64, before: Option<Claim>) {
        let id = place.id;
        if self.held.get(&id).is_none_or(|claim| claim.attempt != attempt) {
            return;
        }
        match before {
            Some(before) => {
                self.held.insert(id, before);
            }
            None => self.drop_hold(id),
        }
        self.appeared((id.lane, place.class), (place.due_at.as_millis(), id.event.0));
    }

    /// Takes back a claim of which nothing was sent: its row is free, and its number is given out again.
    pub fn unclaim(&mut self, held: &Held) {
        if let Some(claim) = self.held.get_mut(&held.id)
            && claim.attempt == held.attempt
        {
            claim.attempt -= 1;
            claim.leased_until = None;
            self.appeared((held.id.lane, held.class), (held.due_at.as_millis(), held.id.event.0));
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

    /// When a claimed row that was due at `due_at` falls due now: time may have gone back since the claim.
    pub fn due_at(&self, id: DeliveryId, due_at: Timestamp) -> Timestamp {
        let before = self.held.get(&id).map_or(usize::MAX, |claim| claim.set_backs);
        self.set_backs.iter().skip(before).fold(due_at, |due_at, (now, back_ms)| {
            if due_at > *now { Timestamp::from_millis(due_at.as_millis() - back_ms) } else { due_at }
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::Timestamp;
    use crate::domain::event::EventSeq;

    fn place(event: i64) -> Held {
        let id = DeliveryId { event: EventSeq(event), lane: LaneId(1) };
        Held { id, class: Class::Fresh, due_at: Timestamp::from_millis(10), attempt: 1 }
    }

    /// One claim takes row 7 while another passes it: its cursor stands behind row 8.
    fn passed() -> (Claims, Moment) {
        let (mut claims, until) = (Claims::default(), Moment::default() + Duration::from_secs(60));
        claims.hold(place(7).id, Class::Fresh, 1, until);
        claims.hold(place(8).id, Class::Fresh, 1, until);
        claims.cursors.insert((LaneId(1), Class::Fresh), Cursor { place: (10, 8), until });
        (claims, until)
    }

    #[test]
    fn a_row_that_is_restored_is_not_behind_the_cursor() {
        let released = Claim { class: Class::Fresh, attempt: 0, leased_until: None, set_backs: 0 };
        for before in [None, Some(released)] {
            let (mut claims, _) = passed();
            claims.restore(&place(7), 1, before);
            assert!(claims.cursors.is_empty(), "the row would wait until the lease of row 8 ends");
            assert_eq!(claims.next_attempt(place(7).id, 0, Moment::default()), Some(1));
        }
    }

    #[test]
    fn a_claim_that_is_taken_back_gives_its_number_out_again() {
        let (mut claims, _) = passed();
        claims.unclaim(&place(7));
        assert!(claims.cursors.is_empty());
        assert_eq!(claims.next_attempt(place(7).id, 0, Moment::default()), Some(1));
    }

    #[test]
    fn a_claim_does_not_end_while_its_settlement_waits() {
        let (mut claims, until) = passed();
        let late = until + Duration::from_secs(3_600);
        claims.keep_for_settling(place(7).id, 1);
        // An older claim keeps nothing.
        claims.keep_for_settling(place(8).id, 0);
        assert_eq!(claims.next_attempt(place(7).id, 0, late), None);
        assert_eq!(claims.next_attempt(place(8).id, 0, late), Some(2));
    }
}
