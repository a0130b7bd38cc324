//! The ledger in Postgres: several machines share it.
//!
//! Leases are a column, on the database's clock. A claim changes only columns without an index, which Postgres does
//! without touching one (a heap-only update); `SKIP LOCKED` keeps two nodes from waiting for each other.

mod heads;
mod numbers;
mod settle;

use std::collections::HashMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Executor as _, PgConnection, PgPool};
use tokio::sync::watch;

use self::heads::{FRONT, Heads};
use super::incarnation::{Incarnation, Membership};
use super::notices::Notices;
use super::payloads::{self, ClaimedPlaces, Payload, Place, Recent};
use super::plan::{Known, Plan, RequestKey};
use super::rows;
use super::silence::{answers, in_time};
use super::sql::Database;
use super::{ClaimedLane, Committed, Held, LedgerError, LedgerOptions, Migrations, Opened, Result, Store};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::Settlement;
use crate::domain::event::{Event, Fingerprint, Identity};
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::sequence::Sequence;
use crate::failpoint::failpoint;
use crate::reconnect;

const MIGRATIONS: Migrations = &[
    (1, "ledger", include_str!("../../migrations/postgres/0001_ledger.sql")),
    (2, "partners", include_str!("../../migrations/postgres/0002_partners.sql")),
    (3, "fairness", include_str!("../../migrations/postgres/0003_fairness.sql")),
    (4, "nodes", include_str!("../../migrations/postgres/0004_nodes.sql")),
    (5, "tenants", include_str!("../../migrations/postgres/0005_tenants.sql")),
    (6, "rejected", include_str!("../../migrations/postgres/0006_rejected.sql")),
    (7, "story", include_str!("../../migrations/postgres/0007_story.sql")),
    (8, "watching", include_str!("../../migrations/postgres/0008_watching.sql")),
    (9, "replays", include_str!("../../migrations/postgres/0009_replays.sql")),
    (10, "console", include_str!("../../migrations/postgres/0010_console.sql")),
    (11, "steered_by", include_str!("../../migrations/postgres/0011_steered_by.sql")),
    (13, "epochs", include_str!("../../migrations/postgres/0013_epochs.sql")),
];
const CONNECTIONS: u32 = 8;
/// Every statement of ours has an index to go by. A plan that is kept from when a table was small, or a guess from old
/// statistics, would scan a deep queue for each claim instead. What has to scan all the same is made to look so dear by
/// that, that the server would compile it first, or start processes to share the work.
const BY_INDEX: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off; \
                        SET max_parallel_workers_per_gather = 0";
/// A transaction of ours never waits for us. One that a node was cut off from would keep its rows locked, and whoever sends
/// the same events again waiting, until the server missed the node.
const NOT_FOR_LONG: &str = "SET idle_in_transaction_session_timeout = '10s'";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a start waits for the database.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// See the module's own words.
pub(super) struct PostgresStore {
    pool: PgPool,
    recent: Recent,
    heads: Heads,
    lease_ms: i64,
    membership: Arc<Membership>,
    clock: Arc<dyn Clock>,
}

/// Connects, migrates, checks, and takes a node number.
pub(super) async fn open(
    options: &LedgerOptions,
    clock: &Arc<dyn Clock>,
    health: &watch::Sender<Option<String>>,
) -> Result<Opened<PostgresStore>> {
    // The URL itself may hold a password: it is not repeated.
    if !options.url.starts_with("postgres://") && !options.url.starts_with("postgresql://") {
        let words = "the database URL is neither `sqlite:PATH` nor `postgres://…`";
        return Err(LedgerError::Refused(words.into()));
    }
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|error| LedgerError::Refused(format!("the database URL is not a Postgres one: {error}")))?
        .application_name("posthaste");
    let pool = || {
        PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(BY_INDEX).await?;
                    connection.execute(NOT_FOR_LONG).await.map(drop)
                })
            })
            .after_release(|connection, _| Box::pin(answers(connection)))
            .connect_with(connect.clone())
    };
    // A database that has just been started may need a moment; a wrong password stays wrong.
    let pool = reconnect::reach(START_PATIENCE, pool, is_final)
        .await
        .map_err(|error| LedgerError::Unavailable(format!("can't reach Postgres: {error}")))?;
    check(&pool).await?;
    super::migrate(&mut *pool.acquire().await?, MIGRATIONS).await?;
    let database = Database::Postgres(pool.clone());
    let membership = Arc::new(Membership::new(numbers::take(&pool).await?, health.clone()));
    let sequence = Sequence::new(membership.current().node, database.largest_seq().await?);
    let lease_ms = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
    let notices = Some(Notices::new(membership.clone(), pool.clone(), &connect));
    let store = PostgresStore {
        pool,
        recent: Recent::new(options.recent_bytes),
        heads: Heads::default(),
        lease_ms,
        membership: membership.clone(),
        clock: clock.clone(),
    };
    Ok(Opened { store, database, sequence, membership, notices })
}

/// Whether waiting does not help: the server answered, and it is not just starting (57P03) or crowded (53300).
fn is_final(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code != "57P03" && code != "53300")
}

/// Refuses what would not keep an acknowledged event.
async fn check(pool: &PgPool) -> Result<()> {
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let (value,): (String,) =
            sqlx::query_as("SELECT current_setting($1)").bind(setting).fetch_one(pool).await?;
        if value == "off" {
            return Err(LedgerError::Refused(format!(
                "Postgres runs with {setting}=off: it would lose what the ledger acknowledged; turn it on"
            )));
        }
    }
    Ok(())
}

impl PostgresStore {
    async fn insert_plan(&self, connection: &mut PgConnection, plan: &Plan<'_>) -> Result<bool> {
        if !insert_keys(connection, plan).await? {
            return Ok(false);
        }
        let incarnation = self.membership.current();
        if insert_events(connection, plan, incarnation).await? < plan.inserts.len() as u64 {
            return Err(self.membership.lose(incarnation));
        }
        let rows = &plan.deliveries;
        if !rows.is_empty() {
            sqlx::query(
                "INSERT INTO queue (lane, retry, due_at, event, attempt, failures, uncertain, lease_until)
                 SELECT lane, 0, $3, event, handed_over, 0, 0,
                        handed_over * ((SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint) + $5)
                 FROM UNNEST($1::bigint[], $2::bigint[], $4::bigint[]) AS t (lane, event, handed_over)",
            )
            .bind(rows.iter().map(|waiting| waiting.lane.id.0).collect::<Vec<_>>())
            .bind(rows.iter().map(|waiting| waiting.seq.0).collect::<Vec<_>>())
            .bind(plan.now.as_millis())
            .bind(rows.iter().map(|waiting| i64::from(waiting.handed_over)).collect::<Vec<_>>())
            .bind(self.lease_ms)
            .execute(connection)
            .await?;
        }
        Ok(true)
    }

    /// Takes due deliveries out for the lease, in no order. Each claim looks from its place in `heads` on.
    async fn lease(&self, claims: &[LaneClaim], heads: &[i64], now: Timestamp) -> Result<Vec<QueueRow>> {
        let incarnation = self.membership.current();
        let rows = sqlx::query_as(
            // By their place in the table: a join with what was picked, whose number the planner can only guess, became
            // a scan of a large queue. The clock is read in a query of its own, or it would be for each row passed.
            "UPDATE queue SET attempt = attempt + 1,
                 lease_until = (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint) + $4
             WHERE ctid = ANY (ARRAY(
                 SELECT head.place
                 FROM UNNEST($1::bigint[], $2::bigint[], $5::bigint[], $6::bigint[]) AS wanted (lane, n, retry, head)
                 CROSS JOIN LATERAL (
                     SELECT queue.ctid AS place FROM queue
                     WHERE queue.lane = wanted.lane AND queue.retry = wanted.retry
                       AND queue.due_at >= wanted.head AND queue.due_at <= $3
                       AND queue.lease_until <= (SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint)
                     ORDER BY queue.due_at, queue.event LIMIT wanted.n FOR UPDATE SKIP LOCKED
                 ) AS head
                 WHERE (SELECT epoch FROM node WHERE number = $7) = $8
             ))
             RETURNING lane, retry, due_at, event, attempt, failures, uncertain, replay",
        )
        .bind(column(claims, |claim| claim.lane.id.0))
        .bind(column(claims, |claim| rows::count(claim.limit)))
        .bind(now.as_millis())
        .bind(self.lease_ms)
        .bind(column(claims, |claim| rows::class_column(claim.class)))
        .bind(heads)
        .bind(incarnation.node)
        .bind(incarnation.epoch_text())
        .fetch_all(&self.pool)
        .await?;
        if rows.is_empty() {
            // There is nothing, or this node may claim nothing any more.
            self.holds_number(incarnation).await?;
        }
        Ok(rows)
    }

    /// Checks that `incarnation` still holds its number.
    async fn holds_number(&self, incarnation: Incarnation) -> Result<()> {
        let holds = numbers::holds(&self.pool, incarnation).await?;
        if holds { Ok(()) } else { Err(self.membership.lose(incarnation)) }
    }

    /// Claims what is due, in the order it falls due: of a deep queue from where the claim before has ended.
    async fn claim_places(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Vec<ClaimedPlaces>> {
        let moment = self.clock.moment();
        let mut heads = self.heads.of(claims, moment);
        let mut rows = self.lease(claims, &heads, now).await?;
        let mut claimed = by_claim(claims, &rows);
        // What waits further in front, where that was not all that is wanted.
        let mut wanting = Vec::new();
        for ((claim, head), found) in claims.iter().zip(&mut heads).zip(&claimed) {
            let limit = claim.limit - found.places.len();
            if limit > 0 && *head != FRONT {
                *head = FRONT;
                wanting.push(LaneClaim { limit, ..claim.clone() });
            }
        }
        if !wanting.is_empty() {
            rows.extend(self.lease(&wanting, &vec![FRONT; wanting.len()], now).await?);
            claimed = by_claim(claims, &rows);
        }
        self.heads.found(claims, &heads, &claimed, moment);
        Ok(claimed)
    }

    /// When the next delivery falls due behind what is due now, for each of these claims that has one.
    async fn later(&self, claims: &[LaneClaim], now: Timestamp) -> Result<HashMap<i64, i64>> {
        let later: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT wanted.claim, later.due_at
             FROM UNNEST($1::bigint[], $3::bigint[]) WITH ORDINALITY AS wanted (lane, retry, claim)
             CROSS JOIN LATERAL (
                 SELECT queue.due_at FROM queue
                 WHERE queue.lane = wanted.lane AND queue.retry = wanted.retry AND queue.due_at > $2
                 ORDER BY queue.due_at LIMIT 1
             ) AS later",
        )
        .bind(column(claims, |claim| claim.lane.id.0))
        .bind(now.as_millis())
        .bind(column(claims, |claim| rows::class_column(claim.class)))
        .fetch_all(&self.pool)
        .await?;
        Ok(later.into_iter().collect())
    }

    async fn payloads(&self, events: &[i64]) -> Result<HashMap<i64, Payload>> {
        let rows: Vec<PayloadRow> = sqlx::query_as(
            "SELECT seq, source, id, type, received_at, body, data_start, data_end, trace FROM event WHERE seq = ANY ($1)",
        )
        .bind(events)
        .fetch_all(&self.pool)
        .await?;
        let payload = |(number, source, id, event_type, received_at, body, start, end, trace): PayloadRow| {
            let (body, data) = (Bytes::from(body), rows::range(start, end));
            let trace = rows::trace(trace.as_deref());
            let (source, id, event_type) = (source.into(), id.into(), event_type.into());
            (number, Payload { source, id, event_type, received_at, body, data, trace })
        };
        Ok(rows.into_iter().map(payload).collect())
    }
}

/// Writes a plan's keys; false where some are taken.
async fn insert_keys(connection: &mut PgConnection, plan: &Plan<'_>) -> Result<bool> {
    let keys: Vec<_> = plan.sorted().collect();
    if !keys.is_empty() {
        let identities = || keys.iter().map(|insert| &insert.new.event.identity);
        let written = sqlx::query(
            "INSERT INTO event_key (tenant, source, id, fingerprint, event)
             SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[])
             ON CONFLICT DO NOTHING",
        )
        .bind(identities().map(|identity| &*identity.tenant).collect::<Vec<_>>())
        .bind(identities().map(|identity| &*identity.source).collect::<Vec<_>>())
        .bind(identities().map(|identity| &*identity.id).collect::<Vec<_>>())
        .bind(keys.iter().map(|insert| &insert.new.event.fingerprint.0[..]).collect::<Vec<_>>())
        .bind(keys.iter().map(|insert| insert.seq.0).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?
        .rows_affected();
        if written < keys.len() as u64 {
            return Ok(false);
        }
    }
    let keys = &plan.request_keys;
    if !keys.is_empty() {
        let written = sqlx::query(
            "INSERT INTO request_key (scope, key, fingerprint, created_at)
             SELECT scope, key, fingerprint, $4 FROM UNNEST($1::text[], $2::text[], $3::bytea[])
                 AS t (scope, key, fingerprint)
             ON CONFLICT DO NOTHING",
        )
        .bind(keys.iter().map(|key| &*key.scope).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| &*key.key).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| &key.fingerprint[..]).collect::<Vec<_>>())
        .bind(plan.now.as_millis())
        .execute(connection)
        .await?
        .rows_affected();
        if written < keys.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}

const INSERT_EVENTS: &str =
    "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, data_end)
     SELECT seq, tenant, source, id, type, $9, destinations, body, data_start, data_end
     FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bytea[],
                 $8::bigint[], $10::bigint[])
         AS t (seq, tenant, source, id, type, destinations, body, data_start, data_end)
     WHERE (SELECT epoch FROM node WHERE number = $11) = $12";
/// The same where some belong to traces: most belong to none, and pay for none.
const INSERT_TRACED: &str =
    "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, data_end, trace)
     SELECT seq, tenant, source, id, type, $9, destinations, body, data_start, data_end, trace
     FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bytea[],
                 $8::bigint[], $10::bigint[], $13::text[])
         AS t (seq, tenant, source, id, type, destinations, body, data_start, data_end, trace)
     WHERE (SELECT epoch FROM node WHERE number = $11) = $12";

/// Writes a plan's events, as `incarnation` and only while that holds its number; how many were written.
async fn insert_events(
    connection: &mut PgConnection,
    plan: &Plan<'_>,
    incarnation: Incarnation,
) -> Result<u64> {
    if plan.inserts.is_empty() {
        return Ok(0);
    }
    let events = || plan.inserts.iter().map(|insert| &insert.new.event);
    let ranges = || events().map(|event| rows::range_columns(event.data.as_ref()));
    let text = if plan.is_traced() { INSERT_TRACED } else { INSERT_EVENTS };
    let mut insert = sqlx::query(text)
        .bind(plan.inserts.iter().map(|insert| insert.seq.0).collect::<Vec<_>>())
        .bind(events().map(|event| &*event.identity.tenant).collect::<Vec<_>>())
        .bind(events().map(|event| &*event.identity.source).collect::<Vec<_>>())
        .bind(events().map(|event| &*event.identity.id).collect::<Vec<_>>())
        .bind(events().map(|event| &*event.event_type).collect::<Vec<_>>())
        .bind(plan.inserts.iter().map(|insert| rows::count(insert.new.lanes.len())).collect::<Vec<_>>())
        .bind(events().map(|event| &event.body[..]).collect::<Vec<_>>())
        .bind(ranges().map(|(start, _)| start).collect::<Vec<_>>())
        .bind(plan.now.as_millis())
        .bind(ranges().map(|(_, end)| end).collect::<Vec<_>>())
        .bind(incarnation.node)
        .bind(incarnation.epoch_text());
    if plan.is_traced() {
        let trace = |event: &Event| event.trace.as_ref().map(ToString::to_string);
        insert = insert.bind(events().map(trace).collect::<Vec<_>>());
    }
    Ok(insert.execute(connection).await?.rows_affected())
}

/// One column of rows, as an array parameter.
fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

impl PostgresStore {
    async fn write(&self, plan: &Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        let mut transaction = self.pool.begin().await?;
        if !self.insert_plan(&mut transaction, plan).await? {
            transaction.rollback().await?;
            return Ok(Committed::Clash);
        }
        let stale = settle::settle(&mut transaction, settlements).await?;
        failpoint!("accept_uncommitted", !plan.inserts.is_empty());
        failpoint!("settle_uncommitted", !settlements.is_empty());
        transaction.commit().await?;
        failpoint!("accept_committed", !plan.inserts.is_empty());
        failpoint!("settle_committed", !settlements.is_empty());
        self.recent.keep(plan, self.clock.moment());
        self.heads.committed(plan, settlements);
        Ok(Committed::Done { stale })
    }

    async fn look_up(&self, identities: &[&Identity], keys: &[&RequestKey]) -> Result<Known> {
        let mut known = Known::default();
        let events: Vec<(String, String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT event_key.tenant, event_key.source, event_key.id, fingerprint
             FROM UNNEST($1::text[], $2::text[], $3::text[]) AS wanted (tenant, source, id)
             JOIN event_key USING (tenant, source, id)",
        )
        .bind(column(identities, |identity| &*identity.tenant))
        .bind(column(identities, |identity| &*identity.source))
        .bind(column(identities, |identity| &*identity.id))
        .fetch_all(&self.pool)
        .await?;
        for (tenant, source, id, fingerprint) in events {
            let identity = Identity { tenant: tenant.into(), source: source.into(), id: id.into() };
            known.events.insert(identity, Fingerprint(rows::digest(&fingerprint)?));
        }
        let requests: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT request_key.scope, request_key.key, fingerprint
             FROM UNNEST($1::text[], $2::text[]) AS wanted (scope, key) JOIN request_key USING (scope, key)",
        )
        .bind(column(keys, |key| &*key.scope))
        .bind(column(keys, |key| &*key.key))
        .fetch_all(&self.pool)
        .await?;
        for (scope, key, fingerprint) in requests {
            known.requests.insert((scope, key), rows::digest(&fingerprint)?);
        }
        Ok(known)
    }

    async fn claim_lanes(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Vec<ClaimedLane>> {
        let mut claimed = self.claim_places(claims, now).await?;
        // A full answer says by itself that more may be due.
        if claimed.iter().any(|lane| lane.remaining == Remaining::Nothing) {
            let later = self.later(claims, now).await?;
            for (number, lane) in (1..).zip(&mut claimed) {
                if let Some(due_at) = later.get(&number).filter(|_| lane.remaining == Remaining::Nothing) {
                    lane.remaining = Remaining::Later(Timestamp::from_millis(*due_at));
                }
            }
        }
        // Where this fails, the leases end by themselves.
        payloads::deliveries(claims, &claimed, &self.recent, async |events: &[i64]| {
            self.payloads(events).await
        })
        .await
    }

    async fn beat(&self) -> Result<()> {
        let incarnation = self.membership.current();
        let kept = numbers::keep(&self.pool, incarnation).await?;
        if kept { Ok(()) } else { Err(self.membership.lose(incarnation)) }
    }

    /// Takes another number and epoch, and a sequence above every event number in use.
    async fn take_another(&self) -> Result<Sequence> {
        let incarnation = numbers::take(&self.pool).await?;
        let largest = Database::Postgres(self.pool.clone()).largest_seq().await?;
        self.membership.replace(incarnation);
        Ok(Sequence::new(incarnation.node, largest))
    }

    async fn claim_at(&self, place: &Held) -> Result<Option<i64>> {
        let incarnation = self.membership.current();
        let claimed = settle::claim_one(&self.pool, place, self.lease_ms, incarnation).await?;
        if claimed.is_none() {
            self.holds_number(incarnation).await?;
        }
        Ok(claimed)
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, plan: &Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        in_time(self.write(plan, settlements)).await
    }

    async fn lookup(&self, identities: &[&Identity], keys: &[&RequestKey]) -> Result<Known> {
        in_time(self.look_up(identities, keys)).await
    }

    async fn claim(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Vec<ClaimedLane>> {
        in_time(self.claim_lanes(claims, now)).await
    }

    async fn release(&self, held: &[Held]) -> Result<()> {
        in_time(settle::release(&self.pool, held)).await?;
        self.heads.released(held);
        Ok(())
    }

    async fn claim_one(&self, place: &Held) -> Result<Option<i64>> {
        in_time(self.claim_at(place)).await
    }

    async fn prove(&self) -> Result<()> {
        in_time(self.holds_number(self.membership.current())).await
    }

    async fn rejoin(&self) -> Result<Sequence> {
        in_time(self.take_another()).await
    }

    async fn heartbeat(&self, _after_trouble: bool) -> Result<()> {
        in_time(self.beat()).await
    }

    async fn announce(&self, _address: &str) -> Result<()> {
        Ok(())
    }

    async fn close(&self, database: &Database) {
        // The number is free for the next; where this fails it is free in ten minutes.
        let _ = numbers::give_back(&self.pool, self.membership.current()).await;
        database.close().await;
    }
}

/// lane, retry, due_at, event, attempt, failures, uncertain, replay
type QueueRow = (i64, i64, i64, i64, i64, i64, i64, i64);
/// seq, source, id, type, received_at, body, data_start, data_end
type PayloadRow = (i64, String, String, String, i64, Vec<u8>, Option<i64>, Option<i64>, Option<String>);

/// One answer for each claim, each of a queue of its own.
fn by_claim(claims: &[LaneClaim], rows: &[QueueRow]) -> Vec<ClaimedPlaces> {
    let mut queues: HashMap<_, Vec<Place>> = HashMap::with_capacity(claims.len());
    for &(lane, retry, due_at, event, attempt, failures, uncertain, replay) in rows {
        let place = Place { due_at, event, attempt, failures, uncertain, replay };
        queues.entry((lane, retry)).or_default().push(place);
    }
    let answer = |claim: &LaneClaim| {
        let queue = (claim.lane.id.0, rows::class_column(claim.class));
        let mut places = queues.remove(&queue).unwrap_or_default();
        places.sort_unstable_by_key(|place| (place.due_at, place.event));
        let remaining = if places.len() == claim.limit { Remaining::Due } else { Remaining::Nothing };
        ClaimedPlaces { places, remaining }
    };
    claims.iter().map(answer).collect()
}
