//! Everything at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthaste::domain::clock::Clock as _;
use posthaste::domain::delivery::{Class, Delivery, DeliveryId, Failure, NextState, Outcome, Settlement};
use posthaste::domain::gate::CloseReason;
use posthaste::domain::scheduler::LaneClaim;
use posthaste::domain::tenant::{Lane, Route};
use posthaste::ledger::{Accepted, ItemVerdict, Ledger, TenantRow};

use super::handoff::Desk;
use super::{delivered, failed, lane, settlement};
use crate::support::{TestClock, TestDatabase, event, side_by_side, svix};

on_both_databases! {
    everything_at_once_settles_each_delivery_once,
    with_hand_over_too_each_delivery_is_settled_once,
    what_is_rare_is_written_while_the_ledger_is_busy,
}

const ACCEPTERS: usize = 4;
const BATCHES: usize = 40;
const BATCH: usize = 25;
const CLAIMERS: usize = 3;
const EVENTS: usize = ACCEPTERS * BATCHES * BATCH;

/// What the tasks share.
struct Floor {
    ledger: Ledger,
    clock: Arc<TestClock>,
    lanes: Vec<Arc<Lane>>,
    desk: Desk,
    done: AtomicUsize,
    /// Attempts by delivery, in the order claimed.
    claimed: Mutex<HashMap<DeliveryId, Vec<i64>>>,
}

async fn everything_at_once_settles_each_delivery_once(database: TestDatabase) {
    // holds: 15
    run(database, 0).await;
}

async fn with_hand_over_too_each_delivery_is_settled_once(database: TestDatabase) {
    // holds: 15
    run(database, 30).await;
}

async fn what_is_rare_is_written_while_the_ledger_is_busy(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let lane = lane(&ledger, "acme", "acme").await;
    let accepting = side_by_side((0..4).map(|accepter| {
        let (ledger, lane) = (ledger.clone(), lane.clone());
        async move { super::fill(&ledger, &lane, &format!("{accepter}-"), 2_000).await }
    }));
    let writing = side_by_side((0..60).map(|n| {
        let ledger = ledger.clone();
        async move {
            let tenant = TenantRow::new(n.to_string(), Some(Route::Direct));
            assert!(ledger.database().put_tenant(&tenant).await.expect("set"));
            ledger.lane(&svix(&tenant.id), &tenant.id.into()).await.expect("made");
            ledger.save_gate("svix", CloseReason::Failing, Duration::ZERO).await.expect("saved");
        }
    }));
    tokio::join!(accepting, writing);
    assert_eq!(ledger.database().tenants().await.expect("an answer").len(), 60);
    assert_eq!((ledger.waiting(), ledger.trouble()), (8_000, None));
}

/// Accepters, claimers and settlers over a few lanes, while the wall clock is set to and fro and up to `places` fresh
/// deliveries are out from memory.
async fn run(database: TestDatabase, places: usize) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let desk = Desk::connected_to(&ledger, places);
    let mut lanes = Vec::new();
    for (app, tenant) in [("a", "acme"), ("b", "acme"), ("c", "globex"), ("d", "initech")] {
        lanes.push(lane(&ledger, app, tenant).await);
    }
    let (done, claimed) = (AtomicUsize::new(0), Mutex::default());
    let floor = Arc::new(Floor { ledger: ledger.clone(), clock, lanes, desk, done, claimed });
    let accepters = side_by_side((0..ACCEPTERS).map(|n| accept_all(floor.clone(), n)));
    let claimers = side_by_side((0..CLAIMERS).map(|_| claim_all(floor.clone())));
    tokio::join!(accepters, claimers, audit(&floor));
    super::committed(&ledger).await;

    let progress = ledger.database().progress().await.expect("an account");
    let done: i64 = progress.done.values().sum();
    assert_eq!(progress.created, progress.pending + done);
    assert_eq!((progress.created, progress.pending), (EVENTS.try_into().expect("small"), 0));
    assert_eq!(progress.done.get("delivered"), Some(&progress.created));
    assert_eq!((ledger.waiting(), ledger.trouble()), (0, None));
    assert_eq!(ledger.busy_lanes(None, 10).await.expect("an answer").len(), 0);
    let claimed = floor.claimed.lock().unwrap();
    assert_eq!(claimed.len(), EVENTS);
    for (id, attempts) in &*claimed {
        let expected = if detour(*id) == Detour::None { 1 } else { 2 };
        assert_eq!(*attempts, (1..=expected).collect::<Vec<_>>(), "{id}");
    }
}

/// Nothing is lost and nothing is there twice, at any moment.
async fn audit(floor: &Floor) {
    while floor.done.load(Ordering::SeqCst) < EVENTS {
        let progress = floor.ledger.database().progress().await.expect("an account");
        assert_eq!(progress.created, progress.pending + progress.done.values().sum::<i64>());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn accept_all(floor: Arc<Floor>, accepter: usize) {
    for n in 0..BATCHES {
        let lane = &floor.lanes[(accepter + n) % floor.lanes.len()];
        let id = |item: usize| format!("{accepter}-{n}-{item}");
        let batch: Vec<_> = (0..BATCH).map(|item| event(id(item)).to(lane).build()).collect();
        // Every fourth batch comes twice.
        for _ in 0..=usize::from(n % 4 == 0) {
            let answer = floor.ledger.accept(batch.clone(), n % 2 == 0, None).await.expect("an answer");
            let Accepted::Stored(verdicts) = answer else { panic!("not stored") };
            assert!(!verdicts.contains(&ItemVerdict::Conflict));
        }
        floor.clock.move_wall(if n % 5 == 4 { -9 } else { 3 });
    }
}

async fn claim_all(floor: Arc<Floor>) {
    let mut round = 0;
    while floor.done.load(Ordering::SeqCst) < EVENTS {
        round += 1;
        floor.clock.move_wall(1);
        let wishes: Vec<_> = (0..2)
            .map(|n| LaneClaim {
                lane: floor.lanes[(round + n) % floor.lanes.len()].clone(),
                class: Class::ALL[round / floor.lanes.len() % 2],
                limit: 7 + round % 40,
            })
            .collect();
        let (lanes, _) = floor.ledger.claim(&wishes).await.expect("an answer");
        let mut deliveries: Vec<_> = lanes.into_iter().flat_map(|lane| lane.deliveries).collect();
        let fresh = floor.desk.taken();
        floor.desk.free(fresh.len());
        deliveries.extend(fresh);
        if deliveries.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        {
            let mut claimed = floor.claimed.lock().unwrap();
            for delivery in &deliveries {
                claimed.entry(delivery.id).or_default().push(delivery.attempt);
            }
        }
        for delivery in deliveries {
            finish(&floor, delivery).await;
        }
    }
}

#[derive(PartialEq)]
enum Detour {
    None,
    Retry,
    Throttle,
    Release,
}

/// What becomes of a delivery's first attempt, by its number.
const fn detour(id: DeliveryId) -> Detour {
    match (id.event.0 / 2) % 10 {
        1 => Detour::Retry,
        4 => Detour::Throttle,
        7 => Detour::Release,
        _ => Detour::None,
    }
}

async fn finish(floor: &Floor, delivery: Delivery) {
    if delivery.attempt == 1 && detour(delivery.id) != Detour::None {
        let next: Settlement = match detour(delivery.id) {
            Detour::Retry => {
                let mut retry = settlement(&delivery, failed(), &floor.clock);
                let due_at = floor.clock.now();
                retry.next = NextState::Pending { due_at, failures: 1, uncertain: true };
                retry
            }
            Detour::Throttle => {
                let failure = Failure::answered(429, "");
                settlement(&delivery, Outcome::Throttled { failure, retry_after: None }, &floor.clock)
            }
            _ => return floor.ledger.release(&[delivery]).await.expect("released"),
        };
        floor.ledger.settle(next).await.expect("taken in");
    } else {
        floor.ledger.settle(settlement(&delivery, delivered(), &floor.clock)).await.expect("taken in");
        floor.done.fetch_add(1, Ordering::SeqCst);
    }
}
