//! Sessions that answer and can't do their work are replaced.
//!
//! A ping does not find them: their server has become a standby, takes no writes, or has lost their prepared statements.
//! The first error that says so marks the moment ([`note_fault`]); every session that is older is closed before its next
//! use ([`is_current`]), and a new one is used only where its server takes writes ([`refuse_read_only`]).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnectionMetadata;
use sqlx::{PgConnection, Row as _};

/// Pause after a session was refused, so that a server that takes no writes is not asked over and over.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);

/// What is known of the sessions of this process. One for all pools: a fault costs a few new connections at most.
struct Sessions {
    /// When a session last showed that it can't do its work.
    fault_at: Option<Instant>,
    /// Why new sessions are refused; `None` where the last one was good.
    refusal: Option<&'static str>,
}

static SESSIONS: Mutex<Sessions> = Mutex::new(Sessions { fault_at: None, refusal: None });

fn sessions() -> MutexGuard<'static, Sessions> {
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an error says that its session, though it answers, can't do its work: another session may.
fn is_fault(code: &str, message: &str) -> bool {
    match code {
        // Read-only: a standby, or a server whose disk is full. Ended by an administrator, by a crash of another session, or
        // for being idle. Its prepared statement is gone, or there already: a pooler gave another server's session.
        "25006" | "57P01" | "57P02" | "57P05" | "25P03" | "26000" | "42P05" => true,
        // The schema has changed under a prepared statement, or a type under its cache.
        "0A000" => message.contains("cached plan"),
        "XX000" => message.contains("cache lookup failed"),
        _ => code.starts_with("08"),
    }
}

/// Marks the sessions of now as unfit where `error` says that one is.
#[expect(clippy::disallowed_methods, reason = "the age of a pooled session is on this clock")]
pub(in crate::ledger) fn note_fault(error: &sqlx::Error) {
    let Some(error) = error.as_database_error() else { return };
    let code = error.code().unwrap_or_default();
    if is_fault(&code, DatabaseError::message(error)) {
        sessions().fault_at = Some(Instant::now());
        tracing::info!(%code, %error, "database sessions are replaced: one can't do its work");
    }
}

/// Why new sessions are refused; `None` where the last one was good.
pub(in crate::ledger) fn refusal() -> Option<&'static str> {
    sessions().refusal
}

/// Whether a session is younger than the last fault. For `before_acquire`.
#[expect(clippy::disallowed_methods, reason = "the age of a pooled session is on this clock")]
pub(super) fn is_current(session: &PoolConnectionMetadata) -> bool {
    sessions().fault_at.is_none_or(|fault_at| session.age < fault_at.elapsed())
}

/// Refuses a new session whose server takes no writes. For `after_connect`.
pub(super) async fn refuse_read_only(connection: &mut PgConnection) -> sqlx::Result<()> {
    // In one message: behind a pooler, a prepared statement may meet another session than the one that prepared it.
    let question = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::boolean";
    let row = sqlx::raw_sql(question).fetch_one(connection).await?;
    let (standby, read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let refusal = match (standby, read_only) {
        (true, _) => Some("the server is a standby: it takes no writes until it is promoted"),
        (false, true) => Some("the server takes no writes: its transactions are read-only"),
        (false, false) => None,
    };
    sessions().refusal = refusal;
    let Some(refusal) = refusal else { return Ok(()) };
    tokio::time::sleep(REFUSAL_PAUSE).await;
    Err(sqlx::Error::Configuration(refusal.into()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("25006", "cannot execute INSERT in a read-only transaction", true)]
    #[case("57P01", "terminating connection due to administrator command", true)]
    #[case("57P05", "terminating connection due to idle-session timeout", true)]
    #[case("25P03", "terminating connection due to idle-in-transaction timeout", true)]
    #[case("26000", "prepared statement \"sqlx_s_1\" does not exist", true)]
    #[case("42P05", "prepared statement \"sqlx_s_1\" already exists", true)]
    #[case("0A000", "cached plan must not change result type", true)]
    #[case("0A000", "cannot insert into view", false)]
    #[case("XX000", "cache lookup failed for type 16400", true)]
    #[case("XX000", "unexpected chunk number 0", false)]
    #[case("08006", "connection failure", true)]
    #[case("23505", "duplicate key value violates unique constraint", false)]
    #[case("57014", "canceling statement due to statement timeout", false)]
    #[case("40001", "could not serialize access", false)]
    fn a_fault_is_told_from_an_ordinary_error(
        #[case] code: &str,
        #[case] message: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(is_fault(code, message), expected);
    }
}
