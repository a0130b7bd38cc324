//! Deliveries of large requests join the queue.

use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::SqliteStore;
use crate::domain::delivery::Class;
use crate::failpoint::failpoint;
use crate::ledger::fan_out::{Next, Step, StepLane, Taken, lanes_named, lanes_of, picked_candidates};
use crate::ledger::{LedgerError, Result};

/// The row's every event for its every lane, in the order of the queue's key.
const QUEUE_ALL: &str = "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain)
     SELECT lane.value, 0, fan_out.due_at, event.value, 0, 0, 0
     FROM fan_out CROSS JOIN json_each(fan_out.lanes) AS lane CROSS JOIN json_each(fan_out.events) AS event
     WHERE fan_out.tenant = $1 AND fan_out.event = $2 AND fan_out.part = $3";

impl SqliteStore {
    /// See [`crate::ledger::Store::continue_fan_out`].
    pub(super) async fn queue_fan_out(&self, next: Next<'_>) -> Result<Option<Step>> {
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        let sql = format!(
            "WITH candidate AS (SELECT tenant, event, part, deliveries FROM fan_out WHERE {})
             SELECT tenant, event, part, due_at, lanes FROM fan_out WHERE (tenant, event, part) IN ({})",
            next.candidates(),
            picked_candidates(),
        );
        let (tenant, event) = next.parameters();
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant).bind(event);
        let rows: Vec<(String, i64, i64, i64, String)> = query.fetch_all(&mut connection).await?;
        let taken: Vec<_> = rows.into_iter().map(Taken::from).collect();
        if taken.is_empty() {
            *writer = Some(connection);
            return Ok(None);
        }
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for Taken { tenant, event, part, .. } in &taken {
            sqlx::query(QUEUE_ALL).bind(tenant).bind(event).bind(part).execute(&mut *transaction).await?;
            let gone = sqlx::query("DELETE FROM fan_out WHERE tenant = $1 AND event = $2 AND part = $3")
                .bind(tenant)
                .bind(event)
                .bind(part)
                .execute(&mut *transaction)
                .await?;
            if gone.rows_affected() != 1 {
                // Nobody else writes this file: the row can't be gone.
                return Err(LedgerError::Unavailable("a row of fan_out is gone that was just read".into()));
            }
        }
        failpoint!("fan_out_uncommitted");
        transaction.commit().await?;
        failpoint!("fan_out_committed");
        let query = sqlx::query_as(lanes_named(false)).bind(lanes_of(&taken));
        let found: Vec<(i64, String)> = query.fetch_all(&mut connection).await?;
        *writer = Some(connection);
        drop(writer);
        self.written.notify_one();
        let step = Step::new(&taken, found);
        let mut claims = self.claims();
        for StepLane { lane, due_at, event } in step.iter().flat_map(|step| &step.lanes) {
            claims.appeared((lane.id, Class::Fresh), (due_at.as_millis(), *event));
        }
        drop(claims);
        Ok(step)
    }
}
