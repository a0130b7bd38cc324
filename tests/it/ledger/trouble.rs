//! The database fails, or the ledger has been closed.

use posthaste::ledger::ItemVerdict::Accepted as New;
use posthaste::ledger::LedgerError;

use super::{accept, claim, close, delivered, fill, open_with_lane, settlement};
use crate::support::{TestClock, TestDatabase, event, eventually};

on_both_databases! {
    a_commit_that_fails_stores_nothing_and_the_ledger_recovers,
    a_closed_ledger_says_so,
}

async fn a_commit_that_fails_stores_nothing_and_the_ledger_recovers(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 3).await;
    let claimed = claim(&ledger, &lane, 1).await.deliveries.remove(0);
    // The last table that an event is written to, so that the others are rolled back.
    database.execute("ALTER TABLE queue RENAME TO hidden").await;
    ledger.settle(settlement(&claimed, delivered(), &clock)).await.expect("taken in");
    let batch = || (0..10).map(|n| event(format!("f{n}")).to(&lane).build()).collect::<Vec<_>>();
    for _ in 0..3 {
        let error = ledger.accept(batch(), true, None).await.expect_err("not stored");
        assert!(matches!(error, LedgerError::Unavailable(_)), "{error:?}");
    }
    eventually("the ledger tells of its trouble", async || ledger.trouble()).await;
    eventually("and takes nothing meanwhile", async || ledger.admits().err()).await;
    database.execute("ALTER TABLE hidden RENAME TO queue").await;
    // What could not be settled is, by itself.
    let settled = async || {
        let progress = ledger.database().progress().await.expect("an account");
        (progress.done.get("delivered") == Some(&1)).then_some(progress)
    };
    let progress = eventually("the settlement is written", settled).await;
    assert_eq!((progress.events, progress.created, progress.pending), (3, 3, 2));
    eventually("the ledger takes writes again", async || ledger.admits().ok()).await;
    assert_eq!(ledger.trouble(), None);
    assert_eq!(accept(&ledger, batch()).await, [New; 10]);
    assert_eq!(claim(&ledger, &lane, 20).await.deliveries.len(), 12);
    assert_eq!(ledger.waiting(), 12);
}

async fn a_closed_ledger_says_so(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 2).await;
    let claimed = claim(&ledger, &lane, 2).await.deliveries;
    ledger.settle(settlement(&claimed[0], delivered(), &clock)).await.expect("taken in");
    ledger.close().await;
    ledger.close().await;
    let settled = ledger.settle(settlement(&claimed[1], delivered(), &clock)).await;
    let accepted = ledger.accept(vec![event("f").to(&lane).build()], true, None).await;
    for refused in [settled.err(), accepted.err(), ledger.release(&[]).await.err()] {
        assert!(refused.is_none_or(|error| matches!(error, LedgerError::Unavailable(_))));
    }
    ledger.database().revision().await.expect_err("closed");
    close(ledger).await;
    // What was handed in before is committed.
    let ledger = database.open(&clock).await;
    let progress = ledger.database().progress().await.expect("an account");
    assert_eq!((progress.created, progress.pending, progress.done.get("delivered")), (2, 1, Some(&1)));
}
