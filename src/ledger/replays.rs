//! Replays: deliveries that are done go back into the queue, a few in a transaction.
//!
//! What a step moves, and how far it has come, is one transaction: whoever goes on after a crash picks nothing twice and
//! passes over nothing. It does not wait for the disk, so that others wait for it for a shorter time: what a power cut takes
//! back of it is a step that is made again, with the same numbers and so under the same ids. One node at a time works on a
//! replay: it holds a lease on the ledger's clock under its epoch. Every write of that node names the epoch, and every step
//! names the cursor from which it starts: where either differs in the ledger, the step changes nothing.

pub mod progress;
pub mod select;
mod step;
pub mod svix;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use self::select::{Candidate, Cursor, Selection};
use self::step::{Moved, OutcomeTuple};
use super::incarnation::Incarnation;
use super::sql::{Database, on, redoable};
use super::{Ledger, LedgerError, Result, rows};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Class, DeliveryId};
use crate::domain::event::EventSeq;
use crate::domain::tenant::{Lane, LaneId};
use crate::failpoint::failpoint;

/// A replay that is about to begin.
#[derive(Debug, Clone)]
pub struct NewReplay {
    /// `rpl_…`, in the order of time.
    pub id: String,
    /// The one tenant whose events it replays.
    pub tenant: Option<String>,
    /// As it was asked for, as JSON.
    pub filter: String,
    /// What that comes to.
    pub selection: Selection,
    /// Deliveries a second.
    pub pace: u32,
    /// Partners get them under new ids.
    pub new_ids: bool,
    /// Who wants it.
    pub started_by: String,
    /// How many deliveries there are; `None` where that was too many to count.
    pub total: Option<u64>,
}

/// A replay as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRow {
    /// See [`NewReplay`].
    pub id: String,
    /// See [`NewReplay`].
    pub tenant: Option<String>,
    /// See [`NewReplay`].
    pub filter: String,
    /// See [`NewReplay`].
    pub pace: i64,
    /// See [`NewReplay`].
    pub new_ids: bool,
    /// `running`, `paused`, `completed`, `canceled`.
    pub state: String,
    /// See [`NewReplay`].
    pub started_by: String,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was completed or canceled.
    pub ended_at: Option<Timestamp>,
    /// See [`NewReplay`].
    pub total: Option<i64>,
    /// Deliveries put back so far.
    pub queued: i64,
    /// Of these: delivered.
    pub delivered: i64,
    /// Of these: their first attempt has failed.
    pub failed: i64,
    /// Of these: not wanted any more.
    pub canceled: i64,
    /// Unrouted events that no route wants today either.
    pub unroutable: i64,
    /// What holds it up.
    pub waits_for: Option<String>,
}

/// A replay that this node works on.
#[derive(Debug, Clone)]
pub struct ReplayWork {
    /// Its id.
    pub id: String,
    /// What it picks.
    pub selection: Selection,
    /// Deliveries a second.
    pub pace: u32,
    /// Partners get them under new ids.
    pub new_ids: bool,
    /// All up to here has been put back.
    pub cursor: Cursor,
    /// Nothing is left to be put back.
    pub exhausted: bool,
}

/// What a step puts back.
#[derive(Debug)]
pub struct ReplayStep<'a> {
    /// Deliveries.
    pub deliveries: &'a [Candidate],
    /// Unrouted events, and where they go today.
    pub routed: &'a [(i64, Vec<Arc<Lane>>)],
    /// All up to here has been looked at then.
    pub cursor: Cursor,
    /// Nothing lies behind.
    pub exhausted: bool,
}

type ReplayTuple = (
    String,
    Option<String>,
    String,
    i64,
    i64,
    String,
    String,
    i64,
    Option<i64>,
    Option<i64>,
    i64,
    i64,
    i64,
    i64,
    i64,
    Option<String>,
);
type WorkTuple = (String, String, i64, i64, i64, i64, i64);

macro_rules! replays {
    ($rest:literal) => {
        concat!(
            "SELECT id, tenant, filter, pace, new_ids, state, started_by, created_at, ended_at, total, queued, delivered,
                    failed, canceled, unroutable, waits_for FROM replay ",
            $rest
        )
    };
}

fn replay(row: ReplayTuple) -> ReplayRow {
    let (
        id,
        tenant,
        filter,
        pace,
        new_ids,
        state,
        started_by,
        created_at,
        ended_at,
        total,
        queued,
        delivered,
        failed,
        canceled,
        unroutable,
        waits_for,
    ) = row;
    ReplayRow {
        id,
        tenant,
        filter,
        pace,
        new_ids: new_ids != 0,
        state,
        started_by,
        created_at: Timestamp::from_millis(created_at),
        ended_at: ended_at.map(Timestamp::from_millis),
        total,
        queued,
        delivered,
        failed,
        canceled,
        unroutable,
        waits_for,
    }
}

impl Ledger {
    /// Takes replays that run and that no other node works on, or renews this one's lease on them: their ids.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn take_replays(&self, lease: Duration) -> Result<Vec<String>> {
        let database = &self.shared.database;
        if !database.has_running_replay().await? {
            return Ok(Vec::new());
        }
        let now = self.now().await?;
        let taken = database.take_replays(self.shared.membership.current(), now, now + lease).await?;
        if taken.is_empty() {
            // Others work on them, or this node may work on nothing any more.
            self.shared.store.prove().await?;
        }
        Ok(taken)
    }

    /// Notes what holds up a replay that this node works on.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn note_replay(&self, id: &str, waits_for: Option<&str>) -> Result<()> {
        self.shared.database.note_replay(id, waits_for, self.epoch()).await
    }

    /// Counts what a replay of this node's has queued and was tried since; how much that is. Each is a delivery like any
    /// other from then on.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn count_tried(&self, id: &str) -> Result<u64> {
        self.shared.database.count_tried(id, self.epoch()).await
    }

    /// Completes a replay that this node works on and of which nothing is left; whether it did.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn complete_replay(&self, id: &str, now: Timestamp) -> Result<bool> {
        let completed =
            self.shared.database.complete_replay(id, self.shared.membership.current(), now).await?;
        if !completed {
            self.shared.store.prove().await?;
        }
        Ok(completed)
    }

    /// Gives this node's replays back, for another to go on with.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: the leases will end by themselves.
    pub async fn release_replays(&self) -> Result<()> {
        self.shared.database.release_replays(self.epoch()).await
    }

    /// Queues deliveries behind what is fresh, as one step of a replay; how many. `None` where another node works on it,
    /// its cursor has moved since `work` was read, or it does not run any more: then nothing is changed, and the replay
    /// has to be read again.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: nothing is changed, or (a connection lost during the commit) all of it, in which
    /// case the same step once more is refused. [`LedgerError::NumberLost`]: nothing is changed.
    pub async fn replay_step(&self, work: &ReplayWork, step: &ReplayStep<'_>) -> Result<Option<usize>> {
        let due_at = self.shared.clock.now();
        let current = self.shared.membership.current();
        let Some(put_back) = self.shared.database.replay_step(work, step, current, due_at).await? else {
            self.shared.store.prove().await?;
            return Ok(None);
        };
        for (event, lane) in &put_back {
            let id = DeliveryId { event: EventSeq(*event), lane: LaneId(*lane) };
            self.shared.store.appeared(id, Class::Retry, due_at);
        }
        let mut lanes: HashMap<i64, i64> = HashMap::new();
        for (_, lane) in &put_back {
            *lanes.entry(*lane).or_default() += 1;
        }
        for (id, count) in &lanes {
            // A lane of a kind that this version does not know is left for one that does.
            let Some(lane) = self.lane_by_id(LaneId(*id)).await? else { continue };
            self.shared.backlog.add(&lane.tenant, *count);
            if let Some(outlet) = self.shared.outlet.get() {
                outlet.wake(&lane, Class::Retry, due_at);
            }
        }
        if let Some(notices) = &self.shared.notices {
            notices.bell().lanes(lanes.keys().map(|lane| LaneId(*lane)));
        }
        Ok(Some(put_back.len()))
    }
}

impl Database {
    /// Keeps a replay, which runs from now on.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn add_replay(&self, new: &NewReplay, now: Timestamp) -> Result<()> {
        let selection = serde_json::to_string(&new.selection);
        let selection = selection.map_err(|error| LedgerError::Refused(error.to_string()))?;
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            sqlx::query(
                "INSERT INTO replay (id, tenant, filter, selection, pace, new_ids, state, started_by, created_at, total,
                                     cursor_event, cursor_lane, exhausted, queued, delivered, failed, canceled,
                                     unroutable, worker, worker_until)
                 VALUES ($1, $2, $3, $4, $5, $6, 'running', $7, $8, $9, $10, $11, 0, 0, 0, 0, 0, 0, -1, 0)",
            )
            .bind(&new.id)
            .bind(&new.tenant)
            .bind(&new.filter)
            .bind(&selection)
            .bind(i64::from(new.pace))
            .bind(i64::from(new.new_ids))
            .bind(&new.started_by)
            .bind(now.as_millis())
            .bind(new.total.map(|total| i64::try_from(total).unwrap_or(i64::MAX)))
            .bind(new.selection.first_event.saturating_sub(1))
            .bind(i64::MAX)
            .execute(pool)
            .await?;
        });
        Ok(())
    }

    /// A replay; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn replay(&self, id: &str) -> Result<Option<ReplayRow>> {
        let row: Option<ReplayTuple> = on!(self, reads, pool => {
            sqlx::query_as(replays!("WHERE id = $1")).bind(id).fetch_optional(pool).await?
        });
        Ok(row.map(replay))
    }

    /// Replays, newest first, of one tenant or of all, those before `before`.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn replays(
        &self,
        tenant: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ReplayRow>> {
        let rows: Vec<ReplayTuple> = on!(self, reads, pool => {
            sqlx::query_as(replays!(
                "WHERE ($1 IS NULL OR id < $1) AND ($2 IS NULL OR tenant = $2) ORDER BY id DESC LIMIT $3"
            ))
            .bind(before)
            .bind(tenant)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(replay).collect())
    }

    /// Brings a replay from one of the states in `from` to `to`; whether it was in one of them.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn set_replay_state(&self, id: &str, from: &[&str], to: &str, now: Timestamp) -> Result<bool> {
        let ended = matches!(to, "completed" | "canceled").then(|| now.as_millis());
        let from: Vec<_> = from.iter().map(|state| format!("'{state}'")).collect();
        let sql = format!(
            "UPDATE replay SET state = $2, ended_at = $3, waits_for = NULL WHERE id = $1 AND state IN ({})",
            from.join(",")
        );
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let done = sqlx::query(AssertSqlSafe(sql)).bind(id).bind(to).bind(ended).execute(pool).await?;
            Ok(done.rows_affected() == 1)
        })
    }

    async fn note_replay(&self, id: &str, waits_for: Option<&str>, epoch: i64) -> Result<()> {
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            sqlx::query("UPDATE replay SET waits_for = $2 WHERE id = $1 AND state = 'running' AND worker = $3")
                .bind(id)
                .bind(waits_for)
                .bind(epoch)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    async fn complete_replay(&self, id: &str, current: Incarnation, now: Timestamp) -> Result<bool> {
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let done = sqlx::query(
                "UPDATE replay SET state = 'completed', ended_at = $2, waits_for = NULL
                 WHERE id = $1 AND worker = $3 AND state = 'running' AND exhausted = 1
                   AND (SELECT epoch FROM node WHERE number = $4) = $5",
            )
            .bind(id)
            .bind(now.as_millis())
            .bind(current.epoch)
            .bind(current.node)
            .bind(current.epoch_text())
            .execute(pool)
            .await?;
            Ok(done.rows_affected() == 1)
        })
    }

    /// What there is to do for these replays.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn replay_work(&self, id: &str) -> Result<Option<ReplayWork>> {
        let row: Option<WorkTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT id, selection, pace, new_ids, cursor_event, cursor_lane, exhausted FROM replay WHERE id = $1",
            )
            .bind(id)
            .fetch_optional(pool)
            .await?
        });
        let Some((id, selection, pace, new_ids, event, lane, exhausted)) = row else { return Ok(None) };
        let selection = serde_json::from_str(&selection).map_err(|error| {
            LedgerError::Unavailable(format!("what replay {id} picks can't be read: {error}"))
        })?;
        Ok(Some(ReplayWork {
            id,
            selection,
            pace: u32::try_from(pace).unwrap_or(1),
            new_ids: new_ids != 0,
            cursor: (event, lane),
            exhausted: exhausted != 0,
        }))
    }

    async fn has_running_replay(&self) -> Result<bool> {
        let row: Option<(i64,)> = on!(self, reads, pool => {
            sqlx::query_as("SELECT CAST(1 AS BIGINT) FROM replay WHERE state = 'running' LIMIT 1")
                .fetch_optional(pool)
                .await?
        });
        Ok(row.is_some())
    }

    async fn take_replays(
        &self,
        current: Incarnation,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<String>> {
        let _turn = self.turn().await;
        let rows: Vec<(String,)> = on!(self, writes, pool => {
            sqlx::query_as(
                "UPDATE replay SET worker = $1, worker_until = $3
                 WHERE state = 'running' AND (worker = $1 OR worker_until <= $2)
                   AND (SELECT epoch FROM node WHERE number = $4) = $5 RETURNING id",
            )
            .bind(current.epoch)
            .bind(now.as_millis())
            .bind(until.as_millis())
            .bind(current.node)
            .bind(current.epoch_text())
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn release_replays(&self, epoch: i64) -> Result<()> {
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            sqlx::query("UPDATE replay SET worker = -1, worker_until = 0 WHERE worker = $1 AND state = 'running'")
                .bind(epoch)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// See [`Ledger::replay_step`]; event and lane of what was put back.
    async fn replay_step(
        &self,
        work: &ReplayWork,
        step: &ReplayStep<'_>,
        current: Incarnation,
        due_at: Timestamp,
    ) -> Result<Option<Vec<(i64, i64)>>> {
        let take_outcomes = step::take_outcomes(&work.selection, step.deliveries);
        let _turn = self.turn().await;
        redoable!(self, |transaction| {
            let mut moved = Moved::default();
            if let Some(sql) = take_outcomes {
                let gone: Vec<OutcomeTuple> =
                    sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *transaction).await?;
                moved.outcomes(gone);
            }
            if !moved.earlier.is_empty() {
                let sql = moved.keep_earlier(work.new_ids, due_at);
                let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(&work.id);
                for earlier in &moved.earlier {
                    query = query.bind(&earlier.remote_id).bind(&earlier.reason);
                }
                query.execute(&mut *transaction).await?;
            }
            for (event, lanes) in step.routed {
                let routed =
                    sqlx::query("UPDATE event SET destinations = $2 WHERE seq = $1 AND destinations = 0")
                        .bind(event)
                        .bind(rows::count(lanes.len()))
                        .execute(&mut *transaction)
                        .await?;
                moved.route(*event, lanes, routed.rows_affected() == 1);
            }
            if !moved.waiting.is_empty() {
                let sql = moved.put_back(work.new_ids, self.is_shared(), due_at);
                sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *transaction).await?;
                let sql = moved.note_waiting(due_at);
                sqlx::query(AssertSqlSafe(sql))
                    .persistent(false)
                    .bind(&work.id)
                    .execute(&mut *transaction)
                    .await?;
            }
            // Where it was paused, its cursor has moved or another node works on it, nothing of this has happened.
            let ours = sqlx::query(
                "UPDATE replay SET cursor_event = $3, cursor_lane = $4, exhausted = $5, queued = queued + $6,
                                   unroutable = unroutable + $7, waits_for = NULL
                 WHERE id = $1 AND worker = $2 AND state = 'running' AND cursor_event = $8 AND cursor_lane = $9
                   AND (SELECT epoch FROM node WHERE number = $10) = $11",
            )
            .bind(&work.id)
            .bind(current.epoch)
            .bind(step.cursor.0)
            .bind(step.cursor.1)
            .bind(i64::from(step.exhausted))
            .bind(rows::count(moved.waiting.len()))
            .bind(moved.unroutable)
            .bind(work.cursor.0)
            .bind(work.cursor.1)
            .bind(current.node)
            .bind(current.epoch_text())
            .execute(&mut *transaction)
            .await?;
            if ours.rows_affected() != 1 {
                transaction.rollback().await?;
                return Ok(None);
            }
            failpoint!("replay_uncommitted");
            transaction.commit().await?;
            failpoint!("replay_committed");
            Ok(Some(moved.waiting.iter().map(|waiting| (waiting.event, waiting.lane)).collect()))
        })
    }
}
