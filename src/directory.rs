//! Who is who: tenants' routes, API keys, partners and their endpoints, held in memory and read again when they change.
//!
//! On SQLite every change passes through this process. On Postgres any node may make one: it tells the others, and a
//! revision number in the ledger is looked at twice a second for what was not heard.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::gate::GateLimits;
use crate::domain::key::prefixed_hex;
use crate::domain::partner::{
    DEFAULT_MAX_IN_FLIGHT, EndpointState, EventTypeFilter, Subscription, Subscriptions,
};
use crate::domain::scheduler::{EndpointPolicy, PartnerPolicy, Policies};
use crate::domain::tenant::{DefaultRoute, Destination, Route, svix_name_is_valid};
use crate::domain::transform::Transform;
use crate::ledger::{ApiKey, EndpointRow, Ledger, LedgerError, Notice};
use crate::provisioning;
use crate::secrets::{Place, Purpose, Vault};
use crate::send::direct::{Endpoints, LiveEndpoint};
use crate::send::signature::EndpointSecret;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Types of our own events begin with this; nobody else's may.
pub const OPERATIONAL_PREFIX: &str = "posthaste.";

/// One reading of all of it.
#[derive(Debug, Default)]
pub struct Snapshot {
    revision: i64,
    routes: HashMap<String, Route>,
    /// How what goes to Svix is reshaped, by tenant.
    transforms: HashMap<String, Arc<Transform>>,
    /// Svix applications and the tenants they belong to.
    applications: HashMap<String, String>,
    keys: HashMap<String, ApiKey>,
    endpoints: HashMap<Arc<str>, Arc<LiveEndpoint>>,
    /// Endpoints that exist, but can't be read: what waits for them goes on waiting.
    unreadable: HashSet<String>,
    subscriptions: Subscriptions<Arc<str>>,
    /// Who wants our own events: only those who have named them.
    operational: Subscriptions<Arc<str>>,
    policies: Policies,
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

    /// Where an event goes: the Svix application of its tenant's route, and every active endpoint that wants it.
    pub fn destinations(&self, route: &Route, tenant: &str, event_type: &str) -> Vec<Arc<Destination>> {
        let svix = match route {
            Route::Svix { app } => Some(Arc::new(Destination::Svix { app: app.clone() })),
            Route::Direct => None,
        };
        let endpoints = self.subscriptions.matching(tenant, event_type);
        let endpoints = endpoints.map(|id| Arc::new(Destination::Endpoint { id: id.clone() }));
        svix.into_iter().chain(endpoints).collect()
    }

    /// Where one of our own events goes.
    pub fn operational_destinations(&self, event_type: &str) -> Vec<Arc<Destination>> {
        let endpoints = self.operational.matching("", event_type);
        endpoints.map(|id| Arc::new(Destination::Endpoint { id: id.clone() })).collect()
    }

    /// Active endpoints that have not answered their challenge yet.
    pub fn unproven(&self) -> Vec<Arc<LiveEndpoint>> {
        let waiting = |endpoint: &&Arc<LiveEndpoint>| endpoint.unproven && endpoint.disabled.is_none();
        self.endpoints.values().filter(waiting).cloned().collect()
    }

    /// How what goes to Svix for this tenant is reshaped.
    pub fn svix_transform(&self, tenant: &str) -> Option<Arc<Transform>> {
        self.transforms.get(tenant).cloned()
    }

    /// What the scheduler needs to know of receivers.
    pub const fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Whether somebody has named this event type.
    pub fn knows_event_type(&self, name: &str) -> bool {
        self.event_types.contains(name)
    }

    /// The key with this public part.
    pub fn key(&self, id: &str) -> Option<&ApiKey> {
        self.keys.get(id)
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

/// The latest snapshot. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    ledger: Ledger,
    vault: Arc<Vault>,
    /// Bounds of an endpoint's gate, but for what its partner says.
    endpoint_gate: GateLimits,
    current: Arc<watch::Sender<Arc<Snapshot>>>,
}

impl Directory {
    /// Reads everything.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`].
    pub async fn open(
        ledger: Ledger,
        vault: Arc<Vault>,
        endpoint_gate: GateLimits,
    ) -> Result<Self, LedgerError> {
        let current = Arc::new(watch::Sender::new(Arc::default()));
        let directory = Self { ledger, vault, endpoint_gate, current };
        directory.read().await?;
        Ok(directory)
    }

    /// What is known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// Tells of every new snapshot.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Reads all again after a change by this process, and tells other nodes of it.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: the old snapshot stays.
    pub async fn reload(&self) -> Result<(), LedgerError> {
        self.ledger.tell_revision();
        self.read().await
    }

    async fn read(&self) -> Result<(), LedgerError> {
        let database = self.ledger.database();
        // The number first: a change during the reading makes it read once more, not never.
        let revision = database.revision().await?;
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        for tenant in database.tenants().await? {
            if let Route::Svix { app } = &tenant.route {
                snapshot.applications.insert(app.clone(), tenant.id.clone());
            }
            if let Some(text) = &tenant.transform {
                match Transform::parse(text) {
                    Ok(transform) => {
                        snapshot.transforms.insert(tenant.id.clone(), Arc::new(transform));
                    }
                    // Checked when it was saved; only a newer version's could be beyond us.
                    Err(error) => tracing::error!(tenant = tenant.id, %error, "a transform can't be read"),
                }
            }
            snapshot.routes.insert(tenant.id, tenant.route);
        }
        let keys = database.api_keys().await?;
        snapshot.keys = keys.into_iter().map(|key| (key.info.id.clone(), key)).collect();
        snapshot.event_types = database.event_type_names().await?.into_iter().collect();
        self.read_endpoints(&mut snapshot).await?;
        self.current.send_replace(Arc::new(snapshot));
        Ok(())
    }

    async fn read_endpoints(&self, snapshot: &mut Snapshot) -> Result<(), LedgerError> {
        let database = self.ledger.database();
        let mut verified = HashSet::new();
        for partner in database.all_partners().await? {
            let settings = partner.settings;
            if settings.verify_endpoints {
                verified.insert(partner.id.clone());
            }
            let policy = PartnerPolicy {
                max_in_flight: settings.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT) as usize,
                rate_limit: settings.rate_limit,
                paused: settings.paused,
            };
            snapshot.policies.partners.insert(partner.id.into(), policy);
        }
        let mut wanted = Vec::new();
        for row in database.all_endpoints().await? {
            let Some((mut endpoint, settings)) = self.live(&row) else {
                snapshot.unreadable.insert(row.id);
                continue;
            };
            endpoint.unproven = row.proven_at.is_none() && verified.contains(&row.partner);
            let max_in_flight = snapshot
                .policies
                .partners
                .get(&endpoint.partner)
                .map_or(DEFAULT_MAX_IN_FLIGHT as usize, |partner| partner.max_in_flight);
            let gate = GateLimits {
                max_in_flight: u32::try_from(max_in_flight).unwrap_or(u32::MAX),
                ..self.endpoint_gate
            };
            let policy = EndpointPolicy { partner: endpoint.partner.clone(), gate };
            snapshot.policies.endpoints.insert(endpoint.id.clone(), policy);
            if row.state.is_active() && !endpoint.unproven {
                wanted.push((endpoint.id.clone(), settings.tenant.clone(), settings.event_types.clone()));
            }
            snapshot.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
        }
        let named: Vec<_> = wanted
            .iter()
            .filter(|(_, tenant, _)| tenant.is_none())
            .map(|(id, _, filters)| {
                let own = |filter: &&EventTypeFilter| filter.to_string().starts_with(OPERATIONAL_PREFIX);
                (id.clone(), filters.iter().filter(own).cloned().collect::<Vec<_>>())
            })
            .collect();
        snapshot.operational = Subscriptions::new(named.iter().map(|(id, event_types)| Subscription {
            id,
            tenant: None,
            event_types,
        }));
        snapshot.subscriptions =
            Subscriptions::new(wanted.iter().map(|(id, tenant, event_types)| Subscription {
                id,
                tenant: tenant.as_deref(),
                event_types,
            }));
        Ok(())
    }

    /// An endpoint as a sender needs it; `None` where its row can't be read, which is said once.
    fn live(&self, row: &EndpointRow) -> Option<(LiveEndpoint, crate::domain::partner::EndpointSettings)> {
        let settings = match provisioning::open_settings(&self.vault, row) {
            Ok(settings) => settings,
            Err(error) => {
                tracing::error!(endpoint = row.id, %error, "an endpoint can't be read; its deliveries wait");
                return None;
            }
        };
        let place = Place { purpose: Purpose::EndpointSecret, row: &row.id };
        let open = |sealed: &str| self.vault.open(&place, sealed).map(EndpointSecret::stored);
        let secret = match open(&row.secret) {
            Ok(secret) => secret,
            Err(error) => {
                tracing::error!(endpoint = row.id, %error, "a secret can't be opened; its deliveries wait");
                return None;
            }
        };
        let previous = row.previous_secret.as_ref();
        let previous_secret = previous.and_then(|(sealed, until)| Some((open(sealed).ok()?, *until)));
        let transform = settings.transform.as_ref().map(|text| Transform::parse(text.get()));
        let endpoint = LiveEndpoint {
            id: row.id.as_str().into(),
            partner: row.partner.as_str().into(),
            url: settings.url.parse().ok()?,
            headers: settings.headers.iter().cloned().collect(),
            transform: transform.transpose().ok()?,
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
        };
        Some((endpoint, settings))
    }

    /// Follows changes that other nodes make, until `stop` is cancelled.
    pub async fn follow(&self, stop: CancellationToken) {
        if !self.ledger.database().is_shared() {
            return;
        }
        let mut notices = self.ledger.notices();
        while stop.run_until_cancelled(told_or_time(&mut notices)).await.is_some() {
            let changed = match self.ledger.database().revision().await {
                Ok(revision) if revision != self.snapshot().revision => self.read().await,
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = changed {
                tracing::debug!(%error, "what has changed could not be read; the old reading stays");
            }
        }
    }
}

/// Waits until another node has told of a change, or until it is time to look whether one has.
async fn told_or_time(notices: &mut broadcast::Receiver<Notice>) {
    let told = async {
        loop {
            match notices.recv().await {
                // Missed some: one of them may have told.
                Ok(Notice::Revision) | Err(RecvError::Lagged(_)) => return,
                Ok(_) => {}
                // The ledger, which the directory holds, keeps the other end.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    let _ = tokio::time::timeout(LOOK_EVERY, told).await;
}

impl Endpoints for Directory {
    fn endpoint(&self, id: &str) -> Option<Arc<LiveEndpoint>> {
        self.current.borrow().endpoints.get(id).cloned()
    }

    fn is_unreadable(&self, id: &str) -> bool {
        self.current.borrow().unreadable.contains(id)
    }

    fn svix_transform(&self, tenant: &str) -> Option<Arc<Transform>> {
        self.current.borrow().svix_transform(tenant)
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
