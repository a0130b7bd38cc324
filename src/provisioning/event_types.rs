//! Event types: what there is to subscribe to, told to Svix for the portal of its tenants.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::object::JsonObject;
use crate::domain::partner::SettingFault;
use crate::jobs::Job;
use crate::ledger::{EventTypeRow, Ledger, LedgerError};
use crate::reconnect::Pauses;
use crate::send::svix_event_types::{NotTaken, SvixEventTypes};

/// How often the ledger is looked at for what other nodes have left.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Svix is not to be pestered for this: the pauses of a reconnect, so many times longer.
const PATIENCE: u32 = 10;
/// Event types told in one go.
const BATCH: u32 = 100;

/// Longest description of an event type, in bytes.
const DESCRIPTION_LIMIT_BYTES: usize = 2_048;

/// What is known of an event type, digits and order as they were given.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventTypeSettings {
    /// What happened, for people.
    pub description: String,
    /// JSON Schema of its payload.
    pub schema: Option<Box<RawValue>>,
    /// A payload as it may come.
    pub example: Option<Box<RawValue>>,
}

impl EventTypeSettings {
    /// Reads settings from JSON. Nothing is required.
    ///
    /// # Errors
    /// What is wrong, with its place.
    pub fn parse(json: &str) -> Result<Self, Vec<SettingFault>> {
        let fault = |pointer: &str, detail: String| vec![SettingFault { pointer: pointer.into(), detail }];
        let JsonObject(settings): JsonObject<Self> =
            serde_json::from_str(json).map_err(|error| fault("", error.to_string()))?;
        if settings.description.len() > DESCRIPTION_LIMIT_BYTES {
            let detail = format!("`description` is longer than {DESCRIPTION_LIMIT_BYTES} bytes");
            return Err(fault("/description", detail));
        }
        if settings.schema.as_ref().is_some_and(|schema| !schema.get().starts_with('{')) {
            return Err(fault("/schema", "`schema` must be an object".into()));
        }
        Ok(settings)
    }

    /// What [`Self::parse`] reads, always in the same form.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_json(&self) -> Result<String, LedgerError> {
        serde_json::to_string(self).map_err(|error| LedgerError::Refused(error.to_string()))
    }
}

/// Tells Svix of every event type that it does not know as it is now, until `stop` is cancelled: when `changed` is
/// rung, once a minute, and after what failed with ever longer pauses, up to about 20 seconds.
pub async fn sync_with_svix(
    ledger: Ledger,
    svix: SvixEventTypes,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut pauses = Pauses::new();
    ledger.jobs().started(Job::EventTypes, Some(2 * LOOK_EVERY));
    // What Svix refuses for good is told once, and again when it was changed.
    let mut refused = HashSet::new();
    loop {
        // A ring while this is under way is kept for the wait below. What is cut off is told at the next start.
        let told = stop.run_until_cancelled(tell(&ledger, &svix, &mut refused)).await;
        let Some(told) = told else { return };
        ledger.jobs().ran(Job::EventTypes, &told);
        let wait = if told.is_ok() {
            pauses.reset();
            LOOK_EVERY
        } else {
            pauses.pause() * PATIENCE
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One round; the first thing that may go better another time ends it.
async fn tell(
    ledger: &Ledger,
    svix: &SvixEventTypes,
    refused: &mut HashSet<(String, i64)>,
) -> Result<(), String> {
    let unsynced = ledger.database().unsynced_event_types(BATCH + count(refused)).await;
    for row in unsynced.map_err(|error| error.to_string())? {
        let this = (row.name.clone(), row.version);
        if refused.contains(&this) {
            continue;
        }
        match put(svix, &row).await {
            Ok(()) => {
                let marked = ledger.database().mark_synced(&row.name, row.version).await;
                marked.map_err(|error| error.to_string())?;
            }
            Err(NotTaken { is_final: true, detail }) => {
                tracing::error!(event_type = %row.name, %detail, "Svix does not take this event type");
                refused.insert(this);
            }
            Err(NotTaken { detail, .. }) => return Err(format!("{}: {detail}", row.name)),
        }
    }
    Ok(())
}

fn count(refused: &HashSet<(String, i64)>) -> u32 {
    u32::try_from(refused.len()).unwrap_or(u32::MAX - BATCH)
}

async fn put(svix: &SvixEventTypes, row: &EventTypeRow) -> Result<(), NotTaken> {
    let unreadable = |detail: String| NotTaken { is_final: true, detail };
    let settings = EventTypeSettings::parse(&row.settings)
        .map_err(|_| unreadable("its settings can't be read by this version".into()))?;
    let value = |raw: Option<Box<RawValue>>| {
        raw.map(|raw| serde_json::from_str::<Value>(raw.get()).map_err(|error| unreadable(error.to_string())))
            .transpose()
    };
    svix.put(&row.name, &settings.description, value(settings.schema)?, value(settings.example)?).await
}
