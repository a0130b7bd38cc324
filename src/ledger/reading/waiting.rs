//! Deliveries that wait, found without an index by event: the queue is kept by lane and due time, and where in it a
//! delivery may stand follows from when its event was recorded and when its last attempt failed.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{AttemptRow, EventRow, delivery_id};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::{Class, DeliveryId, ReplayNumber};
use crate::domain::event::EventSeq;
use crate::domain::tenant::LaneId;
use crate::ledger::sql::{Database, on};
use crate::ledger::{Held, Ledger, Result, rows};

/// How deep a queue is searched for a delivery that stands where nothing says it should, or for its place in line.
pub(super) const DEPTH: i64 = 10_000;
/// Most queues that are searched so for one event.
const LANES_SEARCHED: usize = 100;

/// How a delivery stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It waits, or is under way.
    Waiting(Waiting),
    /// It is done.
    Done(Done),
}

impl Standing {
    /// Whether it arrived.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Self::Done(done) if done.state == "delivered")
    }
}

/// A delivery that waits, or is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which of its lane's queues it is in.
    pub class: Class,
    /// When it falls or fell due.
    pub due_at: Timestamp,
    /// Claims so far, as far as the ledger knows.
    pub attempt: i64,
    /// Failures so far.
    pub failures: u32,
    /// An attempt may have arrived unseen.
    pub uncertain: bool,
    /// Which replay of it this is.
    pub replay: ReplayNumber,
    /// How long the claim of whoever has it goes on; `None` where nobody has.
    pub claimed_for: Option<Duration>,
}

impl Waiting {
    /// A delivery that nobody has claimed yet.
    fn fresh(due_at: Timestamp) -> Self {
        Self {
            class: Class::Fresh,
            due_at,
            attempt: 0,
            failures: 0,
            uncertain: false,
            replay: ReplayNumber::default(),
            claimed_for: None,
        }
    }

    /// Whether the claim that it was read with has been settled by one of these attempts. `shared`: claims are in the
    /// table, and counted there.
    pub fn is_settled_by(&self, failed: &[AttemptRow], shared: bool) -> bool {
        let last = failed.last().map_or(0, |last| last.attempt);
        self.claimed_for.is_some() && if shared { last >= self.attempt } else { last > self.attempt }
    }

    /// Where delivery `id` stands in the queue.
    pub(in crate::ledger) const fn place(&self, id: DeliveryId) -> Held {
        Held { id, class: self.class, due_at: self.due_at, attempt: self.attempt }
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// `delivered`, `dead`, `canceled`.
    pub state: String,
    /// When.
    pub at: Timestamp,
    /// The number of the claim that it ended with.
    pub attempt: i64,
    /// Failures before.
    pub failures: i64,
    /// How long the last attempt took, in milliseconds.
    pub latency_ms: i64,
    /// The last status answered.
    pub status: Option<i64>,
    /// The receiver's own id for it.
    pub remote_id: Option<String>,
    /// Stored at Svix after an uncertain attempt.
    pub dispatch_unconfirmed: bool,
    /// Why it is dead or canceled.
    pub reason: Option<String>,
}

/// lane, retry, due_at, event, attempt, failures, uncertain, replay, and how long its claim goes on in milliseconds
pub(super) type WaitingTuple = (i64, i64, i64, i64, i64, i64, i64, i64, i64);

pub(super) fn waiting_row(tuple: WaitingTuple) -> (DeliveryId, Waiting) {
    let (lane, retry, due_at, event, attempt, failures, uncertain, replay, left) = tuple;
    let waiting = Waiting {
        class: if retry == 0 { Class::Fresh } else { Class::Retry },
        due_at: Timestamp::from_millis(due_at),
        attempt,
        failures: u32::try_from(failures).unwrap_or(u32::MAX),
        uncertain: uncertain != 0,
        replay: ReplayNumber::from_column(replay),
        claimed_for: u64::try_from(left).ok().filter(|left| *left > 0).map(Duration::from_millis),
    };
    (delivery_id(event, lane), waiting)
}

/// The columns of [`WaitingTuple`]. Only Postgres has leases in the table.
pub(super) const fn waiting_columns(database: &Database) -> &'static str {
    match database {
        Database::Sqlite { .. } => {
            "queue.lane, queue.retry, queue.due_at, queue.event, queue.attempt, queue.failures, queue.uncertain,
             queue.replay, 0"
        }
        Database::Postgres(_) => {
            "queue.lane, queue.retry, queue.due_at, queue.event, queue.attempt, queue.failures, queue.uncertain,
             queue.replay,
             GREATEST(queue.lease_until - (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint), 0)"
        }
    }
}

/// Where an event's deliveries may stand: as fresh as it was recorded, or where an attempt or a replay has put them.
const PLACES: &str = "SELECT id AS lane, 0 AS retry, CAST($2 AS BIGINT) AS due_at FROM lane WHERE tenant = $3
     UNION SELECT id, 1, CAST($2 AS BIGINT) FROM lane WHERE tenant = $3
     UNION SELECT lane, 0, retry_at FROM attempt_log WHERE event = $1 AND retry_at IS NOT NULL
     UNION SELECT lane, 1, retry_at FROM attempt_log WHERE event = $1 AND retry_at IS NOT NULL
     UNION SELECT lane, 1, due_at FROM replay_waiting WHERE event = $1";

impl Ledger {
    /// Adds what only this process knows of claims.
    pub(super) async fn note_claims(&self, waiting: &mut [(DeliveryId, Waiting)]) {
        if self.shared.database.is_shared() {
            return;
        }
        let ids: Vec<_> = waiting.iter().map(|(id, _)| *id).collect();
        let claims = self.shared.store.claims_left(&ids).await;
        for ((_, waiting), left) in waiting.iter_mut().zip(claims) {
            waiting.claimed_for = left;
        }
    }

    /// The deliveries of an event that wait, of which there are `expected` at least, where they stand.
    pub(super) async fn waiting_of(
        &self,
        event: &EventRow,
        expected: usize,
    ) -> Result<Vec<(DeliveryId, Waiting)>> {
        let database = &self.shared.database;
        let mut found = database.waiting_or_unqueued(event).await?;
        if found.len() < expected {
            // Put there by something that has left no trace.
            let lanes = database.lanes_of(&event.identity.tenant).await?;
            for lane in lanes.into_iter().take(LANES_SEARCHED) {
                if !found.iter().any(|(id, _)| id.lane == lane) {
                    found.extend(database.waiting_in_lane(event.seq, lane).await?);
                }
            }
        }
        self.note_claims(&mut found).await;
        Ok(found)
    }

    /// One delivery of an event, where it waits.
    pub(super) async fn waiting_delivery(&self, event: &EventRow, lane: LaneId) -> Result<Option<Waiting>> {
        let database = &self.shared.database;
        let mut found = database.waiting_or_unqueued(event).await?;
        found.retain(|(id, _)| id.lane == lane);
        if found.is_empty() {
            found.extend(database.waiting_in_lane(event.seq, lane).await?);
        }
        self.note_claims(&mut found).await;
        Ok(found.pop().map(|(_, waiting)| waiting))
    }

    /// How many deliveries of its lane and class go before one that waits, [`DEPTH`] at most.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn place_in_line(&self, id: DeliveryId, waiting: &Waiting) -> Result<u64> {
        let sql = "SELECT COUNT(*) FROM (SELECT 1 FROM queue WHERE lane = $1 AND retry = $2
                   AND (due_at, event) < ($3, $4) LIMIT $5) AS before_it";
        let (before,): (i64,) = on!(&self.shared.database, reads, pool => {
            sqlx::query_as(sql)
                .bind(id.lane.0)
                .bind(rows::class_column(waiting.class))
                .bind(waiting.due_at.as_millis())
                .bind(id.event.0)
                .bind(DEPTH)
                .fetch_one(pool)
                .await?
        });
        Ok(before.max(0).unsigned_abs())
    }
}

impl Database {
    /// The deliveries of an event that stand where they may be expected, and those that are not in the queue yet.
    async fn waiting_or_unqueued(&self, event: &EventRow) -> Result<Vec<(DeliveryId, Waiting)>> {
        // Read first: what joins the queue in between is found there.
        let unqueued = self.unqueued_lanes(event).await?;
        let mut found = self.waiting_at_places(event).await?;
        for (lane, due_at) in unqueued {
            if !found.iter().any(|(id, _)| id.lane == lane) {
                found.push((delivery_id(event.seq.0, lane.0), Waiting::fresh(due_at)));
            }
        }
        Ok(found)
    }

    async fn waiting_at_places(&self, event: &EventRow) -> Result<Vec<(DeliveryId, Waiting)>> {
        let columns = waiting_columns(self);
        // One look into the queue's key for each place: a join of another kind would read whole queues.
        let sql = match self {
            Self::Sqlite { .. } => format!(
                "SELECT {columns} FROM ({PLACES}) AS place CROSS JOIN queue
                 ON queue.lane = place.lane AND queue.retry = place.retry AND queue.due_at = place.due_at
                    AND queue.event = $1"
            ),
            Self::Postgres(_) => format!(
                "SELECT found.* FROM ({PLACES}) AS place CROSS JOIN LATERAL (
                     SELECT {columns} FROM queue
                     WHERE queue.lane = place.lane AND queue.retry = place.retry AND queue.due_at = place.due_at
                       AND queue.event = $1 LIMIT 1
                 ) AS found"
            ),
        };
        let rows: Vec<WaitingTuple> = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(event.seq.0)
                .bind(event.received_at.as_millis())
                .bind(&*event.identity.tenant)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(waiting_row).collect())
    }

    async fn waiting_in_lane(&self, event: EventSeq, lane: LaneId) -> Result<Option<(DeliveryId, Waiting)>> {
        let columns = waiting_columns(self);
        for class in Class::ALL {
            let sql = format!(
                "SELECT {columns} FROM (
                     SELECT * FROM queue WHERE lane = $1 AND retry = $2 ORDER BY due_at, event LIMIT $3
                 ) AS queue WHERE queue.event = $4"
            );
            let row: Option<WaitingTuple> = on!(self, reads, pool => {
                sqlx::query_as(AssertSqlSafe(sql))
                    .bind(lane.0)
                    .bind(rows::class_column(class))
                    .bind(DEPTH)
                    .bind(event.0)
                    .fetch_optional(pool)
                    .await?
            });
            if let Some(row) = row {
                return Ok(Some(waiting_row(row)));
            }
        }
        Ok(None)
    }

    async fn lanes_of(&self, tenant: &str) -> Result<Vec<LaneId>> {
        let rows: Vec<(i64,)> = on!(self, reads, pool => {
            sqlx::query_as("SELECT id FROM lane WHERE tenant = $1 ORDER BY id")
                .bind(tenant)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(|(id,)| LaneId(id)).collect())
    }
}
