//! What the handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secrecy::SecretString;

use super::push::PushGate;
use crate::audit::Audits;
use crate::config::Role;
use crate::directory::Directory;
use crate::dispatcher::Dispatcher;
use crate::domain::clock::Clock;
use crate::domain::tenant::DefaultRoute;
use crate::ingest::Ingest;
use crate::ledger::Ledger;
use crate::replays::Replays;
use crate::retention::Pruner;
use crate::secrets::Vault;
use crate::send::address_guard::DialPolicy;
use crate::send::{EndpointTester, Senders};
use crate::sources::Statuses;
use crate::story::Stories;
use crate::telemetry::Watch;

/// Settings of the HTTP side.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// What this node does of the work.
    pub role: Role,
    /// Paths that take events.
    pub ingest_paths: Vec<String>,
    /// Longest body, before and after decompression.
    pub body_limit_bytes: usize,
    /// Where tenants go that have no route of their own.
    pub default_route: DefaultRoute,
    /// The configuration in force as TOML, secrets redacted.
    pub settings: String,
}

/// What the handlers share. Cheap to clone.
#[derive(Clone)]
pub struct HttpState {
    /// The ledger.
    pub ledger: Ledger,
    /// Tenants and keys.
    pub directory: Directory,
    /// The doorway for events.
    pub ingest: Ingest,
    /// For the state of its gates; `None` where nothing is sent.
    pub dispatcher: Option<Dispatcher>,
    /// How sources stand; none where the role is to take no events.
    pub sources: Statuses,
    /// A key that is always good.
    pub bootstrap_admin_key: Option<SecretString>,
    /// What Pub/Sub pushes have to show; `None` where nothing is configured.
    pub push_gate: Option<Arc<PushGate>>,
    /// Settings.
    pub options: Arc<HttpOptions>,
    /// Set once the process is about to end.
    pub draining: Arc<AtomicBool>,
    /// Seals what is secret.
    pub vault: Arc<Vault>,
    /// Where endpoints may lie.
    pub dial_policy: Arc<DialPolicy>,
    /// Sends a test event to an endpoint; `None` where nothing is sent to endpoints.
    pub endpoint_tester: Option<Arc<dyn EndpointTester>>,
    /// Rung when there is an event type that Svix was not told of.
    pub event_types_changed: Arc<tokio::sync::Notify>,
    /// Deliveries that go out again.
    pub replays: Replays,
    /// Takes away what was kept for long enough.
    pub pruner: Pruner,
    /// Audits that were interrupted.
    pub audits: Arc<Audits>,
    /// For what Svix is asked; it may have none.
    pub senders: Arc<Senders>,
    /// What is counted, and who tells of it.
    pub watch: Watch,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
}

impl HttpState {
    /// What became of events.
    pub fn stories(&self) -> Stories {
        Stories {
            ledger: self.ledger.clone(),
            directory: self.directory.clone(),
            dispatcher: self.dispatcher.clone(),
            default_route: self.options.default_route,
            clock: self.clock.clone(),
        }
    }

    /// Whether the process is about to end.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// When to come again, in seconds: 1 to 5, so that those who are refused together come back apart.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 4")]
    pub fn retry_after_s(&self) -> u32 {
        1 + (self.clock.chance() * 5.0) as u32
    }
}
