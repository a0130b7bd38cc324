//! Where the relay and its ledger are: ours for a round, or somebody's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use super::process::{Relay, Usage};
use super::profile::PREFIX;
use super::{Bench, BenchArgs};
use crate::cli::client::Client;
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::ledger::{Ledger, LedgerOptions, database_file, is_sqlite};

const FILE: &str = "posthaste.db";
/// The ledger that is filled once, in the temporary folder.
const FILLED: &str = "filled";
/// Most partners that a ledger for a bench has.
const PARTNERS_MAX: u32 = 1_000;

/// Where the ledger is.
pub(super) enum Place {
    /// Temporary SQLite files, a new one for each round.
    Temporary {
        root: TempDir,
        /// Whether each begins as a copy of one that was filled.
        filled: bool,
    },
    /// One that all rounds share.
    Given(String),
    /// A relay that runs already has one.
    Remote(Box<Client>),
}

/// The ledger of a round; a temporary one is gone when this is dropped.
pub(super) enum RoundLedger {
    Temporary { url: String, _folder: TempDir },
    Given(String),
    Remote,
}

impl Place {
    pub fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        if let Some(url) = &args.url {
            let client = Client::at(url.clone(), args.api_key.clone())?;
            return Ok(Self::Remote(Box::new(client)));
        }
        if let Some(url) = &args.database_url {
            return Ok(Self::Given(url.clone()));
        }
        let folder = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let root = tempfile::Builder::new().prefix("posthaste-bench-").tempdir_in(&folder);
        let root = root.with_context(|| format!("can't make a temporary folder in {}", folder.display()))?;
        let filled = args.prefill > 0 || args.profile == super::Profile::Backlog;
        Ok(Self::Temporary { root, filled })
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Temporary { .. } => "sqlite",
            Self::Given(url) if is_sqlite(url) => "sqlite",
            Self::Given(_) => "postgres",
            Self::Remote(_) => "remote",
        }
    }

    /// Whether a round finds what the one before has left.
    pub const fn is_kept(&self) -> bool {
        !matches!(self, Self::Temporary { .. })
    }

    /// How many events the ledger has; `None` where we can't know.
    ///
    /// # Errors
    /// A relay that should run already is not ready. Or the ledger is in use for something else: what waits in it would go to the sink, and its partners would get our events.
    pub async fn events(&self, config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<u64>> {
        let url = match self {
            Self::Temporary { .. } => return Ok(Some(0)),
            Self::Remote(client) => {
                let ready = client.get("/health/ready").await?;
                anyhow::ensure!(ready.status.is_success(), "the relay is not ready: {}", ready.text());
                return Ok(None);
            }
            Self::Given(url) => url.clone(),
        };
        let ledger = Ledger::open(&LedgerOptions { url, ..config.ledger_options() }, clock.clone()).await?;
        let (progress, partners) =
            (ledger.database().progress().await, ledger.database().partners(None, PARTNERS_MAX).await);
        ledger.close().await;
        let (progress, partners) = (progress?, partners?);
        let waiting = progress.pending;
        anyhow::ensure!(waiting == 0, "the ledger is in use: {waiting} deliveries wait in it");
        let foreign = partners.iter().find(|partner| !partner.id.starts_with(PREFIX));
        anyhow::ensure!(
            foreign.is_none(),
            "the ledger is in use: it has the partner `{}`",
            foreign.map_or("", |partner| &partner.id)
        );
        Ok(u64::try_from(progress.events).ok())
    }

    /// The ledger to fill; `None` where the relay has one.
    pub fn to_fill(&self) -> Option<String> {
        match self {
            Self::Temporary { root, .. } => Some(url_in(&root.path().join(FILLED))),
            Self::Given(url) => Some(url.clone()),
            Self::Remote(_) => None,
        }
    }

    /// The folder whose disk is measured: the ledger's where it is a file.
    pub fn folder(&self) -> PathBuf {
        let given = match self {
            Self::Temporary { root, .. } => return root.path().to_owned(),
            Self::Given(url) => database_file(url),
            Self::Remote(_) => None,
        };
        let folder = given.and_then(|file| file.parent().map(Path::to_owned));
        match folder {
            None => std::env::temp_dir(),
            Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
            Some(folder) => folder,
        }
    }

    /// The ledger of the next round.
    pub async fn for_round(&self) -> anyhow::Result<RoundLedger> {
        Ok(match self {
            Self::Remote(_) => RoundLedger::Remote,
            Self::Given(url) => RoundLedger::Given(url.clone()),
            Self::Temporary { root, filled } => {
                let folder = tempfile::Builder::new().prefix("round-").tempdir_in(root.path())?;
                if *filled {
                    let (from, to) = (root.path().join(FILLED), folder.path().to_owned());
                    tokio::task::spawn_blocking(move || copy(&from, &to))
                        .await?
                        .context("can't copy the ledger that was filled")?;
                }
                let url = url_in(folder.path());
                RoundLedger::Temporary { url, _folder: folder }
            }
        })
    }
}

impl RoundLedger {
    /// `None` where the relay has it.
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Temporary { url, .. } | Self::Given(url) => Some(url),
            Self::Remote => None,
        }
    }

    /// Size of the SQLite file and its WAL; `None` where it is none of ours.
    pub fn bytes(&self) -> Option<u64> {
        let file = database_file(self.url()?)?;
        let mut wal = file.clone().into_os_string();
        wal.push("-wal");
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        Some(size(&file) + size(Path::new(&wal)))
    }
}

fn url_in(folder: &Path) -> String {
    // What has a meaning in a URL.
    let path = folder.join(FILE).display().to_string();
    format!("sqlite:{}", path.replace('%', "%25").replace('?', "%3F").replace('#', "%23"))
}

/// Copies the files of a folder, down to the disk: or it would be busy with them during the measurement.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        fs::copy(entry.path(), &target)?;
        File::open(&target)?.sync_all()?;
    }
    Ok(())
}

/// A relay to measure: our own, or one that runs already.
pub(super) struct Host {
    pub client: Client,
    relay: Option<Relay>,
    /// Of the relay that was there before, where it was named.
    pid: Option<u32>,
    /// After the start of our own.
    pub first_202: Option<Duration>,
}

impl Host {
    /// Starts a relay on the ledger at `database_url`, or finds the one that is there.
    pub(super) async fn start(
        bench: &Bench,
        place: &Place,
        database_url: Option<&str>,
    ) -> anyhow::Result<Self> {
        let Bench { args, config, sink, clock, .. } = bench;
        let Some(database_url) = database_url else {
            let Place::Remote(client) = place else { anyhow::bail!("there is no ledger") };
            if let Some(pid) = args.pid {
                let is_told = Usage::of(pid).cpu_s.is_some();
                anyhow::ensure!(is_told, "the system tells nothing of a process {pid}");
            }
            return Ok(Self { client: Client::clone(client), relay: None, pid: args.pid, first_202: None });
        };
        if let Some(folder) = database_file(database_url).and_then(|file| file.parent().map(Path::to_owned)) {
            fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        let key = config.http.bootstrap_admin_key.as_ref();
        let key = key.map(|key| secrecy::ExposeSecret::expose_secret(key).to_owned());
        // Before the start: reading the CA certificates takes a while.
        let warm = Client::at("http://127.0.0.1".to_owned(), key)?;
        let mut relay = Relay::start(&args.profile.settings(database_url, sink, config), &**clock)?;
        let client = warm.of(relay.url());
        let tenant = format!("{PREFIX}0");
        let first_202 = relay.first_202(&client, &tenant, &**clock).await?;
        Ok(Self { client, relay: Some(relay), pid: None, first_202: Some(first_202) })
    }

    /// What the relay's process has used so far, where we know it.
    pub fn usage(&self) -> Option<Usage> {
        self.relay.as_ref().map(Relay::usage).or_else(|| self.pid.map(Usage::of))
    }

    /// # Errors
    /// Our own relay has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.relay.as_mut().map_or(Ok(()), Relay::check)
    }

    /// Ends our own relay in good order.
    pub async fn stop(self, clock: &dyn Clock) -> anyhow::Result<()> {
        match self.relay {
            Some(relay) => relay.stop(clock).await,
            None => Ok(()),
        }
    }
}
