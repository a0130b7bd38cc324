//! `posthaste master-key rotate`
//!
//! Straight into the ledger: on Postgres while servers run (give them both keys first), on SQLite while none does.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;

use super::output::{complain, say};
use crate::app::{SystemClock, load_vault};
use crate::config::Config;
use crate::domain::clock::Clock;
use crate::ledger::{Ledger, Sealed, SealedColumn};
use crate::provisioning::{headers_place, secret_place, url_place, with_sealed_url};
use crate::secrets::{Place, Vault, VaultError};

/// How often to look for what others have sealed with an old key meanwhile.
const ROUNDS_MAX: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum MasterKeyCommand {
    /// Seal every secret anew under the current key, so that the keys before are needed no more
    ///
    /// The new key is POSTHASTE_MASTER_KEY, the ones before are POSTHASTE_MASTER_KEY_PREVIOUS; on SQLite the key file
    /// beside the database counts as one of those. Running it again changes nothing.
    Rotate,
}

pub(super) async fn run(command: MasterKeyCommand, config: Config) -> anyhow::Result<ExitCode> {
    let MasterKeyCommand::Rotate = command;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let ledger = Ledger::open(&config.ledger_options(), clock.clone()).await?;
    // Only now: a key file is made beside a ledger that is ours.
    let done = match load_vault(&config, &*clock) {
        Ok(vault) => rotate(&ledger, &vault, &*clock).await,
        Err(error) => Err(error),
    };
    ledger.close().await;
    let report = done?;
    say(format_args!("{} sealed anew, {} already under the current key", report.resealed, report.current))?;
    if report.failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    complain(format_args!(
        "{} could not be opened and stay as they are; keep the keys before until this command ends well",
        report.failed
    ));
    Ok(ExitCode::FAILURE)
}

/// What became of the sealed texts.
#[derive(Debug, Default)]
struct Report {
    resealed: usize,
    current: usize,
    failed: usize,
}

/// Seals everything anew that is not under the current key, in as many rounds as others need to stand still.
async fn rotate(ledger: &Ledger, vault: &Vault, clock: &dyn Clock) -> anyhow::Result<Report> {
    let fingerprint = vault.fingerprint().ok_or(VaultError::NoKey)?;
    tracing::debug!(%fingerprint, "the current key");
    let database = ledger.database();
    seal_urls(ledger, vault, clock).await?;
    let mut resealed = 0;
    for _ in 0..ROUNDS_MAX {
        let (old, current): (Vec<_>, Vec<_>) =
            database.sealed_texts().await?.into_iter().partition(|sealed| vault.needs_reseal(&sealed.text));
        let (mut failed, mut overtaken) = (0, false);
        for sealed in &old {
            match seal_anew(vault, sealed, clock) {
                Ok(new) if database.reseal(sealed, &new).await? => resealed += 1,
                // It was changed or deleted meanwhile.
                Ok(_) => overtaken = true,
                Err(error) => {
                    failed += 1;
                    complain(format_args!("{}, {}: {error}", sealed.endpoint, name_of(sealed.column)));
                }
            }
        }
        if !overtaken {
            // What an earlier round has sealed is among the current ones.
            let current = current.len().saturating_sub(resealed - (old.len() - failed));
            return Ok(Report { resealed, current, failed });
        }
    }
    anyhow::bail!("secrets are changed by others all the time: run it again ({resealed} are sealed anew)")
}

/// Seals the URLs that earlier versions stored as they are.
async fn seal_urls(ledger: &Ledger, vault: &Vault, clock: &dyn Clock) -> anyhow::Result<()> {
    for row in ledger.database().all_endpoints().await? {
        match with_sealed_url(vault, &row, clock) {
            // Where it is changed meanwhile, that has sealed it.
            Ok(Some(sealed)) => {
                ledger.database().update_endpoint(&row.id, &sealed, Some(row.version)).await?;
            }
            Ok(None) => {}
            // Counted and told with the other texts that do not open.
            Err(error) => tracing::debug!(endpoint = row.id, %error, "its URL can't be sealed"),
        }
    }
    Ok(())
}

fn seal_anew(vault: &Vault, sealed: &Sealed, clock: &dyn Clock) -> Result<String, VaultError> {
    let place = place_of(sealed);
    vault.seal(&place, &vault.open(&place, &sealed.text)?, clock)
}

fn place_of(sealed: &Sealed) -> Place<'_> {
    match sealed.column {
        SealedColumn::Secret | SealedColumn::PreviousSecret => secret_place(&sealed.endpoint),
        SealedColumn::Headers => headers_place(&sealed.endpoint),
        SealedColumn::Url => url_place(&sealed.endpoint),
    }
}

const fn name_of(column: SealedColumn) -> &'static str {
    match column {
        SealedColumn::Secret => "secret",
        SealedColumn::PreviousSecret => "secret before",
        SealedColumn::Headers => "headers",
        SealedColumn::Url => "URL",
    }
}
