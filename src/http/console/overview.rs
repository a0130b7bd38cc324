//! The first page: how things stand, and who fails, worst first.

use std::cmp::Reverse;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::Console;
use super::api::at;
use super::chart::{CHART, Chart, SPARK};
use super::figures::{EndpointFigures, PartnerFigures, Report, age, millis};
use super::page::{Failure, Frame, Part, page, redirect};
use super::session::Visitor;
use super::sources::Source;
use super::words::{count, parse_utc, percent, rate, span};

/// How far back one may look, and what that is called.
const WINDOWS: [(&str, &str); 4] = [("15m", "15 min"), ("1h", "1 h"), ("6h", "6 h"), ("24h", "24 h")];
const DEFAULT_WINDOW: &str = "1h";
/// Most receivers in the table, the worst first.
const ROWS_MAX: usize = 50;
/// Most bars of what waits.
const BARS_MAX: usize = 4;

#[derive(Debug, Deserialize)]
struct Ready {
    reasons: Vec<String>,
    gates: Vec<Gate>,
    sources: Vec<Source>,
}

#[derive(Debug, Deserialize)]
struct Gate {
    gate: String,
    state: String,
    reason: Option<String>,
    opens_in_ms: Option<u64>,
    max_in_flight: u32,
    in_flight: u32,
}

impl Gate {
    fn name(&self) -> &str {
        if self.gate == "svix" { "Svix" } else { &self.gate }
    }

    fn link(&self) -> Option<String> {
        (self.gate != "svix").then(|| at(&["console", "endpoints", &self.gate]).to_link())
    }

    fn class(&self) -> &'static str {
        match self.state.as_str() {
            "open" => "good",
            "probing" => "warn",
            _ => "bad",
        }
    }

    fn words(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or_default().replace('_', " ");
        match self.opens_in_ms {
            Some(millis) => format!("{reason}; next try in {}", span(millis)),
            None => reason,
        }
    }
}

/// A receiver in the table.
struct Row {
    name: String,
    link: Option<String>,
    class: &'static str,
    state: String,
    detail: String,
    delivered: String,
    dead: u64,
    errors: String,
    errors_spark: Chart,
    p50: String,
    p99: String,
    latency_spark: Chart,
    waiting: String,
    oldest: String,
    /// Larger is worse.
    rank: (u8, u64, u64),
}

/// What waits for one receiver.
struct Bar {
    name: String,
    waiting: String,
    width: String,
}

struct Tiles {
    accepted: String,
    delivered: String,
    throughput: Chart,
    top_rate: String,
    p50: String,
    p99: String,
    latency: Chart,
    top_latency: String,
    error_rate: String,
    failed: String,
    dead: String,
    errors: Chart,
    backlog: String,
    oldest: String,
    bars: Vec<Bar>,
}

#[derive(Template)]
#[template(path = "console/overview.html")]
struct OverviewPage<'a> {
    frame: Frame<'a>,
    reasons: Vec<String>,
    gates: Vec<Gate>,
    sources: Vec<Source>,
    tiles: Tiles,
    rows: Vec<Row>,
    well: usize,
    window: &'static str,
    window_name: &'static str,
    windows: [(&'static str, &'static str); 4],
    here: String,
}

#[derive(Deserialize)]
pub(super) struct Asked {
    window: Option<String>,
}

/// `GET /console`.
pub(super) async fn show(
    State(console): State<Console>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Failure> {
    if !visitor.is_unbound() {
        // What tenants share is not shown to one of them.
        return Ok(redirect(Part::Events.path()));
    }
    let wanted = asked.window.as_deref().unwrap_or(DEFAULT_WINDOW);
    let known = WINDOWS.into_iter().find(|(window, _)| *window == wanted);
    let (window, window_name) = known.unwrap_or(WINDOWS[1]);
    let api = visitor.api(&console);
    let report: Report = api.get(&at(&["v1", "stats"]).with("window", window)).await?;
    let Ready { reasons, gates, sources } = api.get_whatever(&at(&["health", "ready"])).await?;
    let svix = report.svix.as_ref().map(Row::of_svix);
    let mut rows: Vec<_> = svix.into_iter().chain(report.partners.iter().map(Row::of_partner)).collect();
    rows.sort_by(|one, other| (Reverse(one.rank), &one.name).cmp(&(Reverse(other.rank), &other.name)));
    let well = rows.len().saturating_sub(ROWS_MAX);
    rows.truncate(ROWS_MAX);
    let shown = OverviewPage {
        reasons,
        gates,
        sources,
        tiles: Tiles::new(&report),
        rows,
        well,
        window,
        window_name,
        windows: WINDOWS,
        here: at(&["console"]).with("window", window).to_link(),
        frame: Frame::new(&visitor, Part::Overview, "Overview"),
    };
    Ok(page(&visitor, &shown))
}

/// What happened in each step. The last one is under way: it is drawn as if it went on as it began, or not at all where it has
/// only just begun.
#[expect(clippy::cast_precision_loss, reason = "figures for the eye")]
fn whole_steps(series: &[u64], step_s: u64, elapsed_s: u64) -> Vec<Option<f64>> {
    let mut points: Vec<_> = series.iter().map(|value| Some(*value as f64)).collect();
    if let Some(last) = points.last_mut() {
        let known = elapsed_s >= step_s / 6 || series.len() < 3;
        *last = last.filter(|_| known).map(|value| value * step_s as f64 / elapsed_s.clamp(1, step_s) as f64);
    }
    points
}

impl Row {
    fn of_svix(svix: &EndpointFigures) -> Self {
        let (class, state, severity) = svix.standing();
        let mut row = Self::new("Svix".into(), None, &svix.figures, svix.backlog, svix.oldest_age_s);
        row.set(class, state, severity, svix.gate_words());
        row
    }

    fn of_partner(partner: &PartnerFigures) -> Self {
        let link = Some(at(&["console", "partners", &partner.partner]).to_link());
        let name = partner.partner.clone();
        let mut row = Self::new(name, link, &partner.figures, partner.backlog, partner.oldest_age_s);
        let worst = partner.endpoints.iter().max_by_key(|endpoint| endpoint.standing().2);
        let (class, state, severity) = match worst {
            _ if partner.paused => ("warn", "paused".to_owned(), 2),
            // Of a list, only the partner's own figures have steps.
            Some(worst) => {
                let (worst, together) = (worst.standing(), partner.figures.lately().told());
                if worst.2 > together.2 { worst } else { together }
            }
            None => ("idle", "no endpoint".to_owned(), 0),
        };
        row.set(class, state, severity, worst.map(EndpointFigures::gate_words).unwrap_or_default());
        row
    }

    fn new(
        name: String,
        link: Option<String>,
        figures: &super::figures::Figures,
        backlog: u64,
        oldest_age_s: Option<f64>,
    ) -> Self {
        let series = &figures.series;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000")]
        let error_rank = (figures.error_rate.unwrap_or_default() * 1_000.0) as u64;
        Self {
            name,
            link,
            class: "idle",
            state: String::new(),
            detail: String::new(),
            delivered: count(figures.delivered),
            dead: figures.dead,
            errors: figures.error_rate.map_or_else(|| "–".into(), percent),
            errors_spark: Chart::new(SPARK, &[&series.error_rates()], 0.05),
            p50: millis(figures.p50_ms),
            p99: millis(figures.p99_ms),
            latency_spark: Chart::new(SPARK, &[&series.p99_ms], 1.0),
            waiting: count(backlog),
            oldest: age(oldest_age_s),
            rank: (0, error_rank, backlog),
        }
    }

    fn set(&mut self, class: &'static str, state: String, severity: u8, detail: String) {
        (self.class, self.state, self.detail) = (class, state, detail);
        self.rank.0 = severity;
    }
}

impl Tiles {
    fn new(report: &Report) -> Self {
        let whole = &report.whole;
        let series = &whole.figures.series;
        let step = report.step_s.max(1);
        // The last step is under way: what it had until now counts with the one before.
        let elapsed = parse_utc(&report.until).zip(parse_utc(&report.from)).map_or(step, |(until, from)| {
            let steps = whole.accepted_series.len().saturating_sub(1) as u64;
            (until.since(from).as_secs()).saturating_sub(steps * step)
        });
        #[expect(clippy::cast_precision_loss, reason = "figures for the eye")]
        let lately = |series: &[u64]| {
            let last: u64 = series.iter().rev().take(2).sum();
            let before = if series.len() > 1 { step } else { 0 };
            rate(last as f64 / (before + elapsed).max(1) as f64)
        };
        let per_step = |series: &[u64]| whole_steps(series, step, elapsed);
        let (accepted, delivered) = (per_step(&whole.accepted_series), per_step(&series.delivered));
        let throughput = Chart::new(CHART, &[&accepted, &delivered], 1.0);
        let latency = Chart::new(CHART, &[&series.p99_ms, &series.p50_ms], 1.0);
        let errors = Chart::new(CHART, &[&per_step(&series.failed)], 1.0);
        #[expect(clippy::cast_precision_loss, reason = "figures for the eye")]
        let top_rate = rate(throughput.top / step as f64);
        Self {
            accepted: lately(&whole.accepted_series),
            delivered: lately(&series.delivered),
            top_rate,
            throughput,
            p50: millis(whole.figures.p50_ms),
            p99: millis(whole.figures.p99_ms),
            top_latency: millis(Some(latency.top)),
            latency,
            error_rate: whole.figures.error_rate.map_or_else(|| "–".into(), percent),
            failed: count(whole.figures.failed),
            dead: count(whole.figures.dead),
            errors,
            backlog: count(whole.backlog),
            oldest: age(whole.oldest_age_s),
            bars: bars(report),
        }
    }
}

/// For whom most waits.
fn bars(report: &Report) -> Vec<Bar> {
    let partners = report.partners.iter().map(|partner| (partner.partner.clone(), partner.backlog));
    let svix = report.svix.iter().map(|svix| ("Svix".to_owned(), svix.backlog));
    let mut all: Vec<_> = svix.chain(partners).filter(|(_, waiting)| *waiting > 0).collect();
    all.sort_by(|one, other| (Reverse(one.1), &one.0).cmp(&(Reverse(other.1), &other.0)));
    all.truncate(BARS_MAX);
    let most = all.first().map_or(1, |(_, waiting)| *waiting);
    #[expect(clippy::cast_precision_loss, reason = "figures for the eye")]
    let width = |waiting: u64| format!("{:.1}", (waiting as f64 / most as f64 * 100.0).max(1.0));
    let bar = |(name, waiting)| Bar { name, waiting: count(waiting), width: width(waiting) };
    all.into_iter().map(bar).collect()
}
