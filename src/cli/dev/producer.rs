//! The producer: posts sample events to the relay as a platform would, over HTTP and in batches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::StatusCode;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::journal::{Journal, Verdict};
use super::sample::{Batch, Samples};
use crate::cli::client::{Answer, Client};
use crate::domain::clock::Clock;

/// How often a batch is posted that the relay can't take now.
const TRIES_MAX: u32 = 20;
/// Wait before another try where the relay names none.
const PAUSE: Duration = Duration::from_millis(500);

/// See the module's own words.
pub(super) struct Producer {
    pub client: Client,
    pub path: String,
    pub samples: Samples,
    /// How many events in all.
    pub events: u64,
    /// Events per second; 0: as fast as they are taken.
    pub rate: u32,
    pub journal: Arc<Mutex<Journal>>,
    pub clock: Arc<dyn Clock>,
}

#[derive(serde::Deserialize)]
struct Taken {
    results: Vec<Item>,
}

#[derive(serde::Deserialize)]
struct Item {
    status: Verdict,
}

impl Producer {
    /// Posts all events, or until `stop`.
    ///
    /// # Errors
    /// The relay refuses a batch, or can't take it in a long time.
    pub async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let began = self.clock.moment();
        let mut made = 0;
        while made < self.events && !stop.is_cancelled() {
            let batch = self.samples.next_batch(self.events - made, self.clock.now());
            made += batch.events.len() as u64;
            self.post(&batch, &stop).await?;
            if batch.resend && !stop.is_cancelled() {
                self.post(&batch, &stop).await?;
            }
            let next = began + self.time_of(made);
            tokio::select! {
                () = tokio::time::sleep(self.clock.moment().until(next)) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// When, after the beginning, as many events should have been sent.
    fn time_of(&self, events: u64) -> Duration {
        let micros = events.saturating_mul(1_000_000).checked_div(u64::from(self.rate));
        Duration::from_micros(micros.unwrap_or(0))
    }

    /// Posts a batch until the relay has it. Again is no harm: the events have ids.
    async fn post(&self, batch: &Batch, stop: &CancellationToken) -> anyhow::Result<()> {
        let body = Bytes::from(batch.body.clone());
        for _ in 0..TRIES_MAX {
            self.journal().posting(batch, self.clock.moment());
            let answer = self.client.post(&self.path, &[], body.clone()).await;
            let wait = match &answer {
                Ok(answer) if may_pass(answer.status) => answer.wait(self.clock.now()).unwrap_or(PAUSE),
                Ok(answer) => return self.record(batch, answer),
                Err(_) => PAUSE,
            };
            let why = answer.map_or_else(|error| format!("{error:#}"), |answer| answer.complaint());
            let seconds = wait.as_secs_f64();
            let note = format!("the relay did not take a batch; again in {seconds:.1} s ({why})");
            self.journal().note(self.clock.moment(), note);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        anyhow::bail!("the relay did not take a batch of sample events in {TRIES_MAX} tries")
    }

    fn record(&self, batch: &Batch, answer: &Answer) -> anyhow::Result<()> {
        let taken: Taken = answer.read().context("the relay refused a batch of sample events")?;
        let verdicts: Vec<_> = taken.results.iter().map(|item| item.status).collect();
        anyhow::ensure!(verdicts.len() == batch.events.len(), "the relay did not answer for each event");
        self.journal().answered(batch, &verdicts, self.clock.moment());
        Ok(())
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }
}

/// The journal, to read and write in. A task that panicked with it in hand has left it whole.
pub(super) fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the same request may be taken later.
fn may_pass(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}
