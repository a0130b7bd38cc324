//! Deliveries are claimed: in order, by one at a time, and again when the claim is lost.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{Class, NextState};
use posthaste::domain::scheduler::{LaneClaim, Remaining};
use posthaste::domain::tenant::Lane;

use super::{claim, claim_retries, delivered, failed, fill, ids, lane, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase, event, side_by_side, svix};

on_both_databases! {
    claims_come_in_due_order_and_say_what_remains,
    each_lane_is_answered_in_the_order_asked,
    a_claim_is_not_given_twice_while_its_lease_holds,
    released_claims_come_again_as_another_attempt,
    a_lease_that_ran_out_is_claimed_again_and_the_old_claim_is_void,
    the_wall_clock_takes_no_lease,
    busy_lanes_are_paged_with_their_first_due_time,
    a_lane_is_made_once,
}

async fn claims_come_in_due_order_and_say_what_remains(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "a", 3).await;
    clock.move_wall(10);
    fill(&ledger, &lane, "b", 2).await;
    let first = claim(&ledger, &lane, 2).await;
    assert_eq!((ids(&first.deliveries), first.remaining), (vec!["a0", "a1"], Remaining::Due));
    assert!(first.deliveries.iter().all(|delivery| delivery.attempt == 1 && delivery.failures == 0));
    let second = claim(&ledger, &lane, 2).await;
    assert_eq!((ids(&second.deliveries), second.remaining), (vec!["a2", "b0"], Remaining::Due));
    let third = claim(&ledger, &lane, 2).await;
    assert_eq!((ids(&third.deliveries), third.remaining), (vec!["b1"], Remaining::Nothing));
    // Two retries: what falls due first comes first, not what is older.
    settle(&ledger, [settlement(&first.deliveries[0], failed(), &clock)]).await;
    let b1_due = clock.now() + Duration::from_secs(2);
    let mut sooner = settlement(&third.deliveries[0], failed(), &clock);
    sooner.next = NextState::Pending { due_at: b1_due, failures: 1, uncertain: false };
    settle(&ledger, [sooner]).await;
    let early = claim_retries(&ledger, &lane, 2).await;
    assert_eq!((ids(&early.deliveries), early.remaining), (vec![], Remaining::Later(b1_due)));
    clock.pass(Duration::from_secs(2));
    assert_eq!(claim(&ledger, &lane, 2).await.remaining, Remaining::Nothing, "retries wait apart");
    let b1 = claim_retries(&ledger, &lane, 2).await;
    let a0_due = first.deliveries[0].due_at + Duration::from_millis(10) + super::RETRY_AFTER[0];
    assert_eq!((ids(&b1.deliveries), b1.remaining), (vec!["b1"], Remaining::Later(a0_due)));
    assert_eq!(b1.deliveries[0].attempt, 2);
    clock.pass(Duration::from_secs(3));
    let a0 = claim_retries(&ledger, &lane, 2).await;
    assert_eq!((ids(&a0.deliveries), a0.remaining), (vec!["a0"], Remaining::Nothing));
    // Exactly as many as were asked for: whatever it says remains, the next claim finds nothing.
    fill(&ledger, &lane, "c", 2).await;
    assert_eq!(ids(&claim(&ledger, &lane, 2).await.deliveries), ["c0", "c1"]);
    let none = claim(&ledger, &lane, 2).await;
    assert_eq!((ids(&none.deliveries), none.remaining), (vec![], Remaining::Nothing));
}

async fn each_lane_is_answered_in_the_order_asked(database: TestDatabase) {
    let ledger = database.open(&TestClock::new()).await;
    let mut lanes = Vec::new();
    for app in ["a", "b", "c", "d"] {
        lanes.push(lane(&ledger, app, "acme").await);
    }
    fill(&ledger, &lanes[0], "a", 3).await;
    fill(&ledger, &lanes[2], "c", 1).await;
    fill(&ledger, &lanes[3], "d", 5).await;
    let wish =
        |(lane, limit): (&Arc<Lane>, usize)| LaneClaim { lane: lane.clone(), class: Class::Fresh, limit };
    let wishes: Vec<_> = lanes.iter().rev().zip([2, 9, 9, 9]).map(wish).collect();
    let (claimed, _) = ledger.claim(&wishes).await.expect("an answer");
    let got: Vec<_> = claimed.iter().map(|lane| (ids(&lane.deliveries), lane.remaining)).collect();
    let expected = [
        (vec!["d0", "d1"], Remaining::Due),
        (vec!["c0"], Remaining::Nothing),
        (vec![], Remaining::Nothing),
        (vec!["a0", "a1", "a2"], Remaining::Nothing),
    ];
    assert_eq!(got, expected);
    assert!(claimed[0].deliveries.iter().all(|delivery| Arc::ptr_eq(&delivery.lane, &lanes[3])));
    let (nothing, _) = ledger.claim(&[]).await.expect("an answer");
    assert!(nothing.is_empty());
}

async fn a_claim_is_not_given_twice_while_its_lease_holds(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 200).await;
    let before = clock.moment();
    let claims = [LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 1 }];
    let (one, leased_until) = ledger.claim(&claims).await.expect("an answer");
    assert_eq!(leased_until, before + database.options().lease);
    let claimers = (0..20).map(|_| {
        let (ledger, lane) = (ledger.clone(), lane.clone());
        async move { claim(&ledger, &lane, 15).await.deliveries }
    });
    let mut times: HashMap<_, usize> = HashMap::new();
    for delivery in side_by_side(claimers).await.iter().flatten().chain(&one[0].deliveries) {
        *times.entry(delivery.id).or_default() += 1;
    }
    // Claims that overlap may pass over what another holds locked: what is left comes now.
    for delivery in claim(&ledger, &lane, 200).await.deliveries {
        *times.entry(delivery.id).or_default() += 1;
    }
    assert_eq!(times.len(), 200);
    assert!(times.values().all(|times| *times == 1));
    database.let_leases_age(Duration::from_secs(59), &clock).await;
    assert_eq!(claim(&ledger, &lane, 200).await.deliveries.len(), 0);
}

async fn released_claims_come_again_as_another_attempt(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 3).await;
    for attempt in 1..=3 {
        let claimed = claim(&ledger, &lane, 5).await.deliveries;
        assert_eq!(ids(&claimed), ["e0", "e1", "e2"]);
        assert!(claimed.iter().all(|delivery| delivery.attempt == attempt && delivery.failures == 0));
        ledger.release(&claimed).await.expect("released");
    }
    let held = claim(&ledger, &lane, 5).await.deliveries;
    // The release of an older claim changes nothing.
    let mut older = held.clone();
    for delivery in &mut older {
        delivery.attempt -= 1;
    }
    ledger.release(&older).await.expect("an answer");
    assert_eq!(claim(&ledger, &lane, 5).await.deliveries.len(), 0);
    // The attempt number outlives a retry too.
    settle(&ledger, held.iter().map(|delivery| settlement(delivery, failed(), &clock))).await;
    clock.pass(super::RETRY_AFTER[0]);
    assert!(claim(&ledger, &lane, 5).await.deliveries.iter().all(|delivery| delivery.attempt == 5));
    assert_eq!(ledger.waiting(), 3);
}

async fn a_lease_that_ran_out_is_claimed_again_and_the_old_claim_is_void(database: TestDatabase) {
    // holds: 16
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 1).await;
    let old = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    database.let_leases_age(Duration::from_secs(61), &clock).await;
    let new = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    assert_eq!((new.id, old.attempt, new.attempt), (old.id, 1, 2));
    for outcome in [delivered(), failed()] {
        settle(&ledger, [settlement(&old, outcome, &clock)]).await;
    }
    ledger.release(std::slice::from_ref(&old)).await.expect("an answer");
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done.len()), (1, 0));
    assert_eq!(ledger.database().outcomes("acme", "e0").await.expect("an answer"), []);
    assert_eq!(ledger.database().attempt_log("acme", "e0").await.expect("an answer"), []);
    assert_eq!(ledger.waiting(), 1);
    assert_eq!(claim(&ledger, &lane, 1).await.deliveries.len(), 0, "the new claim still holds");
    settle(&ledger, [settlement(&new, delivered(), &clock)]).await;
    let outcomes = ledger.database().outcomes("acme", "e0").await.expect("an answer");
    assert_eq!((outcomes.len(), outcomes[0].attempts), (1, 2));
    assert_eq!(ledger.waiting(), 0);
}

async fn the_wall_clock_takes_no_lease(database: TestDatabase) {
    // holds: 52
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 4).await;
    let held = claim(&ledger, &lane, 4).await.deliveries;
    assert_eq!(held.len(), 4);
    for hour in [3_600_000, -3_600_000, -3_600_000, 3_600_000] {
        clock.move_wall(hour);
        assert_eq!(claim(&ledger, &lane, 4).await.deliveries.len(), 0);
    }
    settle(&ledger, held.iter().map(|delivery| settlement(delivery, delivered(), &clock))).await;
    assert_eq!(ledger.waiting(), 0);
}

async fn busy_lanes_are_paged_with_their_first_due_time(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let mut expected = Vec::new();
    for n in 0..7 {
        let lane = lane(&ledger, &format!("app{n}"), "acme").await;
        if n == 3 {
            continue;
        }
        expected.push((lane.id, clock.now()));
        fill(&ledger, &lane, &format!("first{n}-"), 30).await;
        clock.move_wall(10);
        fill(&ledger, &lane, &format!("second{n}-"), 2).await;
    }
    // Claimed work is work too: its lease may run out.
    let first = ledger.busy_lanes(None, 1).await.expect("an answer").remove(0).lane;
    let claimed = claim(&ledger, &first, 30).await.deliveries;
    assert_eq!(claimed.len(), 30);
    // What has failed waits apart.
    settle(&ledger, [settlement(&claimed[7], failed(), &clock)]).await;
    let mut expected: Vec<_> = expected.into_iter().map(|(id, fresh)| (id, [Some(fresh), None])).collect();
    expected[0].1[1] = Some(clock.now() + super::RETRY_AFTER[0]);
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = ledger.busy_lanes(after, 4).await.expect("an answer");
        assert!(page.len() <= 4);
        found.extend(page.iter().map(|busy| (busy.lane.id, busy.first_due)));
        let Some(last) = page.last() else { break };
        after = Some(last.lane.id);
    }
    assert_eq!(found, expected);
}

async fn a_lane_is_made_once(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let makers = (0..40).map(|n| {
        let ledger = ledger.clone();
        let app = format!("app{}", n % 2);
        async move { ledger.lane(&svix(&app), &"acme".into()).await.expect("a lane") }
    });
    let made = side_by_side(makers).await;
    assert!(made.iter().skip(2).zip(&made).all(|(later, lane)| later.id == lane.id));
    assert_ne!(made[0].id, made[1].id);
    let cached = lane(&ledger, "app0", "acme").await;
    assert!(Arc::ptr_eq(&cached, &lane(&ledger, "app0", "acme").await));
    assert_ne!(lane(&ledger, "app0", "globex").await.id, cached.id);
    fill(&ledger, &cached, "e", 1).await;
    super::close(ledger).await;
    // Another process finds it by its number, and by its name.
    let ledger = database.open(&clock).await;
    let found = ledger.busy_lanes(None, 5).await.expect("an answer").remove(0).lane;
    assert_eq!(found, cached);
    assert_eq!(lane(&ledger, "app0", "acme").await, cached);
    assert_eq!(claim(&ledger, &found, 1).await.deliveries.len(), 1);
    let other = event("other").to(&found).build();
    assert_eq!(super::accept(&ledger, vec![other]).await.len(), 1);
}
