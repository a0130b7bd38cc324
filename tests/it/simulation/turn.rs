//! A turn of a node's loop, and what is checked when something starts and when it has ended.

use std::collections::HashMap;
use std::time::Duration;

use posthaste::domain::clock::Timestamp;
use posthaste::domain::delivery::Class;
use posthaste::domain::gate::{Change, Signal};
use posthaste::domain::scheduler::{GateId, Permit};

use super::node::{Closed, NodeEvent, POLL_OWN_US, POLL_SHARED_US, micros, moment};
use super::world::{
    ATTEMPT_TIMEOUT_US, Event, LEASE_US, LaneInfo, MS, Receiver, SVIX_GATE, World, closes_for_probes,
};

const FAR: Duration = Duration::from_secs(86_400);

impl World {
    /// One turn of the dispatcher's loop, in its order: look for work, start, reserve tokens, claim, sleep.
    pub fn work(&mut self, node: usize) {
        self.nodes[node].working = false;
        if self.nodes[node].stopping {
            return;
        }
        if self.nodes[node].next_poll <= self.now && self.polls(node) {
            self.find_work(node);
            let poll = if self.nodes.len() > 1 { POLL_SHARED_US } else { POLL_OWN_US };
            self.nodes[node].next_poll = self.now + poll;
        }
        let now = moment(self.now);
        if !self.may_send(node) {
            let wall = self.ledger_time(node);
            self.nodes[node].scheduler().tick(wall, now);
            return self.sleep(node);
        }
        self.start_sends(node);
        let expired = self.nodes[node].watch.borrow().expired;
        if std::mem::replace(&mut self.nodes[node].expired, expired) != expired {
            self.nodes[node].expired_until = self.now + LEASE_US + POLL_OWN_US;
        }
        let by = self.nodes[node].incarnation.expect("it may send");
        let wishes = self.nodes[node].scheduler().token_wishes();
        if !wishes.is_empty() {
            self.through_the_net(node, NodeEvent::Reserve { by, wishes, asked_at: now });
        }
        if !self.nodes[node].claiming {
            let claims = self.nodes[node].scheduler().claims(now);
            self.check_held(node);
            if !claims.is_empty() {
                self.nodes[node].claiming = true;
                self.through_the_net(node, NodeEvent::Claim { by, claims, asked_at: now });
            }
        }
        self.sleep(node);
    }

    /// Whether lanes with work are still found by asking: not once every wake-up must have been heard.
    fn polls(&self, node: usize) -> bool {
        self.now < self.polls_until() || self.now < self.nodes[node].expired_until
    }

    fn find_work(&mut self, node: usize) {
        if self.ledger.down {
            return;
        }
        let now = self.ledger_time(node);
        let scheduler = self.nodes[node].scheduler.as_mut().expect("up");
        for (lane, first_due) in self.ledger.busy_lanes() {
            for (class, due_at) in Class::ALL.into_iter().zip(first_due) {
                if let Some(due_at) = due_at {
                    scheduler.wake(&self.lanes[lane].lane, class, Timestamp::from_millis(due_at), now);
                }
            }
        }
    }

    fn sleep(&mut self, node: usize) {
        let wall = self.ledger_time(node);
        let (due_at, opens_at) = self.nodes[node].scheduler().next_alarm();
        // What a clock that was put right has left far in the future is not waited for.
        let due_in = due_at.map(|due_at| due_at.since(wall)).filter(|due_in| *due_in < FAR);
        let due = due_in.map(|due_in| u64::try_from(due_in.as_micros()).expect("short"));
        let opens = opens_at.map(|opens_at| micros(opens_at).saturating_sub(self.now));
        let poll = self.polls(node).then(|| self.nodes[node].next_poll.saturating_sub(self.now));
        if let Some(wait) = due.into_iter().chain(opens).chain(poll).min() {
            let at = self.now + wait.clamp(MS, POLL_OWN_US);
            if self.nodes[node].timer.is_none_or(|timer| at < timer || timer <= self.now) {
                self.nodes[node].timer = Some(at);
                let epoch = self.nodes[node].epoch;
                self.at(at, Event::Node { node, epoch, event: NodeEvent::Timer });
            }
        }
    }

    fn check_held(&mut self, node: usize) {
        let held = self.nodes[node].scheduler().held();
        assert!(held <= self.limits.max_buffered, "{held} held");
    }

    fn start_sends(&mut self, node: usize) {
        let (wall, now) = (self.ledger_time(node), moment(self.now));
        self.nodes[node].scheduler().tick(wall, now);
        let widths = self.room(node);
        loop {
            let start = self.nodes[node].scheduler().next(now);
            let mut expired = self.nodes[node].scheduler().expired();
            expired.iter_mut().for_each(|claimed| claimed.buffered = None);
            // Where nodes share the ledger, as if giving them back had failed: their leases run out.
            if !self.is_shared() && !expired.is_empty() {
                self.through_the_net(node, NodeEvent::Release(expired));
            }
            let Some(start) = start else { break };
            let mut claimed = start.item;
            let info = &self.lanes[claimed.lane()];
            let (receiver, place) = (info.receiver, info.place);
            let buffered = claimed.buffered.take().expect("it waited");
            let partner = self.receivers[receiver].partner;
            let bounded = partner.is_none_or(|partner| {
                self.nodes[node].known_receivers.get(receiver).is_some_and(|known| *known)
                    && self.nodes[node].known[partner].rate.is_none()
            });
            let class = buffered.class;
            self.note(|| format!("node {node} picks {class:?} of {place:?}"));
            self.nodes[node].watch.borrow_mut().start(place, partner, class, bounded);
            drop(buffered);
            self.nodes[node].watch.borrow_mut().picked(place);
            let lane = claimed.delivery.lane.clone();
            let admitted = self.nodes[node].scheduler().still_admits(&lane, start.permit, now);
            assert!(admitted, "picked with a permit that is not good any more");
            assert!(
                claimed.lease_until > self.now + ATTEMPT_TIMEOUT_US,
                "picked too late to end in its lease"
            );
            claimed.partner = self.enter(node, receiver, start.permit);
            if let Some(width) = widths.get(&place.gate) {
                let in_flight = self.nodes[node].gate_in_flight[&place.gate];
                assert!(in_flight <= *width, "{in_flight} in flight, and the gate is {width} wide");
                if in_flight >= *width {
                    *self.nodes[node].watch.borrow_mut().gate_epochs.entry(place.gate).or_default() += 1;
                }
            }
            self.spawn(node, claimed, start.permit);
        }
    }

    /// How many may be in flight at each gate that is open. Who has no room now has been held back.
    fn room(&mut self, node: usize) -> HashMap<usize, usize> {
        let mut widths = HashMap::new();
        let node = &self.nodes[node];
        let mut watch = node.watch.borrow_mut();
        for (id, gate) in node.scheduler.as_ref().expect("up").gates() {
            if matches!(id, GateId::Application(_)) {
                // Some of those behind Svix's gate have been held back.
                *watch.gate_epochs.entry(SVIX_GATE).or_default() += 1;
                continue;
            }
            let index = self.gate_indexes[id];
            if gate.reason().is_none() {
                widths.insert(index, gate.width() as usize);
            }
            if gate.reason().is_some() || gate.in_flight() >= gate.width() {
                *watch.gate_epochs.entry(index).or_default() += 1;
            }
        }
        for (partner, known) in node.known.iter().enumerate() {
            // Whether it lacks tokens can't be seen from here.
            if known.paused || known.rate.is_some() || node.partner_at_most[partner] >= known.max_in_flight {
                *watch.partner_epochs.entry(partner).or_default() += 1;
            }
        }
        widths
    }

    /// A place in flight is taken: may it be?
    ///
    /// Whose limits it counts against.
    pub fn enter(&mut self, node: usize, receiver: usize, permit: Permit) -> Option<usize> {
        let max_in_flight = self.limits.max_in_flight;
        let Self { nodes, receivers, now, .. } = self;
        let (node, receiver_index, receiver) = (&mut nodes[node], receiver, &receivers[receiver]);
        node.in_flight += 1;
        assert!(node.in_flight <= max_in_flight, "{} in flight", node.in_flight);
        node.watch.borrow_mut().enter(receiver_index);
        let gate = node.gate_in_flight.entry(receiver.gate_index).or_default();
        *gate += 1;
        let limits = if receiver.partner.is_none() { self.svix_gate } else { self.endpoint_gate };
        assert!(*gate <= limits.max_in_flight as usize, "{gate} in flight at {:?}", receiver.gate);
        if !receiver.deleted
            && let Some(closed) = node.closed.get_mut(&receiver.gate_index)
        {
            assert!(closed.until <= *now, "{:?} is {closed:?}, and something starts", receiver.gate);
            if closes_for_probes(closed.reason) {
                assert!(!permit.failure_counts() && closed.probes == 0, "one probe at a time: {closed:?}");
                closed.probes += 1;
            }
        }
        let knows = node.known_receivers.get(receiver_index).is_some_and(|known| *known);
        let partner = receiver.partner.filter(|_| knows);
        if let Some(partner) = partner {
            let known = node.known[partner];
            assert!(!known.paused, "partner {partner} is paused, and something starts");
            node.partner_in_flight[partner] += 1;
            let in_flight = node.partner_in_flight[partner];
            assert!(in_flight <= known.max_in_flight, "{in_flight} in flight to partner {partner}");
        }
        if let Some(of) = receiver.partner
            && of < node.known.len()
        {
            node.partner_at_most[of] += 1;
            if node.partner_at_most[of] >= node.known[of].max_in_flight {
                *node.watch.borrow_mut().partner_epochs.entry(of).or_default() += 1;
            }
        }
        partner
    }

    /// A place in flight is given back.
    pub fn finish(
        &mut self,
        node: usize,
        lane: usize,
        partner: Option<usize>,
        permit: Permit,
        signal: Signal,
        chance: f64,
    ) -> Change {
        let LaneInfo { lane, receiver, .. } = &self.lanes[lane];
        let (lane, receiver) = (lane.clone(), *receiver);
        let Receiver { gate_index, partner: of, .. } = self.receivers[receiver];
        let now = self.now;
        let node = &mut self.nodes[node];
        node.in_flight -= 1;
        node.watch.borrow_mut().leave(receiver);
        *node.gate_in_flight.get_mut(&gate_index).expect("it was entered") -= 1;
        if let Some(partner) = partner {
            node.partner_in_flight[partner] -= 1;
        }
        if let Some(of) = of {
            node.partner_at_most[of] -= 1;
        }
        if !permit.failure_counts()
            && let Some(closed) = node.closed.get_mut(&gate_index)
        {
            closed.probes = closed.probes.saturating_sub(1);
        }
        let changes = node.scheduler().finish(&lane, permit, signal, moment(now), chance);
        let own = GateId::of(&lane.destination);
        let change =
            changes.into_iter().find(|(gate, _)| *gate == own).map_or(Change::None, |(_, change)| change);
        match change {
            Change::Closed { until, reason } => {
                node.closed.insert(gate_index, Closed { until: micros(until), reason, probes: 0 });
            }
            Change::Opened => {
                node.closed.remove(&gate_index);
            }
            Change::None => {}
        }
        change
    }
}
