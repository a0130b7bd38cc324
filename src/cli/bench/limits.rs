//! What the machine itself can do, in the same run: what every figure is compared with.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::Request;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use super::tally::percentile;
use crate::domain::clock::Clock;

/// How long each of the two is measured.
const FOR: Duration = Duration::from_secs(1);
const BLOCK_BYTES: usize = 4 << 10;
/// Requests at once of the bare client: as many as the relay has on their way to one destination by default.
const BARE_IN_FLIGHT: usize = 64;

/// What the machine can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Writes of 4 KiB with an fsync each, one after another, in the ledger's folder.
    pub fsync_per_s: f64,
    pub fsync_p50_us: u32,
    pub fsync_p99_us: u32,
    /// Requests of a client that does nothing else to the same sink.
    pub bare_client_per_s: f64,
}

impl Limits {
    /// What the machine can do, of what it did at two times: others may work on it, too.
    pub fn better(self, other: Self) -> Self {
        let (disk, bare_client_per_s) = (
            if self.fsync_per_s >= other.fsync_per_s { self } else { other },
            self.bare_client_per_s.max(other.bare_client_per_s),
        );
        Self { bare_client_per_s, ..disk }
    }
}

/// Measures both.
pub(super) async fn measure(
    folder: PathBuf,
    sink: &str,
    payload_bytes: usize,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Limits> {
    let waits = tokio::task::spawn_blocking({
        let clock = clock.clone();
        move || fsyncs(&folder, &*clock)
    });
    let mut waits = waits.await??;
    waits.sort_unstable();
    let total: u64 = waits.iter().copied().map(u64::from).sum();
    let p = |percent| percentile(&waits, percent).unwrap_or_default();
    Ok(Limits {
        fsync_per_s: per_second(waits.len() as u64, Duration::from_micros(total)),
        fsync_p50_us: p(50),
        fsync_p99_us: p(99),
        bare_client_per_s: bare_client(format!("{sink}/api/v1/app/bare/msg/"), payload_bytes, clock).await?,
    })
}

/// How many a second that is; 0 where no time has passed.
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^53")]
pub(super) fn per_second(count: u64, within: Duration) -> f64 {
    if within.is_zero() { 0.0 } else { count as f64 / within.as_secs_f64() }
}

fn fsyncs(folder: &std::path::Path, clock: &dyn Clock) -> anyhow::Result<Vec<u32>> {
    let tried = || format!("can't measure fsync in {}", folder.display());
    let mut file = tempfile::tempfile_in(folder).with_context(tried)?;
    let (block, began) = ([0x5a; BLOCK_BYTES], clock.moment());
    let (mut waits, mut before) = (Vec::new(), began);
    while began.until(before) < FOR {
        file.write_all(&block).with_context(tried)?;
        file.sync_all().with_context(tried)?;
        let after = clock.moment();
        waits.push(u32::try_from(before.until(after).as_micros()).unwrap_or(u32::MAX));
        before = after;
    }
    Ok(waits)
}

async fn bare_client(url: String, payload_bytes: usize, clock: &Arc<dyn Clock>) -> anyhow::Result<f64> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let (payload, done) = (Bytes::from(vec![b'.'; payload_bytes]), Arc::new(AtomicU64::default()));
    let began = clock.moment();
    let mut producers = JoinSet::new();
    for _ in 0..BARE_IN_FLIGHT {
        let (client, url, payload) = (client.clone(), url.clone(), payload.clone());
        let (done, clock) = (done.clone(), clock.clone());
        producers.spawn(async move {
            while began.until(clock.moment()) < FOR {
                let request = Request::post(&url).header(CONTENT_TYPE, "application/json");
                let response = client.request(request.body(Full::new(payload.clone()))?).await?;
                response.into_body().collect().await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = producers.join_next().await {
        ended?.context("the bare client failed")?;
    }
    Ok(per_second(done.load(Ordering::Relaxed), began.until(clock.moment())))
}
