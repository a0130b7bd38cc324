//! The ledger's time goes back: what lies in the future keeps its distance, so that nothing waits for a time that a
//! wrong clock has written.

use sqlx::{Connection as _, SqliteConnection};

use super::SqliteStore;
use crate::domain::clock::Timestamp;
use crate::ledger::Result;

/// All that lies in the future.
const TIMES: [&str; 7] = [
    "UPDATE queue SET due_at = due_at - $1 WHERE due_at > $2",
    "UPDATE fan_out SET due_at = due_at - $1 WHERE due_at > $2",
    "UPDATE replay_waiting SET due_at = due_at - $1 WHERE due_at > $2",
    "UPDATE attempt_log SET retry_at = retry_at - $1 WHERE retry_at > $2",
    "UPDATE gate SET closed_until = closed_until - $1 WHERE closed_until > $2",
    // Nobody but this process works on them; what was done in the future was done now.
    "UPDATE replay SET worker_until = MAX(worker_until - $1, 0) WHERE worker_until > $2",
    "UPDATE chore SET worker_until = MIN(worker_until, $2), done_at = MIN(done_at, MAX(done_at - $1, 0))
     WHERE worker_until > $2 OR done_at > $2",
];

impl SqliteStore {
    /// Moves all that lies behind `now` by so many milliseconds towards it. Settlements and releases of what was claimed
    /// before find it by [`Claims::due_at`](super::claims::Claims::due_at).
    pub(super) async fn move_the_future(&self, now: Timestamp, back_ms: i64) -> Result<()> {
        // No claim begins meanwhile.
        let _one_at_a_time = self.claiming.lock().await;
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for statement in TIMES {
            sqlx::query(statement).bind(back_ms).bind(now.as_millis()).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        *writer = Some(connection);
        let mut claims = self.claims();
        claims.cursors.clear();
        claims.set_backs.push((now, back_ms));
        Ok(())
    }
}
