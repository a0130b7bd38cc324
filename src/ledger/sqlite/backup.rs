//! Copies of the file: made while it is written, checked, and put in its place again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use super::file::{beside, own, path_of};
use super::{BUSY_TIMEOUT, MIGRATIONS};
use crate::ledger::{LedgerError, Result};

/// A ledger holds payloads: its copies are their owner's alone.
const FILE_MODE: u32 = 0o600;

/// A backup that was checked.
#[derive(Debug)]
pub struct Backup {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The number of its last migration.
    pub schema: i64,
    /// Events in it.
    pub events: i64,
    /// Deliveries that wait in it.
    pub waiting: i64,
    /// What is sealed under the master key.
    pub sealed: Vec<SealedSecret>,
}

/// The sealed texts of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// The endpoint's id.
    pub endpoint: String,
    /// What its deliveries are signed with.
    pub secret: String,
    /// The secret before that, while it signs too.
    pub previous_secret: Option<String>,
    /// The values of its own headers.
    pub headers: Option<String>,
}

/// A file under a temporary name; removed unless it is put in its place.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    /// A new, empty file. Another process that writes the same one keeps it.
    fn create(path: PathBuf) -> Result<Self> {
        let failed =
            |error: &dyn std::fmt::Display| refused(&path, format_args!("can't be written: {error}"));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(&path);
        let file = file.map_err(|error| failed(&error))?;
        file.try_lock().map_err(|error| failed(&error))?;
        file.set_len(0).map_err(|error| failed(&error))?;
        // Of one that was killed: SQLite would roll it back into this one.
        let _ = fs::remove_file(with_suffix(&path, "-journal"));
        Ok(Self { path, file })
    }

    /// Makes it durable and gives it its name.
    fn rename(self, name: &Path) -> Result<()> {
        let renamed = fs::rename(&self.path, name).and_then(|()| sync_directory(name));
        renamed.map_err(|error| refused(name, format_args!("can't be written: {error}")))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was renamed. SQLite leaves its journal where it fails.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(with_suffix(&self.path, "-journal"));
    }
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn refused(file: &Path, why: impl std::fmt::Display) -> LedgerError {
    LedgerError::Refused(format!("{} {why}", file.display()))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Where a backup is written before it gets its name.
pub fn draft_of(target: &Path) -> PathBuf {
    with_suffix(target, ".part")
}

/// Copies the SQLite file of a database URL to `target`, consistently and while another process may write it, and checks the
/// copy. `target` appears when all of that is done.
///
/// Readers and writers go on meanwhile. The write-ahead log keeps what is written until the copy is complete.
///
/// # Errors
/// [`LedgerError::Refused`] where there is no ledger, `target` exists (without `overwrite`), or the copy can't be written;
/// [`LedgerError::Unavailable`] where the ledger can't be read. Nothing is left of the copy then.
pub async fn back_up(url: &str, target: &Path, overwrite: bool) -> Result<Backup> {
    let source = path_of(url)?;
    if !source.exists() {
        return Err(LedgerError::Refused(format!("there is no ledger at {}", source.display())));
    }
    if target.exists() && !overwrite {
        return Err(refused(target, "exists: name another file, or give --overwrite"));
    }
    let draft = Draft::create(draft_of(target))?;
    let name = draft.path.to_str().ok_or_else(|| refused(&draft.path, "is no name that SQLite can take"))?;
    let connect = SqliteConnectOptions::new().filename(&source).read_only(true).busy_timeout(BUSY_TIMEOUT);
    let mut connection = SqliteConnection::connect_with(&connect).await?;
    // A snapshot of its own. SQLite's other way begins again with every commit of another process, and never ends.
    let copied = sqlx::query("VACUUM INTO $1").bind(name).execute(&mut connection).await;
    // Before the draft goes: what SQLite has open of it is closed.
    let closed = connection.close().await;
    copied?;
    closed?;
    draft.file.sync_all().map_err(|error| refused(&draft.path, format_args!("can't be written: {error}")))?;
    let backup = check_backup(&draft.path).await?;
    draft.rename(target)?;
    Ok(Backup { file: target.to_owned(), ..backup })
}

/// Checks a backup: that it is whole, a ledger, and of a version that this one can open.
///
/// # Errors
/// [`LedgerError::Refused`].
pub async fn check_backup(file: &Path) -> Result<Backup> {
    let broken = |error: sqlx::Error| refused(file, format_args!("is broken or no ledger: {error}"));
    let about = fs::metadata(file).map_err(|error| refused(file, format_args!("can't be read: {error}")))?;
    let log = with_suffix(file, "-wal");
    if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Err(refused(
            &log,
            "is there: a backup has no write-ahead log; make one with `posthaste backup`",
        ));
    }
    // Nobody writes it: nothing is locked, and nothing made beside it.
    let connect = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
    let mut connection = SqliteConnection::connect_with(&connect).await.map_err(broken)?;
    let (verdict,): (String,) =
        sqlx::query_as("PRAGMA integrity_check(1)").fetch_one(&mut connection).await.map_err(broken)?;
    if verdict != "ok" {
        return Err(refused(file, format_args!("is broken: {verdict}")));
    }
    let (schema, events, waiting): (i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations), (SELECT COUNT(*) FROM event),
                (SELECT COUNT(*) FROM queue)",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(broken)?;
    let last = MIGRATIONS.last().map_or(0, |(version, ..)| *version);
    if schema > last {
        return Err(refused(
            file,
            format_args!(
                "was written by a newer version: its schema is at {schema}, this version knows up to {last}"
            ),
        ));
    }
    let sealed: Vec<(String, String, Option<String>, Option<String>)> = if schema < 2 {
        Vec::new()
    } else {
        let sql = "SELECT id, secret, previous_secret, headers FROM endpoint ORDER BY id";
        sqlx::query_as(sql).fetch_all(&mut connection).await.map_err(broken)?
    };
    let sealed = sealed.into_iter().map(|(endpoint, secret, previous_secret, headers)| SealedSecret {
        endpoint,
        secret,
        previous_secret,
        headers,
    });
    let sealed = sealed.collect();
    connection.close().await.map_err(broken)?;
    Ok(Backup { file: file.to_owned(), bytes: about.len(), schema, events, waiting, sealed })
}

/// The place of a ledger that a backup is to be put into. No process can open a ledger there meanwhile.
#[derive(Debug)]
pub struct RestorePlace {
    path: PathBuf,
    /// Where the ledger that stands there goes.
    replaced: PathBuf,
    _lock: File,
}

impl RestorePlace {
    /// Takes the place that a database URL names.
    ///
    /// # Errors
    /// [`LedgerError::Refused`] where a process owns it, or a ledger stands there and `replace` is not given.
    pub async fn take(url: &str, replace: bool) -> Result<Self> {
        let path = path_of(url)?;
        let lock = own(&path).await?;
        let replaced = with_suffix(&path, ".replaced");
        if path.exists() && !replace {
            return Err(refused(
                &path,
                format_args!(
                    "exists: give --replace to put the backup in its place; it is kept as {}",
                    replaced.display()
                ),
            ));
        }
        if path.exists() && replaced.exists() {
            return Err(refused(&replaced, "exists from an earlier restore: move it away, or delete it"));
        }
        Ok(Self { path, replaced, _lock: lock })
    }

    /// The place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a copy of a backup there. Returns where the ledger that stood there is now.
    ///
    /// # Errors
    /// [`LedgerError::Refused`]. A ledger that stood there is in its place, or under the name that [`Self::take`] tells.
    pub async fn restore(self, backup: &Backup) -> Result<Option<PathBuf>> {
        let draft = Draft::create(with_suffix(&self.path, ".restoring"))?;
        let copy = |error: io::Error| refused(&draft.path, format_args!("can't be written: {error}"));
        let mut source = File::open(&backup.file).map_err(copy)?;
        let mut target = draft.file.try_clone().map_err(copy)?;
        let copied = tokio::task::spawn_blocking(move || {
            io::copy(&mut source, &mut target).and_then(|bytes| target.sync_all().map(|()| bytes))
        });
        let copied = copied.await.map_err(|error| copy(io::Error::other(error)))?.map_err(copy)?;
        if copied != backup.bytes {
            return Err(refused(&backup.file, "has changed since it was checked"));
        }
        let replaced = self.move_away().await?;
        draft.rename(&self.path)?;
        Ok(replaced)
    }

    /// Moves a ledger that stands there away, with its write-ahead log: SQLite would take that for the new file's.
    async fn move_away(&self) -> Result<Option<PathBuf>> {
        let there = self.path.exists();
        if there {
            // Folds the log into the file; one that is broken keeps both.
            let connect = SqliteConnectOptions::new().filename(&self.path).busy_timeout(BUSY_TIMEOUT);
            if let Ok(mut connection) = SqliteConnection::connect_with(&connect).await {
                let _ = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await;
                let _ = connection.close().await;
            }
        }
        // The file last: while it is there, the next try finds it.
        for suffix in ["-shm", "-wal", ""] {
            let (from, to) = (beside(&self.path, suffix), with_suffix(&self.replaced, suffix));
            match fs::rename(&from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(refused(&from, format_args!("can't be moved away: {error}")));
                }
                _ => {}
            }
        }
        Ok(there.then(|| self.replaced.clone()))
    }
}
