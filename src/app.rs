//! The composition root: the one place that knows everybody, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::directory::Directory;
use crate::dispatcher::{Dispatcher, DispatcherOptions, Observer};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Delivery, Outcome};
use crate::domain::gate::GateLimits;
use crate::domain::parse::ParseSettings;
use crate::domain::retry::RetrySchedule;
use crate::domain::scheduler::SchedulerLimits;
use crate::http::{self, HttpOptions, HttpState, ServerLimits};
use crate::ingest::Ingest;
use crate::ledger::{Ledger, database_file};
use crate::provisioning::sync_with_svix;
use crate::secrets::{KeySources, Vault};
use crate::send::Senders;
use crate::send::svix::{SvixOptions, SvixSender};

/// What is left of the time to stop for the server and the ledger, after the dispatcher had its part.
const AFTER_DISPATCHER: Duration = Duration::from_secs(5);

/// Most requests in flight to an endpoint whose partner has no bound of its own.
const DEFAULT_ENDPOINT_IN_FLIGHT: u32 = 64;

/// The real clock and the real random source.
#[derive(Debug)]
pub struct SystemClock {
    origin: std::time::Instant,
}

#[expect(clippy::disallowed_methods, reason = "this is where time and chance come in")]
impl SystemClock {
    /// A clock whose monotonic part begins now.
    pub fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where time and chance come in")]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn moment(&self) -> Moment {
        Moment::after_start(self.origin.elapsed())
    }

    fn random(&self) -> u128 {
        // The thread's generator is a stream cipher, seeded and reseeded by the operating system.
        rand::random()
    }
}

/// Nobody listens to what comes of attempts.
struct Unobserved;

#[async_trait::async_trait]
impl Observer for Unobserved {
    async fn observe(&self, _delivery: &Delivery, _outcome: &Outcome) {}
}

/// A relay that runs.
pub struct App {
    address: SocketAddr,
    draining: Arc<AtomicBool>,
    stop_dispatcher: CancellationToken,
    stop_server: CancellationToken,
    dispatcher: JoinHandle<()>,
    server: JoinHandle<()>,
    follower: JoinHandle<()>,
    /// Tells Svix of event types.
    teller: Option<JoinHandle<()>>,
    ledger: Ledger,
    handle: Dispatcher,
    shutdown_timeout: Duration,
}

impl App {
    /// Opens the ledger, starts the dispatcher and listens.
    ///
    /// # Errors
    /// Whatever keeps it from doing so, in one line.
    pub async fn start(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let ledger = Ledger::open(&config.ledger_options(), clock.clone()).await?;
        match Self::start_with(config, clock, &ledger).await {
            Ok(app) => Ok(app),
            Err(error) => {
                ledger.close().await;
                Err(error)
            }
        }
    }

    async fn start_with(config: &Config, clock: Arc<dyn Clock>, ledger: &Ledger) -> anyhow::Result<Self> {
        let vault = Arc::new(open_vault(config, &clock)?);
        sow(config, ledger, &vault, &clock).await?;
        let directory = Directory::open(ledger.clone()).await?;
        guard_listen_address(config, &directory)?;
        let listener = TcpListener::bind(config.http.listen)
            .await
            .with_context(|| format!("can't listen on {}", config.http.listen))?;
        let address = listener.local_addr()?;
        let svix = svix_sender(config, &clock)?;
        let event_types = svix.as_ref().map(SvixSender::event_types);
        let event_types_changed = Arc::new(tokio::sync::Notify::new());
        let options = dispatcher_options(config, svix.is_some());
        let handle = Dispatcher::new(
            ledger.clone(),
            Arc::new(Senders { svix }),
            Arc::new(Unobserved),
            options,
            clock.clone(),
        );
        let draining = Arc::new(AtomicBool::new(false));
        let ingest = Ingest::new(
            ledger.clone(),
            directory.clone(),
            parse_settings(config),
            config.default_route(),
            clock.clone(),
        )
        .with_unknown_event_types(config.ingest.unknown_event_types);
        let state = HttpState {
            ledger: ledger.clone(),
            directory: directory.clone(),
            ingest,
            dispatcher: handle.clone(),
            bootstrap_admin_key: config.http.bootstrap_admin_key.clone(),
            options: Arc::new(http_options(config)),
            draining: draining.clone(),
            vault,
            dial_policy: Arc::new(config.direct.dial_policy().map_err(anyhow::Error::msg)?),
            endpoint_tester: None,
            event_types_changed: event_types_changed.clone(),
            clock,
        };
        let limits = ServerLimits {
            max_connections: config.http.max_connections,
            header_timeout: Duration::from_millis(config.http.header_timeout_ms),
        };
        ledger.announce(&address.to_string()).await?;
        let (stop_dispatcher, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let dispatcher = tokio::spawn({
            let (dispatcher, stop) = (handle.clone(), stop_dispatcher.clone());
            async move { dispatcher.run(stop).await }
        });
        let server = tokio::spawn(http::serve(listener, http::router(state), limits, stop_server.clone()));
        let follower = tokio::spawn({
            let stop = stop_server.clone();
            async move { directory.follow(stop).await }
        });
        let teller = event_types.map(|svix| {
            let stop = stop_server.clone();
            tokio::spawn(sync_with_svix(ledger.clone(), svix, event_types_changed, stop))
        });
        Ok(Self {
            address,
            draining,
            stop_dispatcher,
            stop_server,
            dispatcher,
            server,
            follower,
            teller,
            ledger: ledger.clone(),
            handle,
            shutdown_timeout: Duration::from_millis(config.http.shutdown_timeout_ms),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ledger, for whoever runs the relay in their own process.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The dispatcher, likewise.
    pub const fn dispatcher(&self) -> &Dispatcher {
        &self.handle
    }

    /// Ends in good order: new events are refused, what is in flight is finished and recorded, the server's answers
    /// are given, the ledger is closed. What takes longer than `http.shutdown_timeout_ms` is left: it is sent again at
    /// the next start, under the same keys.
    pub async fn stop(self) {
        let Self { mut dispatcher, mut server, mut follower, ledger, .. } = self;
        self.draining.store(true, Ordering::Relaxed);
        self.stop_dispatcher.cancel();
        let for_sends = self.shutdown_timeout.saturating_sub(AFTER_DISPATCHER);
        if tokio::time::timeout(for_sends, &mut dispatcher).await.is_err() {
            tracing::warn!("some requests are still under way; they will be sent again");
            dispatcher.abort();
        }
        self.stop_server.cancel();
        if tokio::time::timeout(AFTER_DISPATCHER / 2, &mut server).await.is_err() {
            tracing::warn!("some clients are still sending; their connections are cut");
            server.abort();
        }
        let _ = (&mut follower).await;
        // It may wait for Svix; what it was about to tell is told at the next start.
        if let Some(teller) = self.teller {
            teller.abort();
        }
        if tokio::time::timeout(AFTER_DISPATCHER, ledger.close()).await.is_err() {
            tracing::warn!("the ledger did not close in time; nothing acknowledged is lost");
        }
    }
}

/// The keys that seal what is secret. On SQLite one is made beside the file.
fn open_vault(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Vault> {
    let database = database_file(&config.database_url);
    let sources = KeySources {
        current: config.master_key.as_ref(),
        previous: &config.master_key_previous,
        database: database.as_deref(),
    };
    Ok(Vault::load(&sources, &**clock)?)
}

/// Makes, or sets, what the configuration names.
async fn sow(config: &Config, ledger: &Ledger, vault: &Vault, clock: &Arc<dyn Clock>) -> anyhow::Result<()> {
    let seeds = config.seeds().map_err(anyhow::Error::msg)?;
    let written = seeds.apply(ledger.database(), vault, &**clock).await?;
    if written > 0 {
        tracing::info!(written, "partners, endpoints and event types were set as the configuration has them");
    }
    Ok(())
}

/// Without a key, everybody who can reach the port would hold all scopes.
fn guard_listen_address(config: &Config, directory: &Directory) -> anyhow::Result<()> {
    let open = config.http.listen.ip().is_loopback();
    let keyed = config.http.bootstrap_admin_key.is_some() || directory.snapshot().has_keys();
    anyhow::ensure!(
        open || keyed,
        "refusing to listen on {} without any API key: set POSTHASTE_HTTP__BOOTSTRAP_ADMIN_KEY, or make one with \
         `posthaste key create`",
        config.http.listen
    );
    Ok(())
}

fn svix_sender(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Option<SvixSender>> {
    let Some(token) = config.svix.token.clone() else { return Ok(None) };
    let options = SvixOptions {
        token,
        server_url: config.svix.server_url.clone(),
        create_applications: config.svix.create_applications,
        timeout: Duration::from_millis(config.svix.timeout_ms),
        retry_after_max: Duration::from_millis(config.svix.retry_after_max_ms),
        retry_schedule: RetrySchedule::new(
            config.svix.retry_schedule_ms.iter().map(|delay| Duration::from_millis(*delay)).collect(),
        ),
        environment: config.environment.clone(),
        relay: config.ingest.relay,
    };
    SvixSender::new(options, clock.clone()).map(Some).map_err(anyhow::Error::msg)
}

fn dispatcher_options(config: &Config, svix_configured: bool) -> DispatcherOptions {
    let svix = &config.svix;
    DispatcherOptions {
        scheduler: SchedulerLimits {
            max_in_flight: config.dispatch.max_in_flight,
            max_in_flight_per_destination: config.dispatch.max_in_flight_per_destination,
            max_buffered: config.dispatch.max_buffered,
            max_claim: config.dispatch.max_claim,
        },
        svix_gate: GateLimits {
            max_in_flight: svix.max_in_flight,
            unproven_in_flight: svix.max_in_flight,
            failures_to_close: svix.failures_to_close,
            failing_for: Duration::ZERO,
            first_wait: Duration::from_millis(svix.probe_first_ms),
            max_wait: Duration::from_millis(svix.probe_max_ms),
        },
        endpoint_gate: endpoint_gate_limits(DEFAULT_ENDPOINT_IN_FLIGHT),
        // One attempt is at most three requests: a POST, a look-up or a new application, and a second POST.
        attempt_timeout: Duration::from_millis(3 * svix.timeout_ms),
        svix_configured,
    }
}

/// The gate before an endpoint (ten failures in a row over 30 s; a probe after 5 s, doubling to 5 min).
const fn endpoint_gate_limits(max_in_flight: u32) -> GateLimits {
    GateLimits {
        max_in_flight,
        unproven_in_flight: 4,
        failures_to_close: 10,
        failing_for: Duration::from_secs(30),
        first_wait: Duration::from_secs(5),
        max_wait: Duration::from_secs(300),
    }
}

fn parse_settings(config: &Config) -> ParseSettings {
    ParseSettings {
        tenant_attributes: config.ingest.tenant_attributes.clone(),
        default_tenant: config.ingest.default_tenant.as_deref().map(Arc::from),
        require_id: config.ingest.require_id,
        max_batch_events: config.ingest.max_batch_events,
        max_event_bytes: config.ingest.max_event_bytes,
    }
}

fn http_options(config: &Config) -> HttpOptions {
    HttpOptions {
        ingest_paths: config.http.ingest_paths.clone(),
        body_limit_bytes: config.http.body_limit_bytes,
        body_timeout: Duration::from_millis(config.http.body_timeout_ms),
        default_route: config.default_route(),
    }
}
