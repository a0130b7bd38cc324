//! Postgres sessions that answer and can't do their work: they are replaced.

use std::time::{Duration, Instant};

use posthaste::ledger::Ledger;

use super::{fill, lane};
use crate::support::{TestClock, TestDatabase, bounded, event, eventually};

/// Longest until a ledger whose server is well again takes events: a probe and a few connections.
const BACK_WITHIN: Duration = Duration::from_secs(6);
/// As many as a ledger has for its hot path.
const SESSIONS_AT_MOST: usize = 8;
/// Ends every session of this database but one's own.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";

/// Makes new sessions of a database read-only, as those of a standby are, or ends that.
async fn set_read_only(database: &TestDatabase, read_only: bool) {
    let name = database.text("SELECT current_database()::text").await;
    let change = if read_only {
        "SET default_transaction_read_only = on"
    } else {
        "RESET default_transaction_read_only"
    };
    // The connection itself may be read-only.
    database.execute(&format!("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; BEGIN READ WRITE; ALTER DATABASE {name} {change}; COMMIT")).await;
}

/// Waits until the ledger takes an event; how long that took.
async fn takes_events_again(ledger: &Ledger, prefix: &str) -> Duration {
    let lane = lane(ledger, "acme", "acme").await;
    let (began, mut tries) = (Instant::now(), 0);
    loop {
        tries += 1;
        let new = vec![event(format!("{prefix}{tries}")).to(&lane).build()];
        match ledger.accept(new, true, None).await {
            Ok(_) => return began.elapsed(),
            Err(error) => assert!(began.elapsed() < BACK_WITHIN, "still {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_became_read_only_are_replaced() {
    bounded(async {
        let database = TestDatabase::postgres().await;
        let ledger = database.open(&TestClock::new()).await;
        let lane = lane(&ledger, "acme", "acme").await;
        fill(&ledger, &lane, "e", 1).await;
        set_read_only(&database, true).await;
        database.execute(TERMINATE).await;
        let (began, mut refused) = (Instant::now(), 0);
        // Until every session of the pool has been opened again, or none can be: then a refusal takes seconds.
        eventually("no event is taken", async || {
            let error = ledger.accept(vec![event("f").to(&lane).build()], true, None).await.err()?;
            refused +=
                usize::from(["read-only", "no writes"].iter().any(|word| error.to_string().contains(word)));
            (refused >= SESSIONS_AT_MOST || (refused > 0 && began.elapsed() > BACK_WITHIN)).then_some(())
        })
        .await;
        eventually("the ledger reports it", async || ledger.trouble()).await;
        // New sessions write again. Those that were opened meanwhile would stay read-only.
        set_read_only(&database, false).await;
        takes_events_again(&ledger, "g").await;
        for n in 0..2 * SESSIONS_AT_MOST {
            let taken = ledger.accept(vec![event(format!("h{n}")).to(&lane).build()], true, None).await;
            taken.expect("none of its sessions is an old one");
        }
        eventually("and reports it", async || ledger.trouble().is_none().then_some(())).await;
        ledger.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_whose_prepared_statements_are_out_of_date_are_replaced() {
    bounded(async {
        let database = TestDatabase::postgres().await;
        let ledger = database.open(&TestClock::new()).await;
        let lane = lane(&ledger, "acme", "acme").await;
        let again = || vec![event("e0").to(&lane).build()];
        // Duplicates are looked up: each session prepares the statement for that.
        for _ in 0..32 {
            ledger.accept(again(), true, None).await.expect("stored, or known");
        }
        // The result of that statement is of another type from now on, and the server refuses to run it.
        database.execute("ALTER TABLE event_key ALTER COLUMN tenant TYPE varchar").await;
        let mut refused = 0;
        for _ in 0..32 {
            if ledger.accept(again(), true, None).await.is_err() {
                refused += 1;
            }
        }
        assert!(refused <= 1, "{refused} requests were refused: the first replaces every session");
        eventually("the ledger takes writes", async || ledger.trouble().is_none().then_some(())).await;
        ledger.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_were_terminated_are_replaced() {
    bounded(async {
        let database = TestDatabase::postgres().await;
        let ledger = database.open(&TestClock::new()).await;
        let lane = lane(&ledger, "acme", "acme").await;
        for round in 0..3 {
            fill(&ledger, &lane, &format!("e{round}-"), 2).await;
            database.execute(TERMINATE).await;
            takes_events_again(&ledger, &format!("f{round}-")).await;
        }
        ledger.close().await;
    })
    .await;
}
