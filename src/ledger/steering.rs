//! What operators do to deliveries: out again now, or not wanted any more.
//!
//! What waits is steered by a claim of its own: whoever holds a delivery keeps it, whoever comes later finds it taken,
//! and the settlement goes the writer's way like any other, fenced and counted. What is done goes back into the queue
//! in one transaction that takes its outcome out, so that of two retries one finds nothing to do.

use std::time::Duration;

use tokio::sync::oneshot;

use super::plan::AcceptRequest;
use super::reading::{DeliveryRow, Done, Standing, Waiting};
use super::sql::{Database, on};
use super::writer::Command;
use super::{Held, Ledger, Result, stopped};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{
    CancelReason, Class, Delivery, DeliveryId, NextState, ReplayNumber, Settlement,
};
use crate::domain::tenant::Lane;

/// Which replay a delivery belongs to that is done, as [`ReplayNumber::as_column`] has it: the last one that queued it. A
/// retry repeats that replay's attempt, and so carries its key. Parameters as in [`Database::requeue`].
const REPLAY_NUMBER: &str = "(SELECT 2 * number + new_id FROM earlier_outcome WHERE event = $4 AND lane = $1
                              ORDER BY number DESC LIMIT 1)";

/// What became of an operator's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steered {
    /// It is so.
    Done,
    /// Somebody has it: it is being sent, or about to be, for at most so long.
    InFlight(Option<Duration>),
    /// It is not in a state that allows it, or has just changed: it has to be looked at again.
    Changed,
}

/// A delivery that is to go back into the queue.
#[derive(Debug, Clone)]
pub(super) struct Requeue {
    pub id: DeliveryId,
    /// The claim that its outcome names.
    pub attempt: i64,
    /// Its place: in front of what waits in its lane, as old as its event is.
    pub due_at: Timestamp,
    /// Among those that have failed before, which never crowd out fresh ones.
    pub failures: u32,
    pub uncertain: bool,
    pub at: Timestamp,
    /// Who wants it: the name of a key.
    pub by: String,
}

impl Ledger {
    /// Sends a delivery again now: one that is done, or that waits for its time. It carries the key of its last attempt,
    /// also where a replay sent that. `by`: the name of the operator's key.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: it may still happen.
    pub async fn retry(&self, row: &DeliveryRow, by: &str) -> Result<Steered> {
        let Some(lane) = self.lane_by_id(row.id.lane).await? else { return Ok(Steered::Changed) };
        let steered = match &row.standing {
            Standing::Waiting(waiting) => {
                let next = NextState::Pending {
                    due_at: row.received_at,
                    failures: waiting.failures,
                    uncertain: waiting.uncertain,
                };
                if waiting.claimed_for.is_none() && waiting.due_at <= row.received_at {
                    // It stands where it would be put.
                    self.wake_all(&lane, row.received_at);
                    return Ok(Steered::Done);
                }
                self.steer_waiting(row, &lane, waiting, next).await?
            }
            Standing::Done(done) => self.requeue(row, &lane, done, by).await?,
        };
        if steered == Steered::Done {
            if let Standing::Waiting(_) = row.standing {
                self.shared.database.note_steering(row.id, "retry", by, self.shared.clock.now()).await?;
            }
            self.wake_all(&lane, row.received_at);
        }
        Ok(steered)
    }

    /// Takes a delivery that waits out of the queue, for good. `held`: this process has claimed it, and gives that up. `by`:
    /// see [`Self::retry`].
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: it may still happen.
    pub async fn cancel(&self, row: &DeliveryRow, held: Option<&Delivery>, by: &str) -> Result<Steered> {
        let Some(lane) = self.lane_by_id(row.id.lane).await? else { return Ok(Steered::Changed) };
        let Standing::Waiting(waiting) = &row.standing else { return Ok(Steered::Changed) };
        let next = NextState::Canceled { reason: CancelReason::Operator };
        let steered = match held {
            Some(held) => {
                let place =
                    Held { id: held.id, class: held.class, due_at: held.due_at, attempt: held.attempt };
                self.settle_and_wait(&lane, place, (held.failures, held.replay), next).await?
            }
            None => self.steer_waiting(row, &lane, waiting, next).await?,
        };
        if steered == Steered::Done {
            self.shared.database.note_steering(row.id, "cancel", by, self.shared.clock.now()).await?;
        }
        Ok(steered)
    }

    /// Claims a delivery that waits and settles that claim.
    async fn steer_waiting(
        &self,
        row: &DeliveryRow,
        lane: &std::sync::Arc<Lane>,
        waiting: &Waiting,
        next: NextState,
    ) -> Result<Steered> {
        if waiting.claimed_for.is_some() {
            return Ok(Steered::InFlight(waiting.claimed_for));
        }
        let place = waiting.place(row.id);
        let Some(attempt) = self.shared.store.claim_one(&place).await? else { return Ok(Steered::Changed) };
        self.settle_and_wait(lane, Held { attempt, ..place }, (waiting.failures, waiting.replay), next).await
    }

    /// Settles a claim of this process, and waits until that is committed.
    async fn settle_and_wait(
        &self,
        lane: &std::sync::Arc<Lane>,
        claim: Held,
        (failures, replay): (u32, ReplayNumber),
        next: NextState,
    ) -> Result<Steered> {
        let settlement = Settlement {
            replay,
            id: claim.id,
            lane: lane.clone(),
            class: claim.class,
            due_at: claim.due_at,
            attempt: claim.attempt,
            at: self.shared.clock.now(),
            latency_ms: 0,
            failures,
            status: None,
            failure: None,
            next: next.clone(),
        };
        self.settle(settlement).await?;
        // With a request the writer takes all settlements from before it: once it answers this, that is committed.
        let (answer, committed) = oneshot::channel();
        let request = AcceptRequest { events: Vec::new(), strict: false, request_key: None };
        self.command(Command::Accept { request, answer }).await?;
        committed.await.map_err(|_| stopped())??;
        let found = self.delivery(claim.id).await?.map(|(_, row)| row.standing);
        let is_so = match (found, next) {
            (Some(Standing::Done(done)), NextState::Canceled { .. }) => done.attempt == claim.attempt,
            (Some(Standing::Waiting(_)), NextState::Pending { .. }) => true,
            // Claimed and sent meanwhile: all the better.
            (Some(Standing::Done(done)), NextState::Pending { .. }) => done.attempt > claim.attempt,
            _ => false,
        };
        Ok(if is_so { Steered::Done } else { Steered::Changed })
    }

    async fn requeue(&self, row: &DeliveryRow, lane: &Lane, done: &Done, by: &str) -> Result<Steered> {
        let requeue = Requeue {
            id: row.id,
            attempt: done.attempt,
            due_at: row.received_at,
            failures: 1,
            uncertain: done.dispatch_unconfirmed || (done.state == "dead" && done.failures > 0),
            at: self.shared.clock.now(),
            by: by.to_owned(),
        };
        if !self.shared.database.requeue(&requeue).await? {
            return Ok(Steered::Changed);
        }
        self.shared.store.appeared(row.id, Class::of(requeue.failures), requeue.due_at);
        self.shared.backlog.add(&lane.tenant, 1);
        Ok(Steered::Done)
    }

    /// Lets this node's dispatcher, and every other one, look at the lane.
    fn wake_all(&self, lane: &std::sync::Arc<Lane>, due_at: Timestamp) {
        if let Some(outlet) = self.shared.outlet.get() {
            for class in Class::ALL {
                outlet.wake(lane, class, due_at);
            }
        }
        if let Some(notices) = &self.shared.notices {
            notices.bell().look();
        }
    }
}

impl Database {
    /// Moves an outcome back into the queue; false where it is not there any more.
    async fn requeue(&self, again: &Requeue) -> Result<bool> {
        // Only Postgres has leases in the table.
        let (lease_column, lease) = if self.is_shared() { (", lease_until", ", 0") } else { ("", "") };
        let insert = format!(
            "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain, replay{lease_column})
             VALUES ($1, $2, $3, $4, $5, $6, $7, COALESCE({REPLAY_NUMBER}, 0){lease})"
        );
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            // First of all a write: whoever comes second waits here, and finds nothing.
            sqlx::query(
                "INSERT INTO steering (event, lane, at, action, was_state, was_at, was_latency_ms, was_status,
                                       was_remote_id, was_reason, steered_by)
                 SELECT event, lane, $3, 'retry', state, at, latency_ms, status, remote_id, reason, $4
                 FROM outcome WHERE event = $1 AND lane = $2
                 ON CONFLICT (event, lane, at, action) DO NOTHING",
            )
            .bind(again.id.event.0)
            .bind(again.id.lane.0)
            .bind(again.at.as_millis())
            .bind(&again.by)
            .execute(&mut *transaction)
            .await?;
            let gone = sqlx::query("DELETE FROM outcome WHERE event = $1 AND lane = $2 AND attempts = $3")
                .bind(again.id.event.0)
                .bind(again.id.lane.0)
                .bind(again.attempt)
                .execute(&mut *transaction)
                .await?;
            if gone.rows_affected() != 1 {
                transaction.rollback().await?;
                return Ok(false);
            }
            sqlx::query(sqlx::AssertSqlSafe(insert))
                .bind(again.id.lane.0)
                .bind(super::rows::class_column(Class::of(again.failures)))
                .bind(again.due_at.as_millis())
                .bind(again.id.event.0)
                .bind(again.attempt)
                .bind(i64::from(again.failures))
                .bind(i64::from(again.uncertain))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
        });
        Ok(true)
    }

    async fn note_steering(&self, id: DeliveryId, action: &str, by: &str, at: Timestamp) -> Result<()> {
        on!(self, writes, pool => {
            sqlx::query(
                "INSERT INTO steering (event, lane, at, action, steered_by) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (event, lane, at, action) DO NOTHING",
            )
            .bind(id.event.0)
            .bind(id.lane.0)
            .bind(at.as_millis())
            .bind(action)
            .bind(by)
            .execute(pool)
            .await?;
        });
        Ok(())
    }
}
