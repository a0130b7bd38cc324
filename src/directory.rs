//! Who is who: tenants with their routes and limits, API keys, partners and their endpoints, held in memory and read again when they change.
//!
//! On SQLite every change passes through this process. On Postgres any node may make one: it tells the others, and a
//! revision number in the ledger is looked at four times a second for what was not heard.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::gate::GateLimits;
use crate::domain::key::prefixed_hex;
use crate::domain::partner::{
    DEFAULT_MAX_IN_FLIGHT, EventTypeFilter, RateLimit, Subscription, Subscriptions,
};
use crate::domain::scheduler::{EndpointPolicy, PartnerPolicy, Policies};
use crate::domain::tenant::{DEFAULT_WEIGHT, DefaultRoute, Destination, Route, svix_name_is_valid};
use crate::domain::transform::Transform;
use crate::jobs::Job;
use crate::ledger::{ApiKey, Ledger, LedgerError, Notice, TenantRow};
use crate::retention::TenantRetention;
use crate::secrets::Vault;
use crate::send::direct::{Endpoints, LiveEndpoint};

mod readings;

use self::readings::Reading;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Whose our own events are.
pub const OPERATIONAL_TENANT: &str = "posthaste";
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
    endpoints: HashMap<Arc<str>, Reading>,
    subscriptions: Subscriptions<Arc<str>>,
    /// Who wants our own events: only those who have named them.
    operational: Subscriptions<Arc<str>>,
    policies: Policies,
    event_types: HashSet<String>,
    /// What tenants may put in, where that was set for them.
    ingest_limits: HashMap<Arc<str>, RateLimit>,
    /// What tenants keep, where that was set for them.
    retention: HashMap<String, TenantRetention>,
}

/// An endpoint that exists, as operators see it.
#[derive(Debug, Clone, Copy)]
pub struct KnownEndpoint<'a> {
    /// Its id.
    pub id: &'a Arc<str>,
    /// Whose it is.
    pub partner: &'a Arc<str>,
    /// The one tenant whose events it gets; every tenant's where `None`.
    pub tenant: Option<&'a str>,
    /// It is not disabled.
    pub is_active: bool,
    /// What a sender needs; `None` where that can't be read.
    pub live: Option<&'a Arc<LiveEndpoint>>,
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

    /// Makes the indexes over who wants what.
    fn index(&mut self) {
        let wanted = || self.endpoints.iter().filter_map(|(id, reading)| Some((id, reading.wishes()?)));
        self.subscriptions = Subscriptions::new(wanted().map(|(id, wishes)| Subscription {
            id,
            tenant: wishes.tenant.as_deref(),
            event_types: &wishes.event_types,
        }));
        let own = |filter: &&EventTypeFilter| filter.to_string().starts_with(OPERATIONAL_PREFIX);
        let named: Vec<_> = wanted()
            .filter(|(_, wishes)| wishes.tenant.is_none())
            .map(|(id, wishes)| (id, wishes.event_types.iter().filter(own).cloned().collect::<Vec<_>>()))
            .collect();
        self.operational = Subscriptions::new(named.iter().map(|(id, event_types)| Subscription {
            id: *id,
            tenant: None,
            event_types,
        }));
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

    /// Why such an event has nowhere to go, as far as can be known now: what there was when it came may have changed.
    pub fn why_unrouted(&self, tenant: &str, event_type: &str, default: DefaultRoute) -> String {
        if event_type.starts_with(OPERATIONAL_PREFIX) && tenant == OPERATIONAL_TENANT {
            return match self.operational_destinations(event_type).is_empty() {
                true => format!("no endpoint has named the type `{event_type}`, which is Posthaste's own"),
                false => "an endpoint has named its type only since".to_owned(),
            };
        }
        let route = match self.route(tenant, default) {
            Ok(route) => route,
            Err(taken) => return taken.to_string(),
        };
        let now = self.destinations(&route, tenant, event_type);
        if !now.is_empty() {
            let names: Vec<_> = now.iter().take(3).map(ToString::to_string).collect();
            return format!("when it came nobody wanted it; now it would go to {}", names.join(", "));
        }
        let own = || self.endpoints.iter().filter(|(_, reading)| reading.is_for(tenant));
        let wanting = own().find(|(_, reading)| reading.would_want(event_type));
        if let Some((id, reading)) = wanting {
            let why = match reading.live.as_ref().and_then(|live| live.disabled.as_ref()) {
                Some(reason) => format!("is disabled ({})", reason.as_str()),
                None => "has not answered its ownership challenge yet".to_owned(),
            };
            return format!("endpoint {id} wants the type `{event_type}`, but {why}");
        }
        match own().count() {
            0 => format!("tenant `{tenant}` has no route to Svix, and no endpoint takes its events"),
            1 => format!(
                "tenant `{tenant}` has one endpoint, which does not subscribe to the type `{event_type}`"
            ),
            count => format!(
                "of {count} endpoints for tenant `{tenant}` none subscribes to the type `{event_type}`"
            ),
        }
    }

    /// Where one of our own events goes.
    pub fn operational_destinations(&self, event_type: &str) -> Vec<Arc<Destination>> {
        let endpoints = self.operational.matching("", event_type);
        endpoints.map(|id| Arc::new(Destination::Endpoint { id: id.clone() })).collect()
    }

    /// Whose endpoint this is; `None` where there is none of this id.
    pub fn partner_of(&self, endpoint: &str) -> Option<Arc<str>> {
        self.endpoints.get(endpoint).map(|reading| reading.partner.clone())
    }

    /// Every endpoint, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = KnownEndpoint<'_>> {
        self.endpoints.iter().map(|(id, reading)| KnownEndpoint {
            id,
            partner: &reading.partner,
            tenant: reading.tenant(),
            is_active: reading.is_active(),
            live: reading.live.as_ref(),
        })
    }

    /// Active endpoints that have not answered their challenge yet, each with its version.
    pub fn unproven(&self) -> HashMap<Arc<str>, (i64, Arc<LiveEndpoint>)> {
        let waiting = |live: &&Arc<LiveEndpoint>| live.unproven && live.disabled.is_none();
        let found = self.endpoints.iter().filter_map(|(id, reading)| {
            let live = reading.live.as_ref().filter(waiting)?;
            Some((id.clone(), (reading.version(), live.clone())))
        });
        found.collect()
    }

    /// Events that this tenant may put in on one node, where that was set for it.
    pub fn ingest_limit(&self, tenant: &str) -> Option<RateLimit> {
        self.ingest_limits.get(tenant).copied()
    }

    /// Whether any tenant has an ingest limit of its own.
    pub fn limits_ingest(&self) -> bool {
        !self.ingest_limits.is_empty()
    }

    /// What tenants keep, where that was set for them.
    pub const fn retention(&self) -> &HashMap<String, TenantRetention> {
        &self.retention
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

    fn add_tenant(&mut self, tenant: TenantRow) {
        let id: Arc<str> = tenant.id.as_str().into();
        if tenant.weight != DEFAULT_WEIGHT {
            self.policies.weights.insert(id.clone(), tenant.weight);
        }
        self.ingest_limits.extend(tenant.ingest_limit.map(|limit| (id, limit)));
        if tenant.retention != TenantRetention::default() {
            self.retention.insert(tenant.id.clone(), tenant.retention);
        }
        let Some(route) = tenant.route else { return };
        if let Route::Svix { app } = &route {
            self.applications.insert(app.clone(), tenant.id.clone());
        }
        match tenant.transform.as_deref().map(Transform::parse) {
            Some(Ok(transform)) => {
                self.transforms.insert(tenant.id.clone(), Arc::new(transform));
            }
            // Checked when it was saved; only a newer version's could be beyond us.
            Some(Err(error)) => tracing::error!(tenant = tenant.id, %error, "a transform can't be read"),
            None => {}
        }
        self.routes.insert(tenant.id, route);
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
    /// One reading at a time: an older one must not replace a newer one.
    reading: Arc<Mutex<()>>,
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
        let directory = Self { ledger, vault, endpoint_gate, current, reading: Arc::default() };
        let revision = directory.ledger.database().revision().await?;
        directory.read(revision).await?;
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

    /// Reads what has changed, where something has, after a change by this process, and tells other nodes of it.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`]: the old snapshot stays.
    pub async fn reload(&self) -> Result<(), LedgerError> {
        self.ledger.tell_revision();
        self.catch_up().await
    }

    async fn catch_up(&self) -> Result<(), LedgerError> {
        let _alone = self.reading.lock().await;
        // The number first: a change during the reading makes it read once more, not never.
        let revision = self.ledger.database().revision().await?;
        if revision == self.snapshot().revision { Ok(()) } else { self.read(revision).await }
    }

    async fn read(&self, revision: i64) -> Result<(), LedgerError> {
        let database = self.ledger.database();
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        for tenant in database.tenants().await? {
            snapshot.add_tenant(tenant);
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
            let (id, settings) = (Arc::from(partner.id), partner.settings);
            if settings.verify_endpoints {
                verified.insert(Arc::clone(&id));
            }
            let policy = PartnerPolicy {
                max_in_flight: settings.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT) as usize,
                rate_limit: settings.rate_limit,
                paused: settings.paused,
            };
            snapshot.policies.partners.insert(id, policy);
        }
        let known = self.snapshot();
        let read = readings::read(database, &self.vault, &known.endpoints, known.revision, &verified);
        snapshot.endpoints = read.await?;
        for (id, reading) in &snapshot.endpoints {
            let partner = snapshot.policies.partners.get(&reading.partner);
            let max_in_flight =
                partner.map_or(DEFAULT_MAX_IN_FLIGHT as usize, |partner| partner.max_in_flight);
            let gate = GateLimits {
                max_in_flight: u32::try_from(max_in_flight).unwrap_or(u32::MAX),
                ..self.endpoint_gate
            };
            let policy = EndpointPolicy { partner: reading.partner.clone(), gate };
            snapshot.policies.endpoints.insert(id.clone(), policy);
        }
        snapshot.index();
        Ok(())
    }

    /// Follows changes that other nodes make, until `stop` is cancelled.
    pub async fn follow(&self, stop: CancellationToken) {
        if !self.ledger.database().is_shared() {
            return;
        }
        let mut notices = self.ledger.notices();
        let jobs = self.ledger.jobs();
        jobs.started(Job::Directory, Some(4 * LOOK_EVERY));
        while stop.run_until_cancelled(told_or_time(&mut notices)).await.is_some() {
            // After an error the old reading stays.
            jobs.ran(Job::Directory, &self.catch_up().await);
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
        self.current.borrow().endpoints.get(id)?.live.clone()
    }

    fn is_unreadable(&self, id: &str) -> bool {
        self.current.borrow().endpoints.get(id).is_some_and(|reading| reading.live.is_none())
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
    fn only_what_was_set_is_known_of_tenants() {
        let mut snapshot = Snapshot::default();
        let limit = RateLimit { per_second: 1.0, burst: 1 };
        snapshot.add_tenant(TenantRow { weight: 7, ..TenantRow::new("heavy", None) });
        snapshot.add_tenant(TenantRow { ingest_limit: Some(limit), ..TenantRow::new("slow", None) });
        assert_eq!(snapshot.policies().weights, HashMap::from([("heavy".into(), 7)]));
        assert_eq!((snapshot.ingest_limit("slow"), snapshot.ingest_limit("heavy")), (Some(limit), None));
        assert_eq!(snapshot.route("slow", DefaultRoute::Direct), Ok(Route::Direct));
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
