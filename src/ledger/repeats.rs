//! How often events came again: as they are, or under an identity that is taken.
//!
//! Counted in memory, where the writer decides about each event anyway, and written about once a second: an event that
//! is new costs nothing, and one that came again no write of its own. What a crash takes with it is the count of at
//! most that second; the verdicts were given all the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::plan::Repeat;
use super::sql::Database;
use super::{Ledger, Result};
use crate::domain::clock::Timestamp;
use crate::domain::event::Identity;
use crate::jobs::Job;

/// How long counts gather before they are written.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait where nothing gathers.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// Most events whose repeats gather; of more in that time, the rest go uncounted.
const GATHERED_LIMIT: usize = 4_096;
/// Rows in one statement: the writer waits for no more than that.
const CHUNK: usize = 256;

/// What is to be added to one event's counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Count {
    duplicates: i64,
    duplicate_at: Option<Timestamp>,
    conflicts: i64,
    conflict_at: Option<Timestamp>,
    conflict_type: Option<String>,
}

/// What has gathered since it was written.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// In order: two nodes write the same events one after another.
    gathered: Mutex<BTreeMap<Identity, Count>>,
    some: Notify,
}

impl Repeats {
    /// Counts what came again.
    pub fn note(&self, repeats: &[Repeat<'_>], now: Timestamp) {
        if repeats.is_empty() {
            return;
        }
        let mut gathered = self.gathered();
        for repeat in repeats {
            let identity = &repeat.event.identity;
            if gathered.len() >= GATHERED_LIMIT && !gathered.contains_key(identity) {
                continue;
            }
            let count = gathered.entry(identity.clone()).or_default();
            if repeat.conflict {
                count.conflicts += 1;
                count.conflict_at = Some(now);
                count.conflict_type = Some(repeat.event.event_type.to_string());
            } else {
                count.duplicates += 1;
                count.duplicate_at = Some(now);
            }
        }
        drop(gathered);
        self.some.notify_one();
    }

    fn gathered(&self) -> MutexGuard<'_, BTreeMap<Identity, Count>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what has gathered; what can't be written is lost.
    pub async fn write(&self, database: &Database) -> Result<()> {
        let gathered = std::mem::take(&mut *self.gathered());
        let rows: Vec<_> = gathered.into_iter().collect();
        for chunk in rows.chunks(CHUNK) {
            database.add_repeats(chunk).await?;
        }
        Ok(())
    }
}

/// Writes what gathers, until the ledger is gone.
pub(super) fn keep_writing(ledger: &Ledger) {
    let repeats: Arc<Repeats> = ledger.shared.repeats.clone();
    let weak = Arc::downgrade(&ledger.shared);
    ledger.shared.jobs.started(Job::Duplicates, Some(2 * IDLE_FOR));
    tokio::spawn(async move {
        loop {
            // Looked at now and then for whether anybody is left who could count.
            let _ = tokio::time::timeout(IDLE_FOR, repeats.some.notified()).await;
            if weak.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(WRITE_EVERY).await;
            let Some(shared) = weak.upgrade() else { return };
            shared.jobs.ran(Job::Duplicates, &repeats.write(&shared.database).await);
        }
    });
}

/// Adds to what was there before. An event that was not stored after all has no key, and gets no row; nor does one that was
/// pruned, whose counts nobody could read.
const ADD: &str = "ON CONFLICT (event) DO UPDATE SET
         duplicates = repeat.duplicates + excluded.duplicates,
         last_duplicate_at = COALESCE(excluded.last_duplicate_at, repeat.last_duplicate_at),
         conflicts = repeat.conflicts + excluded.conflicts,
         last_conflict_at = COALESCE(excluded.last_conflict_at, repeat.last_conflict_at),
         conflict_type = COALESCE(excluded.conflict_type, repeat.conflict_type)";
const INTO: &str = "INSERT INTO repeat
         (event, duplicates, last_duplicate_at, conflicts, last_conflict_at, conflict_type)";

impl Database {
    async fn add_repeats(&self, rows: &[(Identity, Count)]) -> Result<()> {
        let at = |at: Option<Timestamp>| at.map(Timestamp::as_millis);
        match self {
            Self::Sqlite { writes, turn, .. } => {
                let row = |(identity, count): &(Identity, Count)| {
                    serde_json::json!([
                        &*identity.tenant,
                        identity.source,
                        identity.id,
                        count.duplicates,
                        at(count.duplicate_at),
                        count.conflicts,
                        at(count.conflict_at),
                        count.conflict_type,
                    ])
                };
                let rows: Vec<_> = rows.iter().map(row).collect();
                let sql = format!(
                    "{INTO} SELECT event_key.event, input.value ->> 3, input.value ->> 4, input.value ->> 5,
                            input.value ->> 6, input.value ->> 7
                     FROM json_each($1) AS input CROSS JOIN event_key
                     WHERE EXISTS (SELECT 1 FROM event WHERE event.seq = event_key.event) AND event_key.tenant = input.value ->> 0 AND event_key.source = input.value ->> 1
                       AND event_key.id = input.value ->> 2 {ADD}"
                );
                let _turn = turn.lock().await;
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(serde_json::Value::from(rows).to_string())
                    .execute(writes)
                    .await?;
            }
            Self::Postgres(pools) => {
                let sql = format!(
                    "{INTO} SELECT event_key.event, input.duplicates, input.duplicate_at, input.conflicts,
                            input.conflict_at, input.conflict_type
                     FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
                                 $7::bigint[], $8::text[])
                         AS input (tenant, source, id, duplicates, duplicate_at, conflicts, conflict_at, conflict_type)
                     JOIN event_key USING (tenant, source, id)
                     WHERE EXISTS (SELECT 1 FROM event WHERE event.seq = event_key.event)
                     ORDER BY event_key.event {ADD}"
                );
                let columns = |text: fn(&Identity) -> &str| -> Vec<&str> {
                    rows.iter().map(|(identity, _)| text(identity)).collect()
                };
                let numbers = |number: fn(&Count) -> i64| -> Vec<i64> {
                    rows.iter().map(|(_, count)| number(count)).collect()
                };
                let times = |time: fn(&Count) -> Option<Timestamp>| -> Vec<Option<i64>> {
                    rows.iter().map(|(_, count)| at(time(count))).collect()
                };
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .bind(columns(|identity| &identity.tenant))
                    .bind(columns(|identity| &identity.source))
                    .bind(columns(|identity| &identity.id))
                    .bind(numbers(|count| count.duplicates))
                    .bind(times(|count| count.duplicate_at))
                    .bind(numbers(|count| count.conflicts))
                    .bind(times(|count| count.conflict_at))
                    .bind(rows.iter().map(|(_, count)| count.conflict_type.as_deref()).collect::<Vec<_>>())
                    .execute(&pools.chores)
                    .await?;
            }
        }
        Ok(())
    }
}
