//! A pooler in transaction mode: whether one stands before the server, and the migrations through it.

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection, Row as _};

use super::MIGRATIONS;
use crate::ledger::{LedgerError, Result};

/// How often sessions are compared: a pooler that is busy for others may hide once.
const COMPARISONS: usize = 3;
/// Removes what sqlx's migrator has prepared by name: it would meet the same names at the next start. The names are
/// those of the driver; behind a pooler that renames prepared statements there are none.
const FORGET_STATEMENTS: &str = "DO $$ DECLARE statement text; BEGIN
         FOR statement IN SELECT name FROM pg_prepared_statements WHERE name LIKE 'sqlx\\_s\\_%' LOOP
             EXECUTE format('DEALLOCATE %I', statement);
         END LOOP;
     END $$";
/// Held to the end of the transaction, so that two nodes that start together migrate one after another.
const LOCK: &str = "SELECT pg_advisory_xact_lock(8100970143911373172)";

/// Why a start refuses a pooler that is not configured.
pub(super) fn not_configured(what: &str) -> LedgerError {
    LedgerError::Refused(format!(
        "a connection pooler in transaction mode stands between Posthaste and Postgres ({what}): set ledger.pooler = \
         \"transaction\", or let database_url name the server itself"
    ))
}

/// Whether a start failed because of a pooler: it knows few of a client's settings, and prepared statements clash.
pub(super) fn looks_pooled(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    error.message().contains("unsupported startup parameter")
        || error.code().is_some_and(|code| code == "42P05" || code == "26000")
}

/// Whether sessions are shared between connections: two connections meet the same server process, or one meets two.
/// Changes nothing in any session.
pub(super) async fn is_in_front_of(connect: &PgConnectOptions) -> sqlx::Result<bool> {
    let connect = connect.clone().extra_float_digits(None);
    let mut one = PgConnection::connect_with(&connect).await?;
    let mut other = PgConnection::connect_with(&connect).await?;
    let mut shared = false;
    for _ in 0..COMPARISONS {
        let before = process(&mut one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        // Not asked any further once it is clear: the other connection may hold the pooler's last session.
        shared = process(&mut other).await? == before || process(&mut one).await? != before;
        sqlx::raw_sql("COMMIT").execute(&mut other).await?;
        if shared {
            break;
        }
    }
    let _ = tokio::join!(one.close(), other.close());
    Ok(shared)
}

async fn process(connection: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await?.try_get(0)
}

/// Migrates in one transaction on one session: a lock of the session would stay with the pooler.
pub(super) async fn migrate(connect: &PgConnectOptions) -> Result<()> {
    let mut connection = PgConnection::connect_with(connect).await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql(LOCK).execute(&mut *transaction).await?;
    sqlx::raw_sql(FORGET_STATEMENTS).execute(&mut *transaction).await?;
    crate::ledger::migrate_locked(&mut *transaction, MIGRATIONS).await?;
    sqlx::raw_sql(FORGET_STATEMENTS).execute(&mut *transaction).await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok(())
}
