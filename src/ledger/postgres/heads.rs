//! Where in a deep queue a claim begins to look.
//!
//! What is settled leaves dead entries at the front of the queue's index until Postgres vacuums it, which takes a minute or
//! longer: after a million events each claim would walk past a million of them. So behind a claim that found as much as it
//! wanted, the next begins where that one ended. What comes to wait further in front is found by a look from the front: at
//! once where this node has put it there, or where a claim finds less than it wants; else within [`FROM_FRONT_EVERY`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::{Class, NextState, Settlement};
use crate::domain::hash::FastMap;
use crate::domain::scheduler::LaneClaim;
use crate::domain::tenant::LaneId;
use crate::ledger::payloads::ClaimedPlaces;
use crate::ledger::plan::Plan;
use crate::ledger::{Held, rows};

/// How long a deep queue is claimed from without a look from the front.
const FROM_FRONT_EVERY: Duration = Duration::from_secs(1);
/// Before everything.
pub(super) const FRONT: i64 = i64::MIN;

/// The heads of deep queues.
#[derive(Debug, Default)]
pub(super) struct Heads {
    known: Mutex<FastMap<(LaneId, i64), Head>>,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    /// Nothing is known to wait that falls due earlier.
    due_at: i64,
    /// When it was last looked from the front.
    from_front: Moment,
}

impl Heads {
    fn known(&self) -> MutexGuard<'_, FastMap<(LaneId, i64), Head>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From which due time on each claim looks.
    pub fn of(&self, claims: &[LaneClaim], now: Moment) -> Vec<i64> {
        let known = self.known();
        let head = |claim: &LaneClaim| {
            let head = known.get(&queue(claim.lane.id, claim.class));
            head.filter(|head| now < head.from_front + FROM_FRONT_EVERY).map_or(FRONT, |head| head.due_at)
        };
        claims.iter().map(head).collect()
    }

    /// Claims that looked from `heads` on have found this.
    pub fn found(&self, claims: &[LaneClaim], heads: &[i64], claimed: &[ClaimedPlaces], now: Moment) {
        let mut known = self.known();
        for ((claim, head), claimed) in claims.iter().zip(heads).zip(claimed) {
            let queue = queue(claim.lane.id, claim.class);
            let last = claimed.places.last().filter(|_| claimed.places.len() == claim.limit);
            let Some(last) = last else {
                known.remove(&queue);
                continue;
            };
            let before = known.get(&queue).filter(|_| *head != FRONT);
            // Where something was put in front meanwhile, it stays known.
            let due_at =
                before.filter(|before| before.due_at < *head).map_or(last.due_at, |before| before.due_at);
            let from_front = before.map_or(now, |before| before.from_front);
            known.insert(queue, Head { due_at, from_front });
        }
    }

    /// Claims were given back.
    pub fn released(&self, held: &[Held]) {
        self.put(held.iter().map(|held| (held.id.lane, held.class, held.due_at)));
    }

    /// A plan and settlements were committed.
    pub fn committed(&self, plan: &Plan<'_>, settlements: &[Settlement]) {
        let fresh = plan.deliveries.iter().map(|waiting| (waiting.lane.id, Class::Fresh, plan.now));
        let again = settlements.iter().filter_map(|settlement| {
            let lane = settlement.id.lane;
            match settlement.next {
                NextState::Pending { due_at, failures, .. } => {
                    Some((lane, settlement.class_with(failures), due_at))
                }
                NextState::Released => Some((lane, settlement.class, settlement.due_at)),
                _ => None,
            }
        });
        self.put(fresh.chain(again));
    }

    /// There something waits now.
    pub fn put(&self, waiting: impl Iterator<Item = (LaneId, Class, Timestamp)>) {
        let mut known = self.known();
        if known.is_empty() {
            return;
        }
        for (lane, class, due_at) in waiting {
            if let Some(head) = known.get_mut(&queue(lane, class)) {
                head.due_at = head.due_at.min(due_at.as_millis());
            }
        }
    }
}

/// A queue's name: a lane has one for each class.
fn queue(lane: LaneId, class: Class) -> (LaneId, i64) {
    (lane, rows::class_column(class))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::delivery::DeliveryId;
    use crate::domain::event::EventSeq;
    use crate::domain::scheduler::Remaining;
    use crate::domain::tenant::{Destination, Lane};
    use crate::ledger::payloads::Place;

    const LIMIT: usize = 2;

    fn claims() -> [LaneClaim; 1] {
        let destination = Arc::new(Destination::Svix { app: "app".into() });
        let lane = Arc::new(Lane { id: LaneId(7), destination, tenant: "acme".into() });
        [LaneClaim { lane, class: Class::Fresh, limit: LIMIT }]
    }

    fn claimed(due_at: &[i64]) -> [ClaimedPlaces; 1] {
        let place =
            |&due_at: &i64| Place { due_at, event: 1, attempt: 1, failures: 0, uncertain: 0, replay: 0 };
        [ClaimedPlaces { places: due_at.iter().map(place).collect(), remaining: Remaining::Due }]
    }

    fn held(due_at: i64) -> Held {
        let id = DeliveryId { event: EventSeq(1), lane: LaneId(7) };
        Held { id, class: Class::Fresh, due_at: Timestamp::from_millis(due_at), attempt: 1 }
    }

    fn at(millis: u64) -> Moment {
        Moment::after_start(Duration::from_millis(millis))
    }

    #[test]
    fn a_deep_queue_is_claimed_on_and_once_a_second_from_the_front() {
        let (heads, claims) = (Heads::default(), claims());
        assert_eq!(heads.of(&claims, at(0)), [FRONT]);
        heads.found(&claims, &[FRONT], &claimed(&[10, 20]), at(0));
        assert_eq!(heads.of(&claims, at(1)), [20]);
        heads.found(&claims, &[20], &claimed(&[20, 30]), at(999));
        assert_eq!(heads.of(&claims, at(999)), [30]);
        assert_eq!(heads.of(&claims, at(1_000)), [FRONT]);
        heads.found(&claims, &[FRONT], &claimed(&[15, 30]), at(1_000));
        assert_eq!(heads.of(&claims, at(1_999)), [30]);
        // Less than it wanted: it is not deep any more.
        heads.found(&claims, &[30], &claimed(&[30]), at(1_500));
        assert_eq!(heads.of(&claims, at(1_500)), [FRONT]);
    }

    #[test]
    fn what_is_put_in_front_is_found_next_also_where_a_claim_is_under_way() {
        let (heads, claims) = (Heads::default(), claims());
        heads.found(&claims, &[FRONT], &claimed(&[10, 20]), at(0));
        heads.released(&[held(25)]);
        assert_eq!(heads.of(&claims, at(1)), [20]);
        heads.released(&[held(5)]);
        assert_eq!(heads.of(&claims, at(1)), [5]);
        heads.found(&claims, &[5], &claimed(&[5, 20]), at(1));
        assert_eq!(heads.of(&claims, at(1)), [20]);
        // It is put there while a claim looks from 20 on.
        heads.released(&[held(6)]);
        heads.found(&claims, &[20], &claimed(&[20, 30]), at(2));
        assert_eq!(heads.of(&claims, at(2)), [6]);
    }
}
