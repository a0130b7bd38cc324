//! A delivery (one event for one destination), what a send made of it, and what that means for its state.
//!
//! ```text
//!            claim                2xx
//!  pending ─────────▶ claimed ─────────▶ delivered
//!     ▲                 │  │  no hope, or the schedule ran out
//!     │ retry, throttle │  └───────────▶ dead
//!     └─────────────────┘     destination gone: canceled
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::clock::Timestamp;
use super::event::{EventSeq, Identity};
use super::retry::RetrySchedule;
use super::tenant::{Lane, LaneId};
use super::trace::TraceContext;

/// One event for one destination: there is at most one delivery in a lane for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// The event.
    pub event: EventSeq,
    /// The lane, which names destination and tenant.
    pub lane: LaneId,
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "dlv_{}_{}", self.event.0, self.lane.0)
    }
}

impl DeliveryId {
    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (event, lane) = text.strip_prefix("dlv_")?.split_once('_')?;
        let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
        let id = Self { event: EventSeq(number(event)?), lane: LaneId(number(lane)?) };
        // One delivery, one name.
        (id.to_string() == text).then_some(id)
    }
}

/// Which of its lane's two queues a delivery waits in. Apart, so that neither is read past to find the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Not failed yet; a throttle is no failure.
    Fresh,
    /// Has failed before, or is replayed.
    Retry,
}

impl Class {
    /// Both, fresh first.
    pub const ALL: [Self; 2] = [Self::Fresh, Self::Retry];

    /// The class of a delivery that has failed so often.
    pub const fn of(failures: u32) -> Self {
        if failures == 0 { Self::Fresh } else { Self::Retry }
    }
}

/// Which replay of a delivery its attempts belong to. All attempts of one carry the same idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplayNumber {
    /// 0: not replayed; else how often this delivery has been.
    pub nth: u32,
    /// Partners are to take it for another message: its `webhook-id` tells of the replay.
    pub new_id: bool,
}

impl ReplayNumber {
    /// The number as it stands in the ledger.
    pub fn as_column(self) -> i64 {
        i64::from(self.nth) << 1 | i64::from(self.new_id)
    }

    /// Reads what [`Self::as_column`] wrote.
    pub fn from_column(column: i64) -> Self {
        Self { nth: u32::try_from(column >> 1).unwrap_or_default(), new_id: column & 1 == 1 }
    }
}

/// A delivery that this process has claimed, with all that a sender needs.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Which delivery.
    pub id: DeliveryId,
    /// Destination and tenant.
    pub lane: Arc<Lane>,
    /// When it fell due; with lane, class and event its place in the queue.
    pub due_at: Timestamp,
    /// Number of this claim, from 1: the fencing token. A settlement that names an older one changes nothing.
    pub attempt: i64,
    /// Failures so far; throttles are not among them.
    pub failures: u32,
    /// An earlier attempt may have arrived although its answer did not say so.
    pub uncertain: bool,
    /// Which of its lane's queues it waits in.
    pub class: Class,
    /// Which replay of it this is.
    pub replay: ReplayNumber,
    /// The event's identity.
    pub identity: Identity,
    /// The event's type.
    pub event_type: Arc<str>,
    /// When the event was recorded.
    pub received_at: Timestamp,
    /// The whole event as it came.
    pub body: Bytes,
    /// Where in `body` its data stands.
    pub data: Option<Range<usize>>,
    /// The trace that the event belongs to.
    pub trace: Option<Arc<TraceContext>>,
}

/// What went wrong with an attempt, in words an operator can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A short, stable code, e.g. `timeout`, `http_500`.
    pub code: String,
    /// The status answered, where there was an answer.
    pub status: Option<u16>,
    /// The receiver's or the library's own words, cut to [`Failure::DETAIL_LIMIT_BYTES`].
    pub detail: String,
    /// The receiver may have taken the event all the same (5xx, lost answer).
    pub may_have_arrived: bool,
}

impl Failure {
    /// Longest `detail` that is kept.
    pub const DETAIL_LIMIT_BYTES: usize = 1_024;

    /// A failure without an answer: `code`, what is known, and whether the request may have arrived.
    pub fn transport(code: &str, detail: impl fmt::Display, may_have_arrived: bool) -> Self {
        Self { code: code.to_owned(), status: None, detail: cut(&detail.to_string()), may_have_arrived }
    }

    /// A failure that the receiver answered with `status`. Server errors may hide a success.
    pub fn answered(status: u16, detail: &str) -> Self {
        Self {
            code: format!("http_{status}"),
            status: Some(status),
            detail: cut(detail),
            may_have_arrived: status >= 500,
        }
    }
}

/// At most [`Failure::DETAIL_LIMIT_BYTES`] of `text`, ending on a character and free of NUL (Postgres refuses it).
fn cut(text: &str) -> String {
    let mut end = text.len().min(Failure::DETAIL_LIMIT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Delivered {
        /// Status answered.
        status: u16,
        /// The receiver's own id for it (Svix's message id), where it told one.
        remote_id: Option<String>,
        /// Stored, but after an uncertain attempt: whether Svix dispatched it is not known.
        dispatch_unconfirmed: bool,
    },
    /// Too fast (429, or 503 with `Retry-After`): costs no failure, closes the gate.
    Throttled {
        /// 429 or 503 and the receiver's words.
        failure: Failure,
        /// How long it asked for, clamped; `None` where it did not say.
        retry_after: Option<Duration>,
    },
    /// Our credentials are not good (401, 403): costs no failure, closes the gate.
    Unauthorized(Failure),
    /// Svix refuses our credentials (401, 403) for this event or its application, and takes them elsewhere. A failure, and
    /// the application's gate closes.
    Refused(Failure),
    /// It may go better later.
    Failed(Failure),
    /// The same again would be refused again, or there is nobody to send it to.
    Rejected(DeadReason, Failure),
    /// The destination does not exist any more: nothing was sent.
    Canceled(Failure),
    /// The gate closed between pick and send: nothing went out.
    NotSent,
}

/// The state an attempt leads to, with what that state carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextState {
    /// Done.
    Delivered {
        /// The receiver's own id for it.
        remote_id: Option<String>,
        /// See [`Outcome::Delivered`].
        dispatch_unconfirmed: bool,
    },
    /// Waits until `due_at`.
    Pending {
        /// When it falls due again.
        due_at: Timestamp,
        /// Failures so far.
        failures: u32,
        /// See [`Delivery::uncertain`].
        uncertain: bool,
    },
    /// Given up: waits for a person or a replay.
    Dead {
        /// Why.
        reason: DeadReason,
    },
    /// Not wanted any more.
    Canceled {
        /// Why.
        reason: CancelReason,
    },
    /// Back where it was, as if never claimed.
    Released,
}

impl NextState {
    /// Whether it leaves the queue for good.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Dead { .. } | Self::Canceled { .. })
    }
}

/// Why a delivery was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadReason {
    /// The receiver refused it for good.
    Rejected,
    /// The retry schedule ran out.
    RetriesExhausted,
    /// The endpoint answered 410: it wants no more (RFC 9110 §15.5.11).
    Gone,
    /// The endpoint is disabled.
    EndpointDisabled,
    /// The endpoint's transform can't be applied to this event.
    TransformFailed,
    /// The ledger has lost the event: its row is missing. Nothing was sent.
    EventMissing,
    /// The ledger's row of the event is damaged. Nothing was sent.
    EventUnreadable,
}

impl DeadReason {
    /// The reason as it stands in the ledger and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::RetriesExhausted => "retries_exhausted",
            Self::Gone => "gone",
            Self::EndpointDisabled => "endpoint_disabled",
            Self::TransformFailed => "transform_failed",
            Self::EventMissing => "event_missing",
            Self::EventUnreadable => "event_unreadable",
        }
    }
}

/// Why a delivery is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Its destination is gone.
    EndpointDeleted,
    /// An operator said so.
    Operator,
}

impl CancelReason {
    /// The reason as it stands in the ledger and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointDeleted => "endpoint_deleted",
            Self::Operator => "operator",
        }
    }
}

/// What is to be recorded of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// The delivery.
    pub id: DeliveryId,
    /// Its lane.
    pub lane: Arc<Lane>,
    /// Its place in the queue: which of the lane's two, and where in it.
    pub class: Class,
    /// See [`Delivery::due_at`].
    pub due_at: Timestamp,
    /// See [`Delivery::replay`].
    pub replay: ReplayNumber,
    /// The claim this settles.
    pub attempt: i64,
    /// When the attempt ended.
    pub at: Timestamp,
    /// How long the attempt took, in milliseconds.
    pub latency_ms: i64,
    /// Failures so far, this one included.
    pub failures: u32,
    /// Status answered, where there was an answer.
    pub status: Option<u16>,
    /// What went wrong, where something did: becomes a row of the attempt log.
    pub failure: Option<Failure>,
    /// The state it leads to.
    pub next: NextState,
}

impl Settlement {
    /// The queue that a delivery with so many failures goes back into: what was replayed and only throttled stays where
    /// it was.
    pub const fn class_with(&self, failures: u32) -> Class {
        if failures == 0 { self.class } else { Class::Retry }
    }
}

/// When an attempt ended and what it cost.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took.
    pub latency: Duration,
    /// For the jitter of a retry: `[0, 1)`.
    pub chance: f64,
}

/// Turns what happened into what is to be recorded.
///
/// `counts` is false while the destination as a whole is known to be down: the failure of a probe is not the
/// event's own, and costs it nothing.
pub fn settle(
    delivery: &Delivery,
    outcome: Outcome,
    counts: bool,
    schedule: &RetrySchedule,
    timing: Timing,
) -> Settlement {
    let mut settlement = Settlement {
        id: delivery.id,
        lane: delivery.lane.clone(),
        class: delivery.class,
        due_at: delivery.due_at,
        replay: delivery.replay,
        attempt: delivery.attempt,
        at: timing.at,
        latency_ms: i64::try_from(timing.latency.as_millis()).unwrap_or(i64::MAX),
        failures: delivery.failures,
        status: None,
        failure: None,
        next: NextState::Released,
    };
    let failure = match outcome {
        Outcome::NotSent => return settlement,
        Outcome::Delivered { status, remote_id, dispatch_unconfirmed } => {
            settlement.status = Some(status);
            settlement.next = NextState::Delivered { remote_id, dispatch_unconfirmed };
            return settlement;
        }
        // The gate holds it back; its place in the queue stays its own.
        Outcome::Throttled { failure, .. } | Outcome::Unauthorized(failure) => {
            settlement.next = NextState::Pending {
                due_at: delivery.due_at,
                failures: delivery.failures,
                uncertain: delivery.uncertain,
            };
            failure
        }
        // A refused event moves back like one that failed: the next one of its application is the next to be tried.
        Outcome::Failed(failure) | Outcome::Refused(failure) => {
            settlement.failures += u32::from(counts);
            settlement.next = after_failure(delivery, counts, &failure, schedule, timing);
            failure
        }
        Outcome::Rejected(reason, failure) => {
            settlement.failures += 1;
            settlement.next = NextState::Dead { reason };
            failure
        }
        Outcome::Canceled(failure) => {
            settlement.next = NextState::Canceled { reason: CancelReason::EndpointDeleted };
            failure
        }
    };
    settlement.status = failure.status;
    settlement.failure = Some(failure);
    settlement
}

fn after_failure(
    delivery: &Delivery,
    counts: bool,
    failure: &Failure,
    schedule: &RetrySchedule,
    timing: Timing,
) -> NextState {
    let failures = delivery.failures + u32::from(counts);
    // A probe's failure costs nothing, but the same event must not be every probe: it waits as after a first failure.
    // Not for as long as its own failures would make it: the gate paces probes, and what was sent as one must not wait
    // for hours when the receiver is back.
    match schedule.delay(if counts { failures } else { 1 }, timing.chance) {
        Some(delay) => NextState::Pending {
            due_at: timing.at + delay,
            failures,
            uncertain: delivery.uncertain || failure.may_have_arrived,
        },
        None => NextState::Dead { reason: DeadReason::RetriesExhausted },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::Destination;

    fn delivery(failures: u32) -> Delivery {
        let lane = Lane {
            id: LaneId(1),
            destination: Arc::new(Destination::Svix { app: "acme".into() }),
            tenant: "acme".into(),
        };
        Delivery {
            id: DeliveryId { event: EventSeq(9), lane: lane.id },
            lane: Arc::new(lane),
            due_at: Timestamp::from_millis(1_000),
            attempt: 3,
            failures,
            uncertain: false,
            class: Class::of(failures),
            replay: ReplayNumber::default(),
            identity: Identity { tenant: "acme".into(), source: "".into(), id: "evt_1".into() },
            event_type: "order.created".into(),
            received_at: Timestamp::from_millis(1_000),
            body: Bytes::from_static(b"{}"),
            data: None,
            trace: None,
        }
    }

    fn settled(failures: u32, outcome: Outcome, counts: bool) -> Settlement {
        let schedule = RetrySchedule::new(vec![Duration::from_secs(5), Duration::from_secs(30)]);
        let timing =
            Timing { at: Timestamp::from_millis(50_000), latency: Duration::from_millis(12), chance: 0.5 };
        settle(&delivery(failures), outcome, counts, &schedule, timing)
    }

    #[test]
    fn a_throttle_costs_no_failure_and_keeps_the_place_in_the_queue() {
        let failure = Failure::answered(429, "slow down");
        let settlement = settled(1, Outcome::Throttled { failure, retry_after: None }, true);
        let expected =
            NextState::Pending { due_at: Timestamp::from_millis(1_000), failures: 1, uncertain: false };
        assert_eq!((settlement.next, settlement.failures), (expected, 1));
        assert_eq!(settlement.status, Some(429));
    }

    #[test]
    fn what_is_replayed_stays_behind_what_is_fresh_until_it_is_done() {
        let failure = Failure::answered(429, "slow down");
        let mut throttled = settled(0, Outcome::Throttled { failure, retry_after: None }, true);
        assert_eq!(throttled.class_with(0), Class::Fresh);
        throttled.class = Class::Retry;
        assert_eq!((throttled.class_with(0), throttled.class_with(1)), (Class::Retry, Class::Retry));
        for (nth, new_id) in [(0, false), (1, false), (1, true), (u32::MAX, true)] {
            let number = ReplayNumber { nth, new_id };
            assert_eq!(ReplayNumber::from_column(number.as_column()), number);
        }
    }

    #[test]
    fn failures_follow_the_schedule_and_end_in_dead() {
        let failed = || Outcome::Failed(Failure::answered(500, "oops"));
        let due = |ms: i64| Timestamp::from_millis(50_000 + ms);
        assert_eq!(
            settled(0, failed(), true).next,
            NextState::Pending { due_at: due(5_000), failures: 1, uncertain: true }
        );
        assert_eq!(
            settled(1, failed(), true).next,
            NextState::Pending { due_at: due(30_000), failures: 2, uncertain: true }
        );
        assert_eq!(settled(2, failed(), true).next, NextState::Dead { reason: DeadReason::RetriesExhausted });
    }

    #[test]
    fn the_failure_of_a_probe_is_not_the_events_own() {
        let failed = Outcome::Failed(Failure::transport("connect_refused", "refused", false));
        let settlement = settled(0, failed, false);
        let expected =
            NextState::Pending { due_at: Timestamp::from_millis(55_000), failures: 0, uncertain: false };
        assert_eq!(settlement.next, expected);
        assert!(settlement.failure.is_some(), "it is still told in the attempt log");
        // However often it has failed before: its wait is over soon after the receiver's is.
        let failed = Outcome::Failed(Failure::transport("connect_refused", "refused", false));
        let NextState::Pending { due_at, failures, .. } = settled(2, failed, false).next else {
            panic!("it is not given up");
        };
        assert_eq!((due_at, failures), (Timestamp::from_millis(55_000), 2));
    }

    #[test]
    fn a_rejection_is_dead_with_the_receivers_words_and_nothing_sent_is_released() {
        let settlement = settled(
            0,
            Outcome::Rejected(DeadReason::Rejected, Failure::answered(422, "bad eventType")),
            true,
        );
        assert_eq!(settlement.next, NextState::Dead { reason: DeadReason::Rejected });
        assert_eq!(settlement.failure.map(|failure| failure.detail).as_deref(), Some("bad eventType"));
        assert_eq!(settled(0, Outcome::NotSent, true).next, NextState::Released);
    }

    #[test]
    fn a_delivery_has_one_name() {
        let id = DeliveryId { event: EventSeq(7_123_456_789_012_345_678), lane: LaneId(4) };
        assert_eq!(id.to_string(), "dlv_7123456789012345678_4");
        assert_eq!(DeliveryId::parse(&id.to_string()), Some(id));
        for other in
            ["", "dlv_", "dlv_1", "dlv_01_4", "dlv_+1_4", "dlv_-1_4", "dlv_1_4_5", "dlv_1_x", "ep_1_4"]
        {
            assert_eq!(DeliveryId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn details_are_cut_on_a_character() {
        let failure = Failure::answered(500, &"ü".repeat(2_000));
        assert_eq!(failure.detail.len(), Failure::DETAIL_LIMIT_BYTES);
        assert_eq!(Failure::answered(500, "a\0b").detail, "a\u{fffd}b");
    }
}
