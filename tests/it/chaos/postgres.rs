//! Postgres: killed, cut off, silent, crowded, and replaced by its standby.
//!
//! Each test has a server of its own behind a network of its own. Whatever happens to them, a producer is told 202 or 503;
//! what it was told 202 of is there, and what it sends again is there once.

mod crowded;
mod cut;
mod full;
mod killed;
mod promotion;
mod read_only;
mod silent;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use posthaste::mock::MockSvix;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::disk::{assert_refused, assert_sent_once, body};
use crate::support::postgres::PostgresServer;
use crate::support::proxy::Proxy;
use crate::support::{HttpClient, TestDatabase, TestRelay, config, eventually, mock_svix};

const PRODUCERS: usize = 4;
const PER_BATCH: usize = 10;
/// How long a producer waits that was refused.
const AFTER_REFUSAL: Duration = Duration::from_millis(50);

/// A relay, and what it stands on.
struct Stage {
    relay: TestRelay,
    svix: MockSvix,
    proxy: Proxy,
}

impl Stage {
    /// A relay on a server, through a network. A claim whose answer is lost is soon free again.
    async fn on(server: &PostgresServer) -> Self {
        Self::with_timeout(server, 500).await
    }

    /// The same with another timeout of sends; a claim holds for four of it.
    async fn with_timeout(server: &PostgresServer, timeout_ms: u64) -> Self {
        let (svix, proxy) = (mock_svix().await, Proxy::start(server.socket()).await);
        let mut config = config(&TestDatabase::at(proxy.url()), &svix);
        config.svix.timeout_ms = timeout_ms;
        config.dispatch.lease_ms = 4 * timeout_ms;
        let relay = TestRelay::start_with(config).await;
        Self { relay, svix, proxy }
    }

    async fn ready(&self) {
        let ready = async || (self.relay.get("/health/ready").await.status == 200).then_some(());
        eventually("the relay is ready", ready).await;
    }

    /// Everybody sends until they are told to stop.
    fn producers(&self) -> Producers {
        let (stop, stopped) = watch::channel(false);
        let refusals = Arc::<AtomicUsize>::default();
        let produce = |number| {
            let (client, stopped) = ((*self.relay).clone(), stopped.clone());
            let mut told = Told { refusals: Arc::clone(&refusals), ..Told::default() };
            tokio::spawn(async move {
                produce(&client, number, &stopped, &mut told).await;
                told
            })
        };
        Producers { tasks: (0..PRODUCERS).map(produce).collect(), stop, refusals }
    }

    /// Everything that was acknowledged is in the ledger of `server`, once, and was delivered, once.
    async fn reconcile(self, server: &PostgresServer, told: &Told) -> usize {
        self.ready().await;
        let progress = self.relay.settled().await;
        let events = i64::try_from(told.acknowledged.len()).expect("few");
        assert_eq!((progress.events, progress.created), (events, events));
        assert_eq!(progress.done, [("delivered".to_owned(), events)].into());
        let stored = server.query("SELECT COALESCE(string_agg(id, ' '), '') FROM event").await;
        let stored: BTreeSet<_> = stored.split(' ').map(str::to_owned).collect();
        assert_eq!(stored, told.acknowledged);
        let again = assert_sent_once(&self.svix, &told.acknowledged);
        self.relay.stop().await;
        again
    }
}

struct Producers {
    tasks: Vec<JoinHandle<Told>>,
    stop: watch::Sender<bool>,
    refusals: Arc<AtomicUsize>,
}

impl Producers {
    /// Waits until one more request has been refused.
    async fn refused_once_more(&self) {
        let before = self.refusals.load(Ordering::Relaxed);
        let refused = async || (self.refusals.load(Ordering::Relaxed) > before).then_some(());
        eventually("a producer is refused", refused).await;
    }

    /// Lets them come to the end of what they have begun; what they were told.
    async fn stop(self) -> Told {
        self.stop.send_replace(true);
        let mut told = Told::default();
        for task in self.tasks {
            told.extend(task.await.expect("a producer"));
        }
        told
    }
}

/// What producers were told.
#[derive(Debug, Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    /// Answers 503, and those of all producers together.
    refused: usize,
    refusals: Arc<AtomicUsize>,
    /// Batches that were refused first, and had been stored all the same; and that had not.
    were_stored: usize,
    were_not: usize,
    slowest: Duration,
}

impl Told {
    fn extend(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.refused += other.refused;
        self.were_stored += other.were_stored;
        self.were_not += other.were_not;
        self.slowest = self.slowest.max(other.slowest);
    }

    /// Sends a batch until it is acknowledged, as a platform would: 202 or 503, and all of it or nothing.
    async fn send(&mut self, client: &HttpClient, ids: &[String]) {
        let mut was_refused = false;
        loop {
            let began = Instant::now();
            let answer = client.post(body(ids, 200)).await;
            self.slowest = self.slowest.max(began.elapsed());
            if answer.status != 202 {
                assert_refused(&answer);
                (was_refused, self.refused) = (true, self.refused + 1);
                self.refusals.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            }
            let statuses = answer.statuses();
            let first = statuses.first().expect("a verdict").as_str();
            assert!(statuses.iter().all(|status| status == first), "{statuses:?}");
            match (was_refused, first) {
                (false, "accepted") => {}
                (true, "accepted") => self.were_not += 1,
                (true, "duplicate") => self.were_stored += 1,
                other => panic!("{other:?}"),
            }
            self.acknowledged.extend(ids.iter().cloned());
            return;
        }
    }
}

async fn produce(client: &HttpClient, number: usize, stopped: &watch::Receiver<bool>, told: &mut Told) {
    for batch in 0.. {
        if *stopped.borrow() {
            break;
        }
        let ids: Vec<_> = (0..PER_BATCH).map(|item| format!("{number}-{batch}-{item}")).collect();
        told.send(client, &ids).await;
    }
}
