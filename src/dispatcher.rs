//! The one loop: claims what the [`Scheduler`] wants, sends what it picks, settles what came of it.
//!
//! It decides nothing itself. Who may send is the scheduler's word, what an attempt means is
//! [`delivery::settle`]'s, and both are plain data. No transaction is open while a request is under way.

mod attempt;
mod neighbours;
mod panics;
mod standing;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::neighbours::SeenGates;
use self::panics::{ClaimUnderWay, WakeOnPanic};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Class, Delivery, Outcome, Settlement};
use crate::domain::gate::{CloseReason, Gate, GateLimits, Signal};
use crate::domain::scheduler::{
    GateId, LaneClaim, Permit, Policies, Remaining, Scheduler, SchedulerLimits, Start, TokenWish,
};
pub use crate::domain::scheduler::{Held, HeldBy};
use crate::domain::tenant::{Destination, Lane, LaneId};
use crate::failpoint::failpoint;
use crate::jobs::Job;
use crate::ledger::{BusyLane, ClaimedLane, Ledger, Outlet};
use crate::send::Sender;

/// How often the ledger is asked for lanes with work, for what no wake-up told: on Postgres other nodes' work, on
/// SQLite nothing that should be there.
const POLL_SHARED: Duration = Duration::from_secs(1);
const POLL_OWN: Duration = Duration::from_secs(30);
/// Shortest time between two such looks where other nodes ask for them.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Lanes read at once.
const LANES_PAGE: u32 = 1_000;
/// Wait after the ledger failed to answer.
const AFTER_ERROR: Duration = Duration::from_millis(500);
/// How often the dispatcher checks whether settlements can be written again.
const CHECK_SETTLING_EVERY: Duration = Duration::from_millis(50);

/// Hears what came of every attempt: what it means for the destination as a whole is not the dispatcher's business.
#[async_trait]
pub trait Observer: Send + Sync {
    /// An attempt has ended; called before its settlement is handed in.
    async fn observe(&self, delivery: &Delivery, outcome: &Outcome);

    /// What an attempt came to and how long it took. Must not wait for anything.
    fn measure(&self, _delivery: &Delivery, _outcome: &Outcome, _latency: Duration) {}

    /// What is about to be recorded of a delivery. Must not wait for anything.
    fn settle(&self, _delivery: &Delivery, _settlement: &Settlement) {}

    /// A gate has closed for so long, or stays closed for longer; not where another node told of it. Must not wait.
    fn gate_closed(&self, _gate: &GateId, _reason: CloseReason, _wait: Duration) {}

    /// A gate is open again. Must not wait.
    fn gate_opened(&self, _gate: &GateId) {}
}

/// Bounds of the dispatcher.
#[derive(Debug, Clone)]
pub struct DispatcherOptions {
    /// Bounds of the scheduler.
    pub scheduler: SchedulerLimits,
    /// Bounds of the gate before Svix.
    pub svix_gate: GateLimits,
    /// Bounds of the gate before an endpoint that nothing else is known of.
    pub endpoint_gate: GateLimits,
    /// Longest time for one attempt with all its requests; shorter than the lease.
    pub attempt_timeout: Duration,
    /// There is nothing to send to Svix with: its deliveries wait.
    pub svix_configured: bool,
}

/// A gate as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateStatus {
    /// Which gate.
    pub gate: GateId,
    /// Why it is closed or probing.
    pub reason: Option<CloseReason>,
    /// How long until it opens or lets a probe through; `None` where it is open or probing.
    pub opens_in: Option<Duration>,
    /// Requests that may be in flight.
    pub width: u32,
    /// Requests in flight.
    pub in_flight: u32,
}

impl GateStatus {
    /// `open`, `closed` or `probing`.
    pub const fn state(&self) -> &'static str {
        match (self.reason, self.opens_in) {
            (None, _) => "open",
            (Some(_), None) => "probing",
            (Some(_), Some(_)) => "closed",
        }
    }
}

/// The dispatcher. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

struct Shared {
    scheduler: Mutex<Scheduler<Delivery>>,
    seen_gates: Mutex<SeenGates>,
    /// The ledger is to be asked for lanes with work soon.
    look: AtomicBool,
    changed: Notify,
    ledger: Ledger,
    sender: Arc<dyn Sender>,
    observer: Arc<dyn Observer>,
    options: DispatcherOptions,
    sends: TaskTracker,
    /// Claims and reservations under way.
    ledger_calls: TaskTracker,
    /// A claim is under way.
    claiming: AtomicBool,
    clock: Arc<dyn Clock>,
}

impl Dispatcher {
    /// A dispatcher for `ledger` that sends with `sender`. It does nothing before [`Self::run`], but takes fresh
    /// deliveries from now on.
    pub fn new(
        ledger: Ledger,
        sender: Arc<dyn Sender>,
        observer: Arc<dyn Observer>,
        options: DispatcherOptions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut scheduler = Scheduler::new(options.scheduler, options.svix_gate, options.endpoint_gate);
        if !options.svix_configured {
            let for_ever = Moment::after_start(Duration::MAX);
            scheduler.close_gate(GateId::Svix, for_ever, CloseReason::NotConfigured);
        }
        let shared = Shared {
            scheduler: Mutex::new(scheduler),
            seen_gates: Mutex::default(),
            look: AtomicBool::new(false),
            changed: Notify::new(),
            ledger: ledger.clone(),
            sender,
            observer,
            options,
            sends: TaskTracker::new(),
            ledger_calls: TaskTracker::new(),
            claiming: AtomicBool::new(false),
            clock,
        };
        let dispatcher = Self { shared: Arc::new(shared) };
        ledger.connect(Box::new(Handoff(Arc::downgrade(&dispatcher.shared))));
        dispatcher
    }

    /// Runs until `stop` is cancelled; then sends nothing new, and returns once what is in flight is settled.
    ///
    /// Whoever loses patience drops the future: what is in flight is then sent again, under the same keys.
    pub async fn run(&self, stop: CancellationToken) {
        self.look_at_gates(true).await;
        let poll = if self.shared.ledger.database().is_shared() { POLL_SHARED } else { POLL_OWN };
        self.shared.ledger.jobs().started(Job::Lanes, Some(3 * poll));
        let mut next_poll = self.shared.clock.moment();
        let mut looked_at = Moment::default();
        while !stop.is_cancelled() {
            // Registered before the look at what there is to do: a wake-up in between is not lost.
            let changed = self.shared.changed.notified();
            let now = self.shared.clock.moment();
            if self.shared.look.swap(false, Ordering::Relaxed) {
                next_poll = next_poll.min(looked_at + LOOK_PAUSE);
            }
            if next_poll <= now {
                self.find_work(&stop).await;
                looked_at = self.shared.clock.moment();
                next_poll = looked_at + poll;
            }
            let wait = self.turn().min(self.shared.clock.moment().until(next_poll));
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        self.finish().await;
    }

    /// The gates and their state, Svix's first.
    pub fn gates(&self) -> Vec<GateStatus> {
        let now = self.shared.clock.moment();
        let scheduler = self.shared.scheduler();
        let status = |(gate, state): (&GateId, &Gate)| GateStatus {
            gate: gate.clone(),
            reason: state.reason(),
            opens_in: state.opens_at().map(|opens_at| now.until(opens_at)),
            width: state.width(),
            in_flight: state.in_flight(),
        };
        let mut gates: Vec<_> = scheduler.gates().map(|(gate, state)| status((gate, state))).collect();
        gates.sort_by(|one, other| one.gate.cmp(&other.gate));
        gates
    }

    /// Partners whose limits hold deliveries back now.
    pub fn held(&self) -> Vec<Held> {
        self.shared.scheduler().held_partners(self.shared.clock.moment())
    }

    /// What is known of receivers from now on.
    pub fn set_policies(&self, policies: Policies) {
        self.shared.scheduler().set_policies(policies);
        self.shared.changed.notify_one();
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.shared.scheduler().in_flight()
    }

    /// Whether others wait for what one more delivery to `destination` would take.
    pub fn is_pressed(&self, destination: &Destination) -> bool {
        self.shared.scheduler().is_pressed(destination)
    }

    /// Asks the ledger which lanes have work, and wakes them.
    async fn find_work(&self, stop: &CancellationToken) {
        let mut after: Option<LaneId> = None;
        while !stop.is_cancelled() {
            let lanes = self.shared.ledger.busy_lanes(after, LANES_PAGE).await;
            self.shared.ledger.jobs().ran(Job::Lanes, &lanes);
            let Ok(lanes) = lanes else { return };
            let now = self.shared.clock.now();
            let mut scheduler = self.shared.scheduler();
            for BusyLane { lane, first_due } in &lanes {
                for (class, due_at) in Class::ALL.into_iter().zip(*first_due) {
                    if let Some(due_at) = due_at {
                        scheduler.wake(lane, class, due_at, now);
                    }
                }
            }
            match lanes.last() {
                Some(BusyLane { lane, .. }) if lanes.len() == LANES_PAGE as usize => after = Some(lane.id),
                _ => return,
            }
        }
    }

    /// Sends all that may go now, and asks the ledger for what the scheduler wants of it, on the side: meanwhile others are
    /// sent. How long until it is time for the next turn.
    ///
    /// While settlements can't be written it sends nothing and claims nothing.
    fn turn(&self) -> Duration {
        let (now, moment) = (self.shared.clock.now(), self.shared.clock.moment());
        let may_send = self.shared.ledger.can_settle();
        // One claim at a time, so that what becomes due during one is claimed together.
        let may_claim = may_send && !self.shared.claiming.load(Ordering::Acquire);
        let mut scheduler = self.shared.scheduler();
        scheduler.tick(now, moment);
        while may_send && let Some(Start { item, permit }) = scheduler.next(moment) {
            self.shared.spawn(item, permit);
        }
        let expired = scheduler.expired();
        let wishes = if may_send { scheduler.token_wishes() } else { Vec::new() };
        let claims = if may_claim { scheduler.claims(moment) } else { Vec::new() };
        let (due_at, opens_at) = scheduler.tell_alarm();
        drop(scheduler);
        if !expired.is_empty() {
            let shared = Arc::clone(&self.shared);
            self.shared.ledger_calls.spawn(async move { shared.release(&expired).await });
        }
        if !wishes.is_empty() {
            let shared = Arc::clone(&self.shared);
            self.shared.ledger_calls.spawn(async move { shared.reserve_tokens(wishes).await });
        }
        if !claims.is_empty() {
            self.shared.claiming.store(true, Ordering::Release);
            let shared = Arc::clone(&self.shared);
            self.shared.ledger_calls.spawn(async move { shared.claim(&claims).await });
        }
        let until_due = due_at.map(|due_at| due_at.since(now));
        let until_open = opens_at.map(|opens_at| moment.until(opens_at));
        if !may_send {
            return CHECK_SETTLING_EVERY;
        }
        // A timer may ring a moment early, and a clock may be set: rather look once more than sleep too long.
        let soonest = until_due.into_iter().chain(until_open).min().unwrap_or(POLL_OWN);
        soonest.max(Duration::from_millis(1))
    }

    async fn finish(&self) {
        self.shared.scheduler().stop();
        self.shared.ledger_calls.close();
        self.shared.ledger_calls.wait().await;
        let unsent = self.shared.scheduler().drain();
        if let Err(error) = self.shared.ledger.release(&unsent).await {
            tracing::debug!(%error, "claims were not given back; their leases will end");
        }
        self.shared.sends.close();
        self.shared.sends.wait().await;
    }
}

impl Shared {
    fn scheduler(&self) -> MutexGuard<'_, Scheduler<Delivery>> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen_gates(&self) -> MutexGuard<'_, SeenGates> {
        self.seen_gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the ledger be asked for lanes with work.
    fn look(&self) {
        self.look.store(true, Ordering::Relaxed);
        self.changed.notify_one();
    }

    async fn claim(&self, claims: &[LaneClaim]) {
        let mut under_way = ClaimUnderWay::new(self, claims);
        match self.ledger.claim(claims).await {
            Ok((claimed, leased_until)) => {
                failpoint!("claimed", claimed.iter().any(|lane| !lane.deliveries.is_empty()));
                under_way.answered();
                self.claimed(claims, claimed, leased_until);
            }
            Err(error) => {
                tracing::debug!(%error, "nothing could be claimed");
                under_way.answered();
                self.claim_failed(claims);
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
    }

    async fn reserve_tokens(&self, wishes: Vec<TokenWish>) {
        // Read first: a token is good for some time from its reservation on, and rather for less.
        let asked_at = self.clock.moment();
        let granted = self.ledger.reserve_tokens(&wishes).await;
        let now = self.clock.moment();
        let mut scheduler = self.scheduler();
        match granted {
            Ok(grants) => grants.iter().for_each(|grant| scheduler.granted(grant, asked_at, now)),
            Err(error) => {
                tracing::debug!(%error, "no tokens could be reserved");
                wishes.iter().for_each(|wish| scheduler.not_granted(wish, now));
            }
        }
        drop(scheduler);
        self.changed.notify_one();
    }

    fn claimed(&self, claims: &[LaneClaim], claimed: Vec<ClaimedLane>, leased_until: Moment) {
        let now = self.clock.now();
        // What is sent must come back before the lease ends.
        let send_by =
            Moment::after_start(leased_until.since_start().saturating_sub(self.options.attempt_timeout));
        let mut scheduler = self.scheduler();
        for (claim, lane) in claims.iter().zip(claimed) {
            scheduler.claimed(claim, lane.deliveries, send_by, lane.remaining, now);
        }
    }

    /// The ledger did not answer: the lanes are asked again later.
    fn claim_failed(&self, claims: &[LaneClaim]) {
        let now = self.clock.now();
        let mut scheduler = self.scheduler();
        for claim in claims {
            scheduler.claimed(claim, Vec::new(), self.clock.moment(), Remaining::Due, now);
        }
    }

    /// Sends a delivery, and whatever has its turn once it is done: a task and a turn of the loop for each would cost as
    /// much as a send's own work.
    fn spawn(self: &Arc<Self>, item: Delivery, permit: Permit) {
        let shared = Arc::clone(self);
        self.sends.spawn(async move {
            let _wake = WakeOnPanic(&shared);
            let mut start = Some(Start { item, permit });
            while let Some(Start { item, permit }) = start {
                shared.attempt(item, permit).await;
                start = shared.next();
            }
        });
    }

    /// What may start now that something has ended; the rest is the loop's.
    fn next(&self) -> Option<Start<Delivery>> {
        if !self.ledger.can_settle() {
            self.changed.notify_one();
            return None;
        }
        let now = self.clock.moment();
        let may_claim = !self.claiming.load(Ordering::Acquire);
        let mut scheduler = self.scheduler();
        let start = scheduler.next(now);
        let wants_turn = scheduler.wants_turn(may_claim);
        drop(scheduler);
        if wants_turn {
            self.changed.notify_one();
        }
        start
    }
}

/// The ledger's way to the dispatcher. Weak, because the dispatcher holds the ledger: once it is gone, everything takes
/// the way through the database.
struct Handoff(Weak<Shared>);

impl Outlet for Handoff {
    fn reserve(&self, lane: &Arc<Lane>) -> Option<Permit> {
        let shared = self.0.upgrade()?;
        if !shared.ledger.can_settle() {
            return None;
        }
        let now = shared.clock.moment();
        shared.scheduler().reserve(lane, now)
    }

    fn deliver(&self, delivery: Delivery, permit: Permit) {
        if let Some(shared) = self.0.upgrade() {
            shared.spawn(delivery, permit);
        }
    }

    fn give_back(&self, lane: &Arc<Lane>, permit: Permit) {
        if let Some(shared) = self.0.upgrade() {
            let now = shared.clock.moment();
            let _ = shared.scheduler().finish(lane, permit, Signal::NotSent, now, 0.0);
            shared.changed.notify_one();
        }
    }

    fn is_sending(&self) -> bool {
        self.0.upgrade().is_some_and(|shared| shared.scheduler().in_flight() > 0)
    }

    fn wake(&self, lane: &Arc<Lane>, class: Class, due_at: Timestamp) {
        if let Some(shared) = self.0.upgrade() {
            shared.scheduler().wake(lane, class, due_at, shared.clock.now());
            shared.changed.notify_one();
        }
    }
}
