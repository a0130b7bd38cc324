//! The dispatcher on a real ledger, with a sender that only counts: when it must not send, and what it survives.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use posthaste::app::SystemClock;
use posthaste::dispatcher::{Dispatcher, DispatcherOptions, Observer};
use posthaste::domain::clock::Clock;
use posthaste::domain::delivery::{Delivery, Outcome};
use posthaste::domain::gate::GateLimits;
use posthaste::domain::retry::RetrySchedule;
use posthaste::domain::scheduler::SchedulerLimits;
use posthaste::domain::tenant::{Destination, Lane};
use posthaste::ledger::{Ledger, LedgerOptions, Progress};
use posthaste::send::Sender;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{TestDatabase, bounded, event, eventually, svix};

on_both_databases! {
    no_send_begins_while_settlements_cannot_be_written,
    a_send_that_panics_keeps_no_place_and_is_retried,
    a_panic_after_a_send_loses_no_outcome,
}

const EVENTS: usize = 200;
const IN_FLIGHT: usize = 4;
const SEND_TAKES: Duration = Duration::from_millis(10);
const LEASE: Duration = Duration::from_millis(1_500);
/// A lease that doesn't end in these tests, on a slow machine either.
const LONG_LEASE: Duration = Duration::from_secs(60);
/// Several leases: a claim that ends meanwhile would be sent again.
const TROUBLE_LASTS: Duration = Duration::from_secs(4);

/// Counts sends by event and lane. Panics where it is told to.
#[derive(Default)]
struct CountingSender {
    sends: Mutex<BTreeMap<(String, String), usize>>,
    /// Panics at the first send of these events.
    panics_at: Option<&'static str>,
}

#[async_trait]
impl Sender for CountingSender {
    async fn send(&self, delivery: &Delivery) -> Outcome {
        let key = (delivery.identity.id.to_string(), delivery.lane.destination.to_string());
        let count = {
            let mut sends = self.sends.lock().unwrap();
            let count = sends.entry(key).or_default();
            *count += 1;
            *count
        };
        tokio::time::sleep(SEND_TAKES).await;
        let panics = self.panics_at.is_some_and(|prefix| delivery.identity.id.starts_with(prefix));
        assert!(!panics || count > 1, "this send panics, as the test wants");
        Outcome::Delivered { status: 200, remote_id: None, dispatch_unconfirmed: false }
    }

    fn retry_schedule(&self, _destination: &Destination) -> RetrySchedule {
        RetrySchedule::new(vec![Duration::from_millis(10); 3])
    }
}

impl CountingSender {
    fn total(&self) -> usize {
        self.sends.lock().unwrap().values().sum()
    }

    /// Deliveries that were sent more than once.
    fn repeated(&self) -> usize {
        self.sends.lock().unwrap().values().filter(|count| **count > 1).count()
    }
}

/// Panics after each send of events whose ID begins with this.
struct Watcher(Option<&'static str>);

#[async_trait]
impl Observer for Watcher {
    async fn observe(&self, delivery: &Delivery, _outcome: &Outcome) {
        let panics = self.0.is_some_and(|prefix| delivery.identity.id.starts_with(prefix));
        assert!(!panics, "this observer panics, as the test wants");
    }
}

/// A ledger with two lanes, one to Svix and one to an endpoint, and a dispatcher on it.
struct Stage {
    ledger: Ledger,
    dispatcher: Dispatcher,
    sender: Arc<CountingSender>,
    lanes: [Arc<Lane>; 2],
    stop: CancellationToken,
    running: Option<JoinHandle<()>>,
}

impl Stage {
    async fn open(
        database: &TestDatabase,
        lease: Duration,
        sender: CountingSender,
        watcher: Watcher,
    ) -> Self {
        let clock = Arc::new(SystemClock::new()) as Arc<dyn Clock>;
        let options = LedgerOptions { lease, ..database.options() };
        let ledger = Ledger::open(&options, clock.clone()).await.expect("the ledger opens");
        let endpoint = Arc::new(Destination::Endpoint { id: "ep_1".into() });
        let lanes = [
            ledger.lane(&svix("acme"), &"acme".into()).await.expect("a lane"),
            ledger.lane(&endpoint, &"acme".into()).await.expect("a lane"),
        ];
        let sender = Arc::new(sender);
        let gate = GateLimits {
            max_in_flight: 64,
            unproven_in_flight: 64,
            failures_to_close: 1_000,
            failing_for: Duration::from_secs(60),
            first_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(1),
            adaptive: None,
        };
        let options = DispatcherOptions {
            scheduler: SchedulerLimits {
                max_in_flight: IN_FLIGHT,
                max_in_flight_per_destination: IN_FLIGHT,
                max_buffered: 64,
                max_claim: 32,
            },
            svix_gate: gate,
            endpoint_gate: gate,
            attempt_timeout: Duration::from_millis(300),
            svix_configured: true,
        };
        let dispatcher = Dispatcher::new(ledger.clone(), sender.clone(), Arc::new(watcher), options, clock);
        let stop = CancellationToken::new();
        Self { ledger, dispatcher, sender, lanes, stop, running: None }
    }

    async fn accept(&self, prefix: &str, count: usize) {
        let [one, other] = &self.lanes;
        let events = (0..count).map(|n| event(format!("{prefix}{n}")).to(one).to(other).build()).collect();
        self.ledger.accept(events, true, None).await.expect("stored");
    }

    fn run(&mut self) {
        let (dispatcher, stop) = (self.dispatcher.clone(), self.stop.clone());
        self.running = Some(tokio::spawn(async move { dispatcher.run(stop).await }));
    }

    async fn progress(&self) -> Progress {
        self.ledger.database().progress().await.expect("an account")
    }

    /// Waits until every delivery is done.
    async fn all_delivered(&self) {
        let done = async || {
            let progress = self.progress().await;
            (progress.pending == 0).then_some(progress)
        };
        let progress = eventually("everything is delivered", done).await;
        assert_eq!(progress.done.get("delivered"), Some(&progress.created));
    }

    async fn end(self) {
        self.stop.cancel();
        if let Some(running) = self.running {
            running.await.expect("it ends in good order");
        }
        self.ledger.close().await;
    }
}

async fn no_send_begins_while_settlements_cannot_be_written(database: TestDatabase) {
    let mut stage = Stage::open(&database, LEASE, CountingSender::default(), Watcher(None)).await;
    stage.accept("e", EVENTS).await;
    stage.run();
    eventually("some are sent", async || (stage.sender.total() >= 20).then_some(())).await;
    database.execute("ALTER TABLE outcome RENAME TO hidden").await;
    let at_failure = stage.sender.total();
    eventually("the ledger reports its trouble", async || stage.ledger.trouble()).await;
    // Sends that were in flight end.
    eventually("nothing is in flight", async || (stage.dispatcher.in_flight() == 0).then_some(())).await;
    let stopped_at = stage.sender.total();
    let until = Instant::now() + TROUBLE_LASTS;
    while Instant::now() < until {
        assert_eq!(stage.sender.total(), stopped_at, "a send began that could not be settled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Some go out until the first settlement has failed.
    assert!(stopped_at - at_failure <= 100, "{stopped_at} sends, {at_failure} of them before the failure");
    database.execute("ALTER TABLE hidden RENAME TO outcome").await;
    stage.all_delivered().await;
    assert_eq!((stage.sender.total(), stage.sender.repeated()), (2 * EVENTS, 0));
    stage.end().await;
}

/// A commit that waits keeps settlements from being written without being an error. On SQLite a claim lasts as long as its
/// settlement waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_longer_than_a_lease_lets_no_delivery_be_sent_again() {
    bounded(async {
        let database = TestDatabase::sqlite();
        let mut stage = Stage::open(&database, LEASE, CountingSender::default(), Watcher(None)).await;
        // More than are sent while a lease lasts.
        let events = 3 * EVENTS;
        stage.accept("e", events).await;
        stage.run();
        eventually("some are sent", async || (stage.sender.total() >= 20).then_some(())).await;
        let lock = database.lock().await;
        tokio::time::sleep(2 * LEASE).await;
        lock.release().await;
        stage.all_delivered().await;
        assert_eq!((stage.sender.total(), stage.sender.repeated()), (2 * events, 0));
        stage.end().await;
    })
    .await;
}

async fn a_send_that_panics_keeps_no_place_and_is_retried(database: TestDatabase) {
    let sender = CountingSender { panics_at: Some("bad"), ..CountingSender::default() };
    let mut stage = Stage::open(&database, LONG_LEASE, sender, Watcher(None)).await;
    // More than there are places in flight.
    stage.accept("bad", 3 * IN_FLIGHT).await;
    stage.accept("good", 20).await;
    stage.run();
    stage.all_delivered().await;
    assert_eq!((stage.sender.repeated(), stage.dispatcher.in_flight()), (2 * 3 * IN_FLIGHT, 0));
    stage.end().await;
}

async fn a_panic_after_a_send_loses_no_outcome(database: TestDatabase) {
    let mut stage = Stage::open(&database, LONG_LEASE, CountingSender::default(), Watcher(Some("bad"))).await;
    stage.accept("bad", 3 * IN_FLIGHT).await;
    stage.accept("good", 20).await;
    stage.run();
    // What came of each send is recorded: none is sent again.
    stage.all_delivered().await;
    assert_eq!((stage.sender.repeated(), stage.dispatcher.in_flight()), (0, 0));
    stage.end().await;
}
