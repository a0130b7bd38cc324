//! Node numbers and epochs: who holds which number.

use std::time::Duration;

use sqlx::PgPool;

use crate::domain::sequence::NODES;
use crate::ledger::incarnation::Incarnation;
use crate::ledger::{LedgerError, Result};

/// A node that has not been seen for so long has lost its number.
const NODE_EXPIRY: Duration = Duration::from_secs(600);
/// How often a number is asked for that its silent holder takes up again at the same instant.
const NODE_TRIES: usize = 32;

/// Takes the next epoch and the lowest node number that nobody holds, by the database's clock: no node's own clock may
/// expire another.
///
/// # Errors
/// [`LedgerError::Refused`] where every number is held.
pub(super) async fn take(pool: &PgPool) -> Result<Incarnation> {
    let expiry_ms = i64::try_from(NODE_EXPIRY.as_millis()).unwrap_or(i64::MAX);
    for _ in 0..NODE_TRIES {
        let mut transaction = pool.begin().await?;
        // Nodes that start at the same instant wait here for one another, and each sees what the one before has taken.
        let (epoch,): (i64,) = sqlx::query_as("UPDATE node_epoch SET number = number + 1 RETURNING number")
            .fetch_one(&mut *transaction)
            .await?;
        let row: Option<(i64,)> = sqlx::query_as(
            "WITH clock AS (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint AS now)
             INSERT INTO node (number, epoch, seen_at)
             SELECT free, $1, clock.now FROM generate_series(0, $2 - 1) AS free, clock
             WHERE NOT EXISTS (SELECT 1 FROM node WHERE number = free AND seen_at > clock.now - $3)
             ORDER BY free LIMIT 1
             ON CONFLICT (number) DO UPDATE SET epoch = excluded.epoch, seen_at = excluded.seen_at
                 WHERE node.seen_at <= excluded.seen_at - $3
             RETURNING number",
        )
        .bind(epoch.to_string())
        .bind(NODES)
        .bind(expiry_ms)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some((node,)) = row {
            transaction.commit().await?;
            return Ok(Incarnation { node, epoch });
        }
        // Its silent holder has just shown itself again, or all numbers are held.
        transaction.rollback().await?;
    }
    Err(LedgerError::Refused(format!(
        "no node number could be had: {NODES} nodes hold one; stop some of them, or wait {} minutes after their end",
        NODE_EXPIRY.as_secs() / 60
    )))
}

/// Whether `incarnation` still holds its number.
pub(super) async fn holds(pool: &PgPool, incarnation: Incarnation) -> Result<bool> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT number FROM node WHERE number = $1 AND epoch = $2")
        .bind(incarnation.node)
        .bind(incarnation.epoch_text())
        .fetch_optional(pool)
        .await?;
    Ok(row.is_some())
}

/// Keeps the number of `incarnation` from expiring; whether it still held it.
pub(super) async fn keep(pool: &PgPool, incarnation: Incarnation) -> Result<bool> {
    let kept = sqlx::query(
        "UPDATE node SET seen_at = (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint
         WHERE number = $1 AND epoch = $2",
    )
    .bind(incarnation.node)
    .bind(incarnation.epoch_text())
    .execute(pool)
    .await?;
    Ok(kept.rows_affected() == 1)
}

/// Frees the number of `incarnation` for the next node.
pub(super) async fn give_back(pool: &PgPool, incarnation: Incarnation) -> Result<()> {
    sqlx::query("UPDATE node SET seen_at = 0 WHERE number = $1 AND epoch = $2")
        .bind(incarnation.node)
        .bind(incarnation.epoch_text())
        .execute(pool)
        .await?;
    Ok(())
}
