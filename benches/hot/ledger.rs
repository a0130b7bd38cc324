//! The ledger's pieces: 100 events accepted, claimed, settled, each in a commit of its own.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use http::HeaderMap;
use posthaste::app::SystemClock;
use posthaste::domain::clock::Clock;
use posthaste::domain::delivery::{Class, Delivery, Outcome, Settlement, Timing, settle};
use posthaste::domain::parse::{Incoming, parse};
use posthaste::domain::retry::RetrySchedule;
use posthaste::domain::scheduler::LaneClaim;
use posthaste::domain::tenant::{Destination, Lane};
use posthaste::ledger::{Accepted, BacklogLimits, Connections, Ledger, LedgerOptions, NewEvent};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{BATCH, event, id, parse_settings};

/// Where the Postgres server for tests is named.
const SERVER_VARIABLE: &str = "POSTHASTE_TEST_POSTGRES_URL";

/// Batches that wait before a claim is measured.
const DEEP: usize = 50;

/// The databases at hand.
fn databases() -> Vec<&'static str> {
    if std::env::var_os(SERVER_VARIABLE).is_some() { vec!["sqlite", "postgres"] } else { vec!["sqlite"] }
}

/// The one commit in which 100 events with random ids are recorded.
#[divan::bench(args = databases(), sample_count = 200, sample_size = 1)]
fn accept_100(bencher: Bencher<'_, '_>, database: &str) {
    let bench = LedgerBench::open(database);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| bench.events())
        .bench_local_values(|events| bench.accept(events));
    bench.close();
}

/// 100 deliveries read back from a deep lane, and leased where the database is shared. What was claimed before them is
/// settled.
#[divan::bench(args = databases(), sample_count = 200, sample_size = 1)]
fn claim_100(bencher: Bencher<'_, '_>, database: &str) {
    let bench = LedgerBench::open(database);
    for _ in 0..DEEP {
        bench.accept(bench.events());
    }
    let claimed = RefCell::new(Vec::new());
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            bench.accept(bench.events());
            bench.settle(claimed.take().iter().map(|delivery| bench.delivered(delivery)).collect());
        })
        .bench_local_values(|()| claimed.replace(bench.claim()));
    bench.close();
}

/// The one commit that records 100 deliveries as done.
#[divan::bench(args = databases(), sample_count = 200, sample_size = 1)]
fn settle_100(bencher: Bencher<'_, '_>, database: &str) {
    let bench = LedgerBench::open(database);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            bench.accept(bench.events());
            bench.claim().iter().map(|delivery| bench.delivered(delivery)).collect()
        })
        .bench_local_values(|settlements| bench.settle(settlements));
    bench.close();
}

/// A ledger of its own, and a runtime of one thread: what is handed in together is committed together.
struct LedgerBench {
    runtime: Runtime,
    ledger: Ledger,
    lane: Arc<Lane>,
    clock: Arc<SystemClock>,
    place: Place,
}

enum Place {
    Directory(TempDir),
    /// The server's URL and the database's name on it.
    Server(String, String),
}

impl LedgerBench {
    fn open(database: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let clock = Arc::new(SystemClock::new());
        let (url, place) = match database {
            "sqlite" => {
                let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
                (
                    format!("sqlite:{}", directory.path().join("ledger.db").display()),
                    Place::Directory(directory),
                )
            }
            _ => runtime.block_on(new_postgres()),
        };
        let backlog = BacklogLimits { tenant: 10_000_000, total: 10_000_000 };
        let options = LedgerOptions {
            url,
            lease: Duration::from_secs(600),
            backlog,
            recent_bytes: 128 << 20,
            connections: Connections::default(),
        };
        let (ledger, lane) = runtime.block_on(async {
            let ledger = Ledger::open(&options, clock.clone()).await.expect("a ledger");
            let destination = Arc::new(Destination::Svix { app: "acme".to_owned() });
            let lane = ledger.lane(&destination, &"acme".into()).await.expect("a lane");
            (ledger, lane)
        });
        Self { runtime, ledger, lane, clock, place }
    }

    /// 100 new events with random ids.
    fn events(&self) -> Vec<NewEvent> {
        let ids = (0..BATCH).map(|_| format!("evt_{:032x}", self.clock.random()));
        let texts: Vec<_> = ids.map(|id| event(&id)).collect();
        let incoming = Incoming {
            body: Bytes::from(format!("[{}]", texts.join(","))),
            content_type: Some("application/json"),
            headers: &HeaderMap::new(),
            tenant: None,
        };
        let batch = parse(&incoming, &parse_settings()).expect("a batch");
        let drafts = batch.items.into_iter().map(|item| item.result.expect("an event"));
        let new = drafts
            .map(|draft| NewEvent { event: draft.into_event(|| id(0)), lanes: vec![self.lane.clone()] });
        new.collect()
    }

    fn accept(&self, events: Vec<NewEvent>) {
        let accepted = self.runtime.block_on(self.ledger.accept(events, true, None)).expect("accepted");
        assert!(matches!(accepted, Accepted::Stored(_)), "{accepted:?}");
    }

    fn claim(&self) -> Vec<Delivery> {
        let claim = LaneClaim { lane: self.lane.clone(), class: Class::Fresh, limit: BATCH };
        let (mut lanes, _) = self.runtime.block_on(self.ledger.claim(&[claim])).expect("claimed");
        let deliveries = lanes.pop().expect("one answer for each claim").deliveries;
        assert_eq!(deliveries.len(), BATCH);
        deliveries
    }

    fn delivered(&self, delivery: &Delivery) -> Settlement {
        let outcome = Outcome::Delivered { status: 202, remote_id: None, dispatch_unconfirmed: false };
        let timing = Timing { at: self.clock.now(), latency: Duration::from_millis(5), chance: 0.5 };
        settle(delivery, outcome, true, &RetrySchedule::new(Vec::new()), timing)
    }

    fn settle(&self, settlements: Vec<Settlement>) {
        self.runtime.block_on(async {
            for settlement in settlements {
                self.ledger.settle(settlement).await.expect("queued");
            }
            // Answered once all before it is committed.
            self.ledger.accept(Vec::new(), true, None).await.expect("settled");
        });
    }

    fn close(self) {
        let Self { runtime, ledger, place, .. } = self;
        runtime.block_on(async {
            ledger.close().await;
            match place {
                Place::Directory(directory) => directory.close().expect("removed"),
                Place::Server(server, name) => {
                    execute(&server, format!("DROP DATABASE {name} WITH (FORCE)")).await
                }
            }
        });
    }
}

async fn new_postgres() -> (String, Place) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let server = std::env::var(SERVER_VARIABLE).expect("the URL of a server");
    let name = format!("posthaste_hot_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    execute(&server, format!("CREATE DATABASE {name}")).await;
    let mut url = url::Url::parse(&server).expect("a URL");
    url.set_path(&name);
    (url.into(), Place::Server(server, name))
}

async fn execute(server: &str, sql: String) {
    let mut connection = PgConnection::connect(server).await.expect("the Postgres server for tests");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.expect("done");
}
