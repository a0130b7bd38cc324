//! Domain values as columns, shared by both databases.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::{LedgerError, Result};
use crate::domain::delivery::{Class, NextState, Settlement};
use crate::domain::trace::TraceContext;

/// `data_start` and `data_end`.
pub(super) fn range_columns(range: Option<&Range<usize>>) -> (Option<i64>, Option<i64>) {
    range.map_or((None, None), |range| (Some(count(range.start)), Some(count(range.end))))
}

/// What [`range_columns`] wrote.
pub(super) fn range(start: Option<i64>, end: Option<i64>) -> Option<Range<usize>> {
    Some(usize::try_from(start?).ok()?..usize::try_from(end?).ok()?)
}

/// The trace that an event belongs to, from its column; none where that is empty.
pub(super) fn trace(column: Option<&str>) -> Option<Arc<TraceContext>> {
    column.and_then(TraceContext::read).map(Arc::new)
}

/// The column `retry`.
pub(super) const fn class_column(class: Class) -> i64 {
    match class {
        Class::Fresh => 0,
        Class::Retry => 1,
    }
}

/// A length as a column.
pub(super) fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// A SHA-256 as it was read.
pub(super) fn digest(bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| {
        LedgerError::Unavailable(format!("a fingerprint in the ledger has {} bytes, not 32", bytes.len()))
    })
}

/// The receiver's text without NUL, which Postgres refuses: one answer must not stop the writer.
fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// A delivery that goes back into the queue.
pub(super) struct WaitingColumns {
    pub lane: i64,
    pub event: i64,
    /// Where it stood, and the claim that held it.
    pub was_retry: i64,
    pub was_due_at: i64,
    pub attempt: i64,
    pub retry: i64,
    pub due_at: i64,
    pub failures: i64,
    pub uncertain: i64,
    pub replay: i64,
}

impl WaitingColumns {
    pub fn of(settlement: &Settlement) -> Option<Self> {
        let NextState::Pending { due_at, failures, uncertain } = settlement.next else { return None };
        Some(Self {
            lane: settlement.id.lane.0,
            event: settlement.id.event.0,
            was_retry: class_column(settlement.class),
            was_due_at: settlement.due_at.as_millis(),
            attempt: settlement.attempt,
            retry: class_column(settlement.class_with(failures)),
            due_at: due_at.as_millis(),
            failures: i64::from(failures),
            uncertain: i64::from(uncertain),
            replay: settlement.replay.as_column(),
        })
    }
}

/// A row of `outcome`.
pub(super) struct OutcomeColumns<'a> {
    pub event: i64,
    pub lane: i64,
    /// Where it stood in the queue; with `attempts` the claim that held it.
    pub was_retry: i64,
    pub was_due_at: i64,
    pub state: &'static str,
    pub at: i64,
    pub attempts: i64,
    pub failures: i64,
    pub latency_ms: i64,
    pub status: Option<i64>,
    pub remote_id: Option<Cow<'a, str>>,
    pub dispatch_unconfirmed: i64,
    pub reason: Option<&'static str>,
}

impl<'a> OutcomeColumns<'a> {
    pub fn of(settlement: &'a Settlement) -> Option<Self> {
        let (state, remote_id, dispatch_unconfirmed, reason) = match &settlement.next {
            NextState::Delivered { remote_id, dispatch_unconfirmed } => {
                (DELIVERED, remote_id.as_deref().map(without_nul), *dispatch_unconfirmed, None)
            }
            NextState::Dead { reason } => ("dead", None, false, Some(reason.as_str())),
            NextState::Canceled { reason } => ("canceled", None, false, Some(reason.as_str())),
            NextState::Pending { .. } | NextState::Released => return None,
        };
        Some(Self {
            event: settlement.id.event.0,
            lane: settlement.id.lane.0,
            was_retry: class_column(settlement.class),
            was_due_at: settlement.due_at.as_millis(),
            state,
            at: settlement.at.as_millis(),
            attempts: settlement.attempt,
            failures: i64::from(settlement.failures),
            latency_ms: settlement.latency_ms,
            status: settlement.status.map(i64::from),
            remote_id,
            dispatch_unconfirmed: i64::from(dispatch_unconfirmed),
            reason,
        })
    }

    /// Delivered at the first attempt, without a doubt.
    pub fn is_plainly_delivered(&self) -> bool {
        let plainly = (self.attempts, self.failures, self.dispatch_unconfirmed) == (1, 0, 0);
        self.state == DELIVERED && plainly
    }
}

/// The state of nearly all outcomes.
const DELIVERED: &str = "delivered";

/// A row of `attempt_log`.
pub(super) struct AttemptColumns<'a> {
    pub event: i64,
    pub lane: i64,
    pub attempt: i64,
    pub at: i64,
    pub latency_ms: i64,
    pub status: Option<i64>,
    pub code: &'a str,
    pub detail: &'a str,
    pub retry_at: Option<i64>,
}

impl<'a> AttemptColumns<'a> {
    pub fn of(settlement: &'a Settlement) -> Option<Self> {
        let failure = settlement.failure.as_ref()?;
        let retry_at = match settlement.next {
            NextState::Pending { due_at, .. } => Some(due_at.as_millis()),
            _ => None,
        };
        Some(Self {
            event: settlement.id.event.0,
            lane: settlement.id.lane.0,
            attempt: settlement.attempt,
            at: settlement.at.as_millis(),
            latency_ms: settlement.latency_ms,
            status: failure.status.map(i64::from),
            code: &failure.code,
            detail: &failure.detail,
            retry_at,
        })
    }
}
