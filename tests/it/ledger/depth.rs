//! However deep the backlog, a claim costs the same, and so does finding the lanes that have work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use posthaste::domain::clock::Clock as _;
use posthaste::domain::tenant::Lane;
use posthaste::ledger::{BacklogLimits, Ledger, LedgerOptions};

use super::{claim, fill, lane};
use crate::support::{TestClock, TestDatabase};

on_both_databases! {
    load_of_a_million_claims_as_fast_as_a_thousand,
}

const DEEP: i64 = 1_000_000;
const SHALLOW: i64 = 1_000;
/// Deliveries in one claim.
const CLAIM: usize = 100;
const ROUNDS: usize = 200;

/// A ledger with so many deliveries waiting in one lane, and a few in each of 20 others.
async fn backlog(database: &TestDatabase, clock: &Arc<TestClock>, depth: i64) -> (Ledger, Arc<Lane>) {
    let options = LedgerOptions {
        backlog: BacklogLimits { tenant: 2 * DEEP.unsigned_abs(), total: 4 * DEEP.unsigned_abs() },
        ..database.options()
    };
    let ledger = database.open_with(&options, clock).await.expect("it opens");
    let whale = lane(&ledger, "whale", "whale").await;
    for n in 0..20 {
        let small = lane(&ledger, &format!("small{n}"), &format!("small{n}")).await;
        fill(&ledger, &small, &format!("{n}-"), 5).await;
    }
    database.wait_in(&whale, depth, clock.now()).await;
    (ledger, whale)
}

/// How long one claim takes, and one look for lanes with work.
async fn once(ledger: &Ledger, lane: &Arc<Lane>) -> (Duration, Duration) {
    let began = Instant::now();
    let claimed = claim(ledger, lane, CLAIM).await.deliveries;
    let claiming = began.elapsed();
    assert_eq!(claimed.len(), CLAIM);
    let began = Instant::now();
    assert_eq!(ledger.busy_lanes(None, 1_000).await.expect("an answer").len(), 21);
    let finding = began.elapsed();
    ledger.release(&claimed).await.expect("released");
    (claiming, finding)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn load_of_a_million_claims_as_fast_as_a_thousand(database: TestDatabase) {
    // holds: 39
    let other = if database.is_postgres() { TestDatabase::postgres().await } else { TestDatabase::sqlite() };
    let clock = TestClock::new();
    let (deep, whale) = backlog(&database, &clock, DEEP).await;
    let (shallow, minnow) = backlog(&other, &clock, SHALLOW).await;
    assert_eq!(deep.database().progress().await.expect("an answer").pending, DEEP + 100);
    let (mut times, mut finds) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    // In turn, so that whatever else the machine does meets both.
    for _ in 0..ROUNDS {
        for (n, (ledger, lane)) in [(&shallow, &minnow), (&deep, &whale)].into_iter().enumerate() {
            let (claiming, finding) = once(ledger, lane).await;
            times[n].push(claiming);
            finds[n].push(finding);
        }
    }
    let [shallow_claim, deep_claim] = times.map(median);
    let [shallow_find, deep_find] = finds.map(median);
    println!(
        "a claim of {CLAIM}: {deep_claim:?} at {DEEP} waiting, {shallow_claim:?} at {SHALLOW}; \
         busy lanes: {deep_find:?} and {shallow_find:?}"
    );
    assert!(deep_claim <= shallow_claim.mul_f64(1.5), "{deep_claim:?} against {shallow_claim:?}");
    // Three looks a lane into a tree that is a thousand times as large: one or two levels more, not a thousand times.
    assert!(deep_find <= shallow_find.mul_f64(3.0), "{deep_find:?} against {shallow_find:?}");
    super::close(deep).await;
    super::close(shallow).await;
}
