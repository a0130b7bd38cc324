use std::time::Duration;

use super::*;

const LIMITS: SchedulerLimits =
    SchedulerLimits { max_in_flight: 4, max_in_flight_per_destination: 2, max_buffered: 8, max_claim: 4 };
const GATE: GateLimits = GateLimits {
    max_in_flight: 16,
    unproven_in_flight: 16,
    failures_to_close: 3,
    failing_for: Duration::ZERO,
    first_wait: Duration::from_secs(1),
    max_wait: Duration::from_secs(60),
    adaptive: None,
};
const NOW: Timestamp = Timestamp::from_millis(1_000);

fn lane(id: i64) -> Arc<Lane> {
    let tenant = format!("tenant-{id}");
    Arc::new(Lane {
        id: LaneId(id),
        destination: Arc::new(Destination::Svix { app: tenant.clone() }),
        tenant: tenant.into(),
    })
}

fn at(ms: u64) -> Moment {
    Moment::after_start(Duration::from_millis(ms))
}

fn scheduler() -> Scheduler<(i64, u32)> {
    Scheduler::new(LIMITS, GATE, GATE)
}

/// Answers every claim from `backlog`, deliveries per lane, as a ledger would.
fn feed(scheduler: &mut Scheduler<(i64, u32)>, backlog: &mut HashMap<i64, u32>, now: Moment) {
    for claim in scheduler.claims(now) {
        let left = backlog.entry(claim.lane.id.0).or_default();
        let taken = (*left).min(u32::try_from(claim.limit).expect("small"));
        let items = (0..taken).map(|nth| (claim.lane.id.0, *left - nth)).collect();
        *left -= taken;
        let remaining = if *left > 0 { Remaining::Due } else { Remaining::Nothing };
        scheduler.claimed(&claim, items, at(60_000), remaining, NOW);
    }
}

#[test]
fn a_small_lane_waits_no_more_than_one_round_behind_a_whale() {
    // holds: 39
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 1_000_000), (2, 3), (3, 3)]);
    for id in 1..=3 {
        scheduler.wake(&lane(id), NOW, NOW);
    }
    let mut order = Vec::new();
    while order.len() < 9 {
        feed(&mut scheduler, &mut backlog, at(0));
        let start = scheduler.next(at(0)).expect("there is work and room");
        order.push(start.item.0);
        let _ = scheduler.finish(&lane(start.item.0), start.ticket, Signal::Success, at(0), 0.5);
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn caps_hold_and_a_full_destination_takes_no_place_of_another() {
    // holds: 32
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 100), (2, 100)]);
    scheduler.wake(&lane(1), NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let hanging: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(hanging.len(), LIMITS.max_in_flight_per_destination);
    scheduler.wake(&lane(2), NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let other: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(other.iter().map(|start| start.item.0).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(scheduler.in_flight(), LIMITS.max_in_flight);
    assert!(scheduler.buffered <= LIMITS.max_buffered);
    // A place that is given back goes to the one that gave it.
    let _ = scheduler.finish(&lane(1), hanging[0].ticket, Signal::Success, at(0), 0.5);
    assert_eq!(scheduler.next(at(0)).map(|start| start.item.0), Some(1));
}

#[test]
fn a_closed_gate_holds_every_lane_and_all_come_back() {
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 2), (2, 2), (3, 2)]);
    for id in 1..=2 {
        scheduler.wake(&lane(id), NOW, NOW);
    }
    feed(&mut scheduler, &mut backlog, at(0));
    let first = scheduler.next(at(0)).expect("open");
    let second = scheduler.next(at(0)).expect("open");
    let wait = Signal::Throttled(Some(Duration::from_secs(2)));
    let _ = scheduler.finish(&lane(first.item.0), first.ticket, wait, at(10), 0.5);
    assert!(!scheduler.still_admits(&lane(2), second.ticket));
    let recalled = scheduler.recall(&GateId::Svix);
    assert_eq!(recalled.len(), 2, "what was claimed but not sent goes back");
    for (id, _) in recalled {
        *backlog.entry(id).or_default() += 1;
    }
    let _ = scheduler.finish(&lane(second.item.0), second.ticket, Signal::NotSent, at(20), 0.5);
    *backlog.entry(second.item.0).or_default() += 1;
    // While closed: nothing is claimed, nothing goes out, fresh events are turned to the ledger.
    scheduler.wake(&lane(3), NOW, NOW);
    scheduler.tick(NOW, at(1_000));
    assert!(scheduler.claims(at(1_000)).is_empty());
    assert!(scheduler.next(at(1_000)).is_none());
    assert!(scheduler.reserve(&lane(9), at(1_000)).is_none());
    assert_eq!(scheduler.next_alarm().1, Some(at(2_010)));
    // Open again: all that is left arrives.
    scheduler.wake(&lane(2), NOW, NOW);
    scheduler.tick(NOW, at(2_010));
    let mut sent = 0;
    for _ in 0..50 {
        feed(&mut scheduler, &mut backlog, at(2_010));
        while let Some(start) = scheduler.next(at(2_010)) {
            sent += 1;
            let _ = scheduler.finish(&lane(start.item.0), start.ticket, Signal::Success, at(2_010), 0.5);
        }
    }
    assert_eq!(sent, 5, "six in all, one of them was throttled and is the ledger's to bring back");
}

#[test]
fn a_fresh_delivery_passes_only_where_nothing_older_waits() {
    let mut scheduler = scheduler();
    let ticket = scheduler.reserve(&lane(1), at(0)).expect("idle");
    assert!(scheduler.reserve(&lane(1), at(0)).is_some(), "those in flight are not waiting");
    assert!(scheduler.reserve(&lane(1), at(0)).is_none(), "the destination's cap");
    scheduler.wake(&lane(2), NOW, NOW);
    assert!(scheduler.reserve(&lane(2), at(0)).is_none(), "older work is due");
    let _ = scheduler.finish(&lane(1), ticket, Signal::Success, at(0), 0.5);
    assert!(scheduler.reserve(&lane(1), at(0)).is_some());
}

#[test]
fn work_that_falls_due_later_rings_and_expired_leases_are_dropped() {
    let mut scheduler = scheduler();
    let later = Timestamp::from_millis(5_000);
    scheduler.wake(&lane(1), later, NOW);
    assert!(scheduler.claims(at(0)).is_empty());
    assert_eq!(scheduler.next_alarm().0, Some(later));
    scheduler.tick(later, at(4_000));
    let claims = scheduler.claims(at(4_000));
    assert_eq!(claims.len(), 1);
    scheduler.claimed(&claims[0], vec![(1, 1)], at(9_000), Remaining::Nothing, later);
    assert!(scheduler.next(at(9_000)).is_none(), "the lease has run out");
    assert_eq!(scheduler.claims(at(9_000)).len(), 1, "and the lane is asked again");
}

#[test]
fn a_wake_during_a_claim_is_not_lost_and_idle_lanes_are_forgotten() {
    let mut scheduler = scheduler();
    scheduler.wake(&lane(1), NOW, NOW);
    let claims = scheduler.claims(at(0));
    scheduler.wake(&lane(1), NOW, NOW);
    scheduler.claimed(&claims[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    let again = scheduler.claims(at(0));
    assert_eq!(again.len(), 1);
    scheduler.claimed(&again[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    assert!(scheduler.lanes.is_empty() && scheduler.destinations.is_empty());
}
