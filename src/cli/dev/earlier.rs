//! What an earlier run has left in the folder.

use std::path::Path;
use std::sync::Arc;

use secrecy::SecretString;

use crate::config::Config;
use crate::domain::clock::Clock;
use crate::domain::key::prefixed_hex;
use crate::domain::tenant::Destination;
use crate::ledger::Ledger;

/// Looks into the ledger, if there is one, and tells what there is to know.
///
/// A ledger from an earlier run may hold API keys, and then lets nobody in without one: this run makes its own.
pub(super) async fn look_back(
    config: &mut Config,
    database: &Path,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Vec<String>> {
    if !database.exists() {
        return Ok(Vec::new());
    }
    let ledger = Ledger::open(&config.ledger_options(), clock.clone()).await?;
    let keys = ledger.database().all_api_keys().await;
    let waiting = ledger.database().waiting_by_destination().await;
    ledger.close().await;
    let mut notes = Vec::new();
    let keyed = keys?.iter().any(|key| key.info.revoked_at.is_none());
    if keyed && config.http.bootstrap_admin_key.is_none() {
        let key = prefixed_hex("dev_", &clock.random().to_be_bytes());
        config.http.bootstrap_admin_key = Some(SecretString::from(key));
        let note = "this ledger holds API keys, so requests need one: the one below is good for this run";
        notes.push(note.into());
    }
    let (mut at_svix, mut at_partners) = (0, 0);
    for (destination, count) in waiting? {
        match Destination::parse(&destination) {
            Some(Destination::Endpoint { .. }) => at_partners += count,
            _ => at_svix += count,
        }
    }
    if at_svix > 0 {
        notes.push(format!("{at_svix} events of an earlier run wait in the ledger and go out too"));
    }
    if at_partners > 0 {
        notes.push(format!("{at_partners} events of an earlier run wait for the partner and go out too"));
    }
    Ok(notes)
}
