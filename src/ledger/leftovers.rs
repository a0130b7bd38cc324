//! Rows that nothing refers to any more: of events that were pruned, of receivers that were removed, and lanes without a
//! delivery. Without this, their tables would only grow.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;

use super::prune::Chore;
use super::sql::{Database, on};
use super::{LedgerError, Result};
use crate::domain::clock::Timestamp;

/// Tables that name an event in a column `event`, apart from its outcomes. A row may be written while its event is pruned.
pub const OF_EVENTS: [&str; 4] = ["attempt_log", "earlier_outcome", "repeat", "steering"];
/// Gates and budgets of receivers that are gone; one statement each removes at most so many.
const RECEIVERS_AT_ONCE: u32 = 500;
/// A row of `fan_out`: tenant, event and part.
pub type FanOutPlace = (String, i64, i64);
/// Lanes named in one statement.
const LANES_AT_ONCE: usize = 500;

/// Tables that say which deliveries a lane has, to be read in this order: a delivery that a replay or a retry moves out of the
/// first table meanwhile leaves a row in one of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaneUse {
    /// Deliveries that are done.
    Outcomes,
    /// Deliveries that were replayed.
    Replayed,
    /// Deliveries that were retried or canceled by hand.
    Steered,
}

impl LaneUse {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Outcomes, Self::Replayed, Self::Steered];

    const fn table(self) -> &'static str {
        match self {
            Self::Outcomes => "outcome",
            Self::Replayed => "earlier_outcome",
            Self::Steered => "steering",
        }
    }
}

impl Database {
    /// Deletes the rows of one of [`OF_EVENTS`] whose event is gone, among the next `events` that it names behind `after`.
    /// Returns how many events that were, and where to continue.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_orphans(
        &self,
        table: &str,
        after: i64,
        events: u32,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<(u64, Option<i64>)> {
        let find = format!(
            "SELECT part.event, CAST((SELECT COUNT(*) FROM event WHERE event.seq = part.event) AS BIGINT)
             FROM (SELECT DISTINCT event FROM {table} WHERE event > $1 ORDER BY event LIMIT $2) AS part
             ORDER BY part.event"
        );
        let found: Vec<(i64, i64)> = on!(self, chore_reads, pool => {
            sqlx::query_as(AssertSqlSafe(find)).bind(after).bind(i64::from(events)).fetch_all(pool).await?
        });
        let next = found.last().map(|(event, _)| *event).filter(|_| found.len() == events as usize);
        let orphans: Vec<_> =
            found.iter().filter(|(_, there)| *there == 0).map(|(event, _)| event.to_string()).collect();
        if !dry_run && !orphans.is_empty() {
            let delete = format!(
                "DELETE FROM {table} WHERE event IN ({}) AND NOT EXISTS (SELECT 1 FROM event WHERE event.seq = {table}.event){}",
                orphans.join(","),
                Chore::fence(chore)
            );
            on!(self, writes, pool => {
                sqlx::query(AssertSqlSafe(delete)).persistent(false).execute(pool).await?;
            });
        }
        Ok((orphans.len() as u64, next))
    }

    /// Deletes gates that were to open before `before`, and rate budgets that were last used before then by partners that are
    /// gone; a bounded part of them. Returns how many rows that were, and whether there may be more.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_receivers(
        &self,
        before: Timestamp,
        dry_run: bool,
        chore: Option<&Chore>,
    ) -> Result<(u64, bool)> {
        let gates = "FROM gate WHERE closed_until < $1";
        let budgets = "FROM partner_tokens WHERE at < $1
             AND NOT EXISTS (SELECT 1 FROM partner WHERE partner.id = partner_tokens.partner)";
        let mut rows = 0;
        let mut more = false;
        for (key, of) in [("id", gates), ("partner", budgets)] {
            let part = format!("(SELECT {key} {of} ORDER BY {key} LIMIT {RECEIVERS_AT_ONCE})");
            let count = format!("SELECT COUNT(*) FROM {part} AS part");
            let (found,): (i64,) = on!(self, chore_reads, pool => {
                sqlx::query_as(AssertSqlSafe(count)).bind(before.as_millis()).fetch_one(pool).await?
            });
            rows += found.max(0).unsigned_abs();
            if dry_run || found == 0 {
                continue;
            }
            more |= found == i64::from(RECEIVERS_AT_ONCE);
            let delete = format!("DELETE {of} AND {key} IN {part}{}", Chore::fence(chore));
            on!(self, writes, pool => {
                sqlx::query(AssertSqlSafe(delete)).bind(before.as_millis()).execute(pool).await?;
            });
        }
        Ok((rows, more))
    }

    /// The lanes of the next `rows` rows of deliveries that are not in the queue yet, behind `after`; and where to continue.
    ///
    /// To be read before [`Self::idle_lanes`]: what leaves these rows meanwhile is found in the queue, or done.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn fan_out_lanes(
        &self,
        after: &FanOutPlace,
        rows: u32,
    ) -> Result<(Vec<i64>, Option<FanOutPlace>)> {
        let (tenant, event, part) = after;
        let found: Vec<(String, i64, i64, String)> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "SELECT tenant, event, part, lanes FROM fan_out WHERE (tenant, event, part) > ($1, $2, $3)
                 ORDER BY tenant, event, part LIMIT $4",
            )
            .bind(tenant)
            .bind(event)
            .bind(part)
            .bind(i64::from(rows))
            .fetch_all(pool)
            .await?
        });
        let next = found.last().filter(|_| found.len() == rows as usize);
        let next = next.map(|(tenant, event, part, _)| (tenant.clone(), *event, *part));
        let mut lanes = Vec::new();
        for (.., text) in &found {
            let named: Vec<i64> = serde_json::from_str(text).map_err(|error| {
                LedgerError::Unavailable(format!("lanes of a fan-out can't be read: {error}"))
            })?;
            lanes.extend(named);
        }
        Ok((lanes, next))
    }

    /// Lanes without a waiting delivery, by number from the one after `after`.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn idle_lanes(&self, after: i64, limit: u32) -> Result<Vec<i64>> {
        let rows: Vec<(i64,)> = on!(self, chore_reads, pool => {
            sqlx::query_as(
                "SELECT id FROM lane WHERE id > $1 AND NOT EXISTS (SELECT 1 FROM queue WHERE queue.lane = lane.id)
                 ORDER BY id LIMIT $2",
            )
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Removes from `lanes` those that the next `rows` deliveries of a table behind `after` belong to. Returns where to
    /// continue.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn without_used_lanes(
        &self,
        lanes: &mut HashSet<i64>,
        table: LaneUse,
        after: (i64, i64),
        rows: u32,
    ) -> Result<Option<(i64, i64)>> {
        let sql = format!(
            "SELECT event, lane FROM {} WHERE (event, lane) > ($1, $2) ORDER BY event, lane LIMIT $3",
            table.table()
        );
        let found: Vec<(i64, i64)> = on!(self, chore_reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(after.0)
                .bind(after.1)
                .bind(i64::from(rows))
                .fetch_all(pool)
                .await?
        });
        for (_, lane) in &found {
            lanes.remove(lane);
        }
        Ok(found.last().copied().filter(|_| found.len() == rows as usize))
    }

    /// Notes which of the lanes between two numbers (the first excluded) are unused: only those in `unused`. Deletes those that
    /// have been unused since `before`; how many.
    ///
    /// The largest number stays: SQLite would give it to the next new lane, and a process may still know it by the old name.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn note_unused_lanes(
        &self,
        between: (i64, i64),
        unused: &HashSet<i64>,
        (now, before): (Timestamp, Timestamp),
        chore: Option<&Chore>,
    ) -> Result<u64> {
        let marked: Vec<(i64,)> = on!(self, chore_reads, pool => {
            sqlx::query_as("SELECT id FROM lane WHERE id > $1 AND id <= $2 AND unused_since IS NOT NULL")
                .bind(between.0)
                .bind(between.1)
                .fetch_all(pool)
                .await?
        });
        let used_again: Vec<_> =
            marked.into_iter().map(|(id,)| id).filter(|id| !unused.contains(id)).collect();
        let unused: Vec<_> = unused.iter().copied().collect();
        let (now, before) = (now.as_millis(), before.as_millis());
        let free = "NOT EXISTS (SELECT 1 FROM queue WHERE queue.lane = lane.id)";
        let mut deleted = 0;
        for (lanes, change) in [
            (&used_again, "UPDATE lane SET unused_since = NULL WHERE".to_owned()),
            (
                &unused,
                format!(
                    "DELETE FROM lane WHERE unused_since < {before} AND id < (SELECT MAX(id) FROM lane) AND {free} AND"
                ),
            ),
            (
                &unused,
                format!("UPDATE lane SET unused_since = {now} WHERE unused_since IS NULL AND {free} AND"),
            ),
        ] {
            for chunk in lanes.chunks(LANES_AT_ONCE) {
                let ids: Vec<_> = chunk.iter().map(i64::to_string).collect();
                let sql = format!("{change} id IN ({}){}", ids.join(","), Chore::fence(chore));
                let changed = on!(self, writes, pool => {
                    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(pool).await?.rows_affected()
                });
                deleted += if change.starts_with("DELETE") { changed } else { 0 };
            }
        }
        Ok(deleted)
    }
}
