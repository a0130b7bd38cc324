//! The gate before a receiver: whether anything may be sent to it now, and how much at once.
//!
//! ```text
//!             429, 503 + Retry-After            time is up
//!  open ──────────────────────────────▶ closed ────────────▶ open, one at a time, growing
//!    │    401, 403, ten failures in a row          time is up
//!    └───────────────────────────────▶ closed ─────────────▶ probing: one request ──▶ open or closed again
//! ```
//!
//! Concurrency follows additive increase, multiplicative decrease: a throttle halves what is worth reaching
//! again, and the way back begins at one. An adaptive gate also halves its window for a failure, and takes a tenth
//! from it where answers take much longer than they do when little is in flight, each at most once for a window of
//! answers and not below a bound.

mod adaptive;

use std::time::Duration;

pub use self::adaptive::AdaptiveLimits;
use self::adaptive::Measure;
use super::clock::Moment;
use super::delivery::{DeadReason, Outcome};
use super::outcomes::{self, Fault, Receiver};
use super::retry::spread;
use super::tenant::Destination;

/// The shortest wait of a receiver that asks to slow down. It doubles with every further closing before a success.
const LEAST_WAIT: Duration = Duration::from_millis(250);

/// Bounds and waits of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// Most requests in flight at once.
    pub max_in_flight: u32,
    /// Most requests in flight before the first success: nobody has seen this receiver work yet.
    pub unproven_in_flight: u32,
    /// Failures in a row that close the gate …
    pub failures_to_close: u32,
    /// … where the first of them is at least so long ago: a burst of requests that fail together is one event.
    pub failing_for: Duration,
    /// First wait where the receiver named none; doubles with every further closing.
    pub first_wait: Duration,
    /// Longest such wait.
    pub max_wait: Duration,
    /// Follows failures and latency too. Such a gate begins narrow, to learn how fast an idle receiver answers.
    pub adaptive: Option<AdaptiveLimits>,
}

impl GateLimits {
    /// Where failures and latency stop to narrow the gate.
    fn least(&self) -> f64 {
        let least = self.adaptive.map_or(1, |adaptive| adaptive.min_in_flight);
        f64::from(least.clamp(1, self.max_in_flight.max(1)))
    }
}

/// Why a gate is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The receiver asked us to slow down.
    Throttled,
    /// The receiver does not accept our credentials.
    Unauthorized,
    /// One request after another fails.
    Failing,
    /// There is nothing to send with, e.g. no Svix token.
    NotConfigured,
}

impl CloseReason {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Throttled, Self::Unauthorized, Self::Failing, Self::NotConfigured];

    /// The reason as it stands in the ledger, in logs and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unauthorized => "unauthorized",
            Self::Failing => "failing",
            Self::NotConfigured => "not_configured",
        }
    }

    /// Reads what [`Self::as_str`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// What a finished request says about its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It works.
    Success,
    /// It answers, but says nothing about its health (a 4xx for this one event).
    Alive,
    /// It wants less, for this long where it said so.
    Throttled(Option<Duration>),
    /// It does not accept our credentials.
    Unauthorized,
    /// Svix does not accept our credentials for this application, and does for the account.
    Refused,
    /// It failed: 5xx or no answer.
    Failure,
    /// Nothing was sent.
    NotSent,
}

impl Signal {
    /// What an outcome says of a destination's health.
    pub fn of(outcome: &Outcome, destination: &Destination) -> Self {
        let svix = matches!(destination, Destination::Svix { .. });
        match outcome {
            Outcome::Delivered { .. } => Self::Success,
            Outcome::Throttled { retry_after, .. } => Self::Throttled(*retry_after),
            Outcome::Unauthorized(_) => Self::Unauthorized,
            Outcome::Refused(_) => Self::Refused,
            Outcome::Rejected(DeadReason::EndpointDisabled | DeadReason::TransformFailed, _)
            | Outcome::Canceled(_)
            | Outcome::NotSent => Self::NotSent,
            Outcome::Rejected(..) => Self::Alive,
            // An answer for which the account is not to blame shows that Svix works. An endpoint that answers 404 is broken.
            Outcome::Failed(failure)
                if svix
                    && failure.status.is_some_and(|status| {
                        outcomes::rule(Receiver::Svix, status, false).fault != Some(Fault::Account)
                    }) =>
            {
                Self::Alive
            }
            Outcome::Failed(_) => Self::Failure,
        }
    }
}

/// What finishing a request did to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that others need to know.
    None,
    /// It closed, or stays closed for longer.
    Closed {
        /// When it opens again, or lets a probe through.
        until: Moment,
        /// Why.
        reason: CloseReason,
    },
    /// It is open again.
    Opened,
}

/// The permission to send one request; given back with [`Gate::finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a ticket that is not given back holds a place in flight for ever"]
pub struct Ticket {
    /// How often the gate had closed by then: answers to requests from before a closing are old news.
    epoch: u32,
    /// Whether this request is the probe.
    probe: bool,
    /// When it began.
    entered_at: Moment,
}

impl Ticket {
    /// The same for a request that only begins at `now`: the place was taken ahead.
    pub const fn begun_at(self, now: Moment) -> Self {
        Self { entered_at: now, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closed { until: Moment, reason: CloseReason },
    Probing { reason: CloseReason, under_way: bool },
}

/// See the module's own words.
#[derive(Debug)]
pub struct Gate {
    limits: GateLimits,
    state: State,
    epoch: u32,
    in_flight: u32,
    /// How many requests may be in flight now; whole numbers count.
    window: f64,
    /// Below this the window grows by one with every success, above it by one with every window of successes.
    threshold: f64,
    failures_in_a_row: u32,
    /// When the first of them was.
    failing_since: Option<Moment>,
    /// No success has been seen yet.
    unproven: bool,
    /// Closings since the last success: doubles the wait.
    closings: u32,
    /// What the last answers told of the receiver's load.
    measure: Measure,
}

impl Gate {
    /// An open gate.
    pub fn new(limits: GateLimits) -> Self {
        let unproven = f64::from(limits.unproven_in_flight.clamp(1, limits.max_in_flight.max(1)));
        let window = if limits.adaptive.is_some() { unproven.min(limits.least()) } else { unproven };
        Self {
            limits,
            state: State::Open,
            epoch: 0,
            in_flight: 0,
            window,
            threshold: f64::from(limits.max_in_flight.max(1)),
            failures_in_a_row: 0,
            failing_since: None,
            unproven: limits.unproven_in_flight < limits.max_in_flight,
            closings: 0,
            measure: Measure::default(),
        }
    }

    /// Other bounds from now on; a window that is open stays as it is, as far as they go.
    pub fn set_limits(&mut self, limits: GateLimits) {
        if self.limits == limits {
            return;
        }
        let widest = f64::from(limits.max_in_flight.max(1));
        // What was as wide as it could be stays so.
        let was_full = self.window >= f64::from(self.limits.max_in_flight.max(1));
        self.limits = limits;
        self.window = if was_full { widest } else { self.window.min(widest) };
        self.threshold = if was_full { widest } else { self.threshold.min(widest) };
    }

    /// A gate that is closed until `until`: one that never configured, or as another process left it.
    pub fn close_until(&mut self, until: Moment, reason: CloseReason) {
        self.state = State::Closed { until, reason };
        self.epoch += 1;
        if reason == CloseReason::Throttled {
            self.narrow();
        }
    }

    /// Takes a place in flight, where there is one at `now`.
    pub fn enter(&mut self, now: Moment) -> Option<Ticket> {
        if let State::Closed { until, reason } = self.state
            && until <= now
        {
            self.state = match reason {
                CloseReason::Throttled => State::Open,
                _ => State::Probing { reason, under_way: false },
            };
        }
        let room = self.in_flight < self.width();
        let probe = match &mut self.state {
            State::Open if room => false,
            // Requests from before it closed may still be under way.
            State::Probing { under_way, .. } if !*under_way && self.in_flight < self.limits.max_in_flight => {
                *under_way = true;
                true
            }
            _ => return None,
        };
        self.in_flight += 1;
        Some(Ticket { epoch: self.epoch, probe, entered_at: now })
    }

    /// Whether a request with this ticket may still go out: false once the gate has closed behind it.
    pub fn still_admits(&self, ticket: Ticket) -> bool {
        ticket.epoch == self.epoch
    }

    /// Gives the ticket back with what the request told, at `now`; `chance` from `[0, 1)` spreads a wait.
    pub fn finish(&mut self, ticket: Ticket, signal: Signal, now: Moment, chance: f64) -> Change {
        self.in_flight = self.in_flight.saturating_sub(1);
        let current = ticket.epoch == self.epoch;
        match signal {
            Signal::NotSent => {
                if current && let State::Probing { under_way, .. } = &mut self.state {
                    *under_way = false;
                }
                Change::None
            }
            Signal::Throttled(wait) => self.throttled(wait, current, now, chance),
            _ if !current => Change::None,
            // One application is refused: the receiver works.
            Signal::Success | Signal::Alive | Signal::Refused => {
                let worked = signal == Signal::Success;
                let change = self.succeeded(worked);
                let latency = worked.then(|| ticket.entered_at.until(now));
                self.follow(latency);
                change
            }
            Signal::Unauthorized => self.close(CloseReason::Unauthorized, None, now, chance),
            Signal::Failure => {
                self.failures_in_a_row += 1;
                let since = *self.failing_since.get_or_insert(now);
                let many = self.failures_in_a_row >= self.limits.failures_to_close;
                match self.state {
                    State::Probing { reason, .. } => self.close(reason, None, now, chance),
                    _ if many && since + self.limits.failing_for <= now => {
                        self.close(CloseReason::Failing, None, now, chance)
                    }
                    _ => {
                        self.halve();
                        Change::None
                    }
                }
            }
        }
    }

    /// Whether a failure on this ticket counts against the event: not where the receiver was known to be down.
    pub const fn failure_counts(ticket: Ticket) -> bool {
        !ticket.probe
    }

    /// When a closed gate opens or lets a probe through; `None` where it is not closed.
    pub const fn opens_at(&self) -> Option<Moment> {
        match self.state {
            State::Closed { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Why the gate is closed or probing; `None` where it is open.
    pub const fn reason(&self) -> Option<CloseReason> {
        match self.state {
            State::Open => None,
            State::Closed { reason, .. } | State::Probing { reason, .. } => Some(reason),
        }
    }

    /// How many requests may be in flight at once.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and max_in_flight"
    )]
    pub fn width(&self) -> u32 {
        self.window as u32
    }

    /// Requests in flight.
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    fn succeeded(&mut self, worked: bool) -> Change {
        self.failures_in_a_row = 0;
        self.failing_since = None;
        if worked && std::mem::take(&mut self.unproven) {
            self.window = self.threshold;
        }
        let reopened = matches!(self.state, State::Probing { .. });
        if reopened {
            self.state = State::Open;
            self.narrow();
        } else if worked && !self.measure.is_slow() {
            self.window += if self.window < self.threshold { 1.0 } else { 1.0 / self.window };
            self.window = self.window.min(f64::from(self.limits.max_in_flight.max(1)));
        }
        let was_closed = self.closings > 0;
        self.closings = 0;
        if reopened || was_closed { Change::Opened } else { Change::None }
    }

    /// Counts an answer, with its latency where that tells something, and narrows the window where they are slow.
    fn follow(&mut self, latency: Option<Duration>) {
        let Some(adaptive) = self.limits.adaptive else { return };
        let at_least = self.window <= self.limits.least();
        let answers = self.width().max(adaptive.min_in_flight);
        if self.measure.answer(latency, answers, &adaptive, at_least) && !at_least {
            self.shrink(self.window * adaptive::SLOW_FACTOR);
        }
    }

    /// A failure of an open gate: once for a window of answers.
    fn halve(&mut self) {
        if self.limits.adaptive.is_some() && self.measure.fail() {
            self.shrink(self.window / 2.0);
        }
    }

    /// Narrows the window to `to`, as far as the bound lets it; from there it grows slowly.
    fn shrink(&mut self, to: f64) {
        // Whoever is in flight now tells of the time before.
        self.measure.begin_after(self.in_flight);
        let to = to.max(self.limits.least());
        if to < self.window {
            self.window = to;
            self.threshold = to;
        }
    }

    fn throttled(&mut self, wait: Option<Duration>, current: bool, now: Moment, chance: f64) -> Change {
        if current {
            return self.close(CloseReason::Throttled, wait, now, chance);
        }
        // One of a burst that the gate has already closed for: it may ask for longer, not for less.
        match (&mut self.state, wait) {
            (State::Closed { until, reason }, Some(wait)) if *until < now + wait => {
                *until = now + wait;
                Change::Closed { until: *until, reason: *reason }
            }
            _ => Change::None,
        }
    }

    fn close(&mut self, reason: CloseReason, wait: Option<Duration>, now: Moment, chance: f64) -> Change {
        let doubled = |first: Duration| {
            spread(first.saturating_mul(1 << self.closings.min(16)), chance).min(self.limits.max_wait)
        };
        // The larger of the two: a receiver that asks for no wait again and again is tried more and more slowly.
        let wait = match wait {
            Some(wait) => wait.max(doubled(LEAST_WAIT)),
            None => doubled(self.limits.first_wait),
        };
        let until = now + wait;
        self.closings = self.closings.saturating_add(1);
        self.state = State::Closed { until, reason };
        self.epoch += 1;
        self.narrow();
        Change::Closed { until, reason }
    }

    /// Begins again at one in flight, to grow fast up to half of what was too much.
    fn narrow(&mut self) {
        if self.window > 1.0 {
            self.threshold = (self.window / 2.0).max(1.0);
        }
        self.window = 1.0;
        self.measure.restart();
    }
}

#[cfg(test)]
mod tests;
