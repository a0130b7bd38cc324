//! The world of one seed: who is there, what happens when, and what must hold whatever happens.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::Timestamp;
use posthaste::domain::gate::{AdaptiveLimits, CloseReason, GateLimits};
use posthaste::domain::partner::RateLimit;
use posthaste::domain::retry::RetrySchedule;
use posthaste::domain::scheduler::{EndpointPolicy, GateId, PartnerPolicy, Policies, SchedulerLimits};
use posthaste::domain::tenant::{Destination, Lane, LaneId};

use super::flaws::Flaw;
use super::ledger::Ledger;
use super::node::{Node, NodeEvent};
use super::random::Random;
use super::receivers::Mood;
use super::tally::Tally;
use super::watch::Place;

pub const MS: u64 = 1_000;
pub const SECOND: u64 = 1_000 * MS;
pub const LEASE_US: u64 = 30 * SECOND;
pub const ATTEMPT_TIMEOUT_US: u64 = 10 * SECOND;
/// By then all must be done, once nothing goes wrong any more.
const PATIENCE_US: u64 = 4 * 3_600 * SECOND;
/// Longest that a fault still works after the last: a late settlement, then its lease.
const AFTERMATH_US: u64 = 2 * LEASE_US + 60 * SECOND;
const RECOUNT_EVERY: u64 = 1_024;
pub const SVIX_GATE: usize = usize::MAX;

#[expect(clippy::large_enum_variant, reason = "nearly all are of the large kind")]
pub enum Event {
    Node {
        node: usize,
        epoch: u32,
        event: NodeEvent,
    },
    Arrive,
    Fault,
    LedgerUp,
    LedgerWritable,
    Restart {
        node: usize,
    },
    Quiet,
    /// More comes in when nobody looks for lost wake-ups any more.
    LastBatches,
}

pub struct Receiver {
    pub destination: Arc<Destination>,
    pub gate: GateId,
    pub gate_index: usize,
    pub partner: Option<usize>,
    pub mood: Mood,
    pub disabled: bool,
    pub deleted: bool,
}

/// A rate as receivers see it: `level` is what the busiest window that ends now holds beyond `rate × window`.
#[derive(Debug, Default)]
pub struct Window {
    level: f64,
    at: u64,
    /// Two limits are in force until then.
    pub exempt_until: u64,
}

pub struct Partner {
    pub name: Arc<str>,
    pub policy: PartnerPolicy,
    pub window: Window,
}

pub struct LaneInfo {
    pub lane: Arc<Lane>,
    pub receiver: usize,
    pub place: Place,
}

pub struct World {
    pub random: Random,
    pub now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub ledger: Ledger,
    pub nodes: Vec<Node>,
    pub lanes: Vec<LaneInfo>,
    /// By tenant: its lanes, its weight.
    pub tenants: Vec<(Arc<str>, Vec<usize>, u32)>,
    pub receivers: Vec<Receiver>,
    pub gate_indexes: HashMap<GateId, usize>,
    pub svix_mood: Mood,
    pub partners: Vec<Partner>,
    pub limits: SchedulerLimits,
    pub svix_gate: GateLimits,
    pub endpoint_gate: GateLimits,
    pub schedule: RetrySchedule,
    pub arrivals: usize,
    /// Requests that have begun and whose settlement has not reached the ledger: claim, and node with its process.
    pub unsettled: HashMap<(usize, i64), (usize, u32)>,
    /// The fix that is taken out.
    flaw: Option<Flaw>,
    /// Nothing goes wrong any more.
    pub quiet: bool,
    pub quiet_at: u64,
    pub tally: Tally,
    /// The last events, where they are wanted.
    pub trace: Option<VecDeque<String>>,
}

impl World {
    pub fn new(seed: u64, trace: bool, flaw: Option<Flaw>) -> Self {
        let mut random = Random::new(seed);
        let large = seed.is_multiple_of(50);
        let limits = limits(&mut random);
        let gate = |random: &mut Random, most: usize| GateLimits {
            max_in_flight: u32::try_from(random.size(1, most)).expect("small"),
            unproven_in_flight: u32::try_from(random.size(1, 4)).expect("small"),
            failures_to_close: u32::try_from(random.size(2, 10)).expect("small"),
            failing_for: Duration::from_millis(random.pick(&[0, 1_000, 5_000])),
            first_wait: Duration::from_millis(random.between(200, 2_000)),
            max_wait: Duration::from_secs(20),
            adaptive: None,
        };
        let (mut svix_gate, endpoint_gate) = (gate(&mut random, 48), gate(&mut random, 16));
        svix_gate.adaptive = seed.is_multiple_of(2).then(|| AdaptiveLimits::new(2));
        let delays = [1, 3, 10, 30, 60].map(Duration::from_secs);
        let delays = delays[..random.size(2, 5)].to_vec();
        // Some go wrong for up to an hour.
        let wrong_for = if seed % 20 == 7 { random.between(600, 3_600) } else { random.between(20, 90) };
        let quiet_at = wrong_for * SECOND;
        let mut world = Self {
            now: SECOND,
            events: BTreeMap::new(),
            next_event: 0,
            ledger: Ledger::default(),
            nodes: Vec::new(),
            lanes: Vec::new(),
            tenants: Vec::new(),
            receivers: Vec::new(),
            gate_indexes: HashMap::from([(GateId::Svix, SVIX_GATE)]),
            svix_mood: Mood::Healthy,
            partners: Vec::new(),
            limits,
            svix_gate,
            endpoint_gate,
            schedule: RetrySchedule::new(delays),
            arrivals: if large { 4_000 } else { random.size(50, 700) },
            unsettled: HashMap::new(),
            flaw,
            quiet: false,
            quiet_at,
            tally: Tally::default(),
            trace: trace.then(VecDeque::new),
            random,
        };
        world.populate(large);
        for node in 0..world.random.size(1, 3) {
            world.nodes.push(Node::down(node));
            world.at(world.now, Event::Restart { node });
        }
        world.at(2 * SECOND, Event::Arrive);
        world.at(5 * SECOND, Event::Fault);
        world.at(quiet_at, Event::Quiet);
        world.at(world.polls_until() + SECOND, Event::LastBatches);
        world
    }

    fn populate(&mut self, large: bool) {
        let tenants = if large { self.random.size(2_000, 4_000) } else { self.random.size(2, 50) };
        for _ in 0..self.random.size(0, 5) {
            self.add_partner();
        }
        for tenant in 0..tenants {
            let weight = if self.random.happens(0.2) { self.random.size(2, 5) } else { 1 };
            let name: Arc<str> = format!("tenant-{tenant}").into();
            self.tenants.push((name.clone(), Vec::new(), u32::try_from(weight).expect("small")));
            if self.partners.is_empty() || self.random.happens(0.5) {
                let destination = Destination::Svix { app: name.to_string() };
                let receiver = self.add_receiver(destination, None);
                self.add_lane(tenant, receiver);
            }
        }
        if !self.partners.is_empty() {
            for _ in 0..self.random.size(1, 12) {
                self.add_endpoint();
            }
        }
    }

    fn add_partner(&mut self) {
        let name = format!("partner-{}", self.partners.len()).into();
        let policy = self.draw_policy();
        self.partners.push(Partner { name, policy, window: Window::default() });
    }

    pub fn draw_policy(&mut self) -> PartnerPolicy {
        let rate_limit = self.random.happens(0.4).then(|| RateLimit {
            per_second: self.random.pick(&[1.0, 3.3, 10.0, 50.0, 200.0]),
            burst: self.random.pick(&[1, 2, 5, 20, 100]),
        });
        PartnerPolicy { max_in_flight: self.random.size(1, 20), rate_limit, paused: false }
    }

    /// An endpoint for one tenant, or for many.
    pub fn add_endpoint(&mut self) {
        let partner = self.random.below(self.partners.len());
        let id = format!("ep_{}", self.receivers.len()).into();
        let receiver = self.add_receiver(Destination::Endpoint { id }, Some(partner));
        self.receivers[receiver].mood = Mood::draw(&mut self.random, true);
        let tenants = self.tenants.len();
        let many = self.random.happens(0.5);
        let scope = if many { self.random.size(1, tenants.min(200)) } else { 1 };
        let first = self.random.below(tenants);
        for nth in 0..scope {
            self.add_lane((first + nth) % tenants, receiver);
        }
    }

    fn add_receiver(&mut self, destination: Destination, partner: Option<usize>) -> usize {
        let gate = GateId::of(&destination);
        let index = self.receivers.len();
        let gate_index = *self.gate_indexes.entry(gate.clone()).or_insert(index);
        let destination = Arc::new(destination);
        let mood = Mood::Healthy;
        let receiver =
            Receiver { destination, gate, gate_index, partner, mood, disabled: false, deleted: false };
        self.receivers.push(receiver);
        index
    }

    fn add_lane(&mut self, tenant: usize, receiver: usize) {
        let index = self.lanes.len();
        let (name, lanes, weight) = &mut self.tenants[tenant];
        lanes.push(index);
        let Receiver { destination, gate_index, partner, .. } = &self.receivers[receiver];
        let id = LaneId(i64::try_from(index).expect("small"));
        let lane = Arc::new(Lane { id, destination: destination.clone(), tenant: name.clone() });
        let weight = u64::from(*weight);
        let quantum = if partner.is_none() { weight } else { 1 };
        let place = Place { lane: index, destination: receiver, gate: *gate_index, weight, quantum };
        self.lanes.push(LaneInfo { lane, receiver, place });
        self.ledger.add_lane();
    }

    /// What is known of receivers now.
    pub fn policies(&self) -> Policies {
        let mut policies = Policies::default();
        for receiver in self.receivers.iter().filter(|receiver| !receiver.deleted) {
            if let (Some(partner), GateId::Endpoint(id)) = (receiver.partner, &receiver.gate) {
                let partner = self.partners[partner].name.clone();
                policies.endpoints.insert(id.clone(), EndpointPolicy { partner, gate: self.endpoint_gate });
            }
        }
        policies.partners =
            self.partners.iter().map(|partner| (partner.name.clone(), partner.policy)).collect();
        let heavy = self.tenants.iter().filter(|(.., weight)| *weight > 1);
        policies.weights = heavy.map(|(name, _, weight)| (name.clone(), *weight)).collect();
        policies
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((at, self.next_event), event);
    }

    pub fn after(&mut self, least: u64, most: u64, event: Event) {
        let at = self.now + self.random.between(least, most);
        self.at(at, event);
    }

    /// What a node's wall clock shows when it is `offset_ms` fast.
    pub fn wall(&self, offset_ms: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + i64::try_from(self.now / MS).expect("small") + offset_ms)
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// No delivery falls due later than `most` from now because a node's clock is wrong.
    pub fn check_due(&self, node: usize, due_at: i64, most: Duration) {
        let late = due_at - self.right_time(node).as_millis();
        let most = i64::try_from(most.as_millis()).expect("short");
        assert!(late <= most, "due too late: {late} ms from now, {most} at most");
    }

    /// After that every wake-up must have been heard.
    pub const fn polls_until(&self) -> u64 {
        self.quiet_at + AFTERMATH_US
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() >= 80 {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.6} {}", Duration::from_micros(self.now).as_secs_f64(), text()));
        }
    }

    pub fn digest(&mut self, value: usize) {
        let mixed = self.tally.digest ^ (self.now << 20) ^ value as u64;
        self.tally.digest = mixed.wrapping_mul(0x0000_0100_0000_01B3).rotate_left(17);
    }

    /// Runs until nothing is left to happen.
    pub fn run(&mut self) {
        // With a flaw some things never end, and that is not what it is for.
        let patience = if self.flaw.is_some() { AFTERMATH_US * 4 } else { PATIENCE_US };
        while let Some(((at, _), event)) = self.events.pop_first() {
            assert!(at <= self.quiet_at + patience, "not done in time: {:?}", self.ledger.account);
            self.now = at;
            self.tally.steps += 1;
            self.handle(event);
            self.ledger.account.check();
            if self.tally.steps.is_multiple_of(RECOUNT_EVERY) {
                self.recount();
            }
        }
        self.recount();
        self.check_end();
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Node { node, epoch, event } => self.handle_node(node, epoch, event),
            Event::Arrive => self.arrive(),
            Event::Fault => self.fault(),
            Event::LedgerUp => self.ledger.down = false,
            Event::LedgerWritable => self.ledger.unwritable = None,
            Event::Restart { node } => self.start_node(node),
            Event::Quiet => self.calm_down(),
            Event::LastBatches => {
                self.arrivals += 150;
                self.arrive();
            }
        }
    }

    /// A request goes out to a partner: no window may hold more than `burst + rate × window`.
    pub fn check_rate(&mut self, partner: usize) {
        let rate = self.partners[partner].policy.rate_limit;
        let known = self.nodes.iter().all(|node| node.knows_rate(partner, rate, self.now));
        let Partner { name, policy, window } = &mut self.partners[partner];
        let Some(limit) = policy.rate_limit else { return };
        if window.exempt_until == u64::MAX && known {
            window.exempt_until = self.now;
            window.level = 0.0;
            window.at = self.now;
        }
        if window.exempt_until > self.now {
            return;
        }
        let passed = Duration::from_micros(self.now - window.at).as_secs_f64();
        window.level = (window.level - limit.per_second * passed).max(0.0) + 1.0;
        window.at = self.now;
        let burst = f64::from(limit.burst.max(limit.least_burst()));
        assert!(
            window.level <= burst + 1e-6,
            "{name} has {} sends too many in a window",
            window.level - burst
        );
        self.tally.limited += 1;
    }

    fn recount(&self) {
        self.ledger.recount();
        for node in &self.nodes {
            node.recount(self);
        }
    }

    fn check_end(&mut self) {
        let account = self.ledger.account;
        assert_eq!(account.waiting(), 0, "what waits is never sent: {account:?}");
        assert!(self.unsettled.is_empty(), "sent and never settled: {:?}", self.unsettled);
        self.ledger.check_replays();
        for node in &self.nodes {
            node.check_idle();
        }
        self.tally.created = account.created as u64;
        (self.tally.dead, self.tally.canceled) = (account.dead as u64, account.canceled as u64);
        for node in 0..self.nodes.len() {
            self.count_watch(node);
        }
    }
}

fn limits(random: &mut Random) -> SchedulerLimits {
    let max_in_flight = random.size(1, 48);
    SchedulerLimits {
        max_in_flight,
        max_in_flight_per_destination: random.size(1, max_in_flight),
        max_buffered: random.size(1, 300),
        max_claim: random.size(1, 64),
    }
}

pub const fn closes_for_probes(reason: CloseReason) -> bool {
    !matches!(reason, CloseReason::Throttled)
}
