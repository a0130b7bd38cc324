//! Fresh events go to the dispatcher from memory, where it has a place for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthaste::domain::clock::{Clock as _, Moment, Timestamp};
use posthaste::domain::delivery::{Class, Delivery};
use posthaste::domain::gate::GateLimits;
use posthaste::domain::scheduler::{Permit, Scheduler, SchedulerLimits};
use posthaste::domain::tenant::{Lane, LaneId};
use posthaste::ledger::ItemVerdict::{Accepted as New, Conflict, Duplicate};
use posthaste::ledger::{Accepted, Ledger, Outlet};

use super::{
    accept, claim, claim_retries, delivered, failed, fill, ids, lane, open_with_lane, settle, settlement,
};
use crate::support::{TestClock, TestDatabase, event};

on_both_databases! {
    fresh_events_go_out_from_memory_and_are_not_claimed_too,
    what_finds_no_place_wakes_its_lane,
    places_are_given_back_where_nothing_was_stored,
    a_settled_retry_wakes_its_lane,
}

/// A dispatcher that sends nothing and remembers everything.
#[derive(Clone)]
pub(super) struct Desk(Arc<Memory>);

struct Memory {
    /// Where its permits come from: one with room for all.
    scheduler: Mutex<Scheduler<()>>,
    /// Places in flight that are left.
    places: AtomicUsize,
    given_back: AtomicUsize,
    delivered: Mutex<Vec<Delivery>>,
    woken: Mutex<Vec<(LaneId, Class, Timestamp)>>,
}

impl Desk {
    /// Takes as many fresh deliveries of this ledger as it has places.
    pub(super) fn connected_to(ledger: &Ledger, places: usize) -> Self {
        let limits = GateLimits {
            max_in_flight: 1_000_000,
            unproven_in_flight: 1_000_000,
            failing_for: Duration::ZERO,
            failures_to_close: 1_000,
            first_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(1),
            adaptive: None,
        };
        let wide = SchedulerLimits {
            max_in_flight: 1_000_000,
            max_in_flight_per_destination: 1_000_000,
            max_buffered: 1,
            max_claim: 1,
        };
        let desk = Self(Arc::new(Memory {
            scheduler: Mutex::new(Scheduler::new(wide, limits, limits)),
            places: AtomicUsize::new(places),
            given_back: AtomicUsize::new(0),
            delivered: Mutex::default(),
            woken: Mutex::default(),
        }));
        ledger.connect(Box::new(desk.clone()));
        desk
    }

    fn places(&self) -> usize {
        self.0.places.load(Ordering::SeqCst)
    }

    /// What it has waited for is done with: so many places are there again.
    pub(super) fn free(&self, places: usize) {
        self.0.places.fetch_add(places, Ordering::SeqCst);
    }

    pub(super) fn taken(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.0.delivered.lock().unwrap())
    }

    fn woken(&self) -> Vec<(LaneId, Class, Timestamp)> {
        std::mem::take(&mut self.0.woken.lock().unwrap())
    }
}

impl Outlet for Desk {
    fn reserve(&self, lane: &Arc<Lane>) -> Option<Permit> {
        let less = |places: usize| places.checked_sub(1);
        self.0.places.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok()?;
        let permit = self.0.scheduler.lock().unwrap().reserve(lane, Moment::default());
        Some(permit.expect("there is room"))
    }

    fn deliver(&self, delivery: Delivery, _permit: Permit) {
        self.0.delivered.lock().unwrap().push(delivery);
    }

    fn give_back(&self, _lane: &Arc<Lane>, _permit: Permit) {
        self.0.places.fetch_add(1, Ordering::SeqCst);
        self.0.given_back.fetch_add(1, Ordering::SeqCst);
    }

    fn is_sending(&self) -> bool {
        false
    }

    fn wake(&self, lane: &Arc<Lane>, class: Class, due_at: Timestamp) {
        self.0.woken.lock().unwrap().push((lane.id, class, due_at));
    }
}

async fn fresh_events_go_out_from_memory_and_are_not_claimed_too(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    let desk = Desk::connected_to(&ledger, 3);
    fill(&ledger, &lane, "e", 3).await;
    let fresh = desk.taken();
    assert_eq!(ids(&fresh), ["e0", "e1", "e2"]);
    assert_eq!(desk.woken(), []);
    let stored = ledger.database().body("acme", "", "e1").await.expect("an answer");
    assert_eq!(stored.as_deref(), Some(&*fresh[1].body));
    assert_eq!(claim(&ledger, &lane, 5).await.deliveries.len(), 0);
    database.let_leases_age(Duration::from_secs(59), &clock).await;
    assert_eq!(claim(&ledger, &lane, 5).await.deliveries.len(), 0);
    settle(&ledger, [settlement(&fresh[0], delivered(), &clock), settlement(&fresh[1], failed(), &clock)])
        .await;
    assert_eq!(ledger.waiting(), 2);
    clock.move_wall(5_000);
    let retried = claim_retries(&ledger, &lane, 5).await.deliveries;
    assert_eq!((ids(&retried), retried[0].attempt), (vec!["e1"], 2));
    // What the ledger reads is what was handed over.
    let (again, fresh) = (&retried[0], &fresh[1]);
    assert_eq!((again.id, &again.identity, &again.body), (fresh.id, &fresh.identity, &fresh.body));
    assert_eq!((&again.data, &again.event_type), (&fresh.data, &fresh.event_type));
    assert_eq!((again.received_at, fresh.due_at), (fresh.received_at, fresh.received_at));
    // One that is never settled comes back when its lease is over.
    database.let_leases_age(Duration::from_secs(2), &clock).await;
    let lost = claim(&ledger, &lane, 5).await.deliveries;
    assert_eq!((ids(&lost), lost[0].attempt), (vec!["e2"], 2));
}

async fn what_finds_no_place_wakes_its_lane(database: TestDatabase) {
    let clock = TestClock::new();
    let ledger = database.open(&clock).await;
    let (one, two) = (lane(&ledger, "one", "acme").await, lane(&ledger, "two", "acme").await);
    let desk = Desk::connected_to(&ledger, 3);
    let events = (0..3).map(|n| event(format!("e{n}")).to(&one).to(&two).build()).collect();
    accept(&ledger, events).await;
    let fresh: Vec<_> = desk.taken().iter().map(|delivery| (delivery.id.event, delivery.id.lane)).collect();
    assert_eq!(fresh.len(), 3);
    assert_eq!(fresh.iter().map(|(_, lane)| *lane).collect::<Vec<_>>(), [one.id, two.id, one.id]);
    assert!(desk.woken().iter().all(|(lane, class, due_at)| {
        *due_at == clock.now() && [one.id, two.id].contains(lane) && *class == Class::Fresh
    }));
    assert_eq!(claim(&ledger, &one, 5).await.deliveries.len(), 1);
    assert_eq!(claim(&ledger, &two, 5).await.deliveries.len(), 2);
    assert_eq!(ledger.waiting(), 6);
}

async fn places_are_given_back_where_nothing_was_stored(database: TestDatabase) {
    let (ledger, lane) = open_with_lane(&database, &TestClock::new()).await;
    accept(&ledger, vec![event("stored").to(&lane).build()]).await;
    assert_eq!(claim(&ledger, &lane, 1).await.deliveries.len(), 1);
    let desk = Desk::connected_to(&ledger, 10);
    let batch = |data: &str| {
        let stored = event("stored").data(data).to(&lane).build();
        vec![event("a").to(&lane).build(), stored, event("b").to(&lane).build()]
    };
    let refused = ledger.accept(batch("2"), true, None).await.expect("an answer");
    assert_eq!(refused, Accepted::Refused(vec![New, Conflict, New]));
    assert_eq!((desk.places(), desk.taken().len()), (10, 0));
    database.execute("ALTER TABLE queue RENAME TO hidden").await;
    ledger.accept(vec![event("c").to(&lane).build()], true, None).await.expect_err("no queue");
    database.execute("ALTER TABLE hidden RENAME TO queue").await;
    assert_eq!((desk.places(), desk.taken().len()), (10, 0));
    assert_eq!(desk.woken(), []);
    assert_eq!(accept(&ledger, batch(r#"{"total":1.10}"#)).await, [New, Duplicate, New]);
    assert_eq!((desk.places(), ids(&desk.taken())), (8, vec!["a", "b"]));
    assert!(desk.0.given_back.load(Ordering::SeqCst) > 0);
    assert_eq!(claim(&ledger, &lane, 5).await.deliveries.len(), 0);
}

async fn a_settled_retry_wakes_its_lane(database: TestDatabase) {
    let clock = TestClock::new();
    let (ledger, lane) = open_with_lane(&database, &clock).await;
    let desk = Desk::connected_to(&ledger, 2);
    fill(&ledger, &lane, "e", 2).await;
    let fresh = desk.taken();
    settle(&ledger, [settlement(&fresh[0], failed(), &clock), settlement(&fresh[1], delivered(), &clock)])
        .await;
    assert_eq!(desk.woken(), [(lane.id, Class::Retry, clock.now() + super::RETRY_AFTER[0])]);
    // An old claim's word wakes nobody.
    settle(&ledger, [settlement(&fresh[0], failed(), &clock)]).await;
    assert_eq!(desk.woken(), []);
}
