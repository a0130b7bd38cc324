//! The ledger's time goes back: what lies in the future keeps its distance, so that nothing waits for a time that a
//! wrong clock has written.

use sqlx::{Connection as _, SqliteConnection};

use super::SqliteStore;
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeliveryId;
use crate::ledger::{Held, Result, rows};

/// Due times. Those of claimed deliveries stay: their settlements find them by it, and a release moves them.
const DUE_TIMES: [&str; 2] = [
    "UPDATE queue SET due_at = due_at - $1 WHERE due_at > $2
     AND (event, lane) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each($3))",
    "UPDATE replay_waiting SET due_at = due_at - $1 WHERE due_at > $2
     AND (event, lane) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each($3))",
];
/// What else lies in the future.
const OTHER_TIMES: [&str; 5] = [
    "UPDATE fan_out SET due_at = due_at - $1 WHERE due_at > $2",
    "UPDATE attempt_log SET retry_at = retry_at - $1 WHERE retry_at > $2",
    "UPDATE gate SET closed_until = closed_until - $1 WHERE closed_until > $2",
    // Nobody but this process works on them; what was done in the future was done now.
    "UPDATE replay SET worker_until = MAX(worker_until - $1, 0) WHERE worker_until > $2",
    "UPDATE chore SET worker_until = MIN(worker_until, $2), done_at = MIN(done_at, MAX(done_at - $1, 0))
     WHERE worker_until > $2 OR done_at > $2",
];

impl SqliteStore {
    /// Moves all that lies behind `now` by so many milliseconds towards it.
    pub(super) async fn move_the_future(&self, now: Timestamp, back_ms: i64) -> Result<()> {
        // No claim begins meanwhile.
        let _one_at_a_time = self.claiming.lock().await;
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        let claimed: Vec<(i64, i64)> = {
            let claims = self.claims();
            let held = claims.held.iter().filter(|(_, claim)| claim.leased_until.is_some());
            held.map(|(id, _)| (id.event.0, id.lane.0)).collect()
        };
        let claimed = serde_json::json!(claimed).to_string();
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for statement in DUE_TIMES {
            let update = sqlx::query(statement).bind(back_ms).bind(now.as_millis()).bind(&claimed);
            update.execute(&mut *transaction).await?;
        }
        for statement in OTHER_TIMES {
            sqlx::query(statement).bind(back_ms).bind(now.as_millis()).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        *writer = Some(connection);
        self.claims().cursors.clear();
        Ok(())
    }

    /// Makes released deliveries due now where time has gone back since they were claimed; where they stand then.
    pub(super) async fn due_now(&self, held: &[Held]) -> Result<Vec<Held>> {
        let now = self.clock.now();
        let mut held = held.to_vec();
        for place in held.iter_mut().filter(|place| place.due_at > now) {
            let DeliveryId { event, lane } = place.id;
            let _turn = self.writer.lock().await;
            sqlx::query(
                "UPDATE queue SET due_at = $5 WHERE lane = $1 AND retry = $2 AND due_at = $3 AND event = $4",
            )
            .bind(lane.0)
            .bind(rows::class_column(place.class))
            .bind(place.due_at.as_millis())
            .bind(event.0)
            .bind(now.as_millis())
            .execute(&self.writes)
            .await?;
            place.due_at = now;
        }
        Ok(held)
    }
}
