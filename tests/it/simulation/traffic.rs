//! What goes between a node and the ledger, and may be late or get lost on its way.

use std::time::Duration;

use bytes::Bytes;
use posthaste::domain::clock::{Moment, Timestamp};
use posthaste::domain::delivery::{Class, Delivery, DeliveryId, NextState, ReplayNumber, Settlement};
use posthaste::domain::event::{EventSeq, Identity};
use posthaste::domain::gate::Signal;
use posthaste::domain::scheduler::{LaneClaim, Permit, Remaining};

use super::node::{AFTER_ERROR_US, NodeEvent, micros, moment};
use super::numbers::{Incarnation, Refusal};
use super::watch::Buffered;
use super::world::{ATTEMPT_TIMEOUT_US, Event, LEASE_US, MS, SECOND, World};

/// How wrong a node may take the ledger's clock to be.
pub const CLOCK_ERROR: Duration = Duration::from_millis(500);
/// No retry waits longer.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// What a claim yields.
#[derive(Debug)]
pub struct Claimed {
    pub delivery: Delivery,
    /// The end of its lease, on the ledger's clock.
    pub lease_until: u64,
    /// Whose limits it counts against, as the node knew when it was picked.
    pub partner: Option<usize>,
    pub buffered: Option<Buffered>,
}

impl Claimed {
    pub fn row(&self) -> usize {
        usize::try_from(self.delivery.id.event.0).expect("positive")
    }

    pub fn lane(&self) -> usize {
        usize::try_from(self.delivery.lane.id.0).expect("positive")
    }
}

fn row_of(settlement: &Settlement) -> usize {
    usize::try_from(settlement.id.event.0).expect("positive")
}

/// A place in flight that is taken for a delivery to come, and the partner whose limits it counts against.
pub type Reserved = (Permit, Option<usize>);

/// For each claim what was claimed, with the attempts, and what is left.
pub type Answer = Vec<(Vec<(usize, i64)>, Remaining)>;

impl World {
    /// To the ledger or back: mostly fast.
    pub fn through_the_net(&mut self, node: usize, event: NodeEvent) {
        let most = if !self.quiet && self.random.happens(0.02) { 2 * SECOND } else { 3 * MS };
        self.node_later(node, 100, most, event);
    }

    pub fn in_ledger(&mut self, node: usize, epoch: u32, event: NodeEvent, alive: bool) {
        let down = self.ledger.down;
        // A single node claims in memory.
        let answer_lost = !self.quiet && self.is_shared() && self.random.happens(0.01);
        match event {
            NodeEvent::Claim { by, claims, asked_at } => {
                let answer = self.refuses_claim(by).is_none().then(|| self.claim(node, &claims));
                if alive {
                    self.heard_of_number(node, by, down || self.ledger.numbers.holds(by));
                    let answer = answer.filter(|_| !answer_lost);
                    self.through_the_net(node, NodeEvent::Claimed { claims, answer, asked_at });
                }
            }
            NodeEvent::Reserve { by, wishes, asked_at } => {
                let (now, refusal) = (self.wall(0), self.refuses_claim(by));
                let grants = refusal.is_none().then(|| self.ledger.reserve_tokens(&wishes, now));
                if alive {
                    self.heard_of_number(node, by, down || self.ledger.numbers.holds(by));
                    let grants = grants.filter(|_| !answer_lost);
                    self.through_the_net(node, NodeEvent::Reserved { wishes, asked_at, grants });
                }
            }
            NodeEvent::Commit { by, deliveries } => self.commit(node, by, deliveries, alive),
            NodeEvent::Settle(settlement) => {
                if let Some(refusal) = self.refuses_settlement(node) {
                    if alive {
                        self.keep(node, epoch, settlement, refusal);
                    }
                } else {
                    if alive {
                        self.nodes[node].kept.remove(&row_of(&settlement));
                        self.heard_of_write(node, self.nodes[node].incarnation, None);
                    }
                    self.settle(node, &settlement, alive);
                }
            }
            NodeEvent::Release(given_back) => self.release(node, given_back, alive),
            NodeEvent::Beat { by } => self.beaten(node, by, alive),
            NodeEvent::Register => {
                if alive {
                    self.register(node);
                }
            }
            NodeEvent::TakeReplays { by } => self.take_replays(node, by, alive),
            NodeEvent::ReplayStep { by, step } => self.replay_step(node, by, step, alive),
            _ => unreachable!("it happens in the node"),
        }
    }

    /// The writer keeps a settlement that can't be written, and tries again.
    fn keep(&mut self, node: usize, epoch: u32, settlement: Settlement, refusal: Refusal) {
        self.nodes[node].kept.insert(row_of(&settlement));
        self.heard_of_write(node, self.nodes[node].incarnation, Some(refusal));
        let at = self.now + AFTER_ERROR_US;
        self.at(at, Event::Node { node, epoch, event: NodeEvent::Settle(settlement) });
    }

    fn claim(&mut self, node: usize, claims: &[LaneClaim]) -> Answer {
        let (now, wall) = (self.now, self.ledger_time(node));
        let claim = |claim: &LaneClaim| {
            let lane = usize::try_from(claim.lane.id.0).expect("positive");
            let (rows, remaining) = self.ledger.claim(lane, claim.class, claim.limit, now, wall);
            (rows.into_iter().map(|row| (row, self.ledger.rows[row].attempt)).collect(), remaining)
        };
        claims.iter().map(claim).collect()
    }

    fn delivery(&self, row: usize, attempt: i64) -> Delivery {
        let known = &self.ledger.rows[row];
        let lane = self.lanes[known.lane].lane.clone();
        let identity = Identity { tenant: lane.tenant.clone(), source: "".into(), id: "".into() };
        Delivery {
            id: DeliveryId { event: EventSeq(i64::try_from(row).expect("small")), lane: lane.id },
            lane,
            // As the claim answered it: time may have gone back before the answer came.
            due_at: Timestamp::from_millis(known.claimed_due_at),
            attempt,
            failures: known.failures,
            uncertain: known.uncertain,
            class: known.class,
            replay: ReplayNumber::default(),
            identity,
            event_type: "".into(),
            received_at: Timestamp::from_millis(known.due_at),
            body: Bytes::new(),
            data: None,
            trace: None,
        }
    }

    /// The answer to a claim has come.
    pub fn claimed(&mut self, node: usize, claims: &[LaneClaim], answer: Option<Answer>, asked_at: Moment) {
        let wall = self.ledger_time(node);
        let Some(answer) = answer else {
            // The ledger did not answer: the lanes are asked again later.
            for claim in claims {
                let now = moment(self.now);
                self.nodes[node].scheduler().claimed(claim, Vec::new(), now, Remaining::Due, wall);
            }
            return self.node_later(node, AFTER_ERROR_US, AFTER_ERROR_US, NodeEvent::MayClaim);
        };
        let lease_until = micros(asked_at) + LEASE_US;
        // What is sent must come back before the lease ends.
        let send_by = moment(lease_until - ATTEMPT_TIMEOUT_US);
        for (claim, (rows, remaining)) in claims.iter().zip(answer) {
            assert!(rows.len() <= claim.limit, "more than was asked for");
            let items = rows.into_iter().map(|(row, attempt)| {
                let delivery = self.delivery(row, attempt);
                let info = &self.lanes[self.ledger.rows[row].lane];
                let partner = self.receivers[info.receiver].partner;
                let watch = self.nodes[node].watch.clone();
                watch.borrow_mut().buffer(info.place, partner, claim.class);
                let buffered = Buffered { watch, place: info.place, class: claim.class };
                Claimed { delivery, lease_until, partner: None, buffered: Some(buffered) }
            });
            let items: Vec<_> = items.collect();
            self.nodes[node].scheduler().claimed(claim, items, send_by, remaining, wall);
        }
        self.nodes[node].claiming = false;
        self.notify(node);
    }

    /// A batch comes in: places in flight are taken where there are any, then it is committed.
    pub fn accept(&mut self, node: usize, lanes: Vec<usize>) {
        let reserving = &self.nodes[node];
        if !reserving.up || reserving.stopping || reserving.stalled_until > self.now {
            return;
        }
        let Some(by) = reserving.incarnation.filter(|_| self.may_send(node)) else { return };
        let now = moment(self.now);
        let mut deliveries = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let name = self.lanes[lane].lane.clone();
            let permit = self.nodes[node].scheduler().reserve(&name, now);
            let reserved = permit.map(|permit| {
                let this = (node, self.nodes[node].epoch);
                let wall = self.ledger_time(node);
                let older = self.ledger.has_older(lane, this, wall);
                let waits = self.nodes[node].watch.borrow().has_fresh(lane);
                assert!(!older && !waits, "it overtakes: {name:?}");
                (permit, self.enter(node, self.lanes[lane].receiver, permit))
            });
            deliveries.push((lane, reserved));
        }
        self.through_the_net(node, NodeEvent::Commit { by, deliveries });
    }

    /// The batch reaches the ledger: all of it is recorded, or nothing.
    fn commit(
        &mut self,
        node: usize,
        by: Incarnation,
        deliveries: Vec<(usize, Option<Reserved>)>,
        alive: bool,
    ) {
        let (now, refusal) = (self.now, self.ledger.refuses(node, by));
        let wall = self.ledger_time(node);
        if alive {
            self.heard_of_write(node, Some(by), refusal);
        }
        self.check_due(node, wall.as_millis(), CLOCK_ERROR);
        for (lane, reserved) in deliveries {
            let handed_over = reserved.map(|_| now);
            let row = refusal.is_none().then(|| self.ledger.insert(lane, wall.as_millis(), handed_over));
            if !alive {
                continue;
            }
            match (row, reserved) {
                (Some(row), Some((permit, partner))) => {
                    let delivery = self.delivery(row, 1);
                    let lease_until = now + LEASE_US;
                    self.spawn(node, Claimed { delivery, lease_until, partner, buffered: None }, permit);
                }
                (None, Some((permit, partner))) => {
                    let _ = self.finish(node, lane, partner, permit, Signal::NotSent, 0.0);
                }
                (Some(row), None) => {
                    self.ledger.rows[row].told = Some((node, self.nodes[node].epoch));
                    let lane = &self.lanes[lane].lane;
                    let scheduler = self.nodes[node].scheduler.as_mut().expect("up");
                    scheduler.wake(lane, Class::Fresh, wall, wall);
                }
                (None, None) => {}
            }
        }
        if alive {
            self.notify(node);
        }
    }

    fn settle(&mut self, node: usize, settlement: &Settlement, alive: bool) {
        let settled = self.ledger.settle(settlement);
        let row = row_of(settlement);
        self.unsettled.remove(&(row, settlement.attempt));
        if settled && let NextState::Pending { due_at, .. } = &settlement.next {
            self.check_due(node, due_at.as_millis(), LONGEST_WAIT);
        }
        if !settled {
            self.tally.fenced += 1;
        } else if let (true, NextState::Pending { due_at, failures, .. }) = (alive, &settlement.next) {
            let wall = self.ledger_time(node);
            let class = settlement.class_with(*failures);
            self.ledger.rows[row].told = Some((node, self.nodes[node].epoch));
            self.nodes[node].scheduler().wake(&settlement.lane, class, *due_at, wall);
            self.notify(node);
        }
    }

    fn release(&mut self, node: usize, given_back: Vec<Claimed>, alive: bool) {
        let now = self.ledger_time(node);
        for claimed in given_back {
            if !self.ledger.down || !self.is_shared() {
                self.ledger.release(claimed.row(), claimed.delivery.attempt);
            }
            if alive {
                let delivery = claimed.delivery;
                self.nodes[node].scheduler().wake(&delivery.lane, delivery.class, now, now);
            }
        }
        if alive {
            self.notify(node);
        }
    }
}
