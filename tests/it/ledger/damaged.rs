//! Rows that can't be read, and what a claim loads at most.

use std::time::Duration;

use posthaste::domain::delivery::Class;
use posthaste::domain::scheduler::LaneClaim;
use posthaste::ledger::{Ledger, LedgerOptions};

use super::{accept, claim, fill, ids, lane, settle};
use crate::support::{TestClock, TestDatabase, event, eventually};

on_both_databases! {
    a_row_that_cannot_be_read_is_dead_and_the_rest_is_served,
    a_trace_that_cannot_be_read_is_left_out,
    a_claim_that_fails_gives_back_what_it_had_leased,
    a_claim_loads_a_bounded_number_of_bytes,
}

/// Bytes of payloads that one claim loads.
const CLAIM_BYTES: usize = 32 << 20;

/// A ledger that keeps no payloads in memory: a claim reads each.
async fn open(database: &TestDatabase) -> Ledger {
    let options = LedgerOptions { recent_bytes: 0, ..database.options() };
    database.open_with(&options, &TestClock::new()).await.expect("the ledger opens")
}

/// State, reason and attempt of what is done, in order.
async fn outcomes(database: &TestDatabase) -> String {
    let (list, row) = if database.is_postgres() {
        ("string_agg(line, ', ' ORDER BY line)", "state || ' ' || reason || ' ' || attempts")
    } else {
        ("group_concat(line, ', ')", "state || ' ' || reason || ' ' || attempts")
    };
    let sql = format!(
        "SELECT COALESCE({list}, '') FROM (SELECT {row} AS line FROM outcome ORDER BY reason, event) AS done"
    );
    database.text(&sql).await
}

async fn a_row_that_cannot_be_read_is_dead_and_the_rest_is_served(database: TestDatabase) {
    let ledger = open(&database).await;
    let mut claims = Vec::new();
    for tenant in ["one", "two", "three"] {
        let lane = lane(&ledger, tenant, tenant).await;
        fill(&ledger, &lane, tenant, 3).await;
        claims.push(LaneClaim { lane, class: Class::Fresh, limit: 10 });
    }
    database.execute("DELETE FROM event WHERE id = 'one0'").await;
    database.execute("UPDATE event SET data_start = 10, data_end = 100000 WHERE id = 'two1'").await;
    database.execute("UPDATE event SET data_start = 20, data_end = 10 WHERE id = 'three2'").await;
    let (claimed, _) = ledger.claim(&claims).await.expect("the rest is served");
    let served: Vec<_> = claimed.iter().map(|lane| ids(&lane.deliveries)).collect();
    assert_eq!(served, [["one1", "one2"], ["two0", "two2"], ["three0", "three1"]]);
    let expected = "dead event_missing 1, dead event_unreadable 1, dead event_unreadable 1";
    eventually("they are dead", async || (outcomes(&database).await == expected).then_some(())).await;
    eventually("and wait no more", async || (ledger.waiting() == 6).then_some(())).await;
    ledger.close().await;
}

async fn a_trace_that_cannot_be_read_is_left_out(database: TestDatabase) {
    let ledger = open(&database).await;
    let lane = lane(&ledger, "acme", "acme").await;
    fill(&ledger, &lane, "e", 2).await;
    database.execute("UPDATE event SET trace = 'nonsense' WHERE id = 'e0'").await;
    let claimed = claim(&ledger, &lane, 10).await.deliveries;
    assert_eq!(ids(&claimed), ["e0", "e1"]);
    assert!(claimed.iter().all(|delivery| delivery.trace.is_none()));
    ledger.close().await;
}

async fn a_claim_that_fails_gives_back_what_it_had_leased(database: TestDatabase) {
    let ledger = open(&database).await;
    let lane = lane(&ledger, "acme", "acme").await;
    fill(&ledger, &lane, "e", 3).await;
    database.execute("ALTER TABLE event RENAME TO hidden").await;
    let claims = [LaneClaim { lane: lane.clone(), class: Class::Fresh, limit: 10 }];
    ledger.claim(&claims).await.expect_err("no payloads");
    database.execute("ALTER TABLE hidden RENAME TO event").await;
    // Not only once the leases have ended.
    assert_eq!(ids(&claim(&ledger, &lane, 10).await.deliveries), ["e0", "e1", "e2"]);
    ledger.close().await;
}

async fn a_claim_loads_a_bounded_number_of_bytes(database: TestDatabase) {
    let ledger = open(&database).await;
    let (large, small) = (lane(&ledger, "large", "large").await, lane(&ledger, "small", "small").await);
    let data = format!("\"{}\"", "x".repeat(1_000_000));
    for batch in 0..8 {
        let made = |n| event(format!("l{:02}", 8 * batch + n)).data(data.clone()).to(&large).build();
        accept(&ledger, (0..8).map(made).collect()).await;
    }
    fill(&ledger, &small, "s", 3).await;
    let wanted = |limit| {
        [&large, &small].map(|lane| LaneClaim { lane: (*lane).clone(), class: Class::Fresh, limit }).to_vec()
    };
    let (mut seen, mut of_small) = (Vec::new(), 0);
    let bytes = |deliveries: &[posthaste::domain::delivery::Delivery]| -> usize {
        deliveries.iter().map(|delivery| delivery.body.len()).sum()
    };
    for round in 0..3 {
        let (claimed, _) = ledger.claim(&wanted(100)).await.expect("an answer");
        let loaded: usize = claimed.iter().map(|lane| bytes(&lane.deliveries)).sum();
        assert!(loaded <= CLAIM_BYTES, "{loaded} bytes in claim {round}");
        of_small += claimed[1].deliveries.len();
        seen.extend(claimed[0].deliveries.iter().map(|delivery| delivery.identity.id.to_string()));
    }
    // In order, none left out, and the other lane was served beside them.
    let expected: Vec<_> = (0..64).map(|n| format!("l{n:02}")).collect();
    assert_eq!((seen, of_small), (expected, 3));
    // What was given back unread cost no attempt that a settlement would miss.
    let (rest, _) = ledger.claim(&wanted(100)).await.expect("an answer");
    assert!(rest.iter().all(|lane| lane.deliveries.is_empty()));
    settle(&ledger, []).await;
    tokio::time::timeout(Duration::from_secs(5), ledger.close()).await.expect("it closes");
}
