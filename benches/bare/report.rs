//! What was measured, and how it is told.

use serde::Serialize;
use serde_json::json;

use crate::Args;

/// The figures of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// POSTs per second of the client alone against the sink.
    pub client_per_second: f64,
    /// Events per second until the last 202.
    pub accepted_per_second: f64,
    /// Events per second until the sink had the last.
    pub delivered_per_second: f64,
    /// Events per second until the last was settled durably.
    pub settled_per_second: f64,
    /// From a request's beginning to its 202.
    pub accept_p50_ms: f64,
    /// The same, 99 of 100.
    pub accept_p99_ms: f64,
    /// CPU time of the relaying process; `None` where it can't be read.
    pub relay_cpu_us_per_event: Option<f64>,
    /// Events that arrived more than once.
    pub doubled: u64,
}

impl Run {
    /// Delivered per second as a part of what the client alone sends.
    fn ratio_to_client(&self) -> f64 {
        self.delivered_per_second / self.client_per_second
    }
}

/// The middle one of each figure.
fn median(runs: &[Run]) -> Run {
    let of = |figure: &dyn Fn(&Run) -> f64| {
        let mut figures: Vec<_> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or_default()
    };
    let cpu = |run: &Run| run.relay_cpu_us_per_event;
    Run {
        client_per_second: of(&|run| run.client_per_second),
        accepted_per_second: of(&|run| run.accepted_per_second),
        delivered_per_second: of(&|run| run.delivered_per_second),
        settled_per_second: of(&|run| run.settled_per_second),
        accept_p50_ms: of(&|run| run.accept_p50_ms),
        accept_p99_ms: of(&|run| run.accept_p99_ms),
        relay_cpu_us_per_event: runs
            .iter()
            .all(|run| cpu(run).is_some())
            .then(|| of(&|run| cpu(run).unwrap_or_default())),
        doubled: runs.iter().map(|run| run.doubled).max().unwrap_or_default(),
    }
}

/// One line for a run.
pub fn print_run(number: u32, run: &Run) {
    print_line(&format!("run {number}"), run);
}

fn print_line(name: &str, run: &Run) {
    let cpu = run.relay_cpu_us_per_event.map_or("-".to_owned(), |cpu| format!("{cpu:.1}"));
    println!(
        "{name:8} accepted {:>7.0}/s  delivered {:>7.0}/s  settled {:>7.0}/s  accept p50 {:>6.2} ms  p99 {:>6.2} ms  \
         cpu {cpu} us/event  client {:>7.0}/s  ratio {:.2}  doubled {}",
        run.accepted_per_second,
        run.delivered_per_second,
        run.settled_per_second,
        run.accept_p50_ms,
        run.accept_p99_ms,
        run.client_per_second,
        run.ratio_to_client(),
        run.doubled,
    );
}

/// The medians, and what they are of.
pub fn print_median(args: &Args, runs: &[Run]) {
    print_line("median", &median(runs));
    println!(
        "{} events, {} per request, {} producers, {} in flight, {} keys, {} random-keyed events in before, {}",
        args.events,
        args.batch,
        args.producers,
        args.in_flight,
        args.keys.name(),
        args.prefill,
        database_name(args),
    );
}

/// All of it as one JSON object.
pub fn print_json(args: &Args, runs: &[Run]) {
    let median = median(runs);
    let report = json!({
        "events": args.events,
        "batch": args.batch,
        "producers": args.producers,
        "in_flight": args.in_flight,
        "keys": args.keys.name(),
        "prefill": args.prefill,
        "database": database_name(args),
        "median": median,
        "delivered_to_client_ratio": median.ratio_to_client(),
        "runs": runs,
    });
    println!("{report:#}");
}

/// Which database it is. Its URL may hold a password.
fn database_name(args: &Args) -> &'static str {
    if args.database.as_ref().is_some_and(|url| !url.starts_with("sqlite:")) { "postgres" } else { "sqlite" }
}
