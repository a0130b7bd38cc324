//! What the program says of itself: how log lines look, and every metric there is, by name.
//!
//! Metrics have a recorder of their own in every [`App`](crate::app::App), never the process-wide one: a process may
//! run several relays. What only counts up is kept; what stands somewhere else already (gates, what waits) is read
//! when somebody asks. No label has a value for each event, tenant or partner; gates are told up to a bound.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Unit, with_local_recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};
use crate::dispatcher::GateStatus;
use crate::domain::scheduler::GateId;
use crate::ingest::{ItemResult, Status};
use crate::sources::Statuses;

/// Events taken in, by verdict.
const INGEST_EVENTS: &str = "posthaste_ingest_events_total";
/// Requests to take events in that were refused whole, by the problem's code.
const INGEST_REFUSED: &str = "posthaste_ingest_refused_total";
/// What a group commit took, until it was durable.
const COMMIT_SECONDS: &str = "posthaste_ledger_commit_seconds";
/// New events in a group commit.
const COMMIT_EVENTS: &str = "posthaste_ledger_commit_events";
/// Deliveries that wait, as far as this node knows.
const WAITING: &str = "posthaste_deliveries_waiting";
/// Requests in flight, over all destinations.
const IN_FLIGHT: &str = "posthaste_dispatcher_in_flight";
/// How many gates are in a state.
const GATES: &str = "posthaste_gates";
/// How many requests a gate lets through at once.
const GATE_WINDOW: &str = "posthaste_gate_window";
/// Requests in flight through a gate.
const GATE_IN_FLIGHT: &str = "posthaste_gate_in_flight";
/// 1 for the state that a gate is in, 0 for the others.
const GATE_STATE: &str = "posthaste_gate_state";

/// Messages fetched from a source.
const SOURCE_MESSAGES: &str = "posthaste_source_messages_total";
/// Events of a source, by verdict.
const SOURCE_EVENTS: &str = "posthaste_source_events_total";
/// Events of a source that were kept as rejected.
const SOURCE_REJECTED: &str = "posthaste_source_rejected_total";
/// Connections to a source's broker that were made anew.
const SOURCE_RECONNECTS: &str = "posthaste_source_reconnects_total";
/// Messages that wait at a source's broker, where it says so.
const SOURCE_LAG: &str = "posthaste_source_lag";
/// 1 for the state that a source is in, 0 for the others.
const SOURCE_STATE: &str = "posthaste_source_state";

/// Most gates with series of their own: Svix's, then those that are not open, then others.
const GATES_SHOWN: usize = 1_000;
const GATE_STATES: [&str; 3] = ["open", "closed", "probing"];
const SOURCE_STATES: [&str; 4] = ["connecting", "up", "paused", "down"];
const COMMIT_SECONDS_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
const COMMIT_EVENTS_BUCKETS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0];

/// Starts logging to standard error. Called once, by `main`.
///
/// # Errors
/// A level that can't be read, or a second call: one clear line.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| format!("log.level: {error}"))?;
    // A line that can't be written has nowhere to be told of: trying to would panic once stderr is closed.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.format {
        LogFormat::Json => registry.with(lines.json()).try_init(),
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    }
    .map_err(|error| error.to_string())
}

/// The metrics of one relay. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    kept: Arc<Kept>,
}

struct Kept {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    accepted: Counter,
    duplicates: Counter,
    conflicts: Counter,
    invalid: Counter,
    commits: CommitMetrics,
}

/// What the ledger's writer tells of its commits.
#[derive(Clone)]
pub struct CommitMetrics {
    /// Seconds.
    pub seconds: Histogram,
    /// New events.
    pub events: Histogram,
}

/// What is counted of one source.
#[derive(Clone)]
pub struct SourceMetrics {
    /// Messages fetched.
    pub received: Counter,
    accepted: Counter,
    duplicates: Counter,
    conflicts: Counter,
    invalid: Counter,
    rejected: Counter,
    /// Connections made anew.
    pub reconnects: Counter,
}

impl SourceMetrics {
    /// Counts the verdicts on a source's events, and how many of them were kept as rejected.
    pub fn judged(&self, results: &[ItemResult], rejected: usize) {
        for result in results {
            let counter = match result.status {
                Status::Accepted => &self.accepted,
                Status::Duplicate => &self.duplicates,
                Status::Conflict => &self.conflicts,
                Status::Invalid => &self.invalid,
            };
            counter.increment(1);
        }
        self.rejected.increment(rejected as u64);
    }
}

/// What is read when somebody asks.
#[derive(Debug)]
pub struct Standing {
    /// Every gate.
    pub gates: Vec<GateStatus>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Deliveries that wait.
    pub waiting: u64,
    /// Every source.
    pub sources: Statuses,
}

impl Metrics {
    /// Metrics that have counted nothing.
    ///
    /// # Errors
    /// None that is known: the buckets are constants.
    pub fn new() -> Result<Self, String> {
        let buckets = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.into()), COMMIT_SECONDS_BUCKETS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full(COMMIT_EVENTS.into()), COMMIT_EVENTS_BUCKETS)
            });
        let recorder = buckets.map_err(|error| error.to_string())?.build_recorder();
        let verdict = |name: &'static str| metrics::counter!(INGEST_EVENTS, "verdict" => name);
        let kept = with_local_recorder(&recorder, || {
            metrics::describe_counter!(INGEST_EVENTS, "Events taken in, by verdict");
            metrics::describe_counter!(INGEST_REFUSED, "Requests refused whole, by the problem's code");
            metrics::describe_counter!(SOURCE_MESSAGES, "Messages fetched from a source");
            metrics::describe_counter!(SOURCE_EVENTS, "Events of a source, by verdict");
            metrics::describe_counter!(SOURCE_REJECTED, "Events of a source that were kept as rejected");
            metrics::describe_counter!(SOURCE_RECONNECTS, "Connections to a source's broker made anew");
            metrics::describe_histogram!(
                COMMIT_SECONDS,
                Unit::Seconds,
                "Group commits until they are durable"
            );
            metrics::describe_histogram!(COMMIT_EVENTS, "New events in a group commit");
            let commits = CommitMetrics {
                seconds: metrics::histogram!(COMMIT_SECONDS),
                events: metrics::histogram!(COMMIT_EVENTS),
            };
            let handle = recorder.handle();
            let (accepted, duplicates) = (verdict("accepted"), verdict("duplicate"));
            let (conflicts, invalid) = (verdict("conflict"), verdict("invalid"));
            (handle, accepted, duplicates, conflicts, invalid, commits)
        });
        let (handle, accepted, duplicates, conflicts, invalid, commits) = kept;
        let kept = Kept { recorder, handle, accepted, duplicates, conflicts, invalid, commits };
        let metrics = Self { kept: Arc::new(kept) };
        // There from the start, for whoever alerts on its growth.
        metrics.refusals("tenant_ingest_limit").absolute(0);
        Ok(metrics)
    }

    /// Counts the verdicts on a request's events. Of a request of which nothing is `stored` only what was wrong.
    pub fn judged(&self, results: &[ItemResult], stored: bool) {
        let count = |status| results.iter().filter(|result| result.status == status).count() as u64;
        let kept = &self.kept;
        if stored {
            kept.accepted.increment(count(Status::Accepted));
            kept.duplicates.increment(count(Status::Duplicate));
        }
        kept.conflicts.increment(count(Status::Conflict));
        kept.invalid.increment(count(Status::Invalid));
    }

    /// Counts a request that was refused whole, by the problem's `code`.
    pub fn refused(&self, code: &'static str) {
        self.refusals(code).increment(1);
    }

    fn refusals(&self, code: &'static str) -> Counter {
        with_local_recorder(&self.kept.recorder, || metrics::counter!(INGEST_REFUSED, "code" => code))
    }

    /// For the ledger's writer.
    pub fn commits(&self) -> CommitMetrics {
        self.kept.commits.clone()
    }

    /// For a source of this name; its counters are there from now on.
    pub fn of_source(&self, name: &str) -> SourceMetrics {
        let name = name.to_owned();
        with_local_recorder(&self.kept.recorder, || {
            let count = |metric: &'static str| metrics::counter!(metric, "source" => name.clone());
            let verdict = |verdict: &'static str| metrics::counter!(SOURCE_EVENTS, "source" => name.clone(), "verdict" => verdict);
            let all = SourceMetrics {
                received: count(SOURCE_MESSAGES),
                accepted: verdict("accepted"),
                duplicates: verdict("duplicate"),
                conflicts: verdict("conflict"),
                invalid: verdict("invalid"),
                rejected: count(SOURCE_REJECTED),
                reconnects: count(SOURCE_RECONNECTS),
            };
            for counter in [&all.received, &all.rejected, &all.reconnects, &all.accepted, &all.duplicates] {
                counter.absolute(0);
            }
            all
        })
    }

    /// Sums up what histograms have gathered. To be called every few seconds: until then every value is kept.
    pub fn upkeep(&self) {
        self.kept.handle.run_upkeep();
    }

    /// All metrics in Prometheus' text format, with how things stand now.
    pub fn render(&self, standing: Standing) -> String {
        let mut text = self.kept.handle.render();
        // A recorder for this once: a gate that is gone leaves nothing behind.
        let recorder = PrometheusBuilder::new().build_recorder();
        with_local_recorder(&recorder, || tell(standing));
        text.push_str(&recorder.handle().render());
        text
    }
}

fn tell(standing: Standing) {
    metrics::describe_gauge!(WAITING, "Deliveries that wait");
    metrics::describe_gauge!(IN_FLIGHT, "Requests in flight");
    metrics::describe_gauge!(GATES, "Gates by state");
    metrics::describe_gauge!(GATE_WINDOW, "Requests that a gate lets through at once");
    metrics::describe_gauge!(GATE_IN_FLIGHT, "Requests in flight through a gate");
    metrics::describe_gauge!(GATE_STATE, "1 for the state that a gate is in");
    set(&metrics::gauge!(WAITING), standing.waiting);
    set(&metrics::gauge!(IN_FLIGHT), standing.in_flight as u64);
    tell_sources(&standing.sources);
    let mut gates = standing.gates;
    for state in GATE_STATES {
        let count = gates.iter().filter(|gate| gate.state() == state).count();
        set(&metrics::gauge!(GATES, "state" => state), count as u64);
    }
    gates.sort_by_key(|gate| (gate.gate != GateId::Svix, gate.reason.is_none()));
    for gate in gates.iter().take(GATES_SHOWN) {
        let name = gate.gate.as_str().to_owned();
        set(&metrics::gauge!(GATE_WINDOW, "gate" => name.clone()), u64::from(gate.width));
        set(&metrics::gauge!(GATE_IN_FLIGHT, "gate" => name.clone()), u64::from(gate.in_flight));
        for state in GATE_STATES {
            let is_in = u64::from(gate.state() == state);
            set(&metrics::gauge!(GATE_STATE, "gate" => name.clone(), "state" => state), is_in);
        }
    }
}

fn tell_sources(sources: &Statuses) {
    metrics::describe_gauge!(SOURCE_LAG, "Messages that wait at a source's broker");
    metrics::describe_gauge!(SOURCE_STATE, "1 for the state that a source is in");
    for source in sources.iter() {
        if let Some(lag) = source.lag() {
            set(&metrics::gauge!(SOURCE_LAG, "source" => source.name.clone()), lag);
        }
        for state in SOURCE_STATES {
            let is_in = u64::from(source.state().as_str() == state);
            set(&metrics::gauge!(SOURCE_STATE, "source" => source.name.clone(), "state" => state), is_in);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn set(gauge: &Gauge, value: u64) {
    gauge.set(value as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::gate::CloseReason;

    #[test]
    fn relays_count_apart_and_gates_are_bounded() {
        let (one, other) = (Metrics::new().unwrap(), Metrics::new().unwrap());
        one.refused("tenant_ingest_limit");
        one.commits().seconds.record(0.002);
        one.upkeep();
        let gate = |n: usize| GateStatus {
            gate: GateId::Endpoint(format!("ep_{n:05}").into()),
            reason: (n == 4_999).then_some(CloseReason::Failing),
            opens_in: (n == 4_999).then_some(Duration::from_secs(1)),
            width: 64,
            in_flight: 3,
        };
        let svix = GateStatus { gate: GateId::Svix, ..gate(0) };
        let gates = || (0..5_000).map(gate).chain([svix.clone()]).collect();
        let text = one.render(Standing { gates: gates(), in_flight: 7, waiting: 9, sources: [].into() });
        for line in [
            "posthaste_ingest_refused_total{code=\"tenant_ingest_limit\"} 1",
            "posthaste_ledger_commit_seconds_bucket{le=\"0.0025\"} 1",
            "posthaste_ledger_commit_seconds_bucket{le=\"0.001\"} 0",
            "posthaste_deliveries_waiting 9",
            "posthaste_dispatcher_in_flight 7",
            "posthaste_gates{state=\"open\"} 5000",
            "posthaste_gates{state=\"closed\"} 1",
            "posthaste_gate_window{gate=\"svix\"} 64",
            "posthaste_gate_state{gate=\"ep_04999\",state=\"closed\"} 1",
            "posthaste_gate_state{gate=\"ep_04999\",state=\"open\"} 0",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} is not in\n{}", &text[..3_000]);
        }
        assert_eq!(text.matches("posthaste_gate_window{").count(), GATES_SHOWN);
        let text = other.render(Standing { gates: Vec::new(), in_flight: 0, waiting: 0, sources: [].into() });
        assert!(text.contains("posthaste_ingest_refused_total{code=\"tenant_ingest_limit\"} 0"), "{text}");
        assert!(!text.contains("posthaste_gate_window{"));
    }
}
