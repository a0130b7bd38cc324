//! The load: producers that post batches over kept connections, as fast as it goes or at a rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio::task::JoinSet;

use super::events::Shape;
use super::tally::Tally;
use crate::cli::client::Client;
use crate::domain::clock::{Clock, Moment};

/// Where events are posted.
pub(super) const PATH: &str = "/notifications";
/// How often a request is posted that the relay can't take now.
const TRIES_MAX: u32 = 200;
/// Wait before another try where the relay names none.
const PAUSE: Duration = Duration::from_millis(100);

/// How events are posted.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub shape: Shape,
    /// Events in a request.
    pub batch: u64,
    /// Events of its producer's last request that a request repeats.
    pub duplicates: u64,
    /// Requests at once.
    pub producers: u64,
    /// Events per second; 0: each producer posts again as soon as it has its answer.
    pub rate: u64,
}

/// What the producers saw.
#[derive(Debug, Default)]
pub(super) struct Posted {
    /// Of each request until its 202, in microseconds and in order of size. At a rate, a request whose producer was
    /// still busy counts from when it should have gone.
    pub waits_us: Vec<u32>,
    /// Answers 429 and 503.
    pub refusals: u64,
    /// From the first request to the last answer.
    pub took: Duration,
}

struct Producer {
    load: Load,
    client: Client,
    tally: Arc<Tally>,
    next: Arc<AtomicU64>,
    began: Moment,
    clock: Arc<dyn Clock>,
}

/// Posts all events of `tally`.
///
/// # Errors
/// The relay is gone, refuses a request for good, or does not take one in a long time.
pub(super) async fn run(
    load: &Load,
    client: &Client,
    tally: &Arc<Tally>,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Posted> {
    let (next, began) = (Arc::new(AtomicU64::default()), clock.moment());
    let mut producers = JoinSet::new();
    for _ in 0..load.producers {
        let producer = Producer {
            load: load.clone(),
            client: client.clone(),
            tally: tally.clone(),
            next: next.clone(),
            began,
            clock: clock.clone(),
        };
        producers.spawn(producer.run());
    }
    let mut all = Posted::default();
    while let Some(posted) = producers.join_next().await {
        let Posted { waits_us, refusals, .. } = posted??;
        all.waits_us.extend(waits_us);
        all.refusals += refusals;
    }
    all.took = began.until(clock.moment());
    all.waits_us.sort_unstable();
    Ok(all)
}

impl Producer {
    async fn run(self) -> anyhow::Result<Posted> {
        let mut posted = Posted::default();
        let mut again = (0, 0, 0);
        loop {
            let first = self.next.fetch_add(1, Ordering::Relaxed) * self.load.batch;
            let count = self.load.batch.min(self.tally.events().saturating_sub(first));
            if count == 0 {
                return Ok(posted);
            }
            let from = self.turn(first).await;
            let millis = self.clock.now().as_millis().unsigned_abs();
            let body = self.load.shape.body_of(self.tally.ids(), &[(first, count, millis), again]);
            again = (first, count.min(self.load.duplicates), millis);
            posted.refusals += self.post(body.into()).await?;
            self.tally.accepted(first, count);
            let wait = from.until(self.clock.moment()).as_micros();
            posted.waits_us.push(u32::try_from(wait).unwrap_or(u32::MAX));
        }
    }

    /// Waits until it is the turn of event number `first`; from when its request counts.
    async fn turn(&self, first: u64) -> Moment {
        let now = self.clock.moment();
        let after_us = first.saturating_mul(1_000_000).checked_div(self.load.rate);
        let Some(after) = after_us.map(Duration::from_micros) else { return now };
        let due = self.began + after;
        if due <= now {
            return due;
        }
        tokio::time::sleep(now.until(due)).await;
        // What the timer adds is no fault of the relay's.
        self.clock.moment()
    }

    /// Posts a request until it is taken; how often it was not.
    async fn post(&self, body: Bytes) -> anyhow::Result<u64> {
        for refusals in 0..TRIES_MAX {
            let answer = self.client.post(PATH, &[], body.clone()).await?;
            match answer.status {
                StatusCode::ACCEPTED => return Ok(refusals.into()),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    let wait = answer.wait(self.clock.now()).unwrap_or(PAUSE);
                    tokio::time::sleep(wait).await;
                }
                _ => anyhow::bail!("the relay refused a request: {}", answer.complaint()),
            }
        }
        Err(anyhow::anyhow!("not in {TRIES_MAX} tries")).context("the relay did not take a request")
    }
}
