//! How many deliveries may wait.

use posthaste::ledger::{BacklogLimits, Ledger, LedgerError, LedgerOptions};

use super::{accept, claim, close, delivered, failed, fill, lane, settle, settlement};
use crate::support::{TestClock, TestDatabase, event, eventually};

on_both_databases! {
    a_tenant_at_its_cap_is_refused_until_something_is_settled,
    a_full_ledger_refuses_everyone,
    what_waits_is_counted_when_the_ledger_opens,
}

fn limited(database: &TestDatabase, tenant: u64, total: u64) -> LedgerOptions {
    LedgerOptions { backlog: BacklogLimits { tenant, total }, ..database.options() }
}

/// Who is full, by how many, and what the cap is.
async fn refused(ledger: &Ledger, new: Vec<posthaste::ledger::NewEvent>) -> (String, bool, u64, u64) {
    match ledger.accept(new, false, None).await {
        Err(LedgerError::BacklogFull { scope, tenant, waiting, limit }) => (scope, tenant, waiting, limit),
        other => panic!("not refused: {other:?}"),
    }
}

async fn a_tenant_at_its_cap_is_refused_until_something_is_settled(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open_with(&limited(&database, 5, 100), &clock).await.expect("opens");
    let (acme, globex) = (lane(&ledger, "acme", "acme").await, lane(&ledger, "globex", "globex").await);
    fill(&ledger, &acme, "e", 4).await;
    let two = || vec![event("x").to(&acme).build(), event("y").to(&acme).build()];
    assert_eq!(refused(&ledger, two()).await, ("tenant acme".into(), true, 4, 5));
    assert_eq!(ledger.database().body("acme", "", "x").await.expect("an answer"), None);
    ledger.admits().expect("there is room for others");
    fill(&ledger, &globex, "g", 5).await;
    assert_eq!(accept(&ledger, vec![event("unrouted").build()]).await.len(), 1);
    let claimed = claim(&ledger, &acme, 2).await.deliveries;
    settle(&ledger, [settlement(&claimed[0], failed(), &clock)]).await;
    assert_eq!(refused(&ledger, two()).await.2, 4, "a retry still waits");
    settle(&ledger, [settlement(&claimed[1], delivered(), &clock)]).await;
    assert_eq!(accept(&ledger, two()).await.len(), 2);
    assert_eq!(refused(&ledger, vec![event("z").to(&acme).build()]).await.2, 5);
}

async fn a_full_ledger_refuses_everyone(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open_with(&limited(&database, 10, 6), &clock).await.expect("opens");
    let (acme, globex) = (lane(&ledger, "acme", "acme").await, lane(&ledger, "globex", "globex").await);
    fill(&ledger, &acme, "e", 6).await;
    let one = || vec![event("g").to(&globex).build()];
    assert_eq!(refused(&ledger, one()).await, ("the ledger".into(), false, 6, 6));
    assert!(matches!(ledger.admits(), Err(LedgerError::BacklogFull { tenant: false, .. })));
    let claimed = claim(&ledger, &acme, 1).await.deliveries.remove(0);
    ledger.settle(settlement(&claimed, delivered(), &clock)).await.expect("taken in");
    eventually("there is room", async || ledger.admits().ok()).await;
    assert_eq!(accept(&ledger, one()).await.len(), 1);
}

async fn what_waits_is_counted_when_the_ledger_opens(database: TestDatabase) {
    let clock = TestClock::new();
    for round in 0..3 {
        let ledger = database.open_with(&limited(&database, 250, 1_000), &clock).await.expect("opens");
        // The caps hold from the first request on, and nothing is counted twice.
        assert_eq!(ledger.waiting(), 100 * round);
        let lane = lane(&ledger, "acme", "acme").await;
        if round == 2 {
            let batch = (0..60).map(|n| event(n.to_string()).to(&lane).build()).collect();
            assert_eq!(refused(&ledger, batch).await, ("tenant acme".into(), true, 200, 250));
        } else {
            fill(&ledger, &lane, &format!("round{round}-"), 100).await;
            assert_eq!(ledger.waiting(), 100 * (round + 1));
        }
        close(ledger).await;
    }
}
