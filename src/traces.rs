//! Spans of what is done with an event: taken in, committed, sent. Handed to an OpenTelemetry collector.
//!
//! Recorded by hand and not through [`tracing`]: a span there costs every event its share, whether anybody records it or
//! not. Here an event that belongs to no recorded trace costs a look at a pointer. What the collector does not take is
//! dropped and counted; nothing ever waits for it.

mod export;
mod otlp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::export::Exporter;
use crate::config::ExportSettings;
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::delivery::{Delivery, Outcome};
use crate::domain::trace::TraceContext;
use crate::stats::ResultClass;

/// Spans that wait for their export; further ones are dropped.
const QUEUE_LIMIT: usize = 4_096;

/// What a span is of (OpenTelemetry, "SpanKind").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
}

/// A span that has ended.
#[derive(Debug)]
struct Ended {
    context: TraceContext,
    parent: Option<u64>,
    name: &'static str,
    kind: Kind,
    began_at: Timestamp,
    took_ns: u64,
    attributes: Vec<(&'static str, Value)>,
    /// What went wrong.
    error: Option<String>,
}

/// Records spans, or none. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer {
    recorder: Option<Arc<Recorder>>,
}

struct Recorder {
    queue: mpsc::Sender<Ended>,
    exported: AtomicU64,
    dropped: AtomicU64,
    sample_ratio: f64,
    clock: Arc<dyn Clock>,
}

impl Tracer {
    /// A tracer that exports as `settings` say, and the task that does so until its token is cancelled. One that records
    /// nothing where there are none.
    ///
    /// # Errors
    /// No CA certificates, or a header that is none: one line.
    pub fn new(
        settings: Option<ExportSettings>,
        clock: &Arc<dyn Clock>,
    ) -> Result<(Self, Option<ExportTask>), String> {
        let Some(settings) = settings else { return Ok((Self::default(), None)) };
        let (queue, ended) = mpsc::channel(QUEUE_LIMIT);
        let recorder = Arc::new(Recorder {
            queue,
            exported: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            sample_ratio: settings.sample_ratio,
            clock: clock.clone(),
        });
        let exporter = Exporter::new(settings)?;
        let task = ExportTask { exporter, ended, recorder: recorder.clone() };
        Ok((Self { recorder: Some(recorder) }, Some(task)))
    }

    /// Spans that were exported, and dropped; `None` where none are recorded.
    pub fn counts(&self) -> Option<(u64, u64)> {
        let recorder = self.recorder.as_ref()?;
        Some((recorder.exported.load(Ordering::Relaxed), recorder.dropped.load(Ordering::Relaxed)))
    }

    /// Whether any span is recorded.
    pub const fn is_on(&self) -> bool {
        self.recorder.is_some()
    }

    /// Events of one trace are taken in: those of `parent`, or a new trace where that is worth recording.
    pub fn accept(&self, parent: Option<&TraceContext>) -> Option<Span> {
        let recorder = self.recorder.as_ref()?;
        match parent {
            Some(parent) => recorder.begin(parent, "accept", Kind::Server),
            None if recorder.clock.chance() < recorder.sample_ratio => {
                let context = TraceContext::root(recorder.clock.random().max(1), recorder.span_id());
                Some(recorder.open(context, None, "accept", Kind::Server))
            }
            None => None,
        }
    }

    /// An attempt of a delivery begins.
    pub fn attempt(&self, delivery: &Delivery) -> Option<Span> {
        let parent = delivery.trace.as_deref()?;
        let mut span = self.recorder.as_ref()?.begin(parent, "attempt", Kind::Client)?;
        span.text("posthaste.event.id", &delivery.identity.id);
        span.text("posthaste.event.type", &delivery.event_type);
        span.text("posthaste.tenant", &delivery.identity.tenant);
        span.text("posthaste.destination", &delivery.lane.destination.to_string());
        span.number("posthaste.attempt", delivery.attempt);
        Some(span)
    }
}

impl Recorder {
    fn begin(self: &Arc<Self>, parent: &TraceContext, name: &'static str, kind: Kind) -> Option<Span> {
        // What its producer does not record is not recorded here (parent-based sampling).
        parent
            .is_sampled()
            .then(|| self.open(parent.with_span(self.span_id()), Some(parent.span_id), name, kind))
    }

    fn open(
        self: &Arc<Self>,
        context: TraceContext,
        parent: Option<u64>,
        name: &'static str,
        kind: Kind,
    ) -> Span {
        let ended = Ended {
            context,
            parent,
            name,
            kind,
            began_at: self.clock.now(),
            took_ns: 0,
            attributes: Vec::new(),
            error: None,
        };
        Span { ended: Some(ended), began: self.clock.moment(), recorder: self.clone() }
    }

    fn span_id(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is as random")]
        let half = self.clock.random() as u64;
        half.max(1)
    }
}

/// A span under way. It ends when it is dropped.
pub struct Span {
    /// `None` once it is handed on.
    ended: Option<Ended>,
    began: Moment,
    recorder: Arc<Recorder>,
}

impl Span {
    /// What comes next is a child of this one.
    pub fn context(&self) -> Option<&TraceContext> {
        self.ended.as_ref().map(|span| &span.context)
    }

    /// A part of it begins.
    pub fn part(&self, name: &'static str) -> Option<Self> {
        self.recorder.begin(self.context()?, name, Kind::Internal)
    }

    /// Notes a text.
    pub fn text(&mut self, name: &'static str, value: &str) {
        self.add(name, Value::Text(value.to_owned()));
    }

    /// Notes a number.
    pub fn number(&mut self, name: &'static str, value: i64) {
        self.add(name, Value::Number(value));
    }

    /// Notes that it went wrong.
    pub fn fail(&mut self, error: &str) {
        if let Some(span) = &mut self.ended {
            span.error = Some(error.to_owned());
        }
    }

    /// Notes what came of an attempt.
    pub fn outcome(&mut self, outcome: &Outcome) {
        if let Some(class) = ResultClass::of(outcome) {
            self.text("posthaste.result", class.as_str());
        }
        let failure = match outcome {
            Outcome::Delivered { status, .. } => {
                return self.number("http.response.status_code", i64::from(*status));
            }
            Outcome::NotSent => return,
            Outcome::Throttled { failure, .. } => failure,
            Outcome::Unauthorized(failure)
            | Outcome::Refused(failure)
            | Outcome::Failed(failure)
            | Outcome::Rejected(_, failure)
            | Outcome::Canceled(failure) => failure,
        };
        if let Some(status) = failure.status {
            self.number("http.response.status_code", i64::from(status));
        }
        self.text("error.type", &failure.code);
        self.fail(&failure.detail);
    }

    fn add(&mut self, name: &'static str, value: Value) {
        if let Some(span) = &mut self.ended {
            span.attributes.push((name, value));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(mut span) = self.ended.take() else { return };
        let took = self.began.until(self.recorder.clock.moment());
        span.took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if self.recorder.queue.try_send(span).is_err() {
            self.recorder.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Exports what was recorded.
pub struct ExportTask {
    exporter: Exporter,
    ended: mpsc::Receiver<Ended>,
    recorder: Arc<Recorder>,
}

impl ExportTask {
    /// Exports until `stop` is cancelled, and then what is there, where the collector takes it at once.
    pub async fn run(mut self, stop: CancellationToken) {
        while let Some(batch) = self.exporter.gather(&mut self.ended, &stop).await {
            let count = batch.len() as u64;
            let counter = match self.exporter.export(batch, &stop).await {
                Ok(()) => &self.recorder.exported,
                Err(()) => &self.recorder.dropped,
            };
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}
