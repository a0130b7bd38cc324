//! A panic costs the dispatcher nothing but the task that it ends: no place in flight, and no claim.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use super::Shared;
use crate::domain::clock::Moment;
use crate::domain::gate::{Change, Signal};
use crate::domain::scheduler::{GateId, LaneClaim, Permit};
use crate::domain::tenant::Lane;

/// A future has panicked. The panic hook has printed where.
#[derive(Debug)]
pub(super) struct Panicked;

/// The output of `future`, or that it panicked.
pub(super) async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        let poll = AssertUnwindSafe(|| future.as_mut().poll(context));
        match std::panic::catch_unwind(poll) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// A place in flight. It is given back when the send ends, or when its task panics.
pub(super) struct Place<'a> {
    shared: &'a Shared,
    lane: &'a Arc<Lane>,
    permit: Option<Permit>,
}

impl<'a> Place<'a> {
    pub const fn new(shared: &'a Shared, lane: &'a Arc<Lane>, permit: Permit) -> Self {
        Self { shared, lane, permit: Some(permit) }
    }

    /// Gives the place back with what the send tells of the receiver: which gates have closed or opened by it.
    pub fn finish(mut self, signal: Signal, ended: Moment, chance: f64) -> Vec<(GateId, Change)> {
        match self.permit.take() {
            Some(permit) => self.shared.scheduler().finish(self.lane, permit, signal, ended, chance),
            None => Vec::new(),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let now = self.shared.clock.moment();
            let _ = self.shared.scheduler().finish(self.lane, permit, Signal::NotSent, now, 0.0);
            self.shared.changed.notify_one();
        }
    }
}

/// Lets the dispatcher take a turn where a panic ends the task that would have.
pub(super) struct WakeOnPanic<'a>(pub &'a Shared);

impl Drop for WakeOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.changed.notify_one();
        }
    }
}

/// A claim under way. Its end lets the next one begin, whether it was answered or its task panicked.
pub(super) struct ClaimUnderWay<'a> {
    shared: &'a Shared,
    claims: &'a [LaneClaim],
    is_answered: bool,
}

impl<'a> ClaimUnderWay<'a> {
    pub const fn new(shared: &'a Shared, claims: &'a [LaneClaim]) -> Self {
        Self { shared, claims, is_answered: false }
    }

    /// The scheduler gets its answer from the caller.
    pub const fn answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for ClaimUnderWay<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.shared.claim_failed(self.claims);
        }
        self.shared.claiming.store(false, Ordering::Release);
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_and_an_output_stays_one() {
        let panics = catch_panic(async {
            tokio::task::yield_now().await;
            assert_eq!(1, 2, "this panic is wanted");
        });
        assert!(panics.await.is_err());
        assert_eq!(catch_panic(async { 7 }).await.ok(), Some(7));
    }
}
