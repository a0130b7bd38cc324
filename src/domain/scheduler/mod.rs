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

mod applications;
mod claiming;
mod gates;
mod lane;
mod partners;
mod policy;
mod pressure;
mod standing;
mod turns;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use self::applications::Applications;
use self::gates::Gates;
use self::lane::{LaneState, Queue};
use self::partners::Partners;
pub use self::partners::{Held, HeldBy};
pub use self::policy::{EndpointPolicy, GateId, PartnerPolicy, Policies, TokenGrant, TokenWish};
pub use self::standing::{Places, Standing};
use super::clock::{Moment, Timestamp};
use super::delivery::Class;
use super::gate::{Change, CloseReason, Gate, GateLimits, Signal, Ticket};
use super::hash::FastMap;
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
    /// The same for the application's own gate, where it has one.
    application: Option<Ticket>,
    /// Its partner's token is good until then.
    start_by: Option<Moment>,
}

impl Permit {
    /// The same, where its request begins only now.
    pub fn begun_at(self, now: Moment) -> Self {
        let application = self.application.map(|ticket| ticket.begun_at(now));
        Self { gate: self.gate.begun_at(now), application, ..self }
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
    destinations: FastMap<Arc<Destination>, DestinationState>,
    lanes: FastMap<LaneId, LaneState<T>>,
    ring: VecDeque<Arc<Destination>>,
    hungry: VecDeque<Queue>,
    alarms: BinaryHeap<Reverse<(Timestamp, Queue)>>,
    partners: Partners,
    applications: Applications,
    policies: Policies,
    in_flight: usize,
    /// Deliveries that are buffered or promised to a claim.
    held: usize,
    /// Their leases are about to run out; nobody has asked for them yet.
    expired: Vec<T>,
    /// The alarms that whoever waits for them knows of.
    told: (Option<Timestamp>, Option<Moment>),
}

/// Why a queue can't be claimed from now, or a destination can't be sent to.
enum Hold {
    /// It has enough for now: it asks again when some of that goes out.
    Enough,
    /// Its gate is closed, or has or holds enough.
    Gate,
    /// The application's own gate is closed.
    Application,
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
            destinations: FastMap::default(),
            lanes: FastMap::default(),
            ring: VecDeque::new(),
            hungry: VecDeque::new(),
            alarms: BinaryHeap::new(),
            partners: Partners::default(),
            applications: Applications::default(),
            policies: Policies::default(),
            in_flight: 0,
            held: 0,
            expired: Vec::new(),
            told: (None, None),
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
        if self.applications.gate(&lane.destination).is_some() {
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
        Some(Permit { gate, application: None, start_by })
    }

    /// Deliveries that have waited here for too long to be sent within their lease, to be released into the ledger.
    /// Ask after [`Self::next`].
    pub fn expired(&mut self) -> Vec<T> {
        std::mem::take(&mut self.expired)
    }

    /// Whether a request with this permit may still go out at `now`: not once its gate has closed behind it, or its
    /// token is too old.
    pub fn still_admits(&self, lane: &Lane, permit: Permit, now: Moment) -> bool {
        let of_application = match (self.applications.gate(&lane.destination), permit.application) {
            (Some(id), Some(ticket)) => self.gates.still_admits(id, ticket),
            // Its gate has closed since.
            (Some(_), None) => false,
            (None, _) => true,
        };
        of_application
            && permit.start_by.is_none_or(|start_by| now <= start_by)
            && self.gates.still_admits(&GateId::of(&lane.destination), permit.gate)
    }

    /// A send has ended, with what it tells of the receiver; `chance` from `[0, 1)` spreads a wait. Returns the gates that
    /// have closed or opened by it.
    pub fn finish(
        &mut self,
        lane: &Arc<Lane>,
        permit: Permit,
        signal: Signal,
        now: Moment,
        chance: f64,
    ) -> Vec<(GateId, Change)> {
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
        let (own, signal) = match gate {
            GateId::Svix => self.finish_application(&lane.destination, permit, signal, now, chance),
            _ => (None, signal),
        };
        let (change, freed) = self.gates.finish(&gate, &self.policies, permit.gate, signal, now, chance);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
        self.queue_destination(&lane.destination);
        self.forget_idle(lane.id);
        let changes = own.into_iter().chain([(gate, change)]);
        changes.filter(|(_, change)| *change != Change::None).collect()
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
        self.applications.add(&id);
        self.gates.close(id, &self.policies, until, reason);
    }

    /// Takes back what is buffered behind a closed gate, to be released into the ledger.
    pub fn recall(&mut self, id: &GateId) -> Vec<T> {
        let mut recalled = Vec::new();
        let behind = |state: &LaneState<T>| {
            let destination = &state.lane.destination;
            let is_behind = GateId::of(destination) == *id || self.applications.gate(destination) == Some(id);
            is_behind && state.has_buffered()
        };
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
        let mut freed = self.gates.tick(moment);
        self.put_suspects_last(&mut freed);
        self.ring.extend(freed.parked);
        self.hungry.extend(freed.waiting);
    }

    /// When the next queue falls due (wall clock) and the next gate opens or partner may ask for tokens (monotonic).
    pub fn next_alarm(&self) -> (Option<Timestamp>, Option<Moment>) {
        let due_at = self.alarms.peek().map(|Reverse((due_at, _))| *due_at);
        let opening = self.gates.next_opening();
        (due_at, opening.into_iter().chain(self.partners.next_opening()).min())
    }

    /// The next alarm, for whoever waits for it from now on.
    pub fn tell_alarm(&mut self) -> (Option<Timestamp>, Option<Moment>) {
        self.told = self.next_alarm();
        self.told
    }

    /// Whether there is more to do than [`Self::next`] has done: others who may start, something to ask the ledger for
    /// (claims only where one `may_claim`), or an alarm before the one that was told.
    pub fn wants_turn(&self, may_claim: bool) -> bool {
        let may_start = !self.ring.is_empty() && self.in_flight < self.limits.max_in_flight;
        let errands = !self.expired.is_empty() || self.partners.lack_tokens();
        let (due_at, opens_at) = self.next_alarm();
        may_start
            || errands
            || (may_claim && !self.hungry.is_empty())
            || is_before(due_at, self.told.0)
            || is_before(opens_at, self.told.1)
    }

    /// The gates and their state.
    pub fn gates(&self) -> impl Iterator<Item = (&GateId, &Gate)> {
        self.gates.iter()
    }

    /// Partners whose limits hold deliveries back at `now`.
    pub fn held_partners(&mut self, now: Moment) -> Vec<Held> {
        self.partners.held(now)
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Deliveries that are claimed and wait in memory, and places that are promised to claims under way.
    pub const fn held(&self) -> usize {
        self.held
    }

    /// The process is about to end: nothing starts any more.
    pub const fn stop(&mut self) {
        self.limits.max_in_flight = 0;
    }

    /// All that is buffered, to be released into the ledger. Nothing starts any more.
    pub fn drain(&mut self) -> Vec<T> {
        self.stop();
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

    /// Forgets a lane about which there is nothing to remember: memory follows what is under way.
    fn forget_idle(&mut self, id: LaneId) {
        let Some(state) = self.lanes.get(&id).filter(|state| state.is_idle()) else { return };
        let destination = state.lane.destination.clone();
        self.lanes.remove(&id);
        if let Some(state) = self.destinations.get_mut(&destination) {
            state.lanes -= 1;
            if state.lanes == 0 {
                self.destinations.remove(&destination);
                self.applications.forget(&destination);
            }
        }
    }
}

/// Whose endpoint a destination is, as far as is known.
fn partner_in(policies: &Policies, destination: &Destination) -> Option<Arc<str>> {
    let Destination::Endpoint { id } = destination else { return None };
    policies.endpoints.get(id).map(|policy| policy.partner.clone())
}

#[cfg(test)]
mod tests;

/// Whether an alarm rings before the one that is `known`.
fn is_before<M: Ord>(alarm: Option<M>, known: Option<M>) -> bool {
    alarm.is_some_and(|alarm| known.is_none_or(|known| alarm < known))
}
