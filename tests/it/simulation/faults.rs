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
        let node = self.victim();
        match self.random.below(22) {
            0 | 1 => self.crash(node),
            2 => self.stop(node),
            3..=6 => {
                // Some stalls outlast every lease, those of a replay's worker more often; they end soon after all goes well.
                let most = self.random.pick(&[SECOND, 15 * SECOND, 40 * SECOND, 150 * SECOND]);
                let least = if self.nodes[node].worker.is_active() { most / 2 } else { MS };
                let until = (self.now + self.random.between(least, most)).min(self.quiet_at + 60 * SECOND);
                self.nodes[node].stalled_until = until;
                self.tally.stalls += 1;
                self.note(|| format!("node {node} stalls until {until} µs"));
            }
            7 | 8 => {
                self.ledger.down = true;
                self.tally.outages += 1;
                self.note(|| "the ledger is down".into());
                self.after(100 * MS, 8 * SECOND, Event::LedgerUp);
            }
            9 => self.set_clock(node),
            10 => {
                let of = self.random.happens(0.7).then_some(node);
                self.ledger.unwritable = Some(of);
                self.note(|| format!("the ledger takes no writes of {of:?}"));
                self.after(100 * MS, 40 * SECOND, Event::LedgerWritable);
            }
            11 => {
                if let Some(incarnation) = self.nodes[node].incarnation {
                    self.ledger.numbers.give_away(incarnation.number, self.now);
                    self.note(|| format!("the number of node {node} is another's"));
                }
            }
            12..=15 => self.begin_replay(),
            16 => self.svix_mood = Mood::draw(&mut self.random, false),
            17 => self.change_partner(),
            _ => self.change_receiver(),
        }
        let most = (self.quiet_at / 20).max(5 * SECOND);
        self.after(200 * MS, most, Event::Fault);
    }

    /// Who is hit: any node, or half of the time one that works on a replay.
    fn victim(&mut self) -> usize {
        let workers: Vec<_> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].worker.is_active()).collect();
        if !workers.is_empty() && self.random.happens(0.5) {
            return self.random.pick(&workers);
        }
        self.random.below(self.nodes.len())
    }

    /// A machine's wall clock jumps by up to a hundred days, or is put right.
    fn set_clock(&mut self, node: usize) {
        const MINUTE_MS: u64 = 60_000;
        let most = self.random.pick(&[0, 0, MINUTE_MS, 60 * MINUTE_MS, 100 * 24 * 60 * MINUTE_MS]);
        let offset = i64::try_from(self.random.between(0, 2 * most)).expect("small");
        self.nodes[node].wall_offset_ms = offset - i64::try_from(most).expect("small");
        self.tally.clocks += 1;
        let offset_ms = self.nodes[node].wall_offset_ms;
        self.note(|| format!("the wall clock of node {node} is {offset_ms} ms wrong"));
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
        self.ledger.unwritable = None;
        for node in &mut self.nodes {
            node.wall_offset_ms = 0;
        }
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
