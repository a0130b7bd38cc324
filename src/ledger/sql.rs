//! The shared text: what both databases answer in the same words.
//!
//! `$n` parameters, TEXT, 64-bit integers and bytes, epoch milliseconds, `ON CONFLICT` and `RETURNING` mean the same
//! in both, and the one conformance suite runs every statement here against both.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{SqliteConnection, SqlitePool};

use super::Result;
use super::postgres::PostgresPools;
use super::sqlite::LimitedReads;
use crate::domain::clock::Timestamp;
use crate::domain::event::EventSeq;
use crate::domain::tenant::{Destination, Lane, LaneId};

/// Connections, by what they are for: what is slow holds none that the hot path needs.
#[derive(Debug, Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite {
        /// Read-only connections of the hot path.
        hot: SqlitePool,
        /// Read-only connections for operators' reads, with a time limit.
        reads: LimitedReads,
        /// Read-only connections for chores: retention, replays, audits.
        chores: SqlitePool,
        /// One connection for all writes beside the writer's.
        writes: SqlitePool,
        /// One whose commits do not wait for the disk: what it writes is durable with the next commit of the others, and is
        /// what may be done again after a power cut.
        redoable: SqlitePool,
        /// The right to write: see [`on`].
        turn: Turn,
    },
    /// A Postgres database.
    Postgres(PostgresPools),
}

/// The connection of SQLite's writer, while it does not write. Everything that writes locks this first: the lock is fair,
/// while SQLite's own way to wait for another writer is to sleep for longer and longer, behind everyone who comes later.
pub(super) type Turn = Arc<tokio::sync::Mutex<Option<SqliteConnection>>>;

/// Runs one body against either database, on the connections for its kind of work:
///
/// - `hot_reads`, `hot_writes`: what accepting, claiming, sending and settling wait for;
/// - `reads`: what operators read, with a time limit;
/// - `lists`: the same where the answer may lag, from the read replica where there is one;
/// - `chore_reads`: what background tasks read;
/// - `writes`: all other writes.
///
/// A write on SQLite takes its turn with the writer, so a body must not run another one.
macro_rules! on {
    ($database:expr, hot_reads, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@read $database, hot, |pools| &pools.hot, $pool => $body)
    };
    ($database:expr, chore_reads, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@read $database, chores, |pools| &pools.chores, $pool => $body)
    };
    ($database:expr, reads, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@limited $database, |pools| &pools.reads, $pool => $body)
    };
    ($database:expr, lists, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@limited $database, |pools| pools.lists(), $pool => $body)
    };
    ($database:expr, hot_writes, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@write $database, |pools| &pools.hot, $pool => $body)
    };
    ($database:expr, writes, $pool:ident => $body:expr) => {
        $crate::ledger::sql::on!(@write $database, |pools| &pools.chores, $pool => $body)
    };
    (@read $database:expr, $sqlite:ident, |$pools:ident| $postgres:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite { $sqlite: $pool, .. } => $body,
            Database::Postgres($pools) => {
                let $pool = $postgres;
                $body
            }
        }
    };
    (@limited $database:expr, |$pools:ident| $postgres:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite { reads, .. } => {
                let _admitted = reads.admitted().await;
                let $pool = reads.pool();
                $body
            }
            Database::Postgres($pools) => {
                let $pool = $postgres;
                $body
            }
        }
    };
    (@write $database:expr, |$pools:ident| $postgres:expr, $pool:ident => $body:expr) => {
        match $database {
            Database::Sqlite { writes: $pool, turn, .. } => {
                let _turn = turn.lock().await;
                $body
            }
            Database::Postgres($pools) => {
                let $pool = $postgres;
                $body
            }
        }
    };
}

/// Runs one body in a transaction that ends it itself, and whose commit does not wait for the disk: it is durable with the
/// next commit that does. For what may be done again after a power cut.
macro_rules! redoable {
    ($database:expr, |$transaction:ident| $body:expr) => {
        match $database {
            Database::Sqlite { redoable, turn, .. } => {
                let _turn = turn.lock().await;
                let mut $transaction = redoable.begin().await?;
                $body
            }
            Database::Postgres(pools) => {
                let mut $transaction = pools.chores.begin().await?;
                sqlx::query("SET LOCAL synchronous_commit = off").execute(&mut *$transaction).await?;
                $body
            }
        }
    };
}

/// Runs one body in a transaction that begins with the next revision number (which keeps changes apart), and answers
/// the second part of what the body yields. Where the first part is false, nothing is changed.
macro_rules! change {
    ($database:expr, |$transaction:ident, $revision:ident| $body:expr) => {
        $crate::ledger::sql::on!($database, writes, pool => {
            let mut $transaction = pool.begin().await?;
            let ($revision,): (i64,) =
                sqlx::query_as("UPDATE revision SET number = number + 1 RETURNING number")
                    .fetch_one(&mut *$transaction)
                    .await?;
            let (changed, answer) = $body;
            if changed {
                $transaction.commit().await?;
            } else {
                $transaction.rollback().await?;
            }
            answer
        })
    };
}

pub(super) use {change, on, redoable};

/// What became of an event, delivery by delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Deliveries that wait or are claimed.
    pub pending: i64,
    /// Deliveries done, by state.
    pub done: HashMap<String, i64>,
    /// Events recorded.
    pub events: i64,
    /// Events that had no destination.
    pub unrouted: i64,
    /// Deliveries created.
    pub created: i64,
}

/// A loose index scan: three looks into the queue's key for each lane with work, however deep it is.
pub(super) const BUSY_LANES: &str = "WITH RECURSIVE busy (lane) AS (
         SELECT (SELECT MIN(lane) FROM queue WHERE lane > $1)
         UNION ALL
         SELECT (SELECT MIN(queue.lane) FROM queue WHERE queue.lane > busy.lane)
         FROM busy WHERE busy.lane IS NOT NULL
     )
     SELECT lane, (SELECT MIN(due_at) FROM queue WHERE queue.lane = busy.lane AND retry = 0),
            (SELECT MIN(due_at) FROM queue WHERE queue.lane = busy.lane AND retry = 1)
     FROM busy WHERE lane IS NOT NULL LIMIT $2";

type OutcomeTuple = (String, i64, i64, Option<i64>, Option<String>, i64, Option<String>);

impl Database {
    /// Whether other processes may write to it too.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { hot, reads, chores, writes, redoable, .. } => {
                for pool in [hot, reads.pool(), chores, writes, redoable] {
                    pool.close().await;
                }
            }
            Self::Postgres(pools) => pools.close().await,
        }
    }

    /// The lane of `tenant` for `destination`, made where it is new. One that was noted as unused counts as used again.
    pub(super) async fn make_lane(&self, destination: &str, tenant: &str) -> Result<LaneId> {
        let known: Option<(i64,)> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT id FROM lane WHERE destination = $1 AND tenant = $2 AND unused_since IS NULL")
                .bind(destination)
                .bind(tenant)
                .fetch_optional(pool)
                .await?
        });
        if let Some((id,)) = known {
            return Ok(LaneId(id));
        }
        on!(self, hot_writes, pool => {
            let (id,): (i64,) = sqlx::query_as(
                "INSERT INTO lane (destination, tenant) VALUES ($1, $2)
                 ON CONFLICT (destination, tenant) DO UPDATE SET unused_since = NULL RETURNING id",
            )
            .bind(destination)
            .bind(tenant)
            .fetch_one(pool)
            .await?;
            Ok(LaneId(id))
        })
    }

    /// The lane with this number; `None` where its destination is of a kind this version does not know.
    pub(super) async fn lane(&self, id: LaneId) -> Result<Option<Lane>> {
        let row: Option<(String, String)> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT destination, tenant FROM lane WHERE id = $1")
                .bind(id.0)
                .fetch_optional(pool)
                .await?
        });
        Ok(row.and_then(|(destination, tenant)| {
            let destination = Arc::new(Destination::parse(&destination)?);
            Some(Lane { id, destination, tenant: tenant.into() })
        }))
    }

    /// Whose lanes lead to a destination.
    pub(super) async fn lane_tenants(&self, destination: &str) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = on!(self, hot_reads, pool => {
            sqlx::query_as("SELECT tenant FROM lane WHERE destination = $1")
                .bind(destination)
                .fetch_all(pool)
                .await?
        });
        Ok(rows.into_iter().map(|(tenant,)| tenant).collect())
    }

    /// Lanes that have deliveries waiting, from the one after `after`, each with when the first of
    /// each class falls due.
    pub(super) async fn busy_lanes(
        &self,
        after: Option<LaneId>,
        limit: u32,
    ) -> Result<Vec<(LaneId, [Option<Timestamp>; 2])>> {
        let rows: Vec<(i64, Option<i64>, Option<i64>)> = on!(self, hot_reads, pool => {
            sqlx::query_as(BUSY_LANES)
                .bind(after.map_or(0, |lane| lane.0))
                .bind(i64::from(limit))
                .fetch_all(pool)
                .await?
        });
        let first_due = |millis: Option<i64>| millis.map(Timestamp::from_millis);
        let heads = |(lane, fresh, retry)| (LaneId(lane), [first_due(fresh), first_due(retry)]);
        Ok(rows.into_iter().map(heads).collect())
    }

    /// Deliveries waiting, by tenant.
    pub(super) async fn count_waiting(&self) -> Result<HashMap<Arc<str>, i64>> {
        let rows: Vec<(String, i64)> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "SELECT lane.tenant, waiting.n
                 FROM (SELECT lane, COUNT(*) AS n FROM queue GROUP BY lane) AS waiting
                 JOIN lane ON lane.id = waiting.lane
                 UNION ALL
                 SELECT tenant, CAST(SUM(deliveries) AS BIGINT) FROM fan_out GROUP BY tenant",
            )
            .fetch_all(pool)
            .await?
        });
        let mut counts = HashMap::new();
        for (tenant, waiting) in rows {
            *counts.entry(Arc::from(tenant)).or_insert(0) += waiting;
        }
        Ok(counts)
    }

    /// The account of all events and deliveries. Reads whole tables: for tests and audits.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn progress(&self) -> Result<Progress> {
        // One statement: all of it is of one moment, however much is settled meanwhile.
        let rows: Vec<(String, i64)> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "SELECT 'events', COUNT(*) FROM event
                 UNION ALL SELECT 'unrouted', COUNT(*) FROM event WHERE destinations = 0
                 UNION ALL SELECT 'created', CAST(COALESCE(SUM(destinations), 0) AS BIGINT) FROM event
                 UNION ALL SELECT 'pending', (SELECT COUNT(*) FROM queue)
                     + (SELECT CAST(COALESCE(SUM(deliveries), 0) AS BIGINT) FROM fan_out)
                 UNION ALL SELECT state, COUNT(*) FROM outcome GROUP BY state",
            )
            .fetch_all(pool)
            .await?
        });
        let mut counts: HashMap<String, i64> = rows.into_iter().collect();
        let mut take = |name| counts.remove(name).unwrap_or_default();
        let (events, unrouted, created) = (take("events"), take("unrouted"), take("created"));
        Ok(Progress { pending: take("pending"), done: counts, events, unrouted, created })
    }

    /// How the deliveries of one event stand: state, failures, reason and the receiver's id for each that is done.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn outcomes(&self, tenant: &str, event_id: &str) -> Result<Vec<OutcomeRow>> {
        let rows: Vec<OutcomeTuple> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT outcome.state, outcome.attempts, outcome.failures, outcome.status, outcome.remote_id,
                        outcome.dispatch_unconfirmed, outcome.reason
                 FROM event_key JOIN outcome ON outcome.event = event_key.event
                 WHERE event_key.tenant = $1 AND event_key.id = $2",
            )
            .bind(tenant)
            .bind(event_id)
            .fetch_all(pool)
            .await?
        });
        let rows = rows.into_iter().map(
            |(state, attempts, failures, status, remote_id, dispatch_unconfirmed, reason)| OutcomeRow {
                state,
                attempts,
                failures,
                status,
                remote_id,
                dispatch_unconfirmed: dispatch_unconfirmed != 0,
                reason,
            },
        );
        Ok(rows.collect())
    }

    /// The failed attempts of one event, oldest first: attempt number, code and detail.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn attempt_log(&self, tenant: &str, event_id: &str) -> Result<Vec<(i64, String, String)>> {
        on!(self, reads, pool => {
            Ok(sqlx::query_as(
                "SELECT attempt_log.attempt, attempt_log.code, attempt_log.detail
                 FROM event_key JOIN attempt_log ON attempt_log.event = event_key.event
                 WHERE event_key.tenant = $1 AND event_key.id = $2 ORDER BY attempt_log.attempt",
            )
            .bind(tenant)
            .bind(event_id)
            .fetch_all(pool)
            .await?)
        })
    }

    /// The stored body of an event, byte for byte; `None` where there is none.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn body(&self, tenant: &str, source: &str, event_id: &str) -> Result<Option<Vec<u8>>> {
        let row: Option<(Vec<u8>,)> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT event.body FROM event_key JOIN event ON event.seq = event_key.event
                 WHERE event_key.tenant = $1 AND event_key.source = $2 AND event_key.id = $3",
            )
            .bind(tenant)
            .bind(source)
            .bind(event_id)
            .fetch_optional(pool)
            .await?
        });
        Ok(row.map(|(body,)| body))
    }

    /// Grows with every change of tenants and keys.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn revision(&self) -> Result<i64> {
        on!(self, hot_reads, pool => {
            let (number,): (i64,) = sqlx::query_as("SELECT number FROM revision").fetch_one(pool).await?;
            Ok(number)
        })
    }

    /// The largest event number in use; 0 where there is no event.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn largest_event(&self) -> Result<i64> {
        Ok(self.largest_seq().await?.map_or(0, |seq| seq.0))
    }

    /// The largest event number in use.
    pub(super) async fn largest_seq(&self) -> Result<Option<EventSeq>> {
        on!(self, hot_reads, pool => {
            let (seq,): (Option<i64>,) = sqlx::query_as("SELECT MAX(seq) FROM event").fetch_one(pool).await?;
            Ok(seq.map(EventSeq))
        })
    }
}

/// A delivery that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRow {
    /// `delivered`, `dead`, `canceled`.
    pub state: String,
    /// Attempts made.
    pub attempts: i64,
    /// Failures among them.
    pub failures: i64,
    /// The last status answered.
    pub status: Option<i64>,
    /// The receiver's own id for it.
    pub remote_id: Option<String>,
    /// Stored at Svix after an uncertain attempt.
    pub dispatch_unconfirmed: bool,
    /// Why it is dead.
    pub reason: Option<String>,
}
