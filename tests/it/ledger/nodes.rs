//! Several nodes on one Postgres, and what that server must be like.

use std::collections::BTreeSet;
use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{Class, Delivery};
use posthaste::domain::gate::CloseReason;
use posthaste::domain::scheduler::LaneClaim;
use posthaste::domain::sequence::NODES;
use posthaste::ledger::ItemVerdict::{Accepted as New, Duplicate};
use posthaste::ledger::{Ledger, LedgerError, LedgerOptions, Notice};

use super::handoff::Desk;
use super::{accept, claim, close, delivered, fill, ids, lane, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase, bounded, event, eventually, side_by_side};

/// Milliseconds on the database's clock.
const DATABASE_MS: &str = "SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint::text";

/// The number of the node that recorded this delivery's event.
const fn node_of(delivery: &Delivery) -> i64 {
    (delivery.id.event.0 >> 12) % NODES
}

/// Accepts and claims one event; the number of the node.
async fn number_of(ledger: &Ledger, app: &str) -> i64 {
    let lane = lane(ledger, app, "acme").await;
    accept(ledger, vec![event(app).to(&lane).build()]).await;
    node_of(&claim(ledger, &lane, 1).await.deliveries[0])
}

/// Takes events in this order, fifty a request; how many were new.
async fn accept_in_order(ledger: Ledger, ids: Vec<usize>) -> usize {
    let lane = lane(&ledger, "acme", "acme").await;
    let mut new = 0;
    for batch in ids.chunks(50) {
        let events = batch.iter().map(|id| event(format!("e{id:03}")).to(&lane).build()).collect();
        let verdicts = accept(&ledger, events).await;
        assert!(verdicts.iter().all(|verdict| [New, Duplicate].contains(verdict)));
        new += verdicts.iter().filter(|verdict| **verdict == New).count();
    }
    new
}

/// Claims until nothing is left.
async fn claim_all(ledger: Ledger) -> Vec<Delivery> {
    let lane = lane(&ledger, "acme", "acme").await;
    let mut claimed = Vec::new();
    loop {
        let deliveries = claim(&ledger, &lane, 20).await.deliveries;
        if deliveries.is_empty() {
            return claimed;
        }
        claimed.extend(deliveries);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_share_events_and_deliveries() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (one, two) = (database.open(&clock).await, database.open(&clock).await);
    let upwards = accept_in_order(one.clone(), (0..500).collect());
    let downwards = accept_in_order(two.clone(), (0..500).rev().collect());
    let new = bounded(async { tokio::join!(upwards, downwards) }).await;
    assert_eq!(new.0 + new.1, 500, "each once, whoever was first: {new:?}");
    let progress = one.database().progress().await.expect("an account");
    assert_eq!((progress.events, progress.created, progress.pending), (500, 500, 500));
    let claimed = bounded(side_by_side([claim_all(one), claim_all(two)])).await;
    let mut claimed = claimed.concat();
    assert!(claimed.iter().all(|delivery| delivery.attempt == 1));
    claimed.sort_by(|one, other| one.identity.id.cmp(&other.identity.id));
    let expected: Vec<_> = (0..500).map(|id| format!("e{id:03}")).collect();
    assert_eq!(ids(&claimed), expected);
    let nodes: BTreeSet<_> = claimed.iter().map(node_of).collect();
    assert!(nodes.is_subset(&[0, 1].into()), "{nodes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_has_a_number_of_its_own() {
    // holds: 52
    let database = TestDatabase::postgres().await;
    let (clock, ahead) = (TestClock::new(), TestClock::new());
    ahead.move_wall(3_600_000);
    // The first makes the schema; the others begin at the same instant, one of them with its clock an hour ahead.
    let first = database.open(&clock).await;
    let open = || database.open(&clock);
    let opening = async { tokio::join!(open(), open(), database.open(&ahead), open(), open()) };
    let (second, third, fourth, fifth, sixth) = bounded(opening).await;
    let mut nodes = vec![second, third, fourth, fifth, sixth, first];
    let mut numbers = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        numbers.push(number_of(node, &format!("app{n}")).await);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    // A number that is given back is used again.
    let last = nodes.pop().expect("the first of them");
    let number = number_of(&last, "once more").await;
    close(last).await;
    assert_eq!(number_of(&database.open(&clock).await, "again").await, number);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_nodes_may_make_the_schema_at_once() {
    // holds: 22, partly: nobody is killed here
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let open = || database.open(&clock);
    let (one, two, three) = bounded(async { tokio::join!(open(), open(), open()) }).await;
    let mut numbers = [number_of(&one, "1").await, number_of(&two, "2").await, number_of(&three, "3").await];
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_node_keeps_its_number() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    database.execute("UPDATE node SET seen_at = 1").await;
    // Never idle for as long as it takes to be asked for a sign of life.
    for n in 0..12 {
        fill(&ledger, &lane, &format!("{n}-"), 1).await;
        clock.pass(Duration::from_secs(1));
    }
    assert_ne!(database.text("SELECT seen_at::text FROM node").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_number_goes_on_under_a_new_one() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (cut_off, lane) = open_with_lane(&database, &clock).await;
    assert_eq!(number_of(&cut_off, "one").await, 0);
    fill(&cut_off, &lane, "held", 2).await;
    let held = claim(&cut_off, &lane, 2).await.deliveries;
    // As if it had been cut off for long, while another began.
    database.execute("UPDATE node SET seen_at = seen_at - 601000").await;
    let other = database.open(&clock).await;
    assert_eq!(number_of(&other, "two").await, 0);
    // What waits for its next heartbeat is accepted under another number.
    clock.pass(Duration::from_secs(10));
    assert_eq!(accept(&cut_off, vec![event("late").to(&lane).build()]).await, [New]);
    assert_eq!((cut_off.node(), cut_off.trouble()), (1, None));
    assert!(cut_off.epoch() > other.epoch());
    let late = claim(&cut_off, &lane, 1).await.deliveries;
    assert_eq!((ids(&late), node_of(&late[0])), (vec!["late"], 1));
    // What it had claimed before is its own.
    settle(&cut_off, held.iter().chain(&late).map(|held| settlement(held, delivered(), &clock))).await;
    let progress = other.database().progress().await.expect("an account");
    assert_eq!(progress.done.get("delivered"), Some(&3));
    assert_eq!(number_of(&other, "three").await, 0, "the other keeps it");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_lose_nothing() {
    // holds: 17, partly: the connections die here, not the server
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let cutting = async {
        tokio::pin!(stopped);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'posthaste'";
        loop {
            tokio::select! {
                _ = &mut stopped => return,
                () = database.execute(cut) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
    };
    let working = async {
        for n in 0..40 {
            let batch: Vec<_> = (0..25).map(|item| event(format!("{n}-{item}")).to(&lane).build()).collect();
            eventually("it is stored", async || ledger.accept(batch.clone(), true, None).await.ok()).await;
            let wish = [LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 25 }];
            let (claimed, _) = eventually("it is claimed", async || ledger.claim(&wish).await.ok()).await;
            for delivery in &claimed[0].deliveries {
                ledger.settle(settlement(delivery, delivered(), &clock)).await.expect("taken in");
            }
        }
        let _ = stop.send(());
    };
    bounded(async { tokio::join!(cutting, working) }).await;
    // A claim whose answer was cut off is held until its lease ends; all else is done.
    eventually("the rest is claimed", async || {
        database.let_leases_age(Duration::from_secs(61), &clock).await;
        ledger.accept(Vec::new(), true, None).await.ok()?;
        let deliveries = claim(&ledger, &lane, 1_000).await.deliveries;
        for delivery in &deliveries {
            ledger.settle(settlement(delivery, delivered(), &clock)).await.expect("taken in");
        }
        deliveries.is_empty().then_some(())
    })
    .await;
    // A connection may die of the last cut even now.
    let progress = eventually("an account", async || ledger.database().progress().await.ok()).await;
    assert_eq!((progress.events, progress.created, progress.pending), (1_000, 1_000, 0));
    assert_eq!(progress.done.get("delivered"), Some(&1_000));
    assert_eq!(ledger.trouble(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_by_the_databases_clock() {
    // holds: 52
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let options = LedgerOptions { lease: Duration::from_millis(700), ..database.options() };
    let ledger = database.open_with(&options, &clock).await.expect("opens");
    let lane = lane(&ledger, "acme", "acme").await;
    fill(&ledger, &lane, "e", 1).await;
    let millis = async || database.text(DATABASE_MS).await.parse::<i64>().expect("a number");
    let began = millis().await;
    assert_eq!(claim(&ledger, &lane, 1).await.deliveries[0].attempt, 1);
    // Ours may go where they like.
    clock.pass(Duration::from_secs(3_600));
    let again = eventually("the lease ends", async || claim(&ledger, &lane, 1).await.deliveries.pop()).await;
    assert_eq!(again.attempt, 2);
    assert!(millis().await - began >= 700, "not early");
    assert!(clock.now() > again.due_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_acknowledges_too_early_is_refused() {
    // holds: 10
    let database = TestDatabase::postgres().await;
    for (value, refused) in [("off", true), ("local", false), ("on", false)] {
        let set = format!(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = {value}', current_database());
             END $$"
        );
        database.execute(&set).await;
        match database.open_with(&database.options(), &TestClock::new()).await {
            Ok(_) => assert!(!refused, "{value}"),
            Err(error) => {
                assert!(refused && matches!(error, LedgerError::Refused(_)), "{value}: {error:?}");
                assert!(error.to_string().contains("synchronous_commit=off"), "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_told() {
    let database = TestDatabase::postgres().await;
    let open = async |url: &str| {
        let options = LedgerOptions { url: url.into(), ..database.options() };
        bounded(database.open_with(&options, &TestClock::new())).await.err().expect("not opened")
    };
    let unreachable = open("postgres://nobody@127.0.0.1:1/none").await;
    assert!(matches!(unreachable, LedgerError::Unavailable(_)), "{unreachable:?}");
    assert!(unreachable.to_string().contains("can't reach Postgres"), "{unreachable}");
    for url in ["mysql://root:secret@localhost/ledger", "ledger.db", "postgres://[::1"] {
        let refused = open(url).await;
        assert!(matches!(refused, LedgerError::Refused(_)), "{url}: {refused:?}");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finding_busy_lanes_looks_once_into_each() {
    let database = TestDatabase::postgres().await;
    let ledger = database.open(&TestClock::new()).await;
    for n in 0..10 {
        let lane = lane(&ledger, &format!("app{n}"), "acme").await;
        fill(&ledger, &lane, &format!("{n}-"), 300).await;
    }
    assert_eq!(ledger.busy_lanes(None, 100).await.expect("an answer").len(), 10);
    // The statement as the server last saw it.
    let statement = database
        .text(
            "SELECT query FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'WITH RECURSIVE busy%' LIMIT 1",
        )
        .await;
    let explain = format!(
        "CREATE FUNCTION plan() RETURNS TABLE (line text) LANGUAGE plpgsql AS
             $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (ANALYZE, TIMING OFF) EXECUTE busy(0, 100)'; END $$;
         ANALYZE queue;
         PREPARE busy (bigint, bigint) AS {statement};
         CREATE TABLE plan AS SELECT string_agg(line, chr(10)) AS text FROM plan()"
    );
    database.execute(&explain).await;
    let plan = database.text("SELECT text FROM plan").await;
    assert!(!plan.contains("Seq Scan"), "{plan}");
    // Never more than one row, the first of its kind in a lane, however many wait behind it.
    for line in plan.lines().filter(|line| line.contains("Index")) {
        assert!(line.contains("queue_pkey") || line.contains("Index Cond"), "{plan}");
        let one = ["rows=1 ", "rows=1.00 ", "rows=0 ", "rows=0.00 "];
        let one = one.iter().any(|rows| line.contains(&format!("actual {rows}")));
        assert!(one || !line.contains("actual"), "{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_tell_one_another_what_there_is_and_not_themselves() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (one, two) = (database.open(&clock).await, database.open(&clock).await);
    let (mut at_one, mut at_two) = (one.notices(), two.notices());
    // Whoever begins to listen looks at everything once.
    for heard in [&mut at_one, &mut at_two] {
        for expected in [Notice::Gates, Notice::Revision, Notice::Look] {
            assert_eq!(bounded(heard.recv()).await, Ok(expected));
        }
    }
    let mut next = async || bounded(at_two.recv()).await.expect("heard");
    let lane_of_one = lane(&one, "acme", "acme").await;
    fill(&one, &lane_of_one, "e", 3).await;
    assert_eq!(next().await, Notice::Lanes(vec![lane_of_one.id]));
    one.save_gate("svix", CloseReason::Throttled, Duration::from_secs(1)).await.expect("saved");
    assert_eq!(next().await, Notice::Gates);
    one.tell_revision();
    assert_eq!(next().await, Notice::Revision);
    let claimed = claim(&one, &lane_of_one, 3).await.deliveries;
    one.release(&claimed).await.expect("released");
    assert_eq!(next().await, Notice::Lanes(vec![lane_of_one.id]));
    two.tell_revision();
    assert_eq!(bounded(at_one.recv()).await, Ok(Notice::Revision), "and nothing of its own before");
    // A file is nobody else's.
    let file = TestDatabase::sqlite();
    let alone = file.open(&clock).await;
    let mut silence = alone.notices();
    fill(&alone, &lane(&alone, "acme", "acme").await, "e", 3).await;
    alone.tell_revision();
    assert!(silence.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_is_not_told() {
    let database = TestDatabase::postgres().await;
    let clock = TestClock::new();
    let (one, two) = (database.open(&clock).await, database.open(&clock).await);
    let lane = lane(&one, "acme", "acme").await;
    let mut heard = two.notices();
    for _ in 0..3 {
        bounded(heard.recv()).await.expect("heard");
    }
    let desk = Desk::connected_to(&one, 3);
    fill(&one, &lane, "handed over ", 3).await;
    assert_eq!(desk.taken().len(), 3);
    one.tell_revision();
    assert_eq!(bounded(heard.recv()).await, Ok(Notice::Revision));
    fill(&one, &lane, "left ", 1).await;
    assert_eq!(bounded(heard.recv()).await, Ok(Notice::Lanes(vec![lane.id])));
}
