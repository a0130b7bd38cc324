//! The figures, as JSON and for people.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::limits::{Limits, per_second};
use super::load::Posted;
use super::process::Usage;
use super::tally::{Arrivals, Tally, percentile};

/// What a run is about: the same in all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Subject {
    pub profile: super::profile::Profile,
    /// `sqlite`, `postgres`, or `remote` where the relay was there before.
    pub ledger: &'static str,
    pub key_order: super::events::KeyOrder,
    /// Events put in and delivered before the measurement.
    pub prefilled_events: u64,
    /// Deliveries that wait for a paused partner meanwhile.
    pub backlog_deliveries: u64,
    pub events: u64,
    pub deliveries_per_event: usize,
    pub batch: u64,
    /// Events that a request repeats, beside those of `batch`.
    pub duplicates: u64,
    pub producers: u64,
    pub payload_bytes: usize,
    pub tenants: u64,
    /// 0: as fast as it goes.
    pub rate: u64,
    pub cores: usize,
    pub version: &'static str,
}

/// One round's figures.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    /// Events in the ledger before the measurement.
    events_before: Option<u64>,
    lost: u64,
    doubled: u64,
    unexpected: u64,
    signatures_verified: u64,
    signatures_bad: u64,
    accept: Accept,
    delivered: Delivered,
    relay: RelayFigures,
    start_to_first_202_ms: Option<f64>,
    idle: Idle,
    limits: LimitFigures,
    ratios: Ratios,
}

#[derive(Debug, Serialize)]
struct Accept {
    events_per_s: f64,
    requests_per_s: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    refusals: u64,
}

#[derive(Debug, Serialize)]
struct Delivered {
    per_s: f64,
    /// From the 202 to the arrival.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// Of the relay's process. All absent where it is not ours, or the system does not tell.
#[derive(Debug, Serialize)]
struct RelayFigures {
    cpu_s: Option<f64>,
    cpu_us_per_event: Option<f64>,
    peak_rss_bytes: Option<u64>,
    /// By the process, from `/proc/PID/io`: absent on Postgres, where the server writes.
    written_bytes_per_event: Option<f64>,
    /// Of the SQLite file and its WAL.
    ledger_growth_bytes_per_event: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Idle {
    pub cpu_percent_of_a_core: Option<f64>,
    pub rss_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LimitFigures {
    fsync_per_s: f64,
    fsync_p50_us: u32,
    fsync_p99_us: u32,
    bare_client_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Ratios {
    delivered_to_bare_client: Option<f64>,
    accept_requests_to_bare_client: Option<f64>,
    accept_requests_to_fsync: Option<f64>,
    accept_p99_to_fsync_p99: Option<f64>,
}

/// What a round has measured.
pub(super) struct Measured<'a> {
    pub events_before: Option<u64>,
    pub tally: &'a Tally,
    pub posted: &'a Posted,
    /// Of our own relay, before and after the load.
    pub usage: Option<(Usage, Usage)>,
    pub on_sqlite: bool,
    pub ledger_growth_bytes: Option<u64>,
    pub first_202: Option<Duration>,
    pub idle: Idle,
    pub limits: Limits,
}

impl Round {
    pub fn new(measured: Measured<'_>) -> Self {
        let Measured { tally, posted, limits, .. } = measured;
        let Arrivals { lost, doubled, unexpected, verified, bad_signatures } = tally.arrivals();
        let accept = accept(tally.events(), posted);
        let waits = tally.waits_us();
        let delivered = Delivered {
            per_s: rounded(per_second(tally.unique(), tally.until_last_arrival())),
            p50_ms: percentile(&waits, 50).map(millis),
            p99_ms: percentile(&waits, 99).map(millis),
        };
        let ratio = |figure: f64, limit: f64| (limit > 0.0).then(|| rounded(figure / limit));
        let fsync_p99_ms = f64::from(limits.fsync_p99_us) / 1_000.0;
        let ratios = Ratios {
            delivered_to_bare_client: ratio(delivered.per_s, limits.bare_client_per_s),
            accept_requests_to_bare_client: ratio(accept.requests_per_s, limits.bare_client_per_s),
            accept_requests_to_fsync: ratio(accept.requests_per_s, limits.fsync_per_s),
            accept_p99_to_fsync_p99: accept.p99_ms.and_then(|p99| ratio(p99, fsync_p99_ms)),
        };
        Self {
            events_before: measured.events_before,
            lost,
            doubled,
            unexpected,
            signatures_verified: verified,
            signatures_bad: bad_signatures,
            relay: relay_figures(&measured),
            start_to_first_202_ms: measured.first_202.map(|wait| rounded(wait.as_secs_f64() * 1_000.0)),
            idle: measured.idle,
            limits: LimitFigures {
                fsync_per_s: rounded(limits.fsync_per_s),
                fsync_p50_us: limits.fsync_p50_us,
                fsync_p99_us: limits.fsync_p99_us,
                bare_client_per_s: rounded(limits.bare_client_per_s),
            },
            accept,
            delivered,
            ratios,
        }
    }

    /// Whether every event arrived once, and signed.
    const fn is_good(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.unexpected == 0 && self.signatures_bad == 0
    }
}

fn accept(events: u64, posted: &Posted) -> Accept {
    Accept {
        events_per_s: rounded(per_second(events, posted.took)),
        requests_per_s: rounded(per_second(posted.waits_us.len() as u64, posted.took)),
        p50_ms: percentile(&posted.waits_us, 50).map(millis),
        p99_ms: percentile(&posted.waits_us, 99).map(millis),
        refusals: posted.refusals,
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes and events of a run are far below 2^53")]
fn relay_figures(measured: &Measured<'_>) -> RelayFigures {
    let events = measured.tally.events() as f64;
    let (before, after) = measured.usage.unwrap_or_default();
    let cpu_s = after.cpu_s.zip(before.cpu_s).map(|(after, before)| after - before);
    let written = after.written_bytes.zip(before.written_bytes);
    let written = written.filter(|_| measured.on_sqlite).map(|(after, before)| after.saturating_sub(before));
    let growth = measured.ledger_growth_bytes;
    RelayFigures {
        cpu_s: cpu_s.map(rounded),
        cpu_us_per_event: cpu_s.map(|cpu| rounded(cpu * 1e6 / events)),
        peak_rss_bytes: after.peak_rss_bytes,
        written_bytes_per_event: written.map(|bytes| rounded(bytes as f64 / events)),
        ledger_growth_bytes_per_event: growth.map(|bytes| rounded(bytes as f64 / events)),
    }
}

/// To three decimals: what lies behind is noise.
pub(super) fn rounded(figure: f64) -> f64 {
    (figure * 1_000.0).round() / 1_000.0
}

fn millis(micros: u32) -> f64 {
    f64::from(micros) / 1_000.0
}

/// All rounds, and the median of each figure.
pub(super) struct Report {
    subject: Subject,
    rounds: Vec<Value>,
    median: Value,
    pub good: bool,
}

impl Report {
    pub fn new(subject: Subject, rounds: &[Round]) -> anyhow::Result<Self> {
        let good = rounds.iter().all(Round::is_good);
        let rounds: Result<Vec<_>, _> = rounds.iter().map(serde_json::to_value).collect();
        let rounds = rounds?;
        let median = median(&rounds.iter().collect::<Vec<_>>());
        Ok(Self { subject, rounds, median, good })
    }

    pub fn json(&self) -> anyhow::Result<String> {
        let Self { subject, rounds, median, good } = self;
        let report =
            serde_json::json!({ "subject": subject, "good": good, "median": median, "rounds": rounds });
        Ok(serde_json::to_string_pretty(&report)?)
    }

    /// The medians, a line a figure, ratios first.
    pub fn text(&self) -> String {
        let mut text = self.heading();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<36}{value:>14}");
        };
        for (name, pointer, unit) in LINES {
            match self.median.pointer(pointer) {
                None | Some(Value::Null) => line(name, "-".to_owned()),
                Some(value) => line(name, shown(value, *unit)),
            }
        }
        let of_all = |field: &str| self.rounds.iter().filter_map(|round| round[field].as_u64()).sum::<u64>();
        for (name, field) in [
            ("lost", "lost"),
            ("doubled", "doubled"),
            ("out of signature", "signatures_bad"),
            ("unexpected", "unexpected"),
        ] {
            line(name, of_all(field).to_string());
        }
        text
    }

    fn heading(&self) -> String {
        let Subject { profile, ledger, key_order, events, batch, producers, payload_bytes, tenants, .. } =
            &self.subject;
        let (prefilled, backlog) = (self.subject.prefilled_events, self.subject.backlog_deliveries);
        let rate = match self.subject.rate {
            0 => "as fast as it goes".to_owned(),
            rate => format!("at {rate} events/s"),
        };
        let repeated = match self.subject.duplicates {
            0 => String::new(),
            count => format!(" and {count} that came before"),
        };
        let name = format!("{profile:?}").to_lowercase();
        let order = format!("{key_order:?}").to_lowercase();
        format!(
            "{name} on {ledger}, {} rounds (medians), {} cores for relay, load and sink together\n\
             {events} events of {payload_bytes} bytes, {batch} a request{repeated}, {producers} producers, {tenants} tenants, \
             {rate}; ids in order of {order}, {prefilled} events in the ledger before, {backlog} deliveries waiting\n",
            self.rounds.len(),
            self.subject.cores,
        )
    }
}

#[derive(Clone, Copy)]
enum Unit {
    Ratio,
    PerSecond,
    Millis,
    Micros,
    Seconds,
    Percent,
    Bytes,
    MiB,
}

const LINES: &[(&str, &str, Unit)] = &[
    ("delivered / bare client", "/ratios/delivered_to_bare_client", Unit::Ratio),
    ("accept requests / bare client", "/ratios/accept_requests_to_bare_client", Unit::Ratio),
    ("accept requests / fsync", "/ratios/accept_requests_to_fsync", Unit::Ratio),
    ("accept p99 / fsync p99", "/ratios/accept_p99_to_fsync_p99", Unit::Ratio),
    ("accepted events", "/accept/events_per_s", Unit::PerSecond),
    ("accepted requests", "/accept/requests_per_s", Unit::PerSecond),
    ("accept p50", "/accept/p50_ms", Unit::Millis),
    ("accept p99", "/accept/p99_ms", Unit::Millis),
    ("delivered", "/delivered/per_s", Unit::PerSecond),
    ("accept to delivered p50", "/delivered/p50_ms", Unit::Millis),
    ("accept to delivered p99", "/delivered/p99_ms", Unit::Millis),
    ("relay CPU", "/relay/cpu_s", Unit::Seconds),
    ("relay CPU per event", "/relay/cpu_us_per_event", Unit::Micros),
    ("relay peak RSS", "/relay/peak_rss_bytes", Unit::MiB),
    ("written per event", "/relay/written_bytes_per_event", Unit::Bytes),
    ("ledger growth per event", "/relay/ledger_growth_bytes_per_event", Unit::Bytes),
    ("start to first 202", "/start_to_first_202_ms", Unit::Millis),
    ("idle CPU of a core", "/idle/cpu_percent_of_a_core", Unit::Percent),
    ("idle RSS", "/idle/rss_bytes", Unit::MiB),
    ("bare client", "/limits/bare_client_per_s", Unit::PerSecond),
    ("fsync of 4 KiB", "/limits/fsync_per_s", Unit::PerSecond),
    ("fsync p50", "/limits/fsync_p50_us", Unit::Micros),
    ("fsync p99", "/limits/fsync_p99_us", Unit::Micros),
];

fn shown(value: &Value, unit: Unit) -> String {
    let figure = value.as_f64().unwrap_or_default();
    match unit {
        Unit::Ratio => format!("{figure:.3}"),
        Unit::PerSecond => format!("{figure:.0} /s"),
        Unit::Millis => format!("{figure:.2} ms"),
        Unit::Micros => format!("{figure:.1} us"),
        Unit::Seconds => format!("{figure:.2} s"),
        Unit::Percent => format!("{figure:.2} %"),
        Unit::Bytes => format!("{figure:.0} bytes"),
        Unit::MiB => format!("{:.1} MiB", figure / f64::from(1 << 20)),
    }
}

/// The median of each number in values of one shape; of an even count the lower of the two in the middle. What is
/// absent in one round is absent.
fn median(values: &[&Value]) -> Value {
    match values {
        [Value::Object(first), ..] => {
            let of = |key: &String| median(&values.iter().map(|value| &value[key]).collect::<Vec<_>>());
            Value::Object(first.keys().map(|key| (key.clone(), of(key))).collect::<Map<_, _>>())
        }
        _ => {
            let mut numbers: Vec<_> = values.iter().filter(|value| value.is_number()).collect();
            if numbers.len() < values.len() || numbers.is_empty() {
                return Value::Null;
            }
            let figure = |value: &&&Value| value.as_f64().unwrap_or_default();
            numbers.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
            (**numbers[(numbers.len() - 1) / 2]).clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_median_is_taken_of_each_figure() {
        let rounds = [
            json!({"a": {"b": 3, "c": 1.5}, "d": null}),
            json!({"a": {"b": 1, "c": 2.5}, "d": 1}),
            json!({"a": {"b": 2, "c": 0.5}, "d": 2}),
        ];
        let all: Vec<_> = rounds.iter().collect();
        assert_eq!(median(&all), json!({"a": {"b": 2, "c": 1.5}, "d": null}));
        assert_eq!(median(&all[..1]), rounds[0]);
    }

    #[test]
    fn every_line_has_its_figure() {
        let tally = Tally::new(
            super::super::events::Ids::new(super::super::events::KeyOrder::Time, 1),
            1,
            1,
            std::sync::Arc::new(crate::app::SystemClock::new()),
        );
        let limits = Limits { fsync_per_s: 1.0, fsync_p50_us: 1, fsync_p99_us: 1, bare_client_per_s: 1.0 };
        let round = Round::new(Measured {
            events_before: None,
            tally: &tally,
            posted: &Posted::default(),
            usage: None,
            on_sqlite: true,
            ledger_growth_bytes: None,
            first_202: None,
            idle: Idle::default(),
            limits,
        });
        let value = serde_json::to_value(round).expect("JSON");
        for (name, pointer, _) in LINES {
            assert!(value.pointer(pointer).is_some(), "{name}");
        }
    }
}
