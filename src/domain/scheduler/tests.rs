use std::collections::HashMap;
use std::time::Duration;

use super::*;
use crate::domain::partner::RateLimit;

const LIMITS: SchedulerLimits =
    SchedulerLimits { max_in_flight: 4, max_in_flight_per_destination: 2, max_buffered: 32, max_claim: 4 };
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
        scheduler.wake(&lane(id), Class::Fresh, NOW, NOW);
    }
    let mut order = Vec::new();
    while order.len() < 9 {
        feed(&mut scheduler, &mut backlog, at(0));
        let start = scheduler.next(at(0)).expect("there is work and room");
        order.push(start.item.0);
        let _ = scheduler.finish(&lane(start.item.0), start.permit, Signal::Success, at(0), 0.5);
    }
    assert_eq!(order, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn caps_hold_and_a_full_destination_takes_no_place_of_another() {
    // holds: 32
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 100), (2, 100)]);
    scheduler.wake(&lane(1), Class::Fresh, NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let hanging: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(hanging.len(), LIMITS.max_in_flight_per_destination);
    scheduler.wake(&lane(2), Class::Fresh, NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let other: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(other.iter().map(|start| start.item.0).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(scheduler.in_flight(), LIMITS.max_in_flight);
    assert!(scheduler.held() <= LIMITS.max_buffered);
    // A place that is given back goes to the one that gave it.
    let _ = scheduler.finish(&lane(1), hanging[0].permit, Signal::Success, at(0), 0.5);
    assert_eq!(scheduler.next(at(0)).map(|start| start.item.0), Some(1));
}

#[test]
fn a_replay_sees_whether_anybody_waits_for_what_it_would_take() {
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 6), (2, 6)]);
    let pressed = |scheduler: &Scheduler<_>, id| scheduler.is_pressed(&lane(id).destination);
    scheduler.wake(&lane(1), Class::Retry, NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let started: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(started.len(), LIMITS.max_in_flight_per_destination);
    assert!(!pressed(&scheduler, 1), "what waits has failed before, or is replayed itself");
    // Something fresh for the same destination, which has no place for it.
    scheduler.wake(&lane(1), Class::Fresh, NOW, NOW);
    assert!(pressed(&scheduler, 1));
    assert!(!pressed(&scheduler, 2), "another destination has room");
    // Until all places are taken, and somebody waits for one.
    scheduler.wake(&lane(2), Class::Retry, NOW, NOW);
    scheduler.wake(&lane(3), Class::Retry, NOW, NOW);
    backlog.insert(3, 2);
    feed(&mut scheduler, &mut backlog, at(0));
    while scheduler.next(at(0)).is_some() {}
    assert_eq!(scheduler.in_flight(), LIMITS.max_in_flight);
    assert!(pressed(&scheduler, 2) && pressed(&scheduler, 4));
}

#[test]
fn a_closed_gate_holds_every_lane_and_all_come_back() {
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 2), (2, 2), (3, 2)]);
    for id in 1..=2 {
        scheduler.wake(&lane(id), Class::Fresh, NOW, NOW);
    }
    feed(&mut scheduler, &mut backlog, at(0));
    let first = scheduler.next(at(0)).expect("open");
    let second = scheduler.next(at(0)).expect("open");
    let wait = Signal::Throttled(Some(Duration::from_secs(2)));
    let _ = scheduler.finish(&lane(first.item.0), first.permit, wait, at(10), 0.5);
    assert!(!scheduler.still_admits(&lane(2), second.permit, at(10)));
    let recalled = scheduler.recall(&GateId::Svix);
    assert_eq!(recalled.len(), 2, "what was claimed but not sent goes back");
    for (id, _) in recalled {
        *backlog.entry(id).or_default() += 1;
    }
    let _ = scheduler.finish(&lane(second.item.0), second.permit, Signal::NotSent, at(20), 0.5);
    *backlog.entry(second.item.0).or_default() += 1;
    // While closed: nothing is claimed, nothing goes out, fresh events are turned to the ledger.
    scheduler.wake(&lane(3), Class::Fresh, NOW, NOW);
    scheduler.tick(NOW, at(1_000));
    assert!(scheduler.claims(at(1_000)).is_empty());
    assert!(scheduler.next(at(1_000)).is_none());
    assert!(scheduler.reserve(&lane(9), at(1_000)).is_none());
    assert_eq!(scheduler.next_alarm().1, Some(at(2_010)));
    // Open again: all that is left arrives.
    scheduler.wake(&lane(2), Class::Fresh, NOW, NOW);
    scheduler.tick(NOW, at(2_010));
    let mut sent = 0;
    for _ in 0..50 {
        feed(&mut scheduler, &mut backlog, at(2_010));
        while let Some(start) = scheduler.next(at(2_010)) {
            sent += 1;
            let _ = scheduler.finish(&lane(start.item.0), start.permit, Signal::Success, at(2_010), 0.5);
        }
    }
    assert_eq!(sent, 5, "six in all, one of them was throttled and is the ledger's to bring back");
}

#[test]
fn a_fresh_delivery_passes_only_where_nothing_older_waits() {
    let mut scheduler = scheduler();
    let permit = scheduler.reserve(&lane(1), at(0)).expect("idle");
    assert!(scheduler.reserve(&lane(1), at(0)).is_some(), "those in flight are not waiting");
    assert!(scheduler.reserve(&lane(1), at(0)).is_none(), "the destination's cap");
    scheduler.wake(&lane(2), Class::Fresh, NOW, NOW);
    assert!(scheduler.reserve(&lane(2), at(0)).is_none(), "older work is due");
    let _ = scheduler.finish(&lane(1), permit, Signal::Success, at(0), 0.5);
    assert!(scheduler.reserve(&lane(1), at(0)).is_some());
}

#[test]
fn work_that_falls_due_later_rings_and_expired_leases_are_dropped() {
    let mut scheduler = scheduler();
    let later = Timestamp::from_millis(5_000);
    scheduler.wake(&lane(1), Class::Fresh, later, NOW);
    assert!(scheduler.claims(at(0)).is_empty());
    assert_eq!(scheduler.next_alarm().0, Some(later));
    scheduler.tick(later, at(4_000));
    let claims = scheduler.claims(at(4_000));
    assert_eq!(claims.len(), 1);
    scheduler.claimed(&claims[0], vec![(1, 1)], at(9_000), Remaining::Nothing, later);
    assert!(scheduler.next(at(9_000)).is_none(), "the lease has run out");
    assert_eq!(scheduler.expired(), [(1, 1)], "to be given back");
    assert_eq!(scheduler.claims(at(9_000)).len(), 1, "and the lane is asked again");
}

#[test]
fn a_wake_during_a_claim_is_not_lost_and_idle_lanes_are_forgotten() {
    let mut scheduler = scheduler();
    scheduler.wake(&lane(1), Class::Fresh, NOW, NOW);
    let claims = scheduler.claims(at(0));
    scheduler.wake(&lane(1), Class::Fresh, NOW, NOW);
    scheduler.claimed(&claims[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    let again = scheduler.claims(at(0));
    assert_eq!(again.len(), 1);
    scheduler.claimed(&again[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    assert!(scheduler.lanes.is_empty() && scheduler.destinations.is_empty());
}

const PARTNER: &str = "crm";

/// A lane of this tenant to an endpoint of the partner [`PARTNER`].
fn endpoint_lane(id: i64, tenant: &str, endpoint: &str) -> Arc<Lane> {
    let destination = Arc::new(Destination::Endpoint { id: endpoint.into() });
    Arc::new(Lane { id: LaneId(id), destination, tenant: tenant.into() })
}

fn policies(endpoints: &[&str], rate_limit: Option<RateLimit>, max_in_flight: usize) -> Policies {
    let endpoint = |id: &&str| ((*id).into(), EndpointPolicy { partner: PARTNER.into(), gate: GATE });
    Policies {
        endpoints: endpoints.iter().map(endpoint).collect(),
        partners: HashMap::from([(
            PARTNER.into(),
            PartnerPolicy { max_in_flight, rate_limit, paused: false },
        )]),
        weights: HashMap::new(),
    }
}

/// Sends until nothing more may go, each answered at once; lanes in order.
fn send_all(
    scheduler: &mut Scheduler<(i64, u32)>,
    lanes: &[Arc<Lane>],
    backlog: &mut HashMap<i64, u32>,
    most: usize,
) -> Vec<i64> {
    let mut order = Vec::new();
    while order.len() < most {
        feed(scheduler, backlog, at(0));
        let Some(start) = scheduler.next(at(0)) else { break };
        order.push(start.item.0);
        let lane = lanes.iter().find(|lane| lane.id.0 == start.item.0).expect("known");
        let _ = scheduler.finish(lane, start.permit, Signal::Success, at(0), 0.5);
    }
    order
}

#[test]
fn tenants_share_an_endpoint_and_svix_by_weight() {
    // holds: 39
    let endpoint = [endpoint_lane(1, "heavy", "ep_1"), endpoint_lane(2, "light", "ep_1")];
    let svix = [("heavy", 1), ("light", 2)].map(|(tenant, id)| {
        let destination = Arc::new(Destination::Svix { app: tenant.into() });
        Arc::new(Lane { id: LaneId(id), destination, tenant: tenant.into() })
    });
    for lanes in [endpoint, svix] {
        let mut scheduler = scheduler();
        let mut policies = policies(&["ep_1"], None, 10);
        policies.weights.insert("heavy".into(), 3);
        scheduler.set_policies(policies);
        let mut backlog = HashMap::from([(1, 1_000), (2, 1_000)]);
        for lane in &lanes {
            scheduler.wake(lane, Class::Fresh, NOW, NOW);
        }
        let order = send_all(&mut scheduler, &lanes, &mut backlog, 400);
        for round in order[8..].chunks_exact(40) {
            let heavy = round.iter().filter(|id| **id == 1).count();
            assert_eq!(heavy, 30, "three of four: {order:?}");
        }
    }
}

#[test]
fn fresh_go_before_retries_and_retries_are_not_starved() {
    // holds: 39
    let mut scheduler = scheduler();
    let lane = lane(1);
    let fill = |scheduler: &mut Scheduler<(i64, u32)>| {
        for claim in scheduler.claims(at(0)) {
            let kind = if claim.class == Class::Fresh { 0 } else { 1 };
            let items = vec![(1, kind); claim.limit];
            scheduler.claimed(&claim, items, at(60_000), Remaining::Due, NOW);
        }
    };
    scheduler.wake(&lane, Class::Retry, NOW, NOW);
    scheduler.wake(&lane, Class::Fresh, NOW, NOW);
    let mut kinds = Vec::new();
    for _ in 0..40 {
        fill(&mut scheduler);
        let start = scheduler.next(at(0)).expect("there is work");
        kinds.push(start.item.1);
        let _ = scheduler.finish(&lane, start.permit, Signal::Success, at(0), 0.5);
    }
    assert_eq!(kinds[..8], [0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(kinds.iter().sum::<u32>(), 10);
}

#[test]
fn however_many_are_blocked_there_is_room_for_one_that_is_not() {
    // holds: 38, 39
    let limits = SchedulerLimits { max_in_flight: 100, max_claim: 16, ..LIMITS };
    let mut scheduler = Scheduler::new(limits, GATE, GATE);
    // Ten deep backlogs whose receivers hang.
    let mut backlog: HashMap<i64, u32> = (1..=10).map(|id| (id, 1_000_000)).collect();
    let lanes: Vec<_> = (1..=10).map(|id| endpoint_lane(id, "whale", &format!("ep_{id}"))).collect();
    for lane in &lanes {
        scheduler.wake(lane, Class::Fresh, NOW, NOW);
    }
    for _ in 0..20 {
        feed(&mut scheduler, &mut backlog, at(0));
        while scheduler.next(at(0)).is_some() {}
    }
    assert!(scheduler.held() < LIMITS.max_buffered, "{}", scheduler.held());
    backlog.insert(11, 3);
    let small = endpoint_lane(11, "small", "ep_11");
    scheduler.wake(&small, Class::Fresh, NOW, NOW);
    assert_eq!(send_all(&mut scheduler, &[small], &mut backlog, 10), [11, 11, 11]);
}

#[test]
fn a_rate_is_held_by_tokens_that_are_reserved_and_grow_old() {
    // holds: 40
    let limit = RateLimit { per_second: 10.0, burst: 10 };
    let mut scheduler = scheduler();
    scheduler.set_policies(policies(&["ep_1"], Some(limit), 10));
    let lane = endpoint_lane(1, "acme", "ep_1");
    assert!(scheduler.reserve(&lane, at(0)).is_none(), "no token yet");
    let mut backlog = HashMap::from([(1, 1_000)]);
    scheduler.wake(&lane, Class::Fresh, NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    assert!(scheduler.next(at(0)).is_none());
    let wish = scheduler.token_wishes().remove(0);
    assert_eq!((&*wish.partner, wish.limit), (PARTNER, limit));
    assert!(wish.count > 1, "a batch: {wish:?}");
    assert!(scheduler.token_wishes().is_empty(), "one at a time");
    let grant = TokenGrant { wish, count: 2, until_next: Duration::from_millis(100) };
    scheduler.granted(&grant, at(0), at(5));
    let first = scheduler.next(at(5)).expect("a token");
    assert!(scheduler.still_admits(&lane, first.permit, at(450)));
    assert!(!scheduler.still_admits(&lane, first.permit, at(451)), "too late: another may have it by then");
    let _ = scheduler.finish(&lane, first.permit, Signal::NotSent, at(451), 0.5);
    // The second token has grown old too, and the ledger is not asked sooner than it has any.
    assert!(scheduler.next(at(451)).is_none());
    let again = scheduler.token_wishes();
    assert_eq!(again.len(), 1);
    scheduler.granted(
        &TokenGrant { wish: again[0].clone(), count: 0, until_next: Duration::from_secs(1) },
        at(451),
        at(452),
    );
    assert!(scheduler.next(at(460)).is_none());
    assert!(scheduler.token_wishes().is_empty());
    assert_eq!(scheduler.next_alarm().1, Some(at(1_451)));
    scheduler.tick(NOW, at(1_451));
    let third = scheduler.token_wishes();
    // The limit has changed meanwhile: what comes was reserved under the old one.
    let slower = RateLimit { per_second: 1.0, burst: 2 };
    scheduler.set_policies(policies(&["ep_1"], Some(slower), 10));
    scheduler.granted(
        &TokenGrant { wish: third[0].clone(), count: 5, until_next: Duration::ZERO },
        at(1_451),
        at(1_452),
    );
    assert!(scheduler.next(at(1_452)).is_none());
    assert_eq!(scheduler.token_wishes()[0].limit, slower);
}

#[test]
fn what_is_under_way_to_a_deleted_endpoint_gives_its_partner_the_places_back() {
    let mut scheduler = scheduler();
    scheduler.set_policies(policies(&["ep_1", "ep_2"], None, 2));
    let (gone, stays) = (endpoint_lane(1, "acme", "ep_1"), endpoint_lane(2, "acme", "ep_2"));
    let permits = [(); 2].map(|()| scheduler.reserve(&gone, at(0)).expect("a place"));
    assert!(scheduler.reserve(&stays, at(0)).is_none(), "the partner's cap");
    scheduler.set_policies(policies(&["ep_2"], None, 2));
    for permit in permits {
        let _ = scheduler.finish(&gone, permit, Signal::NotSent, at(0), 0.5);
    }
    assert!(scheduler.reserve(&stays, at(0)).is_some());
}

/// The lanes that are claimed from, in order.
fn claimed_lanes(claims: &[LaneClaim]) -> Vec<i64> {
    claims.iter().map(|claim| claim.lane.id.0).collect()
}

#[test]
fn a_queue_that_has_nothing_left_leaves_the_probe_to_the_next() {
    let mut scheduler = scheduler();
    scheduler.close_gate(GateId::Svix, at(100), CloseReason::Failing);
    for id in 1..=2 {
        scheduler.wake(&lane(id), Class::Fresh, NOW, NOW);
    }
    assert!(scheduler.claims(at(0)).is_empty());
    scheduler.tick(NOW, at(100));
    let first = scheduler.claims(at(100));
    assert_eq!(claimed_lanes(&first), [1], "one is enough to try");
    // Another node was faster.
    scheduler.claimed(&first[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    assert_eq!(claimed_lanes(&scheduler.claims(at(100))), [2]);
}

#[test]
fn a_token_that_one_endpoint_can_not_use_goes_to_another() {
    let limit = RateLimit { per_second: 10.0, burst: 10 };
    let mut scheduler = scheduler();
    scheduler.set_policies(policies(&["ep_1", "ep_2", "ep_3"], Some(limit), 10));
    let lanes = [1, 2, 3].map(|id| endpoint_lane(id, "acme", &format!("ep_{id}")));
    let mut backlog = HashMap::from([(1, 1), (2, 1), (3, 1)]);
    for lane in &lanes {
        scheduler.wake(lane, Class::Fresh, NOW, NOW);
    }
    feed(&mut scheduler, &mut backlog, at(0));
    assert!(scheduler.next(at(0)).is_none());
    let wish = scheduler.token_wishes().remove(0);
    let one = TokenGrant { wish, count: 1, until_next: Duration::from_millis(100) };
    scheduler.granted(&one, at(0), at(5));
    // It was the first one's turn.
    scheduler.close_gate(GateId::Endpoint("ep_1".into()), at(60_000), CloseReason::Failing);
    let start = scheduler.next(at(5)).expect("a token");
    assert_eq!(start.item.0, 2);
    assert!(scheduler.next(at(5)).is_none());
    // The token after that is asked for, though nobody was sent back for the lack of one.
    let _ = scheduler.finish(&lanes[1], start.permit, Signal::Success, at(6), 0.5);
    scheduler.recall(&GateId::Endpoint("ep_3".into()));
    assert!(scheduler.next(at(6)).is_none());
    scheduler.wake(&lanes[2], Class::Fresh, NOW, NOW);
    backlog.insert(3, 1);
    feed(&mut scheduler, &mut backlog, at(7));
    assert!(scheduler.next(at(7)).is_none());
    scheduler.tick(NOW, at(200));
    assert_eq!(scheduler.token_wishes().len(), 1);
}

#[test]
fn a_claim_that_a_closed_gate_forbids_is_left_to_another_endpoint_of_the_partner() {
    let slow = RateLimit { per_second: 0.5, burst: 1 };
    let mut scheduler = scheduler();
    scheduler.set_policies(policies(&["ep_1", "ep_2", "ep_3"], Some(slow), 10));
    for id in 1..=3 {
        scheduler.wake(&endpoint_lane(id, "acme", &format!("ep_{id}")), Class::Fresh, NOW, NOW);
    }
    let first = scheduler.claims(at(0));
    assert_eq!(claimed_lanes(&first), [1], "one ahead is enough at this rate");
    scheduler.close_gate(GateId::Endpoint("ep_2".into()), at(60_000), CloseReason::Failing);
    scheduler.claimed(&first[0], Vec::new(), at(60_000), Remaining::Nothing, NOW);
    assert_eq!(claimed_lanes(&scheduler.claims(at(0))), [3]);
}

#[test]
fn leases_that_have_run_out_cost_a_destination_no_turn() {
    // holds: 39
    let mut scheduler = scheduler();
    let lanes = [(1, "ep_1"), (2, "ep_1"), (3, "ep_2")].map(|(id, endpoint)| {
        let lane = endpoint_lane(id, &format!("tenant-{id}"), endpoint);
        scheduler.wake(&lane, Class::Fresh, NOW, NOW);
        lane
    });
    for claim in scheduler.claims(at(0)) {
        let lease_until = if claim.lane == lanes[0] { at(10) } else { at(60_000) };
        scheduler.claimed(&claim, vec![(claim.lane.id.0, 1)], lease_until, Remaining::Nothing, NOW);
    }
    assert_eq!(scheduler.next(at(20)).map(|start| start.item.0), Some(2));
}

#[test]
fn whom_limits_hold_back_is_told_with_the_limit() {
    let limit = RateLimit { per_second: 10.0, burst: 10 };
    let lane = endpoint_lane(1, "acme", "ep_1");
    for (rate, places, paused, expected) in [
        (None, 10, false, None),
        (Some(limit), 10, false, Some(HeldBy::Rate)),
        (None, 1, false, Some(HeldBy::InFlight)),
        (None, 10, true, Some(HeldBy::Pause)),
    ] {
        let mut scheduler = scheduler();
        let mut policies = policies(&["ep_1"], rate, places);
        policies.partners.get_mut(PARTNER).expect("it").paused = paused;
        scheduler.set_policies(policies);
        assert!(scheduler.held_partners(at(0)).is_empty(), "nothing waits");
        scheduler.wake(&lane, Class::Fresh, NOW, NOW);
        feed(&mut scheduler, &mut HashMap::from([(1, 3)]), at(0));
        let started: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
        let told = scheduler.held_partners(at(0));
        assert_eq!(told.first().map(|held| held.limit), expected, "{} have started", started.len());
        assert!(told.iter().all(|held| *held.partner == *PARTNER));
    }
}

#[test]
fn how_things_stand_is_told_and_changes_nothing() {
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 5), (2, 1), (3, 1)]);
    let shared = Arc::new(Destination::Svix { app: "shared".into() });
    let of = |id: i64| Arc::new(Lane { destination: shared.clone(), ..(*lane(id)).clone() });
    for id in 1..=3 {
        scheduler.wake(&of(id), Class::Fresh, NOW, NOW);
        for claim in scheduler.claims(at(0)) {
            let count = backlog.remove(&claim.lane.id.0).unwrap_or_default().min(4);
            let items = (0..count).map(|nth| (claim.lane.id.0, nth)).collect();
            scheduler.claimed(&claim, items, at(60_000), Remaining::Nothing, NOW);
        }
    }
    let flying: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(flying.iter().map(|start| start.item).collect::<Vec<_>>(), [(1, 0), (2, 0)]);
    let ask = |scheduler: &Scheduler<(i64, u32)>, lane, item| {
        scheduler.standing(&of(lane), Class::Fresh, at(0), |found| *found == (lane, item))
    };
    let last = ask(&scheduler, 1, 2);
    assert_eq!(last.of_destination, Places { taken: 2, most: 2 });
    assert_eq!(last.of_node, Places { taken: 2, most: 4 });
    assert_eq!((last.buffered, last.before_it, last.lanes_ahead), (true, 1, 1), "the third lane goes first");
    assert_eq!(ask(&scheduler, 3, 0).lanes_ahead, 0);
    assert!(!ask(&scheduler, 2, 0).buffered, "in flight");
    assert_eq!((last.gate, last.paused, last.lacks_tokens), (None, false, None));
    scheduler.close_gate(GateId::Svix, at(5_000), CloseReason::Failing);
    assert_eq!(ask(&scheduler, 1, 2).gate, Some((CloseReason::Failing, Some(at(5_000)))));
    assert_eq!(ask(&scheduler, 1, 2), ask(&scheduler, 1, 2));
}

#[test]
fn what_is_taken_back_is_not_sent_and_leaves_nothing_behind() {
    let mut scheduler = scheduler();
    let mut backlog = HashMap::from([(1, 3)]);
    scheduler.wake(&lane(1), Class::Fresh, NOW, NOW);
    feed(&mut scheduler, &mut backlog, at(0));
    let flying: Vec<_> = std::iter::from_fn(|| scheduler.next(at(0))).collect();
    assert_eq!(flying.len(), 2);
    let waiting = (1, 1);
    assert_eq!(scheduler.take_back(&lane(1), |item| *item == flying[0].item), None, "it has gone out");
    assert_eq!(scheduler.take_back(&lane(1), |item| *item == waiting), Some(waiting));
    assert_eq!(scheduler.take_back(&lane(1), |item| *item == waiting), None);
    for start in flying {
        let _ = scheduler.finish(&lane(1), start.permit, Signal::Success, at(0), 0.5);
        assert!(scheduler.next(at(0)).is_none());
    }
    feed(&mut scheduler, &mut backlog, at(0));
    assert!(scheduler.next(at(0)).is_none());
    assert_eq!((scheduler.held(), scheduler.in_flight()), (0, 0));
    assert!(scheduler.lanes.is_empty() && scheduler.destinations.is_empty(), "nothing is remembered");
}
