//! The ledger's conformance suite: every test is written once and run against both databases.

mod backlog;
mod claims;
mod clock;
mod cursors;
mod damaged;
mod depth;
mod duplicates;
mod fan_out;
mod faults;
pub mod fences;
mod files;
mod handoff;
mod ingest;
mod isolation;
mod nodes;
mod opening;
mod pooler;
mod reading;
mod registry;
mod settling;
mod stress;
mod tokens;
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{self, Class, Delivery, Failure, Outcome, Settlement, Timing};
use posthaste::domain::retry::RetrySchedule;
use posthaste::domain::scheduler::LaneClaim;
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{Accepted, ClaimedLane, ItemVerdict, Ledger, NewEvent};

use crate::support::{TestClock, TestDatabase, svix};

/// The lane of `tenant` for the Svix application `app`.
async fn lane(ledger: &Ledger, app: &str, tenant: &str) -> Arc<Lane> {
    ledger.lane(&svix(app), &tenant.into()).await.expect("a lane")
}

/// Hands events in as one strict request, which must be stored; the verdicts.
async fn accept(ledger: &Ledger, events: Vec<NewEvent>) -> Vec<ItemVerdict> {
    match ledger.accept(events, true, None).await.expect("an answer") {
        Accepted::Stored(verdicts) => verdicts,
        other => panic!("not stored: {other:?}"),
    }
}

/// Stores `count` events of the lane's tenant for the lane, with ids that begin with `prefix`.
async fn fill(ledger: &Ledger, lane: &Arc<Lane>, prefix: &str, count: usize) {
    let events = (0..count)
        .map(|n| crate::support::event(format!("{prefix}{n}")).to(lane).build())
        .collect::<Vec<_>>();
    for batch in events.chunks(500) {
        let verdicts = accept(ledger, batch.to_vec()).await;
        assert!(verdicts.iter().all(|verdict| *verdict == ItemVerdict::Accepted));
    }
}

/// Claims from one lane what has not failed before.
async fn claim(ledger: &Ledger, lane: &Arc<Lane>, limit: usize) -> ClaimedLane {
    claim_class(ledger, lane, Class::Fresh, limit).await
}

/// Claims from one lane what has failed before.
async fn claim_retries(ledger: &Ledger, lane: &Arc<Lane>, limit: usize) -> ClaimedLane {
    claim_class(ledger, lane, Class::Retry, limit).await
}

async fn claim_class(ledger: &Ledger, lane: &Arc<Lane>, class: Class, limit: usize) -> ClaimedLane {
    let claims = [LaneClaim { lane: lane.clone(), class, limit }];
    let (mut claimed, _) = ledger.claim(&claims).await.expect("an answer");
    assert_eq!(claimed.len(), 1);
    claimed.remove(0)
}

/// Event ids, in order.
fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| &*delivery.identity.id).collect()
}

/// The waits after the first and the second failure; then it is dead.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];

/// What is recorded when an attempt on `delivery` comes to `outcome` now.
fn settlement(delivery: &Delivery, outcome: Outcome, clock: &TestClock) -> Settlement {
    let schedule = RetrySchedule::new(RETRY_AFTER.to_vec());
    let timing = Timing { at: clock.now(), latency: Duration::from_millis(12), chance: 0.5 };
    delivery::settle(delivery, outcome, true, &schedule, timing)
}

fn delivered() -> Outcome {
    Outcome::Delivered { status: 202, remote_id: Some("msg_1".into()), dispatch_unconfirmed: false }
}

fn failed() -> Outcome {
    Outcome::Failed(Failure::answered(500, "oops"))
}

/// Hands settlements in and waits until they are committed.
async fn settle(ledger: &Ledger, settlements: impl IntoIterator<Item = Settlement>) {
    for settlement in settlements {
        ledger.settle(settlement).await.expect("taken in");
    }
    committed(ledger).await;
}

/// Waits until all that was handed in before is committed: what the writer takes comes in order.
async fn committed(ledger: &Ledger) {
    assert_eq!(accept(ledger, Vec::new()).await, []);
}

/// Closes the ledger, with every handle on it.
async fn close(ledger: Ledger) {
    ledger.close().await;
}

/// Opens a ledger with a lane for tenant `acme` in it.
async fn open_with_lane(database: &TestDatabase, clock: &Arc<TestClock>) -> (Ledger, Arc<Lane>) {
    let ledger = database.open(clock).await;
    let lane = lane(&ledger, "acme", "acme").await;
    (ledger, lane)
}
