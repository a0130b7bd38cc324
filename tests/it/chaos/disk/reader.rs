//! A reader that does not come to its end keeps the WAL from beginning anew.

use std::time::{Duration, Instant};

use axum::http::Method;
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection};

use crate::chaos::{sized, tell};
use crate::support::partners::{JSON, call};
use crate::support::{HttpClient, RelayProcess, TestDatabase, bounded, eventually, metrics, mock_svix};

/// What the WAL grows beyond while it is read, and what it is under again after.
const GROWN_BYTES: u64 = 96 << 20;
const BACK_BYTES: u64 = 64 << 20;
/// Events of a batch, and bytes of data in each.
const PER_BATCH: usize = 10;
const DATA_BYTES: usize = 200_000;
/// Longest that the WAL may take to grow, whatever the machine.
const GROWS_WITHIN: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stays_lets_the_wal_grow_and_it_shrinks_after() {
    // holds: 14
    bounded(run()).await;
}

async fn run() {
    let held_for = sized(Duration::from_secs(6), Duration::from_secs(60));
    let (database, svix) = (TestDatabase::sqlite(), mock_svix().await);
    let relay = RelayProcess::start(&database, &svix, &[]);
    // Nobody gets these: only the ledger is looked at.
    call(&relay, Method::PUT, "/v1/tenants/quiet", json!({ "route": "direct" })).await;
    let mut written = Written { relay: (*relay).clone(), events: 0, slowest: Duration::ZERO };
    let mut reader = SqliteConnection::connect(database.url()).await.expect("a reader");
    sqlx::raw_sql("BEGIN; SELECT COUNT(*) FROM event").execute(&mut reader).await.expect("it reads");
    let began = Instant::now();
    let mut size = 0;
    while began.elapsed() < held_for || size < GROWN_BYTES {
        assert!(began.elapsed() < held_for.max(GROWS_WITHIN), "the WAL has only {size} bytes");
        // Once it is large, a few are enough to keep it growing.
        if size < GROWN_BYTES {
            written.batch(PER_BATCH, DATA_BYTES).await;
        } else {
            written.batch(PER_BATCH, 1_000).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        size = wal_bytes(&relay).await;
    }
    let (grown, held) = (size, began.elapsed());
    let on_disk = wal_file(&database);
    assert!(on_disk >= grown && grown > GROWN_BYTES, "{on_disk} and {grown}");
    sqlx::raw_sql("COMMIT").execute(&mut reader).await.expect("it ends");
    let (freed, slowest_while_held) = (Instant::now(), written.slowest);
    eventually("the WAL is small again", async || {
        written.batch(1, 10).await;
        (wal_bytes(&relay).await < BACK_BYTES).then_some(())
    })
    .await;
    let (back, back_after) = (wal_file(&database), freed.elapsed());
    assert!(back < BACK_BYTES, "{back}");
    reader.close().await.expect("closed");
    let stored = database.text("SELECT CAST(COUNT(*) AS TEXT) FROM event").await;
    assert_eq!(stored, written.events.to_string(), "all of it was stored meanwhile");
    super::end(relay, &database).await;
    tell(
        "reader held",
        format!(
            "{:.0} s: {} events went on being acknowledged, none in more than {} ms; the WAL grew to {} MiB, as \
             posthaste_ledger_wal_bytes told, and {} ms after the reader's end it had {} MiB",
            held.as_secs_f64(),
            written.events,
            slowest_while_held.as_millis(),
            grown >> 20,
            back_after.as_millis(),
            back >> 20,
        ),
    );
}

/// What was acknowledged.
struct Written {
    relay: HttpClient,
    events: usize,
    slowest: Duration,
}

impl Written {
    async fn batch(&mut self, count: usize, data_bytes: usize) {
        let ids: Vec<_> = (self.events..self.events + count).map(|number| number.to_string()).collect();
        let body = super::body(&ids, data_bytes);
        let headers = [JSON[0], ("x-tenant", "quiet")];
        let began = Instant::now();
        let answer = self.relay.post_with(&headers, body).await;
        self.slowest = self.slowest.max(began.elapsed());
        assert_eq!(answer.status, 202, "{}", answer.json());
        self.events += count;
    }
}

/// What the metric says.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a small file")]
async fn wal_bytes(relay: &RelayProcess) -> u64 {
    let text = String::from_utf8_lossy(&relay.get("/metrics").await.body).into_owned();
    metrics::sum(&text, "posthaste_ledger_wal_bytes", &[]).expect("it is told") as u64
}

fn wal_file(database: &TestDatabase) -> u64 {
    let mut name = database.file().into_os_string();
    name.push("-wal");
    std::fs::metadata(name).expect("a WAL").len()
}
