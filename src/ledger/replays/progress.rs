//! What became of what replays have put back.

use sqlx::AssertSqlSafe;

use crate::ledger::Result;
use crate::ledger::sql::{Database, on, redoable};

/// How what was put back stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untried {
    /// Not tried yet.
    pub waiting: u64,
    /// Tried since the last look.
    pub news: u64,
}

impl Database {
    /// How what a replay has put back stands.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub async fn untried(&self, id: &str) -> Result<Untried> {
        let (all, tried): (i64, i64) = on!(self, reads, pool => {
            sqlx::query_as(
                "SELECT COUNT(*), COALESCE(SUM(CASE WHEN EXISTS (
                     SELECT 1 FROM queue WHERE queue.lane = replay_waiting.lane AND queue.retry = 1
                       AND queue.due_at = replay_waiting.due_at AND queue.event = replay_waiting.event
                 ) THEN 0 ELSE 1 END), 0) FROM replay_waiting WHERE replay = $1",
            )
            .bind(id)
            .fetch_one(pool)
            .await?
        });
        let count = |count: i64| count.max(0).unsigned_abs();
        Ok(Untried { waiting: count(all - tried), news: count(tried) })
    }

    /// Counts what was put back and has been tried since, and how much that is; it is a delivery like any other from then
    /// on. What ends while this looks is left for the next time. Counts nothing where the replay is not the work of
    /// `epoch` any more.
    ///
    /// # Errors
    /// [`crate::ledger::LedgerError::Unavailable`].
    pub(in crate::ledger) async fn count_tried(&self, id: &str, epoch: i64) -> Result<u64> {
        let tried = |how: &str| {
            format!(
                "DELETE FROM replay_waiting WHERE replay = $1 AND NOT EXISTS (
                     SELECT 1 FROM queue WHERE queue.lane = replay_waiting.lane AND queue.retry = 1
                       AND queue.due_at = replay_waiting.due_at AND queue.event = replay_waiting.event
                 ) AND {how}"
            )
        };
        let ended = |how: &str| {
            let outcome = "SELECT 1 FROM outcome WHERE outcome.event = replay_waiting.event
                           AND outcome.lane = replay_waiting.lane";
            format!("EXISTS ({outcome}{how})")
        };
        // The last looks once more for itself: something may have ended since the first did.
        let statements = [
            tried(&ended(" AND state = 'delivered'")),
            tried(&ended(" AND state = 'canceled'")),
            tried(&format!("({} OR NOT {})", ended(" AND state = 'dead'"), ended(""))),
        ];
        let _turn = self.turn().await;
        redoable!(self, |transaction| {
            let mut counts = [0_i64; 3];
            for (count, sql) in counts.iter_mut().zip(statements) {
                let gone = sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *transaction).await?;
                *count = i64::try_from(gone.rows_affected()).unwrap_or(i64::MAX);
            }
            let ours = sqlx::query(
                "UPDATE replay SET delivered = delivered + $2, canceled = canceled + $3, failed = failed + $4
                 WHERE id = $1 AND worker = $5",
            )
            .bind(id)
            .bind(counts[0])
            .bind(counts[1])
            .bind(counts[2])
            .bind(epoch)
            .execute(&mut *transaction)
            .await?;
            if ours.rows_affected() != 1 {
                transaction.rollback().await?;
                return Ok(0);
            }
            transaction.commit().await?;
            Ok(counts.iter().sum::<i64>().max(0).unsigned_abs())
        })
    }
}
