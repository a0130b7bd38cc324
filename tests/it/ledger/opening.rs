//! The ledger is closed and opened again.

use std::time::Duration;

use posthaste::domain::event::EventSeq;
use posthaste::ledger::LedgerError;

use super::{claim, claim_retries, close, delivered, failed, fill, ids, open_with_lane, settle, settlement};
use crate::support::{TestClock, TestDatabase};

on_both_databases! {
    everything_is_there_after_reopening,
    numbers_grow_across_a_reopening_with_the_clock_set_back,
    a_newer_schema_is_refused,
}

async fn everything_is_there_after_reopening(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 4).await;
    let claimed = claim(&ledger, &lane, 3).await.deliveries;
    settle(
        &ledger,
        [settlement(&claimed[0], delivered(), &clock), settlement(&claimed[1], failed(), &clock)],
    )
    .await;
    let before = ledger.database().progress().await.expect("an account");
    close(ledger).await;

    let ledger = database.open(&clock).await;
    assert_eq!(ledger.database().progress().await.expect("an account"), before);
    assert_eq!(ledger.waiting(), 3);
    assert_eq!(ledger.database().outcomes("acme", "e0").await.expect("an answer")[0].state, "delivered");
    assert_eq!(ledger.database().attempt_log("acme", "e1").await.expect("an answer").len(), 1);
    // `e2` was claimed: free at once where the file has one owner, after its lease where others may hold it.
    let mut found = claim(&ledger, &lane, 5).await.deliveries;
    if database.is_postgres() {
        assert_eq!(ids(&found), ["e3"]);
        database.let_leases_age(Duration::from_secs(61), &clock).await;
        found = claim(&ledger, &lane, 5).await.deliveries;
        assert_eq!(found[0].attempt, 2);
    }
    assert_eq!(ids(&found), ["e2", "e3"]);
    clock.pass(super::RETRY_AFTER[0]);
    let retried = claim_retries(&ledger, &lane, 5).await.deliveries;
    assert_eq!((ids(&retried)[0], retried[0].attempt), ("e1", 2));
    assert_eq!((retried[0].failures, retried[0].uncertain), (1, true));
}

async fn numbers_grow_across_a_reopening_with_the_clock_set_back(database: TestDatabase) {
    let clock = TestClock::new();
    let mut last = EventSeq(0);
    for round in 0..3 {
        let (ledger, lane) = open_with_lane(&database, &clock).await;
        fill(&ledger, &lane, &format!("round{round}-"), 20).await;
        let mut seqs: Vec<_> =
            claim(&ledger, &lane, 100).await.deliveries.iter().map(|delivery| delivery.id.event).collect();
        if !database.is_postgres() {
            // The claims of the rounds before are free again, and the clock was ahead when they were recorded.
            seqs.retain(|seq| *seq > last);
        }
        assert_eq!(seqs.len(), 20, "round {round}");
        assert!(seqs.is_sorted() && seqs[0] > last, "round {round}");
        last = seqs[19];
        close(ledger).await;
        clock.move_wall(-3_600_000);
    }
}

async fn a_newer_schema_is_refused(database: TestDatabase) {
    let clock = TestClock::new();
    close(database.open(&clock).await).await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 SELECT 9999, 'future', TRUE, checksum, 0 FROM _sqlx_migrations LIMIT 1";
    database.execute(newer).await;
    let refused = database.open_with(&database.options(), &clock).await.err().expect("refused");
    assert!(matches!(refused, LedgerError::Refused(_)), "{refused:?}");
    let words = refused.to_string();
    assert!(words.contains("newer version") && words.contains("9999"), "{words}");
    // Nothing has changed: the older one opens again once the schema is what it knows.
    database.execute("DELETE FROM _sqlx_migrations WHERE version = 9999").await;
    close(database.open(&clock).await).await;
}
