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
//! again, and the way back begins at one.

use std::time::Duration;

use super::clock::Moment;
use super::retry::spread;

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
        [Self::Throttled, Self::Unauthorized, Self::Failing, Self::NotConfigured]
            .into_iter()
            .find(|reason| reason.as_str() == text)
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
    /// It failed: 5xx or no answer.
    Failure,
    /// Nothing was sent.
    NotSent,
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
}

impl Gate {
    /// An open gate.
    pub fn new(limits: GateLimits) -> Self {
        let window = f64::from(limits.unproven_in_flight.clamp(1, limits.max_in_flight.max(1)));
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
        Some(Ticket { epoch: self.epoch, probe })
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
            Signal::Success | Signal::Alive => self.succeeded(signal == Signal::Success),
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
                    _ => Change::None,
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
        } else if worked {
            self.window += if self.window < self.threshold { 1.0 } else { 1.0 / self.window };
            self.window = self.window.min(f64::from(self.limits.max_in_flight.max(1)));
        }
        let was_closed = self.closings > 0;
        self.closings = 0;
        if reopened || was_closed { Change::Opened } else { Change::None }
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
        let wait = wait.unwrap_or_else(|| {
            let doubled = self.limits.first_wait.saturating_mul(1 << self.closings.min(16));
            spread(doubled, chance).min(self.limits.max_wait)
        });
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: GateLimits = GateLimits {
        max_in_flight: 8,
        unproven_in_flight: 8,
        failures_to_close: 3,
        failing_for: Duration::ZERO,
        first_wait: Duration::from_secs(1),
        max_wait: Duration::from_secs(60),
    };

    fn at(ms: u64) -> Moment {
        Moment::after_start(Duration::from_millis(ms))
    }

    fn tickets(gate: &mut Gate, now: Moment) -> Vec<Ticket> {
        std::iter::from_fn(|| gate.enter(now)).collect()
    }

    #[test]
    fn a_throttle_closes_for_everyone_and_reopens_gently() {
        // holds: 25
        let mut gate = Gate::new(LIMITS);
        let burst = tickets(&mut gate, at(0));
        assert_eq!(burst.len(), 8);
        let wait = Signal::Throttled(Some(Duration::from_secs(2)));
        let closed = gate.finish(burst[0], wait, at(10), 0.5);
        assert_eq!(closed, Change::Closed { until: at(2_010), reason: CloseReason::Throttled });
        assert!(!gate.still_admits(burst[1]), "what was picked but not sent stays");
        // The rest of the burst asks for less, then for more.
        let less = gate.finish(burst[1], Signal::Throttled(Some(Duration::from_secs(1))), at(20), 0.5);
        assert_eq!(less, Change::None);
        let more = gate.finish(burst[2], wait, at(30), 0.5);
        assert_eq!(more, Change::Closed { until: at(2_030), reason: CloseReason::Throttled });
        // A success from before the closing opens nothing.
        assert_eq!(gate.finish(burst[3], Signal::Success, at(40), 0.5), Change::None);
        for ticket in &burst[4..] {
            let _ = gate.finish(*ticket, Signal::NotSent, at(40), 0.5);
        }
        assert_eq!(gate.enter(at(2_029)), None);
        // One at a time, then two, four: up to half of what was too much; then slowly.
        let mut widths = Vec::new();
        for _ in 0..4 {
            let now = tickets(&mut gate, at(2_030));
            widths.push(now.len());
            for ticket in now {
                let _ = gate.finish(ticket, Signal::Success, at(2_030), 0.5);
            }
        }
        assert_eq!(widths, [1, 2, 4, 4]);
    }

    #[test]
    fn bad_credentials_close_the_gate_and_are_probed_slowly() {
        // holds: 30
        let mut gate = Gate::new(LIMITS);
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let ticket = gate.enter(now).expect("a probe is let through");
            assert_eq!(gate.enter(now).is_some(), waits.is_empty(), "one probe at a time");
            let Change::Closed { until, reason } = gate.finish(ticket, Signal::Unauthorized, now, 0.5) else {
                panic!("stays closed");
            };
            assert_eq!(reason, CloseReason::Unauthorized);
            waits.push(now.until(until).as_secs());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        let probe = gate.enter(now).expect("probe");
        assert!(!Gate::failure_counts(probe));
        assert_eq!(gate.finish(probe, Signal::Success, now, 0.5), Change::Opened);
        assert_eq!(gate.reason(), None);
    }

    #[test]
    fn failures_in_a_row_close_it_and_a_success_between_does_not() {
        // holds: 29, 37
        let mut gate = Gate::new(LIMITS);
        let mut send = |signal| {
            let ticket = gate.enter(at(0)).expect("open");
            gate.finish(ticket, signal, at(0), 0.5)
        };
        for signal in [Signal::Failure, Signal::Failure, Signal::Success, Signal::Failure, Signal::Failure] {
            assert_eq!(send(signal), Change::None);
        }
        assert_eq!(send(Signal::Failure), Change::Closed { until: at(1_000), reason: CloseReason::Failing });
    }

    #[test]
    fn an_unproven_receiver_gets_little_and_a_burst_of_failures_is_one_event() {
        // holds: 37
        let limits = GateLimits { unproven_in_flight: 4, failing_for: Duration::from_secs(30), ..LIMITS };
        let mut gate = Gate::new(limits);
        let first = tickets(&mut gate, at(0));
        assert_eq!(first.len(), 4);
        for ticket in first {
            assert_eq!(gate.finish(ticket, Signal::Failure, at(0), 0.5), Change::None, "all at once");
        }
        let ticket = gate.enter(at(30_000)).expect("still open");
        let closed = gate.finish(ticket, Signal::Failure, at(30_000), 0.5);
        assert_eq!(closed, Change::Closed { until: at(31_000), reason: CloseReason::Failing });
        let mut gate = Gate::new(limits);
        let ticket = gate.enter(at(0)).expect("open");
        let _ = gate.finish(ticket, Signal::Success, at(0), 0.5);
        assert_eq!(tickets(&mut gate, at(0)).len(), 8);
    }

    #[test]
    fn a_probe_waits_for_a_place_too() {
        let limits = GateLimits { max_in_flight: 2, unproven_in_flight: 2, ..LIMITS };
        let mut gate = Gate::new(limits);
        let hanging = tickets(&mut gate, at(0));
        // Another node has seen it fail.
        gate.close_until(at(100), CloseReason::Failing);
        assert_eq!(gate.enter(at(100)), None);
        let _ = gate.finish(hanging[0], Signal::Failure, at(200), 0.5);
        assert!(gate.enter(at(200)).is_some());
    }

    #[test]
    fn a_probe_that_was_not_sent_leaves_room_for_another() {
        let mut gate = Gate::new(LIMITS);
        gate.close_until(at(100), CloseReason::Failing);
        let probe = gate.enter(at(100)).expect("probe");
        assert_eq!(gate.enter(at(100)), None);
        assert_eq!(gate.finish(probe, Signal::NotSent, at(100), 0.5), Change::None);
        assert!(gate.enter(at(100)).is_some());
    }
}
