use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

const LIMITS: GateLimits = GateLimits {
    max_in_flight: 8,
    unproven_in_flight: 8,
    failures_to_close: 3,
    failing_for: Duration::ZERO,
    first_wait: Duration::from_secs(1),
    max_wait: Duration::from_secs(60),
    adaptive: None,
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

const ADAPTIVE: GateLimits = GateLimits {
    max_in_flight: 64,
    unproven_in_flight: 64,
    failures_to_close: 1_000,
    adaptive: Some(AdaptiveLimits::new(4)),
    ..LIMITS
};

/// Fills the gate and lets every request end so after `latency_ms`; the width after it.
fn round(gate: &mut Gate, now: &mut u64, latency_ms: u64, signal: Signal) -> u32 {
    let all = tickets(gate, at(*now));
    *now += latency_ms;
    for ticket in all {
        assert_eq!(gate.finish(ticket, signal, at(*now), 0.5), Change::None);
    }
    gate.width()
}

#[test]
fn an_adaptive_gate_begins_narrow_and_failures_halve_it_once_a_window() {
    let (mut gate, mut now) = (Gate::new(ADAPTIVE), 0);
    let grown: Vec<_> = (0..5).map(|_| round(&mut gate, &mut now, 100, Signal::Success)).collect();
    assert_eq!(grown, [8, 16, 32, 64, 64]);
    let halved: Vec<_> = (0..6).map(|_| round(&mut gate, &mut now, 100, Signal::Failure)).collect();
    assert_eq!(halved, [32, 16, 8, 4, 4, 4]);
    // From there on by one with every window.
    let slowly: Vec<_> = (0..3).map(|_| round(&mut gate, &mut now, 100, Signal::Success)).collect();
    assert!(slowly.is_sorted() && (5..=7).contains(&slowly[2]), "{slowly:?}");
    // One failure among many successes is one halving, and a throttle goes below the bound.
    let before = gate.width();
    let burst = tickets(&mut gate, at(now));
    let _ = gate.finish(burst[0], Signal::Failure, at(now), 0.5);
    let _ = gate.finish(burst[1], Signal::Failure, at(now), 0.5);
    assert_eq!(gate.width(), (before / 2).max(4));
    let _ = gate.finish(burst[2], Signal::Throttled(None), at(now), 0.5);
    assert_eq!(gate.width(), 1);
}

#[test]
fn failures_do_not_narrow_a_gate_that_is_not_adaptive() {
    let limits = GateLimits { adaptive: None, ..ADAPTIVE };
    let (mut gate, mut now) = (Gate::new(limits), 0);
    assert_eq!(gate.width(), 64);
    assert_eq!(round(&mut gate, &mut now, 100, Signal::Failure), 64);
    assert_eq!(round(&mut gate, &mut now, 9_000, Signal::Success), 64);
}

#[test]
fn slow_answers_take_a_tenth_once_a_window() {
    let (mut gate, mut now) = (Gate::new(ADAPTIVE), 0);
    for _ in 0..5 {
        round(&mut gate, &mut now, 100, Signal::Success);
    }
    // Twice the lowest latency and 50 ms is what is tolerated.
    assert_eq!(round(&mut gate, &mut now, 250, Signal::Success), 64);
    assert_eq!(round(&mut gate, &mut now, 251, Signal::Success), 57);
    let narrower: Vec<_> = (0..4).map(|_| round(&mut gate, &mut now, 251, Signal::Success)).collect();
    assert_eq!(narrower, [51, 46, 41, 37]);
    // Fast again: it grows again, slowly.
    let wider: Vec<_> = (0..3).map(|_| round(&mut gate, &mut now, 100, Signal::Success)).collect();
    assert_eq!(wider, [37, 38, 39]);
    // What is slow however little is in flight is the receiver's new pace.
    let mut widths: Vec<_> = (0..60).map(|_| round(&mut gate, &mut now, 1_000, Signal::Success)).collect();
    assert_eq!(*widths.iter().min().expect("some"), 4);
    widths.dedup();
    assert!(widths.windows(2).any(|pair| pair == [4, 5]), "grows again from there: {widths:?}");
}

#[test]
fn after_a_throttle_slowness_of_before_is_forgotten() {
    let (mut gate, mut now) = (Gate::new(ADAPTIVE), 0);
    for latency_ms in [100, 100, 100, 100, 100, 300, 300] {
        round(&mut gate, &mut now, latency_ms, Signal::Success);
    }
    let narrowed = gate.width();
    assert!((50..64).contains(&narrowed), "{narrowed}");
    gate.close_until(at(now), CloseReason::Throttled);
    let ticket = gate.enter(at(now)).expect("open again");
    let _ = gate.finish(ticket, Signal::Success, at(now + 100), 0.5);
    let wider: Vec<_> = (0..4).map(|_| round(&mut gate, &mut now, 100, Signal::Success)).collect();
    assert_eq!(wider[..3], [4, 8, 16], "it doubles at once");
    assert!((narrowed / 2..=narrowed / 2 + 1).contains(&wider[3]), "up to half of what it was: {wider:?}");
}

/// A receiver that works on `capacity` requests at once; the others wait in its queue.
struct Receiver {
    free_at_us: BinaryHeap<Reverse<u64>>,
    service_us: u64,
    drawn: u64,
}

impl Receiver {
    fn new(capacity: usize, service_ms: u64) -> Self {
        let free_at_us = std::iter::repeat_n(Reverse(0), capacity).collect();
        Self { free_at_us, service_us: service_ms * 1_000, drawn: 1 }
    }

    /// When a request that comes in at `now_us` is answered: its service takes ±10 %.
    fn answers_at(&mut self, now_us: u64) -> u64 {
        let Reverse(free_at) = self.free_at_us.pop().expect("a place");
        self.drawn = self.drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let spread = self.service_us / 5;
        let service = self.service_us - spread / 2 + (self.drawn >> 33) % spread.max(1);
        let done = free_at.max(now_us) + service;
        self.free_at_us.push(Reverse(done));
        done
    }
}

/// Sends as much as the gate lets through until `until_us`: answers a second, and the mean and widest window, all of
/// the second half of the time.
fn drive(gate: &mut Gate, receiver: &mut Receiver, now_us: &mut u64, for_us: u64) -> (f64, f64, u32) {
    let (half, end) = (*now_us + for_us / 2, *now_us + for_us);
    let mut under_way = BinaryHeap::new();
    let mut open = std::collections::HashMap::new();
    let (mut sent, mut answered, mut widths, mut widest) = (0_u64, 0_u32, 0_u64, 0);
    loop {
        let now = Moment::after_start(Duration::from_micros(*now_us));
        while *now_us < end
            && let Some(ticket) = gate.enter(now)
        {
            sent += 1;
            under_way.push(Reverse((receiver.answers_at(*now_us), sent)));
            open.insert(sent, ticket);
        }
        let Some(Reverse((done, number))) = under_way.pop() else { break };
        *now_us = done;
        let ticket = open.remove(&number).expect("under way");
        let now = Moment::after_start(Duration::from_micros(done));
        let _ = gate.finish(ticket, Signal::Success, now, 0.5);
        if done > half && done <= end {
            answered += 1;
            widths += u64::from(gate.width());
            widest = widest.max(gate.width());
        }
    }
    let seconds = Duration::from_micros(for_us / 2).as_secs_f64();
    (f64::from(answered) / seconds, widths as f64 / f64::from(answered), widest)
}

#[test]
fn the_window_settles_near_what_the_receiver_can_take() {
    const TEN_MINUTES_US: u64 = 600_000_000;
    let limits = GateLimits { max_in_flight: 512, unproven_in_flight: 512, ..ADAPTIVE };
    for (capacity, service_ms) in
        [(6, 20), (6, 100), (16, 20), (16, 100), (16, 400), (64, 50), (64, 400), (128, 100)]
    {
        let (mut gate, mut receiver) = (Gate::new(limits), Receiver::new(capacity, service_ms));
        let (rate, mean, widest) = drive(&mut gate, &mut receiver, &mut 0, TEN_MINUTES_US);
        let best = capacity as f64 * 1_000.0 / service_ms as f64;
        // Where a request takes twice the service and 50 ms.
        let tolerated = capacity as f64 * (2.0 + 50.0 / service_ms as f64);
        println!(
            "capacity {capacity}, {service_ms} ms: window {mean:.1} (widest {widest}, tolerated {tolerated:.0}), \
             {rate:.0}/s of {best:.0}/s"
        );
        assert!(rate >= 0.8 * best, "{rate}/s of {best}/s");
        assert!(mean >= 0.8 * capacity as f64 && mean <= 1.1 * tolerated, "{mean} for {capacity}");
        assert!(f64::from(widest) <= 1.3 * tolerated + 2.0, "{widest} for {tolerated}");
    }
}

#[test]
fn the_window_follows_a_receiver_that_changes() {
    let limits = GateLimits { max_in_flight: 512, unproven_in_flight: 512, ..ADAPTIVE };
    let (mut gate, mut now_us) = (Gate::new(limits), 0);
    for (capacity, service_ms) in [(64, 50), (8, 50), (8, 400), (64, 20), (64, 300)] {
        let mut receiver = Receiver::new(capacity, service_ms);
        let (rate, mean, widest) = drive(&mut gate, &mut receiver, &mut now_us, 600_000_000);
        let best = capacity as f64 * 1_000.0 / service_ms as f64;
        println!(
            "capacity {capacity}, {service_ms} ms: window {mean:.1} (widest {widest}), {rate:.0}/s of {best:.0}/s"
        );
        assert!(rate >= 0.8 * best, "{rate}/s of {best}/s");
        assert!(mean <= 6.0 * capacity as f64, "{mean} for {capacity}");
    }
}

#[test]
fn a_receiver_that_asks_for_no_wait_waits_longer_each_time() {
    let mut gate = Gate::new(LIMITS);
    let (mut now, mut waits) = (at(0), Vec::new());
    for _ in 0..5 {
        let ticket = gate.enter(now).expect("open");
        let Change::Closed { until, .. } =
            gate.finish(ticket, Signal::Throttled(Some(Duration::ZERO)), now, 0.5)
        else {
            panic!("closed");
        };
        waits.push(now.until(until).as_millis());
        now = until;
    }
    assert_eq!(waits, [250, 500, 1_000, 2_000, 4_000]);
    // What the receiver asks for counts where that is longer.
    let ticket = gate.enter(now).expect("open");
    let asked = Signal::Throttled(Some(Duration::from_secs(30)));
    let closed = gate.finish(ticket, asked, now, 0.5);
    assert_eq!(
        closed,
        Change::Closed { until: now + Duration::from_secs(30), reason: CloseReason::Throttled }
    );
}
