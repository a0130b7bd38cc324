//! What the program says of itself: how log lines look, and what the metrics count.
//!
//! Every [`App`](crate::app::App) counts for itself, never for the process: a process may run several relays. What only
//! counts up is kept here, in atomics that whoever counts holds a handle of; what stands somewhere else already (gates, what
//! waits) is read when somebody asks. [`families`] has every metric by name.

pub mod families;
mod lines;
mod process;
mod text;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use self::families as family;
pub use self::lines::flush;
pub use self::text::MEDIA_TYPE;
use self::text::Page;
use crate::config::{LogConfig, LogFormat, Role};
use crate::dispatcher::{GateStatus, Held};
use crate::domain::clock::Timestamp;
use crate::domain::delivery::DeadReason;
use crate::domain::gate::CloseReason;
use crate::domain::partner::DisableReason;
use crate::domain::scheduler::GateId;
use crate::domain::tenant::Destination;
use crate::ingest::{ItemResult, Routed, Status};
use crate::jobs::JobReading;
use crate::ledger::ClockStatus;
use crate::sources::Statuses;
use crate::stats::{Backlog, Backlogs, LiveLatencies, OTHER, Reading, ResultClass, SVIX, Stats};
use crate::traces::Tracer;

/// Most gates with series of their own: Svix's, then those that are not open, then others.
const GATES_SHOWN: usize = 1_000;
const GATE_STATES: [&str; 3] = ["open", "closed", "probing"];
const LEDGER_STATES: [&str; 2] = ["up", "down"];
const CLOCK_STATES: [&str; 3] = ["trusted", "unconfirmed", "skewed"];
const SOURCE_STATES: [&str; 4] = ["connecting", "up", "paused", "down"];
/// Upper bounds of sizes; the last bucket has none.
const SIZE_BOUNDS: [u64; 7] = [1, 4, 16, 64, 256, 1_024, 4_096];
/// What events are counted under that came over HTTP, in a Pub/Sub push, and from what was rejected before.
pub const FROM_HTTP: &str = "http";
/// See [`FROM_HTTP`].
pub const FROM_PUSH: &str = "pubsub_push";
/// See [`FROM_HTTP`].
pub const FROM_REJECTED: &str = "rejected";

/// Starts logging to standard error, on a thread that no work waits for. Called once by a process, which calls [`flush`]
/// at its end.
///
/// # Errors
/// A level that can't be read, or a second call: one clear line.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| format!("log.level: {error}"))?;
    let writer = lines::start();
    lines::take_panics(&writer);
    // A line that can't be written has nowhere to be told of: trying to would panic once stderr is closed.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Json => registry.with(layer.json()).try_init(),
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            registry.with(layer.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    }
    .map_err(|error| error.to_string())
}

/// Who hears of what is done. Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    /// Counts everything, for Prometheus.
    pub metrics: Metrics,
    /// Counts what comes in and goes out, by minute.
    pub stats: Stats,
    /// Records spans.
    pub tracer: Tracer,
}

/// What is counted of one relay. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    kept: Arc<Kept>,
    /// Most endpoints, or partners, with series of their own.
    series_max: usize,
}

#[derive(Default)]
struct Kept {
    /// By source.
    sources: Mutex<BTreeMap<String, Arc<SourceMetrics>>>,
    /// By the problem's code.
    refused: Mutex<BTreeMap<&'static str, u64>>,
    accepts: LiveLatencies,
    commits: Arc<CommitMetrics>,
    /// By reason.
    closings: [AtomicU64; CloseReason::ALL.len()],
    /// Milliseconds, by partner and limit.
    held_ms: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
}

/// What the ledger's writer tells of its commits.
#[derive(Debug, Default)]
pub struct CommitMetrics {
    seconds: LiveLatencies,
    events: LiveSizes,
    lost_leases: AtomicU64,
    /// Deliveries whose events are missing, and whose events are damaged.
    unreadable: [AtomicU64; UNREADABLE.len()],
}

/// Why an event can't be read from the ledger.
const UNREADABLE: [DeadReason; 2] = [DeadReason::EventMissing, DeadReason::EventUnreadable];

impl CommitMetrics {
    /// A group commit of so many new events was durable after `took`.
    pub fn committed(&self, took: Duration, events: usize) {
        self.seconds.record(took);
        // A group that only settles has none.
        if events > 0 {
            self.events.record(events as u64);
        }
    }

    /// A delivery was given up because its event can't be read from the ledger.
    pub fn unreadable(&self, reason: DeadReason) {
        for (counted, count) in UNREADABLE.into_iter().zip(&self.unreadable) {
            count.fetch_add(u64::from(counted == reason), Ordering::Relaxed);
        }
    }

    /// An attempt could not be settled: its lease had passed to another.
    pub fn lease_lost(&self) {
        self.lost_leases.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sizes, counted in buckets.
#[derive(Debug, Default)]
struct LiveSizes {
    counts: [AtomicU64; SIZE_BOUNDS.len() + 1],
    sum: AtomicU64,
}

impl LiveSizes {
    fn record(&self, size: u64) {
        let bucket = SIZE_BOUNDS.partition_point(|bound| *bound < size);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(size, Ordering::Relaxed);
    }

    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    fn read(&self) -> text::Histogram {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let bounds = SIZE_BOUNDS.iter().map(|bound| *bound as f64).chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (self.sum.load(Ordering::Relaxed) as f64, count, buckets)
    }
}

/// What is counted of one source of events.
#[derive(Debug, Default)]
pub struct SourceMetrics {
    /// By route and verdict.
    events: [[AtomicU64; Status::ALL.len()]; Routed::ALL.len()],
    /// It is a broker's.
    is_broker: bool,
    received: AtomicU64,
    rejected: AtomicU64,
    reconnects: AtomicU64,
}

impl SourceMetrics {
    /// Counts the verdicts on events. Of a request of which nothing is `stored` only what was wrong.
    pub fn judged(&self, results: &[ItemResult], stored: bool) {
        let mut counts = [[0; Status::ALL.len()]; Routed::ALL.len()];
        for result in results {
            let is_bad = matches!(result.status, Status::Conflict | Status::Invalid);
            if stored || is_bad {
                counts[result.routed as usize][result.status as usize] += 1;
            }
        }
        for (counts, events) in counts.iter().zip(&self.events) {
            for (count, events) in counts.iter().zip(events).filter(|(count, _)| **count > 0) {
                events.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// Counts messages that were fetched.
    pub fn received(&self, messages: usize) {
        self.received.fetch_add(messages as u64, Ordering::Relaxed);
    }

    /// Counts events that were kept as rejected.
    pub fn rejected(&self, events: usize) {
        self.rejected.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Counts a connection that was made anew.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is read when somebody asks.
#[derive(Debug)]
pub struct Standing {
    /// What this node does of the work.
    pub role: Role,
    /// Now.
    pub now: Timestamp,
    /// Every gate.
    pub gates: Vec<GateStatus>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Deliveries that wait.
    pub waiting: u64,
    /// Most deliveries that may wait.
    pub waiting_limit: u64,
    /// The ledger takes writes.
    pub ledger_up: bool,
    /// Settlements that wait to be committed.
    pub unsettled: usize,
    /// Every background job of this node.
    pub jobs: Vec<JobReading>,
    /// Bytes in the file of the ledger's write-ahead log; `None` where there is none to see.
    pub wal_bytes: Option<u64>,
    /// How far the ledger's clock can be trusted.
    pub clock: ClockStatus,
    /// Every source.
    pub sources: Statuses,
    /// What waits; `None` where the ledger does not tell.
    pub backlogs: Option<Arc<Backlogs>>,
    /// Whose endpoints those are, by id.
    pub partners: BTreeMap<Arc<str>, Arc<str>>,
    /// Disabled endpoints, by reason.
    pub disabled: BTreeMap<&'static str, u64>,
    /// What was counted of attempts.
    pub attempts: Vec<Reading>,
    /// Spans that were exported, and dropped; `None` where there are none.
    pub spans: Option<(u64, u64)>,
}

impl Metrics {
    /// Metrics that have counted nothing, with series of their own for so many endpoints or partners.
    pub fn new(series_max: usize) -> Self {
        let metrics = Self { kept: Arc::default(), series_max };
        // There from the start, for whoever alerts on its growth.
        metrics.refusals().insert("tenant_ingest_limit", 0);
        for source in [FROM_HTTP, FROM_PUSH, FROM_REJECTED] {
            metrics.of_source(source, false);
        }
        metrics
    }

    /// Counts a request that was refused whole, by the problem's `code`.
    pub fn refused(&self, code: &'static str) {
        *self.refusals().entry(code).or_default() += 1;
    }

    fn refusals(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.kept.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request whose events were stored.
    pub fn accepted(&self, took: Duration) {
        self.kept.accepts.record(took);
    }

    /// For the ledger's writer.
    pub fn commits(&self) -> Arc<CommitMetrics> {
        self.kept.commits.clone()
    }

    /// For a source of this name; its counters are there from now on.
    pub fn of_source(&self, name: &str, is_broker: bool) -> Arc<SourceMetrics> {
        let mut sources = self.sources();
        let made = || Arc::new(SourceMetrics { is_broker, ..SourceMetrics::default() });
        sources.entry(name.to_owned()).or_insert_with(made).clone()
    }

    fn sources(&self) -> MutexGuard<'_, BTreeMap<String, Arc<SourceMetrics>>> {
        self.kept.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a gate that has closed.
    pub fn gate_closed(&self, reason: CloseReason) {
        self.kept.closings[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `time` for which limits have held partners' deliveries back.
    pub fn held(&self, held: &[Held], time: Duration) {
        let mut times = self.kept.held_ms.lock().unwrap_or_else(PoisonError::into_inner);
        for Held { partner, limit } in held {
            let known =
                times.contains_key(&(partner.clone(), limit.as_str())) || times.len() < self.series_max;
            let name = if known { partner.clone() } else { OTHER.into() };
            *times.entry((name, limit.as_str())).or_default() +=
                u64::try_from(time.as_millis()).unwrap_or_default();
        }
    }

    /// Forgets partners that are gone.
    pub fn retain_partners(&self, exists: impl Fn(&str) -> bool) {
        let mut times = self.kept.held_ms.lock().unwrap_or_else(PoisonError::into_inner);
        times.retain(|(partner, _), _| **partner == *OTHER || exists(partner));
    }

    /// All metrics as text, with how things stand now.
    pub fn render(&self, standing: Standing) -> String {
        let mut page = Page::default();
        self.tell_ingest(&mut page);
        self.tell_ledger(&mut page, &standing);
        self.tell_backlogs(&mut page, &standing);
        tell_attempts(&mut page, &standing.attempts);
        self.tell_holds(&mut page, &standing);
        tell_gates(&mut page, standing.gates);
        render_jobs(&mut page, &standing.jobs);
        tell_sources(&mut page, &standing.sources);
        if let Some((exported, dropped)) = standing.spans {
            page.count(&family::TRACE_SPANS, &["exported"], exported);
            page.count(&family::TRACE_SPANS, &["dropped"], dropped);
        }
        page.count(&family::LOG_DROPPED, &[], lines::dropped());
        page.number(&family::BUILD, &[env!("CARGO_PKG_VERSION"), standing.role.as_str()], 1);
        process::tell(&mut page);
        page.write()
    }

    fn tell_ingest(&self, page: &mut Page) {
        for (name, source) in &*self.sources() {
            for (routed, verdicts) in Routed::ALL.into_iter().zip(&source.events) {
                for (status, count) in Status::ALL.into_iter().zip(verdicts) {
                    let count = count.load(Ordering::Relaxed);
                    // There from the start is what is looked at most.
                    if count > 0 || (routed == Routed::Unknown && status == Status::Invalid) {
                        page.count(&family::INGEST_EVENTS, &[name, routed.as_str(), status.as_str()], count);
                    }
                }
            }
            if source.is_broker {
                let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
                page.count(&family::SOURCE_MESSAGES, &[name], read(&source.received));
                page.count(&family::SOURCE_REJECTED, &[name], read(&source.rejected));
                page.count(&family::SOURCE_RECONNECTS, &[name], read(&source.reconnects));
            }
        }
        for (code, count) in &*self.refusals() {
            page.count(&family::INGEST_REFUSED, &[code], *count);
        }
        page.histogram(&family::INGEST_ACCEPT, &[], self.kept.accepts.read().in_seconds());
    }

    fn tell_ledger(&self, page: &mut Page, standing: &Standing) {
        let commits = &self.kept.commits;
        page.histogram(&family::COMMIT_SECONDS, &[], commits.seconds.read().in_seconds());
        page.histogram(&family::COMMIT_EVENTS, &[], commits.events.read());
        page.count(&family::LOST_LEASES, &[], commits.lost_leases.load(Ordering::Relaxed));
        for (reason, count) in UNREADABLE.into_iter().zip(&commits.unreadable) {
            page.count(&family::UNREADABLE, &[reason.as_str()], count.load(Ordering::Relaxed));
        }
        page.number(&family::UNSETTLED, &[], standing.unsettled as u64);
        let is = if standing.ledger_up { "up" } else { "down" };
        page.state(&family::LEDGER_STATE, &[], &LEDGER_STATES, is);
        page.state(&family::CLOCK_STATE, &[], &CLOCK_STATES, standing.clock.state.as_str());
        #[expect(clippy::cast_precision_loss, reason = "a century of milliseconds is below 2^53")]
        page.gauge(&family::CLOCK_SKEW, &[], standing.clock.skew_ms as f64 / 1_000.0);
        if let Some(bytes) = standing.wal_bytes {
            page.number(&family::WAL_BYTES, &[], bytes);
        }
        page.number(&family::BACKLOG, &[], standing.waiting);
        page.number(&family::BACKLOG_LIMIT, &[], standing.waiting_limit);
        page.number(&family::IN_FLIGHT, &[], standing.in_flight as u64);
    }

    /// What waits for each destination: of the longest waiting each apart, of the others together.
    fn tell_backlogs(&self, page: &mut Page, standing: &Standing) {
        let Some(backlogs) = &standing.backlogs else { return };
        let mut waiting: BTreeMap<(&str, &str), Backlog> = BTreeMap::new();
        let mut oldest_first: Vec<_> = backlogs.iter().collect();
        oldest_first.sort_by_key(|(_, backlog)| backlog.oldest);
        for (destination, backlog) in oldest_first {
            let own = match destination {
                Destination::Svix { .. } => Some((SVIX, SVIX)),
                Destination::Endpoint { id } => standing.partners.get(id).map(|partner| (&**partner, &**id)),
            };
            let own = own.filter(|own| waiting.contains_key(own) || waiting.len() < self.series_max + 1);
            let nothing = Backlog { deliveries: 0, ..*backlog };
            waiting.entry(own.unwrap_or((OTHER, OTHER))).or_insert(nothing).add(*backlog);
        }
        for ((partner, endpoint), Backlog { deliveries, oldest, first_due }) in waiting {
            let age_s = |since| standing.now.since(since).as_secs_f64();
            page.number(&family::DESTINATION_BACKLOG, &[partner, endpoint], deliveries);
            page.gauge(&family::DESTINATION_OLDEST, &[partner, endpoint], age_s(oldest));
            page.gauge(&family::DESTINATION_OVERDUE, &[partner, endpoint], age_s(first_due));
        }
    }

    fn tell_holds(&self, page: &mut Page, standing: &Standing) {
        for reason in CloseReason::ALL.into_iter().filter(|reason| *reason != CloseReason::NotConfigured) {
            let count = self.kept.closings[reason as usize].load(Ordering::Relaxed);
            page.count(&family::GATE_CLOSINGS, &[reason.as_str()], count);
        }
        for reason in DisableReason::ALL {
            let count = standing.disabled.get(reason.as_str()).copied().unwrap_or_default();
            page.number(&family::DISABLED, &[reason.as_str()], count);
        }
        let times = self.kept.held_ms.lock().unwrap_or_else(PoisonError::into_inner);
        for ((partner, limit), millis) in &*times {
            page.seconds(
                &family::LIMIT_HELD,
                &[partner, limit],
                Duration::from_millis(*millis).as_secs_f64(),
            );
        }
    }
}

fn tell_attempts(page: &mut Page, attempts: &[Reading]) {
    for Reading { partner, endpoint, sums } in attempts {
        // Only where there was ever something to be told together.
        if **endpoint == *OTHER && sums.is_empty() {
            continue;
        }
        for class in ResultClass::ALL {
            let count = sums.of(class);
            if count > 0 || class == ResultClass::Success {
                page.count(&family::ATTEMPTS, &[partner, endpoint, class.as_str()], count);
            }
        }
        page.histogram(&family::ATTEMPT_SECONDS, &[partner, endpoint], sums.latencies.in_seconds());
        page.count(&family::DEAD, &[partner, endpoint], sums.dead);
    }
}

fn tell_gates(page: &mut Page, mut gates: Vec<GateStatus>) {
    // Where there is no Svix, that is no trouble; what waits for it all the same is told as overdue.
    gates.retain(|gate| gate.reason != Some(CloseReason::NotConfigured));
    for state in GATE_STATES {
        let count = gates.iter().filter(|gate| gate.state() == state).count();
        page.number(&family::GATES, &[state], count as u64);
    }
    gates.sort_by_key(|gate| (gate.gate != GateId::Svix, gate.reason.is_none()));
    for gate in gates.iter().take(GATES_SHOWN) {
        let name = gate.gate.as_str();
        page.number(&family::GATE_WINDOW, &[name], u64::from(gate.width));
        page.number(&family::GATE_IN_FLIGHT, &[name], u64::from(gate.in_flight));
        page.state(&family::GATE_STATE, &[name], &GATE_STATES, gate.state());
    }
}

fn render_jobs(page: &mut Page, jobs: &[JobReading]) {
    for JobReading { job, succeeded_at, lag, errors } in jobs {
        let labels = [job.as_str()];
        let seconds = succeeded_at
            .map_or(0.0, |at| Duration::from_millis(at.as_millis().max(0).unsigned_abs()).as_secs_f64());
        page.gauge(&family::JOB_SUCCESS, &labels, seconds);
        page.gauge(&family::JOB_LAG, &labels, lag.as_secs_f64());
        page.count(&family::JOB_ERRORS, &labels, *errors);
    }
}

fn tell_sources(page: &mut Page, sources: &Statuses) {
    for source in sources.iter() {
        if let Some(lag) = source.lag() {
            page.number(&family::SOURCE_LAG, &[&source.name], lag);
        }
        page.state(&family::SOURCE_STATE, &[&source.name], &SOURCE_STATES, source.state().as_str());
    }
}

#[cfg(test)]
mod tests;
