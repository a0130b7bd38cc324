//! `posthaste backup` and `posthaste restore`

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::output::{complain, say};
use super::stop_signal;
use crate::app::{SystemClock, load_vault};
use crate::config::Config;
use crate::ledger::{self, Backup, RestorePlace, SealedSecret, database_file};
use crate::secrets::{Place, Purpose, Vault, VaultError, key_file};

/// How often the progress is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

const OF_POSTGRES: &str = "the ledger is in Postgres: use pg_dump, or pg_basebackup with an archive of its log (see \
                           docs/backup.md)";

#[derive(Debug, Args)]
#[command(after_help = "\
A running relay goes on meanwhile. FILE holds everything that was acknowledged before the backup began, and appears when it \
is complete and checked. Keep the master key, too, apart from it. For Postgres, see docs/backup.md.")]
pub(super) struct BackupArgs {
    /// Where the backup goes
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file of that name
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The ledger goes where the configuration says (`database_url`), which no relay may be using. Events that were sent after the \
backup was made are sent again, under the same idempotency keys.")]
pub(super) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a ledger that is there; it is kept beside it as `….replaced`
    #[arg(long)]
    replace: bool,
    /// Restore although the master key is missing that its secrets are sealed with
    #[arg(long)]
    without_key: bool,
}

pub(super) async fn back_up(args: BackupArgs, config: Config) -> anyhow::Result<ExitCode> {
    let source = database_file(&config.database_url).ok_or_else(|| anyhow::anyhow!(OF_POSTGRES))?;
    let bar = ProgressBar::new(std::fs::metadata(&source).map_or(0, |source| source.len()));
    bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {msg}")?);
    let draft = ledger::draft_of(&args.file);
    let mut work = pin!(ledger::back_up(&config.database_url, &args.file, args.overwrite));
    let mut stop = pin!(stop_signal());
    let backup = loop {
        tokio::select! {
            backup = &mut work => break backup?,
            stop = &mut stop => return stop.and_then(|()| anyhow::bail!("interrupted: there is no backup")),
            () = tokio::time::sleep(DRAW_EVERY) => {
                bar.set_position(std::fs::metadata(&draft).map_or(0, |draft| draft.len()));
            }
        }
    };
    bar.finish_and_clear();
    say(format_args!("backed up to {}, and checked: {}", backup.file.display(), contents(&backup)))?;
    if !backup.sealed.is_empty() || config.master_key.is_none() {
        let key = if config.master_key.is_some() {
            "POSTHASTE_MASTER_KEY".to_owned()
        } else {
            key_file(&source).display().to_string()
        };
        say(format_args!("keep the master key, too, apart from the backup: {key}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(args: RestoreArgs, config: Config) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(database_file(&config.database_url).is_some(), OF_POSTGRES);
    let unchanged = |error: ledger::LedgerError| anyhow::anyhow!("{error}; nothing was changed");
    let place = RestorePlace::take(&config.database_url, args.replace).await.map_err(unchanged)?;
    let backup = ledger::check_backup(&args.file).await.map_err(unchanged)?;
    if let Some(missing) = missing_key(&backup, place.path(), &config)? {
        anyhow::ensure!(args.without_key, "{missing}, or give --without-key; nothing was changed");
        complain(format_args!("warning: {missing}"));
    }
    let path = place.path().to_owned();
    let replaced = place.restore(&backup).await?;
    say(format_args!("restored {}: {}", path.display(), contents(&backup)))?;
    if let Some(replaced) = replaced {
        say(format_args!("the ledger that was there is now {}", replaced.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn contents(backup: &Backup) -> String {
    let count = |count: i64| HumanCount(count.max(0).unsigned_abs());
    format!(
        "{} events, {} deliveries waiting, {}, schema {}",
        count(backup.events),
        count(backup.waiting),
        HumanBytes(backup.bytes),
        backup.schema
    )
}

/// What to do about the key that a backup's secrets are sealed with; `None` where it is there, or nothing is sealed.
fn missing_key(backup: &Backup, path: &Path, config: &Config) -> anyhow::Result<Option<String>> {
    let clock = SystemClock::new();
    let key = key_file(path);
    // Without the file, to load the vault would make a new key.
    let vault = if key.exists() {
        load_vault(config, &clock)?
    } else {
        let sources = crate::secrets::KeySources {
            current: config.master_key.as_ref(),
            previous: &config.master_key_previous,
            database: None,
        };
        Vault::load(&sources, &clock)?
    };
    for sealed in &backup.sealed {
        if let Err(VaultError::UnknownKey { fingerprint }) = open(&vault, sealed) {
            return Ok(Some(format!(
                "its secrets are sealed with the master key {fingerprint}, which is not here: put its file at {} (mode \
                 0600), or set POSTHASTE_MASTER_KEY",
                key.display()
            )));
        }
    }
    Ok(None)
}

fn open(vault: &Vault, sealed: &SealedSecret) -> Result<(), VaultError> {
    let SealedSecret { endpoint, secret, previous_secret, headers } = sealed;
    let place = |purpose| Place { purpose, row: endpoint };
    vault.open(&place(Purpose::EndpointSecret), secret)?;
    for (purpose, text) in [(Purpose::EndpointSecret, previous_secret), (Purpose::EndpointHeaders, headers)] {
        if let Some(text) = text {
            vault.open(&place(purpose), text)?;
        }
    }
    Ok(())
}
