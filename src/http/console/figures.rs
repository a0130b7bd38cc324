//! Figures as `/v1/stats` tells them.

use serde::Deserialize;

use super::words::span;

/// An error rate that is worth a look.
const MANY_ERRORS: f64 = 0.05;
/// One that says that next to nothing gets through.
const MOST_FAILS: f64 = 0.5;

#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub from: String,
    pub until: String,
    pub step_s: u64,
    pub whole: Whole,
    pub svix: Option<EndpointFigures>,
    pub partners: Vec<PartnerFigures>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Whole {
    pub backlog: u64,
    pub oldest_age_s: Option<f64>,
    pub accepted_series: Vec<u64>,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Debug, Deserialize)]
pub(super) struct PartnerFigures {
    pub partner: String,
    pub paused: bool,
    pub backlog: u64,
    pub oldest_age_s: Option<f64>,
    #[serde(flatten)]
    pub figures: Figures,
    pub endpoints: Vec<EndpointFigures>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointFigures {
    pub endpoint: String,
    state: String,
    failing_since: Option<String>,
    gate: Option<GateFigures>,
    pub backlog: u64,
    pub oldest_age_s: Option<f64>,
    #[serde(flatten)]
    pub figures: Figures,
}

#[derive(Debug, Deserialize)]
struct GateFigures {
    state: String,
    reason: Option<String>,
    opens_in_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Figures {
    pub delivered: u64,
    pub failed: u64,
    pub dead: u64,
    pub error_rate: Option<f64>,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    #[serde(default)]
    pub series: Series,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Series {
    pub delivered: Vec<u64>,
    pub failed: Vec<u64>,
    pub p50_ms: Vec<Option<f64>>,
    pub p99_ms: Vec<Option<f64>>,
}

impl Series {
    /// The share of failures, by step; nothing where nothing was tried.
    #[expect(clippy::cast_precision_loss, reason = "a figure for the eye")]
    pub fn error_rates(&self) -> Vec<Option<f64>> {
        let share = |(delivered, failed): (&u64, &u64)| {
            let tried = delivered + failed;
            (tried > 0).then(|| *failed as f64 / tried as f64)
        };
        self.delivered.iter().zip(&self.failed).map(share).collect()
    }
}

impl EndpointFigures {
    /// How it stands: how that looks, what it is called, and how bad it is, from 0.
    pub fn standing(&self) -> (&'static str, String, u8) {
        let gate = self.gate.as_ref().filter(|gate| gate.state != "open");
        let rate = self.figures.error_rate.unwrap_or_default();
        match (self.state.as_str(), gate) {
            ("disabled", _) => ("bad", "disabled".into(), 5),
            ("unreadable", _) => ("bad", "secret does not open".into(), 5),
            (_, Some(gate)) if gate.reason.as_deref() == Some("throttled") => ("warn", "throttled".into(), 3),
            (_, Some(gate)) => ("bad", format!("left alone, {}", gate.state), 5),
            _ if self.failing_since.is_some() || rate >= MOST_FAILS => ("bad", "failing".into(), 4),
            _ if rate >= MANY_ERRORS => ("warn", "errors".into(), 3),
            ("unproven", _) => ("idle", "not proven yet".into(), 1),
            _ if self.figures.delivered > 0 => ("good", "well".into(), 1),
            _ => ("idle", "quiet".into(), 0),
        }
    }

    /// What its gate says, where it is not open.
    pub fn gate_words(&self) -> String {
        let Some(gate) = self.gate.as_ref().filter(|gate| gate.state != "open") else {
            return String::new();
        };
        let reason = gate.reason.as_deref().unwrap_or_default().replace('_', " ");
        match gate.opens_in_ms {
            Some(millis) => format!("{reason}, next try in {}", span(millis)),
            None => reason,
        }
    }
}

/// Milliseconds in the unit that reads best.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "times are positive and not that long"
)]
pub(super) fn millis(millis: Option<f64>) -> String {
    match millis {
        None => "–".into(),
        Some(millis) if millis < 1.0 => "<1 ms".into(),
        Some(millis) => span(millis as u64),
    }
}

/// How long ago, from seconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ages are positive and not that long"
)]
pub(super) fn age(seconds: Option<f64>) -> String {
    seconds.map(|seconds| span((seconds * 1_000.0) as u64)).unwrap_or_default()
}
