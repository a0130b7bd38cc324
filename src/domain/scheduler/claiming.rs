//! What is claimed from the ledger: who may, how much, and what became of it.

use std::sync::Arc;

use super::{GateId, Hold, LaneClaim, Queue, Remaining, Scheduler};
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::tenant::Destination;

impl<T> Scheduler<T> {
    /// What to claim now: queues with due work, as far as their gate, their partner and the buffer have room.
    ///
    /// Each wish must be answered with [`Self::claimed`].
    pub fn claims(&mut self, now: Moment) -> Vec<LaneClaim> {
        let mut claims = Vec::new();
        while let free @ 1.. = self.limits.max_buffered.saturating_sub(self.held) {
            let Some(queue) = self.hungry.pop_front() else { break };
            let Some(lane) = self.lanes.get(&queue.0).map(|state| state.lane.clone()) else { continue };
            let partner = self.partner_of(&lane.destination);
            let gate = GateId::of(&lane.destination);
            match self.claimable(queue, &lane.destination, partner.as_ref(), free, now) {
                Ok(limit) => {
                    self.held += limit;
                    if let Some(destination) = self.destinations.get_mut(&lane.destination) {
                        destination.held += limit;
                    }
                    self.gates.hold(&gate, limit);
                    if let Some(application) = self.applications.gate(&lane.destination) {
                        self.gates.hold(application, limit);
                    }
                    self.partners.hold(partner.as_ref(), limit);
                    if let Some(state) = self.lanes.get_mut(&queue.0).map(|state| state.queue(queue.1)) {
                        state.asked = false;
                        state.due = false;
                        state.claiming = true;
                        state.promised = limit;
                        state.low = (state.buffer.len() + limit) / 2;
                    }
                    claims.push(LaneClaim { lane, class: queue.1, limit });
                }
                Err(Hold::Gate) => {
                    self.gates.wait(&gate, queue);
                    // It leaves what its partner may have ahead to another.
                    self.hungry.extend(self.partners.pass_on_claim(partner.as_ref()));
                }
                Err(Hold::Application) => {
                    if let Some(application) = self.applications.gate(&lane.destination) {
                        self.gates.wait(application, queue);
                    }
                }
                Err(Hold::Partner) => self.partners.wait(partner.as_ref(), queue),
                Err(Hold::Enough) => {
                    if let Some(state) = self.lanes.get_mut(&queue.0) {
                        state.queue(queue.1).asked = false;
                    }
                }
            }
        }
        claims
    }

    /// How many deliveries to claim from a queue, where `free` places are left.
    fn claimable(
        &mut self,
        (lane, class): Queue,
        destination: &Destination,
        partner: Option<&Arc<str>>,
        free: usize,
        now: Moment,
    ) -> Result<usize, Hold> {
        let held = self.lanes.get_mut(&lane).map_or(0, |state| state.queue(class).held());
        let ahead = self.partners.claimable(partner);
        if ahead == 0 {
            return Err(Hold::Partner);
        }
        let at_gate =
            self.gates.claimable(&GateId::of(destination), &self.policies, free, now).ok_or(Hold::Gate)?;
        let at_gate = match self.applications.gate(destination) {
            None => at_gate,
            Some(id) => {
                let own = self.gates.claimable(id, &self.policies, free, now);
                at_gate.min(own.ok_or(Hold::Application)?)
            }
        };
        let own = at_gate.saturating_sub(held).div_ceil(2);
        // Not for a handful: a claim costs as much as a send.
        if own < held {
            return Err(Hold::Enough);
        }
        let share = (free / (self.hungry.len() + 1)).max(1);
        Ok(own.min(share).min(ahead).min(self.limits.max_claim))
    }

    /// The answer to a claim: the deliveries, the end of their lease, and what is left in the ledger.
    pub fn claimed(
        &mut self,
        claim: &LaneClaim,
        items: Vec<T>,
        leased_until: Moment,
        remaining: Remaining,
        now: Timestamp,
    ) {
        let queue = (claim.lane.id, claim.class);
        let unused = claim.limit.saturating_sub(items.len());
        let state = self.lane(&claim.lane).queue(claim.class);
        state.claiming = false;
        state.promised = 0;
        state.low = state.low.saturating_sub(unused);
        state.buffer.extend(items.into_iter().map(|item| (leased_until, item)));
        // A wake that came during the claim has set `due` already.
        state.due |= remaining == Remaining::Due;
        self.let_go(&claim.lane.destination, unused);
        if let Remaining::Later(due_at) = remaining {
            self.wake(&claim.lane, claim.class, due_at, now);
        }
        self.queue(claim.lane.id);
        self.ask(queue);
        self.forget_idle(claim.lane.id);
    }

    /// Lets a queue be claimed from, where it has due work and its buffer runs low.
    pub(super) fn ask(&mut self, queue: Queue) {
        if let Some(state) = self.lanes.get_mut(&queue.0).map(|state| state.queue(queue.1))
            && state.due
            && !state.asked
            && !state.claiming
            && state.buffer.len() <= state.low
        {
            state.asked = true;
            self.hungry.push_back(queue);
        }
    }

    /// `count` deliveries for a destination are no longer buffered or promised.
    pub(super) fn let_go(&mut self, destination: &Destination, count: usize) {
        if count == 0 {
            return;
        }
        self.held = self.held.saturating_sub(count);
        if let Some(state) = self.destinations.get_mut(destination) {
            state.held = state.held.saturating_sub(count);
        }
        let partner = self.partner_of(destination);
        self.hungry.extend(self.partners.let_go(partner.as_ref(), count));
        self.hungry.extend(self.gates.let_go(&GateId::of(destination), count));
        if let Some(application) = self.applications.gate(destination) {
            self.hungry.extend(self.gates.let_go(application, count));
        }
    }
}
