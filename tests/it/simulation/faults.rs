//! What comes in and what goes wrong.

use super::node::NodeEvent;
use super::receivers::Mood;
use super::world::{Event, MS, SECOND, World};

impl World {
    /// A producer's batch comes in at some node.
    pub fn arrive(&mut self) {
        if self.arrivals == 0 {
            return;
        }
        let whale = self.random.happens(0.3);
        let tenant = if whale { 0 } else { self.random.below(self.tenants.len()) };
        let node = self.random.below(self.nodes.len());
        let events =
            if self.random.happens(0.05) { self.random.size(20, 120) } else { self.random.size(1, 6) };
        let live = |lane: &&usize| {
            let receiver = &self.receivers[self.lanes[**lane].receiver];
            !receiver.deleted && !receiver.disabled
        };
        let lanes: Vec<_> = self.tenants[tenant].1.iter().filter(live).copied().collect();
        let deliveries: Vec<_> = (0..events.min(self.arrivals)).flat_map(|_| lanes.clone()).collect();
        self.arrivals -= deliveries.len().max(1).min(self.arrivals);
        self.accept(node, deliveries);
        let pause = if self.quiet { 10 * MS } else { (self.quiet_at - self.now) / 200 + MS };
        self.after(0, pause, Event::Arrive);
    }

    pub fn fault(&mut self) {
        if self.quiet {
            return;
        }
        let node = self.random.below(self.nodes.len());
        match self.random.below(12) {
            0 | 1 => self.crash(node),
            2 => self.stop(node),
            3 => {
                self.nodes[node].stalled_until = self.now + self.random.between(MS, 40 * SECOND);
                self.note(|| format!("node {node} stalls"));
            }
            4 | 5 => {
                self.ledger.down = true;
                self.tally.outages += 1;
                self.note(|| "the ledger is down".into());
                self.after(100 * MS, 8 * SECOND, Event::LedgerUp);
            }
            6 => {
                let step = i64::try_from(self.random.between(0, 60_000)).expect("small") - 30_000;
                self.nodes[node].wall_offset_ms = step;
            }
            7 => self.svix_mood = Mood::draw(&mut self.random, false),
            8 => self.change_partner(),
            _ => self.change_receiver(),
        }
        self.after(200 * MS, 5 * SECOND, Event::Fault);
    }

    fn change_partner(&mut self) {
        if self.partners.is_empty() {
            return;
        }
        let partner = self.random.below(self.partners.len());
        let mut policy = self.partners[partner].policy;
        if self.random.happens(0.6) {
            policy.paused = !policy.paused;
        } else {
            policy = self.draw_policy();
        }
        if policy.rate_limit != self.partners[partner].policy.rate_limit {
            // Until every node knows, and what was reserved under the old limit is too old; a stall may delay both.
            self.partners[partner].window.exempt_until = u64::MAX;
        }
        self.note(|| format!("partner {partner}: {policy:?}"));
        self.partners[partner].policy = policy;
        self.tell_policies();
    }

    fn change_receiver(&mut self) {
        if self.partners.is_empty() {
            return;
        }
        match self.random.below(6) {
            0 => self.add_endpoint(),
            1 => {
                let receiver = self.random.below(self.receivers.len());
                self.receivers[receiver].deleted = self.receivers[receiver].partner.is_some();
            }
            _ => {
                let receiver = self.random.below(self.receivers.len());
                self.receivers[receiver].mood = Mood::draw(&mut self.random, true);
                if self.receivers[receiver].partner.is_none() {
                    self.receivers[receiver].mood = Mood::Flaky(self.random.chance() / 2.0);
                }
            }
        }
        self.tell_policies();
    }

    /// Nodes read the new settings within half a second.
    fn tell_policies(&mut self) {
        for node in 0..self.nodes.len() {
            self.node_later(node, 10 * MS, 500 * MS, NodeEvent::Policies);
        }
    }

    pub fn calm_down(&mut self) {
        self.note(|| "all is well from now on".into());
        self.quiet = true;
        self.ledger.down = false;
        self.svix_mood = Mood::Healthy;
        for receiver in self.receivers.iter_mut().filter(|receiver| receiver.mood != Mood::Gone) {
            receiver.mood = Mood::Healthy;
        }
        for partner in &mut self.partners {
            partner.policy.paused = false;
        }
        self.tell_policies();
    }
}
