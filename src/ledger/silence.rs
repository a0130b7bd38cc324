//! A database that says nothing: its machine or the network is gone without a word, and would be waited for in vain.
//!
//! What changes a SQLite file is not under such a limit: it is this process's own work, and comes to an end.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};

use super::{LedgerError, Result};

/// Longest until a question on the hot path is answered.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest until a connection that is given back shows that it is alive.
const PING_LIMIT: Duration = Duration::from_secs(5);

/// What was asked, or that there was no answer in time. What it was about may have happened all the same.
pub(super) async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| LedgerError::Unavailable(format!("no answer within {} s", ANSWER_LIMIT.as_secs()));
    tokio::time::timeout(ANSWER_LIMIT, answer).await.map_err(late)?
}

/// Whether a connection may be used again: one that its user gave up on may never answer.
pub(super) async fn answers(connection: &mut PgConnection) -> sqlx::Result<bool> {
    match tokio::time::timeout(PING_LIMIT, connection.ping()).await {
        Ok(answer) => answer.map(|()| true),
        // An error, so that it is dropped as it is: a farewell would wait, too.
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}
