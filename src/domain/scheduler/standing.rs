//! How things stand for one delivery: what an operator asks. Nothing is decided here.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Class, GateId, Scheduler};
use crate::domain::clock::Moment;
use crate::domain::gate::CloseReason;
use crate::domain::tenant::{Lane, LaneId};

/// How many of a kind are taken, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Taken.
    pub taken: usize,
    /// At most.
    pub most: usize,
}

impl Places {
    /// Whether there is none left.
    pub const fn full(self) -> bool {
        self.taken >= self.most
    }
}

/// What stands between a lane's deliveries and their receiver, as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whose endpoint it is.
    pub partner: Option<Arc<str>>,
    /// The partner is paused.
    pub paused: bool,
    /// The gate is closed until then; without a time it lets one request through to try.
    pub gate: Option<(CloseReason, Option<Moment>)>,
    /// The partner has a rate, no token of it is at hand, and none is asked for before.
    pub lacks_tokens: Option<Moment>,
    /// Requests in flight to the partner.
    pub of_partner: Option<Places>,
    /// Requests in flight behind the gate.
    pub of_gate: Places,
    /// Requests in flight to the destination.
    pub of_destination: Places,
    /// Requests in flight on this node.
    pub of_node: Places,
    /// The delivery is claimed and waits in this node's memory.
    pub buffered: bool,
    /// Of those in memory, how many of its lane go before it.
    pub before_it: usize,
    /// Other lanes of its destination that have their turn before its own.
    pub lanes_ahead: usize,
    /// Other destinations that have their turn before its own.
    pub destinations_ahead: usize,
}

impl<T> Scheduler<T> {
    /// How things stand for a delivery of `lane`; `is` knows it among those that were claimed.
    pub fn standing(&self, lane: &Lane, class: Class, now: Moment, is: impl Fn(&T) -> bool) -> Standing {
        let id = GateId::of(&lane.destination);
        let partner = self.partner_of(&lane.destination);
        let known = partner.as_ref().and_then(|partner| self.partners.standing(partner, now));
        let gate = self.gates.get(&id);
        let closed_by = self.applications.gate(&lane.destination).and_then(|id| self.gates.get(id)).or(gate);
        let closed = closed_by.and_then(|gate| {
            let reason = gate.reason()?;
            Some((reason, gate.opens_at().filter(|opens_at| now < *opens_at)))
        });
        // A throttle that has passed is over with the next request.
        let closed = closed.filter(|(reason, until)| *reason != CloseReason::Throttled || until.is_some());
        let destination = self.destinations.get(&lane.destination);
        let queue = self.lanes.get(&lane.id).map(|state| state.buffered(class));
        let place = queue.and_then(|buffer| buffer.iter().position(|(_, item)| is(item)));
        let ahead = |ring: &VecDeque<LaneId>| ring.iter().take_while(|other| **other != lane.id).count();
        Standing {
            partner,
            paused: known.as_ref().is_some_and(|known| known.paused),
            gate: closed,
            lacks_tokens: known.as_ref().and_then(|known| known.lacks_tokens),
            of_partner: known.map(|known| known.in_flight),
            of_gate: Places {
                taken: gate.map_or(0, |gate| gate.in_flight() as usize),
                most: gate.map_or(usize::MAX, |gate| gate.width() as usize),
            },
            of_destination: Places {
                taken: destination.map_or(0, |state| state.in_flight),
                most: self.limits.max_in_flight_per_destination,
            },
            of_node: Places { taken: self.in_flight, most: self.limits.max_in_flight },
            buffered: place.is_some(),
            before_it: place.or(queue.map(VecDeque::len)).unwrap_or_default(),
            lanes_ahead: destination.map(|state| ahead(&state.ring)).unwrap_or_default(),
            destinations_ahead: self.ring.iter().take_while(|other| **other != lane.destination).count(),
        }
    }

    /// Takes one claimed delivery out that waits here, for whoever has other plans with it.
    pub fn take_back(&mut self, lane: &Lane, is: impl Fn(&T) -> bool) -> Option<T> {
        let state = self.lanes.get_mut(&lane.id)?;
        let (class, item) = Class::ALL.into_iter().find_map(|class| {
            let queue = state.queue(class);
            let place = queue.buffer.iter().position(|(_, item)| is(item))?;
            // Whoever looks finds that nothing is due, and forgets what there is nothing to remember of.
            queue.due = true;
            queue.buffer.remove(place).map(|(_, item)| (class, item))
        })?;
        self.let_go(&lane.destination, 1);
        self.ask((lane.id, class));
        Some(item)
    }
}
