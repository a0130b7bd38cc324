//! Who may send next.
//!
//! Every delivery waits in a lane, (destination, tenant). The scheduler goes round-robin over the destinations
//! that may send now, and inside each over its lanes; what it holds in memory is bounded, the rest waits in the
//! ledger and is claimed lane by lane. It is a plain object: time comes in, decisions go out, and the
//! [dispatcher](crate::dispatcher) acts on them.
//!
//! A destination is always in exactly one place: in the `ring` (it may be asked), `parked` behind its gate (the
//! gate has no room), or nowhere (nothing buffered, or its own cap reached).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::clock::{Moment, Timestamp};
use super::gate::{Change, CloseReason, Gate, GateLimits, Signal, Ticket};
use super::tenant::{Destination, Lane, LaneId};

/// Which gate a destination stands behind. All of Svix is one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GateId {
    /// The Svix API.
    Svix,
}

impl GateId {
    /// The gate before `destination`.
    pub const fn of(destination: &Destination) -> Self {
        match destination {
            Destination::Svix { .. } => Self::Svix,
        }
    }

    /// The gate's name in the ledger, in logs and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Svix => "svix",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        (text == Self::Svix.as_str()).then_some(Self::Svix)
    }
}

/// Bounds of what is under way and held in memory.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerLimits {
    /// Most requests in flight over all destinations.
    pub max_in_flight: usize,
    /// Most requests in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// Most claimed deliveries that wait in memory, over all lanes.
    pub max_buffered: usize,
    /// Most deliveries claimed for one lane at once.
    pub max_claim: usize,
}

/// A wish to claim up to `limit` due deliveries of a lane.
#[derive(Debug, Clone)]
pub struct LaneClaim {
    /// The lane.
    pub lane: Arc<Lane>,
    /// At most this many.
    pub limit: usize,
}

/// What a claim left behind in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remaining {
    /// Nothing that this process could claim.
    Nothing,
    /// More is due.
    Due,
    /// The next falls due then.
    Later(Timestamp),
}

/// A delivery that is to be sent now.
#[derive(Debug)]
pub struct Start<T> {
    /// What was claimed.
    pub item: T,
    /// To be given back with [`Scheduler::finish`].
    pub ticket: Ticket,
}

#[derive(Debug)]
struct LaneState<T> {
    lane: Arc<Lane>,
    /// Claimed, not yet sent, each with the end of its lease.
    buffer: VecDeque<(Moment, T)>,
    in_flight: usize,
    /// The ledger has work of this lane that is due.
    due: bool,
    /// Waits to be claimed from: in `hungry` or behind its gate.
    asked: bool,
    claiming: bool,
    /// In its destination's ring.
    queued: bool,
    /// The earliest alarm set.
    alarm: Option<Timestamp>,
}

#[derive(Debug)]
struct DestinationState {
    in_flight: usize,
    /// Lanes with something buffered.
    ring: VecDeque<LaneId>,
    /// In the ring or parked.
    queued: bool,
    /// Lanes in memory; the state goes with the last of them.
    lanes: usize,
}

#[derive(Debug)]
struct GateState {
    gate: Gate,
    /// Destinations with something to send for which the gate had no room.
    parked: VecDeque<Arc<Destination>>,
    /// Lanes to be claimed from once the gate opens.
    waiting: VecDeque<LaneId>,
    /// Deliveries behind this gate that are buffered or promised to a claim.
    held: usize,
}

/// See the module's own words. `T` is what a claim yields.
#[derive(Debug)]
pub struct Scheduler<T> {
    limits: SchedulerLimits,
    gates: HashMap<GateId, GateState>,
    destinations: HashMap<Arc<Destination>, DestinationState>,
    lanes: HashMap<LaneId, LaneState<T>>,
    ring: VecDeque<Arc<Destination>>,
    hungry: VecDeque<LaneId>,
    alarms: BinaryHeap<Reverse<(Timestamp, LaneId)>>,
    openings: BinaryHeap<Reverse<(Moment, GateId)>>,
    in_flight: usize,
    buffered: usize,
    /// Places in the buffer promised to claims under way.
    promised: usize,
}

impl<T> Scheduler<T> {
    /// An empty scheduler with these bounds and one gate for each `(id, limits)`.
    pub fn new(limits: SchedulerLimits, gates: impl IntoIterator<Item = (GateId, GateLimits)>) -> Self {
        let gates = gates
            .into_iter()
            .map(|(id, limits)| {
                let gate = Gate::new(limits);
                (id, GateState { gate, parked: VecDeque::new(), waiting: VecDeque::new(), held: 0 })
            })
            .collect();
        Self {
            limits,
            gates,
            destinations: HashMap::new(),
            lanes: HashMap::new(),
            ring: VecDeque::new(),
            hungry: VecDeque::new(),
            alarms: BinaryHeap::new(),
            openings: BinaryHeap::new(),
            in_flight: 0,
            buffered: 0,
            promised: 0,
        }
    }

    /// The ledger holds work of `lane` that falls due at `due_at`.
    pub fn wake(&mut self, lane: &Arc<Lane>, due_at: Timestamp, now: Timestamp) {
        let state = self.lane(lane);
        if due_at <= now {
            state.due = true;
            self.ask(lane.id);
        } else if state.alarm.is_none_or(|alarm| due_at < alarm) {
            state.alarm = Some(due_at);
            self.alarms.push(Reverse((due_at, lane.id)));
        }
    }

    /// Takes a place in flight for a delivery that is about to be recorded, so that it may be sent from memory.
    ///
    /// Only where nothing older waits in its lane and nobody else waits for the place: `None` means that the
    /// delivery takes the way through the ledger.
    pub fn reserve(&mut self, lane: &Arc<Lane>, now: Moment) -> Option<Ticket> {
        if self.in_flight >= self.limits.max_in_flight || !self.ring.is_empty() {
            return None;
        }
        if let Some(state) = self.lanes.get(&lane.id)
            && (state.due || state.claiming || !state.buffer.is_empty())
        {
            return None;
        }
        if let Some(destination) = self.destinations.get(&lane.destination)
            && (destination.in_flight >= self.limits.max_in_flight_per_destination || destination.queued)
        {
            return None;
        }
        let gate = self.gates.get_mut(&GateId::of(&lane.destination))?;
        if !gate.parked.is_empty() {
            return None;
        }
        let ticket = gate.gate.enter(now)?;
        self.lane(lane).in_flight += 1;
        self.in_flight += 1;
        if let Some(destination) = self.destinations.get_mut(&lane.destination) {
            destination.in_flight += 1;
        }
        Some(ticket)
    }

    /// What to claim now: lanes with due work, their gate open, as far as the buffer has room.
    ///
    /// Each wish must be answered with [`Self::claimed`].
    pub fn claims(&mut self, now: Moment) -> Vec<LaneClaim> {
        let mut claims = Vec::new();
        for _ in 0..self.hungry.len() {
            let room = self.limits.max_buffered.saturating_sub(self.buffered + self.promised);
            if room == 0 {
                break;
            }
            let Some(id) = self.hungry.pop_front() else { break };
            let share = (room / (self.hungry.len() + 1)).clamp(1, self.limits.max_claim);
            let Some(state) = self.lanes.get_mut(&id) else { continue };
            let Some(gate) = self.gates.get_mut(&GateId::of(&state.lane.destination)) else { continue };
            // A closed gate lets nobody through, and one that is only trying lets one: a single delivery is enough.
            let trying = gate.gate.reason().is_some();
            if trying && (gate.held > 0 || gate.gate.opens_at().is_some_and(|opens_at| now < opens_at)) {
                gate.waiting.push_back(id);
                continue;
            }
            state.asked = false;
            state.due = false;
            state.claiming = true;
            // No more than the gate lets through soon: what waits in memory holds a lease.
            let limit = if trying { 1 } else { share.min(4 * gate.gate.width() as usize) };
            gate.held += limit;
            self.promised += limit;
            claims.push(LaneClaim { lane: state.lane.clone(), limit });
        }
        claims
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
        self.promised = self.promised.saturating_sub(claim.limit);
        self.buffered += items.len();
        let gate_id = GateId::of(&claim.lane.destination);
        if let Some(gate) = self.gates.get_mut(&gate_id) {
            gate.held = (gate.held + items.len()).saturating_sub(claim.limit);
        }
        let state = self.lane(&claim.lane);
        state.claiming = false;
        state.buffer.extend(items.into_iter().map(|item| (leased_until, item)));
        // A wake that came during the claim has set `due` already.
        state.due |= remaining == Remaining::Due;
        if let Remaining::Later(due_at) = remaining {
            self.wake(&claim.lane, due_at, now);
        }
        self.queue(claim.lane.id);
        self.ask(claim.lane.id);
        self.rouse(gate_id);
        self.forget_idle(claim.lane.id);
    }

    /// The next delivery to send, where one may go now.
    pub fn next(&mut self, now: Moment) -> Option<Start<T>> {
        while self.in_flight < self.limits.max_in_flight {
            let destination = self.ring.pop_front()?;
            let Some(state) = self.destinations.get_mut(&destination) else { continue };
            state.queued = false;
            if state.in_flight >= self.limits.max_in_flight_per_destination {
                continue;
            }
            let Some(lane_id) = state.ring.pop_front() else { continue };
            if !self.drop_expired(lane_id, now) {
                self.queue_destination(&destination);
                continue;
            }
            let Some(gate) = self.gates.get_mut(&GateId::of(&destination)) else { continue };
            let Some(ticket) = gate.gate.enter(now) else {
                if let Some(state) = self.destinations.get_mut(&destination) {
                    state.ring.push_front(lane_id);
                    state.queued = true;
                    gate.parked.push_back(destination);
                }
                continue;
            };
            if let Some(item) = self.take(lane_id, &destination) {
                return Some(Start { item, ticket });
            }
        }
        None
    }

    /// Whether a request with this ticket may still go out: false once its gate has closed behind it.
    pub fn still_admits(&self, lane: &Lane, ticket: Ticket) -> bool {
        self.gates.get(&GateId::of(&lane.destination)).is_some_and(|gate| gate.gate.still_admits(ticket))
    }

    /// A send has ended, with what it tells of the receiver; `chance` from `[0, 1)` spreads a wait.
    pub fn finish(
        &mut self,
        lane: &Arc<Lane>,
        ticket: Ticket,
        signal: Signal,
        now: Moment,
        chance: f64,
    ) -> Change {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(state) = self.lanes.get_mut(&lane.id) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        if let Some(destination) = self.destinations.get_mut(&lane.destination) {
            destination.in_flight = destination.in_flight.saturating_sub(1);
        }
        let gate_id = GateId::of(&lane.destination);
        let Some(gate) = self.gates.get_mut(&gate_id) else { return Change::None };
        let change = gate.gate.finish(ticket, signal, now, chance);
        if let Change::Closed { until, .. } = change {
            self.openings.push(Reverse((until, gate_id)));
        }
        self.unpark(gate_id);
        self.rouse(gate_id);
        self.queue_destination(&lane.destination);
        self.ask(lane.id);
        self.forget_idle(lane.id);
        change
    }

    /// Closes a gate until `until`, as the ledger or the configuration says.
    pub fn close_gate(&mut self, id: GateId, until: Moment, reason: CloseReason) {
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.gate.close_until(until, reason);
            self.openings.push(Reverse((until, id)));
        }
    }

    /// Takes back what is buffered behind a closed gate, to be released into the ledger.
    pub fn recall(&mut self, id: GateId) -> Vec<T> {
        let mut recalled = Vec::new();
        let mut emptied = Vec::new();
        for (lane_id, state) in &mut self.lanes {
            if GateId::of(&state.lane.destination) == id && !state.buffer.is_empty() {
                recalled.extend(state.buffer.drain(..).map(|(_, item)| item));
                state.queued = false;
                state.due = true;
                emptied.push((*lane_id, state.lane.destination.clone()));
            }
        }
        self.buffered = self.buffered.saturating_sub(recalled.len());
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.held = gate.held.saturating_sub(recalled.len());
        }
        for (lane_id, destination) in emptied {
            if let Some(state) = self.destinations.get_mut(&destination) {
                state.ring.clear();
            }
            self.ask(lane_id);
        }
        recalled
    }

    /// Time has passed: lanes whose work has fallen due and gates that open again.
    pub fn tick(&mut self, now: Timestamp, moment: Moment) {
        while let Some(Reverse((due_at, id))) = self.alarms.peek().copied()
            && due_at <= now
        {
            self.alarms.pop();
            if let Some(state) = self.lanes.get_mut(&id)
                && state.alarm == Some(due_at)
            {
                state.alarm = None;
                state.due = true;
                self.ask(id);
            }
        }
        while let Some(Reverse((until, id))) = self.openings.peek().copied()
            && until <= moment
        {
            self.openings.pop();
            let Some(gate) = self.gates.get_mut(&id) else { continue };
            if gate.gate.opens_at().is_some_and(|opens_at| moment < opens_at) {
                continue;
            }
            self.ring.extend(gate.parked.drain(..));
            self.rouse(id);
        }
    }

    /// When the next lane falls due (wall clock) and the next gate opens (monotonic), where known.
    pub fn next_alarm(&self) -> (Option<Timestamp>, Option<Moment>) {
        let due_at = self.alarms.peek().map(|Reverse((due_at, _))| *due_at);
        (due_at, self.openings.peek().map(|Reverse((until, _))| *until))
    }

    /// The gates and their state.
    pub fn gates(&self) -> impl Iterator<Item = (GateId, &Gate)> {
        self.gates.iter().map(|(id, state)| (*id, &state.gate))
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The process is about to end: nothing starts any more. All that is buffered, to be released into the ledger.
    pub fn drain(&mut self) -> Vec<T> {
        self.limits.max_in_flight = 0;
        self.buffered = 0;
        self.ring.clear();
        self.lanes.values_mut().flat_map(|state| state.buffer.drain(..)).map(|(_, item)| item).collect()
    }

    fn lane(&mut self, lane: &Arc<Lane>) -> &mut LaneState<T> {
        self.lanes.entry(lane.id).or_insert_with(|| {
            let destination = self.destinations.entry(lane.destination.clone());
            destination
                .or_insert_with(|| DestinationState {
                    in_flight: 0,
                    ring: VecDeque::new(),
                    queued: false,
                    lanes: 0,
                })
                .lanes += 1;
            LaneState {
                lane: lane.clone(),
                buffer: VecDeque::new(),
                in_flight: 0,
                due: false,
                asked: false,
                claiming: false,
                queued: false,
                alarm: None,
            }
        })
    }

    /// Lets a lane be claimed from, where it has due work and its buffer runs low.
    fn ask(&mut self, id: LaneId) {
        let low = self.limits.max_claim / 2;
        if let Some(state) = self.lanes.get_mut(&id)
            && state.due
            && !state.asked
            && !state.claiming
            && state.buffer.len() <= low
        {
            state.asked = true;
            self.hungry.push_back(id);
        }
    }

    /// Puts a lane with something buffered into its destination's ring.
    fn queue(&mut self, id: LaneId) {
        let Some(state) = self.lanes.get_mut(&id) else { return };
        if state.buffer.is_empty() || state.queued {
            return;
        }
        state.queued = true;
        let destination = state.lane.destination.clone();
        if let Some(destination) = self.destinations.get_mut(&destination) {
            destination.ring.push_back(id);
        }
        self.queue_destination(&destination);
    }

    /// Puts a destination that may have something to send into the ring.
    fn queue_destination(&mut self, destination: &Arc<Destination>) {
        if let Some(state) = self.destinations.get_mut(destination)
            && !state.queued
            && !state.ring.is_empty()
            && state.in_flight < self.limits.max_in_flight_per_destination
        {
            state.queued = true;
            self.ring.push_back(destination.clone());
        }
    }

    /// Lets as many parked destinations ask again as their gate has places.
    fn unpark(&mut self, id: GateId) {
        if let Some(gate) = self.gates.get_mut(&id)
            && gate.gate.opens_at().is_none()
        {
            let places = gate.gate.width().saturating_sub(gate.gate.in_flight()) as usize;
            let count = places.min(gate.parked.len());
            self.ring.extend(gate.parked.drain(..count));
        }
    }

    /// Lets the lanes that wait for a gate be claimed from: all where it is open, one where it is only trying.
    fn rouse(&mut self, id: GateId) {
        let Some(gate) = self.gates.get_mut(&id) else { return };
        if gate.gate.reason().is_none() {
            self.hungry.extend(gate.waiting.drain(..));
        } else if gate.held == 0 {
            self.hungry.extend(gate.waiting.pop_front());
        }
    }

    /// Drops deliveries whose lease has run out; whether the lane still has any.
    fn drop_expired(&mut self, id: LaneId, now: Moment) -> bool {
        let Some(state) = self.lanes.get_mut(&id) else { return false };
        let before = state.buffer.len();
        while let Some((leased_until, _)) = state.buffer.front()
            && *leased_until <= now
        {
            state.buffer.pop_front();
            state.due = true;
        }
        let left = state.buffer.len();
        state.queued = left > 0;
        let gate_id = GateId::of(&state.lane.destination);
        self.let_go(gate_id, before - left);
        self.ask(id);
        left > 0
    }

    /// `count` deliveries behind a gate are no longer buffered.
    fn let_go(&mut self, id: GateId, count: usize) {
        self.buffered = self.buffered.saturating_sub(count);
        if let Some(gate) = self.gates.get_mut(&id) {
            gate.held = gate.held.saturating_sub(count);
        }
    }

    fn take(&mut self, id: LaneId, destination: &Arc<Destination>) -> Option<T> {
        let state = self.lanes.get_mut(&id)?;
        let (_, item) = state.buffer.pop_front()?;
        state.in_flight += 1;
        self.in_flight += 1;
        let more = !state.buffer.is_empty();
        state.queued = more;
        self.let_go(GateId::of(destination), 1);
        if let Some(state) = self.destinations.get_mut(destination) {
            state.in_flight += 1;
            if more {
                state.ring.push_back(id);
            }
        }
        self.queue_destination(destination);
        self.ask(id);
        Some(item)
    }

    /// Forgets a lane about which there is nothing to remember: memory follows what is under way.
    fn forget_idle(&mut self, id: LaneId) {
        let Some(state) = self.lanes.get(&id) else { return };
        let busy = state.due || state.claiming || state.asked || state.in_flight > 0 || state.alarm.is_some();
        if busy || !state.buffer.is_empty() {
            return;
        }
        let destination = state.lane.destination.clone();
        self.lanes.remove(&id);
        if let Some(state) = self.destinations.get_mut(&destination) {
            state.lanes -= 1;
            if state.lanes == 0 {
                self.destinations.remove(&destination);
            }
        }
    }
}

#[cfg(test)]
mod tests;
