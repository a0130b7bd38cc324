//! Keys of a plan that are taken already: found while they are written, and left out.

use std::sync::Arc;

use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::waiting;
use super::write::{LARGEST, Rows, Values, next_chunk, size_for};
use crate::domain::event::Identity;
use crate::ledger::plan::{Insert, Known, Plan, RequestKey};
use crate::ledger::{Result, rows};

static EVENT_KEYS: Rows = Rows::new(
    "INSERT INTO event_key (tenant, source, id, fingerprint, event) VALUES",
    "(?,?,?,?,?)",
    " ON CONFLICT DO NOTHING",
);
/// Identities that are stored, but for those of events with numbers of this plan: with their fingerprints, packed into one
/// value.
pub(super) static TAKEN: Rows = Rows::new(
    "SELECT CAST(group_concat(format('%d %d %d ', octet_length(tenant), octet_length(source), octet_length(id)) \
     || tenant || source || id || fingerprint, '') AS BLOB) FROM event_key WHERE event NOT BETWEEN ? AND ? \
     AND (tenant, source, id) IN (VALUES",
    "(?,?,?)",
    ")",
);
/// The same of one tenant and source: a third of what is bound, and most requests have no more.
pub(super) static TAKEN_OF_ONE: Rows = Rows::new(
    "SELECT CAST(group_concat(format('%d %d %d ', octet_length(tenant), octet_length(source), octet_length(id)) \
     || tenant || source || id || fingerprint, '') AS BLOB) FROM event_key WHERE event NOT BETWEEN ? AND ? \
     AND tenant = ? AND source = ? AND id IN (",
    "?",
    ")",
);
/// From so many rows on a statement of their own is worth its round trip.
const OF_ONE: usize = 8;
static REQUEST_KEYS: Rows = Rows::new(
    "INSERT INTO request_key (scope, key, fingerprint, created_at) VALUES",
    "(?,?,?,?)",
    " ON CONFLICT DO NOTHING",
);
static STORED_REQUEST_KEYS: Rows =
    Rows::new("SELECT scope, key, fingerprint FROM request_key WHERE (scope, key) IN (VALUES", "(?,?)", ")");

/// Writes the keys of a plan's events and requests. Those that are taken are taken out of the plan. Returns false where the
/// plan has to be made again.
pub(super) async fn insert_keys(connection: &mut SqliteConnection, plan: &mut Plan<'_>) -> Result<bool> {
    let mut taken = Known::default();
    insert_event_keys(connection, plan, &mut taken).await?;
    // Nobody else writes: what is not stored now is free.
    stored_request_keys(connection, &plan.request_keys, &mut taken).await?;
    if !(taken.events.is_empty() && taken.requests.is_empty()) {
        let Some(refused) = plan.narrow(taken) else { return Ok(false) };
        for Insert { new, .. } in refused.inserts {
            delete_event_key(connection, &new.event.identity).await?;
        }
    }
    let written = REQUEST_KEYS.write(connection, &plan.request_keys, |values, key| {
        let values = values.add(&*key.scope)?.add(&*key.key)?.add(&key.fingerprint[..])?;
        values.add(plan.now.as_millis()).map(drop)
    });
    Ok(written.await? == plan.request_keys.len() as u64)
}

/// Writes the identities of a plan's events; those that are stored already are `taken`.
async fn insert_event_keys(
    connection: &mut SqliteConnection,
    plan: &Plan<'_>,
    taken: &mut Known,
) -> Result<()> {
    let keys: Vec<_> = plan.sorted().collect();
    let short = EVENT_KEYS.write_new(connection, &keys, |values, insert| {
        let identity = &insert.new.event.identity;
        values.text(&identity.tenant)?.text(&identity.source)?.text(&identity.id)?;
        values.add(&insert.new.event.fingerprint.0[..])?.add(insert.seq.0).map(drop)
    });
    let short = short.await?;
    if short.is_empty() {
        return Ok(());
    }
    let number = |insert: Option<&Insert<'_>>| insert.map_or(0, |insert| insert.seq.0);
    let own = (number(plan.inserts.first()), number(plan.inserts.last()));
    let mut apart = Vec::new();
    let short = short.concat();
    for of_one in short.chunk_by(|one, next| scope(one) == scope(next)) {
        if of_one.len() < OF_ONE {
            apart.extend(of_one.iter().copied());
            continue;
        }
        let (tenant, source) = scope(of_one[0]);
        let first = |values: &mut Values| values.add(own.0)?.add(own.1)?.text(tenant)?.text(source).map(drop);
        let id =
            |values: &mut Values, insert: &&Insert<'_>| values.text(&insert.new.event.identity.id).map(drop);
        find_taken(connection, &TAKEN_OF_ONE, first, of_one, id, taken).await?;
    }
    let first = |values: &mut Values| values.add(own.0)?.add(own.1).map(drop);
    let identity = |values: &mut Values, insert: &&Insert<'_>| {
        let identity = &insert.new.event.identity;
        values.text(&identity.tenant)?.text(&identity.source)?.text(&identity.id).map(drop)
    };
    find_taken(connection, &TAKEN, first, &apart, identity, taken).await
}

fn scope<'i>(insert: &'i Insert<'_>) -> (&'i Arc<str>, &'i Arc<str>) {
    let identity = &insert.new.event.identity;
    (&identity.tenant, &identity.source)
}

/// Reads identities and fingerprints. Asks for the last one again and again up to the size of a statement: one round trip,
/// where writing the same rows takes several.
async fn find_taken<T>(
    connection: &mut SqliteConnection,
    statement: &'static Rows,
    bind_first: impl Fn(&mut Values) -> sqlx::Result<()>,
    rows: &[T],
    bind: impl Fn(&mut Values, &T) -> sqlx::Result<()>,
    taken: &mut Known,
) -> Result<()> {
    for chunk in rows.chunks(LARGEST) {
        let size = size_for(chunk.len());
        let padded: Vec<_> = chunk.iter().chain(chunk.last().into_iter().cycle()).take(size).collect();
        let values = statement.values(&bind_first, &padded, |values, row| bind(values, row))?;
        let query = sqlx::query_as_with::<_, (Option<Vec<u8>>,), SqliteArguments>(
            AssertSqlSafe(statement.text(size)),
            values,
        );
        let (packed,) = query.fetch_one(&mut *connection).await?;
        taken.events.extend(waiting::identities(&packed.unwrap_or_default())?);
    }
    Ok(())
}

/// Which of these requests' keys are stored.
async fn stored_request_keys(
    connection: &mut SqliteConnection,
    keys: &[&RequestKey],
    stored: &mut Known,
) -> Result<()> {
    let mut rest = keys;
    while let Some((chunk, left)) = next_chunk(rest) {
        let values = STORED_REQUEST_KEYS.values(
            |_| Ok(()),
            chunk,
            |values, key| values.add(&*key.scope)?.add(&*key.key).map(drop),
        )?;
        let query = sqlx::query_as_with::<_, (String, String, Vec<u8>), SqliteArguments>(
            AssertSqlSafe(STORED_REQUEST_KEYS.text(chunk.len())),
            values,
        );
        for (scope, key, fingerprint) in query.fetch_all(&mut *connection).await? {
            stored.requests.insert((scope, key), rows::digest(&fingerprint)?);
        }
        rest = left;
    }
    Ok(())
}

async fn delete_event_key(connection: &mut SqliteConnection, identity: &Identity) -> Result<()> {
    sqlx::query("DELETE FROM event_key WHERE tenant = $1 AND source = $2 AND id = $3")
        .bind(&*identity.tenant)
        .bind(&*identity.source)
        .bind(&*identity.id)
        .execute(connection)
        .await?;
    Ok(())
}
