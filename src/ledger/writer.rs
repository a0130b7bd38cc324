//! Group commit: one task writes, and takes together what waits.
//!
//! It never waits on purpose: while one commit is being made durable, the next group gathers by itself.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::backlog::Backlog;
use super::plan::{self, AcceptRequest, Accepted, Known, Plan, Waiting};
use super::{Committed, LedgerError, Outlet, Result, Store};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::{Delivery, DeliveryId, NextState, Settlement};
use crate::domain::gate::Ticket;
use crate::domain::sequence::Sequence;
use crate::reconnect::Pauses;

/// Most commands that wait; senders wait beyond it.
pub(super) const QUEUE_LIMIT: usize = 4_096;
/// About how many rows a commit takes.
const GROUP_ROWS: usize = 2_000;
/// How often a plan may clash with other nodes before its requests are told to come back.
const CLASH_LIMIT: usize = 8;
/// How often the ledger is asked for a sign of life when nothing is written. While it is down, sooner.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the writer is asked to do.
pub(super) enum Command {
    Accept { request: AcceptRequest, answer: oneshot::Sender<Result<Accepted>> },
    Settle(Settlement),
    Close,
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
    /// Why writes fail; `None` while they work.
    pub health: watch::Sender<Option<String>>,
    pub clock: Arc<dyn Clock>,
}

impl Writer {
    /// Writes until it reads [`Command::Close`] or nobody is left to ask.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut unsettled: Vec<Settlement> = Vec::new();
        let mut pauses = Pauses::new();
        let mut open = true;
        while open {
            let mut accepts = Vec::new();
            let down = self.health.borrow().is_some();
            if !down {
                pauses.reset();
            }
            let wait = if down { pauses.pause() } else { HEARTBEAT };
            let first = tokio::time::timeout(wait, commands.recv()).await;
            let idle = first.is_err();
            let mut rows = 0;
            let mut next = first.unwrap_or_default();
            // While settlements can't be written, no more are taken than a group holds: their senders wait.
            while let Some(command) = next.take() {
                match command {
                    Command::Accept { request, answer } => {
                        rows += request.events.len();
                        accepts.push(Pending { request, answer });
                    }
                    Command::Settle(settlement) => {
                        rows += 1;
                        unsettled.push(settlement);
                    }
                    Command::Close => open = false,
                }
                if open && rows < GROUP_ROWS && unsettled.len() < 2 * GROUP_ROWS {
                    next = commands.try_recv().ok();
                }
            }
            open &= !(commands.is_closed() && commands.is_empty());
            if idle || self.health.borrow().is_some() {
                self.heartbeat().await;
            }
            if !accepts.is_empty() || !unsettled.is_empty() {
                self.write(accepts, &mut unsettled).await;
            }
        }
    }

    fn outlet(&self) -> Option<&dyn Outlet> {
        self.outlet.get().map(Box::as_ref)
    }

    async fn heartbeat(&mut self) {
        let beat = self.store.heartbeat(self.clock.now()).await;
        self.report(beat.err().as_ref());
    }

    /// Notes whether writes work, and says so once when that changes.
    fn report(&self, error: Option<&LedgerError>) {
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

    /// Commits requests and settlements together. What can't be settled now stays in `unsettled`.
    async fn write(&mut self, accepts: Vec<Pending>, unsettled: &mut Vec<Settlement>) {
        let (requests, answers): (Vec<_>, Vec<_>) =
            accepts.into_iter().map(|pending| (pending.request, pending.answer)).unzip();
        match self.commit(&requests, unsettled).await {
            Ok((verdicts, stale)) => {
                self.settled(unsettled.drain(..), &stale);
                for (answer, verdict) in answers.into_iter().zip(verdicts) {
                    // A caller that has gone away finds duplicates when it comes again.
                    let _ = answer.send(Ok(verdict));
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
    ) -> Result<(Vec<Accepted>, Vec<DeliveryId>)> {
        let mut known = Known::default();
        for _ in 0..CLASH_LIMIT {
            let now = self.clock.now();
            let mut plan = plan::plan(requests, &known, now, || self.sequence.next(now));
            if plan.writes_nothing() && settlements.is_empty() {
                return Ok((plan.answers, Vec::new()));
            }
            let reserved = reserve(self.outlet(), &mut plan.deliveries);
            match self.store.commit(&plan, settlements).await {
                Ok(Committed::Done { stale }) => {
                    self.committed(&plan, reserved);
                    return Ok((plan.answers, stale));
                }
                Ok(Committed::Clash) => {
                    give_back(self.outlet(), &plan.deliveries, reserved);
                    known.merge(self.store.lookup(&plan).await?);
                }
                Err(error) => {
                    give_back(self.outlet(), &plan.deliveries, reserved);
                    return Err(error);
                }
            }
        }
        Err(LedgerError::Unavailable("too many nodes write the same events at once".into()))
    }

    /// After the commit: deliveries go to the dispatcher, from memory or as a wake-up, and the backlog is told.
    fn committed(&self, plan: &Plan<'_>, mut reserved: VecDeque<Ticket>) {
        let outlet = self.outlet();
        for waiting in &plan.deliveries {
            self.backlog.add(&waiting.lane.tenant, 1);
            let Some(outlet) = outlet else { continue };
            match waiting.handed_over.then(|| reserved.pop_front()).flatten() {
                Some(ticket) => outlet.deliver(fresh(waiting, plan.now), ticket),
                None => outlet.wake(waiting.lane, plan.now),
            }
        }
    }

    /// After the commit: what is done leaves the backlog, what waits again is told to the dispatcher. Not earlier: a
    /// claim made before the commit would find it still held.
    fn settled(&self, settlements: impl Iterator<Item = Settlement>, stale: &[DeliveryId]) {
        for settlement in settlements {
            if stale.contains(&settlement.id) {
                tracing::warn!(delivery = %settlement.id, attempt = settlement.attempt, "lease lost: not settled");
                continue;
            }
            match settlement.next {
                NextState::Delivered { .. } | NextState::Dead { .. } | NextState::Canceled => {
                    self.backlog.add(&settlement.lane.tenant, -1);
                }
                NextState::Pending { due_at, .. } => {
                    if let Some(outlet) = self.outlet() {
                        outlet.wake(&settlement.lane, due_at);
                    }
                }
                NextState::Released => {}
            }
        }
    }
}

/// Takes places in flight for as many deliveries as may go out at once.
fn reserve(outlet: Option<&dyn Outlet>, deliveries: &mut [Waiting<'_>]) -> VecDeque<Ticket> {
    let Some(outlet) = outlet else { return VecDeque::new() };
    let mut tickets = VecDeque::new();
    for waiting in deliveries {
        if let Some(ticket) = outlet.reserve(waiting.lane) {
            waiting.handed_over = true;
            tickets.push_back(ticket);
        }
    }
    tickets
}

fn give_back(outlet: Option<&dyn Outlet>, deliveries: &[Waiting<'_>], tickets: VecDeque<Ticket>) {
    let Some(outlet) = outlet else { return };
    let handed_over = deliveries.iter().filter(|waiting| waiting.handed_over);
    for (waiting, ticket) in handed_over.zip(tickets) {
        outlet.give_back(waiting.lane, ticket);
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
        identity: event.identity.clone(),
        event_type: event.event_type.clone(),
        received_at: now,
        body: event.body.clone(),
        data: event.data.clone(),
    }
}
