//! Who may send next.
//!
//! Every delivery waits in a lane, (destination, tenant), fresh ones apart from retries. The scheduler goes round-robin
//! over the destinations that may send now, and inside each over its lanes by their tenants' weights (deficit
//! round-robin; a delivery costs one). Within a lane's share fresh deliveries go before retries, but for every
//! [`FRESH_PER_RETRY`](lane::FRESH_PER_RETRY) of them a retry that waits goes out. What it holds in memory is bounded,
//! the rest waits in the ledger and is claimed queue by queue. It is a plain object: time comes in, decisions go out,
//! and the [dispatcher](crate::dispatcher) acts on them.
//!
//! A destination is always in exactly one place: in the `ring` (it may be asked), `parked` behind its gate or with its
//! partner (who have no room), or nowhere (nothing buffered, or its own cap reached). A queue that has due work is in
//! exactly one place too: `hungry`, `waiting` behind its gate or with its partner, being claimed, or it has enough
//! buffered and is asked again when that goes out.
//!
//! # The bound
//! Between two sends of a lane that could send all the while, its destination starts at most the weights of its other
//! lanes; between two of a destination that could send all the while, at most one request of each other destination
//! starts (of a Svix application: as many as its tenant weighs). So a delivery at the head of its lane waits no longer
//! than one round, however deep the others are.
//!
//! # The buffer
//! Places are given out by dynamic thresholds, as shared-memory switches do (Choudhury and Hahne, 1998): a gate may
//! hold no more than what is free after it, and a queue no more than what is left of its gate's share. However many are
//! blocked, there is room for one that is not.

mod gates;
mod lane;
mod partners;
mod policy;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use self::gates::Gates;
use self::lane::{LaneState, Queue};
use self::partners::Partners;
pub use self::policy::{EndpointPolicy, GateId, PartnerPolicy, Policies, TokenGrant, TokenWish};
use super::clock::{Moment, Timestamp};
use super::delivery::Class;
use super::gate::{Change, CloseReason, Gate, GateLimits, Signal, Ticket};
use super::tenant::{Destination, Lane, LaneId};

/// Bounds of what is under way and held in memory.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerLimits {
    /// Most requests in flight over all destinations.
    pub max_in_flight: usize,
    /// Most requests in flight to one destination.
    pub max_in_flight_per_destination: usize,
    /// Most claimed deliveries that wait in memory, over all lanes.
    pub max_buffered: usize,
    /// Most deliveries claimed from one queue at once.
    pub max_claim: usize,
}

/// A wish to claim up to `limit` due deliveries from one of a lane's queues.
#[derive(Debug, Clone)]
pub struct LaneClaim {
    /// The lane.
    pub lane: Arc<Lane>,
    /// Which of its queues.
    pub class: Class,
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

/// The permission to send one delivery; given back with [`Scheduler::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a permit that is not given back holds a place in flight for ever"]
pub struct Permit {
    gate: Ticket,
    /// Its partner's token is good until then.
    start_by: Option<Moment>,
}

impl Permit {
    /// The same, where its request begins only now.
    pub const fn begun_at(self, now: Moment) -> Self {
        Self { gate: self.gate.begun_at(now), ..self }
    }

    /// Whether a failure counts against the event; see [`Gate::failure_counts`].
    pub const fn failure_counts(self) -> bool {
        Gate::failure_counts(self.gate)
    }
}

/// A delivery that is to be sent now.
#[derive(Debug)]
pub struct Start<T> {
    /// What was claimed.
    pub item: T,
    /// To be given back with [`Scheduler::finish`].
    pub permit: Permit,
}

#[derive(Debug)]
struct DestinationState {
    /// Whose endpoint it is, or was; `None` for Svix and for endpoints that nothing is known of.
    partner: Option<Arc<str>>,
    in_flight: usize,
    /// Deliveries to it that are buffered or promised to a claim.
    held: usize,
    /// Lanes with something buffered.
    ring: VecDeque<LaneId>,
    /// In the ring or parked.
    queued: bool,
    /// What it may still send before its neighbours have their turn.
    credit: u32,
    /// Lanes in memory; the state goes with the last of them.
    lanes: usize,
}

/// See the module's own words. `T` is what a claim yields.
#[derive(Debug)]
pub struct Scheduler<T> {
    limits: SchedulerLimits,
    gates: Gates,
    destinations: HashMap<Arc<Destination>, DestinationState>,
    lanes: HashMap<LaneId, LaneState<T>>,
    ring: VecDeque<Arc<Destination>>,
    hungry: VecDeque<Queue>,
    alarms: BinaryHeap<Reverse<(Timestamp, Queue)>>,
    partners: Partners,
    policies: Policies,
    in_flight: usize,
    /// Deliveries that are buffered or promised to a claim.
    held: usize,
    /// Their leases are about to run out; nobody has asked for them yet.
    expired: Vec<T>,
}

/// Why a queue can't be claimed from now, or a destination can't be sent to.
enum Hold {
    /// It has enough for now: it asks again when some of that goes out.
    Enough,
    /// Its gate is closed, or has or holds enough.
    Gate,
    /// Its partner is paused, or has enough.
    Partner,
}

impl<T> Scheduler<T> {
    /// An empty scheduler with these bounds: its own, of the gate before Svix, and of the gates before endpoints that
    /// [`Self::set_policies`] says nothing of.
    pub fn new(limits: SchedulerLimits, svix: GateLimits, endpoint: GateLimits) -> Self {
        Self {
            limits,
            gates: Gates::new(svix, endpoint),
            destinations: HashMap::new(),
            lanes: HashMap::new(),
            ring: VecDeque::new(),
            hungry: VecDeque::new(),
            alarms: BinaryHeap::new(),
            partners: Partners::default(),
            policies: Policies::default(),
            in_flight: 0,
            held: 0,
            expired: Vec::new(),
        }
    }

    /// What is known of receivers from now on. What waits because of an older word asks again.
    pub fn set_policies(&mut self, policies: Policies) {
        self.hungry.extend(self.gates.set_policies(&policies.endpoints));
        self.partners.set_policies(&policies.partners);
        self.policies = policies;
        for (destination, state) in &mut self.destinations {
            // What is under way to an endpoint that is deleted stays with its partner; what was under way before
            // anything was known of it goes to its partner.
            if state.partner.is_none()
                && let Some(partner) = partner_in(&self.policies, destination)
            {
                self.partners.adopt(&partner, state.in_flight, state.held);
                state.partner = Some(partner);
            }
        }
        self.ring.extend(self.partners.unpark_all());
        self.hungry.extend(self.partners.unwait_all());
    }

    /// The ledger holds work of this lane and class that falls due at `due_at`.
    pub fn wake(&mut self, lane: &Arc<Lane>, class: Class, due_at: Timestamp, now: Timestamp) {
        let state = self.lane(lane).queue(class);
        if due_at <= now {
            state.due = true;
            self.ask((lane.id, class));
        } else if state.alarm.is_none_or(|alarm| due_at < alarm) {
            state.alarm = Some(due_at);
            self.alarms.push(Reverse((due_at, (lane.id, class))));
        }
    }

    /// Takes a place in flight for a fresh delivery that is about to be recorded, so that it may be sent from memory.
    ///
    /// Only where nothing older of its class waits in its lane and nobody else waits for the place: `None` means that
    /// the delivery takes the way through the ledger.
    pub fn reserve(&mut self, lane: &Arc<Lane>, now: Moment) -> Option<Permit> {
        if self.in_flight >= self.limits.max_in_flight || !self.ring.is_empty() {
            return None;
        }
        if self.lanes.get(&lane.id).is_some_and(LaneState::has_fresh) {
            return None;
        }
        if let Some(destination) = self.destinations.get(&lane.destination)
            && (destination.in_flight >= self.limits.max_in_flight_per_destination || destination.queued)
        {
            return None;
        }
        let partner = self.partner_of(&lane.destination);
        if !self.partners.admits(partner.as_ref(), now) {
            return None;
        }
        let gate = self.gates.enter_unless_awaited(&GateId::of(&lane.destination), &self.policies, now)?;
        let start_by = self.partners.enter(partner.as_ref(), now);
        self.lane(lane).in_flight += 1;
        self.in_flight += 1;
        if let Some(destination) = self.destinations.get_mut(&lane.destination) {
            destination.in_flight += 1;
        }
        Some(Permit { gate, start_by })
    }

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
            match self.claimable(queue, &gate, partner.as_ref(), free, now) {
                Ok(limit) => {
                    self.held += limit;
                    if let Some(destination) = self.destinations.get_mut(&lane.destination) {
                        destination.held += limit;
                    }
                    self.gates.hold(&gate, limit);
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
        gate: &GateId,
        partner: Option<&Arc<str>>,
        free: usize,
        now: Moment,
    ) -> Result<usize, Hold> {
        let held = self.lanes.get_mut(&lane).map_or(0, |state| state.queue(class).held());
        let ahead = self.partners.claimable(partner);
        if ahead == 0 {
            return Err(Hold::Partner);
        }
        let at_gate = self.gates.claimable(gate, &self.policies, free, now).ok_or(Hold::Gate)?;
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
        let id = GateId::of(destination);
        let Some(gate) = self.gates.enter(&id, &self.policies, now) else {
            self.hold_back(destination, lane_id);
            self.gates.park(&id, destination.clone());
            return Err(Some(Hold::Gate));
        };
        let start_by = self.partners.enter(partner.as_ref(), now);
        let item = self.take(lane_id, destination).ok_or(None)?;
        Ok(Start { item, permit: Permit { gate, start_by } })
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

    /// Deliveries that have waited here for too long to be sent within their lease, to be released into the ledger.
    /// Ask after [`Self::next`].
    pub fn expired(&mut self) -> Vec<T> {
        std::mem::take(&mut self.expired)
    }

    /// Whether a request with this permit may still go out at `now`: not once its gate has closed behind it, or its
    /// token is too old.
    pub fn still_admits(&self, lane: &Lane, permit: Permit, now: Moment) -> bool {
        permit.start_by.is_none_or(|start_by| now <= start_by)
            && self.gates.still_admits(&GateId::of(&lane.destination), permit.gate)
    }

    /// A send has ended, with what it tells of the receiver; `chance` from `[0, 1)` spreads a wait.
    pub fn finish(
        &mut self,
        lane: &Arc<Lane>,
        permit: Permit,
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
        let partner = self.partner_of(&lane.destination);
        self.ring.extend(self.partners.leave(partner.as_ref()));
        let gate = GateId::of(&lane.destination);
        let (change, freed) = self.gates.finish(&gate, &self.policies, permit.gate, signal, now, chance);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
        self.queue_destination(&lane.destination);
        self.forget_idle(lane.id);
        change
    }

    /// What to reserve in the ledger now, of partners' rates. Each wish must be answered with [`Self::granted`] or
    /// [`Self::not_granted`].
    pub fn token_wishes(&mut self) -> Vec<TokenWish> {
        self.partners.wishes()
    }

    /// The answer to a wish that was read at `asked_at`.
    pub fn granted(&mut self, grant: &TokenGrant, asked_at: Moment, now: Moment) {
        let unparked = self.partners.granted(grant, asked_at, now);
        self.ring.extend(unparked);
    }

    /// The ledger did not answer a wish.
    pub fn not_granted(&mut self, wish: &TokenWish, now: Moment) {
        self.partners.not_granted(wish, now);
    }

    /// Closes a gate until `until`, as the ledger or the configuration says.
    pub fn close_gate(&mut self, id: GateId, until: Moment, reason: CloseReason) {
        self.gates.close(id, &self.policies, until, reason);
    }

    /// Takes back what is buffered behind a closed gate, to be released into the ledger.
    pub fn recall(&mut self, id: &GateId) -> Vec<T> {
        let mut recalled = Vec::new();
        let behind =
            |state: &LaneState<T>| GateId::of(&state.lane.destination) == *id && state.has_buffered();
        for lane_id in self.lanes_where(behind) {
            let Some(state) = self.lanes.get_mut(&lane_id) else { continue };
            let items = state.empty();
            state.queued = false;
            state.credit = 0;
            let (destination, count) = (state.lane.destination.clone(), items.len());
            recalled.extend(items);
            if let Some(state) = self.destinations.get_mut(&destination) {
                state.ring.clear();
                state.credit = 0;
            }
            self.let_go(&destination, count);
            for class in Class::ALL {
                self.ask((lane_id, class));
            }
        }
        recalled
    }

    /// Time has passed: queues whose work has fallen due, gates that open again, partners that may have tokens.
    pub fn tick(&mut self, now: Timestamp, moment: Moment) {
        while let Some(Reverse((due_at, queue))) = self.alarms.peek().copied()
            && due_at <= now
        {
            self.alarms.pop();
            if let Some(state) = self.lanes.get_mut(&queue.0).map(|state| state.queue(queue.1))
                && state.alarm == Some(due_at)
            {
                state.alarm = None;
                state.due = true;
                self.ask(queue);
            }
        }
        self.partners.tick(moment);
        let freed = self.gates.tick(moment);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
    }

    /// When the next queue falls due (wall clock) and the next gate opens or partner may ask for tokens (monotonic).
    pub fn next_alarm(&self) -> (Option<Timestamp>, Option<Moment>) {
        let due_at = self.alarms.peek().map(|Reverse((due_at, _))| *due_at);
        let opening = self.gates.next_opening();
        (due_at, opening.into_iter().chain(self.partners.next_opening()).min())
    }

    /// The gates and their state.
    pub fn gates(&self) -> impl Iterator<Item = (&GateId, &Gate)> {
        self.gates.iter()
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Deliveries that are claimed and wait in memory, and places that are promised to claims under way.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// The process is about to end: nothing starts any more. All that is buffered, to be released into the ledger.
    pub fn drain(&mut self) -> Vec<T> {
        self.limits.max_in_flight = 0;
        self.held = 0;
        self.ring.clear();
        let buffered = self.lanes_where(LaneState::has_buffered);
        let empty = |id| self.lanes.get_mut(&id).map_or_else(Vec::new, LaneState::empty);
        buffered.into_iter().flat_map(empty).collect()
    }

    /// Lanes in order: the same calls must lead to the same decisions in every process.
    fn lanes_where(&self, wanted: impl Fn(&LaneState<T>) -> bool) -> Vec<LaneId> {
        let wanted = self.lanes.iter().filter(|(_, state)| wanted(state));
        let mut ids: Vec<_> = wanted.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    fn partner_of(&self, destination: &Destination) -> Option<Arc<str>> {
        match self.destinations.get(destination) {
            Some(state) => state.partner.clone(),
            None => partner_in(&self.policies, destination),
        }
    }

    fn weight(&self, tenant: &str) -> u32 {
        self.policies.weights.get(tenant).copied().unwrap_or(1).max(1)
    }

    /// Puts a lane back that could not be served: its destination is parked.
    fn hold_back(&mut self, destination: &Arc<Destination>, lane: LaneId) {
        if let Some(state) = self.destinations.get_mut(destination) {
            state.ring.push_front(lane);
            state.queued = true;
            state.credit = 0;
        }
    }

    fn lane(&mut self, lane: &Arc<Lane>) -> &mut LaneState<T> {
        self.lanes.entry(lane.id).or_insert_with(|| {
            let destination = self.destinations.entry(lane.destination.clone());
            destination
                .or_insert_with(|| DestinationState {
                    partner: partner_in(&self.policies, &lane.destination),
                    in_flight: 0,
                    held: 0,
                    ring: VecDeque::new(),
                    queued: false,
                    credit: 0,
                    lanes: 0,
                })
                .lanes += 1;
            LaneState::new(lane.clone())
        })
    }

    /// Lets a queue be claimed from, where it has due work and its buffer runs low.
    fn ask(&mut self, queue: Queue) {
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

    /// Puts a lane with something buffered into its destination's ring.
    fn queue(&mut self, id: LaneId) {
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
    fn queue_destination(&mut self, destination: &Arc<Destination>) {
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

    /// `count` deliveries for a destination are no longer buffered or promised.
    fn let_go(&mut self, destination: &Destination, count: usize) {
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

    /// Forgets a lane about which there is nothing to remember: memory follows what is under way.
    fn forget_idle(&mut self, id: LaneId) {
        let Some(state) = self.lanes.get(&id).filter(|state| state.is_idle()) else { return };
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

/// Whose endpoint a destination is, as far as is known.
fn partner_in(policies: &Policies, destination: &Destination) -> Option<Arc<str>> {
    let Destination::Endpoint { id } = destination else { return None };
    policies.endpoints.get(id).map(|policy| policy.partner.clone())
}

/// One sent, of a turn that is `quantum` long: what is left of the turn. Who has nothing more to send gives it up.
const fn spend(credit: u32, quantum: u32, more: bool) -> u32 {
    if !more {
        return 0;
    }
    let turn = if credit == 0 { quantum } else { credit };
    turn.saturating_sub(1)
}

#[cfg(test)]
mod tests;
