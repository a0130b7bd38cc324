//! The file: whose it is, whether it keeps what it is told, and its WAL.

use std::fs::{File, TryLockError};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use super::LimitedReads;
use crate::failpoint::failpoint;
use crate::jobs::{Job, JobMetrics};
use crate::ledger::sql::Turn;
use crate::ledger::{LedgerError, Result};

/// Before this version a checkpoint could corrupt the file while another connection wrote (sqlite.org, "WAL reset bug").
const OLDEST_VERSION: (u32, u32, u32) = (3, 51, 3);
/// How often the WAL is checkpointed on the side, while there are writes.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);
/// How long a checkpoint that cuts the WAL waits for a reader, while nobody writes.
const CHECKPOINT_BUSY_TIMEOUT: Duration = Duration::from_millis(100);
/// The size of the WAL from which on operators' reads are paused until it could start over: four times what it has beside
/// full ingest.
const PAUSE_READS_FROM_BYTES: u64 = 256 << 20;
const LOCK_TRIES: usize = 5;
const BETWEEN_LOCK_TRIES: Duration = Duration::from_millis(20);

pub(super) fn path_of(url: &str) -> Result<PathBuf> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(|error| LedgerError::Refused(format!("`{url}` is not a SQLite URL: {error}")))?;
    let path = options.get_filename();
    let (name, parameters) = url.split_once('?').unwrap_or((url, ""));
    // An empty name is a temporary file, gone at the end.
    let named = path != Path::new("") && !name.ends_with(":memory:") && !parameters.contains("mode=memory");
    if !named {
        return Err(LedgerError::Refused(
            "a ledger in memory would lose what it acknowledged; name a file: `sqlite:PATH`".into(),
        ));
    }
    Ok(path.to_owned())
}

/// The SQLite file that a database URL names; `None` where it names none.
pub fn database_file(url: &str) -> Option<PathBuf> {
    crate::ledger::is_sqlite(url).then(|| path_of(url).ok())?
}

/// The file that says who owns the database: `<database>.lock`, whatever link it is reached by.
fn lock_path(database: &Path) -> PathBuf {
    beside(database, ".lock")
}

/// The file that the WAL is in.
pub(super) fn wal_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// A file that stands beside the database, whatever link that is reached by.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.canonicalize().unwrap_or_else(|_| database.to_owned()).into_os_string();
    name.push(suffix);
    name.into()
}

/// Takes the operating system's lock; it goes with the process, however that ends.
pub(super) async fn own(database: &Path) -> Result<File> {
    let path = lock_path(database);
    let refused = |error: &dyn std::fmt::Display| {
        LedgerError::Unavailable(format!("can't lock {}: {error}", path.display()))
    };
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| refused(&error))?;
    let mut locked = file.try_lock();
    // Somebody who only looks whether the file is owned holds the lock for a moment.
    for _ in 0..LOCK_TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        tokio::time::sleep(BETWEEN_LOCK_TRIES).await;
        locked = file.try_lock();
    }
    match locked {
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
pub(super) async fn check(connection: &mut SqliteConnection) -> Result<()> {
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

/// Passes a failpoint in the middle of statements, every few steps of SQLite's machine.
#[cfg(feature = "failpoints")]
pub(super) async fn pass_within_statements(connection: &mut SqliteConnection) -> Result<()> {
    connection.lock_handle().await?.set_progress_handler(20, || {
        failpoint!("migrating");
        true
    });
    Ok(())
}

/// Moves the WAL into the file before a commit has to: a checkpoint inside a commit is what its slowest callers feel.
pub(super) struct Checkpointer {
    connect: SqliteConnectOptions,
    wal: PathBuf,
    /// Hears of every commit.
    written: Arc<tokio::sync::Notify>,
    reads: LimitedReads,
    turn: Turn,
    jobs: Arc<JobMetrics>,
    /// From how many bytes on operators' reads are paused, so that the WAL can start over.
    pub pause_reads_from_bytes: u64,
}

impl Checkpointer {
    pub fn new(
        connect: &SqliteConnectOptions,
        wal: PathBuf,
        written: Arc<tokio::sync::Notify>,
        reads: LimitedReads,
        turn: Turn,
        jobs: Arc<JobMetrics>,
    ) -> Self {
        let connect = connect.clone().busy_timeout(CHECKPOINT_BUSY_TIMEOUT);
        Self { connect, wal, written, reads, turn, jobs, pause_reads_from_bytes: PAUSE_READS_FROM_BYTES }
    }

    pub async fn run(self) {
        let mut connection = None;
        self.jobs.started(Job::Checkpoint, None);
        loop {
            self.written.notified().await;
            tokio::time::sleep(CHECKPOINT_EVERY).await;
            let done = self.connect_and_checkpoint(&mut connection).await;
            if done.is_err() {
                // The next one is made on a new connection.
                connection = None;
            }
            self.jobs.ran(Job::Checkpoint, &done);
        }
    }

    async fn connect_and_checkpoint(&self, connection: &mut Option<SqliteConnection>) -> sqlx::Result<()> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(SqliteConnection::connect_with(&self.connect).await?),
        };
        failpoint!("checkpointing");
        self.checkpoint(open).await
    }

    async fn checkpoint(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *connection).await?;
        let bytes = std::fs::metadata(&self.wal).map_or(0, |wal| wal.len());
        if bytes < self.pause_reads_from_bytes {
            return Ok(());
        }
        // Reads that overlap keep the WAL from starting over. Their time limit bounds this wait.
        let _paused = self.reads.paused().await;
        // The larger part beside writes, and the rest between two of them.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *connection).await?;
        let _turn = self.turn.lock().await;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(connection).await.map(drop)
    }
}
