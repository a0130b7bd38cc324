//! The ledger: every event exactly once, every delivery until it is done.
//!
//! [`Ledger`] is what the rest of the program sees. Behind it, what is hot (commit, claim) is a [`Store`] with one
//! implementation for each database, because they want different statements there; everything else is one shared
//! text ([`sql`]). A [`writer`] takes what waits and commits it together.

mod backlog;
mod clock;
mod connections;
mod damaged;
mod endpoints;
mod fan_out;
mod gates;
mod incarnation;
mod lanes;
mod leftovers;
#[cfg(test)]
mod migration_rules;
mod notices;
mod partners;
mod payloads;
mod plan;
mod postgres;
mod prune;
mod reading;
mod registry;
mod rejected;
mod repeats;
mod replays;
mod rows;
mod sessions;
mod silence;
mod sql;
mod sqlite;
mod stats;
mod steering;
mod tokens;
mod writer;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use tokio::sync::oneshot;

use self::backlog::Backlog;
pub use self::backlog::BacklogLimits;
use self::clock::ClockKeeper;
pub use self::clock::{ClockState, ClockStatus, LedgerClock};
pub use self::connections::{Connections, Pooler};
pub use self::endpoints::{
    EndpointMark, EndpointRow, NewEndpoint, SEALED_URL, Sealed, SealedColumn, StoredSettings,
};
use self::fan_out::{Next, Step};
pub use self::gates::ClosedGate;
use self::incarnation::Membership;
pub use self::lanes::BusyLane;
use self::lanes::LaneCache;
pub use self::leftovers::{FanOutPlace, LaneUse, OF_EVENTS};
pub use self::notices::Notice;
use self::notices::Notices;
pub use self::partners::{EventTypeRow, PartnerRow, Put};
use self::payloads::Claimed;
use self::plan::{AcceptRequest, Known, Plan};
pub use self::plan::{Accepted, ItemVerdict, NewEvent, RequestKey};
pub use self::postgres::PostgresPools;
pub use self::prune::{Chore, Doomed, KeptIdentity};
pub use self::reading::{
    AttemptRow, DeliveryCursor, DeliveryFilter, DeliveryRow, DeliveryState, Done, EventDetail, EventFilter,
    EventRow, EventState, Part, RepeatRow, Standing, SteeringRow, Waiting,
};
pub use self::registry::{ApiKey, KeyInfo, TenantRow};
pub use self::rejected::{NewRejected, Rejected, RejectedFilter, RejectedRow};
use self::repeats::Repeats;
pub use self::replays::progress::Untried;
pub use self::replays::select::{Candidate, Cursor, Selection, Window};
pub use self::replays::svix::{SvixDelivery, SvixWindow};
pub use self::replays::{NewReplay, ReplayRow, ReplayStep, ReplayWork};
pub use self::sessions::{ConsoleSession, SESSIONS_PER_KEY};
pub use self::sql::{Database, OutcomeRow, Progress};
pub use self::sqlite::{
    Backup, LimitedReads, RestorePlace, SealedSecret, back_up, check_backup, database_file, draft_of,
    lock_holder,
};
pub use self::stats::{StatRow, WaitingRow};
pub use self::steering::Steered;
use self::writer::{Command, Desk, UNSETTLED_LIMIT, Writer};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Class, Delivery, DeliveryId, Settlement};
use crate::domain::event::Identity;
use crate::domain::scheduler::{LaneClaim, Permit, Remaining};
use crate::domain::sequence::Sequence;
use crate::domain::tenant::Lane;
use crate::failpoint::failpoint;
use crate::jobs::{Job, JobMetrics};
use crate::telemetry::CommitMetrics;

/// Why the ledger could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database is down, full or broken: try again later.
    #[error("the ledger is unavailable: {0}")]
    Unavailable(String),
    /// The ledger can't be opened as it is: durability off, too old, owned by another process.
    #[error("{0}")]
    Refused(String),
    /// An operator's read took longer than it may.
    #[error(
        "the read took longer than ledger.read_timeout_ms allows and was ended; narrow its filter or its time range, or \
         raise the limit"
    )]
    TooSlow,
    /// This node's number was given to another node while this one was silent. Nothing was changed; the ledger takes
    /// another number by itself.
    #[error("node number {0} has passed to another node while this one was cut off")]
    NumberLost(i64),
    /// A name that must be unique is taken.
    #[error("{0}")]
    Taken(String),
    /// Too many deliveries wait, of this tenant or of all.
    #[error("{scope} has {waiting} deliveries waiting, and at most {limit} may wait")]
    BacklogFull {
        /// `tenant NAME` or `the ledger`.
        scope: String,
        /// Whether it is one tenant's cap.
        tenant: bool,
        /// How many wait.
        waiting: u64,
        /// The cap.
        limit: u64,
    },
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        postgres::session::note_fault(&error);
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match code.as_deref() {
            None if matches!(error, sqlx::Error::PoolTimedOut) => {
                let refusal = postgres::session::refusal();
                Self::Unavailable(refusal.unwrap_or("no connection to the database was free in time").into())
            }
            // Postgres: query_canceled, by `statement_timeout`. SQLite: SQLITE_INTERRUPT, by the progress handler.
            Some("57014" | "9") => Self::TooSlow,
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

/// Result of a ledger call.
pub type Result<T> = std::result::Result<T, LedgerError>;

/// How a ledger is opened.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// How long a claim holds.
    pub lease: Duration,
    /// How many deliveries may wait.
    pub backlog: BacklogLimits,
    /// How many bytes of what was just recorded are kept in memory until it is claimed, about.
    pub recent_bytes: usize,
    /// How the database is reached, and how long reads may take.
    pub connections: Connections,
}

/// What a claim yields for one lane.
#[derive(Debug)]
pub struct ClaimedLane {
    /// The deliveries, oldest first.
    pub deliveries: Vec<Delivery>,
    /// What is left in the ledger.
    pub remaining: Remaining,
}

/// Who takes fresh deliveries straight from memory after their commit: the dispatcher.
pub trait Outlet: Send + Sync {
    /// A place in flight for a delivery of this lane, where it may go out at once.
    fn reserve(&self, lane: &Arc<Lane>) -> Option<Permit>;
    /// A reserved delivery, committed and claimed.
    fn deliver(&self, delivery: Delivery, permit: Permit);
    /// The commit failed: the place is free again.
    fn give_back(&self, lane: &Arc<Lane>, permit: Permit);
    /// Whether sends are under way, whose settlements will come.
    fn is_sending(&self) -> bool;
    /// The ledger holds work of this lane and class that falls due at `due_at`.
    fn wake(&self, lane: &Arc<Lane>, class: Class, due_at: Timestamp);
}

/// What differs between the databases: the hot path.
///
/// `commit` and `lookup` are called by the writer alone, one at a time; the rest from anywhere.
#[async_trait]
trait Store: Send + Sync {
    /// Writes a plan and settlements in one transaction, made durable before it returns. What the database has already is
    /// taken out of the plan, which is then what was written.
    async fn commit(&self, plan: &mut Plan<'_>, settlements: &[Settlement]) -> Result<Committed>;

    /// Moves the deliveries of some rows of `fan_out` into the queue; `None` where there are none.
    async fn continue_fan_out(&self, next: Next<'_>) -> Result<Option<Step>>;

    /// What the ledger already knows of these identities and request keys, each list in order.
    async fn lookup(&self, identities: &[&Identity], keys: &[&RequestKey]) -> Result<Known>;

    /// Claims due deliveries, oldest first, for each lane at most its limit.
    async fn claim(&self, claims: &[LaneClaim], now: Timestamp) -> Result<Claimed>;

    /// Gives claims back unsent.
    async fn release(&self, held: &[Held]) -> Result<()>;

    /// A settlement of this claim waits to be written: as far as this process can, it keeps the claim until then.
    fn settling(&self, _claim: ClaimId) {}

    /// Claims the one delivery that stands at this place in the queue: the number of the claim; `None` where somebody
    /// holds it, or it stands there no more.
    async fn claim_one(&self, place: &Held) -> Result<Option<i64>>;

    /// Checks that this node still holds its number.
    async fn prove(&self) -> Result<()> {
        Ok(())
    }

    /// Takes another number after this one was lost: the sequence of event numbers that follows.
    async fn rejoin(&self) -> Result<Sequence> {
        Err(LedgerError::Refused("this ledger has one node, whose number can't be lost".into()))
    }

    /// How long the claims of these go on, in order, as far as only this process knows of them.
    async fn claims_left(&self, ids: &[DeliveryId]) -> Vec<Option<Duration>> {
        vec![None; ids.len()]
    }

    /// The ledger's time goes back to `now` by so many milliseconds: due times that lie in the future keep their distance.
    /// Nothing to do where the database's own clock is the ledger's.
    async fn set_back(&self, _now: Timestamp, _back_ms: i64) -> Result<()> {
        Ok(())
    }

    /// A delivery was put into the queue past [`Self::commit`].
    fn appeared(&self, _id: DeliveryId, _class: Class, _due_at: Timestamp) {}

    /// Writes a heartbeat: proves that the ledger takes writes and keeps this node's number. `after_trouble`: that it
    /// takes events, too.
    async fn heartbeat(&self, after_trouble: bool) -> Result<()>;

    /// How large the file of the write-ahead log is; `None` where it is not this machine's to see.
    fn wal_bytes(&self) -> Option<u64> {
        None
    }

    /// Leaves the address this process listens on where other processes of this machine find it.
    async fn announce(&self, address: &str) -> Result<()>;

    /// Ends: gives the node number or the file back, and closes its connections.
    async fn close(&self, database: &Database);
}

/// One claim of a delivery: which delivery, and the number of the attempt.
type ClaimId = (DeliveryId, i64);

/// A claim, and where in the queue the delivery stands.
#[derive(Debug, Clone, Copy)]
struct Held {
    id: DeliveryId,
    class: Class,
    due_at: Timestamp,
    attempt: i64,
}

impl Held {
    const fn of(settlement: &Settlement) -> Self {
        let Settlement { id, class, due_at, attempt, .. } = settlement;
        Self { id: *id, class: *class, due_at: *due_at, attempt: *attempt }
    }
}

impl From<&Delivery> for Held {
    fn from(delivery: &Delivery) -> Self {
        let Delivery { id, class, due_at, attempt, .. } = delivery;
        Self { id: *id, class: *class, due_at: *due_at, attempt: *attempt }
    }
}

/// The claim that a settlement is about.
const fn claim_of(settlement: &Settlement) -> ClaimId {
    (settlement.id, settlement.attempt)
}

/// What became of a commit.
#[derive(Debug)]
enum Committed {
    /// Durable. Settlements that named an old claim changed nothing and are named here.
    Done {
        /// Claims whose settlement was fenced off.
        stale: HashSet<ClaimId>,
    },
    /// Nothing was written: some identities or request keys of the plan are known already, and without them it would be
    /// another plan.
    Clash,
}

/// The ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    database: Database,
    desk: Desk,
    /// Settlements that were handed in and are not committed.
    unsettled: Arc<AtomicUsize>,
    writer: Mutex<Option<tokio::task::JoinHandle<()>>>,
    backlog: Arc<Backlog>,
    outlet: Arc<OnceLock<Box<dyn Outlet>>>,
    repeats: Arc<Repeats>,
    meter: Arc<OnceLock<Arc<CommitMetrics>>>,
    jobs: Arc<JobMetrics>,
    /// Which node this is.
    membership: Arc<Membership>,
    /// `None` where the ledger is not shared.
    notices: Option<Notices>,
    /// What is heard then.
    silence: tokio::sync::broadcast::Sender<Notice>,
    health: tokio::sync::watch::Receiver<Option<String>>,
    lanes: Mutex<LaneCache>,
    lease: Duration,
    /// The ledger's clock, as everybody knows it and with its status.
    clock: Arc<dyn Clock>,
    ledger_clock: Arc<LedgerClock>,
}

impl Ledger {
    /// Opens the ledger, creating and migrating it as needed, and starts its writer.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] where the database does not keep what it acknowledges, is too old or too new, or
    /// (SQLite) belongs to another process; [`LedgerError::Unavailable`] where it can't be reached.
    pub async fn open(options: &LedgerOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        let (health_sender, health) = tokio::sync::watch::channel(None);
        let ledger_clock = Arc::new(LedgerClock::new(clock));
        let clock: Arc<dyn Clock> = ledger_clock.clone();
        let jobs = Arc::new(JobMetrics::new(clock.clone()));
        let (store, opened): (Arc<dyn Store>, _) = if is_sqlite(&options.url) {
            sqlite::open(options, &clock, &health_sender, &jobs).await?.apart()
        } else {
            postgres::open(options, &clock, &health_sender, &jobs).await?.apart()
        };
        let Opened { database, mut sequence, membership, notices, .. } = opened;
        ledger_clock.start(&database, &*store).await?;
        let lead_ms = database.lead_ms().await?;
        let clock_keeper = ClockKeeper { clock: ledger_clock.clone(), database: database.clone(), lead_ms };
        clock_keeper.leave_the_future(&mut sequence).await?;
        // Before anyone writes: what is committed during a count might be counted twice.
        let backlog = Arc::new(Backlog::new(options.backlog, database.count_waiting().await?));
        let (outlet, meter) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
        let repeats = Arc::new(Repeats::default());
        let (desk, inbox) = Desk::new();
        let unsettled = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            store: store.clone(),
            sequence,
            backlog: backlog.clone(),
            outlet: outlet.clone(),
            meter: meter.clone(),
            repeats: repeats.clone(),
            unsettled_count: unsettled.clone(),
            bell: notices.as_ref().map(|notices| notices.bell().clone()),
            health: health_sender,
            membership: membership.clone(),
            last_beat: clock.moment(),
            settle_together: writer::SETTLE_TOGETHER,
            clock_keeper: Some(clock_keeper),
            fan_out: writer::FanOutTurn::first(),
            clock: clock.clone(),
        };
        let writer = Mutex::new(Some(tokio::spawn(writer.run(inbox))));
        let lanes = Mutex::default();
        let lease = options.lease;
        let ledger = Self {
            shared: Arc::new(Shared {
                store,
                database,
                desk,
                unsettled,
                writer,
                backlog,
                outlet,
                meter,
                repeats,
                jobs,
                membership,
                notices,
                silence: tokio::sync::broadcast::Sender::new(1),
                health,
                lanes,
                lease,
                clock,
                ledger_clock,
            }),
        };
        backlog::keep_counting(&ledger);
        repeats::keep_writing(&ledger);
        Ok(ledger)
    }

    /// Names who takes fresh deliveries. Without one, they are claimed from the ledger.
    pub fn connect(&self, outlet: Box<dyn Outlet>) {
        // A second outlet would be a second dispatcher in one process; the first stays.
        let _ = self.shared.outlet.set(outlet);
    }

    /// Names where commits are told of. Without one, nobody hears of them.
    pub fn meter(&self, metrics: Arc<CommitMetrics>) {
        // The first stays, as with the outlet.
        let _ = self.shared.meter.set(metrics);
    }

    /// How the background jobs of this process stand. Every job that works on the ledger reports there.
    pub fn jobs(&self) -> &Arc<JobMetrics> {
        &self.shared.jobs
    }

    /// Records a request's events, each once, and answers after the commit is durable.
    ///
    /// With `strict`, one conflict refuses the whole request and nothing of it is stored.
    ///
    /// # Errors
    /// [`LedgerError::BacklogFull`] and [`LedgerError::Unavailable`]: nothing is stored, or (a connection lost during
    /// the commit) all of it, in which case a resend finds duplicates.
    pub async fn accept(
        &self,
        events: Vec<NewEvent>,
        strict: bool,
        request_key: Option<RequestKey>,
    ) -> Result<Accepted> {
        self.shared.backlog.admit(&events)?;
        let (answer, verdicts) = oneshot::channel();
        let request = AcceptRequest { events, strict, request_key };
        self.command(Command::Accept { request, answer }).await?;
        verdicts.await.map_err(|_| stopped())?
    }

    /// Hands in what became of an attempt. Returns once it is queued: the writer keeps it until it is committed, and this
    /// process does not claim the delivery before that.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] where the ledger is closed.
    pub async fn settle(&self, settlement: Settlement) -> Result<()> {
        self.shared.store.settling(claim_of(&settlement));
        self.shared.unsettled.fetch_add(1, Ordering::Relaxed);
        self.shared.desk.settlements.send(settlement).await.map_err(|_| stopped())
    }

    /// Whether a send may begin now: its settlement could be recorded. False while writes fail, and while as many
    /// settlements wait as are kept.
    pub fn can_settle(&self) -> bool {
        self.unsettled() < UNSETTLED_LIMIT && self.shared.health.borrow().is_none()
    }

    /// Settlements that wait to be committed.
    pub fn unsettled(&self) -> usize {
        self.shared.unsettled.load(Ordering::Relaxed)
    }

    /// Claims due deliveries for the lease that the ledger was opened with.
    ///
    /// Returns one answer for each claim, and when the leases end. A row whose event can't be read is given up, with a
    /// reason, and keeps no other from being claimed.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]; [`LedgerError::NumberLost`]: nothing is claimed.
    pub async fn claim(&self, claims: &[LaneClaim]) -> Result<(Vec<ClaimedLane>, Moment)> {
        // Read first: a lease that began later than we believe only ends later.
        let leased_until = self.shared.clock.moment() + self.shared.lease;
        let Claimed { lanes, damaged } = self.shared.store.claim(claims, self.shared.clock.now()).await?;
        for damaged in damaged {
            self.give_up(damaged).await?;
        }
        Ok((lanes, leased_until))
    }

    /// Gives claims back unsent.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: the leases will end by themselves.
    pub async fn release(&self, deliveries: &[Delivery]) -> Result<()> {
        let held: Vec<_> = deliveries.iter().map(Held::from).collect();
        self.shared.store.release(&held).await?;
        if let Some(notices) = &self.shared.notices {
            notices.bell().lanes(deliveries.iter().map(|delivery| delivery.id.lane));
        }
        Ok(())
    }

    /// Whether new events would be taken now, without asking the database.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] while writes fail, [`LedgerError::BacklogFull`] at the global cap.
    pub fn admits(&self) -> Result<()> {
        if let Some(reason) = self.shared.health.borrow().clone() {
            return Err(LedgerError::Unavailable(reason));
        }
        self.shared.backlog.admits_any()
    }

    /// How many deliveries of a tenant may be added to what waits, without asking the database.
    ///
    /// # Errors
    /// [`LedgerError::BacklogFull`] at the global cap.
    pub fn room_of(&self, tenant: &str) -> Result<u64> {
        self.shared.backlog.room_of(tenant)
    }

    /// Why the ledger takes no writes now; `None` where it does.
    pub fn trouble(&self) -> Option<String> {
        self.shared.health.borrow().clone()
    }

    /// How long a claim holds.
    pub fn lease(&self) -> Duration {
        self.shared.lease
    }

    /// Deliveries waiting, all tenants.
    pub fn waiting(&self) -> u64 {
        self.shared.backlog.total()
    }

    /// Most deliveries that may wait, all tenants.
    pub fn waiting_limit(&self) -> u64 {
        self.shared.backlog.limit()
    }

    /// Bytes in the file of the write-ahead log; `None` on Postgres, whose server tells of its own.
    pub fn wal_bytes(&self) -> Option<u64> {
        self.shared.store.wal_bytes()
    }

    /// What other nodes tell from now on. Nothing ever comes where the ledger is not shared. Whoever reads too slowly
    /// misses some ([`tokio::sync::broadcast::error::RecvError::Lagged`]) and has to look at everything.
    pub fn notices(&self) -> tokio::sync::broadcast::Receiver<Notice> {
        match &self.shared.notices {
            Some(notices) => notices.subscribe(),
            None => self.shared.silence.subscribe(),
        }
    }

    /// Tells other nodes that this one has changed tenants, keys, partners, endpoints or event types.
    pub fn tell_revision(&self) {
        if let Some(notices) = &self.shared.notices {
            notices.bell().revision();
        }
    }

    /// This node's number. Another one follows where it is lost.
    pub fn node(&self) -> i64 {
        self.shared.membership.current().node
    }

    /// This node's epoch: the fence of what it writes. It changes with the number and is never given out again.
    pub fn epoch(&self) -> i64 {
        self.shared.membership.current().epoch
    }

    /// Waits until this node has lost its number and no other one can be had: the process has to end. Returns the
    /// reason.
    pub async fn excluded(&self) -> String {
        self.shared.membership.excluded().await;
        self.trouble().unwrap_or_else(|| "this node has no number".into())
    }

    /// Tenants, keys and rejected messages: see [`sql::Database`].
    pub fn database(&self) -> &Database {
        &self.shared.database
    }

    /// Leaves the address this process listens on where the command line finds it (SQLite only).
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn announce(&self, address: &str) -> Result<()> {
        self.shared.store.announce(address).await
    }

    /// Commits what is queued and closes the ledger. Calls after this fail.
    pub async fn close(&self) {
        // The writer ends when it reads this; what came before is committed.
        let _ = self.shared.desk.commands.send(Command::Close).await;
        let writer = self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.await;
        }
        self.shared.jobs.ran(Job::Duplicates, &self.shared.repeats.write(&self.shared.database).await);
        if let Some(notices) = &self.shared.notices {
            notices.stop();
        }
        self.shared.store.close(&self.shared.database).await;
    }

    async fn command(&self, command: Command) -> Result<()> {
        self.shared.desk.commands.send(command).await.map_err(|_| stopped())
    }
}

fn stopped() -> LedgerError {
    LedgerError::Unavailable("it is being closed".into())
}

/// Whether a database URL names a SQLite file.
pub fn is_sqlite(url: &str) -> bool {
    url.starts_with("sqlite:")
}

/// A store with what the ledger needs beside it.
struct Opened<S> {
    store: S,
    database: Database,
    sequence: Sequence,
    membership: Arc<Membership>,
    /// `None` where the ledger is not shared.
    notices: Option<Notices>,
}

impl<S: Store + 'static> Opened<S> {
    /// The store, and the rest.
    fn apart(self) -> (Arc<dyn Store>, Opened<()>) {
        let Self { store, database, sequence, membership, notices } = self;
        (Arc::new(store), Opened { store: (), database, sequence, membership, notices })
    }
}

/// The migrations of one database: number, name, text. Append-only.
///
/// A node that starts migrates while others write. An index is built under a lock that keeps writers out of its table: 0.15 s for
/// each 400,000 events of `event` (measured for `event_unrouted` of 0009, payloads of 512 bytes; 0006 takes 0.8 s for as many
/// rejected messages, and locks out nobody but those who reject). So a migration that indexes a table of events says
/// `CREATE INDEX IF NOT EXISTS`: an operator of a large ledger builds the index beforehand with `CREATE INDEX CONCURRENTLY`. The
/// migration itself can't: the concurrent build waits for every older statement, also for that of a second node that waits for
/// the lock on migrations, and so for this one.
type Migrations = &'static [(i64, &'static str, &'static str)];

fn migrator(migrations: Migrations) -> Migrator {
    let migrations = migrations.iter().map(|(version, name, text)| {
        let text = sqlx::SqlStr::from_static(text);
        Migration::new(*version, (*name).into(), MigrationType::Simple, text, false)
    });
    Migrator::with_migrations(migrations.collect())
}

/// Brings the schema to this version's, alone: others wait for a lock of the session.
async fn migrate(connection: &mut impl Migrate, migrations: Migrations) -> Result<()> {
    run_migrations(connection, migrations, &migrator(migrations)).await
}

/// The same for a caller that holds a lock.
async fn migrate_locked(connection: &mut impl Migrate, migrations: Migrations) -> Result<()> {
    let mut migrator = migrator(migrations);
    migrator.set_locking(false);
    run_migrations(connection, migrations, &migrator).await
}

async fn run_migrations(
    connection: &mut impl Migrate,
    migrations: Migrations,
    migrator: &Migrator,
) -> Result<()> {
    let last = migrations.last().map_or(0, |(version, ..)| *version);
    // With failpoints there is a stop after each, where one may be killed.
    let stops = migrations.iter().map(|(version, ..)| *version);
    for stop in stops.filter(|stop| cfg!(feature = "failpoints") || *stop == last) {
        match migrator.run_direct(Some(stop), connection, false).await {
            Ok(()) => {}
            Err(MigrateError::VersionMissing(first)) => {
                // It names the first that is not known here; the schema is at the last.
                let applied = connection.list_applied_migrations(&migrator.table_name).await;
                let versions = applied.unwrap_or_default().into_iter().map(|applied| applied.version);
                let theirs = versions.max().unwrap_or(first);
                return Err(LedgerError::Refused(format!(
                    "the ledger was written by a newer version: its schema is at {theirs}, this version knows up to \
                     {last}; run that version, or restore a backup"
                )));
            }
            Err(error) => return Err(LedgerError::Unavailable(format!("migration failed: {error}"))),
        }
        failpoint!("migrated");
    }
    Ok(())
}
