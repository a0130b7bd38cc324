//! The ledger in a SQLite file: one process owns it, one connection writes it.
//!
//! Leases live in memory, since nobody else could hold one: a claim is a read, and start-up finds everything
//! unclaimed. A claim is fenced by its attempt number all the same.

mod backup;
mod claims;
mod fan_out;
mod file;
mod reads;
mod set_back;
mod taken;
mod waiting;
mod write;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection, SqlitePool};
use tokio::sync::watch;

pub use self::backup::{Backup, RestorePlace, SealedSecret, back_up, check_backup, draft_of};
use self::claims::{Claim, Claims, Cursor, Meanwhile, Queue};
use self::file::{Checkpointer, check, own, path_of, wal_path};
pub use self::file::{database_file, lock_holder};
pub use self::reads::LimitedReads;
use self::waiting::{EVENTS, WAITING};
use self::write::{insert_plan, next_chunk, placeholders, settle_rows};

use super::fan_out::{Next, Step};
use super::incarnation::{Incarnation, Membership};
use super::payloads::{self, Claimed, ClaimedPlaces, PayloadReader, Place, Recent, Stored};
use super::plan::{Known, Plan, RequestKey, Waiting};
use super::rows;
use super::sql::{Database, Turn};
use super::{
    ClaimId, Committed, Held, LedgerError, LedgerOptions, Migrations, Opened, Result, Store, claim_of,
};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Class, DeliveryId, NextState, Settlement};
use crate::domain::event::{EventSeq, Fingerprint, Identity};
use crate::domain::hash::FastSet;
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::sequence::{NODES, Sequence};
use crate::failpoint::failpoint;
use crate::jobs::JobMetrics;

const MIGRATIONS: Migrations = &[
    (1, "ledger", include_str!("../../migrations/sqlite/0001_ledger.sql")),
    (2, "partners", include_str!("../../migrations/sqlite/0002_partners.sql")),
    (3, "fairness", include_str!("../../migrations/sqlite/0003_fairness.sql")),
    (4, "nodes", include_str!("../../migrations/sqlite/0004_nodes.sql")),
    (5, "tenants", include_str!("../../migrations/sqlite/0005_tenants.sql")),
    (6, "rejected", include_str!("../../migrations/sqlite/0006_rejected.sql")),
    (7, "story", include_str!("../../migrations/sqlite/0007_story.sql")),
    (8, "watching", include_str!("../../migrations/sqlite/0008_watching.sql")),
    (9, "replays", include_str!("../../migrations/sqlite/0009_replays.sql")),
    (10, "console", include_str!("../../migrations/sqlite/0010_console.sql")),
    (11, "steered_by", include_str!("../../migrations/sqlite/0011_steered_by.sql")),
    (12, "clock", include_str!("../../migrations/sqlite/0012_clock.sql")),
    (13, "epochs", include_str!("../../migrations/sqlite/0013_epochs.sql")),
    (15, "fan_out", include_str!("../../migrations/sqlite/0015_fan_out.sql")),
    (17, "unused_lanes", include_str!("../../migrations/sqlite/0017_unused_lanes.sql")),
];

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read for the hot path, and for chores.
const HOT_READERS: u32 = 4;
const CHORE_READERS: u32 = 2;
/// The number of the one node there is.
const NODE: i64 = 0;
/// Pages in the WAL at which a commit itself checkpoints. High, because that commit pays for it.
const AUTOCHECKPOINT_PAGES: u32 = 16_000;
/// Prepared statements that a connection keeps: those for many rows in all their sizes, and the others.
const STATEMENTS: usize = 600;
/// What a WAL that grew beyond it, behind a slow reader, is cut back to when it begins anew.
const WAL_LIMIT_BYTES: u32 = 60 << 20;
/// What must find room before events are taken again.
const ROOM_BYTES: i64 = 64 << 10;

/// See the module's own words.
pub(super) struct SqliteStore {
    options: SqliteConnectOptions,
    /// `None` after an error: a transaction that SQLite gave up must not see another statement.
    writer: Turn,
    /// The hot path's readers.
    reads: SqlitePool,
    claims: Mutex<Claims>,
    /// One claim at a time: `Claims::reading` belongs to it.
    claiming: tokio::sync::Mutex<()>,
    recent: Recent,
    lease: Duration,
    membership: Arc<Membership>,
    clock: Arc<dyn Clock>,
    written: Arc<tokio::sync::Notify>,
    checkpointer: tokio::task::AbortHandle,
    wal: PathBuf,
    /// Held as long as this process owns the file.
    lock: File,
}

/// Opens the file, creating it where it is missing, and takes ownership of it.
pub(super) async fn open(
    options: &LedgerOptions,
    clock: &Arc<dyn Clock>,
    health: &watch::Sender<Option<String>>,
    jobs: &Arc<JobMetrics>,
) -> Result<Opened<SqliteStore>> {
    let path = path_of(&options.url)?;
    let lock = own(&path).await?;
    let connect = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", AUTOCHECKPOINT_PAGES.to_string())
        .pragma("journal_size_limit", WAL_LIMIT_BYTES.to_string())
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(STATEMENTS);
    let unreachable = |error: sqlx::Error| {
        LedgerError::Unavailable(format!("can't open the SQLite file {}: {error}", path.display()))
    };
    let mut writer = SqliteConnection::connect_with(&connect).await.map_err(unreachable)?;
    check(&mut writer).await?;
    #[cfg(feature = "failpoints")]
    file::pass_within_statements(&mut writer).await?;
    super::migrate(&mut writer, MIGRATIONS).await?;
    #[cfg(feature = "failpoints")]
    writer.lock_handle().await?.remove_progress_handler();
    let read_only = connect.clone().read_only(true).create_if_missing(false);
    let readers = |most| SqlitePoolOptions::new().max_connections(most);
    let hot = readers(HOT_READERS).connect_with(read_only.clone()).await?;
    let chores = readers(CHORE_READERS).connect_lazy_with(read_only.clone());
    let reads = LimitedReads::connect(read_only, options.connections.read_timeout, clock).await?;
    let (last_epoch, seen_at) = last_life(&mut writer).await?;
    let epoch = last_epoch.unwrap_or_default().max(NODES) + 1;
    let incarnation = Incarnation { node: NODE, epoch };
    let membership = Arc::new(Membership::new(incarnation, health.clone()));
    // Where the disk is full now, a later heartbeat does it. Nothing that names the epoch is written before.
    let seen_at = seen_at.map_or_else(|| clock.now(), Timestamp::from_millis);
    let noted = note_life(&mut writer, incarnation.epoch_text(), seen_at).await;
    let writer = noted.is_ok().then_some(writer);
    let single = || {
        SqlitePoolOptions::new()
            .max_connections(1)
            .after_release(|connection, _| Box::pin(has_ended_its_transaction(connection)))
    };
    let writes = single().connect_with(connect.clone()).await?;
    // In WAL mode NORMAL leaves out the sync of a commit, and nothing else.
    let redoable = single().connect_lazy_with(connect.clone().synchronous(SqliteSynchronous::Normal));
    let writer: Turn = Arc::new(tokio::sync::Mutex::new(writer));
    let turn = writer.clone();
    let database =
        Database::Sqlite { hot: hot.clone(), reads: reads.clone(), chores, writes, redoable, turn };
    let largest = database.largest_seq().await?;
    let written = Arc::new(tokio::sync::Notify::new());
    let wal = wal_path(&path);
    let (turn, jobs) = (writer.clone(), jobs.clone());
    let checkpointer = Checkpointer::new(&connect, wal.clone(), written.clone(), reads, turn, jobs);
    let checkpointer = tokio::spawn(checkpointer.run()).abort_handle();
    let store = SqliteStore {
        options: connect,
        writer,
        reads: hot,
        claims: Mutex::default(),
        claiming: tokio::sync::Mutex::default(),
        recent: Recent::new(options.recent_bytes),
        lease: options.lease,
        membership: membership.clone(),
        clock: clock.clone(),
        written,
        checkpointer,
        wal,
        lock,
    };
    Ok(Opened { store, database, sequence: Sequence::new(NODE, largest), membership, notices: None })
}

/// The last epoch of the one node of this file, where one was noted, and when that node was last seen.
async fn last_life(connection: &mut SqliteConnection) -> Result<(Option<i64>, Option<i64>)> {
    let sql = "SELECT MAX(CAST(epoch AS INTEGER)), MAX(seen_at) FROM node WHERE number = $1";
    Ok(sqlx::query_as(sql).bind(NODE).fetch_one(connection).await?)
}

/// Notes the epoch of the one node, and when it was last seen.
async fn note_life(connection: &mut SqliteConnection, epoch: String, seen_at: Timestamp) -> Result<()> {
    sqlx::query(
        "INSERT INTO node (number, epoch, seen_at) VALUES ($1, $2, $3)
         ON CONFLICT (number) DO UPDATE SET epoch = excluded.epoch, seen_at = excluded.seen_at",
    )
    .bind(NODE)
    .bind(epoch)
    .bind(seen_at.as_millis())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes as much as a few events and takes it away again. On a full disk the heartbeat's own row may still find its place,
/// and events would be asked in only to be refused.
async fn prove_room(connection: &mut SqliteConnection) -> Result<()> {
    sqlx::query("INSERT OR REPLACE INTO node (number, epoch, seen_at) VALUES (-1, hex(zeroblob($1)), 0)")
        .bind(ROOM_BYTES / 2)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM node WHERE number = -1").execute(connection).await?;
    Ok(())
}

/// Whether a connection may be used again. Where SQLite itself gave a transaction up, for want of room or of a disk, the
/// driver still counts it as open: what begins next would be a savepoint in it, and to roll that back would end nothing
/// and keep the file locked.
async fn has_ended_its_transaction(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // A rollback may still be under way.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

impl SqliteStore {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one transaction on the writer's connection, which is given up with any error.
    async fn transact(&self, plan: &mut Plan<'_>, settlements: &[&Settlement]) -> Result<bool> {
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        if !insert_plan(&mut transaction, plan).await? {
            transaction.rollback().await?;
            *writer = Some(connection);
            return Ok(false);
        }
        settle_rows(&mut transaction, settlements).await?;
        failpoint!("accept_uncommitted", !plan.inserts.is_empty());
        failpoint!("settle_uncommitted", !settlements.is_empty());
        transaction.commit().await?;
        failpoint!("accept_committed", !plan.inserts.is_empty());
        failpoint!("settle_committed", !settlements.is_empty());
        *writer = Some(connection);
        self.written.notify_one();
        Ok(true)
    }

    /// The settlements with the places in the queue at which their rows stand now.
    fn as_they_stand<'s>(&self, settlements: &'s [Settlement]) -> Cow<'s, [Settlement]> {
        let claims = self.claims();
        if claims.set_backs.is_empty() {
            return Cow::Borrowed(settlements);
        }
        let stands = |settlement: &Settlement| Settlement {
            due_at: claims.due_at(settlement.id, settlement.due_at),
            ..settlement.clone()
        };
        settlements.iter().map(stands).collect()
    }

    /// Settlements whose claim still holds, and those whose doesn't.
    fn fence<'s>(&self, settlements: &'s [Settlement]) -> (Vec<&'s Settlement>, HashSet<ClaimId>) {
        let claims = self.claims();
        let (mut valid, mut stale) = (Vec::with_capacity(settlements.len()), HashSet::new());
        for settlement in settlements {
            match claims.held.get(&settlement.id) {
                Some(claim) if claim.attempt == settlement.attempt && claim.leased_until.is_some() => {
                    valid.push(settlement);
                }
                _ => {
                    stale.insert(claim_of(settlement));
                }
            }
        }
        (valid, stale)
    }

    /// Claims what is handed over before it can be read, so that no other claim gets it too.
    fn hold_handed_over(&self, plan: &Plan<'_>) {
        let leased_until = self.clock.moment() + self.lease;
        let mut claims = self.claims();
        for waiting in plan.deliveries.iter().filter(|waiting| waiting.is_handed_over()) {
            let id = DeliveryId { event: waiting.seq, lane: waiting.lane.id };
            claims.hold(id, Class::Fresh, 1, leased_until);
        }
    }

    /// Takes back what [`Self::hold_handed_over`] has claimed of these.
    fn drop_handed_over(&self, deliveries: &[Waiting<'_>]) {
        let mut claims = self.claims();
        for waiting in deliveries.iter().filter(|waiting| waiting.is_handed_over()) {
            claims.drop_hold(DeliveryId { event: waiting.seq, lane: waiting.lane.id });
        }
    }

    fn after_commit(&self, plan: &Plan<'_>, settlements: &[&Settlement]) {
        // Before a claim can find them.
        self.recent.keep(plan, self.clock.moment());
        let mut claims = self.claims();
        let mut lanes = FastSet::default();
        for waiting in &plan.deliveries {
            // The first of a lane is the oldest.
            if lanes.insert(waiting.lane.id) {
                claims.appeared((waiting.lane.id, Class::Fresh), (plan.now.as_millis(), waiting.seq.0));
            }
        }
        for settlement in settlements {
            if settlement.next == NextState::Released {
                claims.release(&Held::of(settlement));
                continue;
            }
            claims.drop_hold(settlement.id);
            if let Some(meanwhile) = &mut claims.reading {
                meanwhile.settled.insert(settlement.id);
            }
            if let NextState::Pending { due_at, failures, .. } = settlement.next {
                let queue = (settlement.id.lane, settlement.class_with(failures));
                claims.appeared(queue, (due_at.as_millis(), settlement.id.event.0));
            }
        }
    }

    async fn claim_places(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Vec<ClaimedPlaces>> {
        let _one_at_a_time = self.claiming.lock().await;
        let mut claimed = Vec::with_capacity(claims.len());
        for claim in claims {
            self.claims().reading = Some(Meanwhile::default());
            let lane = self.claim_lane(claim, now).await;
            self.claims().reading = None;
            claimed.push(lane?);
        }
        Ok(claimed)
    }

    async fn claim_lane(&self, claim: &LaneClaim, now: Timestamp) -> Result<ClaimedPlaces> {
        let queue = (claim.lane.id, claim.class);
        let moment = self.clock.moment();
        let known = || {
            let claims = self.claims();
            let cursor = claims.cursors.get(&queue).copied().filter(|cursor| moment < cursor.until);
            (cursor, claims.in_queue.get(&queue).copied().unwrap_or_default())
        };
        let (from, held) = known();
        // One row more than wanted tells what is left. From the start, those that are claimed have to be passed over;
        // behind a cursor there are few.
        let limit = claim.limit + if from.is_some() { 0 } else { held } + 1;
        let rows = self.read(queue, from, limit).await?;
        let claimed = self.take(claim, rows, limit, from, now);
        if !claimed.places.is_empty() || claimed.remaining != Remaining::Due {
            return Ok(claimed);
        }
        // Only claimed ones, this time.
        let (from, held) = known();
        let limit = claim.limit + held + 1;
        let rows = self.read(queue, from, limit).await?;
        Ok(self.take(claim, rows, limit, from, now))
    }

    /// What waits in a queue behind a place, at most `limit`, in the order it falls due.
    async fn read(&self, (lane, class): Queue, from: Option<Cursor>, limit: usize) -> Result<Vec<Place>> {
        let (due_at, event) = from.map_or((i64::MIN, i64::MIN), |cursor| cursor.place);
        let query = sqlx::query_as(WAITING).bind(lane.0).bind(rows::class_column(class));
        let query = query.bind(due_at).bind(event).bind(rows::count(limit));
        let (packed,): (Option<Vec<u8>>,) = query.fetch_one(&self.reads).await?;
        waiting::places(&packed.unwrap_or_default())
    }

    /// Takes what is free and due among rows that were read, and notes the claims.
    fn take(
        &self,
        claim: &LaneClaim,
        rows: Vec<Place>,
        limit: usize,
        from: Option<Cursor>,
        now: Timestamp,
    ) -> ClaimedPlaces {
        let moment = self.clock.moment();
        let leased_until = moment + self.lease;
        let queue = (claim.lane.id, claim.class);
        let exhausted = rows.len() < limit;
        let mut claims = self.claims();
        let mut claimed = ClaimedPlaces { places: Vec::new(), remaining: Remaining::Nothing };
        let mut until = from.map_or(leased_until, |cursor| cursor.until);
        let mut cursor = None;
        for row in rows {
            let Place { due_at, event, attempt: stored, .. } = row;
            let id = DeliveryId { event: EventSeq(event), lane: claim.lane.id };
            if due_at > now.as_millis() {
                claimed.remaining = Remaining::Later(Timestamp::from_millis(due_at));
                break;
            }
            let settled = claims.reading.as_ref().is_some_and(|meanwhile| meanwhile.settled.contains(&id));
            if let Some(attempt) = claims.next_attempt(id, stored, moment).filter(|_| !settled) {
                if claimed.places.len() == claim.limit {
                    claimed.remaining = Remaining::Due;
                    break;
                }
                claims.hold(id, claim.class, attempt, leased_until);
                claimed.places.push(Place { attempt, ..row });
            }
            if let Some(Claim { leased_until: Some(held_until), .. }) = claims.held.get(&id) {
                until = until.min(*held_until);
            }
            cursor = Some(Cursor { place: (due_at, event), until });
        }
        let reached_end = exhausted && claimed.remaining != Remaining::Due;
        if !exhausted && claimed.remaining == Remaining::Nothing {
            claimed.remaining = Remaining::Due;
        }
        let disturbed = claims.reading.as_ref().is_some_and(|meanwhile| meanwhile.disturbed.contains(&queue));
        match cursor.filter(|_| !disturbed && !reached_end) {
            Some(cursor) => claims.cursors.insert(queue, cursor),
            // From the start again: what lies there is claimed, or free once more.
            None => claims.cursors.remove(&queue),
        };
        if disturbed && claimed.remaining != Remaining::Due {
            claimed.remaining = Remaining::Due;
        }
        claimed
    }
}

#[async_trait]
impl PayloadReader for SqliteStore {
    async fn payloads(&self, events: &[i64], limit_bytes: usize) -> Result<HashMap<i64, Stored>> {
        let query = sqlx::query_as(EVENTS).bind(serde_json::json!(events).to_string());
        let packed: (Option<Vec<u8>>,) = query.bind(rows::count(limit_bytes)).fetch_one(&self.reads).await?;
        Ok(waiting::events(&packed.0.unwrap_or_default())?.into_iter().collect())
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, plan: &mut Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        let settlements = self.as_they_stand(settlements);
        let (valid, stale) = self.fence(&settlements);
        self.hold_handed_over(plan);
        let done = self.transact(plan, &valid).await;
        self.drop_handed_over(&plan.withdrawn);
        if !matches!(done, Ok(true)) {
            self.drop_handed_over(&plan.deliveries);
        }
        if !done? {
            return Ok(Committed::Clash);
        }
        self.after_commit(plan, &valid);
        Ok(Committed::Done { stale })
    }

    async fn continue_fan_out(&self, next: Next<'_>) -> Result<Option<Step>> {
        self.queue_fan_out(next).await
    }

    async fn lookup(&self, identities: &[&Identity], keys: &[&RequestKey]) -> Result<Known> {
        let mut known = Known::default();
        let mut rest = identities;
        while let Some((chunk, left)) = next_chunk(rest) {
            let sql = format!(
                "SELECT tenant, source, id, fingerprint FROM event_key WHERE (tenant, source, id) IN (VALUES {})",
                placeholders(chunk.len(), 3)
            );
            let mut query = sqlx::query_as::<_, (String, String, String, Vec<u8>)>(AssertSqlSafe(sql));
            for identity in chunk {
                query = query.bind(&*identity.tenant).bind(&identity.source).bind(&identity.id);
            }
            for (tenant, source, id, fingerprint) in query.fetch_all(&self.reads).await? {
                let identity = Identity { tenant: tenant.into(), source: source.into(), id: id.into() };
                known.events.insert(identity, Fingerprint(rows::digest(&fingerprint)?));
            }
            rest = left;
        }
        for key in keys {
            let row: Option<(Vec<u8>,)> =
                sqlx::query_as("SELECT fingerprint FROM request_key WHERE scope = $1 AND key = $2")
                    .bind(&key.scope)
                    .bind(&key.key)
                    .fetch_optional(&self.reads)
                    .await?;
            if let Some((fingerprint,)) = row {
                known.requests.insert((key.scope.clone(), key.key.clone()), rows::digest(&fingerprint)?);
            }
        }
        Ok(known)
    }

    async fn claim(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Claimed> {
        let claimed = self.claim_places(claims, now).await?;
        let (loaded, taken_back) = match payloads::load(claims, &claimed, &self.recent, self).await {
            Ok((loaded, unread)) => (Ok(loaded), unread),
            Err(error) => (Err(error), payloads::all_held(claims, &claimed)),
        };
        let mut claims = self.claims();
        taken_back.iter().for_each(|held| claims.unclaim(held));
        loaded
    }

    async fn release(&self, held: &[Held]) -> Result<()> {
        let mut claims = self.claims();
        for held in held {
            let due_at = claims.due_at(held.id, held.due_at);
            claims.release(&Held { due_at, ..*held });
        }
        Ok(())
    }

    async fn set_back(&self, now: Timestamp, back_ms: i64) -> Result<()> {
        self.move_the_future(now, back_ms).await
    }

    fn settling(&self, (id, attempt): ClaimId) {
        self.claims().keep_for_settling(id, attempt);
    }

    async fn claim_one(&self, place: &Held) -> Result<Option<i64>> {
        let _one_at_a_time = self.claiming.lock().await;
        let moment = self.clock.moment();
        let (attempt, before) = {
            let mut claims = self.claims();
            let before = claims.held.get(&place.id).copied();
            let Some(attempt) = claims.next_attempt(place.id, place.attempt, moment) else { return Ok(None) };
            claims.hold(place.id, place.class, attempt, moment + self.lease);
            (attempt, before)
        };
        // Held first: nobody takes it from there now, and whatever was settled before can be read.
        let query = sqlx::query_as::<_, (i64,)>(
            "SELECT attempt FROM queue WHERE lane = $1 AND retry = $2 AND due_at = $3 AND event = $4",
        );
        let query = query.bind(place.id.lane.0).bind(rows::class_column(place.class));
        let row =
            query.bind(place.due_at.as_millis()).bind(place.id.event.0).fetch_optional(&self.reads).await;
        if let Ok(Some((stored,))) = row
            && stored < attempt
        {
            return Ok(Some(attempt));
        }
        self.claims().restore(place, attempt, before);
        row.map(|_| None).map_err(LedgerError::from)
    }

    async fn claims_left(&self, ids: &[DeliveryId]) -> Vec<Option<Duration>> {
        let moment = self.clock.moment();
        let claims = self.claims();
        let until = |id| claims.held.get(id).and_then(|claim| claim.leased_until);
        // A claim whose settlement waits has no end: nobody is to wait for longer than a lease.
        let left = |until: Moment| moment.until(until).min(self.lease);
        ids.iter().map(|id| until(id).map(left).filter(|left| !left.is_zero())).collect()
    }

    fn appeared(&self, id: DeliveryId, class: Class, due_at: Timestamp) {
        self.claims().appeared((id.lane, class), (due_at.as_millis(), id.event.0));
    }

    async fn heartbeat(&self, after_trouble: bool) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        if after_trouble {
            prove_room(&mut connection).await?;
        }
        note_life(&mut connection, self.membership.current().epoch_text(), self.clock.now()).await?;
        *writer = Some(connection);
        Ok(())
    }

    fn wal_bytes(&self) -> Option<u64> {
        std::fs::metadata(&self.wal).ok().map(|wal| wal.len())
    }

    async fn announce(&self, address: &str) -> Result<()> {
        let write = || {
            let mut file = &self.lock;
            file.set_len(0)?;
            file.seek(std::io::SeekFrom::Start(0))?;
            writeln!(file, "{address}")
        };
        write().map_err(|error: std::io::Error| LedgerError::Unavailable(error.to_string()))
    }

    async fn close(&self, database: &Database) {
        self.checkpointer.abort();
        database.close().await;
        if let Some(connection) = self.writer.lock().await.take() {
            // Closing the last connection folds the WAL into the file; an error leaves it for the next start.
            let _ = connection.close().await;
        }
        // Not left to the last clone of the ledger: the next owner may be waiting.
        let _ = self.lock.set_len(0).and_then(|()| self.lock.unlock());
    }
}

#[cfg(test)]
mod tests;
