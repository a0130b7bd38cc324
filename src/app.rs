//! The composition root: the one place that knows everybody, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::directory::Directory;
use crate::dispatcher::{Dispatcher, DispatcherOptions};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::gate::{AdaptiveLimits, GateLimits};
use crate::domain::parse::ParseSettings;
use crate::domain::partner::{DEFAULT_MAX_IN_FLIGHT, TIMEOUT_MAX_MS};
use crate::domain::retry::RetrySchedule;
use crate::domain::scheduler::SchedulerLimits;
use crate::endpoints::Keeper;
use crate::failpoint::failpoint;
use crate::http::{self, HttpOptions, HttpState, PushGate, ServerLimits};
use crate::ingest::{Ingest, IngestRules, TenantLimits};
use crate::ledger::{Ledger, database_file};
use crate::provisioning::{self, Seeds};
use crate::replays::Replays;
use crate::retention::Pruner;
use crate::secrets::{KeySources, Vault};
use crate::send::address_guard::{DialPolicy, GuardedConnector, GuardedHttps, SystemResolver};
use crate::send::direct::{ANSWER_TIMEOUT, DirectOptions, DirectSender};
use crate::send::svix::{SvixOptions, SvixSender};
use crate::send::svix_event_types::SvixEventTypes;
use crate::send::{Senders, tls};
use crate::sources::Sources;
use crate::stats::Stats;
use crate::telemetry::{Metrics, Watch};
use crate::traces::{ExportTask, Tracer};

/// What is left of the time to stop for the server and the ledger, after the dispatcher had its part.
const AFTER_DISPATCHER: Duration = Duration::from_secs(5);

/// The gate before an endpoint; how many may be in flight is its partner's.
const ENDPOINT_GATE: GateLimits = GateLimits {
    max_in_flight: DEFAULT_MAX_IN_FLIGHT,
    unproven_in_flight: 4,
    failures_to_close: 10,
    failing_for: Duration::from_secs(30),
    first_wait: Duration::from_secs(5),
    max_wait: Duration::from_secs(300),
    adaptive: None,
};
/// Connections that wait to be accepted. With the usual 128 some of several hundred that come at once are reset.
const LISTEN_BACKLOG: u32 = 1_024;
/// How often to look whom limits hold back.
const LOOK_AT_LIMITS: Duration = Duration::from_secs(1);
/// Time for a connection to a partner, TLS included.
const DIRECT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
        let millis = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(millis.saturating_add(crate::failpoint::clock_offset_ms()))
    }

    fn moment(&self) -> Moment {
        Moment::after_start(self.origin.elapsed())
    }

    fn suspended(&self) -> Duration {
        // Linux alone says so: the time since its start, suspensions included.
        let uptime = std::fs::read_to_string("/proc/uptime").ok();
        let seconds = uptime.and_then(|text| text.split_whitespace().next()?.parse().ok());
        let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        // Only its growth against the monotonic clock counts, whatever that began with.
        uptime.unwrap_or_default().saturating_sub(self.origin.elapsed())
    }

    fn random(&self) -> u128 {
        // The thread's generator is a stream cipher, seeded and reseeded by the operating system.
        rand::random()
    }
}

/// A relay that runs.
pub struct App {
    address: SocketAddr,
    draining: Arc<AtomicBool>,
    stop_dispatcher: CancellationToken,
    stop_server: CancellationToken,
    /// `None` where the role is to take events only.
    dispatcher: Option<JoinHandle<()>>,
    sources: Sources,
    server: JoinHandle<()>,
    /// What ends with the server.
    background: JoinSet<()>,
    ledger: Ledger,
    handle: Option<Dispatcher>,
    shutdown_timeout: Duration,
}

impl App {
    /// Opens the ledger, starts the dispatcher and listens.
    ///
    /// # Errors
    /// Whatever keeps it from doing so, in one line.
    pub async fn start(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        config.check_role()?;
        let ledger = Ledger::open(&config.ledger_options(), clock).await?;
        match Self::start_with(config, ledger.clock(), &ledger).await {
            Ok(app) => Ok(app),
            Err(error) => {
                ledger.close().await;
                Err(error)
            }
        }
    }

    async fn start_with(config: &Config, clock: Arc<dyn Clock>, ledger: &Ledger) -> anyhow::Result<Self> {
        let dial_policy = config.direct.dial_policy().map_err(anyhow::Error::msg)?;
        let vault = Arc::new(load_vault(config, &*clock)?);
        let seeds =
            Seeds::check(&config.partners, &config.event_types, &dial_policy).map_err(anyhow::Error::msg)?;
        seeds.apply(ledger.database(), &vault, &*clock).await?;
        let directory = Directory::open(ledger.clone(), vault.clone(), ENDPOINT_GATE).await?;
        guard_listen_address(config, &directory)?;
        let listener = listen(config)?;
        let address = listener.local_addr()?;
        let (watch, exports) = watch(config, ledger, &directory, &clock)?;
        let rules = ingest_rules(config)?;
        let ingest = Ingest::new(ledger.clone(), directory.clone(), rules, &watch, clock.clone());
        let sources = read_sources(config, &ingest, ledger, &watch.metrics)?;
        let senders = senders(config, dial_policy.clone(), &directory, &watch.tracer, &clock)?;
        let event_types = senders.svix.as_ref().map(SvixSender::event_types);
        let keeper = Keeper::new(ingest.clone(), senders.direct.clone(), &watch);
        let options = dispatcher_options(config, senders.svix.is_some());
        let replays = Replays::new(ledger.clone(), directory.clone(), config.default_route(), clock.clone());
        let pruner = Pruner::new(ledger.clone(), directory.clone(), config.retention.clone(), clock.clone());
        let handle = config.role.sends().then(|| {
            let observer = Arc::new(keeper.clone());
            Dispatcher::new(ledger.clone(), senders.clone(), observer, options, clock.clone())
        });
        let push_gate = PushGate::new(&config.ingest.pubsub_push, &clock).map_err(anyhow::Error::msg)?;
        let draining = Arc::new(AtomicBool::new(false));
        let event_types_changed = Arc::new(Notify::new());
        let state = HttpState {
            ledger: ledger.clone(),
            directory: directory.clone(),
            ingest,
            dispatcher: handle.clone(),
            sources: sources.statuses().clone(),
            bootstrap_admin_key: config.http.bootstrap_admin_key.clone(),
            push_gate: push_gate.map(Arc::new),
            options: Arc::new(http_options(config)?),
            draining: draining.clone(),
            vault,
            dial_policy: Arc::new(dial_policy),
            endpoint_tester: Some(Arc::new(keeper.clone())),
            event_types_changed: event_types_changed.clone(),
            replays: replays.clone(),
            pruner: pruner.clone(),
            audits: Arc::default(),
            senders,
            watch: watch.clone(),
            clock,
        };
        let limits = server_limits(config);
        ledger.announce(&address.to_string()).await?;
        let (stop_dispatcher, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let server = tokio::spawn(http::serve(listener, http::router(state), limits, stop_server.clone()));
        let mut background = keep_up(&directory, &watch, pruner, handle.clone(), &stop_server);
        if let Some(exports) = exports {
            background.spawn(exports.run(stop_server.clone()));
        }
        let dispatcher = handle.clone().map(|dispatcher| {
            let event_types = event_types.map(|svix| (svix, event_types_changed));
            send_on(&mut background, ledger, &directory, &dispatcher, keeper, event_types, &stop_server);
            work_on(&mut background, replays, &dispatcher, &stop_dispatcher);
            let stop = stop_dispatcher.clone();
            tokio::spawn(async move { dispatcher.run(stop).await })
        });
        Ok(Self {
            address,
            draining,
            stop_dispatcher,
            stop_server,
            dispatcher,
            sources,
            server,
            background,
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

    /// The dispatcher, likewise; `None` where the role is to take events only.
    pub const fn dispatcher(&self) -> Option<&Dispatcher> {
        self.handle.as_ref()
    }

    /// Ends in good order: new events are refused, what is in flight is finished and recorded, the server's answers
    /// are given, the ledger is closed. What takes longer than `http.shutdown_timeout_ms` is left: it is sent again at
    /// the next start, under the same keys.
    pub async fn stop(self) {
        let Self { dispatcher, sources, mut server, mut background, ledger, .. } = self;
        self.draining.store(true, Ordering::Relaxed);
        self.stop_dispatcher.cancel();
        failpoint!("draining");
        let for_sends = self.shutdown_timeout.saturating_sub(AFTER_DISPATCHER);
        let end_sources = async {
            if tokio::time::timeout(for_sends, sources.stop()).await.is_err() {
                tracing::warn!("some messages of sources are still under way; they will be delivered again");
            }
        };
        let end_dispatcher = async {
            if let Some(mut dispatcher) = dispatcher
                && tokio::time::timeout(for_sends, &mut dispatcher).await.is_err()
            {
                tracing::warn!("some requests are still under way; they will be sent again");
                dispatcher.abort();
            }
        };
        tokio::join!(end_sources, end_dispatcher);
        failpoint!("drained");
        self.stop_server.cancel();
        if tokio::time::timeout(AFTER_DISPATCHER / 2, &mut server).await.is_err() {
            tracing::warn!("some clients are still sending; their connections are cut");
            server.abort();
        }
        // They end with `stop_server`; one that is in the middle of a request is cut off.
        let _ = tokio::time::timeout(AFTER_DISPATCHER / 2, async {
            while background.join_next().await.is_some() {}
        })
        .await;
        background.abort_all();
        if tokio::time::timeout(AFTER_DISPATCHER, ledger.close()).await.is_err() {
            tracing::warn!("the ledger did not close in time; nothing acknowledged is lost");
        }
    }
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

/// The vault with the keys that are configured, or that stand beside a SQLite file.
pub(crate) fn load_vault(config: &Config, clock: &dyn Clock) -> anyhow::Result<Vault> {
    let database = database_file(&config.database_url);
    let sources = KeySources {
        current: config.master_key.as_ref(),
        previous: &config.master_key_previous,
        database: database.as_deref(),
    };
    Ok(Vault::load(&sources, clock)?)
}

/// Starts what stands beside the dispatcher of a node that sends, until `stop` is cancelled: what it knows of
/// receivers, what other nodes tell, the challenges of endpoints, and Svix's event types where there is a Svix.
fn send_on(
    background: &mut JoinSet<()>,
    ledger: &Ledger,
    directory: &Directory,
    dispatcher: &Dispatcher,
    keeper: Keeper,
    event_types: Option<(SvixEventTypes, Arc<Notify>)>,
    stop: &CancellationToken,
) {
    dispatcher.set_policies(directory.snapshot().policies().clone());
    let changed = event_types.as_ref().map(|(_, changed)| changed.clone());
    background.spawn(pass_policies_on(directory.clone(), dispatcher.clone(), changed, stop.clone()));
    background.spawn({
        let (dispatcher, stop) = (dispatcher.clone(), stop.clone());
        async move { dispatcher.follow_neighbours(stop).await }
    });
    background.spawn({
        let (announcer, stop) = (keeper.announcer().clone(), stop.clone());
        async move { announcer.run(stop).await }
    });
    background.spawn({
        let stop = stop.clone();
        async move { keeper.challenge(stop).await }
    });
    if let Some((svix, changed)) = event_types {
        background.spawn(provisioning::sync_with_svix(ledger.clone(), svix, changed, stop.clone()));
    }
}

/// Works on replays, until the dispatcher stops.
fn work_on(
    background: &mut JoinSet<()>,
    replays: Replays,
    dispatcher: &Dispatcher,
    stop_dispatcher: &CancellationToken,
) {
    let (dispatcher, stop) = (dispatcher.clone(), stop_dispatcher.clone());
    background.spawn(async move { replays.run(dispatcher, stop).await });
}

/// Tells the dispatcher of every change of partners and endpoints, and whoever tells Svix of event types that there
/// may be one: another node may have made it.
async fn pass_policies_on(
    directory: Directory,
    dispatcher: Dispatcher,
    event_types_changed: Option<Arc<Notify>>,
    stop: CancellationToken,
) {
    let mut changes = directory.changes();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        let snapshot = changes.borrow_and_update().clone();
        dispatcher.set_policies(snapshot.policies().clone());
        if let Some(changed) = &event_types_changed {
            changed.notify_one();
        }
    }
}

fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let address = config.http.listen;
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // After a restart, connections of the one before may still linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    listen().with_context(|| format!("can't listen on {address}"))
}

/// The ways out.
fn senders(
    config: &Config,
    policy: DialPolicy,
    directory: &Directory,
    tracer: &Tracer,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Arc<Senders>> {
    let svix = svix_sender(config, directory, clock)?;
    let direct = Arc::new(direct_sender(config, policy, directory, clock)?);
    Ok(Arc::new(Senders { svix, direct, tracer: tracer.clone(), forward_traces: config.traces.forward }))
}

fn direct_sender(
    config: &Config,
    policy: DialPolicy,
    directory: &Directory,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<DirectSender> {
    let tls = tls::client_config(&config.direct.ca_files).map_err(anyhow::Error::msg)?;
    let connector = GuardedConnector::new(policy, Arc::new(SystemResolver), DIRECT_CONNECT_TIMEOUT);
    let options = DirectOptions {
        environment: config.environment.clone(),
        relay: config.ingest.relay,
        retry_after_max: Duration::from_millis(config.svix.retry_after_max_ms),
        max_payload_bytes: config.ingest.max_event_bytes,
    };
    let connector = GuardedHttps::new(connector, tls);
    Ok(DirectSender::new(options, connector, Arc::new(directory.clone()), clock.clone()))
}

fn svix_sender(
    config: &Config,
    directory: &Directory,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<SvixSender>> {
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
        max_payload_bytes: config.ingest.max_event_bytes,
    };
    SvixSender::new(options, Arc::new(directory.clone()), clock.clone()).map(Some).map_err(anyhow::Error::msg)
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
            adaptive: Some(AdaptiveLimits::new(svix.min_in_flight)),
        },
        endpoint_gate: ENDPOINT_GATE,
        attempt_timeout: attempt_timeout(config),
        svix_configured,
    }
}

/// Time for one attempt: whoever sends keeps to less by itself, at Svix or at an endpoint.
fn attempt_timeout(config: &Config) -> Duration {
    // At most three requests: a POST, a look-up or a new application, and a second POST.
    let at_svix = Duration::from_millis(3 * config.svix.timeout_ms);
    // One request, the body of its answer, and a moment.
    let at_endpoint = Duration::from_millis(TIMEOUT_MAX_MS) + ANSWER_TIMEOUT + Duration::from_secs(1);
    // A lease must be left some time.
    at_svix.max(at_endpoint.min(Duration::from_millis(config.dispatch.lease_ms) / 2))
}

fn ingest_rules(config: &Config) -> anyhow::Result<IngestRules> {
    let parse = ParseSettings {
        tenant_attributes: config.ingest.tenant_attributes.clone(),
        default_tenant: config.ingest.default_tenant.as_deref().map(Arc::from),
        require_id: config.ingest.require_id,
        max_batch_events: config.ingest.max_batch_events,
        max_event_bytes: config.ingest.max_event_bytes,
    };
    let limit = config.ingest.tenant_limit().map_err(anyhow::Error::msg)?;
    Ok(IngestRules {
        parse,
        default_route: config.default_route(),
        unknown_types: config.ingest.unknown_event_types,
        limits: TenantLimits::new(limit),
    })
}

/// Starts the sources, where the role is to take events.
fn read_sources(
    config: &Config,
    ingest: &Ingest,
    ledger: &Ledger,
    metrics: &Metrics,
) -> anyhow::Result<Sources> {
    let configs = if config.role.takes_events() { &config.sources[..] } else { &[] };
    Sources::start(configs, ingest, ledger, metrics).map_err(anyhow::Error::msg)
}

/// What every node does beside its work, until `stop` is cancelled.
fn keep_up(
    directory: &Directory,
    watch: &Watch,
    pruner: Pruner,
    dispatcher: Option<Dispatcher>,
    stop: &CancellationToken,
) -> JoinSet<()> {
    let mut background = JoinSet::new();
    background.spawn({
        let (directory, stop) = (directory.clone(), stop.clone());
        async move { directory.follow(stop).await }
    });
    if let Some(dispatcher) = dispatcher {
        background.spawn(watch_limits(dispatcher, directory.clone(), watch.metrics.clone(), stop.clone()));
    }
    background.spawn({
        let (stats, stop) = (watch.stats.clone(), stop.clone());
        async move { stats.keep(stop).await }
    });
    background.spawn({
        let stop = stop.clone();
        async move { pruner.run(stop).await }
    });
    background
}

/// Who hears of what is done; and what exports spans, where anything does.
fn watch(
    config: &Config,
    ledger: &Ledger,
    directory: &Directory,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Watch, Option<ExportTask>)> {
    let series_max = config.metrics.endpoint_series_max;
    let metrics = Metrics::new(series_max);
    ledger.meter(metrics.commits());
    let export = config.traces.export().map_err(anyhow::Error::msg)?;
    let (tracer, exports) = Tracer::new(export, clock).map_err(anyhow::Error::msg)?;
    let stats = Stats::new(ledger.clone(), directory.clone(), series_max, clock.clone());
    Ok((Watch { metrics, stats, tracer }, exports))
}

/// Counts how long partners' limits hold deliveries back, until `stop` is cancelled.
async fn watch_limits(
    dispatcher: Dispatcher,
    directory: Directory,
    metrics: Metrics,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK_AT_LIMITS)).await.is_some() {
        metrics.held(&dispatcher.held(), LOOK_AT_LIMITS);
        let snapshot = directory.snapshot();
        metrics.retain_partners(|partner| snapshot.policies().partners.contains_key(partner));
    }
}

const fn server_limits(config: &Config) -> ServerLimits {
    ServerLimits {
        max_connections: config.http.max_connections,
        header_timeout: Duration::from_millis(config.http.header_timeout_ms),
        body_timeout: Duration::from_millis(config.http.body_timeout_ms),
    }
}

fn http_options(config: &Config) -> anyhow::Result<HttpOptions> {
    Ok(HttpOptions {
        role: config.role,
        ingest_paths: config.http.ingest_paths.clone(),
        body_limit_bytes: config.http.body_limit_bytes,
        default_route: config.default_route(),
        settings: config.show()?,
    })
}
