//! What other nodes on the same ledger tell: lanes with work, and gates that have closed or opened.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::delivery::Class;
use crate::domain::gate::CloseReason;
use crate::domain::scheduler::GateId;
use crate::domain::tenant::LaneId;
use crate::jobs::Job;
use crate::ledger::{ClosedGate, Notice};

/// How often the ledger's gates are read for what was not heard.
const LOOK_AT_GATES_EVERY: Duration = Duration::from_millis(500);
/// Two readings of one closing differ by as much as the ledger takes to answer: not worth a second closing.
const SLACK: Duration = Duration::from_millis(50);

/// The closings that were read from the ledger and have not passed: each is acted upon once.
pub(super) type SeenGates = HashMap<GateId, Seen>;

/// One closing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// When it ends on the ledger's clock, which tells it from the next.
    ledger_until: Timestamp,
    /// The same on ours.
    until: Moment,
}

impl Dispatcher {
    /// Hears what other nodes tell, and looks at the gates from time to time, until `stop` is cancelled. Does nothing
    /// where the ledger is not shared.
    pub async fn follow_neighbours(&self, stop: CancellationToken) {
        if !self.shared.ledger.database().is_shared() {
            return;
        }
        let mut notices = self.shared.ledger.notices();
        let mut gates_at = self.shared.clock.moment();
        self.shared.ledger.jobs().started(Job::Gates, Some(4 * LOOK_AT_GATES_EVERY));
        loop {
            let now = self.shared.clock.moment();
            if gates_at <= now {
                self.look_at_gates(false).await;
                gates_at = self.shared.clock.moment() + LOOK_AT_GATES_EVERY;
            }
            let wait = self.shared.clock.moment().until(gates_at);
            let told = tokio::select! {
                told = hear(&mut notices) => told,
                () = tokio::time::sleep(wait) => continue,
                () = stop.cancelled() => return,
            };
            match told {
                Some(Notice::Lanes(lanes)) => self.wake_lanes(&lanes).await,
                Some(Notice::Look) => self.shared.look(),
                Some(Notice::Gates) => gates_at = Moment::default(),
                Some(Notice::Revision) => {}
                None => {
                    gates_at = Moment::default();
                    self.shared.look();
                }
            }
        }
    }

    /// Closes the gates that the ledger says are closed: all of them at the start, later those that others have closed.
    pub(super) async fn look_at_gates(&self, at_start: bool) {
        let closed = self.shared.ledger.closed_gates().await;
        self.shared.ledger.jobs().ran(Job::Gates, &closed);
        let Ok(closed) = closed else { return };
        let now = self.shared.clock.moment();
        let mut seen = std::mem::take(&mut *self.shared.seen_gates());
        let mut still_closed = SeenGates::new();
        for row in closed {
            let (Some(gate), Some(reason)) = (GateId::parse(&row.gate), CloseReason::parse(&row.reason))
            else {
                continue;
            };
            let this = Seen { ledger_until: row.until, until: now + row.remaining };
            let known = seen.remove(&gate).is_some_and(|seen| seen.ledger_until == row.until);
            if at_start || !(known || row.own) {
                self.shared.close_as_told(&gate, &row, reason, now).await;
            }
            still_closed.insert(gate, this);
        }
        // What was to stay closed for longer and is no more: somebody's probe came through.
        for (gate, closing) in seen {
            if now + SLACK < closing.until {
                self.shared.probe_early(&gate, now);
            }
        }
        *self.shared.seen_gates() = still_closed;
    }

    async fn wake_lanes(&self, lanes: &[LaneId]) {
        for id in lanes {
            match self.shared.ledger.lane_by_id(*id).await {
                Ok(Some(lane)) => {
                    let now = self.shared.clock.now();
                    self.shared.scheduler().wake(&lane, Class::Fresh, now, now);
                }
                Ok(None) => {}
                Err(error) => return tracing::debug!(%error, "a lane could not be read"),
            }
        }
        self.shared.changed.notify_one();
    }
}

impl super::Shared {
    /// Closes a gate as another node has, where it is open or would open earlier, and gives back what waits behind it.
    async fn close_as_told(&self, gate: &GateId, row: &ClosedGate, reason: CloseReason, now: Moment) {
        let until = now + row.remaining;
        let recalled = {
            let mut scheduler = self.scheduler();
            let opens_at =
                scheduler.gates().find(|(id, _)| *id == gate).and_then(|(_, state)| state.opens_at());
            if opens_at.is_some_and(|opens_at| until <= opens_at + SLACK) {
                return;
            }
            scheduler.close_gate(gate.clone(), until, reason);
            scheduler.recall(gate)
        };
        let wait_ms = u64::try_from(row.remaining.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            gate = gate.as_str(),
            reason = reason.as_str(),
            wait_ms,
            "gate closed, as the ledger says"
        );
        if !recalled.is_empty() {
            self.release(&recalled).await;
        }
        self.changed.notify_one();
    }

    /// Lets a probe through at once behind a gate that is closed for failures or refused credentials.
    fn probe_early(&self, gate: &GateId, now: Moment) {
        let mut scheduler = self.scheduler();
        let state = scheduler
            .gates()
            .find(|(id, _)| *id == gate)
            .map(|(_, state)| (state.reason(), state.opens_at()));
        let Some((Some(reason @ (CloseReason::Failing | CloseReason::Unauthorized)), Some(_))) = state else {
            return;
        };
        scheduler.close_gate(gate.clone(), now, reason);
        drop(scheduler);
        tracing::debug!(gate = gate.as_str(), "another node got through: trying now");
        self.changed.notify_one();
    }
}

/// The next notice; `None` where some were missed.
async fn hear(notices: &mut Receiver<Notice>) -> Option<Notice> {
    match notices.recv().await {
        Ok(notice) => Some(notice),
        Err(RecvError::Lagged(_)) => None,
        // The ledger, which we hold, keeps the other end.
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
