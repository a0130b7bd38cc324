//! Group commit: one task writes, and takes together what waits.
//!
//! Nobody who waits for an answer waits on purpose: while one commit is being made durable, the next group gathers by itself.
//! Settlements, for which nobody waits, wait a moment for others where more are under way.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::backlog::Backlog;
use super::clock::ClockKeeper;
use super::fan_out::{self, Next};
use super::incarnation::Membership;
use super::notices::Bell;
use super::plan::{self, AcceptRequest, Accepted, Known, Plan, Waiting};
use super::repeats::Repeats;
use super::{ClaimId, Committed, LedgerError, Outlet, Result, Store, claim_of};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Class, Delivery, DeliveryId, NextState, ReplayNumber, Settlement};
use crate::domain::hash::FastSet;
use crate::domain::sequence::Sequence;
use crate::domain::tenant::LaneId;
use crate::failpoint::failpoint;
use crate::reconnect::Pauses;
use crate::telemetry::CommitMetrics;

/// Most commands that wait, and most settlements.
const QUEUE_LIMIT: usize = 4_096;
/// At this many settlements that wait to be committed no send begins. Fewer than the queue and the writer keep, so that the
/// settlements of the sends in flight find room, too.
pub(super) const UNSETTLED_LIMIT: usize = QUEUE_LIMIT;
/// About how many rows a commit takes: events, or deliveries that join the queue with it where those are more. One request
/// may have more events, and is not split.
const GROUP_ROWS: usize = 2_000;
/// About how many bytes of bodies a commit takes. Whoever comes next waits for it.
const GROUP_BYTES: usize = 8 << 20;
/// How often a plan may clash with other nodes before its requests are told to come back.
const CLASH_LIMIT: usize = 8;
/// How often the ledger is asked for a sign of life. While it is down, sooner.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long settlements alone wait for others, where more are under way. Nobody waits for them, and a commit for each few
/// costs more than what it writes: once producers pause, a busy node would make hundreds a second.
pub(super) const SETTLE_TOGETHER: Duration = Duration::from_millis(10);

/// What the writer is asked to do.
pub(super) enum Command {
    Accept { request: AcceptRequest, answer: oneshot::Sender<Result<Accepted>> },
    Close,
}

/// Two ways to the writer, so that it may wait for one without waking for the other. Senders wait beyond [`QUEUE_LIMIT`].
pub(super) struct Desk {
    pub commands: mpsc::Sender<Command>,
    pub settlements: mpsc::Sender<Settlement>,
}

/// What comes in by them.
pub(super) struct Inbox {
    commands: mpsc::Receiver<Command>,
    settlements: mpsc::Receiver<Settlement>,
}

impl Desk {
    pub fn new() -> (Self, Inbox) {
        let (commands, command_queue) = mpsc::channel(QUEUE_LIMIT);
        let (settlements, settlement_queue) = mpsc::channel(QUEUE_LIMIT);
        let inbox = Inbox { commands: command_queue, settlements: settlement_queue };
        (Self { commands, settlements }, inbox)
    }
}

/// A request and who waits for its answer.
struct Pending {
    request: AcceptRequest,
    answer: oneshot::Sender<Result<Accepted>>,
}

pub(super) struct Writer {
    pub store: Arc<dyn Store>,
    pub sequence: Sequence,
    pub backlog: Arc<Backlog>,
    pub outlet: Arc<OnceLock<Box<dyn Outlet>>>,
    /// Hears of every commit.
    pub meter: Arc<OnceLock<Arc<CommitMetrics>>>,
    /// Counts what came again.
    pub repeats: Arc<Repeats>,
    /// How many settlements wait to be committed.
    pub unsettled_count: Arc<AtomicUsize>,
    /// Tells other nodes; `None` where there can't be any.
    pub bell: Option<Arc<Bell>>,
    /// Why writes fail; `None` while they work.
    pub health: watch::Sender<Option<String>>,
    /// Which node this is.
    pub membership: Arc<Membership>,
    pub last_beat: Moment,
    /// See [`SETTLE_TOGETHER`].
    pub settle_together: Duration,
    /// Compares the clocks with every heartbeat; `None` where the clock is a test's.
    pub clock_keeper: Option<ClockKeeper>,
    /// Large requests whose deliveries join the queue step by step.
    pub fan_out: FanOutTurn,
    pub clock: Arc<dyn Clock>,
}

/// Whose fan-out is continued next, where there may be any.
#[derive(Debug, Default)]
pub(super) struct FanOutTurn {
    /// There may be some.
    pending: bool,
    /// The tenant of the last step.
    tenant: Arc<str>,
}

impl FanOutTurn {
    /// At the start: an earlier process may have left some.
    pub fn first() -> Self {
        Self { pending: true, tenant: Arc::default() }
    }
}

/// What is written together, beside settlements.
#[derive(Default)]
struct Group {
    accepts: Vec<Pending>,
    rows: usize,
    bytes: usize,
    /// The last one: the writer was told to end, or nobody is left to ask it.
    last: bool,
}

impl Group {
    fn take(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Accept { request, answer }) => {
                self.rows += fan_out::rows_in_commit(&request.events);
                self.bytes += request.events.iter().map(|new| new.event.body.len()).sum::<usize>();
                self.accepts.push(Pending { request, answer });
            }
            Some(Command::Close) | None => self.last = true,
        }
    }

    const fn has_room(&self) -> bool {
        self.rows < GROUP_ROWS && self.bytes < GROUP_BYTES && !self.last
    }
}

impl Inbox {
    /// Takes what else has come: requests as far as the group has room, and of the settlements all, so that none is
    /// committed later than a request that was handed in after it.
    fn take(&mut self, group: &mut Group, unsettled: &mut Vec<Settlement>) {
        while group.has_room()
            && let Ok(command) = self.commands.try_recv()
        {
            group.take(Some(command));
        }
        if has_room(unsettled) {
            let waiting = self.settlements.len();
            unsettled.extend((0..waiting).map_while(|_| self.settlements.try_recv().ok()));
        }
    }
}

/// Whether more settlements are taken. While they can't be written, they are kept, and then their senders wait.
const fn has_room(unsettled: &[Settlement]) -> bool {
    unsettled.len() < QUEUE_LIMIT
}

impl Writer {
    /// Writes until it reads [`Command::Close`] or nobody is left to ask.
    pub async fn run(mut self, mut inbox: Inbox) {
        let mut unsettled: Vec<Settlement> = Vec::new();
        let mut pauses = Pauses::new();
        let mut open = true;
        while open {
            let mut group = Group::default();
            let down = self.health.borrow().is_some();
            if !down {
                pauses.reset();
            }
            let since_beat = self.last_beat.until(self.clock.moment());
            let wait = if down { pauses.pause() } else { HEARTBEAT.saturating_sub(since_beat) };
            let idle = tokio::select! {
                biased;
                command = inbox.commands.recv() => {
                    group.take(command);
                    false
                }
                Some(settlement) = inbox.settlements.recv(), if has_room(&unsettled) => {
                    unsettled.push(settlement);
                    false
                }
                () = self.membership.lost() => true,
                // No request waits: the next step is due.
                () = std::future::ready(()), if self.fan_out.pending && !down => false,
                () = tokio::time::sleep(wait) => true,
            };
            let more_to_come = || self.outlet().is_some_and(Outlet::is_sending);
            if !idle
                && !down
                && !self.fan_out.pending
                && group.accepts.is_empty()
                && !group.last
                && more_to_come()
            {
                let command = tokio::time::timeout(self.settle_together, inbox.commands.recv()).await;
                // Time is up: what has come meanwhile is enough.
                command.into_iter().for_each(|command| group.take(command));
            }
            inbox.take(&mut group, &mut unsettled);
            open = !group.last;
            let mut alive = self.heartbeat(idle).await;
            if self.membership.is_lost()
                && let Err(LedgerError::Refused(reason)) = &alive
            {
                self.membership.exclude();
                for pending in group.accepts.drain(..) {
                    let _ = pending.answer.send(Err(LedgerError::Unavailable(reason.clone())));
                }
                // Without a number no event is accepted. Settlements need none: their claims still hold.
                alive = Ok(());
            }
            if !group.accepts.is_empty() || !unsettled.is_empty() {
                self.write(alive, group.accepts, &mut unsettled).await;
            } else if alive.is_ok() {
                self.report(None);
            }
            if open && self.fan_out.pending && self.health.borrow().is_none() {
                self.continue_fan_out().await;
            }
        }
    }

    /// Makes one step of the fan-out of large requests: deliveries of some rows of `fan_out` join the queue. Between two steps
    /// the requests that wait are committed, and tenants take turns.
    async fn continue_fan_out(&mut self) {
        let tenant = self.fan_out.tenant.clone();
        match self.store.continue_fan_out(Next::AfterTenant(&tenant)).await {
            Ok(Some(step)) => {
                if let Some(outlet) = self.outlet() {
                    step.wake(outlet);
                }
                if let Some(bell) = &self.bell {
                    bell.lanes(step.lanes.iter().map(|step| step.lane.id));
                }
                self.fan_out.tenant = step.tenant;
            }
            // All tenants had their turn, or there are none.
            Ok(None) => {
                self.fan_out.pending = !tenant.is_empty();
                self.fan_out.tenant = Arc::default();
            }
            Err(error) => {
                tracing::warn!(%error, "a large request's deliveries could not be queued; they are tried again later");
                self.fan_out.pending = false;
            }
        }
    }

    fn outlet(&self) -> Option<&dyn Outlet> {
        self.outlet.get().map(Box::as_ref)
    }

    /// Asks the ledger for a sign of life where it is time for one, busy or not: the node's number hangs on it.
    ///
    /// Reports a failure only. After one, writes work again once what waits is committed: until then a send whose
    /// settlement waits could be claimed, and begin, again.
    async fn heartbeat(&mut self, idle: bool) -> Result<()> {
        let moment = self.clock.moment();
        let down = self.health.borrow().is_some();
        let lost = self.membership.is_lost();
        if !idle && !down && !lost && self.last_beat.until(moment) < HEARTBEAT {
            return Ok(());
        }
        let beat = if lost { self.rejoin().await } else { self.store.heartbeat(down).await };
        let beat = match beat {
            Err(LedgerError::NumberLost(_)) => self.rejoin().await,
            beat => beat,
        };
        if let Err(error) = &beat {
            self.report(Some(error));
        } else {
            self.last_beat = moment;
            if let Some(keeper) = &self.clock_keeper {
                keeper.beat(&*self.store, &mut self.sequence).await;
            }
            // Another node may have left some, or a step of ours has failed.
            self.fan_out.pending = true;
        }
        beat
    }

    /// Takes another number after this one was lost. What waits to be written goes on under it.
    async fn rejoin(&mut self) -> Result<()> {
        self.sequence = self.store.rejoin().await?;
        if let Some(keeper) = &self.clock_keeper {
            keeper.leave_the_future(&mut self.sequence).await?;
        }
        let current = self.membership.current();
        tracing::info!(node = current.node, epoch = current.epoch, "this node has another number");
        Ok(())
    }

    /// Notes whether writes work, and says so once when that changes.
    fn report(&self, error: Option<&LedgerError>) {
        if error.is_none() && self.membership.is_lost() {
            // Settlements may be written. Events are not, and nothing is claimed.
            return;
        }
        let reason = error.map(ToString::to_string);
        self.health.send_if_modified(|health| {
            match (&*health, &reason) {
                (None, Some(reason)) => tracing::error!(%reason, "the ledger takes no writes"),
                (Some(_), None) => tracing::info!("the ledger takes writes again"),
                _ => {}
            }
            let changed = health.is_some() != reason.is_some();
            *health = reason;
            changed
        });
    }

    /// Commits requests and settlements together, where the ledger is `alive`. What can't be settled now stays in
    /// `unsettled`.
    async fn write(&mut self, alive: Result<()>, accepts: Vec<Pending>, unsettled: &mut Vec<Settlement>) {
        // A claim is settled once: of several words about it the first counts.
        let handed_in = unsettled.len();
        let mut claims = FastSet::with_capacity_and_hasher(handed_in, Default::default());
        unsettled.retain(|settlement| claims.insert(claim_of(settlement)));
        self.unsettled_count.fetch_sub(handed_in - unsettled.len(), Ordering::Relaxed);
        let (requests, answers): (Vec<_>, Vec<_>) =
            accepts.into_iter().map(|pending| (pending.request, pending.answer)).unzip();
        let committed = match alive {
            Ok(()) => self.commit(&requests, unsettled).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok((verdicts, stale)) => {
                self.settled(unsettled, &stale);
                self.unsettled_count.fetch_sub(unsettled.len(), Ordering::Relaxed);
                unsettled.clear();
                // Before the answers: a caller that has one finds the ledger without trouble.
                self.report(None);
                for (answer, verdict) in answers.into_iter().zip(verdicts) {
                    // A caller that has gone away finds duplicates when it comes again.
                    let _ = answer.send(Ok(verdict));
                    failpoint!("answered");
                }
            }
            Err(error) => {
                self.report(Some(&error));
                let reason = error.to_string();
                for answer in answers {
                    let _ = answer.send(Err(LedgerError::Unavailable(reason.clone())));
                }
            }
        }
    }

    async fn commit(
        &mut self,
        requests: &[AcceptRequest],
        settlements: &[Settlement],
    ) -> Result<(Vec<Accepted>, HashSet<ClaimId>)> {
        let mut known = Known::default();
        let mut is_known = false;
        for _ in 0..CLASH_LIMIT {
            let now = self.clock.now();
            let mut plan = plan::plan(requests, known, now, || self.sequence.next(now));
            // A request that is refused for conflicts in itself gets the conflicts with what is stored, too. Nothing of it is
            // written that could clash with that.
            if plan.refuses() && !is_known {
                known = plan.into_known();
                known.merge(self.lookup(requests).await?);
                is_known = true;
                continue;
            }
            if plan.writes_nothing() && settlements.is_empty() {
                self.repeats.note(&plan.repeats, now);
                return Ok((plan.answers, HashSet::new()));
            }
            if let Some(keeper) = self.clock_keeper.as_mut().filter(|_| !plan.inserts.is_empty()) {
                keeper.note_lead(self.sequence.lead_ms(now)).await?;
            }
            reserve(self.outlet(), &mut plan.deliveries);
            let began = self.clock.moment();
            let committed = self.store.commit(&mut plan, settlements).await;
            give_back(self.outlet(), &plan.withdrawn);
            match committed {
                Ok(Committed::Done { stale }) => {
                    self.measure(began, plan.inserts.len());
                    self.repeats.note(&plan.repeats, now);
                    self.committed(&plan);
                    return Ok((plan.answers, stale));
                }
                Ok(Committed::Clash) => {
                    give_back(self.outlet(), &plan.deliveries);
                    known = plan.into_known();
                    known.merge(self.lookup(requests).await?);
                    is_known = true;
                }
                Err(LedgerError::NumberLost(_)) => {
                    give_back(self.outlet(), &plan.deliveries);
                    known = plan.into_known();
                    self.rejoin().await?;
                }
                Err(error) => {
                    give_back(self.outlet(), &plan.deliveries);
                    return Err(error);
                }
            }
        }
        Err(LedgerError::Unavailable("too many nodes write the same events at once".into()))
    }

    fn measure(&self, began: Moment, events: usize) {
        if let Some(meter) = self.meter.get() {
            meter.committed(began.until(self.clock.moment()), events);
        }
    }

    /// What the ledger knows of these requests. Of all they name, not only of what was about to be written: who is
    /// refused now makes room for others of the group, and each would be another clash.
    async fn lookup(&self, requests: &[AcceptRequest]) -> Result<Known> {
        let events = requests.iter().flat_map(|request| &request.events);
        let identities: BTreeSet<_> = events.map(|new| &new.event.identity).collect();
        let identities: Vec<_> = identities.into_iter().collect();
        let keys: Vec<_> = requests.iter().filter_map(|request| request.request_key.as_ref()).collect();
        self.store.lookup(&identities, &keys).await
    }

    /// After the commit: deliveries go to the dispatcher, from memory or as a wake-up, and the backlog is told.
    fn committed(&mut self, plan: &Plan<'_>) {
        let outlet = self.outlet();
        let mut woken = FastSet::default();
        self.backlog.add_each(plan.deliveries.iter().map(|waiting| &waiting.lane.tenant), 1);
        for waiting in &plan.deliveries {
            let Some(outlet) = outlet else { break };
            match waiting.permit {
                Some(permit) => outlet.deliver(fresh(waiting, plan.now), permit),
                None if woken.insert(waiting.lane.id) => outlet.wake(waiting.lane, Class::Fresh, plan.now),
                None => {}
            }
        }
        if let Some(bell) = &self.bell {
            let waiting = plan.deliveries.iter().filter(|waiting| !waiting.is_handed_over());
            bell.lanes(waiting.map(|waiting| waiting.lane.id));
        }
        for insert in plan.inserts.iter().filter(|insert| insert.fans_out) {
            let deliveries = i64::try_from(insert.new.lanes.len()).unwrap_or(i64::MAX);
            self.backlog.add(&insert.new.event.identity.tenant, deliveries);
            self.fan_out.pending = true;
        }
    }

    /// After the commit: what is done leaves the backlog, what waits again is told to the dispatcher. Not earlier: a
    /// claim made before the commit would find it still held.
    fn settled(&self, settlements: &[Settlement], stale: &HashSet<ClaimId>) {
        let is_stale = |settlement: &&Settlement| stale.contains(&claim_of(settlement));
        for settlement in settlements.iter().filter(is_stale) {
            tracing::warn!(delivery = %settlement.id, attempt = settlement.attempt, "lease lost: not settled");
            if let Some(meter) = self.meter.get() {
                meter.lease_lost();
            }
        }
        let settled = settlements.iter().filter(|settlement| !is_stale(settlement));
        let done = settled.clone().filter(|settlement| settlement.next.is_final());
        self.backlog.add_each(done.map(|settlement| &settlement.lane.tenant), -1);
        for settlement in settled {
            if let NextState::Pending { due_at, failures, .. } = settlement.next
                && let Some(outlet) = self.outlet()
            {
                outlet.wake(&settlement.lane, settlement.class_with(failures), due_at);
            }
        }
    }
}

/// Takes places in flight for as many deliveries as may go out now.
fn reserve(outlet: Option<&dyn Outlet>, deliveries: &mut [Waiting<'_>]) {
    let Some(outlet) = outlet else { return };
    // Preserves order: once one delivery in a lane waits, all later ones wait.
    let mut refused: FastSet<LaneId> = FastSet::default();
    for waiting in deliveries {
        if refused.contains(&waiting.lane.id) {
            continue;
        }
        waiting.permit = outlet.reserve(waiting.lane);
        if waiting.permit.is_none() {
            refused.insert(waiting.lane.id);
        }
    }
}

/// Gives back the places in flight that were taken for these deliveries.
fn give_back(outlet: Option<&dyn Outlet>, deliveries: &[Waiting<'_>]) {
    let Some(outlet) = outlet else { return };
    for waiting in deliveries {
        if let Some(permit) = waiting.permit {
            outlet.give_back(waiting.lane, permit);
        }
    }
}

/// A delivery as it was just written.
fn fresh(waiting: &Waiting<'_>, now: Timestamp) -> Delivery {
    let event = &waiting.new.event;
    Delivery {
        id: DeliveryId { event: waiting.seq, lane: waiting.lane.id },
        lane: waiting.lane.clone(),
        due_at: now,
        attempt: 1,
        failures: 0,
        uncertain: false,
        class: Class::Fresh,
        replay: ReplayNumber::default(),
        identity: event.identity.clone(),
        event_type: event.event_type.clone(),
        received_at: now,
        body: event.body.clone(),
        data: event.data.clone(),
        trace: event.trace.clone(),
    }
}

#[cfg(test)]
mod tests;
