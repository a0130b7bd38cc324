//! Deep lanes, claimed bit by bit: nothing that comes back behind the last claim is passed over.
//!
//! Both stores remember where in a deep lane the next claim goes on.

use std::time::Duration;

use posthaste::domain::clock::{Clock as _, Timestamp};
use posthaste::domain::delivery::{Failure, NextState, Outcome};
use posthaste::domain::scheduler::Remaining;

use super::{claim, delivered, fill, ids, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase};

on_both_databases! {
    a_retry_comes_back_behind_what_was_claimed,
    a_throttled_delivery_keeps_its_place,
    a_release_in_a_deep_lane_comes_next,
    a_lease_that_ran_out_in_a_deep_lane_is_found,
    an_event_recorded_after_the_clock_went_back_is_found,
}

/// How many wait: more than any claim here reads.
const DEEP: usize = 60;

async fn a_retry_comes_back_behind_what_was_claimed(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", DEEP).await;
    let recorded_ms = clock.now().as_millis();
    clock.pass(Duration::from_secs(10));
    for round in 1..=3 {
        let claimed = claim(&ledger, &lane, 4).await;
        assert_eq!(claimed.remaining, Remaining::Due);
        let retried = &claimed.deliveries[0];
        assert_eq!((&*retried.identity.id, retried.attempt), ("e0", round));
        // Due before all that is claimed and all that is left; a probe's, whose failure costs nothing.
        let due_at = Timestamp::from_millis(recorded_ms - round);
        let mut retry = settlement(retried, super::failed(), &clock);
        retry.next = NextState::Pending { due_at, failures: 0, uncertain: true };
        settle(&ledger, [retry]).await;
    }
    // And once more, due among those that are left.
    let retried = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    let mut retry = settlement(&retried, super::failed(), &clock);
    retry.next = NextState::Pending { due_at: clock.now(), failures: 0, uncertain: true };
    settle(&ledger, [retry]).await;
    let rest = claim(&ledger, &lane, DEEP).await;
    assert_eq!((rest.deliveries.len(), rest.remaining), (DEEP - 9, Remaining::Nothing));
    let last = rest.deliveries.last().expect("the retry");
    assert_eq!((&*last.identity.id, last.attempt, last.uncertain), ("e0", 5, true));
}

async fn a_throttled_delivery_keeps_its_place(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", DEEP).await;
    let first = claim(&ledger, &lane, 10).await.deliveries;
    let failure = Failure::answered(429, "slow down");
    let throttled = Outcome::Throttled { failure, retry_after: None };
    let throttled = settlement(&first[4], throttled, &clock);
    settle(&ledger, [throttled.clone()]).await;
    let second = claim(&ledger, &lane, 2).await.deliveries;
    assert_eq!(ids(&second), ["e4", "e10"]);
    assert_eq!((second[0].attempt, second[0].failures, second[0].due_at), (2, 0, first[4].due_at));
    // The same word once more, about a claim that is no more.
    settle(&ledger, [throttled]).await;
    assert_eq!(ids(&claim(&ledger, &lane, 1).await.deliveries), ["e11"]);
    settle(&ledger, [settlement(&second[0], delivered(), &clock)]).await;
    let log = ledger.database().attempt_log("acme", "e4").await.expect("an answer");
    assert_eq!(log, [(1, "http_429".to_owned(), "slow down".to_owned())]);
}

async fn a_release_in_a_deep_lane_comes_next(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    fill(&ledger, &lane, "e", DEEP).await;
    let first = claim(&ledger, &lane, 10).await.deliveries;
    let second = claim(&ledger, &lane, 10).await.deliveries;
    ledger.release(&first[3..5]).await.expect("released");
    ledger.release(&second[9..]).await.expect("released");
    let third = claim(&ledger, &lane, 4).await;
    assert_eq!((ids(&third.deliveries), third.remaining), (vec!["e3", "e4", "e19", "e20"], Remaining::Due));
}

async fn a_lease_that_ran_out_in_a_deep_lane_is_found(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", DEEP).await;
    let lost = claim(&ledger, &lane, 2).await.deliveries;
    database.let_leases_age(Duration::from_secs(30), &clock).await;
    let kept = claim(&ledger, &lane, 2).await.deliveries;
    database.let_leases_age(Duration::from_secs(31), &clock).await;
    let again = claim(&ledger, &lane, 3).await.deliveries;
    assert_eq!((ids(&lost), ids(&kept)), (vec!["e0", "e1"], vec!["e2", "e3"]));
    assert_eq!(ids(&again), ["e0", "e1", "e4"], "it must not wait until the lane has drained");
    assert_eq!(again[0].attempt, 2);
}

async fn an_event_recorded_after_the_clock_went_back_is_found(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", DEEP).await;
    clock.move_wall(1_000);
    assert_eq!(claim(&ledger, &lane, 10).await.deliveries.len(), 10);
    clock.move_wall(-2_000);
    fill(&ledger, &lane, "back", 2).await;
    let claimed = claim(&ledger, &lane, 10).await;
    assert_eq!(ids(&claimed.deliveries), ["back0", "back1"]);
    assert!(matches!(claimed.remaining, Remaining::Later(_)), "the others are due in a second");
    clock.move_wall(2_000);
    assert_eq!(ids(&claim(&ledger, &lane, 1).await.deliveries), ["e10"]);
}
