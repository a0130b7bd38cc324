//! Adding minutes up: sums of the window, and points of series.
//!
//! Minutes come in order, so that of each series only the step that is being added up has sums in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Figures, Series, rounded};
use crate::directory::KnownEndpoint;
use crate::domain::clock::Timestamp;
use crate::domain::tenant::ENDPOINT_PREFIX;
use crate::ledger::StatRow;
use crate::stats::meters::{OTHER, ResultClass, SVIX, Sums};
use crate::stats::rows::{Counted, WHOLE};
use crate::stats::window::Window;

/// What is added up.
pub(super) struct Wanted<'a> {
    pub window: Window,
    /// One partner alone, with series of its endpoints.
    pub partner: Option<&'a str>,
    /// Whether a subject may be told of.
    pub seen: &'a (dyn Fn(&str) -> bool + Sync),
}

/// Sums of the window so far.
pub(super) struct Gathered<'a> {
    from_ms: i64,
    step_ms: i64,
    points: usize,
    partner: Option<&'a str>,
    seen: &'a (dyn Fn(&str) -> bool + Sync),
    /// By subject.
    subjects: HashMap<String, Gathering>,
    /// By partner, over those of its endpoints that may be told of.
    partners: HashMap<Arc<str>, Gathering>,
    accepted: Vec<u64>,
}

/// Sums of one subject so far.
#[derive(Default)]
struct Gathering {
    partner: Option<Arc<str>>,
    sums: Sums,
    /// What is being added up for a point, and for which; `None` where no series is wanted.
    step: Option<(usize, Box<Sums>)>,
    series: Series,
}

impl<'a> Gathered<'a> {
    pub fn new(wanted: &Wanted<'a>, now: Timestamp) -> Self {
        let points = usize::try_from(wanted.window.points()).unwrap_or(1);
        Self {
            from_ms: wanted.window.begins_at(now).as_millis(),
            step_ms: wanted.window.step_ms(),
            points,
            partner: wanted.partner,
            seen: wanted.seen,
            subjects: HashMap::new(),
            partners: HashMap::new(),
            accepted: vec![0; points],
        }
    }

    pub fn take_row(&mut self, row: StatRow) {
        let minute = row.minute;
        if let Some(counted) = Counted::read(row) {
            self.take(minute, counted);
        }
    }

    pub fn take(&mut self, minute: Timestamp, counted: Counted) {
        let Ok(step) = usize::try_from((minute.as_millis() - self.from_ms).div_euclid(self.step_ms)) else {
            return;
        };
        // A node whose clock is ahead: its figures are of now.
        let step = step.min(self.points - 1);
        let is_whole = counted.subject == WHOLE;
        let other_partners = self.partner.is_some_and(|only| only != counted.partner);
        if !(self.seen)(&counted.subject) || (other_partners && !is_whole) {
            return;
        }
        if is_whole {
            self.accepted[step] += counted.accepted;
        }
        let partner: Arc<str> = counted.partner.as_str().into();
        let is_endpoint = counted.subject.starts_with(ENDPOINT_PREFIX);
        if is_endpoint {
            let gathering = self.partners.entry(partner.clone()).or_default();
            gathering.add(step, &counted.sums, true, self.points);
        }
        let with_series = !is_endpoint || self.partner.is_some();
        let gathering = self.subjects.entry(counted.subject).or_default();
        gathering.add(step, &counted.sums, with_series, self.points);
        gathering.partner = Some(partner);
    }

    /// Endpoints that something was sent to and that are not known any more.
    pub fn gone(&self, known: &HashMap<Arc<str>, KnownEndpoint<'_>>) -> Vec<Arc<str>> {
        let named = |subject: &&String| ![WHOLE, SVIX, OTHER].contains(&subject.as_str());
        let gone = self.subjects.keys().filter(named).filter(|subject| !known.contains_key(subject.as_str()));
        gone.map(|subject| subject.as_str().into()).collect()
    }

    /// The figures of a subject, and whose it is; once.
    pub fn endpoint(&mut self, subject: &str) -> (Option<Arc<str>>, Figures) {
        let gathering = self.subjects.remove(subject).unwrap_or_default();
        (gathering.partner.clone(), gathering.figures(self.points))
    }

    /// The figures of a partner; once.
    pub fn partner(&mut self, id: &str) -> Figures {
        self.partners.remove(id).unwrap_or_default().figures(self.points)
    }

    /// Events that were recorded, and by step.
    pub fn accepted(&mut self) -> (u64, Vec<u64>) {
        (self.accepted.iter().sum(), std::mem::take(&mut self.accepted))
    }
}

impl Gathering {
    fn add(&mut self, step: usize, sums: &Sums, with_series: bool, points: usize) {
        self.sums.add(sums);
        if !with_series {
            return;
        }
        match &mut self.step {
            // An older one only where clocks differ by more than a step: it belongs to the one that is open.
            Some((current, open)) if step <= *current => open.add(sums),
            _ => {
                self.close_step(points);
                self.step = Some((step, Box::new(sums.clone())));
            }
        }
    }

    /// Makes the step that was added up a point.
    fn close_step(&mut self, points: usize) {
        let Some((step, sums)) = self.step.take() else { return };
        let series = &mut self.series;
        if series.delivered.is_empty() {
            series.delivered = vec![0; points];
            series.failed = vec![0; points];
            series.p50_ms = vec![None; points];
            series.p99_ms = vec![None; points];
        }
        series.delivered[step] = sums.of(ResultClass::Success);
        series.failed[step] = sums.failed();
        series.p50_ms[step] = sums.latencies.quantile_ms(0.5).map(rounded);
        series.p99_ms[step] = sums.latencies.quantile_ms(0.99).map(rounded);
    }

    fn figures(mut self, points: usize) -> Figures {
        self.close_step(points);
        let (sums, series) = (self.sums, self.series);
        let (delivered, failed) = (sums.of(ResultClass::Success), sums.failed());
        #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
        let error_rate = failed as f64 / (delivered + failed).max(1) as f64;
        let results: BTreeMap<_, _> =
            ResultClass::ALL.into_iter().map(|class| (class.as_str(), sums.of(class))).collect();
        let quantile = |share| sums.latencies.quantile_ms(share).map(rounded);
        Figures {
            delivered,
            failed,
            throttled: sums.of(ResultClass::Throttled),
            dead: sums.dead,
            error_rate: (delivered + failed > 0).then_some((error_rate * 1e6).round() / 1e6),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            results: results.into_iter().filter(|(_, count)| *count > 0).collect(),
            series,
        }
    }
}
