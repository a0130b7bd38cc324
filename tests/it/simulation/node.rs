//! A node: a real scheduler, driven as [`posthaste::dispatcher`] drives it, in virtual time.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use posthaste::domain::clock::Moment;
use posthaste::domain::delivery::{Outcome, Settlement};
use posthaste::domain::gate::CloseReason;
use posthaste::domain::partner::RateLimit;
use posthaste::domain::scheduler::{GateId, LaneClaim, Permit, Scheduler, TokenGrant, TokenWish};

use super::clock::NodeClock;
use super::numbers::Incarnation;
use super::replays::{Step, Worker};
use super::traffic::{Answer, Claimed, Reserved};
use super::watch::Watch;
use super::world::{Event, MS, SECOND, World};

pub const AFTER_ERROR_US: u64 = 500 * MS;
pub const POLL_SHARED_US: u64 = SECOND;
pub const POLL_OWN_US: u64 = 30 * SECOND;

pub enum NodeEvent {
    Work,
    Timer,
    /// A claim reaches the ledger, and its answer the node.
    Claim {
        by: Incarnation,
        claims: Vec<LaneClaim>,
        asked_at: Moment,
    },
    Claimed {
        claims: Vec<LaneClaim>,
        answer: Option<Answer>,
        asked_at: Moment,
    },
    MayClaim,
    Reserve {
        by: Incarnation,
        wishes: Vec<TokenWish>,
        asked_at: Moment,
    },
    Reserved {
        wishes: Vec<TokenWish>,
        asked_at: Moment,
        grants: Option<Vec<TokenGrant>>,
    },
    Commit {
        by: Incarnation,
        deliveries: Vec<(usize, Option<Reserved>)>,
    },
    Begin {
        claimed: Claimed,
        permit: Permit,
    },
    End {
        claimed: Claimed,
        permit: Permit,
        outcome: Outcome,
        began: u64,
    },
    Settle(Settlement),
    Release(Vec<Claimed>),
    Policies,
    /// It is time for a sign of life, and one reaches the ledger.
    BeatDue,
    Beat {
        by: Incarnation,
    },
    /// A node without a number asks for one.
    Register,
    /// A turn of the worker on replays, and its statements and their answers.
    Feed,
    TakeReplays {
        by: Incarnation,
    },
    ReplaysTaken {
        taken: Option<Vec<(usize, usize)>>,
    },
    ReplayStep {
        by: Incarnation,
        step: Step,
    },
    ReplayStepped {
        step: Step,
        made: bool,
    },
    GateTold {
        gate: GateId,
        gate_index: usize,
        until: u64,
        reason: CloseReason,
    },
}

impl NodeEvent {
    /// It happens in the ledger: a node that stalls or dies does not hold it back.
    const fn in_ledger(&self) -> bool {
        use NodeEvent::{Beat, Claim, Commit, Register, Release, ReplayStep, Reserve, Settle, TakeReplays};
        matches!(
            self,
            Claim { .. }
                | Reserve { .. }
                | Commit { .. }
                | Settle(_)
                | Release(_)
                | Beat { .. }
                | Register
                | TakeReplays { .. }
                | ReplayStep { .. }
        )
    }
}

/// A closed gate as this node was told.
#[derive(Debug, Clone, Copy)]
pub struct Closed {
    pub until: u64,
    pub reason: CloseReason,
    pub probes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known {
    pub paused: bool,
    pub max_in_flight: usize,
    pub rate: Option<RateLimit>,
    /// Since when this rate is known.
    since: u64,
}

pub struct Node {
    pub up: bool,
    pub stopping: bool,
    number: usize,
    pub epoch: u32,
    /// Who it is for the ledger; `None` while its number is lost.
    pub incarnation: Option<Incarnation>,
    /// A guarded call has found that its number is another's.
    pub number_lost: bool,
    /// A write was refused, and not all that waits has been written since.
    pub refused: bool,
    /// Deliveries whose settlements could not be written: the node's writer keeps them.
    pub kept: HashSet<usize>,
    pub worker: Worker,
    pub scheduler: Option<Scheduler<Claimed>>,
    pub stalled_until: u64,
    /// How wrong the machine's wall clock is.
    pub wall_offset_ms: i64,
    pub clock: NodeClock,
    pub claiming: bool,
    pub working: bool,
    pub timer: Option<u64>,
    pub next_poll: u64,
    pub in_flight: usize,
    pub gate_in_flight: HashMap<usize, usize>,
    pub partner_in_flight: Vec<usize>,
    /// With what goes to endpoints that this node does not know any more, or not yet.
    pub partner_at_most: Vec<usize>,
    pub closed: HashMap<usize, Closed>,
    pub known: Vec<Known>,
    pub known_receivers: Vec<bool>,
    pub watch: Rc<RefCell<Watch>>,
    /// Until when lanes are polled because what waited in memory has expired.
    pub expired_until: u64,
    pub expired: u64,
}

impl Node {
    pub fn down(number: usize) -> Self {
        Self {
            number,
            up: false,
            stopping: false,
            epoch: 0,
            incarnation: None,
            number_lost: false,
            refused: false,
            kept: HashSet::new(),
            worker: Worker::default(),
            scheduler: None,
            stalled_until: 0,
            wall_offset_ms: 0,
            clock: NodeClock::default(),
            claiming: false,
            working: false,
            timer: None,
            next_poll: 0,
            in_flight: 0,
            gate_in_flight: HashMap::new(),
            partner_in_flight: Vec::new(),
            partner_at_most: Vec::new(),
            closed: HashMap::new(),
            known: Vec::new(),
            known_receivers: Vec::new(),
            watch: Rc::default(),
            expired_until: 0,
            expired: 0,
        }
    }

    pub fn scheduler(&mut self) -> &mut Scheduler<Claimed> {
        self.scheduler.as_mut().expect("the node is up")
    }

    /// Whether the node keeps a partner's present rate, and nothing that it reserved under another is good any more.
    pub fn knows_rate(&self, partner: usize, rate: Option<RateLimit>, now: u64) -> bool {
        let settled = |known: &Known| known.rate == rate && known.since + 3 * SECOND < now;
        !self.up || self.known.get(partner).is_some_and(settled)
    }

    /// Everything that can be counted twice is counted twice.
    pub fn recount(&self, world: &World) {
        let Some(scheduler) = &self.scheduler else { return };
        assert_eq!(scheduler.in_flight(), self.in_flight, "in flight");
        if self.stopping {
            return;
        }
        // What it was told of, and what is not due yet, it will look for in time (once no clock steps any more). After the
        // ledger's time has gone back, it finds what is due earlier now by its poll alone. A heartbeat may set the time back
        // a little: what was due before is still taken for due.
        let (alarm, now) = (scheduler.next_alarm().0, world.ledger_time(self.number).as_millis());
        let told = world.ledger.rows.iter().filter(|row| row.told == Some((self.number, self.epoch)));
        let steady = world.now > world.polls_until() && !self.clock.set_back;
        let is_ahead = |due_at: &i64| steady && *due_at > now + CORRECTION_MS;
        if let Some(first) = told.map(|row| row.due_at).filter(is_ahead).min() {
            let alarm = alarm.map(|alarm| alarm.as_millis());
            assert!(
                alarm.is_some_and(|alarm| alarm <= first),
                "the alarm rings at {alarm:?}, not at {first}"
            );
        }
        assert!(scheduler.held() >= self.watch.borrow().buffered, "held is less than what waits in memory");
        for (id, gate) in scheduler.gates() {
            if matches!(id, GateId::Application(_)) {
                assert!(gate.in_flight() <= 1, "{id:?} has {} in flight", gate.in_flight());
                continue;
            }
            let index = world.gate_indexes[id];
            let (counted, width) = (gate.in_flight() as usize, gate.width());
            assert_eq!(counted, self.gate_in_flight.get(&index).copied().unwrap_or(0), "in flight at {id:?}");
            let limits = if *id == GateId::Svix { world.svix_gate } else { world.endpoint_gate };
            assert!((1..=limits.max_in_flight).contains(&width), "{id:?} is {width} wide");
        }
    }

    /// Nothing is left to remember.
    pub fn check_idle(&self) {
        let Some(scheduler) = &self.scheduler else { return };
        assert_eq!((scheduler.in_flight(), scheduler.held()), (0, 0), "in flight, held: {scheduler:?}");
        if self.clock.set_back {
            return;
        }
        let text = format!("{scheduler:?}");
        assert!(text.contains("destinations: {}, lanes: {}, ring: [], hungry: []"), "not forgotten: {text}");
    }
}

/// How far a heartbeat sets the ledger's time back at most, where that is but a little off.
const CORRECTION_MS: i64 = 50;

/// Virtual time as a node's monotonic clock has it.
pub const fn moment(now: u64) -> Moment {
    Moment::after_start(Duration::from_micros(now))
}

pub fn micros(moment: Moment) -> u64 {
    u64::try_from(moment.since_start().as_micros()).expect("short")
}

impl World {
    pub fn node_later(&mut self, node: usize, least: u64, most: u64, event: NodeEvent) {
        let epoch = self.nodes[node].epoch;
        self.after(least, most, Event::Node { node, epoch, event });
    }

    pub fn notify(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].working, true) {
            self.node_later(node, 0, 50, NodeEvent::Work);
        }
    }

    pub fn start_node(&mut self, node: usize) {
        if self.ledger.down || self.ledger.unwritable.is_some() {
            return self.after(100 * MS, SECOND, Event::Restart { node });
        }
        let (limits, svix, endpoint) = (self.limits, self.svix_gate, self.endpoint_gate);
        let Node { wall_offset_ms, epoch, incarnation, .. } = self.nodes[node];
        if let Some(incarnation) = incarnation {
            self.ledger.numbers.give_back(incarnation);
        }
        let epoch = epoch + 1;
        self.process_ended(node);
        self.nodes[node] = Node {
            up: true,
            epoch,
            incarnation: Some(self.ledger.numbers.take(self.now)),
            scheduler: Some(Scheduler::new(limits, svix, endpoint)),
            wall_offset_ms,
            next_poll: self.now,
            watch: Rc::new(RefCell::new(Watch::new(limits.max_in_flight_per_destination))),
            ..Node::down(node)
        };
        if !self.is_shared() {
            self.ledger.forget_claims();
        }
        self.start_clock(node);
        let incarnation = self.nodes[node].incarnation;
        self.note(|| format!("node {node} starts as {incarnation:?}"));
        for (gate, (until, reason)) in self.ledger.gates.clone() {
            let gate_index = self.gate_indexes[&gate];
            self.close_gate(node, gate, gate_index, until, reason);
        }
        self.set_policies(node);
        self.notify(node);
        self.node_later(node, 0, SECOND, NodeEvent::BeatDue);
        self.node_later(node, 0, SECOND, NodeEvent::Feed);
    }

    /// What the process has sent and not settled is excused.
    fn process_ended(&mut self, node: usize) {
        let epoch = self.nodes[node].epoch;
        self.unsettled.retain(|_, of| *of != (node, epoch));
    }

    pub fn crash(&mut self, node: usize) {
        if self.nodes[node].up {
            self.note(|| format!("node {node} crashes"));
            self.tally.crashes += 1;
            self.count_watch(node);
            self.process_ended(node);
            let Node { wall_offset_ms, epoch, .. } = self.nodes[node];
            self.nodes[node] = Node { epoch: epoch + 1, wall_offset_ms, ..Node::down(node) };
            self.after(100 * MS, 20 * SECOND, Event::Restart { node });
        }
    }

    /// As the dispatcher ends: what waits in memory goes back, what is in flight is settled.
    pub fn stop(&mut self, node: usize) {
        if !self.nodes[node].up || std::mem::replace(&mut self.nodes[node].stopping, true) {
            return;
        }
        self.note(|| format!("node {node} stops"));
        let mut unsent = self.nodes[node].scheduler().drain();
        self.take_out(node, &mut unsent);
        self.through_the_net(node, NodeEvent::Release(unsent));
        if let Some(by) = self.nodes[node].incarnation.filter(|_| !self.ledger.down) {
            self.ledger.give_back_replays(by);
        }
        self.after(10 * SECOND, 20 * SECOND, Event::Restart { node });
    }

    pub fn count_watch(&mut self, node: usize) {
        let watch = self.nodes[node].watch.borrow();
        self.tally.lane_bounds += watch.lane_bounds;
        self.tally.destination_bounds += watch.destination_bounds;
        self.tally.shares += watch.shares;
        self.tally.turns += watch.turns;
        self.tally.expired += watch.expired;
    }

    pub fn handle_node(&mut self, node: usize, epoch: u32, event: NodeEvent) {
        let alive = self.nodes[node].up && self.nodes[node].epoch == epoch;
        let in_ledger = event.in_ledger();
        if !alive {
            // What was under way when the node died reaches the ledger, or does not.
            if in_ledger && self.random.happens(0.5) {
                self.in_ledger(node, epoch, event, false);
            }
        } else if in_ledger {
            self.in_ledger(node, epoch, event, true);
        } else if self.nodes[node].stalled_until > self.now {
            let at = self.nodes[node].stalled_until;
            self.at(at, Event::Node { node, epoch, event });
        } else {
            self.in_node(node, event);
        }
    }

    fn in_node(&mut self, node: usize, event: NodeEvent) {
        match event {
            NodeEvent::Work => self.work(node),
            NodeEvent::Timer => {
                if self.nodes[node].timer.is_some_and(|at| at <= self.now) {
                    self.nodes[node].timer = None;
                    self.notify(node);
                }
            }
            NodeEvent::Claimed { claims, answer, asked_at } => self.claimed(node, &claims, answer, asked_at),
            NodeEvent::MayClaim => {
                self.nodes[node].claiming = false;
                self.notify(node);
            }
            NodeEvent::Reserved { wishes, asked_at, grants } => {
                let now = moment(self.now);
                let scheduler = self.nodes[node].scheduler();
                match grants {
                    Some(grants) => grants.iter().for_each(|grant| scheduler.granted(grant, asked_at, now)),
                    None => wishes.iter().for_each(|wish| scheduler.not_granted(wish, now)),
                }
                self.notify(node);
            }
            NodeEvent::Begin { claimed, permit } => self.begin(node, claimed, permit),
            NodeEvent::End { claimed, permit, outcome, began } => {
                self.end(node, claimed, permit, outcome, began)
            }
            NodeEvent::Policies => {
                self.set_policies(node);
                self.notify(node);
            }
            NodeEvent::BeatDue => self.beat(node),
            NodeEvent::Feed => self.feed(node),
            NodeEvent::ReplaysTaken { taken } => self.replays_taken(node, taken),
            NodeEvent::ReplayStepped { step, made } => self.replay_stepped(node, step, made),
            NodeEvent::GateTold { gate, gate_index, until, reason } => {
                if self.nodes[node].closed.get(&gate_index).is_none_or(|closed| closed.until < until) {
                    self.close_gate(node, gate.clone(), gate_index, until, reason);
                    self.recall(node, &gate);
                }
            }
            _ => unreachable!("it happens in the ledger"),
        }
    }

    /// The others hear of a closed gate within a second.
    pub fn tell_gate(&mut self, from: usize, gate: GateId, until: u64, reason: CloseReason) {
        self.note(|| format!("node {from}: {gate:?} is closed until {until} µs, {reason:?}"));
        let gate_index = self.gate_indexes[&gate];
        if !self.ledger.down {
            self.ledger.gates.insert(gate.clone(), (until, reason));
        }
        for node in (0..self.nodes.len()).filter(|node| *node != from) {
            let told = NodeEvent::GateTold { gate: gate.clone(), gate_index, until, reason };
            self.node_later(node, MS, SECOND, told);
        }
    }

    pub fn close_gate(
        &mut self,
        node: usize,
        gate: GateId,
        gate_index: usize,
        until: u64,
        reason: CloseReason,
    ) {
        if until > self.now {
            self.nodes[node].scheduler().close_gate(gate, moment(until), reason);
            self.nodes[node].closed.insert(gate_index, Closed { until, reason, probes: 0 });
        }
    }

    /// These wait in the scheduler's memory no longer, and not because their leases ran out.
    fn take_out(&mut self, node: usize, taken: &mut [Claimed]) {
        for claimed in taken.iter_mut() {
            claimed.buffered = None;
        }
        self.nodes[node].watch.borrow_mut().expired -= taken.len() as u64;
    }

    pub fn recall(&mut self, node: usize, gate: &GateId) {
        let mut recalled = self.nodes[node].scheduler().recall(gate);
        self.take_out(node, &mut recalled);
        self.tally.recalled += recalled.len() as u64;
        if !recalled.is_empty() {
            self.through_the_net(node, NodeEvent::Release(recalled));
        }
        self.notify(node);
    }

    pub fn set_policies(&mut self, node: usize) {
        let policies = self.policies();
        let now = self.now;
        let Self { nodes, partners, receivers, .. } = self;
        let node = &mut nodes[node];
        let known = partners.iter().enumerate().map(|(index, partner)| {
            let policy = partner.policy;
            let rate = policy.rate_limit;
            let before = node.known.get(index).filter(|before| before.rate == rate);
            let since = before.map_or(now, |before| before.since);
            Known { paused: policy.paused, max_in_flight: policy.max_in_flight, rate, since }
        });
        node.known = known.collect();
        node.known_receivers = receivers.iter().map(|receiver| !receiver.deleted).collect();
        node.partner_in_flight.resize(partners.len(), 0);
        node.partner_at_most.resize(partners.len(), 0);
        node.scheduler().set_policies(policies);
    }
}
