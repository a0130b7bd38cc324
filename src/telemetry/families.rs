//! Every metric by name.
//!
//! Names follow a grammar: `posthaste_<noun>_<unit>[_total]`. The noun is one or more words; the unit is one of [`UNITS`];
//! `_total` stands behind counters and nothing else. What every process has is named as all Prometheus clients name it,
//! `process_…`. Labels are bounded: none has a value for each event or tenant.

use prometheus_client::metrics::MetricType;

/// What a metric may be counted or measured in. `state` is 1 for the state that something is in and 0 for the others,
/// `info` is always 1.
pub const UNITS: [&str; 18] = [
    "attempts",
    "bytes",
    "closings",
    "deliveries",
    "endpoints",
    "errors",
    "events",
    "fds",
    "gates",
    "info",
    "leases",
    "lines",
    "messages",
    "reconnects",
    "requests",
    "seconds",
    "spans",
    "state",
];

/// A metric: its series differ in their labels.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name; of a counter without `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// A list of families, each a constant, and [`ALL`] of them.
macro_rules! families {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = $help]
        pub const $constant: Family =
            Family { name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help };)+

        /// Every family, in the order in which they are told.
        pub const ALL: &[Family] = &[$($constant),+];
    };
}

families! {
    INGEST_EVENTS: Counter "posthaste_ingest_events" ["source", "route", "verdict"]
        "Events taken in, by where they came from, where they go and what became of them";
    INGEST_REFUSED: Counter "posthaste_ingest_refused_requests" ["code"]
        "Requests refused whole, by the problem's code";
    INGEST_ACCEPT: Histogram "posthaste_ingest_accept_seconds" []
        "Requests whose events were stored, from the head to the answer";
    COMMIT_SECONDS: Histogram "posthaste_ledger_commit_seconds" [] "Group commits until they are durable";
    COMMIT_EVENTS: Histogram "posthaste_ledger_commit_events" [] "New events in a group commit";
    LOST_LEASES: Counter "posthaste_ledger_lost_leases" []
        "Attempts that could not be settled because their lease had passed to another";
    UNREADABLE: Counter "posthaste_ledger_unreadable_deliveries" ["reason"]
        "Deliveries given up because the ledger has lost their event, or can't read it";
    UNSETTLED: Gauge "posthaste_ledger_unsettled_deliveries" []
        "Deliveries that were sent and whose outcome waits to be committed";
    LEDGER_STATE: Gauge "posthaste_ledger_state" ["state"] "1 for the state that the ledger is in";
    CLOCK_STATE: Gauge "posthaste_clock_state" ["state"] "1 for the state that the ledger's clock is in";
    CLOCK_SKEW: Gauge "posthaste_clock_skew_seconds" []
        "How far this machine's clock is ahead of the ledger's; of an unconfirmed one, of the ledger's last heartbeat";
    WAL_BYTES: Gauge "posthaste_ledger_wal_bytes" []
        "The write-ahead log's file (SQLite): it grows while somebody reads for long";
    BACKLOG: Gauge "posthaste_backlog_deliveries" [] "Deliveries that wait";
    BACKLOG_LIMIT: Gauge "posthaste_backlog_limit_deliveries" [] "Most deliveries that may wait";
    DESTINATION_BACKLOG: Gauge "posthaste_destination_backlog_deliveries" ["partner", "endpoint"]
        "Deliveries that wait, by destination";
    DESTINATION_OLDEST: Gauge "posthaste_destination_oldest_seconds" ["partner", "endpoint"]
        "Time since the oldest event that waits was recorded, by destination";
    DESTINATION_OVERDUE: Gauge "posthaste_destination_overdue_seconds" ["partner", "endpoint"]
        "Time for which the first delivery that waits has been due, by destination";
    ATTEMPTS: Counter "posthaste_delivery_attempts" ["partner", "endpoint", "result"]
        "Attempts by destination and by what came of them";
    ATTEMPT_SECONDS: Histogram "posthaste_delivery_attempt_seconds" ["partner", "endpoint"]
        "Attempts from their beginning to the answer";
    DEAD: Counter "posthaste_dead_deliveries" ["partner", "endpoint"] "Deliveries that were given up";
    IN_FLIGHT: Gauge "posthaste_dispatch_in_flight_requests" [] "Requests in flight";
    GATES: Gauge "posthaste_dispatch_gates" ["state"] "Gates by state";
    GATE_CLOSINGS: Counter "posthaste_gate_closings" ["reason"] "Gates that closed, or stayed closed for longer";
    GATE_WINDOW: Gauge "posthaste_gate_window_requests" ["gate"] "Requests that a gate lets through at once";
    GATE_IN_FLIGHT: Gauge "posthaste_gate_in_flight_requests" ["gate"] "Requests in flight through a gate";
    GATE_STATE: Gauge "posthaste_gate_state" ["gate", "state"] "1 for the state that a gate is in";
    DISABLED: Gauge "posthaste_disabled_endpoints" ["reason"] "Endpoints that are disabled";
    LIMIT_HELD: Counter "posthaste_limit_held_seconds" ["partner", "limit"]
        "Time for which a partner's limit held deliveries back";
    SOURCE_MESSAGES: Counter "posthaste_source_messages" ["source"] "Messages fetched from a source";
    SOURCE_REJECTED: Counter "posthaste_source_rejected_events" ["source"]
        "Events of a source that were kept as rejected";
    SOURCE_RECONNECTS: Counter "posthaste_source_reconnects" ["source"]
        "Connections to a source's broker made anew";
    SOURCE_LAG: Gauge "posthaste_source_lag_messages" ["source"] "Messages that wait at a source's broker";
    SOURCE_STATE: Gauge "posthaste_source_state" ["source", "state"] "1 for the state that a source is in";
    TRACE_SPANS: Counter "posthaste_trace_spans" ["result"] "Spans that were exported, or dropped";
    JOB_SUCCESS: Gauge "posthaste_job_last_success_timestamp_seconds" ["name"]
        "When a background job last succeeded (Unix time); 0 where it has not since the start";
    JOB_LAG: Gauge "posthaste_job_lag_seconds" ["name"]
        "How long ago a background job should have succeeded and did not; 0 where it is on time";
    JOB_ERRORS: Counter "posthaste_job_errors" ["name"] "Runs of a background job that failed";
    LOG_DROPPED: Counter "posthaste_log_dropped_lines" []
        "Log lines dropped because the reader of standard error was too slow";
    BUILD: Gauge "posthaste_build_info" ["version", "role"] "Which version runs in which role";
    PROCESS_CPU: Counter "process_cpu_seconds" [] "User and system time";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes" [] "Resident memory";
    PROCESS_FDS: Gauge "process_open_fds" [] "Open file descriptors";
    PROCESS_FDS_MAX: Gauge "process_max_fds" [] "Most file descriptors that may be open";
}

impl Family {
    /// The name as queries have it; a histogram's is the beginning of three.
    pub fn full_name(&self) -> String {
        let suffix = if matches!(self.kind, MetricType::Counter) { "_total" } else { "" };
        format!("{}{suffix}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documentation_has_them_all_and_no_others() {
        let documented: Vec<_> = include_str!("../../docs/metrics.md")
            .lines()
            .filter(|line| line.starts_with("| `posthaste_") || line.starts_with("| `process_"))
            .collect();
        let row = |family: &Family| {
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "–".to_owned() } else { labels.join(", ") };
            format!("| `{}` | {} | {labels} | {} |", family.full_name(), family.kind.as_str(), family.help)
        };
        assert_eq!(documented, ALL.iter().map(row).collect::<Vec<_>>());
    }

    #[test]
    fn every_name_follows_the_grammar() {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
        for family in ALL {
            let name = family.name;
            let words: Vec<_> = name.split('_').collect();
            assert!(words.iter().all(|word| is_word(word)), "{name}");
            assert!(!name.ends_with("_total"), "{name}: the encoder adds it");
            let (noun, unit) = match words.as_slice() {
                ["posthaste", noun @ .., unit] => (noun, unit),
                ["process", noun @ .., unit] => (noun, unit),
                _ => panic!("{name} is neither ours nor every process's"),
            };
            assert!(!noun.is_empty() && UNITS.contains(unit), "{name}: {unit} is no unit");
            assert!(family.labels.iter().all(|label| label.split('_').all(is_word)), "{name}");
            assert!(!family.help.is_empty() && !family.help.ends_with('.'), "{name}");
        }
        let names: BTreeSet<_> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len(), "no name twice");
        assert!(UNITS.is_sorted());
        let used = |unit: &&&str| ALL.iter().any(|family| family.name.ends_with(**unit));
        assert_eq!(UNITS.iter().filter(used).count(), UNITS.len(), "no unit that nobody has");
    }
}
