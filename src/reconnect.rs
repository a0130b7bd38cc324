//! Waiting for a neighbour that is away: the database now, brokers later.
//!
//! The only file that uses `backoff`. It never retries a delivery: that schedule is durable and lives in the ledger.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Ever longer pauses, each ±50 %, up to two seconds.
#[derive(Debug)]
pub struct Pauses(ExponentialBackoff);

impl Pauses {
    /// Pauses that go on for ever.
    pub fn new() -> Self {
        Self(policy(None))
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(LONGEST)
    }

    /// The neighbour is back: the next pause is a short one.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Default for Pauses {
    fn default() -> Self {
        Self::new()
    }
}

/// Tries to reach a neighbour until it is there, `patience` is at an end, or `is_final` says that waiting won't help.
///
/// # Errors
/// The last error of `attempt`.
pub async fn reach<T, E, F>(
    patience: Duration,
    attempt: impl Fn() -> F,
    is_final: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    backoff::future::retry(policy(Some(patience)), || async {
        attempt().await.map_err(|error| match is_final(&error) {
            true => backoff::Error::permanent(error),
            false => backoff::Error::transient(error),
        })
    })
    .await
}

fn policy(patience: Option<Duration>) -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(FIRST)
        .with_max_interval(LONGEST)
        .with_max_elapsed_time(patience)
        .build()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn it_waits_for_what_may_come_and_not_for_what_can_not() {
        let tries = Cell::new(0);
        let attempt = || async {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err("away") } else { Ok(tries.get()) }
        };
        assert_eq!(reach(Duration::from_secs(5), attempt, |_| false).await, Ok(3));
        tries.set(0);
        assert_eq!(reach(Duration::from_secs(5), attempt, |_| true).await, Err("away"));
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let mut pauses = Pauses::new();
        let grown: Vec<_> = (0..30).map(|_| pauses.pause()).collect();
        assert!(grown[0] <= FIRST * 2 && grown.iter().all(|pause| *pause <= LONGEST * 2), "{grown:?}");
        assert!(grown[29] > FIRST * 2);
        pauses.reset();
        assert!(pauses.pause() <= FIRST * 2);
    }
}
