//! Who is who: tenants' routes and API keys, held in memory and read again when they change.
//!
//! On SQLite every change passes through this process. On Postgres any node may make one: a revision number in the
//! ledger is looked at twice a second.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::key::prefixed_hex;
use crate::domain::tenant::{DefaultRoute, Destination, Route, svix_name_is_valid};
use crate::ledger::{ApiKey, Ledger, LedgerError};
use sha2::{Digest as _, Sha256};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// One reading of tenants and keys.
#[derive(Debug, Default)]
pub struct Snapshot {
    revision: i64,
    routes: HashMap<String, Route>,
    /// Svix applications and the tenants they belong to.
    applications: HashMap<String, String>,
    keys: HashMap<String, ApiKey>,
    event_types: HashSet<String>,
}

/// Why a tenant's events can't be routed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant `{tenant}` has no route of its own, and the Svix application of its name belongs to tenant `{owner}`: \
     give it one with PUT /v1/tenants/{tenant}"
)]
pub struct ApplicationTaken {
    /// The tenant without a route.
    pub tenant: String,
    /// Who has the application.
    pub owner: String,
}

impl Snapshot {
    /// The tenant's own route, where it has one.
    pub fn own_route(&self, tenant: &str) -> Option<&Route> {
        self.routes.get(tenant)
    }

    /// Where a tenant's events go: its own route, or the default one.
    ///
    /// # Errors
    /// [`ApplicationTaken`] where the default would lead to another tenant's application.
    pub fn route(&self, tenant: &str, default: DefaultRoute) -> Result<Route, ApplicationTaken> {
        if let Some(route) = self.routes.get(tenant) {
            return Ok(route.clone());
        }
        match default {
            DefaultRoute::Direct => Ok(Route::Direct),
            DefaultRoute::Svix => {
                let app = application_of(tenant);
                match self.applications.get(&app) {
                    Some(owner) => Err(ApplicationTaken { tenant: tenant.to_owned(), owner: owner.clone() }),
                    None => Ok(Route::Svix { app }),
                }
            }
        }
    }

    /// The key with this public part.
    pub fn key(&self, id: &str) -> Option<&ApiKey> {
        self.keys.get(id)
    }

    /// Whether somebody has declared this event type.
    pub fn knows_event_type(&self, name: &str) -> bool {
        self.event_types.contains(name)
    }

    /// Whether any key is good.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }
}

/// The Svix application of a tenant without a route of its own: its name, or a hash where Svix would not take that.
fn application_of(tenant: &str) -> String {
    if svix_name_is_valid(tenant) && !tenant.starts_with("app_") {
        return tenant.to_owned();
    }
    prefixed_hex("ph_", &Sha256::digest(tenant))
}

/// Where a route leads.
pub fn destinations(route: &Route) -> Vec<Arc<Destination>> {
    match route {
        Route::Svix { app } => vec![Arc::new(Destination::Svix { app: app.clone() })],
        Route::Direct => Vec::new(),
    }
}

/// The latest snapshot. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    ledger: Ledger,
    current: Arc<RwLock<Arc<Snapshot>>>,
}

impl Directory {
    /// Reads tenants and keys.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn open(ledger: Ledger) -> Result<Self, LedgerError> {
        let directory = Self { ledger, current: Arc::default() };
        directory.reload().await?;
        Ok(directory)
    }

    /// What is known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads all again: after a change by this process.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: the old snapshot stays.
    pub async fn reload(&self) -> Result<(), LedgerError> {
        let database = self.ledger.database();
        // The number first: a change during the reading makes it read once more, not never.
        let revision = database.revision().await?;
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        for tenant in database.tenants().await? {
            if let Route::Svix { app } = &tenant.route {
                snapshot.applications.insert(app.clone(), tenant.id.clone());
            }
            snapshot.routes.insert(tenant.id, tenant.route);
        }
        let keys = database.api_keys().await?;
        snapshot.keys = keys.into_iter().map(|key| (key.info.id.clone(), key)).collect();
        snapshot.event_types = database.event_type_names().await?.into_iter().collect();
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        Ok(())
    }

    /// Follows changes that other nodes make, until `stop` is cancelled.
    pub async fn follow(&self, stop: CancellationToken) {
        if !self.ledger.database().is_shared() {
            return;
        }
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let changed = match self.ledger.database().revision().await {
                Ok(revision) if revision != self.snapshot().revision => self.reload().await,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = changed {
                tracing::debug!(%error, "tenants and keys could not be read; the old ones stay");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_application_belongs_to_one_tenant() {
        let mut snapshot = Snapshot::default();
        snapshot.routes.insert("umbrella".into(), Route::Svix { app: "acme".into() });
        snapshot.applications.insert("acme".into(), "umbrella".into());
        assert!(snapshot.route("acme", DefaultRoute::Svix).is_err());
        assert_eq!(snapshot.route("acme", DefaultRoute::Direct), Ok(Route::Direct));
        let own = snapshot.route("umbrella", DefaultRoute::Direct);
        assert_eq!(own, Ok(Route::Svix { app: "acme".into() }));
    }

    #[test]
    fn names_that_svix_would_refuse_have_an_application_all_the_same() {
        assert_eq!(application_of("acme-1.eu"), "acme-1.eu");
        for tenant in ["Müller & Söhne", "app_x", "a/b"] {
            let app = application_of(tenant);
            assert!(svix_name_is_valid(&app) && app.starts_with("ph_"), "{app}");
        }
    }
}
