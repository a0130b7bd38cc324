//! Keys of a plan that are taken already: found while they are written, and left out.

use super::Session;
use super::column;
use crate::domain::event::{Fingerprint, Identity};
use crate::domain::hash::{FastMap, FastSet};
use crate::ledger::plan::{Insert, Known, Plan, RequestKey};
use crate::ledger::{Result, rows};

/// Writes the keys of a plan's events and requests. Those that are taken are taken out of the plan. Returns false where the
/// plan has to be made again.
pub(super) async fn insert_keys(connection: &mut Session, plan: &mut Plan<'_>) -> Result<bool> {
    let taken_events = insert_event_keys(connection, plan).await?;
    let taken_requests = insert_request_keys(connection, plan).await?;
    if taken_events.is_empty() && taken_requests.is_empty() {
        return Ok(true);
    }
    let inserts = plan.inserts.iter().filter(|insert| taken_events.contains_key(&insert.seq.0));
    let is_taken = |key: &&&RequestKey| taken_requests.contains(&(key.scope.clone(), key.key.clone()));
    let keys: Vec<_> = plan.request_keys.iter().filter(is_taken).copied().collect();
    let mut taken = Known::default();
    let mut unread = Vec::new();
    for insert in inserts {
        let identity = &insert.new.event.identity;
        match taken_events.get(&insert.seq.0).and_then(Option::as_deref) {
            Some(fingerprint) => {
                taken.events.insert(identity.clone(), Fingerprint(rows::digest(fingerprint)?));
            }
            None => unread.push(identity),
        }
    }
    if !(unread.is_empty() && keys.is_empty()) {
        taken.merge(look_up(connection, &unread, &keys).await?);
    }
    if (taken.events.len(), taken.requests.len()) != (taken_events.len(), keys.len()) {
        // Some were pruned in between, and are free again.
        return Ok(false);
    }
    let Some(refused) = plan.narrow(taken) else { return Ok(false) };
    delete_event_keys(connection, &refused.inserts).await?;
    delete_request_keys(connection, &refused.request_keys).await?;
    Ok(true)
}

/// Events whose identity is taken, by number, with the fingerprint that is stored; `None` where it was stored by another
/// transaction meanwhile, and has to be read.
type TakenEvents = FastMap<i64, Option<Vec<u8>>>;

/// Writes the identities of a plan's events. Returns those that are taken.
async fn insert_event_keys(connection: &mut Session, plan: &Plan<'_>) -> Result<TakenEvents> {
    let keys: Vec<_> = plan.sorted().collect();
    if keys.is_empty() {
        return Ok(TakenEvents::default());
    }
    let identities = || keys.iter().map(|insert| &insert.new.event.identity);
    // Nearly always all are written: then the last part reads nothing but their number.
    let taken: Vec<(i64, Option<Vec<u8>>)> = sqlx::query_as(
        "WITH written AS (
             INSERT INTO event_key (tenant, source, id, fingerprint, event)
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[])
             ON CONFLICT DO NOTHING RETURNING event
         )
         SELECT input.event, stored.fingerprint
         FROM UNNEST($1::text[], $2::text[], $3::text[], $5::bigint[]) AS input (tenant, source, id, event)
         LEFT JOIN event_key AS stored
             ON stored.tenant = input.tenant AND stored.source = input.source AND stored.id = input.id
         WHERE (SELECT COUNT(*) FROM written) < CARDINALITY($5::bigint[])
           AND input.event NOT IN (SELECT event FROM written)",
    )
    .bind(identities().map(|identity| &*identity.tenant).collect::<Vec<_>>())
    .bind(identities().map(|identity| &*identity.source).collect::<Vec<_>>())
    .bind(identities().map(|identity| &*identity.id).collect::<Vec<_>>())
    .bind(column(&keys, |insert| &insert.new.event.fingerprint.0[..]))
    .bind(column(&keys, |insert| insert.seq.0))
    .fetch_all(connection)
    .await?;
    Ok(taken.into_iter().collect())
}

/// Writes the keys of a plan's requests. Returns scope and key of those that are taken.
async fn insert_request_keys(connection: &mut Session, plan: &Plan<'_>) -> Result<FastSet<(String, String)>> {
    let keys = &plan.request_keys;
    if keys.is_empty() {
        return Ok(FastSet::default());
    }
    let taken: Vec<(String, String)> = sqlx::query_as(
        "WITH written AS (
             INSERT INTO request_key (scope, key, fingerprint, created_at)
             SELECT scope, key, fingerprint, $4 FROM UNNEST($1::text[], $2::text[], $3::bytea[])
                 AS t (scope, key, fingerprint)
             ON CONFLICT DO NOTHING RETURNING scope, key
         )
         SELECT input.scope, input.key FROM UNNEST($1::text[], $2::text[]) AS input (scope, key)
         WHERE (SELECT COUNT(*) FROM written) < CARDINALITY($1::text[])
           AND (input.scope, input.key) NOT IN (SELECT scope, key FROM written)",
    )
    .bind(column(keys, |key| &*key.scope))
    .bind(column(keys, |key| &*key.key))
    .bind(column(keys, |key| &key.fingerprint[..]))
    .bind(plan.now.as_millis())
    .fetch_all(connection)
    .await?;
    Ok(taken.into_iter().collect())
}

async fn delete_event_keys(connection: &mut Session, inserts: &[Insert<'_>]) -> Result<()> {
    if inserts.is_empty() {
        return Ok(());
    }
    let identities = || inserts.iter().map(|insert| &insert.new.event.identity);
    sqlx::query(
        "DELETE FROM event_key USING UNNEST($1::text[], $2::text[], $3::text[]) AS refused (tenant, source, id)
         WHERE event_key.tenant = refused.tenant AND event_key.source = refused.source AND event_key.id = refused.id",
    )
    .bind(identities().map(|identity| &*identity.tenant).collect::<Vec<_>>())
    .bind(identities().map(|identity| &*identity.source).collect::<Vec<_>>())
    .bind(identities().map(|identity| &*identity.id).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn delete_request_keys(connection: &mut Session, keys: &[&RequestKey]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM request_key USING UNNEST($1::text[], $2::text[]) AS refused (scope, key)
         WHERE request_key.scope = refused.scope AND request_key.key = refused.key",
    )
    .bind(column(keys, |key| &*key.scope))
    .bind(column(keys, |key| &*key.key))
    .execute(connection)
    .await?;
    Ok(())
}

/// What the ledger knows of these identities and request keys.
pub(super) async fn look_up(
    connection: &mut Session,
    identities: &[&Identity],
    keys: &[&RequestKey],
) -> Result<Known> {
    let mut known = Known::default();
    let events: Vec<(String, String, String, Vec<u8>)> = sqlx::query_as(
        "SELECT event_key.tenant, event_key.source, event_key.id, fingerprint
         FROM UNNEST($1::text[], $2::text[], $3::text[]) AS wanted (tenant, source, id)
         JOIN event_key USING (tenant, source, id)",
    )
    .bind(column(identities, |identity| &*identity.tenant))
    .bind(column(identities, |identity| &*identity.source))
    .bind(column(identities, |identity| &*identity.id))
    .fetch_all(&mut *connection)
    .await?;
    for (tenant, source, id, fingerprint) in events {
        let identity = Identity { tenant: tenant.into(), source: source.into(), id: id.into() };
        known.events.insert(identity, Fingerprint(rows::digest(&fingerprint)?));
    }
    if keys.is_empty() {
        return Ok(known);
    }
    let requests: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
        "SELECT request_key.scope, request_key.key, fingerprint
         FROM UNNEST($1::text[], $2::text[]) AS wanted (scope, key) JOIN request_key USING (scope, key)",
    )
    .bind(column(keys, |key| &*key.scope))
    .bind(column(keys, |key| &*key.key))
    .fetch_all(connection)
    .await?;
    for (scope, key, fingerprint) in requests {
        known.requests.insert((scope, key), rows::digest(&fingerprint)?);
    }
    Ok(known)
}
