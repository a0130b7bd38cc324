//! What became of claims: settled as far as they still hold, or given back.

use std::collections::HashSet;

use sqlx::PgExecutor;

use super::{Session, column};
use crate::domain::delivery::{DeliveryId, NextState, Settlement};
use crate::domain::event::EventSeq;
use crate::domain::tenant::LaneId;
use crate::ledger::incarnation::Incarnation;
use crate::ledger::rows::{self, AttemptColumns, OutcomeColumns, WaitingColumns};
use crate::ledger::{ClaimId, Held, Result, claim_of};

/// Moves finished deliveries from the queue into `outcome`; those whose claims hold no longer are returned.
async fn settle_done(connection: &mut Session, done: &[OutcomeColumns<'_>]) -> Result<Vec<ClaimId>> {
    if done.is_empty() {
        return Ok(Vec::new());
    }
    let settled = sqlx::query(
        "WITH gone AS (
             DELETE FROM queue
             USING UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                          $8::bigint[], $9::bigint[], $10::text[], $11::bigint[], $12::text[], $13::bigint[])
                 AS input (event, lane, due_at, state, at, attempts, failures, latency_ms, status, remote_id,
                           dispatch_unconfirmed, reason, retry)
             WHERE queue.lane = input.lane AND queue.retry = input.retry AND queue.due_at = input.due_at
               AND queue.event = input.event AND queue.attempt = input.attempts AND queue.lease_until > 0
             RETURNING input.event, input.lane, input.state, input.at, input.attempts, input.failures, input.latency_ms,
                       input.status, input.remote_id, input.dispatch_unconfirmed, input.reason
         )
         INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id,
                              dispatch_unconfirmed, reason)
         SELECT * FROM gone",
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
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if settled == done.len() as u64 { Ok(Vec::new()) } else { stale(connection, done).await }
}

/// Those of `done` that this transaction has written no outcome of.
async fn stale(connection: &mut Session, done: &[OutcomeColumns<'_>]) -> Result<Vec<ClaimId>> {
    let stale: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT input.event, input.lane, input.attempts
         FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[]) AS input (event, lane, attempts)
         WHERE NOT EXISTS (
             SELECT 1 FROM outcome
             WHERE outcome.event = input.event AND outcome.lane = input.lane AND outcome.attempts = input.attempts
               AND outcome.xmin = pg_current_xact_id()::xid
         )",
    )
    .bind(column(done, |row| row.event))
    .bind(column(done, |row| row.lane))
    .bind(column(done, |row| row.attempts))
    .fetch_all(connection)
    .await?;
    Ok(stale.into_iter().map(claim_id).collect())
}

/// Puts deliveries back for later, as far as their claims still hold.
async fn settle_waiting(connection: &mut Session, rows: &[WaitingColumns]) -> Result<Vec<ClaimId>> {
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

async fn log_attempts(connection: &mut Session, rows: &[AttemptColumns<'_>]) -> Result<()> {
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

/// Claims one delivery where it stands, unless somebody holds it or `incarnation` has lost its number.
pub(super) async fn claim_one(
    connection: impl PgExecutor<'_>,
    place: &Held,
    lease_ms: i64,
    incarnation: Incarnation,
) -> Result<Option<i64>> {
    let claimed: Option<(i64,)> = sqlx::query_as(
        "UPDATE queue SET attempt = attempt + 1,
             lease_until = (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint) + $5
         WHERE lane = $1 AND retry = $2 AND due_at = $3 AND event = $4
           AND lease_until <= (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint)
           AND (SELECT epoch FROM node WHERE number = $6) = $7
         RETURNING attempt",
    )
    .bind(place.id.lane.0)
    .bind(rows::class_column(place.class))
    .bind(place.due_at.as_millis())
    .bind(place.id.event.0)
    .bind(lease_ms)
    .bind(incarnation.node)
    .bind(incarnation.epoch_text())
    .fetch_optional(connection)
    .await?;
    Ok(claimed.map(|(attempt,)| attempt))
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

/// Takes claims back of which nothing was sent, as far as they still hold: their numbers are given out again.
pub(super) async fn unclaim(connection: impl PgExecutor<'_>, held: &[Held]) -> Result<()> {
    sqlx::query(
        "UPDATE queue SET lease_until = 0, attempt = queue.attempt - 1
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
pub(super) async fn settle(connection: &mut Session, settlements: &[Settlement]) -> Result<HashSet<ClaimId>> {
    let done: Vec<_> = settlements.iter().filter_map(OutcomeColumns::of).collect();
    let waiting: Vec<_> = settlements.iter().filter_map(WaitingColumns::of).collect();
    let mut stale: HashSet<_> = settle_done(connection, &done).await?.into_iter().collect();
    let put_back: HashSet<_> = settle_waiting(connection, &waiting).await?.into_iter().collect();
    let waited = waiting.iter().map(|row| claim_id((row.event, row.lane, row.attempt)));
    stale.extend(waited.filter(|claim| !put_back.contains(claim)));
    let held = settlements.iter().filter(|settlement| !stale.contains(&claim_of(settlement)));
    let failed: Vec<_> = held.filter_map(AttemptColumns::of).collect();
    log_attempts(connection, &failed).await?;
    let released = settlements.iter().filter(|settlement| settlement.next == NextState::Released);
    let released: Vec<_> = released.map(Held::of).collect();
    if !released.is_empty() {
        release(connection, &released).await?;
    }
    Ok(stale)
}
