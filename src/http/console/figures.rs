//! Figures as `/v1/stats` tells them.

use serde::Deserialize;

use super::words::span;

/// An error rate that is worth a look.
const MANY_ERRORS: f64 = 0.05;

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

/// What attempts came to, lately: how that looks, what it is called, and how bad it is, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lately(&'static str, &'static str, u8);

const QUIET: Lately = Lately("idle", "quiet", 0);
const WELL: Lately = Lately("good", "well", 1);
const ERRORS: Lately = Lately("warn", "errors", 3);
const FAILING: Lately = Lately("bad", "failing", 4);

impl Lately {
    pub fn told(self) -> (&'static str, String, u8) {
        (self.0, self.1.to_owned(), self.2)
    }
}

impl Figures {
    /// What attempts came to in the last steps in which there were any; in the whole window where no steps are told.
    /// Where the very last brought nothing but failures, nothing gets through.
    #[expect(clippy::cast_precision_loss, reason = "a figure for the eye")]
    pub fn lately(&self) -> Lately {
        let steps = self.series.delivered.iter().copied().zip(self.series.failed.iter().copied());
        let mut steps: Vec<_> =
            steps.rev().filter(|(delivered, failed)| delivered + failed > 0).take(3).collect();
        if steps.is_empty() && self.delivered + self.failed > 0 {
            steps.push((self.delivered, self.failed));
        }
        let (delivered, failed) = steps.iter().fold((0, 0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        match steps.first() {
            None => QUIET,
            Some((0, _)) => FAILING,
            _ if failed as f64 >= MANY_ERRORS * (delivered + failed) as f64 => ERRORS,
            _ => WELL,
        }
    }
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
        match (self.state.as_str(), gate) {
            ("disabled", _) => ("bad", "disabled".into(), 5),
            ("unreadable", _) => ("bad", "secret does not open".into(), 5),
            (_, Some(gate)) if gate.reason.as_deref() == Some("throttled") => ("warn", "throttled".into(), 3),
            (_, Some(gate)) => ("bad", format!("left alone, {}", gate.state), 5),
            ("unproven", _) => ("idle", "not proven yet".into(), 1),
            // Of the last reading of who is who, which may be from before the last success.
            _ if self.failing_since.is_some() && self.figures.delivered == 0 => FAILING.told(),
            _ => self.figures.lately().told(),
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(&[], &[], QUIET)]
    #[case::all_well(&[5, 0, 7], &[0, 0, 0], WELL)]
    #[case::a_few(&[100, 90, 100], &[0, 10, 1], WELL)]
    #[case::many(&[100, 90, 80], &[0, 10, 20], ERRORS)]
    #[case::broken_for_a_while(&[100, 0, 0], &[0, 4, 0], FAILING)]
    #[case::mended(&[0, 0, 1], &[40, 40, 40], ERRORS)]
    #[case::mended_long_ago(&[0, 9, 9, 9], &[40, 0, 0, 0], WELL)]
    fn what_came_last_says_how_it_stands(
        #[case] delivered: &[u64],
        #[case] failed: &[u64],
        #[case] told: Lately,
    ) {
        let series = Series { delivered: delivered.into(), failed: failed.into(), ..Series::default() };
        let figures = Figures {
            delivered: 0,
            failed: 0,
            dead: 0,
            error_rate: None,
            p50_ms: None,
            p99_ms: None,
            series,
        };
        assert_eq!(figures.lately(), told);
    }
}
