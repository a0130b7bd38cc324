//! Taking events in, as spans: one for each trace that the events of a request belong to.

use std::sync::Arc;

use super::{Drafts, Ingest, ItemResult, Status};
use crate::domain::trace::TraceContext;
use crate::traces::Span;

/// The spans of a request, each with the places of its events; none where nothing is recorded.
#[derive(Default)]
pub(super) struct AcceptSpans {
    spans: Vec<(Span, Vec<usize>)>,
}

impl Ingest {
    /// Begins the spans of events that are taken in. What is sent of them will be a part of these.
    pub(super) fn begin_spans(&self, drafts: &mut Drafts) -> AcceptSpans {
        let mut spans = AcceptSpans::default();
        if !self.tracer.is_on() {
            return spans;
        }
        // Events of one request share the context that it came with; those that bring their own stand apart. The last
        // one seen: what it was, what has become of it, and its span's place.
        type Seen = (Option<Arc<TraceContext>>, Option<Arc<TraceContext>>, Option<usize>);
        let mut last: Option<Seen> = None;
        for (index, draft) in drafts {
            let known = last.as_ref().filter(|(came, ..)| match (came, &draft.trace) {
                (Some(came), Some(trace)) => Arc::ptr_eq(came, trace),
                (came, trace) => came.is_none() && trace.is_none(),
            });
            let (_, becomes, place) = match known {
                Some(known) => known,
                None => {
                    let came = draft.trace.clone();
                    let span = self.tracer.accept(came.as_deref());
                    let own = span.as_ref().and_then(Span::context).cloned().map(Arc::new);
                    let becomes = own.or_else(|| came.clone());
                    let place = span.map(|span| {
                        spans.spans.push((span, Vec::new()));
                        spans.spans.len() - 1
                    });
                    last.insert((came, becomes, place))
                }
            };
            draft.trace = becomes.clone();
            if let Some((_, indexes)) = place.and_then(|place| spans.spans.get_mut(place)) {
                indexes.push(*index);
            }
        }
        spans
    }
}

impl AcceptSpans {
    /// The commit of these events begins; it ends when what is returned is dropped.
    pub fn commit(&self) -> Vec<Span> {
        self.spans.iter().filter_map(|(span, _)| span.part("commit")).collect()
    }

    /// Ends the spans, with what became of their events.
    pub fn end(&mut self, results: &[ItemResult]) {
        for (mut span, indexes) in self.spans.drain(..) {
            let of = |status: Status| {
                let is = |index: &&usize| results.get(**index).is_some_and(|result| result.status == status);
                i64::try_from(indexes.iter().filter(is).count()).unwrap_or(i64::MAX)
            };
            span.number("posthaste.events", i64::try_from(indexes.len()).unwrap_or(i64::MAX));
            span.number("posthaste.events.accepted", of(Status::Accepted));
            span.number("posthaste.events.duplicate", of(Status::Duplicate));
            let refused = of(Status::Conflict) + of(Status::Invalid);
            if refused > 0 {
                span.number("posthaste.events.refused", refused);
                span.fail("some events were refused");
            }
        }
    }
}

impl Drop for AcceptSpans {
    fn drop(&mut self) {
        for (span, _) in &mut self.spans {
            span.fail("nothing was recorded");
        }
    }
}
