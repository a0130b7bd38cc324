//! What was counted in each minute, and what waits for each destination.

use sqlx::AssertSqlSafe;

use super::Result;
use super::sql::{Database, on};
use crate::domain::clock::Timestamp;

/// Rows that are written in one transaction: whoever commits events must not wait long for it.
const WRITE_ROWS: usize = 200;
/// Rows that are read at once.
const READ_ROWS: u32 = 5_000;
/// Minutes that one pruning takes at most.
const PRUNE_MINUTES: usize = 30;

/// What was counted of one subject in a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatRow {
    /// When the minute began.
    pub minute: Timestamp,
    /// `*` for the whole, `svix`, `other`, or an endpoint's id.
    pub subject: String,
    /// The run of a process that has counted it.
    pub run: i64,
    /// Whose it is; empty for the whole.
    pub partner: String,
    /// The sums, as JSON.
    pub sums: String,
}

/// What waits for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingRow {
    /// The destination, as [`crate::domain::tenant::Destination`] reads it.
    pub destination: String,
    /// Whose deliveries they are.
    pub tenant: String,
    /// How many.
    pub count: i64,
    /// When the oldest event among them was recorded.
    pub oldest: Timestamp,
    /// When the first of them falls or fell due.
    pub first_due: Timestamp,
}

impl Database {
    /// Keeps what was counted. What was kept before is left as it is: a second try does no harm.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`]: some may be kept, and the rest not.
    pub async fn add_stats(&self, rows: &[StatRow]) -> Result<()> {
        for rows in rows.chunks(WRITE_ROWS) {
            on!(self, writes, pool => {
                let mut insert =
                    sqlx::QueryBuilder::new("INSERT INTO stat (minute, subject, run, partner, sums) ");
                insert.push_values(rows, |mut values, row| {
                    values.push_bind(row.minute.as_millis()).push_bind(&*row.subject).push_bind(row.run);
                    values.push_bind(&*row.partner).push_bind(&*row.sums);
                });
                insert.push(" ON CONFLICT (minute, subject, run) DO NOTHING");
                insert.build().execute(pool).await?;
            });
        }
        Ok(())
    }

    /// Hands `each` row from `since` on to `take`: all of them, or the whole's and those of one partner.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn stats(
        &self,
        since: Timestamp,
        partner: Option<&str>,
        mut take: impl FnMut(StatRow) + Send,
    ) -> Result<()> {
        let mut last = (since.as_millis(), String::new(), i64::MIN);
        loop {
            let rows: Vec<(i64, String, i64, String, String)> = on!(self, lists, pool => {
                sqlx::query_as(
                    "SELECT minute, subject, run, partner, sums FROM stat
                     WHERE (minute, subject, run) > ($1, $2, $3) AND ($4 IS NULL OR partner = $4 OR partner = '')
                     ORDER BY minute, subject, run LIMIT $5",
                )
                .bind(last.0)
                .bind(&*last.1)
                .bind(last.2)
                .bind(partner)
                .bind(i64::from(READ_ROWS))
                .fetch_all(pool)
                .await?
            });
            let is_last = rows.len() < READ_ROWS as usize;
            if let Some((minute, subject, run, ..)) = rows.last() {
                last = (*minute, subject.clone(), *run);
            }
            for (minute, subject, run, partner, sums) in rows {
                take(StatRow { minute: Timestamp::from_millis(minute), subject, run, partner, sums });
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Drops what was counted before `before`, a bounded part of it at a time.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn prune_stats(&self, before: Timestamp) -> Result<()> {
        for _ in 0..PRUNE_MINUTES {
            let pruned = on!(self, writes, pool => {
                let delete = "DELETE FROM stat WHERE minute = (SELECT MIN(minute) FROM stat) AND minute < $1";
                sqlx::query(delete).bind(before.as_millis()).execute(pool).await?.rows_affected()
            });
            if pruned == 0 {
                break;
            }
        }
        Ok(())
    }

    /// What waits, by lane. Counts the whole queue: not to be asked often.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn waiting(&self) -> Result<Vec<WaitingRow>> {
        let sql = format!(
            // A number proves no time.
            "SELECT lane.destination, lane.tenant, waiting.n,
                    COALESCE((SELECT received_at FROM event WHERE event.seq = waiting.oldest), waiting.first_due),
                    waiting.first_due
             FROM {} AS waiting JOIN lane ON lane.id = waiting.lane",
            self.waiting_by_lane()
        );
        let rows: Vec<(String, String, i64, i64, i64)> = on!(self, chore_reads, pool => {
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?
        });
        let row = |(destination, tenant, count, oldest, first_due)| WaitingRow {
            destination,
            tenant,
            count,
            oldest: Timestamp::from_millis(oldest),
            first_due: Timestamp::from_millis(first_due),
        };
        Ok(rows.into_iter().map(row).collect())
    }
}
