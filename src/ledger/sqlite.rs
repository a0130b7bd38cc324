//! The ledger in a SQLite file: one process owns it, one connection writes it.
//!
//! Leases live in memory, since nobody else could hold one: a claim is a read, and start-up finds everything
//! unclaimed. A claim is fenced by its attempt number all the same.

use std::collections::{HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Connection as _, Sqlite, SqliteConnection, SqlitePool};

use super::plan::{Known, Plan};
use super::rows::{self, AttemptColumns, OutcomeColumns, WaitingColumns};
use super::sql::Database;
use super::{ClaimedLane, Committed, LedgerError, LedgerOptions, Migrations, Opened, Result, Store};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Delivery, DeliveryId, NextState, Settlement};
use crate::domain::event::{EventSeq, Fingerprint, Identity};
use crate::domain::scheduler::{LaneClaim, Remaining};
use crate::domain::sequence::Sequence;
use crate::domain::tenant::{Lane, LaneId};

const MIGRATIONS: Migrations = &[
    (1, "ledger", include_str!("../../migrations/sqlite/0001_ledger.sql")),
    (2, "partners", include_str!("../../migrations/sqlite/0002_partners.sql")),
];

/// Before this version a checkpoint could corrupt the file while another connection wrote (sqlite.org, "WAL reset bug").
const OLDEST_VERSION: (u32, u32, u32) = (3, 51, 3);
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// Pages in the WAL at which a commit itself checkpoints. High, because that commit pays for it.
const AUTOCHECKPOINT_PAGES: u32 = 16_000;
/// How often the WAL is checkpointed on the side, while there are writes.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);
/// Rows in one statement. A few fixed sizes, so that SQLite's statement cache knows the text.
const CHUNKS: [usize; 4] = [256, 32, 8, 1];

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// See the module's own words.
pub(super) struct SqliteStore {
    options: SqliteConnectOptions,
    /// `None` after an error: a transaction that SQLite gave up must not see another statement.
    writer: tokio::sync::Mutex<Option<SqliteConnection>>,
    reads: SqlitePool,
    claims: Mutex<Claims>,
    /// One claim at a time: `Claims::reading` belongs to it.
    claiming: tokio::sync::Mutex<()>,
    lease: Duration,
    clock: Arc<dyn Clock>,
    written: Arc<tokio::sync::Notify>,
    checkpointer: tokio::task::AbortHandle,
    /// Held as long as this process owns the file.
    lock: File,
}

/// Who holds what, in memory.
#[derive(Debug, Default)]
struct Claims {
    /// By delivery: number and end of the last claim. Released ones stay, for their number.
    held: HashMap<DeliveryId, Claim>,
    /// Claimed deliveries in each lane, released ones included: rows a claim has to pass over.
    in_lane: HashMap<LaneId, usize>,
    /// Where in a lane the next claim goes on. Nothing before it is unclaimed.
    cursors: HashMap<LaneId, (i64, i64)>,
    /// What has changed while a claim reads: its rows may be older than that.
    reading: Option<Meanwhile>,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    attempt: i64,
    /// Free from then on. `None`: released.
    leased_until: Option<Moment>,
}

#[derive(Debug, Default)]
struct Meanwhile {
    settled: HashSet<DeliveryId>,
    /// Lanes whose cursor must start over.
    disturbed: HashSet<LaneId>,
}

impl Claims {
    /// Notes a claim of `id` with this number.
    fn hold(&mut self, id: DeliveryId, attempt: i64, leased_until: Moment) {
        let claim = Claim { attempt, leased_until: Some(leased_until) };
        if self.held.insert(id, claim).is_none() {
            *self.in_lane.entry(id.lane).or_default() += 1;
        }
    }

    fn drop_hold(&mut self, id: DeliveryId) {
        if self.held.remove(&id).is_some()
            && let Some(count) = self.in_lane.get_mut(&id.lane)
        {
            *count -= 1;
            if *count == 0 {
                self.in_lane.remove(&id.lane);
            }
        }
    }

    /// A free row has appeared in `lane` at `place`: where the cursor has passed it, it must start over.
    fn appeared(&mut self, lane: LaneId, place: (i64, i64)) {
        if self.cursors.get(&lane).is_some_and(|cursor| place <= *cursor) {
            self.cursors.remove(&lane);
        }
        if let Some(meanwhile) = &mut self.reading {
            meanwhile.disturbed.insert(lane);
        }
    }

    /// The number of the next claim of a row that has `stored` settled attempts; `None` while another claim holds.
    fn next_attempt(&self, id: DeliveryId, stored: i64, now: Moment) -> Option<i64> {
        let Some(claim) = self.held.get(&id) else { return Some(stored + 1) };
        let free = claim.leased_until.is_none_or(|leased_until| leased_until <= now);
        free.then(|| claim.attempt.max(stored) + 1)
    }
}

/// Opens the file, creating it where it is missing, and takes ownership of it.
pub(super) async fn open(options: &LedgerOptions, clock: &Arc<dyn Clock>) -> Result<Opened<SqliteStore>> {
    let path = path_of(&options.url)?;
    let lock = own(&path)?;
    let connect = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", AUTOCHECKPOINT_PAGES.to_string())
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(200);
    let unreachable = |error: sqlx::Error| {
        LedgerError::Unavailable(format!("can't open the SQLite file {}: {error}", path.display()))
    };
    let mut writer = SqliteConnection::connect_with(&connect).await.map_err(unreachable)?;
    check(&mut writer).await?;
    super::migrator(MIGRATIONS)
        .run(&mut writer)
        .await
        .map_err(|error| super::migration_error(error, MIGRATIONS))?;
    let reads = SqlitePoolOptions::new()
        .max_connections(READERS)
        .connect_with(connect.clone().read_only(true).create_if_missing(false))
        .await?;
    let writes = SqlitePoolOptions::new().max_connections(1).connect_with(connect.clone()).await?;
    let database = Database::Sqlite { reads: reads.clone(), writes };
    let largest = database.largest_seq().await?;
    let written = Arc::new(tokio::sync::Notify::new());
    let checkpointer = tokio::spawn(checkpoint_on_the_side(connect.clone(), written.clone())).abort_handle();
    let store = SqliteStore {
        options: connect,
        writer: tokio::sync::Mutex::new(Some(writer)),
        reads,
        claims: Mutex::default(),
        claiming: tokio::sync::Mutex::default(),
        lease: options.lease,
        clock: clock.clone(),
        written,
        checkpointer,
        lock,
    };
    Ok(Opened { store, database, sequence: Sequence::new(0, largest) })
}

fn path_of(url: &str) -> Result<PathBuf> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| LedgerError::Refused(format!("`{url}` is not a SQLite URL: {error}")))?;
    let path = options.get_filename();
    if path == Path::new(":memory:") || url.contains("mode=memory") {
        return Err(LedgerError::Refused(
            "a ledger in memory would lose what it acknowledged; name a file".into(),
        ));
    }
    Ok(path.to_owned())
}

/// The SQLite file that a database URL names; `None` where it names none.
pub fn database_file(url: &str) -> Option<PathBuf> {
    super::is_sqlite(url).then(|| path_of(url).ok())?
}

/// The file that says who owns the database: `<database>.lock`.
fn lock_path(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Takes the operating system's lock; it goes with the process, however that ends.
fn own(database: &Path) -> Result<File> {
    let path = lock_path(database);
    let refused = |error: &dyn std::fmt::Display| {
        LedgerError::Unavailable(format!("can't lock {}: {error}", path.display()))
    };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| refused(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::Refused(format!(
            "another process owns {} ({}); one SQLite file belongs to one process, several machines share Postgres",
            database.display(),
            lock_text(&path).unwrap_or_else(|| "it did not leave its address".into()),
        ))),
        Err(TryLockError::Error(error)) => Err(refused(&error)),
    }
}

fn lock_text(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(256).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Where the process that owns the SQLite file of `url` listens; `None` where nobody owns it, or it does not listen.
pub fn lock_holder(url: &str) -> Option<String> {
    let path = lock_path(&path_of(url).ok()?);
    let file = File::open(&path).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => lock_text(&path),
        _ => None,
    }
}

/// Refuses what would not keep an acknowledged event.
async fn check(connection: &mut SqliteConnection) -> Result<()> {
    let (version,): (String,) = sqlx::query_as("SELECT sqlite_version()").fetch_one(&mut *connection).await?;
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    if (next(), next(), next()) < OLDEST_VERSION {
        return Err(LedgerError::Refused(format!("SQLite {version} is too old: 3.51.3 or newer is needed")));
    }
    let (mode,): (String,) = sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
    let (synchronous,): (i64,) = sqlx::query_as("PRAGMA synchronous").fetch_one(&mut *connection).await?;
    if mode != "wal" || synchronous < 2 {
        return Err(LedgerError::Refused(format!(
            "SQLite runs with journal_mode={mode}, synchronous={synchronous}; the ledger needs WAL and FULL \
             (is the file on a network drive?)"
        )));
    }
    Ok(())
}

/// Moves the WAL into the file before a commit has to: a checkpoint inside a commit is what its slowest callers feel.
async fn checkpoint_on_the_side(options: SqliteConnectOptions, written: Arc<tokio::sync::Notify>) {
    let mut connection = None;
    loop {
        written.notified().await;
        tokio::time::sleep(CHECKPOINT_EVERY).await;
        if connection.is_none() {
            connection = SqliteConnection::connect_with(&options).await.ok();
        }
        if let Some(open) = &mut connection
            && sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(open).await.is_err()
        {
            // The writer tells of trouble with the disk; here it is enough to begin anew.
            connection = None;
        }
    }
}

impl SqliteStore {
    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one transaction on the writer's connection, which is given up with any error.
    async fn transact(&self, plan: &Plan<'_>, settlements: &[Settlement]) -> Result<bool> {
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
        transaction.commit().await?;
        *writer = Some(connection);
        self.written.notify_one();
        Ok(true)
    }

    /// Settlements whose claim still holds, and those whose doesn't.
    fn fence(&self, settlements: &[Settlement]) -> (Vec<Settlement>, Vec<DeliveryId>) {
        let claims = self.claims();
        let (mut valid, mut stale) = (Vec::with_capacity(settlements.len()), Vec::new());
        for settlement in settlements {
            match claims.held.get(&settlement.id) {
                Some(claim) if claim.attempt == settlement.attempt && claim.leased_until.is_some() => {
                    valid.push(settlement.clone());
                }
                _ => stale.push(settlement.id),
            }
        }
        (valid, stale)
    }

    /// Claims what is handed over before it can be read, so that no other claim gets it too.
    fn hold_handed_over(&self, plan: &Plan<'_>) {
        let leased_until = self.clock.moment() + self.lease;
        let mut claims = self.claims();
        for waiting in plan.deliveries.iter().filter(|waiting| waiting.handed_over) {
            claims.hold(DeliveryId { event: waiting.seq, lane: waiting.lane.id }, 1, leased_until);
        }
    }

    fn after_commit(&self, plan: &Plan<'_>, settlements: &[Settlement]) {
        let mut claims = self.claims();
        for waiting in plan.deliveries.iter().filter(|waiting| !waiting.handed_over) {
            claims.appeared(waiting.lane.id, (plan.now.as_millis(), waiting.seq.0));
        }
        for settlement in settlements {
            claims.drop_hold(settlement.id);
            if let Some(meanwhile) = &mut claims.reading {
                meanwhile.settled.insert(settlement.id);
            }
            if let NextState::Pending { due_at, .. } = settlement.next {
                claims.appeared(settlement.id.lane, (due_at.as_millis(), settlement.id.event.0));
            }
        }
    }

    async fn claim_lane(&self, claim: &LaneClaim, now: Timestamp) -> Result<ClaimedLane> {
        let (cursor, held) = {
            let claims = self.claims();
            let held = claims.in_lane.get(&claim.lane.id).copied().unwrap_or_default();
            (claims.cursors.get(&claim.lane.id).copied().unwrap_or((i64::MIN, i64::MIN)), held)
        };
        // One row more than wanted tells what is left.
        let limit = claim.limit + held + 1;
        let rows: Vec<QueueRow> = sqlx::query_as(
            "SELECT queue.due_at, queue.event, queue.attempt, queue.failures, queue.uncertain, event.source,
                    event.id, event.type, event.received_at, event.body, event.data_start, event.data_end
             FROM queue JOIN event ON event.seq = queue.event
             WHERE queue.lane = $1 AND (queue.due_at, queue.event) > ($2, $3)
             ORDER BY queue.due_at, queue.event LIMIT $4",
        )
        .bind(claim.lane.id.0)
        .bind(cursor.0)
        .bind(cursor.1)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.reads)
        .await?;
        Ok(self.take(claim, rows, limit, now))
    }

    /// Takes what is free and due among rows that were read, and notes the claims.
    fn take(&self, claim: &LaneClaim, rows: Vec<QueueRow>, limit: usize, now: Timestamp) -> ClaimedLane {
        let moment = self.clock.moment();
        let leased_until = moment + self.lease;
        let lane = claim.lane.id;
        let exhausted = rows.len() < limit;
        let mut claims = self.claims();
        let mut claimed = ClaimedLane { deliveries: Vec::new(), remaining: Remaining::Nothing };
        let mut cursor = None;
        for row in rows {
            let (due_at, event, stored) = (row.0, row.1, row.2);
            let id = DeliveryId { event: EventSeq(event), lane };
            if due_at > now.as_millis() {
                claimed.remaining = Remaining::Later(Timestamp::from_millis(due_at));
                break;
            }
            let settled = claims.reading.as_ref().is_some_and(|meanwhile| meanwhile.settled.contains(&id));
            if let Some(attempt) = claims.next_attempt(id, stored, moment).filter(|_| !settled) {
                if claimed.deliveries.len() == claim.limit {
                    claimed.remaining = Remaining::Due;
                    break;
                }
                claims.hold(id, attempt, leased_until);
                claimed.deliveries.push(delivery(&claim.lane, attempt, row));
            }
            cursor = Some((due_at, event));
        }
        let reached_end = exhausted && claimed.remaining != Remaining::Due;
        if !exhausted && claimed.remaining == Remaining::Nothing {
            claimed.remaining = Remaining::Due;
        }
        let disturbed = claims.reading.as_ref().is_some_and(|meanwhile| meanwhile.disturbed.contains(&lane));
        match cursor.filter(|_| !disturbed && !reached_end) {
            Some(cursor) => claims.cursors.insert(lane, cursor),
            // From the start again: what lies there is claimed, or free once more.
            None => claims.cursors.remove(&lane),
        };
        if disturbed && claimed.remaining != Remaining::Due {
            claimed.remaining = Remaining::Due;
        }
        claimed
    }
}

/// due_at, event, attempt, failures, uncertain, source, id, type, received_at, body, data_start, data_end
type QueueRow = (i64, i64, i64, i64, i64, String, String, String, i64, Vec<u8>, Option<i64>, Option<i64>);

fn delivery(lane: &Arc<Lane>, attempt: i64, row: QueueRow) -> Delivery {
    let (due_at, event, _, failures, uncertain, source, id, event_type, received_at, body, start, end) = row;
    Delivery {
        id: DeliveryId { event: EventSeq(event), lane: lane.id },
        lane: lane.clone(),
        due_at: Timestamp::from_millis(due_at),
        attempt,
        failures: u32::try_from(failures).unwrap_or(u32::MAX),
        uncertain: uncertain != 0,
        identity: Identity { tenant: lane.tenant.clone(), source, id },
        event_type,
        received_at: Timestamp::from_millis(received_at),
        body: Bytes::from(body),
        data: rows::range(start, end),
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, plan: &Plan<'_>, settlements: &[Settlement]) -> Result<Committed> {
        let (valid, stale) = self.fence(settlements);
        self.hold_handed_over(plan);
        let done = self.transact(plan, &valid).await;
        if !matches!(done, Ok(true)) {
            let mut claims = self.claims();
            for waiting in plan.deliveries.iter().filter(|waiting| waiting.handed_over) {
                claims.drop_hold(DeliveryId { event: waiting.seq, lane: waiting.lane.id });
            }
        }
        if !done? {
            return Ok(Committed::Clash);
        }
        self.after_commit(plan, &valid);
        Ok(Committed::Done { stale })
    }

    async fn lookup(&self, plan: &Plan<'_>) -> Result<Known> {
        let mut known = Known::default();
        let identities: Vec<_> = plan.sorted().map(|insert| &insert.new.event.identity).collect();
        let mut rest = identities.as_slice();
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
                let identity = Identity { tenant: tenant.into(), source, id };
                known.events.insert(identity, Fingerprint(rows::digest(&fingerprint)?));
            }
            rest = left;
        }
        for key in &plan.request_keys {
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

    async fn claim(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Vec<ClaimedLane>> {
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

    async fn release(&self, deliveries: &[(DeliveryId, Timestamp, i64)]) -> Result<()> {
        let mut claims = self.claims();
        for (id, due_at, attempt) in deliveries {
            if let Some(claim) = claims.held.get_mut(id)
                && claim.attempt == *attempt
            {
                claim.leased_until = None;
                claims.appeared(id.lane, (due_at.as_millis(), id.event.0));
            }
        }
        Ok(())
    }

    async fn heartbeat(&self, now: Timestamp) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => SqliteConnection::connect_with(&self.options).await?,
        };
        sqlx::query(
            "INSERT INTO node (number, epoch, seen_at) VALUES (0, '', $1)
             ON CONFLICT (number) DO UPDATE SET seen_at = excluded.seen_at",
        )
        .bind(now.as_millis())
        .execute(&mut connection)
        .await?;
        *writer = Some(connection);
        Ok(())
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

    async fn close(&self) {
        self.checkpointer.abort();
        if let Some(connection) = self.writer.lock().await.take() {
            // Closing the last connection folds the WAL into the file; an error leaves it for the next start.
            let _ = connection.close().await;
        }
        // Not left to the last clone of the ledger: the next owner may be waiting.
        let _ = self.lock.set_len(0).and_then(|()| self.lock.unlock());
    }
}

/// The largest fixed chunk that `rows` fills, and the rest.
fn next_chunk<T>(rows: &[T]) -> Option<(&[T], &[T])> {
    CHUNKS.iter().find(|size| **size <= rows.len()).map(|size| rows.split_at(*size))
}

/// `(?,?),(?,?)` for so many rows of so many columns.
fn placeholders(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![row; rows].join(",")
}

/// Runs `head VALUES … tail` over all rows, a chunk at a time; how many rows were changed.
async fn write_rows<T>(
    connection: &mut SqliteConnection,
    (head, columns, tail): (&str, usize, &str),
    rows: &[T],
    bind: impl for<'q> Fn(Query<'q>, &T) -> Query<'q>,
) -> Result<u64> {
    let mut changed = 0;
    let mut rest = rows;
    while let Some((chunk, left)) = next_chunk(rest) {
        let sql = format!("{head} {}{tail}", placeholders(chunk.len(), columns));
        let query = chunk.iter().fold(sqlx::query(AssertSqlSafe(sql)), &bind);
        changed += query.execute(&mut *connection).await?.rows_affected();
        rest = left;
    }
    Ok(changed)
}

/// Writes a plan's rows; false where some of its keys are taken.
async fn insert_plan(connection: &mut SqliteConnection, plan: &Plan<'_>) -> Result<bool> {
    let keys: Vec<_> = plan.sorted().collect();
    let head = "INSERT INTO event_key (tenant, source, id, fingerprint, event) VALUES";
    let written = write_rows(connection, (head, 5, " ON CONFLICT DO NOTHING"), &keys, |query, insert| {
        let identity = &insert.new.event.identity;
        let query = query.bind(&*identity.tenant).bind(&*identity.source).bind(&*identity.id);
        query.bind(&insert.new.event.fingerprint.0[..]).bind(insert.seq.0)
    });
    if written.await? < keys.len() as u64 {
        return Ok(false);
    }
    let head = "INSERT INTO request_key (scope, key, fingerprint, created_at) VALUES";
    let written =
        write_rows(connection, (head, 4, " ON CONFLICT DO NOTHING"), &plan.request_keys, |query, key| {
            query.bind(&*key.scope).bind(&*key.key).bind(&key.fingerprint[..]).bind(plan.now.as_millis())
        });
    if written.await? < plan.request_keys.len() as u64 {
        return Ok(false);
    }
    let head = "INSERT INTO event (seq, tenant, source, id, type, received_at, destinations, body, data_start, \
                data_end) VALUES";
    write_rows(connection, (head, 10, ""), &plan.inserts, |query, insert| {
        let event = &insert.new.event;
        let (start, end) = rows::range_columns(event.data.as_ref());
        let query = query.bind(insert.seq.0).bind(&*event.identity.tenant).bind(&*event.identity.source);
        let query = query.bind(&*event.identity.id).bind(&*event.event_type).bind(plan.now.as_millis());
        query.bind(rows::count(insert.new.lanes.len())).bind(&event.body[..]).bind(start).bind(end)
    })
    .await?;
    let head = "INSERT INTO queue (lane, due_at, event, attempt, failures, uncertain) VALUES";
    write_rows(connection, (head, 6, ""), &plan.deliveries, |query, waiting| {
        let query = query.bind(waiting.lane.id.0).bind(plan.now.as_millis()).bind(waiting.seq.0);
        query.bind(0_i64).bind(0_i64).bind(0_i64)
    })
    .await?;
    Ok(true)
}

/// Takes settled deliveries out of the queue and writes what they lead to.
async fn settle_rows(connection: &mut SqliteConnection, settlements: &[Settlement]) -> Result<()> {
    let moved: Vec<_> =
        settlements.iter().filter(|settlement| settlement.next != NextState::Released).collect();
    let head = "DELETE FROM queue WHERE (lane, due_at, event) IN (VALUES";
    let gone = write_rows(connection, (head, 3, ")"), &moved, |query, settlement| {
        query.bind(settlement.id.lane.0).bind(settlement.due_at.as_millis()).bind(settlement.id.event.0)
    })
    .await?;
    if gone != moved.len() as u64 {
        // Nobody else writes this file: a claimed row can't be gone.
        let missing = moved.len() as u64 - gone;
        return Err(LedgerError::Unavailable(format!("{missing} claimed deliveries are not in the queue")));
    }
    let waiting: Vec<_> = moved.iter().filter_map(|settlement| WaitingColumns::of(settlement)).collect();
    let head = "INSERT INTO queue (lane, due_at, event, attempt, failures, uncertain) VALUES";
    write_rows(connection, (head, 6, ""), &waiting, |query, row| {
        let query = query.bind(row.lane).bind(row.due_at).bind(row.event);
        query.bind(row.attempt).bind(row.failures).bind(row.uncertain)
    })
    .await?;
    let done: Vec<_> = moved.iter().filter_map(|settlement| OutcomeColumns::of(settlement)).collect();
    let head = "INSERT INTO outcome (event, lane, state, at, attempts, failures, latency_ms, status, remote_id, \
                dispatch_unconfirmed, reason) VALUES";
    write_rows(connection, (head, 11, ""), &done, |query, row| {
        let query = query.bind(row.event).bind(row.lane).bind(row.state).bind(row.at).bind(row.attempts);
        let query = query.bind(row.failures).bind(row.latency_ms).bind(row.status).bind(row.remote_id);
        query.bind(row.dispatch_unconfirmed).bind(row.reason)
    })
    .await?;
    let failed: Vec<_> = moved.iter().filter_map(|settlement| AttemptColumns::of(settlement)).collect();
    let head = "INSERT INTO attempt_log (event, lane, attempt, at, latency_ms, status, code, detail, retry_at) VALUES";
    write_rows(connection, (head, 9, " ON CONFLICT DO NOTHING"), &failed, |query, row| {
        let query = query.bind(row.event).bind(row.lane).bind(row.attempt).bind(row.at).bind(row.latency_ms);
        query.bind(row.status).bind(row.code).bind(row.detail).bind(row.retry_at)
    })
    .await?;
    Ok(())
}
