//! Group commit: one task writes, and takes together what waits.
//!
//! Nobody who waits for an answer waits on purpose: while one commit is being made durable, the next group gathers by itself.
//! Settlements, for which nobody waits, wait a moment for others where more are under way.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::backlog::Backlog;
use super::incarnation::Membership;
use super::notices::Bell;
use super::plan::{self, AcceptRequest, Accepted, Known, Plan, Waiting};
use super::repeats::Repeats;
use super::{ClaimId, Committed, LedgerError, Outlet, Result, Store, claim_of};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Class, Delivery, DeliveryId, NextState, ReplayNumber, Settlement};
use crate::domain::hash::FastSet;
use crate::domain::scheduler::Permit;
use crate::domain::sequence::Sequence;
use crate::domain::tenant::LaneId;
use crate::failpoint::failpoint;
use crate::reconnect::Pauses;
use crate::telemetry::CommitMetrics;

/// Most commands that wait, and most settlements.
const QUEUE_LIMIT: usize = 4_096;
/// About how many events a commit takes.
const GROUP_ROWS: usize = 2_000;
/// How many bytes of bodies: Postgres refuses a statement of 1 GiB.
const GROUP_BYTES: usize = 32 << 20;
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
    /// Tells other nodes; `None` where there can't be any.
    pub bell: Option<Arc<Bell>>,
    /// Why writes fail; `None` while they work.
    pub health: watch::Sender<Option<String>>,
    /// Which node this is.
    pub membership: Arc<Membership>,
    pub last_beat: Moment,
    /// See [`SETTLE_TOGETHER`].
    pub settle_together: Duration,
    pub clock: Arc<dyn Clock>,
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
                self.rows += request.events.len();
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
            let wait = if down { pauses.pause() } else { HEARTBEAT };
            let idle = tokio::select! {
                command = inbox.commands.recv() => {
                    group.take(command);
                    false
                }
                Some(settlement) = inbox.settlements.recv(), if has_room(&unsettled) => {
                    unsettled.push(settlement);
                    false
                }
                () = self.membership.lost() => true,
                () = tokio::time::sleep(wait) => true,
            };
            let more_to_come = || self.outlet().is_some_and(Outlet::is_sending);
            if !idle && !down && group.accepts.is_empty() && !group.last && more_to_come() {
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
            }
        }
    }

    fn outlet(&self) -> Option<&dyn Outlet> {
        self.outlet.get().map(Box::as_ref)
    }

    /// Asks the ledger for a sign of life where it is time for one, busy or not: the node's number hangs on it.
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
        self.report(beat.as_ref().err());
        if beat.is_ok() {
            self.last_beat = moment;
        }
        beat
    }

    /// Takes another number after this one was lost. What waits to be written goes on under it.
    async fn rejoin(&mut self) -> Result<()> {
        self.sequence = self.store.rejoin().await?;
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
        let mut claims = FastSet::with_capacity_and_hasher(unsettled.len(), Default::default());
        unsettled.retain(|settlement| claims.insert(claim_of(settlement)));
        let (requests, answers): (Vec<_>, Vec<_>) =
            accepts.into_iter().map(|pending| (pending.request, pending.answer)).unzip();
        let committed = match alive {
            Ok(()) => self.commit(&requests, unsettled).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok((verdicts, stale)) => {
                self.settled(unsettled, &stale);
                unsettled.clear();
                for (answer, verdict) in answers.into_iter().zip(verdicts) {
                    // A caller that has gone away finds duplicates when it comes again.
                    let _ = answer.send(Ok(verdict));
                    failpoint!("answered");
                }
                self.report(None);
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
            let mut plan = plan::plan(requests, &known, now, || self.sequence.next(now));
            // Who is refused for conflicts in the request itself is told of those with what is stored, too. Nothing of it is
            // written that could clash with that.
            if plan.refuses() && !is_known {
                known.merge(self.lookup(requests).await?);
                is_known = true;
                continue;
            }
            if plan.writes_nothing() && settlements.is_empty() {
                self.repeats.note(&plan.repeats, now);
                return Ok((plan.answers, HashSet::new()));
            }
            let reserved = reserve(self.outlet(), &mut plan.deliveries);
            let began = self.clock.moment();
            match self.store.commit(&plan, settlements).await {
                Ok(Committed::Done { stale }) => {
                    self.measure(began, plan.inserts.len());
                    self.repeats.note(&plan.repeats, now);
                    self.committed(&plan, reserved);
                    return Ok((plan.answers, stale));
                }
                Ok(Committed::Clash) => {
                    give_back(self.outlet(), &plan.deliveries, reserved);
                    known.merge(self.lookup(requests).await?);
                    is_known = true;
                }
                Err(LedgerError::NumberLost(_)) => {
                    give_back(self.outlet(), &plan.deliveries, reserved);
                    self.rejoin().await?;
                }
                Err(error) => {
                    give_back(self.outlet(), &plan.deliveries, reserved);
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
    fn committed(&self, plan: &Plan<'_>, mut reserved: VecDeque<Permit>) {
        let outlet = self.outlet();
        let mut woken = FastSet::default();
        self.backlog.add_each(plan.deliveries.iter().map(|waiting| &waiting.lane.tenant), 1);
        for waiting in &plan.deliveries {
            let Some(outlet) = outlet else { break };
            match waiting.handed_over.then(|| reserved.pop_front()).flatten() {
                Some(permit) => outlet.deliver(fresh(waiting, plan.now), permit),
                None if woken.insert(waiting.lane.id) => outlet.wake(waiting.lane, Class::Fresh, plan.now),
                None => {}
            }
        }
        if let Some(bell) = &self.bell {
            let waiting = plan.deliveries.iter().filter(|waiting| !waiting.handed_over);
            bell.lanes(waiting.map(|waiting| waiting.lane.id));
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

/// Takes places in flight for as many deliveries as may go out at once.
fn reserve(outlet: Option<&dyn Outlet>, deliveries: &mut [Waiting<'_>]) -> VecDeque<Permit> {
    let Some(outlet) = outlet else { return VecDeque::new() };
    let mut permits = VecDeque::new();
    // Whoever is behind one that waits waits, too.
    let mut refused: FastSet<LaneId> = FastSet::default();
    for waiting in deliveries {
        if refused.contains(&waiting.lane.id) {
            continue;
        }
        match outlet.reserve(waiting.lane) {
            Some(permit) => {
                waiting.handed_over = true;
                permits.push_back(permit);
            }
            None => _ = refused.insert(waiting.lane.id),
        }
    }
    permits
}

fn give_back(outlet: Option<&dyn Outlet>, deliveries: &[Waiting<'_>], permits: VecDeque<Permit>) {
    let Some(outlet) = outlet else { return };
    let handed_over = deliveries.iter().filter(|waiting| waiting.handed_over);
    for (waiting, permit) in handed_over.zip(permits) {
        outlet.give_back(waiting.lane, permit);
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
