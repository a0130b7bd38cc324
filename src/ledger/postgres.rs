//! The ledger in Postgres: several machines share it.
//!
//! Leases are a column, on the database's clock. A claim changes only columns without an index, which Postgres does
//! without touching one (a heap-only update); `SKIP LOCKED` keeps two nodes from waiting for each other.

mod connect;
mod fan_out;
mod heads;
mod numbers;
mod pooler;
mod pools;
pub(super) mod session;
mod settle;
mod taken;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use self::heads::{FRONT, Heads};
pub use self::pools::PostgresPools;
pub(super) use self::pools::{Session, Sessions};
use super::fan_out::{Next, Step};
use super::incarnation::{Incarnation, Membership};
use super::notices::Notices;
use super::payloads::{self, Claimed, ClaimedPlaces, Payload, PayloadReader, Place, Recent, Stored};
use super::plan::{Known, Plan, RequestKey};
use super::rows;
use super::silence::in_time;
use super::sql::Database;
use super::{Committed, Held, LedgerError, LedgerOptions, Migrations, Opened, Pooler, Result, Store};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::delivery::Settlement;
use crate::domain::event::{Event, Identity};
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::sequence::Sequence;
use crate::failpoint::failpoint;
use crate::jobs::JobMetrics;

pub(super) const MIGRATIONS: Migrations = &[
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
    (12, "clock", include_str!("../../migrations/postgres/0012_clock.sql")),
    (13, "epochs", include_str!("../../migrations/postgres/0013_epochs.sql")),
    (15, "fan_out", include_str!("../../migrations/postgres/0015_fan_out.sql")),
    (17, "unused_lanes", include_str!("../../migrations/postgres/0017_unused_lanes.sql")),
];

/// See the module's own words.
pub(super) struct PostgresStore {
    pool: Sessions,
    database: Database,
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
    jobs: &Arc<JobMetrics>,
) -> Result<Opened<PostgresStore>> {
    // The URL itself may hold a password: it is not repeated.
    if !options.url.starts_with("postgres://") && !options.url.starts_with("postgresql://") {
        let words = "the database URL is neither `sqlite:PATH` nor `postgres://…`";
        return Err(LedgerError::Refused(words.into()));
    }
    let connections = &options.connections;
    let primary = connect::parsed(&options.url, "the database URL", connections)?;
    let replica = connections.replica_url.as_deref();
    let replica = replica.map(|url| connect::parsed(url, "ledger.replica_url", connections)).transpose()?;
    let pools = connect::pools(&primary, replica.as_ref(), connections).await?;
    check(&pools.hot).await?;
    match connections.pooler {
        Pooler::None => super::migrate(&mut *pools.hot.session().await?, MIGRATIONS).await?,
        Pooler::Transaction => pooler::migrate(&primary).await?,
    }
    let database = Database::Postgres(pools.clone());
    let membership = Arc::new(Membership::new(numbers::take(&pools.hot).await?, health.clone()));
    let sequence = Sequence::new(membership.current().node, database.largest_seq().await?);
    let lease_ms = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
    let notices = Some(Notices::new(
        membership.clone(),
        pools.hot.clone(),
        connect::listened_at(&primary, connections)?,
        jobs,
    ));
    let store = PostgresStore {
        pool: pools.hot,
        database: database.clone(),
        recent: Recent::new(options.recent_bytes),
        heads: Heads::default(),
        lease_ms,
        membership: membership.clone(),
        clock: clock.clone(),
    };
    Ok(Opened { store, database, sequence, membership, notices })
}

/// Refuses what would not keep an acknowledged event.
async fn check(pool: &Sessions) -> Result<()> {
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
    /// Writes a plan's rows without what is there already, which is taken out of the plan. Returns false where the plan has
    /// to be made again.
    async fn insert_plan(&self, connection: &mut Session, plan: &mut Plan<'_>) -> Result<bool> {
        if !taken::insert_keys(connection, plan).await? {
            return Ok(false);
        }
        let incarnation = self.membership.current();
        if insert_events(connection, plan, incarnation).await? < plan.inserts.len() as u64 {
            return Err(self.membership.lose(incarnation));
        }
        fan_out::insert(connection, plan).await?;
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
            .bind(rows.iter().map(|waiting| i64::from(waiting.is_handed_over())).collect::<Vec<_>>())
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
async fn insert_events(connection: &mut Session, plan: &Plan<'_>, incarnation: Incarnation) -> Result<u64> {
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
    async fn write(&self, plan: &mut Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
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
        let mut transaction = self.pool.begin().await?;
        let known = taken::look_up(&mut transaction, identities, keys).await?;
        transaction.commit().await?;
        Ok(known)
    }

    async fn claim_lanes(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Claimed> {
        let mut claimed = self.claim_places(claims, now).await?;
        // On an error nothing of it is sent: the claims are taken back, not left until their leases end.
        match self.load(claims, &mut claimed, now).await {
            Ok((loaded, unread)) => {
                self.unclaim(&unread).await?;
                Ok(loaded)
            }
            Err(error) => {
                // Where this fails too, the leases end by themselves.
                let _ = self.unclaim(&payloads::all_held(claims, &claimed)).await;
                Err(error)
            }
        }
    }

    /// The deliveries of what was claimed, and when more falls due.
    async fn load(
        &self,
        claims: &[LaneClaim],
        claimed: &mut [ClaimedPlaces],
        now: Timestamp,
    ) -> Result<(Claimed, Vec<Held>)> {
        // A full answer says by itself that more may be due.
        if claimed.iter().any(|lane| lane.remaining == Remaining::Nothing) {
            let later = self.later(claims, now).await?;
            for (number, lane) in (1..).zip(&mut *claimed) {
                if let Some(due_at) = later.get(&number).filter(|_| lane.remaining == Remaining::Nothing) {
                    lane.remaining = Remaining::Later(Timestamp::from_millis(*due_at));
                }
            }
        }
        payloads::load(claims, claimed, &self.recent, self).await
    }

    /// Takes claims back of which nothing was sent.
    async fn unclaim(&self, held: &[Held]) -> Result<()> {
        if !held.is_empty() {
            settle::unclaim(&self.pool, held).await?;
            self.heads.released(held);
        }
        Ok(())
    }

    async fn beat(&self) -> Result<()> {
        let incarnation = self.membership.current();
        let kept = numbers::keep(&self.pool, incarnation).await?;
        if kept { Ok(()) } else { Err(self.membership.lose(incarnation)) }
    }

    /// Takes another number and epoch, and a sequence above every event number in use.
    async fn take_another(&self) -> Result<Sequence> {
        let incarnation = numbers::take(&self.pool).await?;
        let largest = self.database.largest_seq().await?;
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
impl PayloadReader for PostgresStore {
    async fn payloads(&self, events: &[i64], limit_bytes: usize) -> Result<HashMap<i64, Stored>> {
        let rows: Vec<PayloadRow> = sqlx::query_as(
            "SELECT seq, source, id, type, received_at, CASE WHEN octet_length(body) <= $2 THEN body END,
                    octet_length(body)::bigint, data_start, data_end, trace
             FROM event WHERE seq = ANY ($1)",
        )
        .bind(events)
        .bind(rows::count(limit_bytes))
        .fetch_all(&self.pool)
        .await?;
        let stored = |row: PayloadRow| {
            let (number, source, id, event_type, received_at, body, length, start, end, trace) = row;
            let Some(body) = body else {
                return (number, Stored::Large(usize::try_from(length).unwrap_or(usize::MAX)));
            };
            let (body, data) = (Bytes::from(body), rows::range(start, end));
            let trace = rows::trace(trace.as_deref());
            let (source, id, event_type) = (source.into(), id.into(), event_type.into());
            let payload = Payload { source, id, event_type, received_at, body, data, trace };
            (number, Stored::Payload(payload))
        };
        Ok(rows.into_iter().map(stored).collect())
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn commit(&self, plan: &mut Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        in_time(self.write(plan, settlements)).await
    }

    async fn continue_fan_out(&self, next: Next<'_>) -> Result<Option<Step>> {
        in_time(self.queue_fan_out(next)).await
    }

    async fn lookup(&self, identities: &[&Identity], keys: &[&RequestKey]) -> Result<Known> {
        in_time(self.look_up(identities, keys)).await
    }

    async fn claim(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Claimed> {
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
/// seq, source, id, type, received_at, body, its length, data_start, data_end, trace
type PayloadRow =
    (i64, String, String, String, i64, Option<Vec<u8>>, i64, Option<i64>, Option<i64>, Option<String>);

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
