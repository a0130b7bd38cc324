//! Deliveries of large requests join the queue.

use sqlx::AssertSqlSafe;

use super::Session;
use super::{PostgresStore, column};
use crate::domain::delivery::Class;
use crate::failpoint::failpoint;
use crate::ledger::Result;
use crate::ledger::fan_out::{
    Next, Step, StepLane, Taken, fan_outs, lanes_named, lanes_of, picked_candidates,
};
use crate::ledger::plan::Plan;

/// Writes what of a plan joins the queue later.
pub(super) async fn insert(connection: &mut Session, plan: &Plan<'_>) -> Result<()> {
    let rows = fan_outs(&plan.inserts);
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO fan_out (tenant, event, part, last_event, due_at, deliveries, events, lanes)
         SELECT tenant, event, part, last_event, $5, deliveries, events, lanes
         FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $6::bigint[], $7::text[], $8::text[])
             AS t (tenant, event, part, last_event, deliveries, events, lanes)",
    )
    .bind(column(&rows, |row| &**row.tenant))
    .bind(column(&rows, |row| row.event))
    .bind(column(&rows, |row| row.part))
    .bind(column(&rows, |row| row.last_event))
    .bind(plan.now.as_millis())
    .bind(column(&rows, |row| row.deliveries))
    .bind(column(&rows, |row| &*row.events))
    .bind(column(&rows, |row| &*row.lanes))
    .execute(connection)
    .await?;
    Ok(())
}

impl PostgresStore {
    /// See [`crate::ledger::Store::continue_fan_out`]. Two nodes never take the same rows, nor wait for each other.
    pub(super) async fn queue_fan_out(&self, next: Next<'_>) -> Result<Option<Step>> {
        let sql = format!(
            "WITH candidate AS (
                 SELECT tenant, event, part, deliveries FROM fan_out WHERE {} FOR UPDATE SKIP LOCKED
             ), picked AS (
                 {}
             ), taken AS (
                 DELETE FROM fan_out USING picked
                 WHERE fan_out.tenant = picked.tenant AND fan_out.event = picked.event AND fan_out.part = picked.part
                 RETURNING fan_out.tenant, fan_out.event, fan_out.part, fan_out.due_at, fan_out.events, fan_out.lanes
             ), queued AS (
                 INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain, lease_until)
                 SELECT CAST(lane.value AS BIGINT), 0, taken.due_at, CAST(event.value AS BIGINT), 0, 0, 0, 0
                 FROM taken CROSS JOIN LATERAL json_array_elements_text(CAST(taken.lanes AS JSON)) AS lane (value)
                      CROSS JOIN LATERAL json_array_elements_text(CAST(taken.events AS JSON)) AS event (value)
             )
             SELECT tenant, event, part, due_at, lanes FROM taken",
            next.candidates(),
            picked_candidates(),
        );
        let (tenant, event) = next.parameters();
        let mut transaction = self.pool.begin().await?;
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(tenant).bind(event);
        let rows: Vec<(String, i64, i64, i64, String)> = query.fetch_all(&mut *transaction).await?;
        let taken: Vec<_> = rows.into_iter().map(Taken::from).collect();
        if taken.is_empty() {
            return Ok(None);
        }
        let query = sqlx::query_as(lanes_named(true)).bind(lanes_of(&taken));
        let found: Vec<(i64, String)> = query.fetch_all(&mut *transaction).await?;
        failpoint!("fan_out_uncommitted");
        transaction.commit().await?;
        failpoint!("fan_out_committed");
        let step = Step::new(&taken, found);
        let lanes = step.iter().flat_map(|step| &step.lanes);
        self.heads.put(lanes.map(|StepLane { lane, due_at, .. }| (lane.id, Class::Fresh, *due_at)));
        Ok(step)
    }
}
