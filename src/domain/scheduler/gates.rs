//! The gates of all receivers, and who waits behind them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::lane::Queue;
use super::policy::{EndpointPolicy, GateId, Policies};
use crate::domain::clock::Moment;
use crate::domain::gate::{Change, CloseReason, Gate, GateLimits, Signal, Ticket};
use crate::domain::hash::FastMap;
use crate::domain::tenant::Destination;

/// How much may be claimed for a gate, as a multiple of what may be in flight. What waits in memory holds a lease, and a
/// few large claims cost less than many small ones.
const HELD_PER_WIDTH: usize = 8;

#[derive(Debug)]
struct GateState {
    gate: Gate,
    /// Destinations with something to send for which the gate had no room.
    parked: VecDeque<Arc<Destination>>,
    /// Queues to be claimed from once the gate opens, or holds less.
    waiting: VecDeque<Queue>,
    /// Deliveries behind this gate that are buffered or promised to a claim.
    held: usize,
}

/// Who may go on.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Destinations that may ask again.
    pub parked: Vec<Arc<Destination>>,
    /// Queues that may be claimed from.
    pub waiting: Vec<Queue>,
}

#[derive(Debug)]
pub(super) struct Gates {
    states: FastMap<GateId, GateState>,
    openings: BinaryHeap<Reverse<(Moment, GateId)>>,
    /// Bounds of the gate before Svix, and of endpoints that nothing is known of.
    svix: GateLimits,
    endpoint: GateLimits,
}

impl Gates {
    pub fn new(svix: GateLimits, endpoint: GateLimits) -> Self {
        let mut gates = Self { states: FastMap::default(), openings: BinaryHeap::new(), svix, endpoint };
        gates.state(&GateId::Svix, &Policies::default());
        gates
    }

    /// Takes new bounds over. Gates that nobody needs any more are forgotten; the queues that waited there.
    pub fn set_policies(&mut self, endpoints: &HashMap<Arc<str>, EndpointPolicy>) -> Vec<Queue> {
        let mut waiting = Vec::new();
        self.states.retain(|id, state| {
            let GateId::Endpoint(endpoint) = id else { return true };
            if let Some(policy) = endpoints.get(endpoint) {
                state.gate.set_limits(policy.gate);
                return true;
            }
            let needed = state.gate.in_flight() > 0 || state.held > 0 || !state.parked.is_empty();
            if !needed {
                waiting.extend(state.waiting.drain(..));
            }
            needed
        });
        // The same calls must lead to the same decisions in every process.
        waiting.sort_unstable();
        waiting
    }

    /// The gate with this id, made where it is new.
    fn state(&mut self, id: &GateId, policies: &Policies) -> &mut GateState {
        let (svix, endpoint) = (self.svix, self.endpoint);
        self.states.entry(id.clone()).or_insert_with(|| {
            let limits = match id {
                GateId::Svix => svix,
                // It never has more in flight than one request at a time: it is there only while it is closed or probing.
                GateId::Application(_) => GateLimits { adaptive: None, ..svix },
                GateId::Endpoint(id) => policies.endpoints.get(id).map_or(endpoint, |policy| policy.gate),
            };
            GateState { gate: Gate::new(limits), parked: VecDeque::new(), waiting: VecDeque::new(), held: 0 }
        })
    }

    /// Takes a place in flight.
    pub fn enter(&mut self, id: &GateId, policies: &Policies, now: Moment) -> Option<Ticket> {
        self.state(id, policies).gate.enter(now)
    }

    /// Takes a place in flight that nobody waits for.
    pub fn enter_unless_awaited(&mut self, id: &GateId, policies: &Policies, now: Moment) -> Option<Ticket> {
        let state = self.state(id, policies);
        if state.parked.is_empty() { state.gate.enter(now) } else { None }
    }

    pub fn still_admits(&self, id: &GateId, ticket: Ticket) -> bool {
        self.states.get(id).is_some_and(|state| state.gate.still_admits(ticket))
    }

    /// A request has ended: what that does to the gate, and who may go on.
    pub fn finish(
        &mut self,
        id: &GateId,
        policies: &Policies,
        ticket: Ticket,
        signal: Signal,
        now: Moment,
        chance: f64,
    ) -> (Change, Freed) {
        let state = self.state(id, policies);
        let change = state.gate.finish(ticket, signal, now, chance);
        let mut freed = Freed::default();
        match (state.gate.reason(), state.gate.opens_at()) {
            (None, _) => {
                let places = state.gate.width().saturating_sub(state.gate.in_flight()) as usize;
                let count = places.min(state.parked.len());
                freed.parked.extend(state.parked.drain(..count));
                if change == Change::Opened {
                    freed.waiting.extend(state.waiting.drain(..));
                }
            }
            // It is only trying, and the one that was tried is back.
            (Some(_), None) => {
                freed.parked.extend(state.parked.pop_front());
                if state.held == 0 {
                    freed.waiting.extend(state.waiting.pop_front());
                }
            }
            (Some(_), Some(_)) => {}
        }
        if let Change::Closed { until, .. } = change {
            self.openings.push(Reverse((until, id.clone())));
        }
        (change, freed)
    }

    /// Closes a gate until `until`.
    pub fn close(&mut self, id: GateId, policies: &Policies, until: Moment, reason: CloseReason) {
        self.state(&id, policies).gate.close_until(until, reason);
        self.openings.push(Reverse((until, id)));
    }

    /// Forgets a gate that is open again; the queues and destinations that waited behind it.
    pub fn forget(&mut self, id: &GateId) -> Freed {
        let Some(state) = self.states.remove(id) else { return Freed::default() };
        Freed { parked: state.parked.into(), waiting: state.waiting.into() }
    }

    /// Whether destinations wait for it.
    pub fn is_awaited(&self, id: &GateId) -> bool {
        self.states.get(id).is_some_and(|state| !state.parked.is_empty())
    }

    /// Holds a destination back until the gate has room.
    pub fn park(&mut self, id: &GateId, destination: Arc<Destination>) {
        if let Some(state) = self.states.get_mut(id) {
            state.parked.push_back(destination);
        }
    }

    /// A place is free, and whoever was roused for it did not take it.
    pub fn pass_on(&mut self, id: &GateId, now: Moment) -> Option<Arc<Destination>> {
        let state = self.states.get_mut(id)?;
        let closed = state.gate.opens_at().is_some_and(|opens_at| now < opens_at);
        let full = state.gate.reason().is_none() && state.gate.in_flight() >= state.gate.width();
        if closed || full { None } else { state.parked.pop_front() }
    }

    /// Holds a queue's claim back until the gate opens, or holds less.
    pub fn wait(&mut self, id: &GateId, queue: Queue) {
        if let Some(state) = self.states.get_mut(id) {
            state.waiting.push_back(queue);
        }
    }

    /// How many more deliveries the gate may hold, where `free` places are left in all; `None` where it may not.
    pub fn claimable(&mut self, id: &GateId, policies: &Policies, free: usize, now: Moment) -> Option<usize> {
        let state = self.state(id, policies);
        // A closed gate lets nobody through, and one that is only trying lets one: a single delivery is enough.
        if state.gate.reason().is_some() {
            let closed = state.gate.opens_at().is_some_and(|opens_at| now < opens_at);
            return (!closed && state.held == 0).then_some(1);
        }
        // Half of the difference: after the claim it holds no more than is then free.
        let fair = free.saturating_sub(state.held).div_ceil(2);
        let soon = (HELD_PER_WIDTH * state.gate.width() as usize).saturating_sub(state.held);
        Some(fair.min(soon)).filter(|claimable| *claimable > 0)
    }

    /// `count` more deliveries are buffered or promised.
    pub fn hold(&mut self, id: &GateId, count: usize) {
        if let Some(state) = self.states.get_mut(id) {
            state.held += count;
        }
    }

    /// `count` fewer are. Which queues may be claimed from for them.
    pub fn let_go(&mut self, id: &GateId, count: usize) -> Vec<Queue> {
        let Some(state) = self.states.get_mut(id) else { return Vec::new() };
        state.held = state.held.saturating_sub(count);
        let count = match (state.gate.reason(), state.gate.opens_at()) {
            (None, _) => count.min(state.waiting.len()),
            // Whether it is time to try again is asked where the queue is to be claimed from.
            (Some(_), _) if state.held == 0 => state.waiting.len().min(1),
            (Some(_), _) => 0,
        };
        state.waiting.drain(..count).collect()
    }

    /// Time has passed: who may go on behind gates that open again, or let one through to try.
    pub fn tick(&mut self, now: Moment) -> Freed {
        let mut freed = Freed::default();
        while self.openings.peek().is_some_and(|Reverse((until, _))| *until <= now) {
            let Some(Reverse((_, id))) = self.openings.pop() else { break };
            let Some(state) = self.states.get_mut(&id) else { continue };
            if state.gate.opens_at().is_some_and(|opens_at| now < opens_at) {
                continue;
            }
            freed.parked.extend(state.parked.drain(..));
            freed.waiting.extend(state.waiting.drain(..));
        }
        freed
    }

    /// When the next gate opens, or lets one through to try.
    pub fn next_opening(&self) -> Option<Moment> {
        self.openings.peek().map(|Reverse((until, _))| *until)
    }

    pub fn get(&self, id: &GateId) -> Option<&Gate> {
        self.states.get(id).map(|state| &state.gate)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&GateId, &Gate)> {
        self.states.iter().map(|(id, state)| (id, &state.gate))
    }
}
