//! What may go, found and taken away in short steps.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::incarnation::Incarnation;
use super::sql::{Database, on};
use super::{Ledger, Result};
use crate::domain::clock::Timestamp;

/// What goes with an event, beside its outcomes: tables that name it in a column `event`.
const WITH_EVENT: [&str; 4] = ["earlier_outcome", "attempt_log", "repeat", "steering"];
/// What replays that have ended put back, and was tried since: what still waits is told of by it.
const TRIED: &str = "FROM replay_waiting WHERE replay IN (SELECT id FROM replay WHERE ended_at > 0)
     AND NOT EXISTS (SELECT 1 FROM queue WHERE queue.lane = replay_waiting.lane AND queue.retry = 1
                     AND queue.due_at = replay_waiting.due_at AND queue.event = replay_waiting.event)";
/// Rejected messages taken away in one transaction: they may be large.
const REJECTED_AT_ONCE: u32 = 20;

/// An event of which everything is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Its number.
    pub seq: i64,
    /// Its tenant.
    pub tenant: String,
    /// How many deliveries it has.
    pub deliveries: i64,
    /// When the last of them was done, or the event came; in milliseconds since the Unix epoch.
    pub done_at: i64,
}

/// An event's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptIdentity {
    /// The event's tenant.
    pub tenant: String,
    /// Its source.
    pub source: String,
    /// Its id.
    pub id: String,
    /// Its number.
    pub event: i64,
    /// The event itself is gone.
    pub orphan: bool,
}

/// A chore that this node has taken, under the epoch that it had then. Once another node has taken it over, or this one has
/// lost its number, steps with it change nothing.
#[derive(Debug, Clone, Copy)]
pub struct Chore {
    name: &'static str,
    taken_as: Incarnation,
}

impl Chore {
    /// The condition that the chore is still this node's, to follow a `WHERE` clause. None where there is no chore: what an
    /// operator asks for needs none.
    fn fence(chore: Option<&Self>) -> String {
        chore.map_or_else(String::new, |Self { name, taken_as: Incarnation { node, epoch } }| {
            format!(
                " AND EXISTS (SELECT 1 FROM chore JOIN node ON node.number = {node} AND node.epoch = '{epoch}'
                              WHERE chore.name = '{name}' AND chore.worker = {epoch})"
            )
        })
    }
}

impl Ledger {
    /// Takes a chore that was last done at least `every` ago, for `lease`; `None` where it is not this node's to do.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`], [`super::LedgerError::NumberLost`].
    pub async fn take_chore(
        &self,
        name: &'static str,
        every: Duration,
        lease: Duration,
    ) -> Result<Option<Chore>> {
        let now = self.now().await?;
        let done_before =
            now.as_millis().saturating_sub(i64::try_from(every.as_millis()).unwrap_or(i64::MAX));
        let (taken_as, until) = (self.shared.membership.current(), now + lease);
        let database = self.database();
        let known: Option<(i64, i64, i64)> = on!(database, reads, pool => {
            sqlx::query_as("SELECT worker, worker_until, done_at FROM chore WHERE name = $1")
                .bind(name)
                .fetch_optional(pool)
                .await?
        });
        // Looked at first: mostly there is nothing to do.
        if let Some((worker, held_until, done_at)) = known
            && (done_at > done_before || (worker != taken_as.epoch && held_until > now.as_millis()))
        {
            return Ok(None);
        }
        let _turn = database.turn().await;
        let taken = on!(database, writes, pool => {
            sqlx::query(
                "INSERT INTO chore (name, worker, worker_until, done_at)
                 SELECT CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS BIGINT), 0
                 WHERE (SELECT epoch FROM node WHERE number = $6) = $7
                 ON CONFLICT (name) DO UPDATE SET worker = excluded.worker, worker_until = excluded.worker_until
                     WHERE chore.done_at <= $5 AND (chore.worker = excluded.worker OR chore.worker_until <= $4)",
            )
            .bind(name)
            .bind(taken_as.epoch)
            .bind(until.as_millis())
            .bind(now.as_millis())
            .bind(done_before)
            .bind(taken_as.node)
            .bind(taken_as.epoch_text())
            .execute(pool)
            .await?
            .rows_affected()
        });
        if taken == 1 {
            return Ok(Some(Chore { name, taken_as }));
        }
        // Another node was faster, or this one may do nothing any more.
        self.shared.store.prove().await?;
        Ok(None)
    }

    /// Renews the lease on a chore; whether it is still this node's. `false` ends the work on it.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn keep_chore(&self, chore: &Chore, lease: Duration) -> Result<bool> {
        let until = self.now().await? + lease;
        self.set_chore(chore, until, None).await
    }

    /// Notes that a chore is done, and frees it until its next time; whether it was still this node's.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn chore_done(&self, chore: &Chore) -> Result<bool> {
        let now = self.now().await?;
        self.set_chore(chore, Timestamp::from_millis(0), Some(now)).await
    }

    async fn set_chore(&self, chore: &Chore, until: Timestamp, done_at: Option<Timestamp>) -> Result<bool> {
        let database = self.database();
        let _turn = database.turn().await;
        let kept = on!(database, writes, pool => {
            sqlx::query(
                "UPDATE chore SET worker_until = $3, done_at = COALESCE($4, done_at)
                 WHERE name = $1 AND worker = $2 AND (SELECT epoch FROM node WHERE number = $5) = $6",
            )
            .bind(chore.name)
            .bind(chore.taken_as.epoch)
            .bind(until.as_millis())
            .bind(done_at.map(Timestamp::as_millis))
            .bind(chore.taken_as.node)
            .bind(chore.taken_as.epoch_text())
            .execute(pool)
            .await?
            .rows_affected()
        });
        if kept == 0 {
            // Another node has taken it over, or this one may do nothing any more.
            self.shared.store.prove().await?;
        }
        Ok(kept == 1)
    }
}

impl Database {
    /// Events behind `after` up to `last` of which everything is done, among the next `rows`; the others are told with a
    /// time that never comes.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn done_events(&self, after: i64, last: i64, rows: u32) -> Result<Vec<Doomed>> {
        let found: Vec<(i64, String, i64, i64, i64, i64)> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT event.seq, event.tenant, event.received_at, event.destinations,
                        (SELECT COUNT(*) FROM outcome WHERE outcome.event = event.seq),
                        (SELECT COALESCE(MAX(outcome.at), 0) FROM outcome WHERE outcome.event = event.seq)
                 FROM event WHERE event.seq > $1 AND event.seq < $2 ORDER BY event.seq LIMIT $3",
            )
            .bind(after)
            .bind(last)
            .bind(i64::from(rows))
            .fetch_all(pool)
            .await?
        });
        let event =
            |(seq, tenant, received_at, deliveries, done, done_at): (i64, String, i64, i64, i64, i64)| {
                let done_at = if done == deliveries { done_at.max(received_at) } else { i64::MAX };
                Doomed { seq, tenant, deliveries, done_at }
            };
        Ok(found.into_iter().map(event).collect())
    }

    /// Removes events with all that belongs to them; how many. Where something has changed since they were read, a
    /// replay for one, or `chore` is another node's, none of them goes.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: nothing is gone, or (a connection lost during the commit) all of it.
    pub async fn prune_events(&self, events: &[Doomed], chore: Option<&Chore>) -> Result<u64> {
        if events.is_empty() {
            return Ok(0);
        }
        let list: Vec<_> = events.iter().map(|event| event.seq.to_string()).collect();
        let list = list.join(",");
        let unrouted = events.iter().all(|event| event.deliveries == 0);
        let fence = Chore::fence(chore);
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            // Outcomes first: who replays one of them takes it out too, and one of us finds it gone.
            let mut gone: HashMap<i64, i64> = HashMap::new();
            if !unrouted {
                let sql = format!("DELETE FROM outcome WHERE event IN ({list}){fence} RETURNING event");
                let rows: Vec<(i64,)> = sqlx::query_as(AssertSqlSafe(sql))
                    .persistent(false)
                    .fetch_all(&mut *transaction)
                    .await?;
                for (event,) in rows {
                    *gone.entry(event).or_default() += 1;
                }
            }
            let mut pairs = Vec::with_capacity(events.len());
            for event in events {
                if gone.get(&event.seq).copied().unwrap_or_default() != event.deliveries {
                    transaction.rollback().await?;
                    return Ok(0);
                }
                pairs.push(format!("({},{})", event.seq, event.deliveries));
            }
            for table in WITH_EVENT {
                let sql = format!("DELETE FROM {table} WHERE event IN ({list})");
                sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *transaction).await?;
            }
            let sql = format!(
                "DELETE FROM event WHERE seq IN ({list}) AND (seq, destinations) IN (VALUES {}){fence}",
                pairs.join(",")
            );
            let deleted =
                sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *transaction).await?;
            if deleted.rows_affected() != events.len() as u64 {
                transaction.rollback().await?;
                return Ok(0);
            }
            transaction.commit().await?;
            Ok(deleted.rows_affected())
        })
    }

    /// Takes failed attempts away that were made before `before`, among the next `rows` of events before `last`; how many,
    /// and where it goes on.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_attempts(
        &self,
        after: (i64, i64, i64),
        last: i64,
        before: Timestamp,
        rows: u32,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<(u64, Option<(i64, i64, i64)>)> {
        let found: Vec<(i64, i64, i64, i64)> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT event, lane, attempt, at FROM attempt_log
                 WHERE (event, lane, attempt) > ($1, $2, $3) AND event < $4 ORDER BY event, lane, attempt LIMIT $5",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(after.2)
            .bind(last)
            .bind(i64::from(rows))
            .fetch_all(pool)
            .await?
        });
        let next = found.last().map(|(event, lane, attempt, _)| (*event, *lane, *attempt));
        let next = next.filter(|_| found.len() == rows as usize);
        let old = found.iter().filter(|(.., at)| *at < before.as_millis());
        let old: Vec<_> =
            old.map(|(event, lane, attempt, _)| format!("({event},{lane},{attempt})")).collect();
        if dry_run || old.is_empty() {
            return Ok((old.len() as u64, next));
        }
        let sql = format!(
            "DELETE FROM attempt_log WHERE (event, lane, attempt) IN (VALUES {}){}",
            old.join(","),
            Chore::fence(chore)
        );
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let gone = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(pool).await?;
            Ok((gone.rows_affected(), next))
        })
    }

    /// Takes requests' keys away that were made before `before`, among the next `rows`; how many, and where it goes on.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_request_keys(
        &self,
        after: (&str, &str),
        before: Timestamp,
        rows: u32,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<(u64, Option<(String, String)>)> {
        let found: Vec<(String, String, i64)> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT scope, key, created_at FROM request_key WHERE (scope, key) > ($1, $2)
                 ORDER BY scope, key LIMIT $3",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(i64::from(rows))
            .fetch_all(pool)
            .await?
        });
        let next = found.last().map(|(scope, key, _)| (scope.clone(), key.clone()));
        let next = next.filter(|_| found.len() == rows as usize);
        let old: Vec<_> = found.into_iter().filter(|(.., at)| *at < before.as_millis()).collect();
        if dry_run || old.is_empty() {
            return Ok((old.len() as u64, next));
        }
        let places: Vec<_> = (0..old.len()).map(|n| format!("(${},${})", 2 * n + 1, 2 * n + 2)).collect();
        let sql = format!(
            "DELETE FROM request_key WHERE (scope, key) IN (VALUES {}){}",
            places.join(","),
            Chore::fence(chore)
        );
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for (scope, key, _) in &old {
                query = query.bind(scope).bind(key);
            }
            Ok((query.execute(pool).await?.rows_affected(), next))
        })
    }

    /// Takes the oldest rejected messages away, as far as they came before `before`; how many.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_rejected(
        &self,
        before: Timestamp,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<u64> {
        if dry_run {
            let (count,): (i64,) = on!(self, reads, pool => {
                sqlx::query_as("SELECT COUNT(*) FROM rejected WHERE received_at < $1")
                    .bind(before.as_millis())
                    .fetch_one(pool)
                    .await?
            });
            return Ok(count.max(0).unsigned_abs());
        }
        let sql = format!(
            "DELETE FROM rejected WHERE received_at < $1
             AND id IN (SELECT id FROM rejected ORDER BY id LIMIT {REJECTED_AT_ONCE}){}",
            Chore::fence(chore)
        );
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let gone = sqlx::query(AssertSqlSafe(sql)).bind(before.as_millis()).execute(pool).await?;
            Ok(gone.rows_affected())
        })
    }

    /// Takes replays away that ended before `before`, and what nobody counts any more of those that have ended; how many
    /// replays.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_replays(
        &self,
        before: Timestamp,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<u64> {
        let (count,): (i64,) = on!(self, reads, pool => {
            sqlx::query_as("SELECT COUNT(*) FROM replay WHERE ended_at < $1")
                .bind(before.as_millis())
                .fetch_one(pool)
                .await?
        });
        let left = format!("SELECT COUNT(*) {TRIED}");
        let (waiting,): (i64,) = on!(self, reads, pool => {
            sqlx::query_as(AssertSqlSafe(left)).fetch_one(pool).await?
        });
        if dry_run || count + waiting == 0 {
            return Ok(count.max(0).unsigned_abs());
        }
        let fence = Chore::fence(chore);
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            sqlx::query(AssertSqlSafe(format!("DELETE {TRIED}{fence}"))).execute(pool).await?;
            let gone = sqlx::query(AssertSqlSafe(format!("DELETE FROM replay WHERE ended_at < $1{fence}")))
                .bind(before.as_millis())
                .execute(pool)
                .await?;
            Ok(gone.rows_affected())
        })
    }

    /// The next `rows` identities behind `after`, and where it goes on.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn old_identities(
        &self,
        after: (&str, &str, &str),
        rows: u32,
    ) -> Result<(Vec<KeptIdentity>, Option<(String, String, String)>)> {
        let found: Vec<(String, String, String, i64, i64)> = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT tenant, source, id, event,
                        CAST(CASE WHEN EXISTS (SELECT 1 FROM event WHERE event.seq = event_key.event) THEN 0 ELSE 1 END AS BIGINT)
                 FROM event_key WHERE (tenant, source, id) > ($1, $2, $3) ORDER BY tenant, source, id LIMIT $4",
            )
            .bind(after.0)
            .bind(after.1)
            .bind(after.2)
            .bind(i64::from(rows))
            .fetch_all(pool)
            .await?
        });
        let next = found.last().map(|(tenant, source, id, ..)| (tenant.clone(), source.clone(), id.clone()));
        let next = next.filter(|_| found.len() == rows as usize);
        let identity = |(tenant, source, id, event, orphan): (String, String, String, i64, i64)| {
            KeptIdentity { tenant, source, id, event, orphan: orphan != 0 }
        };
        Ok((found.into_iter().map(identity).collect(), next))
    }

    /// Takes identities away; how many.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_identities(&self, identities: &[KeptIdentity], chore: Option<&Chore>) -> Result<u64> {
        if identities.is_empty() {
            return Ok(0);
        }
        let place = |n: usize| format!("(${},${},${})", 3 * n + 1, 3 * n + 2, 3 * n + 3);
        let places: Vec<_> = (0..identities.len()).map(place).collect();
        let sql = format!(
            "DELETE FROM event_key WHERE (tenant, source, id) IN (VALUES {}){}",
            places.join(","),
            Chore::fence(chore)
        );
        let _turn = self.turn().await;
        on!(self, writes, pool => {
            let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
            for identity in identities {
                query = query.bind(&identity.tenant).bind(&identity.source).bind(&identity.id);
            }
            Ok(query.execute(pool).await?.rows_affected())
        })
    }
}
