//! What became of claims: settled as far as they still hold, or given back.

use std::collections::HashSet;

use sqlx::{PgConnection, PgExecutor};

use super::column;
use crate::domain::delivery::{DeliveryId, NextState, Settlement};
use crate::domain::event::EventSeq;
use crate::domain::tenant::LaneId;
use crate::ledger::rows::{self, AttemptColumns, OutcomeColumns, WaitingColumns};
use crate::ledger::{ClaimId, Held, Result, claim_of};

/// Moves finished deliveries from the queue into `outcome`, as far as their claims still hold.
async fn settle_done(connection: &mut PgConnection, done: &[OutcomeColumns<'_>]) -> Result<Vec<ClaimId>> {
    if done.is_empty() {
        return Ok(Vec::new());
    }
    let settled: Vec<(i64, i64, i64)> = sqlx::query_as(
        "WITH input AS (
             SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[],
                                  $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::text[],
                                  $13::bigint[])
                 AS t (event, lane, due_at, state, at, attempts, failures, latency_ms, status, remote_id,
                       dispatch_unconfirmed, reason, retry)
         ), gone AS (
             DELETE FROM queue USING input
             WHERE queue.lane = input.lane AND queue.retry = input.retry AND queue.due_at = input.due_at
               AND queue.event = input.event AND queue.attempt = input.attempts AND queue.lease_until > 0
             RETURNING queue.event, queue.lane, queue.attempt
         )
         INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id,
                              dispatch_unconfirmed, reason)
         SELECT input.event, input.lane, state, at, attempts, failures, latency_ms, status, remote_id,
                dispatch_unconfirmed, reason
         FROM input
         JOIN gone ON gone.event = input.event AND gone.lane = input.lane AND gone.attempt = input.attempts
         RETURNING event, lane, attempts",
    )
    .bind(column(done, |row| row.event))
    .bind(column(done, |row| row.lane))
    .bind(column(done, |row| row.was_due_at))
    .bind(column(done, |row| row.state))
    .bind(column(done, |row| row.at))
    .bind(column(done, |row| row.attempts))
    .bind(column(done, |row| row.failures))
    .bind(column(done, |row| row.latency_ms))
    .bind(column(done, |row| row.status))
    .bind(column(done, |row| row.remote_id.as_deref()))
    .bind(column(done, |row| row.dispatch_unconfirmed))
    .bind(column(done, |row| row.reason))
    .bind(column(done, |row| row.was_retry))
    .fetch_all(connection)
    .await?;
    Ok(settled.into_iter().map(claim_id).collect())
}

/// Puts deliveries back for later, as far as their claims still hold.
async fn settle_waiting(connection: &mut PgConnection, rows: &[WaitingColumns]) -> Result<Vec<ClaimId>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let settled: Vec<(i64, i64, i64)> = sqlx::query_as(
        "UPDATE queue SET retry = input.retry, due_at = input.due_at, failures = input.failures,
                          uncertain = input.uncertain, lease_until = 0
         FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
                     $8::bigint[], $9::bigint[])
             AS input (event, lane, was_due_at, attempt, due_at, failures, uncertain, was_retry, retry)
         WHERE queue.lane = input.lane AND queue.retry = input.was_retry AND queue.due_at = input.was_due_at
           AND queue.event = input.event AND queue.attempt = input.attempt AND queue.lease_until > 0
         RETURNING queue.event, queue.lane, queue.attempt",
    )
    .bind(column(rows, |row| row.event))
    .bind(column(rows, |row| row.lane))
    .bind(column(rows, |row| row.was_due_at))
    .bind(column(rows, |row| row.attempt))
    .bind(column(rows, |row| row.due_at))
    .bind(column(rows, |row| row.failures))
    .bind(column(rows, |row| row.uncertain))
    .bind(column(rows, |row| row.was_retry))
    .bind(column(rows, |row| row.retry))
    .fetch_all(connection)
    .await?;
    Ok(settled.into_iter().map(claim_id).collect())
}

async fn log_attempts(connection: &mut PgConnection, rows: &[AttemptColumns<'_>]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO attempt_log (event, lane, attempt, at, latency_ms, status, code, detail, retry_at)
         SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                              $7::text[], $8::text[], $9::bigint[])
         ON CONFLICT DO NOTHING",
    )
    .bind(column(rows, |row| row.event))
    .bind(column(rows, |row| row.lane))
    .bind(column(rows, |row| row.attempt))
    .bind(column(rows, |row| row.at))
    .bind(column(rows, |row| row.latency_ms))
    .bind(column(rows, |row| row.status))
    .bind(column(rows, |row| row.code))
    .bind(column(rows, |row| row.detail))
    .bind(column(rows, |row| row.retry_at))
    .execute(connection)
    .await?;
    Ok(())
}

fn claim_id((event, lane, attempt): (i64, i64, i64)) -> ClaimId {
    (DeliveryId { event: EventSeq(event), lane: LaneId(lane) }, attempt)
}

/// Frees claimed rows, as far as their claims still hold.
pub(super) async fn release(connection: impl PgExecutor<'_>, held: &[Held]) -> Result<()> {
    sqlx::query(
        "UPDATE queue SET lease_until = 0
         FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
             AS input (lane, retry, due_at, event, attempt)
         WHERE queue.lane = input.lane AND queue.retry = input.retry AND queue.due_at = input.due_at
           AND queue.event = input.event AND queue.attempt = input.attempt",
    )
    .bind(column(held, |held| held.id.lane.0))
    .bind(column(held, |held| rows::class_column(held.class)))
    .bind(column(held, |held| held.due_at.as_millis()))
    .bind(column(held, |held| held.id.event.0))
    .bind(column(held, |held| held.attempt))
    .execute(connection)
    .await?;
    Ok(())
}

/// Settles what is still held; what was fenced off is returned.
pub(super) async fn settle(
    connection: &mut PgConnection,
    settlements: &[Settlement],
) -> Result<HashSet<ClaimId>> {
    let done: Vec<_> = settlements.iter().filter_map(OutcomeColumns::of).collect();
    let waiting: Vec<_> = settlements.iter().filter_map(WaitingColumns::of).collect();
    let mut settled: HashSet<_> = settle_done(connection, &done).await?.into_iter().collect();
    settled.extend(settle_waiting(connection, &waiting).await?);
    let held = settlements.iter().filter(|settlement| settled.contains(&claim_of(settlement)));
    let failed: Vec<_> = held.filter_map(AttemptColumns::of).collect();
    log_attempts(connection, &failed).await?;
    let (released, moved): (Vec<_>, Vec<_>) =
        settlements.iter().partition(|settlement| settlement.next == NextState::Released);
    if !released.is_empty() {
        let released: Vec<_> = released.into_iter().map(Held::of).collect();
        release(connection, &released).await?;
    }
    Ok(moved.into_iter().map(claim_of).filter(|claim| !settled.contains(claim)).collect())
}
