//! Who is signed in to the console.

use super::Result;
use super::sql::{Database, on};
use crate::domain::clock::Timestamp;

/// Most sessions of one key; a further sign-in ends the oldest.
pub const SESSIONS_PER_KEY: u32 = 50;

/// Somebody who is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleSession {
    /// SHA-256 of what the browser shows.
    pub token_hash: Vec<u8>,
    /// The public part of the API key that was shown; empty for the bootstrap key.
    pub key_id: String,
    /// The hash of that key's secret: another secret under the same name is another key.
    pub key_hash: Vec<u8>,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

impl Database {
    /// Adds a session. Those that are over go, and of this key's the oldest where there are too many.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn add_console_session(&self, session: &ConsoleSession, now: Timestamp) -> Result<()> {
        on!(self, writes, pool => {
            let mut transaction = pool.begin().await?;
            sqlx::query("DELETE FROM console_session WHERE expires_at <= $1")
                .bind(now.as_millis())
                .execute(&mut *transaction)
                .await?;
            sqlx::query(
                "INSERT INTO console_session (token_hash, key_id, key_hash, created_at, expires_at)
                 VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(&session.token_hash)
            .bind(&session.key_id)
            .bind(&session.key_hash)
            .bind(now.as_millis())
            .bind(session.expires_at.as_millis())
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "DELETE FROM console_session WHERE token_hash IN
                 (SELECT token_hash FROM console_session WHERE key_id = $1
                  ORDER BY created_at DESC, token_hash LIMIT 1000 OFFSET $2)",
            )
            .bind(&session.key_id)
            .bind(i64::from(SESSIONS_PER_KEY))
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(())
        })
    }

    /// The session of a browser that shows what has this hash, where it is not over at `now`.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn console_session(&self, token_hash: &[u8], now: Timestamp) -> Result<Option<ConsoleSession>> {
        let row: Option<(Vec<u8>, String, Vec<u8>, i64)> = on!(self, hot_reads, pool => {
            sqlx::query_as(
                "SELECT token_hash, key_id, key_hash, expires_at FROM console_session
                 WHERE token_hash = $1 AND expires_at > $2",
            )
            .bind(token_hash)
            .bind(now.as_millis())
            .fetch_optional(pool)
            .await?
        });
        Ok(row.map(|(token_hash, key_id, key_hash, expires_at)| ConsoleSession {
            token_hash,
            key_id,
            key_hash,
            expires_at: Timestamp::from_millis(expires_at),
        }))
    }

    /// Ends a session, wherever copies of it are.
    ///
    /// # Errors
    /// [`super::LedgerError::Unavailable`].
    pub async fn end_console_session(&self, token_hash: &[u8]) -> Result<()> {
        on!(self, writes, pool => {
            sqlx::query("DELETE FROM console_session WHERE token_hash = $1")
                .bind(token_hash)
                .execute(pool)
                .await?;
            Ok(())
        })
    }
}
