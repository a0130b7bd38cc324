//! What became of an attempt is recorded, once.

use std::collections::HashSet;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{Class, DeadReason, Failure, NextState, Outcome};
use posthaste::domain::scheduler::Remaining;

use super::{
    claim, claim_class, claim_retries, delivered, failed, fill, ids, open_with_lane, settle, settlement,
};
use crate::support::{TestClock, TestDatabase, side_by_side};

on_both_databases! {
    a_delivered_event_is_done,
    a_failure_waits_and_keeps_what_it_knows,
    a_dead_delivery_keeps_its_reason_and_the_receivers_words,
    thousands_settle_in_one_go,
    a_claim_is_settled_once,
    an_old_and_a_new_claim_settled_together_count_once,
    a_claim_given_back_can_not_be_settled,
    a_settlement_may_give_its_claim_back,
    a_receivers_nul_does_not_stop_the_ledger,
}

async fn a_delivered_event_is_done(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 2).await;
    let claimed = claim(&ledger, &lane, 2).await.deliveries;
    let unconfirmed = Outcome::Delivered { status: 409, remote_id: None, dispatch_unconfirmed: true };
    settle(
        &ledger,
        [settlement(&claimed[0], delivered(), &clock), settlement(&claimed[1], unconfirmed, &clock)],
    )
    .await;
    let plain = ledger.database().outcomes("acme", "e0").await.expect("an answer").remove(0);
    assert_eq!((plain.state.as_str(), plain.attempts, plain.failures), ("delivered", 1, 0));
    assert_eq!((plain.status, plain.remote_id.as_deref()), (Some(202), Some("msg_1")));
    assert_eq!((plain.dispatch_unconfirmed, plain.reason), (false, None));
    let flagged = ledger.database().outcomes("acme", "e1").await.expect("an answer").remove(0);
    assert_eq!((flagged.status, flagged.remote_id, flagged.dispatch_unconfirmed), (Some(409), None, true));
    assert_eq!(ledger.database().attempt_log("acme", "e0").await.expect("an answer"), []);
    assert_eq!(ledger.waiting(), 0);
    database.let_leases_age(std::time::Duration::from_secs(3_600), &clock).await;
    assert_eq!(claim(&ledger, &lane, 2).await.remaining, Remaining::Nothing);
}

async fn a_failure_waits_and_keeps_what_it_knows(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 1).await;
    let first = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    clock.pass(std::time::Duration::from_millis(700));
    settle(&ledger, [settlement(&first, failed(), &clock)]).await;
    let due_at = clock.now() + super::RETRY_AFTER[0];
    assert_eq!(claim_retries(&ledger, &lane, 1).await.remaining, Remaining::Later(due_at));
    assert_eq!(ledger.waiting(), 1);
    clock.pass(super::RETRY_AFTER[0]);
    let second = claim_retries(&ledger, &lane, 1).await.deliveries.remove(0);
    assert_eq!((second.id, second.due_at, second.received_at), (first.id, due_at, first.received_at));
    assert_eq!((second.attempt, second.failures, second.uncertain), (2, 1, true));
    let refused = Outcome::Failed(Failure::transport("connect_refused", "nobody there", false));
    settle(&ledger, [settlement(&second, refused, &clock)]).await;
    clock.pass(super::RETRY_AFTER[1]);
    let third = claim_retries(&ledger, &lane, 1).await.deliveries.remove(0);
    assert_eq!((third.attempt, third.failures, third.uncertain), (3, 2, true), "once uncertain, always");
    settle(&ledger, [settlement(&third, delivered(), &clock)]).await;
    let outcome = ledger.database().outcomes("acme", "e0").await.expect("an answer").remove(0);
    assert_eq!((outcome.state.as_str(), outcome.attempts, outcome.failures), ("delivered", 3, 2));
    let log = ledger.database().attempt_log("acme", "e0").await.expect("an answer");
    let expected = [(1, "http_500", "oops"), (2, "connect_refused", "nobody there")];
    assert_eq!(log, expected.map(|(attempt, code, detail)| (attempt, code.into(), detail.into())));
}

async fn a_dead_delivery_keeps_its_reason_and_the_receivers_words(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 1).await;
    let odd = "⛔ 'eventType' — \"too\\long\" \u{202e}\u{10ffff}";
    for (at, after) in super::RETRY_AFTER.iter().enumerate() {
        let class = Class::of(u32::try_from(at).expect("few"));
        let claimed = claim_class(&ledger, &lane, class, 1).await.deliveries.remove(0);
        assert_eq!(claimed.failures as usize, at);
        settle(&ledger, [settlement(&claimed, failed(), &clock)]).await;
        clock.pass(*after);
    }
    let last = claim_retries(&ledger, &lane, 1).await.deliveries.remove(0);
    settle(&ledger, [settlement(&last, failed(), &clock)]).await;
    fill(&ledger, &lane, "f", 1).await;
    let refused = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    let rejected = Outcome::Rejected(DeadReason::Rejected, Failure::answered(422, odd));
    settle(&ledger, [settlement(&refused, rejected, &clock)]).await;
    for (id, attempts, failures, status, reason) in
        [("e0", 3, 3, 500, "retries_exhausted"), ("f0", 1, 1, 422, "rejected")]
    {
        let outcome = ledger.database().outcomes("acme", id).await.expect("an answer").remove(0);
        assert_eq!((outcome.state.as_str(), outcome.reason.as_deref()), ("dead", Some(reason)));
        assert_eq!((outcome.attempts, outcome.failures, outcome.status), (attempts, failures, Some(status)));
    }
    let log = ledger.database().attempt_log("acme", "e0").await.expect("an answer");
    assert_eq!(log.iter().map(|(attempt, ..)| *attempt).collect::<Vec<_>>(), [1, 2, 3]);
    let log = ledger.database().attempt_log("acme", "f0").await.expect("an answer");
    assert_eq!(log, [(1, "http_422".to_owned(), odd.to_owned())]);
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done.get("dead"), ledger.waiting()), (0, Some(&2), 0));
}

async fn thousands_settle_in_one_go(database: TestDatabase) {
    const COUNT: usize = 5_000;
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", COUNT).await;
    let claimed = claim(&ledger, &lane, COUNT).await.deliveries;
    assert_eq!(claimed.iter().map(|delivery| delivery.id).collect::<HashSet<_>>().len(), COUNT);
    let settling = claimed.into_iter().enumerate().map(|(n, delivery)| {
        let outcome = match n % 4 {
            0 => failed(),
            1 => Outcome::Rejected(DeadReason::Rejected, Failure::answered(400, "no")),
            _ => delivered(),
        };
        let (ledger, settlement) = (ledger.clone(), settlement(&delivery, outcome, &clock));
        async move { ledger.settle(settlement).await.expect("taken in") }
    });
    side_by_side(settling).await;
    super::committed(&ledger).await;
    let progress = ledger.database().progress().await.expect("an account");
    let quarter = i64::try_from(COUNT / 4).expect("small");
    assert_eq!((progress.created, progress.pending), (4 * quarter, quarter));
    assert_eq!(progress.done, [("delivered".to_owned(), 2 * quarter), ("dead".to_owned(), quarter)].into());
    assert_eq!(ledger.waiting(), quarter.unsigned_abs());
}

async fn a_claim_is_settled_once(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 40).await;
    let claimed = claim(&ledger, &lane, 40).await.deliveries;
    // In one commit and in two, the same word and another one: the first word counts.
    let twice = claimed.iter().flat_map(|delivery| {
        [delivered(), delivered(), failed()].map(|outcome| settlement(delivery, outcome, &clock))
    });
    settle(&ledger, twice).await;
    settle(&ledger, claimed.iter().map(|delivery| settlement(delivery, failed(), &clock))).await;
    assert_eq!(ledger.trouble(), None);
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done), (0, [("delivered".to_owned(), 40)].into()));
    assert_eq!(ledger.waiting(), 0);
    assert_eq!(ledger.database().attempt_log("acme", "e0").await.expect("an answer"), []);
}

async fn an_old_and_a_new_claim_settled_together_count_once(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 60).await;
    let old = claim(&ledger, &lane, 40).await.deliveries;
    ledger.release(&old).await.expect("released");
    let new = claim(&ledger, &lane, 40).await.deliveries;
    assert_eq!(ids(&old), ids(&new));
    let both = old
        .iter()
        .zip(&new)
        .flat_map(|(old, new)| [settlement(old, failed(), &clock), settlement(new, delivered(), &clock)]);
    settle(&ledger, both).await;
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.pending, progress.done), (20, [("delivered".to_owned(), 40)].into()));
    assert_eq!(ledger.waiting(), 20);
    assert_eq!(ledger.database().attempt_log("acme", "e0").await.expect("an answer"), []);
}

async fn a_claim_given_back_can_not_be_settled(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 1).await;
    let claimed = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    ledger.release(std::slice::from_ref(&claimed)).await.expect("released");
    for outcome in [delivered(), failed()] {
        settle(&ledger, [settlement(&claimed, outcome, &clock)]).await;
    }
    assert_eq!(ledger.database().outcomes("acme", "e0").await.expect("an answer"), []);
    assert_eq!(ledger.waiting(), 1);
    assert_eq!(claim(&ledger, &lane, 1).await.deliveries[0].attempt, 2);
}

async fn a_settlement_may_give_its_claim_back(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 30).await;
    let claimed = claim(&ledger, &lane, 3).await.deliveries;
    let unsent = settlement(&claimed[1], Outcome::NotSent, &clock);
    assert_eq!(unsent.next, NextState::Released);
    settle(&ledger, [unsent]).await;
    let again = claim(&ledger, &lane, 2).await.deliveries;
    assert_eq!(ids(&again), ["e1", "e3"]);
    assert_eq!((again[0].attempt, again[0].failures), (2, 0));
    settle(&ledger, [settlement(&again[0], delivered(), &clock)]).await;
    assert_eq!(ledger.waiting(), 29);
}

async fn a_receivers_nul_does_not_stop_the_ledger(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 1).await;
    let claimed = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    let remote_id = Some("msg\0id".into());
    let outcome = Outcome::Delivered { status: 202, remote_id, dispatch_unconfirmed: false };
    settle(&ledger, [settlement(&claimed, outcome, &clock)]).await;
    let outcome = ledger.database().outcomes("acme", "e0").await.expect("an answer").remove(0);
    assert_eq!(outcome.remote_id.as_deref(), Some("msg\u{fffd}id"));
    assert_eq!(ledger.trouble(), None);
}
