//! The way to the server: URLs as options, and the pools once it can be reached.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::{PostgresPools, pooler};
use crate::ledger::{Connections, LedgerError, Pooler, Result};
use crate::reconnect;

/// How long a start waits for the database.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// The options of a URL, which itself may hold a password and is not repeated.
pub(super) fn parsed(url: &str, name: &str, connections: &Connections) -> Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| LedgerError::Refused(format!("{name} is not a Postgres one: {error}")))?
        .application_name("posthaste");
    Ok(match connections.pooler {
        Pooler::None => options,
        // A pooler knows few settings of a session, and refuses the others.
        Pooler::Transaction => options.extra_float_digits(None),
    })
}

/// Where notices of other nodes are heard; `None` where only a pooler is known, which has no session to listen on.
pub(super) fn listened_at(
    primary: &PgConnectOptions,
    connections: &Connections,
) -> Result<Option<PgConnectOptions>> {
    match (&connections.listen_url, connections.pooler) {
        (Some(url), _) => {
            let direct = Connections { pooler: Pooler::None, ..connections.clone() };
            parsed(url, "ledger.listen_url", &direct).map(Some)
        }
        (None, Pooler::None) => Ok(Some(primary.clone())),
        (None, Pooler::Transaction) => Ok(None),
    }
}

/// Opens the pools, once the server can be reached.
pub(super) async fn pools(
    primary: &PgConnectOptions,
    replica: Option<&PgConnectOptions>,
    connections: &Connections,
) -> Result<PostgresPools> {
    let pooled = connections.pooler == Pooler::Transaction;
    let unreachable = |error: sqlx::Error| {
        if !pooled && pooler::looks_pooled(&error) {
            return pooler::not_configured(&error.to_string());
        }
        LedgerError::Unavailable(format!("can't reach Postgres: {error}"))
    };
    if !pooled {
        let shared = || async {
            let compared = tokio::time::timeout(START_PATIENCE, pooler::is_in_front_of(primary)).await;
            compared.map_err(|_| sqlx::Error::PoolTimedOut)?
        };
        // A database that has just been started may need a moment; a wrong password stays wrong.
        let shared = reconnect::reach(START_PATIENCE, shared, is_final).await.map_err(unreachable)?;
        if shared {
            return Err(pooler::not_configured("connections share their sessions"));
        }
    }
    let pools = || PostgresPools::connect(primary, replica, pooled, connections.read_timeout);
    reconnect::reach(START_PATIENCE, pools, is_final).await.map_err(unreachable)
}

/// Whether waiting does not help: the server answered, and it is not just starting (57P03) or crowded (53300).
fn is_final(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code != "57P03" && code != "53300")
}
