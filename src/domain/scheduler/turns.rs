//! Whose turn it is: destinations in a ring, and in each of them its lanes.

use std::sync::Arc;

use super::{Class, GateId, Hold, Permit, Scheduler, Signal, Start};
use crate::domain::clock::Moment;
use crate::domain::tenant::{Destination, LaneId};

impl<T> Scheduler<T> {
    /// The next delivery to send, where one may go now.
    pub fn next(&mut self, now: Moment) -> Option<Start<T>> {
        while self.in_flight < self.limits.max_in_flight {
            let destination = self.ring.pop_front()?;
            match self.start(&destination, now) {
                Ok(start) => return Some(start),
                Err(held) => self.pass_on(&destination, held, now),
            }
        }
        None
    }

    /// The next delivery to a destination, or by what it is held back.
    fn start(&mut self, destination: &Arc<Destination>, now: Moment) -> Result<Start<T>, Option<Hold>> {
        let state = self.destinations.get_mut(destination).ok_or(None)?;
        state.queued = false;
        if state.in_flight >= self.limits.max_in_flight_per_destination {
            state.credit = 0;
            return Err(None);
        }
        let lane_id = self.first_lane(destination, now).ok_or(None)?;
        let partner = self.partner_of(destination);
        if let Some(partner) = &partner
            && !self.partners.admits(Some(partner), now)
        {
            self.hold_back(destination, lane_id);
            self.partners.park(partner, destination.clone(), now);
            return Err(Some(Hold::Partner));
        }
        let application = match self.applications.gate(destination).cloned() {
            None => None,
            Some(id) => {
                let Some(ticket) = self.gates.enter(&id, &self.policies, now) else {
                    self.hold_back(destination, lane_id);
                    self.gates.park(&id, destination.clone());
                    return Err(Some(Hold::Application));
                };
                Some((id, ticket))
            }
        };
        let id = GateId::of(destination);
        let Some(gate) = self.gates.enter(&id, &self.policies, now) else {
            if let Some((id, ticket)) = application {
                let (_, freed) = self.gates.finish(&id, &self.policies, ticket, Signal::NotSent, now, 0.0);
                self.hungry.extend(freed.waiting);
            }
            self.hold_back(destination, lane_id);
            self.gates.park(&id, destination.clone());
            return Err(Some(Hold::Gate));
        };
        let start_by = self.partners.enter(partner.as_ref(), now);
        let item = self.take(lane_id, destination).ok_or(None)?;
        Ok(Start {
            item,
            permit: Permit { gate, application: application.map(|(_, ticket)| ticket), start_by },
        })
    }

    /// The lane whose turn it is at a destination; those whose leases have run out on the way do not cost it its turn.
    fn first_lane(&mut self, destination: &Arc<Destination>, now: Moment) -> Option<LaneId> {
        loop {
            let lane = self.destinations.get_mut(destination)?.ring.pop_front()?;
            if self.take_expired(lane, destination, now) {
                return Some(lane);
            }
        }
    }

    /// Who was roused for a place, or a token, and does not take it leaves it to the next who waits for one.
    fn pass_on(&mut self, destination: &Arc<Destination>, held: Option<Hold>, now: Moment) {
        if !matches!(held, Some(Hold::Partner)) {
            let partner = self.partner_of(destination);
            self.ring.extend(self.partners.pass_on(partner.as_ref(), now));
        }
        if !matches!(held, Some(Hold::Gate)) {
            self.ring.extend(self.gates.pass_on(&GateId::of(destination), now));
        }
    }

    /// Puts a lane back that could not be served: its destination is parked.
    fn hold_back(&mut self, destination: &Arc<Destination>, lane: LaneId) {
        if let Some(state) = self.destinations.get_mut(destination) {
            state.ring.push_front(lane);
            state.queued = true;
            state.credit = 0;
        }
    }

    /// Puts a lane with something buffered into its destination's ring.
    pub(super) fn queue(&mut self, id: LaneId) {
        let Some(state) = self.lanes.get_mut(&id) else { return };
        if !state.has_buffered() || state.queued {
            return;
        }
        state.queued = true;
        let destination = state.lane.destination.clone();
        if let Some(destination) = self.destinations.get_mut(&destination) {
            destination.ring.push_back(id);
        }
        self.queue_destination(&destination);
    }

    /// Puts a destination that may have something to send into the ring: at its front while its turn lasts.
    pub(super) fn queue_destination(&mut self, destination: &Arc<Destination>) {
        if let Some(state) = self.destinations.get_mut(destination)
            && !state.queued
            && !state.ring.is_empty()
            && state.in_flight < self.limits.max_in_flight_per_destination
        {
            state.queued = true;
            if state.credit > 0 {
                self.ring.push_front(destination.clone());
            } else {
                self.ring.push_back(destination.clone());
            }
        }
    }

    /// Takes deliveries out whose lease has run out; whether the lane still has any.
    fn take_expired(&mut self, id: LaneId, destination: &Arc<Destination>, now: Moment) -> bool {
        let Some(state) = self.lanes.get_mut(&id) else { return false };
        let expired = state.take_expired(now);
        let left = state.has_buffered();
        state.queued = left;
        if !expired.is_empty() {
            self.let_go(destination, expired.len());
            self.expired.extend(expired);
            for class in Class::ALL {
                self.ask((id, class));
            }
        }
        left
    }

    fn take(&mut self, id: LaneId, destination: &Arc<Destination>) -> Option<T> {
        let tenant = self.lanes.get(&id)?.lane.tenant.clone();
        let weight = self.weight(&tenant);
        let state = self.lanes.get_mut(&id)?;
        let (class, item) = state.pop()?;
        state.in_flight += 1;
        self.in_flight += 1;
        let more = state.has_buffered();
        state.queued = more;
        state.credit = spend(state.credit, weight, more);
        let goes_on = state.credit > 0;
        self.let_go(destination, 1);
        if let Some(state) = self.destinations.get_mut(destination) {
            state.in_flight += 1;
            match (more, goes_on) {
                (true, true) => state.ring.push_front(id),
                (true, false) => state.ring.push_back(id),
                (false, _) => {}
            }
            // A Svix application is one tenant's: its weight counts beside other applications.
            let quantum = if matches!(**destination, Destination::Svix { .. }) { weight } else { 1 };
            state.credit = spend(state.credit, quantum, !state.ring.is_empty());
        }
        self.queue_destination(destination);
        self.ask((id, class));
        Some(item)
    }

    fn weight(&self, tenant: &str) -> u32 {
        self.policies.weights.get(tenant).copied().unwrap_or(1).max(1)
    }
}

/// One sent, of a turn that is `quantum` long: what is left of the turn. Who has nothing more to send gives it up.
const fn spend(credit: u32, quantum: u32, more: bool) -> u32 {
    if !more {
        return 0;
    }
    let turn = if credit == 0 { quantum } else { credit };
    turn.saturating_sub(1)
}
