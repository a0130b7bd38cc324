//! Fences: a node that was overtaken changes nothing any more, whatever it still believes.

use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::Class;
use posthaste::domain::partner::RateLimit;
use posthaste::domain::replay::EndState;
use posthaste::domain::scheduler::{LaneClaim, TokenWish};
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{Ledger, LedgerError, NewReplay, ReplayStep, ReplayWork, Selection};

use super::{claim, claim_retries, close, delivered, fill, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase, bounded, event, eventually};

on_both_databases! {
    a_replay_step_from_an_old_cursor_changes_nothing,
    a_chore_that_was_taken_over_does_nothing_more,
    every_start_has_an_epoch_of_its_own,
}

const REPLAY: &str = "rpl_1";
const LEASE: Duration = Duration::from_secs(10);
/// Ends the leases of whoever works on replays and chores.
const END_LEASES: &str = "UPDATE replay SET worker_until = 0; UPDATE chore SET worker_until = 0";
/// Gives every node number to another node, which has just been seen.
pub const HOLD_ALL_NUMBERS: &str = "INSERT INTO node (number, epoch, seen_at)
    SELECT number, 'another', (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint
    FROM generate_series(0, 1023) AS all_numbers (number)
    ON CONFLICT (number) DO UPDATE SET epoch = excluded.epoch, seen_at = excluded.seen_at";
/// Lets every node number be free, as if its holder had been silent for too long.
const END_NUMBERS: &str = "UPDATE node SET seen_at = seen_at - 601000";

/// Delivers `count` events and starts a replay of them.
async fn delivered_and_replayed(ledger: &Ledger, lane: &Arc<Lane>, clock: &TestClock, count: usize) {
    fill(ledger, lane, "e", count).await;
    let claimed = claim(ledger, lane, count).await.deliveries;
    settle(ledger, claimed.iter().map(|delivery| settlement(delivery, delivered(), clock))).await;
    let selection = Selection {
        tenant: None,
        event_type: None,
        destinations: None,
        states: vec![EndState::Delivered],
        since_ms: i64::MIN,
        until_ms: i64::MAX,
        first_event: 0,
        last_event: i64::MAX,
        listed: None,
    };
    let new = NewReplay {
        id: REPLAY.into(),
        tenant: None,
        filter: "{}".into(),
        selection,
        pace: 100,
        new_ids: false,
        started_by: "test".into(),
        total: None,
    };
    ledger.database().add_replay(&new, clock.now()).await.expect("a replay");
}

/// Takes the replay and reads how far it has come.
async fn take(ledger: &Ledger) -> ReplayWork {
    assert_eq!(ledger.take_replays(LEASE).await.expect("an answer"), [REPLAY]);
    ledger.database().replay_work(REPLAY).await.expect("an answer").expect("a replay")
}

/// Queues the next `rows` deliveries of a replay; how many were queued.
async fn step(ledger: &Ledger, work: &ReplayWork, rows: u32) -> Option<usize> {
    let database = ledger.database();
    let window = database.replay_window(&work.selection, work.cursor, rows).await.expect("an answer");
    let step = ReplayStep {
        deliveries: &window.candidates,
        routed: &[],
        cursor: window.reached,
        exhausted: window.exhausted,
    };
    ledger.replay_step(work, &step).await.expect("an answer")
}

/// Delivers what a replay has queued; how much that was.
async fn deliver_retries(ledger: &Ledger, lane: &Arc<Lane>, clock: &TestClock) -> usize {
    let claimed = claim_retries(ledger, lane, 1_000).await.deliveries;
    settle(ledger, claimed.iter().map(|delivery| settlement(delivery, delivered(), clock))).await;
    claimed.len()
}

/// How many deliveries the replay says it has queued, and how many were queued more than once.
async fn queued(ledger: &Ledger, database: &TestDatabase) -> (i64, String) {
    let row = ledger.database().replay(REPLAY).await.expect("an answer").expect("a replay");
    let twice = "SELECT CAST(COUNT(*) AS TEXT) FROM earlier_outcome WHERE number > 1";
    (row.queued, database.text(twice).await)
}

async fn a_replay_step_from_an_old_cursor_changes_nothing(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    delivered_and_replayed(&ledger, &lane, &clock, 40).await;
    let old = take(&ledger).await;
    assert_eq!(step(&ledger, &old, 10).await, Some(10));
    assert_eq!(deliver_retries(&ledger, &lane, &clock).await, 10);
    // Once more from where the first step began, as a worker does that was stopped before it heard of its own step.
    assert_eq!(step(&ledger, &old, 10).await, None, "a step from an old cursor is refused");
    assert_eq!(deliver_retries(&ledger, &lane, &clock).await, 0);
    let rest = take(&ledger).await;
    assert_eq!(step(&ledger, &rest, 100).await, Some(30));
    assert_eq!(queued(&ledger, &database).await, (40, "0".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_given_to_another_node_carries_no_replay_and_no_chore_over() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (one, lane) = open_with_lane(&database, &clock).await;
    delivered_and_replayed(&one, &lane, &clock, 40).await;
    let work = take(&one).await;
    assert_eq!(step(&one, &work, 10).await, Some(10));
    let chore = one.take_chore("prune", Duration::ZERO, LEASE).await.expect("an answer").expect("it is free");
    database.execute(END_NUMBERS).await;
    let two = database.open(&clock).await;
    assert_eq!(two.node(), one.node(), "it has the number of the first");
    assert!(two.epoch() > one.epoch(), "and an epoch of its own");
    // The leases of the first still hold, and are not the second's because it has the same number.
    assert_eq!(two.take_replays(LEASE).await.expect("an answer"), [""; 0]);
    assert!(two.take_chore("prune", Duration::ZERO, LEASE).await.expect("an answer").is_none());
    assert!(!two.keep_chore(&chore, LEASE).await.expect("an answer"));
    database.execute(END_LEASES).await;
    let next = take(&two).await;
    assert!(two.take_chore("prune", Duration::ZERO, LEASE).await.expect("an answer").is_some());
    assert_eq!(step(&two, &next, 100).await, Some(30));
    assert_eq!(queued(&two, &database).await, (40, "0".into()));
}

/// The state, the cursor and what the replay waits for, as text.
async fn replay_row(database: &TestDatabase) -> String {
    let columns = "state || ' ' || cursor_event || ' ' || delivered || ' ' || COALESCE(waits_for, 'nothing')";
    database.text(&format!("SELECT {columns} FROM replay")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_replay_was_taken_over_writes_nothing_of_it() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (one, lane) = open_with_lane(&database, &clock).await;
    let two = database.open(&clock).await;
    delivered_and_replayed(&one, &lane, &clock, 40).await;
    let old = take(&one).await;
    assert_eq!(step(&one, &old, 10).await, Some(10));
    let stood = take(&one).await;
    database.execute(END_LEASES).await;
    let next = take(&two).await;
    assert_eq!(
        (next.cursor, next.exhausted),
        (stood.cursor, false),
        "the second goes on where the first stood"
    );
    // The first has missed that.
    for work in [&old, &stood] {
        assert_eq!(step(&one, work, 10).await, None);
    }
    assert_eq!(step(&two, &next, 100).await, Some(30));
    assert_eq!(deliver_retries(&two, &lane, &clock).await, 40);
    let before = replay_row(&database).await;
    one.note_replay(REPLAY, Some("nothing at all")).await.expect("an answer");
    assert_eq!(one.count_tried(REPLAY).await.expect("an answer"), 0);
    assert!(!one.complete_replay(REPLAY, clock.now()).await.expect("an answer"));
    one.release_replays().await.expect("an answer");
    assert_eq!(one.take_replays(LEASE).await.expect("an answer"), [""; 0], "it is still the second's");
    assert_eq!(replay_row(&database).await, before);
    assert_eq!(two.count_tried(REPLAY).await.expect("an answer"), 40);
    assert!(two.complete_replay(REPLAY, clock.now()).await.expect("an answer"));
    assert_eq!(queued(&two, &database).await, (40, "0".into()));
}

async fn a_chore_that_was_taken_over_does_nothing_more(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 3).await;
    let claimed = claim(&ledger, &lane, 3).await.deliveries;
    settle(&ledger, claimed.iter().map(|delivery| settlement(delivery, delivered(), &clock))).await;
    let chore =
        ledger.take_chore("prune", Duration::ZERO, LEASE).await.expect("an answer").expect("it is free");
    let done = ledger.database().done_events(0, i64::MAX, 10).await.expect("an answer");
    assert_eq!(done.len(), 3);
    let prune = async || {
        let (database, later) = (ledger.database(), clock.now() + Duration::from_secs(3_600));
        let events = database.prune_events(&done[..1], Some(&chore)).await.expect("an answer");
        let identities = database.old_identities(("", "", ""), 10).await.expect("an answer").0;
        let orphans: Vec<_> = identities.into_iter().filter(|identity| identity.orphan).collect();
        let identities = database.prune_identities(&orphans, Some(&chore)).await.expect("an answer");
        let replays = database.prune_replays(later, false, Some(&chore)).await.expect("an answer");
        (events, identities, replays)
    };
    database.execute("UPDATE chore SET worker = worker + 1").await;
    assert_eq!(prune().await, (0, 0, 0), "another node does it now");
    assert!(!ledger.keep_chore(&chore, LEASE).await.expect("an answer"));
    assert!(!ledger.chore_done(&chore).await.expect("an answer"));
    database.execute("UPDATE chore SET worker = worker - 1").await;
    assert_eq!(prune().await, (1, 1, 0));
    assert!(ledger.keep_chore(&chore, LEASE).await.expect("an answer"));
    assert!(ledger.chore_done(&chore).await.expect("an answer"));
}

async fn every_start_has_an_epoch_of_its_own(database: TestDatabase) {
    let clock = TestClock::new();
    let mut last = posthaste::domain::sequence::NODES;
    for _ in 0..3 {
        let ledger = database.open(&clock).await;
        assert!(ledger.epoch() > last, "{} follows {last}", ledger.epoch());
        assert_eq!(ledger.node(), 0, "the number was free again");
        last = ledger.epoch();
        close(ledger).await;
    }
}

/// Gives the number of a running node to another one, which has just been seen.
async fn give_number_away(database: &TestDatabase, ledger: &Ledger) -> i64 {
    let number = ledger.node();
    let now = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint";
    database
        .execute(&format!("UPDATE node SET epoch = 'another', seen_at = {now} WHERE number = {number}"))
        .await;
    number
}

/// Waits until the node has another number than `before` and takes writes.
async fn has_another_number(ledger: &Ledger, before: i64) {
    let look = async || (ledger.node() != before && ledger.trouble().is_none()).then_some(());
    eventually("it has another number", look).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_guarded_call_finds_that_the_number_is_lost_and_changes_nothing() {
    // holds: 55
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    delivered_and_replayed(&ledger, &lane, &clock, 20).await;
    fill(&ledger, &lane, "waiting", 3).await;
    let limit = RateLimit { per_second: 10.0, burst: 10 };
    let wish = [TokenWish { partner: "p".into(), limit, count: 5 }];
    let claims = [LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 10 }];
    for call in ["claim", "tokens", "take replays", "step", "take chore", "keep chore"] {
        let work = take(&ledger).await;
        let chore = ledger.take_chore(call, Duration::ZERO, LEASE).await.expect("an answer").expect("free");
        let before = give_number_away(&database, &ledger).await;
        let refused = match call {
            "claim" => ledger.claim(&claims).await.err(),
            "tokens" => ledger.reserve_tokens(&wish).await.err(),
            "take replays" => ledger.take_replays(LEASE).await.err(),
            "step" => {
                let candidates = [];
                let step =
                    ReplayStep { deliveries: &candidates, routed: &[], cursor: (1, 1), exhausted: true };
                ledger.replay_step(&work, &step).await.err()
            }
            "take chore" => ledger.take_chore("other", Duration::ZERO, LEASE).await.err(),
            _ => ledger.keep_chore(&chore, LEASE).await.err(),
        };
        let refused = refused.unwrap_or_else(|| panic!("{call} is not refused"));
        assert!(matches!(refused, LedgerError::NumberLost(number) if number == before), "{call}: {refused}");
        has_another_number(&ledger, before).await;
        database.execute(END_LEASES).await;
    }
    assert_eq!(take(&ledger).await.cursor.0, -1, "no step was made");
    let untouched = "SELECT (SELECT COUNT(*) FROM queue WHERE attempt = 0) || ' '
                         || (SELECT COUNT(*) FROM partner_tokens) || ' '
                         || (SELECT COUNT(*) FROM chore WHERE name = 'other')";
    assert_eq!(database.text(untouched).await, "3 0 0");
    // A commit of events is made again under the new number by itself.
    let before = give_number_away(&database, &ledger).await;
    fill(&ledger, &lane, "late", 3).await;
    let number =
        "SELECT string_agg(DISTINCT ((seq >> 12) % 1024)::text, ',') FROM event WHERE id LIKE 'late%'";
    assert_eq!(database.text(number).await, ledger.node().to_string());
    assert_ne!(ledger.node(), before);
    assert_eq!(claim(&ledger, &lane, 10).await.deliveries.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_can_have_no_other_number_settles_what_it_holds_and_ends() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 2).await;
    let held = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    database.execute(HOLD_ALL_NUMBERS).await;
    let claims = [LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 10 }];
    let refused = ledger.claim(&claims).await.expect_err("refused");
    assert!(matches!(refused, LedgerError::NumberLost(0)), "{refused}");
    assert!(ledger.trouble().is_some() && ledger.admits().is_err(), "it shows immediately");
    let reason = bounded(ledger.excluded()).await;
    assert!(reason.contains("no node number could be had"), "{reason}");
    let refused = ledger.accept(vec![event("late").build()], true, None).await.expect_err("refused");
    assert!(matches!(refused, LedgerError::Unavailable(_)), "{refused}");
    ledger.settle(settlement(&held, delivered(), &clock)).await.expect("taken in");
    eventually("its claim still holds", async || {
        let progress = ledger.database().progress().await.expect("an account");
        (progress.done.get("delivered") == Some(&1)).then_some(())
    })
    .await;
    assert!(ledger.trouble().is_some());
}
