//! The ledger's clock where the process's is wrong, and put right.

use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::ledger::ClockState;

use super::{
    accept, claim, claim_retries, close, delivered, failed, fill, ids, open_with_lane, settle, settlement,
};
use crate::support::{TestClock, TestDatabase, bounded};

on_both_databases! {
    a_clock_that_jumps_takes_no_lease_early,
}

const DAY_MS: i64 = 86_400_000;

/// Lets the next write bring a heartbeat, and writes.
async fn beat(ledger: &posthaste::ledger::Ledger, clock: &TestClock) {
    clock.pass(Duration::from_secs(11));
    accept(ledger, Vec::new()).await;
}

async fn a_clock_that_jumps_takes_no_lease_early(database: TestDatabase) {
    // holds: 52
    let clock = TestClock::watched();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    fill(&ledger, &lane, "e", 3).await;
    assert_eq!(claim(&ledger, &lane, 3).await.deliveries.len(), 3);
    for by_ms in [3_600_000, -7_200_000, 3_600_000] {
        clock.move_wall(by_ms);
        beat(&ledger, &clock).await;
        assert!(
            claim(&ledger, &lane, 3).await.deliveries.is_empty(),
            "taken from its holder after {by_ms} ms"
        );
    }
    close(ledger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_ahead_of_time_that_is_put_right_delays_nothing() {
    bounded(async {
        let (database, clock) = (TestDatabase::sqlite(), TestClock::watched());
        let (ledger, _) = open_with_lane(&database, &clock).await;
        close(ledger).await;

        clock.move_wall(100 * DAY_MS);
        let (ledger, lane) = open_with_lane(&database, &clock).await;
        assert_eq!(ledger.clock().status().state, ClockState::Unconfirmed);
        fill(&ledger, &lane, "e", 5).await;
        let mut claimed = claim(&ledger, &lane, 3).await.deliveries;
        assert_eq!(ids(&claimed), ["e0", "e1", "e2"]);
        // e2 fails: it is tried again in five seconds.
        settle(&ledger, [settlement(&claimed.remove(2), failed(), &clock)]).await;
        let ahead = ledger.clock().now();

        clock.move_wall(-100 * DAY_MS);
        beat(&ledger, &clock).await;
        assert_eq!(ledger.clock().status().state, ClockState::Trusted);
        assert!(ledger.clock().now() < ahead);
        assert_eq!(ids(&claim(&ledger, &lane, 5).await.deliveries), ["e3", "e4"]);
        assert_eq!(ids(&claim_retries(&ledger, &lane, 5).await.deliveries), ["e2"]);
        // One of the claims from before is settled, the other is given back and free at once.
        settle(&ledger, [settlement(&claimed[0], delivered(), &clock)]).await;
        ledger.release(&claimed[1..]).await.expect("given back");
        assert_eq!(ids(&claim(&ledger, &lane, 5).await.deliveries), ["e1"]);
        let outcomes = ledger.database().outcomes("acme", "e0").await.expect("an answer");
        assert_eq!(outcomes[0].state, "delivered");

        // Numbers are of the right time again, below those that were given ahead of it.
        fill(&ledger, &lane, "late", 1).await;
        let late = claim(&ledger, &lane, 1).await.deliveries.remove(0);
        assert!(late.id.event < claimed[1].id.event);
        close(ledger).await;
    })
    .await;
}
