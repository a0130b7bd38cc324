//! Endpoints as they were read, so that what has not changed is not read and opened again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::domain::partner::{EndpointState, EventTypeFilter};
use crate::domain::transform::Transform;
use crate::ledger::{Database, EndpointMark, EndpointRow, LedgerError};
use crate::provisioning::{self, secret_place};
use crate::secrets::Vault;
use crate::send::direct::LiveEndpoint;
use crate::send::signature::EndpointSecret;

/// An endpoint that exists. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    version: i64,
    /// Whose it is.
    pub partner: Arc<str>,
    /// What a sender needs; `None` where that can't be read or opened: what waits for it goes on waiting.
    pub live: Option<Arc<LiveEndpoint>>,
    /// What it wants, sealed or not; `None` where a version that is newer than this one wrote it.
    wishes: Option<Arc<Wishes>>,
    /// It is not disabled.
    active: bool,
    /// It has not answered its ownership challenge yet, and gets no event before.
    unproven: bool,
}

/// Which events an endpoint gets.
#[derive(Debug)]
pub(super) struct Wishes {
    /// The one tenant whose events it gets; every tenant's where `None`.
    pub tenant: Option<String>,
    /// Of which types.
    pub event_types: Vec<EventTypeFilter>,
}

impl Reading {
    /// Which events it gets now; `None` for none.
    pub fn wishes(&self) -> Option<&Wishes> {
        self.wishes.as_deref().filter(|_| self.active && !self.unproven)
    }

    /// Grows with every change of settings, secret or state.
    pub const fn version(&self) -> i64 {
        self.version
    }

    /// The one tenant whose events it gets or would get.
    pub fn tenant(&self) -> Option<&str> {
        self.wishes.as_ref()?.tenant.as_deref()
    }

    /// Whether it is not disabled.
    pub const fn is_active(&self) -> bool {
        self.active
    }

    /// Whether it is there for this tenant's events at all, disabled or not.
    pub fn is_for(&self, tenant: &str) -> bool {
        self.wishes.as_ref().is_some_and(|wishes| wishes.tenant.as_deref().is_none_or(|own| own == tenant))
    }

    /// Whether it would get events of this type, were it active and proven.
    pub fn would_want(&self, event_type: &str) -> bool {
        self.wishes
            .as_ref()
            .is_some_and(|wishes| wishes.event_types.iter().any(|filter| filter.matches(event_type)))
    }

    fn of(row: &EndpointRow, vault: &Vault, known: Option<&Self>) -> Self {
        // Said once for each version.
        let quiet = known.is_some_and(|known| known.live.is_none() && known.version == row.version);
        let live = live(row, vault).inspect_err(|error| {
            if !quiet {
                tracing::error!(endpoint = row.id, error, "an endpoint can't be read; its deliveries wait");
            }
        });
        Self {
            version: row.version,
            partner: row.partner.as_str().into(),
            live: live.ok().map(Arc::new),
            wishes: wishes(row).map(Arc::new),
            active: row.state.is_active(),
            unproven: false,
        }
    }

    /// Takes over what changes without a new version.
    fn update(&mut self, mark: &EndpointMark, verified: &HashSet<Arc<str>>) {
        self.unproven = mark.proven_at.is_none() && verified.contains(&self.partner);
        let Some(live) = &mut self.live else { return };
        if live.unproven != self.unproven || live.failing_since != mark.failing_since {
            let live = Arc::make_mut(live);
            live.unproven = self.unproven;
            live.failing_since = mark.failing_since;
        }
    }
}

/// Every endpoint there is. Of those in `known`, which were read after `revision` was, only what has changed since is read
/// again. `verified`: the partners whose endpoints must prove themselves.
pub(super) async fn read(
    database: &Database,
    vault: &Vault,
    known: &HashMap<Arc<str>, Reading>,
    revision: i64,
    verified: &HashSet<Arc<str>>,
) -> Result<HashMap<Arc<str>, Reading>, LedgerError> {
    let marks = database.endpoint_marks().await?;
    // Sealed anew, they may be readable without a new version.
    let unreadable = known.values().any(|reading| reading.live.is_none());
    // After the marks: what is made in between is left to the next reading, which its own revision causes.
    let rows = database.endpoints_since(if unreadable { 0 } else { revision }).await?;
    let rows: HashMap<&str, &EndpointRow> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut readings = HashMap::with_capacity(marks.len());
    for mark in &marks {
        let before = known.get_key_value(mark.id.as_str());
        let (id, mut reading) = match (rows.get(mark.id.as_str()), before) {
            (Some(row), before) => {
                let id = before.map_or_else(|| mark.id.as_str().into(), |(id, _)| id.clone());
                (id, Reading::of(row, vault, before.map(|(_, reading)| reading)))
            }
            (None, Some((id, reading))) => (id.clone(), reading.clone()),
            // Deleted between the two readings.
            (None, None) => continue,
        };
        reading.update(mark, verified);
        readings.insert(id, reading);
    }
    Ok(readings)
}

/// What an endpoint wants: nothing of it is sealed, and what else its settings hold is not looked at.
fn wishes(row: &EndpointRow) -> Option<Wishes> {
    #[derive(Deserialize)]
    struct Stored {
        tenant: Option<String>,
        event_types: Option<Vec<String>>,
    }
    let Stored { tenant, event_types } = serde_json::from_str(&row.settings.json).ok()?;
    let filters = event_types.map(|texts| texts.iter().map(|text| EventTypeFilter::parse(text)).collect());
    let event_types = filters.unwrap_or_else(|| Ok(vec![EventTypeFilter::Any])).ok()?;
    Some(Wishes { tenant, event_types })
}

/// An endpoint as a sender needs it, or why there is none.
fn live(row: &EndpointRow, vault: &Vault) -> Result<LiveEndpoint, String> {
    let settings = provisioning::open_settings(vault, row).map_err(|error| error.to_string())?;
    let open = |sealed: &str| vault.open(&secret_place(&row.id), sealed).map(EndpointSecret::stored);
    let secret = open(&row.secret).map_err(|error| format!("its secret: {error}"))?;
    let previous = row.previous_secret.as_ref();
    let previous_secret = previous.and_then(|(sealed, until)| Some((open(sealed).ok()?, *until)));
    let transform = settings.transform.as_ref().map(|text| Transform::parse(text.get()));
    Ok(LiveEndpoint {
        id: row.id.as_str().into(),
        partner: row.partner.as_str().into(),
        url: settings.url.parse().map_err(|error| format!("its URL: {error}"))?,
        headers: settings.headers.iter().cloned().collect(),
        transform: transform
            .transpose()
            .map(|read| read.map(Arc::new))
            .map_err(|error| format!("its transform: {error}"))?,
        scheme: settings.signature.clone(),
        secret,
        previous_secret,
        timeout: Duration::from_millis(settings.timeout_ms),
        retry_schedule: settings.retry_schedule(),
        failing_since: row.failing_since,
        unproven: false,
        disabled: match row.state {
            EndpointState::Active => None,
            EndpointState::Disabled { reason, .. } => Some(reason),
        },
        is_gone: Arc::default(),
    })
}
