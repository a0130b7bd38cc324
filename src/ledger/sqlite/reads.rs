//! Operators' reads: on connections of their own, each for a limited time, and none while the WAL has to shrink.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{SqliteConnection, SqlitePool};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::domain::clock::Clock;

const CONNECTIONS: u32 = 3;
/// Longest wait for one of them, behind other reads.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 100;
/// Steps of SQLite's virtual machine between two looks at the clock: well under a millisecond.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// Read-only connections for operators.
///
/// A read holds its snapshot of the WAL, which can't start over before the read ends. The time limit bounds one read, and
/// [`Self::paused`] keeps reads that overlap from bounding nothing.
#[derive(Debug, Clone)]
pub struct LimitedReads {
    pool: SqlitePool,
    /// Reads hold it shared; whoever shrinks the WAL holds it alone.
    gate: Arc<RwLock<()>>,
}

impl LimitedReads {
    /// Connections made with `connect`, whose statements end after `limit`.
    pub(super) async fn connect(
        connect: SqliteConnectOptions,
        limit: Duration,
        clock: &Arc<dyn Clock>,
    ) -> sqlx::Result<Self> {
        let (at_first, later) = (clock.clone(), clock.clone());
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| Box::pin(end_after(connection, limit, at_first.clone())))
            .before_acquire(move |connection, _| {
                let clock = later.clone();
                Box::pin(async move { end_after(connection, limit, clock).await.map(|()| true) })
            })
            .connect_with(connect.statement_cache_capacity(STATEMENTS))
            .await?;
        Ok(Self { pool, gate: Arc::default() })
    }

    /// The connections. A statement on them that takes longer than the limit fails, as interrupted.
    pub const fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Waits until reads may begin; they may for as long as the answer is held.
    pub async fn admitted(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Waits until no read is under way, and holds back new ones for as long as the answer is held.
    pub(super) async fn paused(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().await
    }
}

/// Lets the statements of a connection fail once `limit` is over.
async fn end_after(
    connection: &mut SqliteConnection,
    limit: Duration,
    clock: Arc<dyn Clock>,
) -> sqlx::Result<()> {
    let ends_at = clock.moment() + limit;
    let mut handle = connection.lock_handle().await?;
    handle.set_progress_handler(STEPS_BETWEEN_LOOKS, move || clock.moment() < ends_at);
    Ok(())
}
