//! One attempt, from the last check of the gate to its settlement, as the dispatcher makes it.

use std::time::Duration;

use posthaste::domain::delivery::{self, DeadReason, Failure, Outcome, Timing};
use posthaste::domain::gate::{Change, Signal};
use posthaste::domain::scheduler::Permit;

use super::node::{Node, NodeEvent, micros, moment};
use super::receivers::Mood;
use super::traffic::Claimed;
use super::world::{MS, Receiver, SECOND, World};

impl World {
    pub fn spawn(&mut self, node: usize, claimed: Claimed, permit: Permit) {
        let most = if !self.quiet && self.random.happens(0.01) { 1_500 * MS } else { 200 };
        self.node_later(node, 0, most, NodeEvent::Begin { claimed, permit });
    }

    pub fn begin(&mut self, node: usize, claimed: Claimed, permit: Permit) {
        let receiver = self.lanes[claimed.lane()].receiver;
        let lane = claimed.delivery.lane.clone();
        let admitted = self.nodes[node].scheduler().still_admits(&lane, permit, moment(self.now));
        if !admitted || !self.may_send(node) {
            self.tally.too_late += 1;
            return self.end(node, claimed, permit, Outcome::NotSent, self.now);
        }
        let Receiver { disabled, deleted, .. } = self.receivers[receiver];
        if deleted {
            let gone = Outcome::Canceled(Failure::transport("endpoint_deleted", "", false));
            return self.end(node, claimed, permit, gone, self.now);
        }
        if disabled {
            let failure = Failure::transport("endpoint_disabled", "", false);
            let refused = Outcome::Rejected(DeadReason::EndpointDisabled, failure);
            return self.end(node, claimed, permit, refused, self.now);
        }
        self.check_send(node, &claimed, receiver);
        let svix = self.receivers[receiver].partner.is_none();
        let of_all = svix && self.svix_mood != Mood::Healthy;
        let mood = if of_all { self.svix_mood } else { self.receivers[receiver].mood };
        let (latency, taken, outcome) = mood.answer(&mut self.random);
        self.tally.sends += 1;
        let row = &mut self.ledger.rows[claimed.row()];
        self.tally.duplicates += u64::from(row.accepted && taken);
        row.accepted |= taken;
        self.digest(claimed.row());
        self.note(|| format!("node {node} sends {:?} {mood:?}", claimed.delivery.id));
        let began = self.now;
        self.node_later(node, latency, latency, NodeEvent::End { claimed, permit, outcome, began });
    }

    /// Right before a request goes out.
    fn check_send(&mut self, node: usize, claimed: &Claimed, receiver: usize) {
        let attempt = claimed.delivery.attempt;
        let Node { epoch, number_lost, refused, kept, .. } = &self.nodes[node];
        assert!(!number_lost, "node {node} sends after its node number was lost");
        assert!(!refused, "node {node} sends while settlements are refused");
        assert!(!kept.contains(&claimed.row()), "node {node} sends what it has not settled");
        let epoch = *epoch;
        self.unsettled.insert((claimed.row(), attempt), (node, epoch));
        let row = &mut self.ledger.rows[claimed.row()];
        assert!(attempt > row.sent || row.attempt > attempt, "one claim is sent twice: {row:?}");
        row.sent = row.sent.max(attempt);
        let holds = row.attempt == attempt && row.lease_until > 0;
        assert!(
            holds || claimed.lease_until <= self.now,
            "sent without a claim while the lease runs: {row:?}"
        );
        let gate = self.receivers[receiver].gate_index;
        if let Some(closed) = self.nodes[node].closed.get(&gate) {
            assert!(closed.until <= self.now, "sent through a closed gate: {closed:?}");
        }
        if let Some(partner) = claimed.partner {
            self.check_rate(partner);
        }
    }

    pub fn end(&mut self, node: usize, claimed: Claimed, permit: Permit, outcome: Outcome, began: u64) {
        let receiver = self.lanes[claimed.lane()].receiver;
        let chance = self.random.chance();
        let signal = Signal::of(&outcome, &claimed.delivery.lane.destination);
        let change = self.finish(node, claimed.lane(), claimed.partner, permit, signal, chance);
        if let Change::Closed { until, reason } = change {
            self.tally.closings += 1;
            let gate = self.receivers[receiver].gate.clone();
            self.recall(node, &gate);
            self.tell_gate(node, gate, micros(until), reason);
        }
        if matches!(outcome, Outcome::Rejected(DeadReason::Gone, _)) {
            self.receivers[receiver].disabled = true;
        }
        if outcome == Outcome::NotSent {
            self.through_the_net(node, NodeEvent::Release(vec![claimed]));
        } else {
            let timing = Timing {
                at: self.ledger_time(node),
                latency: Duration::from_micros(self.now - began),
                chance: self.random.chance(),
            };
            let counts = permit.failure_counts();
            let settlement = delivery::settle(&claimed.delivery, outcome, counts, &self.schedule, timing);
            if !self.quiet && self.random.happens(0.01) {
                // Twice, and the second is old news.
                self.through_the_net(node, NodeEvent::Settle(settlement.clone()));
            }
            match self.random.below(400) {
                0 if !self.quiet && self.is_shared() => {
                    _ = self.unsettled.remove(&(claimed.row(), claimed.delivery.attempt))
                } // lost
                1 if !self.quiet => self.node_later(node, SECOND, 60 * SECOND, NodeEvent::Settle(settlement)),
                _ => self.through_the_net(node, NodeEvent::Settle(settlement)),
            }
        }
        self.notify(node);
    }
}
